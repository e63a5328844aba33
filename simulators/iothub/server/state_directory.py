"""The files of a hub: its lock, its policy keys, and the note by which others find it."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from simulators.iothub.core.access import DEFAULT_POLICIES, PROVISIONING_POLICIES, Policy, Right, new_policies
from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import HubStartError
from simulators.iothub.server.certificates import write_private

NOTE_NAME = "hub.json"
ALL_POLICIES = {**DEFAULT_POLICIES, **PROVISIONING_POLICIES}


class StateDirectory:
    """One directory, for one running hub at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: IO[str] | None = None

    @property
    def note_path(self) -> Path:
        return self.directory / NOTE_NAME

    def acquire(self) -> None:
        """Make the directory and lock it; raises HubStartError where that cannot be."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = (self.directory / "lock").open("a")
        except OSError as err:
            raise HubStartError(
                f"cannot use {self.directory} for the hub's state: {err.strerror}",
                hint="Choose a directory of your own with --state.",
            ) from err
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            lock.close()
            raise HubStartError(
                f"a hub is running with the state in {self.directory} already",
                hint="Stop it with slipway-sim stop, or give this one another directory with --state.",
            ) from err
        self._lock = lock
        # A hub that was killed left its note; nobody should take it for ours.
        self.note_path.unlink(missing_ok=True)

    def release(self) -> None:
        if self._lock:
            self.note_path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def policies(self, entropy: Entropy) -> tuple[Policy, ...]:
        """The hub's policies: their keys are made once, so that connection strings outlive a restart."""
        path = self.directory / "policies.json"
        known: dict[str, Right] = {}
        policies: tuple[Policy, ...] = ()
        if path.exists():
            stored = json.loads(path.read_text())
            known = {name: rights for name, rights in ALL_POLICIES.items() if name in stored}
            policies = tuple(Policy(name, rights, tuple(stored[name])) for name, rights in known.items())
        # A directory of an older release lacks the policies that were added since.
        missing = {name: rights for name, rights in ALL_POLICIES.items() if name not in known}
        if not missing:
            return policies
        policies += new_policies(entropy, missing)
        write_private(path, json.dumps({policy.name: policy.keys for policy in policies}, indent=2).encode())
        return policies

    def id_scope(self, entropy: Entropy) -> str:
        """The id scope of the hub's provisioning service, made once."""
        path = self.directory / "id-scope"
        if path.exists():
            return path.read_text().strip()
        id_scope = f"0ne{entropy.identifier().replace('-', '')[:8].upper()}"
        write_private(path, id_scope.encode())
        return id_scope

    def write_note(self, note: dict[str, Any]) -> None:
        """Say where the hub is met; it holds a key, so it is private."""
        write_private(self.note_path, json.dumps({"pid": os.getpid(), **note}, indent=2).encode())
