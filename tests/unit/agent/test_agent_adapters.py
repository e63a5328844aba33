"""The adapters that touch the disk and the engines, with real files and real models."""

import importlib.metadata
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.helper
import pytest

from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.adapters.replay_source import ReplaySource
from device_agent.adapters.sqlite_state import DATABASE_NAME, SqliteState
from device_agent.adapters.tflite_engine import TfliteEngine
from device_agent.core.inference import fitted
from device_agent.errors import ConfigurationError, InferenceError, StateError, StateNotFoundError, StepError
from device_agent.ports import Counts, Stored
from manifests.canonical import digest_of
from tests.tiny_models import GOOD, answers, onnx_classifier, readings

# Slots ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slots(tmp_path):
    return FileSlots(tmp_path)


def test_a_part_becomes_a_blob_only_when_it_is_right(slots):
    content = b"model" * 1000
    digest = digest_of(content)
    slots.part(digest).write_bytes(content)
    slots.seal(digest, len(content))
    assert (slots.has(digest), slots.part(digest).exists(), slots.read(digest)) == (True, False, content)
    slots.seal(digest, len(content))
    assert slots.has(digest)


@pytest.mark.parametrize(
    ("content", "code"), [(b"modem", "DIGEST_MISMATCH"), (b"mode", "SIZE_MISMATCH"), (b"models", "SIZE_MISMATCH")]
)
def test_a_wrong_part_is_discarded(slots, content, code):
    digest = digest_of(b"model")
    slots.part(digest).write_bytes(content)
    with pytest.raises(StepError) as caught:
        slots.seal(digest, 5)
    assert (caught.value.code, slots.has(digest), slots.part(digest).exists()) == (code, False, False)


def test_a_blob_that_rotted_is_neither_read_nor_sealed_again(slots, tmp_path):
    digest = digest_of(b"model")
    slots.part(digest).write_bytes(b"model")
    slots.seal(digest, 5)
    (tmp_path / "blobs" / "sha256" / digest[7:]).write_bytes(b"modem")
    for touch in (lambda: slots.read(digest), lambda: slots.seal(digest, 5)):
        with pytest.raises(StepError) as caught:
            touch()
        assert caught.value.code == "DIGEST_MISMATCH"
    assert not slots.has(digest)


def test_a_sweep_leaves_what_is_needed_and_nothing_else(slots):
    kept, dropped, begun = (digest_of(name) for name in (b"kept", b"dropped", b"begun"))
    for digest, content in ((kept, b"kept"), (dropped, b"dropped")):
        slots.part(digest).write_bytes(content)
        slots.seal(digest, len(content))
    slots.part(begun).write_bytes(b"beg")
    slots.part(digest_of(b"old")).write_bytes(b"ol")
    assert slots.sweep({kept, begun}) == 2
    assert (slots.has(kept), slots.has(dropped), slots.part(begun).exists()) == (True, False, True)
    assert slots.sweep(set()) == 2


# State ----------------------------------------------------------------------------------------------------------------


def stored(sequence: int, position: int | None = None) -> Stored:
    return Stored(sequence, f"boot-{sequence}", f"body {sequence}".encode(), position)


def test_what_was_stored_is_there_after_the_process_is_gone(tmp_path):
    state = SqliteState.open(tmp_path)
    assert state.begin_boot("one") is False
    state.save_model("digits", b"{}")
    state.enqueue([stored(1), stored(2), stored(3, position=17)], [])
    state.acknowledge([2])
    # No close: the process was killed.
    again = SqliteState.open(tmp_path)
    assert again.begin_boot("two") is True
    assert (again.models(), again.position()) == ({"digits": b"{}"}, 17)
    assert list(again.waiting()) == [(1, 6, 0, False), (3, 6, 0, False)]
    assert again.counts() == Counts(enqueued=3, acknowledged=1, dropped=0, last_sequence=3)
    again.end_boot()
    assert SqliteState.open(tmp_path).begin_boot("three") is False


def test_a_position_is_of_one_source_and_not_of_the_next(tmp_path):
    state = SqliteState.open(tmp_path)
    state.note_source("csv:a.csv")
    state.enqueue([stored(1, position=5), stored(2)], [])
    assert state.position() == 5
    state.note_source("csv:a.csv")
    assert state.position() == 5
    state.note_source("csv:b.csv")
    assert state.position() is None


def test_an_older_state_without_a_noted_source_keeps_its_position(tmp_path):
    state = SqliteState.open(tmp_path)
    state.enqueue([stored(1, position=5)], [])
    state.note_source("replay:live.npz")
    assert state.position() == 5


def test_a_message_is_counted_once_however_often_it_is_acknowledged(tmp_path):
    state = SqliteState.open(tmp_path)
    state.enqueue([stored(1), stored(2)], [])
    state.acknowledge([1])
    state.acknowledge([1])
    state.drop([1, 2], "refused")
    state.enqueue([stored(3)], [2])
    assert state.counts() == Counts(enqueued=3, acknowledged=1, dropped=1, last_sequence=3, dropped_refused=1)


def test_what_is_dropped_is_counted_by_its_cause_stored_before_or_not(tmp_path):
    state = SqliteState.open(tmp_path)
    state.enqueue([stored(number) for number in range(1, 6)], [])
    state.drop([1], "age")
    state.enqueue([stored(6), replace(stored(7), clock_s=9, is_alert=True)], [2, 3, 6])
    counts = SqliteState.open(tmp_path).counts()
    assert (counts.enqueued, counts.dropped, counts.dropped_age, counts.dropped_room) == (7, 4, 1, 3)
    assert list(state.waiting()) == [(4, 6, 0, False), (5, 6, 0, False), (7, 6, 9, True)]
    assert [message.sequence for message in state.messages([7, 4, 6])] == [4, 7]


FIRST_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (name TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (sequence INTEGER PRIMARY KEY, message_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO outbox VALUES (4, 'boot-4', x'616263'), (5, 'boot-5', x'61');
INSERT INTO counters VALUES ('enqueued', 5), ('acknowledged', 2), ('dropped', 1), ('lastSequence', 5);
PRAGMA user_version=1;
"""


def test_the_outbox_of_an_older_agent_is_taken_over(tmp_path):
    with closing(sqlite3.connect(tmp_path / "agent.db")) as connection:
        connection.executescript(FIRST_SCHEMA)
    assert SqliteState.open_to_read(tmp_path).counts().enqueued == 5
    for _ in range(2):
        state = SqliteState.open(tmp_path)
        assert list(state.waiting()) == [(4, 3, 0, False), (5, 1, 0, False)]
        assert state.messages([4])[0].body == b"abc"
        state.close()


def test_the_state_of_a_newer_agent_is_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "agent.db")) as connection:
        connection.executescript("CREATE TABLE outbox (whatever TEXT); PRAGMA user_version=9;")
    for open_state in (SqliteState.open, SqliteState.open_to_read):
        with pytest.raises(StateError, match="schema version 9; this agent knows version 2"):
            open_state(tmp_path)


def test_a_transaction_that_fails_leaves_nothing(tmp_path):
    state = SqliteState.open(tmp_path)
    state.enqueue([stored(1)], [])
    with pytest.raises(StateError):
        state.enqueue([stored(2), stored(1)], [])
    assert (list(state.waiting()), state.counts().enqueued) == ([(1, 6, 0, False)], 1)


def test_a_reader_changes_nothing_and_says_where_nothing_is(tmp_path):
    with pytest.raises(StateNotFoundError):
        SqliteState.open_to_read(tmp_path)
    assert list(tmp_path.iterdir()) == []
    SqliteState.open(tmp_path).save_model("digits", b"{}")
    reader = SqliteState.open_to_read(tmp_path)
    assert reader.models() == {"digits": b"{}"}
    with pytest.raises(StateError):
        reader.save_model("digits", b"other")


@pytest.mark.parametrize("damage", ["noise", "a newer schema"])
def test_a_state_that_cannot_be_read_is_told_in_words(tmp_path, damage):
    if damage == "noise":
        (tmp_path / DATABASE_NAME).write_bytes(b"this is no database, whatever it is" * 100)
    else:
        with sqlite3.connect(tmp_path / DATABASE_NAME) as database:
            database.execute("PRAGMA user_version=99")
    with pytest.raises(StateError) as caught:
        SqliteState.open(tmp_path)
    assert caught.value.hint


# Source ---------------------------------------------------------------------------------------------------------------


def replay(tmp_path: Path, **arrays: np.ndarray) -> ReplaySource:
    file = tmp_path / "live.npz"
    np.savez(file, **{name.replace("__", "."): array for name, array in arrays.items()})
    return ReplaySource.open(file)


def test_a_file_is_replayed_round_and_round_and_goes_on_where_it_was(tmp_path):
    source = replay(tmp_path, input__x=np.arange(3), id=np.array(["a", "b", "c"]))
    seen = [source.next_reading() for _ in range(5)]
    assert [(reading.id, int(reading.inputs["x"])) for reading in seen] == [
        ("a", 0), ("b", 1), ("c", 2), ("a", 0), ("b", 1),
    ]  # fmt: skip
    source.seek(seen[3].position)
    assert source.next_reading().id == "b"


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros(3)},
        {"input__x": np.zeros(3), "id": np.array(["a"])},
        {"input__x": np.zeros(3), "input__y": np.zeros(2)},
        {"input__x": np.zeros((0, 4))},
        {"input__x": np.array([{}], dtype=object)},
    ],
)
def test_a_file_that_is_no_replay_is_refused(tmp_path, arrays):
    with pytest.raises(ConfigurationError, match=r"The (replay file|arrays)"):
        replay(tmp_path, **arrays)


# Engines --------------------------------------------------------------------------------------------------------------


def test_onnx_answers_as_worked_out_by_hand():
    content = onnx_classifier(GOOD)
    model = OnnxEngine().load(content, digest_of(content))
    samples = readings(12)
    for sample, expected in zip(samples, answers(GOOD, samples), strict=True):
        outputs = model.run(fitted({"features": sample}, model.signature))
        np.testing.assert_allclose(outputs["probabilities"][0], expected, atol=1e-6)
    assert (model.signature.inputs[0].shape, model.digest) == ((-1, 4), digest_of(content))


@pytest.mark.parametrize("content", [b"", b"no model", onnx_classifier(GOOD)[:-20]], ids=["empty", "noise", "cut"])
def test_onnx_refuses_what_is_no_whole_model(content):
    with pytest.raises(StepError) as caught:
        OnnxEngine().load(content, digest_of(content))
    assert caught.value.code == "LOAD_FAILED"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"no model", b"\x1c\0\0\0TFL3" + b"\xff" * 4], ids=["empty", "noise", "head"])
def test_tflite_refuses_what_is_no_model(content):
    with pytest.raises(StepError) as caught:
        TfliteEngine().load(content, digest_of(content))
    assert caught.value.code == "LOAD_FAILED"


def test_a_wrong_tensor_is_an_inference_error_and_not_a_crash():
    content = onnx_classifier(GOOD)
    model = OnnxEngine().load(content, digest_of(content))
    with pytest.raises(InferenceError):
        model.run({"other": np.zeros((1, 4), np.float32)})


def test_onnxruntime_tells_the_newest_opset_it_takes():
    """Checked by models that the onnx package writes: that opset loads, the next one does not."""
    newest = OnnxEngine().facts().opset_max
    assert newest is not None
    load_identity(newest)
    with pytest.raises(StepError, match="opset"):
        load_identity(newest + 1)


def load_identity(opset: int):
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)])
    content = model.SerializeToString()
    return OnnxEngine().load(content, digest_of(content))


def test_an_engine_says_what_it_is():
    onnx_facts, tflite_facts = OnnxEngine().facts(), TfliteEngine().facts()
    assert (onnx_facts.name, onnx_facts.version) == ("onnxruntime", importlib.metadata.version("onnxruntime"))
    assert onnx_facts.providers == ("CPUExecutionProvider",)
    assert tflite_facts.version == importlib.metadata.version(tflite_facts.name)
    assert tflite_facts.opset_max is None
