"""Uploads under way, without sockets or files; and deadlines, which several queues share."""

import json
from urllib.parse import parse_qsl

import pytest
from hub_worlds import NOON, CountingEntropy, World
from hypothesis import given
from hypothesis import strategies as st

from simulators.iothub.core.deadlines import Deadlines
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.uploads import Uploads
from simulators.iothub.errors import ServiceError

KEY = CountingEntropy().key()


def signed(uploads: Uploads, name: str = "f") -> tuple[str, dict[str, str]]:
    upload = uploads.begin("d1", {"blobName": name}, NOON)
    return upload.blob_name, dict(parse_qsl(uploads.sas_token(upload).removeprefix("?")))


def test_a_signature_says_what_where_and_until_when() -> None:
    uploads = Uploads(KEY, CountingEntropy())
    name, query = signed(uploads)
    granted = {
        (blob, permission, at): uploads.check_sas(blob, query, permission, at)
        for blob in (name, "d1/g")
        for permission in "rwd"
        for at in (NOON, NOON + 3599, NOON + 3600)
    }
    assert {case for case, is_good in granted.items() if is_good} == {
        (name, permission, at) for permission in "rw" for at in (NOON, NOON + 3599)
    }
    assert not Uploads(CountingEntropy().key()[::-1][4:] + "AAAA", CountingEntropy()).check_sas(name, query, "w", NOON)


@given(st.dictionaries(st.sampled_from(["se", "sp", "sig", "sv", "sr"]), st.text()))
def test_no_query_that_was_made_up_is_good(query: dict[str, str]) -> None:
    assert not Uploads(KEY, CountingEntropy()).check_sas("d1/f", query, "w", NOON)


def test_an_upload_whose_end_nobody_reports_frees_its_place_after_an_hour() -> None:
    uploads = Uploads(KEY, CountingEntropy())
    for number in range(10):
        uploads.begin("d1", {"blobName": str(number)}, NOON)
    uploads.begin("d2", {"blobName": "x"}, NOON)
    with pytest.raises(ServiceError) as refusal:
        uploads.begin("d1", {"blobName": "x"}, NOON + 3599)
    assert refusal.value.fault.value.number == 403006
    uploads.begin("d1", {"blobName": "x"}, NOON + 3600)


def test_uploads_are_stored_and_taken_up_again_and_end_once() -> None:
    touched: list[str] = []
    old, new = Uploads(KEY, CountingEntropy(), touched.append), Uploads(KEY, CountingEntropy())
    kept = old.begin("d1", {"blobName": "kept"}, NOON)
    ended = old.begin("d1", {"blobName": "ended"}, NOON)
    assert old.end("d1", ended.correlation_id, NOON) == ended
    stored = {key: json.loads(json.dumps(old.record(key))) for key in touched}
    assert stored[ended.correlation_id] is None
    new.restore(kept.correlation_id, stored[kept.correlation_id])
    for device_id, correlation_id in (("d2", kept.correlation_id), ("d1", ended.correlation_id), ("d1", None)):
        with pytest.raises(ServiceError):
            new.end(device_id, correlation_id, NOON)
    assert new.end("d1", kept.correlation_id, NOON) == kept


def test_a_deleted_device_leaves_no_upload_behind() -> None:
    world = World()
    world.register("d1")
    upload = world.hub.uploads.begin("d1", {"blobName": "f"}, NOON)
    world.hub.delete_identity(IdentityId("d1"), None, NOON)
    assert world.hub.uploads.record(upload.correlation_id) is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 9), st.one_of(st.none(), st.integers(0, 50))),
            st.tuples(st.just("take"), st.integers(0, 60), st.none()),
        ),
        max_size=300,
    )
)
def test_deadlines_are_a_dictionary_that_knows_what_is_due(steps: list[tuple[str, int, int | None]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    for act, number, at in steps:
        if act == "set":
            deadlines.set(number, at)
            model.pop(number, None)
            if at is not None:
                model[number] = at
        else:
            due = {key: model.pop(key) for key, deadline in list(model.items()) if deadline <= number}
            taken = deadlines.take_due(number)
            assert (set(taken), [due[key] for key in taken]) == (set(due), sorted(due.values()))
        assert (len(deadlines), deadlines.next()) == (len(model), min(model.values(), default=None))
        assert len(deadlines._heap) <= 2 * len(model) + 64
