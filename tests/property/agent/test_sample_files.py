"""Collected samples under power cuts, full disks and torn bytes: whole files or none, and every loss is counted."""

import io
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.adapters import sample_files
from device_agent.adapters.replay_source import ReplaySource
from device_agent.adapters.sample_files import FileBounds, SampleFiles, _frame, packed, read_journal
from device_agent.ports import Sample

ROOMY = FileBounds(bytes_max=1 << 20, file_bytes_max=1 << 16, file_age_s=1e9)


def sample(sequence: int, *, model: str = "digits", version: int = 1, length: int = 4, boot: str = "b1") -> Sample:
    features = np.full(length, sequence, np.float32)
    return Sample(
        model=model,
        version=version,
        digest=f"sha256:{version}",
        generation=version,
        boot=boot,
        sequence=sequence,
        at="2026-01-01T00:00:00.000+00:00",
        reason="rate",
        reading=f"reading-{sequence}",
        prediction=str(sequence % 10) if sequence % 5 else None,
        confidence=0.5 if sequence % 5 else None,
        values="{}",
        error=None,
        inputs={"features": (features.dtype.str, features.shape, features.tobytes())},
    )


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def sequences(files: SampleFiles) -> list[int]:
    return [int(number) for path in files.waiting() for number in read(path)["seq"]]


def test_a_file_holds_what_was_seen_and_can_be_replayed(tmp_path):
    files = SampleFiles.open(tmp_path, ROOMY)
    files.append([sample(number) for number in range(1, 7)])
    files.seal_due(is_forced=True)
    (path,) = files.waiting()
    arrays = read(path)
    assert str(arrays["meta"]) == (
        '{"format": "slipway-samples-1.0", "model": "digits", "version": 1, "digest": "sha256:1", "generation": 1}'
    )
    assert arrays["seq"].tolist() == [1, 2, 3, 4, 5, 6]
    assert arrays["prediction"].tolist() == ["1", "2", "3", "4", "", "6"]
    assert np.isnan(arrays["confidence"][4])
    assert arrays["input.features"].tolist() == [[float(number)] * 4 for number in range(1, 7)]
    source = ReplaySource.open(path)
    assert [source.next_reading().id for _ in range(2)] == ["reading-1", "reading-2"]
    assert files.blob_name(path) == "slipway/digits/1/b1-1.npz"
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_one_file_holds_samples_of_one_form(tmp_path):
    files = SampleFiles.open(tmp_path, ROOMY)
    files.append([sample(1), sample(2, length=7), sample(3, length=7), sample(4, model="other"), sample(5, length=7)])
    files.append([sample(6, length=7, version=2)])
    files.seal_due(is_forced=True)
    assert [read(path)["seq"].tolist() for path in files.waiting()] == [[1], [2, 3, 5], [4], [6]]


def test_a_journal_is_sealed_by_size_and_by_age(tmp_path):
    files = SampleFiles.open(tmp_path, FileBounds(1 << 20, 16 * 1024, 1e9))
    files.append([sample(number) for number in range(1, 200)])
    assert len(files.waiting()) == 1
    aged = SampleFiles.open(tmp_path / "aged", FileBounds(1 << 20, 16 * 1024, 0.0))
    aged.append([sample(1)])
    assert sequences(aged) == [1]


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 6), st.data())
def test_of_a_journal_that_is_torn_anywhere_all_before_the_tear_is_kept(count, data):
    with tempfile.TemporaryDirectory() as name:
        files = SampleFiles.open(Path(name), ROOMY)
        files.append([sample(number) for number in range(1, count + 1)])
        (journal,) = files.directory.glob("*.open")
        content = bytearray(journal.read_bytes())
        ends = list(itertools.accumulate(len(_frame(sample(number))) for number in range(1, count + 1)))
        assert ends[-1] == len(content)
        place = data.draw(st.integers(0, len(content) - 1))
        is_flipped = data.draw(st.booleans())
        if is_flipped:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[place:]
        journal.write_bytes(content)
        again = SampleFiles.open(Path(name), ROOMY)
        kept = sum(end <= place for end in ends)
        assert sequences(again) == list(range(1, kept + 1))
        assert again.losses.torn == (1 if is_flipped or place not in (0, *ends) else 0)
        assert list(again.directory.glob("*.open")) == []


class PowerCut(BaseException):
    """Nothing catches it: the process is gone."""


OPERATIONS = ("write", "fsync", "ftruncate", "replace", "unlink")


@pytest.fixture
def disk(monkeypatch):
    """Counts what is done to the disk, and cuts the power before one of the steps, or in the middle of a write."""

    class Disk:
        steps = 0
        cut_at = -1
        is_torn = False

    def step(act, *arguments, write=None):
        Disk.steps += 1
        if Disk.steps == Disk.cut_at:
            if Disk.is_torn and write is not None:
                os_write(write[0], bytes(write[1])[: len(write[1]) // 2])
            raise PowerCut
        return act(*arguments)

    os_write, os_fsync, os_ftruncate = os.write, os.fsync, os.ftruncate
    path_replace, path_unlink = Path.replace, Path.unlink
    monkeypatch.setattr(sample_files.os, "write", lambda d, b: step(os_write, d, b, write=(d, b)))
    monkeypatch.setattr(sample_files.os, "fsync", lambda d: step(os_fsync, d))
    monkeypatch.setattr(sample_files.os, "ftruncate", lambda d, n: step(os_ftruncate, d, n))
    monkeypatch.setattr(Path, "replace", lambda self, other: step(path_replace, self, other))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: step(path_unlink, self, missing_ok))
    return Disk


def live(directory: Path, durable: list[int]) -> None:
    """Three appends, with seals between them; what an append returned for is durable."""
    files = SampleFiles.open(directory, ROOMY)
    for first in (1, 4, 7):
        files.append([sample(number) for number in range(first, first + 3)])
        durable += range(first, first + 3)
        files.seal_due(is_forced=first != 4)


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_power_cut_at_any_step_loses_nothing_that_was_written_and_leaves_no_half_file(tmp_path, disk, is_torn):
    live(tmp_path / "whole", [])
    total, disk.is_torn = disk.steps, is_torn
    assert total > 15
    for cut in range(1, total + 1):
        directory, durable = tmp_path / f"cut-{cut}", []
        disk.steps, disk.cut_at = 0, cut
        with pytest.raises(PowerCut):
            live(directory, durable)
        disk.cut_at = -1
        again = SampleFiles.open(directory, ROOMY)
        assert all(again.is_whole(path) for path in again.waiting())
        found = sequences(again)
        assert found == list(dict.fromkeys(found)), "a sample is in two files"
        assert set(durable) <= set(found)
        assert len(found) <= len(durable) + 3
        assert {path.suffix for path in again.directory.iterdir()} <= {".npz"}
        names = [again.blob_name(path) for path in again.waiting()]
        # Once more, as after a second cut: the same files under the same names.
        assert [again.blob_name(path) for path in SampleFiles.open(directory, ROOMY).waiting()] == names
        shutil.rmtree(directory)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=25))
def test_the_bound_holds_the_newest_stay_and_the_rest_is_counted(turns):
    bounds = FileBounds(bytes_max=12_000, file_bytes_max=3_000, file_age_s=1e9)
    with tempfile.TemporaryDirectory() as name:
        files, last = SampleFiles.open(Path(name), bounds), 0
        for count, is_restarted in turns:
            lost = files.lost()["room"] if is_restarted else 0
            if is_restarted:
                files = SampleFiles.open(Path(name), bounds)
                files.losses.room = lost
            files.append([sample(number) for number in range(last + 1, last + count + 1)])
            last += count
            # A sealed file may be a little larger than its journal: a zip has a head for each column.
            assert files.size_bytes() <= bounds.bytes_max + 4_000
        files.seal_due(is_forced=True)
        found = sequences(files)
        assert found == list(range(last - len(found) + 1, last + 1))
        assert files.losses.room == last - len(found)


def test_a_sample_larger_than_a_file_may_be_is_counted_and_nothing_else_goes_for_it(tmp_path):
    files = SampleFiles.open(tmp_path, FileBounds(1 << 16, 1 << 15, 1e9))
    files.append([sample(1), sample(2, length=100_000), sample(3)])
    files.seal_due(is_forced=True)
    assert (sequences(files), files.losses.room) == ([1, 3], 1)


def test_a_full_disk_costs_samples_and_is_counted(tmp_path, monkeypatch):
    files = SampleFiles.open(tmp_path, ROOMY)
    files.append([sample(1)])

    def full(descriptor, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sample_files.os, "write", full)
        files.append([sample(2), sample(3)])
        # The journal cannot become a file now; it waits.
        files.seal_due(is_forced=True)
        assert (files.losses.disk, files.waiting()) == (2, [])
    files.append([sample(4)])
    files.seal_due(is_forced=True)
    assert sequences(files) == [1, 4]


def test_samples_leave_room_for_readings_and_updates(tmp_path, monkeypatch):
    """On a disk that others fill: first the oldest files go, then nothing more is kept, until there is room again."""
    bounds = FileBounds(1 << 20, 1 << 16, 1e9, free_bytes_min=1000_000)
    free_bytes = 2_000_000
    monkeypatch.setattr(
        sample_files.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": free_bytes - files.size_bytes()})
    )
    files = SampleFiles.open(tmp_path, bounds)
    for number in range(1, 5):
        files.append([sample(number)])
        files.seal_due(is_forced=True)
    file_bytes = files.size_bytes() // 4
    free_bytes = 1_000_000 + 3 * file_bytes
    files.append([sample(5)])
    files.seal_due(is_forced=True)
    assert sequences(files)[-1] == 5
    assert files.lost() == {"room": 5 - len(files.waiting()), "disk": 0, "torn": 0}
    free_bytes = 500_000
    files.append([sample(6)])
    assert (sequences(files), files.lost()) == ([], {"room": 5, "disk": 1, "torn": 0})
    free_bytes = 2_000_000
    files.append([sample(7)])
    files.seal_due(is_forced=True)
    assert sequences(files) == [7]


def test_a_sealed_file_that_rotted_is_not_uploaded_but_counted(tmp_path):
    files = SampleFiles.open(tmp_path, ROOMY)
    files.append([sample(1)])
    files.seal_due(is_forced=True)
    (path,) = files.waiting()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert not files.is_whole(path)
    assert (files.losses.torn, files.waiting()) == (1, [])


def test_the_same_samples_make_the_same_file():
    batch = [sample(number) for number in range(1, 4)]
    assert packed(batch) == packed(batch)
    assert len(np.load(io.BytesIO(packed(batch)), allow_pickle=False)["seq"]) == 3
    assert read_journal(b"") == ([], 0)
