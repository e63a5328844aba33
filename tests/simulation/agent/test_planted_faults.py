"""Mistakes that an agent could make with its disk, each planted in the real one: the cuts must find every one."""

import asyncio
import logging
import os
from contextlib import contextmanager
from unittest import mock

import pytest

from device_agent.adapters import file_slots, http_downloader, sqlite_state
from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core import update
from device_agent.core.events import Restored
from device_agent.core.model_state import ModelState
from device_agent.runtime.update_driver import UpdateDriver
from manifests.twin import Phase, TrialEvidence
from simulators.kernel import sqlite_vfs
from tests.simulation.agent.crash_lives import Life, corrupt, first, life
from tests.simulation.agent.crash_runs import (
    BRICKED,
    LOST_READING,
    LOST_REPORT,
    REUSED,
    UNVERIFIED,
    CrashRun,
    record,
)

pytestmark = pytest.mark.skipif(
    sqlite_vfs.library() is None, reason="libsqlite3 is linked into _sqlite3 and cannot be watched"
)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@contextmanager
def artifacts_are_not_synced_before_the_rename():
    def sync_folders_only(path) -> None:
        if path.is_dir():
            REAL_SYNC(path)

    with (
        mock.patch.object(file_slots, "sync", sync_folders_only),
        mock.patch.object(http_downloader, "os", _NeverSyncs()),
    ):
        yield


class _NeverSyncs:
    def __getattr__(self, name):
        return (lambda descriptor: None) if name == "fsync" else getattr(os, name)


# Of the life; where the first fault is found the rest is not tried.
POINTS = 40
AFTER_S = 1.0
REAL_SYNC = file_slots.sync


def names_of_artifacts_are_not_synced():
    def sync_files_only(path) -> None:
        if path.is_file():
            REAL_SYNC(path)

    return mock.patch.object(file_slots, "sync", sync_files_only)


def names_of_folders_are_not_synced():
    return mock.patch.multiple(
        file_slots, make_folder=lambda path: path.mkdir(parents=True, exist_ok=True), sync=lambda path: None
    )


@contextmanager
def artifacts_are_believed_without_a_digest():
    """At all three places where it is looked at: after the download, when it is sealed, and before it is loaded."""
    with (
        mock.patch.object(http_downloader._Transfer, "digest_of_whole", lambda self: self.digest),
        mock.patch.multiple(
            FileSlots,
            _check=lambda self, path, digest, size_bytes: None,
            read=lambda self, digest: self._blob(digest).read_bytes(),
        ),
    ):
        yield


def a_commit_is_told_before_it_is_stored():
    journal = UpdateDriver._journal

    async def told_first(self: UpdateDriver, transition: bytes) -> None:
        self._say(self.state)
        await asyncio.sleep(AFTER_S)
        await journal(self, transition)

    return mock.patch.object(UpdateDriver, "_journal", told_first)


def the_store_does_not_wait_for_the_disk():
    class Careless(sqlite_state.sqlite3.Connection):
        def execute(self, sql, *args):
            return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), *args)

    connect = sqlite_state.sqlite3.connect
    return mock.patch.object(
        sqlite_state.sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Careless, **kwargs)
    )


def messages_are_deleted_before_the_hub_has_them():
    messages = SqliteState.messages

    def handed_out(self, sequences):
        handed = messages(self, sequences)
        self.acknowledge(sequences)
        return handed

    return mock.patch.object(SqliteState, "messages", handed_out)


def the_last_sequence_is_not_kept():
    return mock.patch.object(SqliteState, "_set_counter", return_value=None)


def the_sweep_forgets_what_is_committed():
    digests = ModelState.digests

    def fewer(self):
        return digests(self) - {self.current.digest if self.current else ""}

    return mock.patch.object(ModelState, "digests", fewer)


@contextmanager
def a_trial_that_was_interrupted_is_passed():
    def commit(state, event, context):
        return update._commit(update._served(state, event), mock.Mock(evidence=TrialEvidence(inferences=1)), context)

    with mock.patch.dict(update.TRANSITIONS, {(Phase.TRIAL, Restored): commit}):
        yield


# The fault, the life that is cut, and as what it may show.
PLANTED = [
    (artifacts_are_not_synced_before_the_rename, "first model", {BRICKED, LOST_REPORT}),
    (names_of_artifacts_are_not_synced, "first model", {BRICKED, LOST_REPORT}),
    (names_of_folders_are_not_synced, "first model", {BRICKED, LOST_REPORT}),
    (a_commit_is_told_before_it_is_stored, "first model", {BRICKED, LOST_REPORT}),
    (the_store_does_not_wait_for_the_disk, "first model", {BRICKED, LOST_READING, REUSED, LOST_REPORT}),
    (messages_are_deleted_before_the_hub_has_them, "first model", {LOST_READING}),
    (the_last_sequence_is_not_kept, "first model", {LOST_REPORT, REUSED}),
    (the_sweep_forgets_what_is_committed, "first model", {BRICKED, UNVERIFIED}),
    (a_trial_that_was_interrupted_is_passed, "bad on live input", {LOST_REPORT, UNVERIFIED}),
]


def found(recorded, place) -> set[str]:
    result = CrashRun(recorded, place, samples=2, points=POINTS, is_first_fault_enough=True).run()
    return set(result.faults)


@pytest.mark.parametrize(("plant", "name", "faults"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_fault_is_found(plant, name, faults, place):
    with plant():
        seen = found(record(life(name), place), place)
    assert seen
    assert seen <= faults


def test_a_digest_that_nobody_checks_is_found(place):
    # Planted after the life was recorded: in it the corrupt release would be committed without any cut.
    recorded = record(Life("corrupt", (first, corrupt)), place)
    with artifacts_are_believed_without_a_digest():
        seen = found(recorded, place)
    assert seen
    assert seen <= {UNVERIFIED, LOST_REPORT}
