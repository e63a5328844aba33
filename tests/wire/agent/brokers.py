"""Mosquitto for a test: started, stopped, cut off and started again on one port."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 15.0


def until(reached: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := reached()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def binary(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        message = f"{name} is not installed (Debian: mosquitto, mosquitto-clients)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


class Mosquitto:
    """A broker that keeps its sessions over a restart, as one on a device is set up to do."""

    def __init__(self, directory: Path, *lines: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._log = directory / "mosquitto.log"
        self._configuration = directory / "mosquitto.conf"
        text = [
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {directory}/",
            "autosave_interval 1",
            *(lines or ("allow_anonymous true",)),
            # Started by root it would give its rights away, and could not write here.
            f"user {os.environ.get('USER', 'root')}" if os.geteuid() == 0 else "",
        ]
        self._configuration.write_text("\n".join(text) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary("mosquitto"), "-c", str(self._configuration), "-v"], stderr=log, stdout=log
            )
        until(self._answers, f"mosquitto does not start:\n{self._log.read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE_S)
            self._process = None

    def publish(self, topic: str, payload: bytes | str, *options: str) -> None:
        body = payload.encode() if isinstance(payload, str) else payload
        subprocess.run(
            [binary("mosquitto_pub"), "-p", str(self.port), "-q", "1", "-t", topic, "-s", *options],
            input=body, check=True, timeout=DEADLINE_S,
        )  # fmt: skip

    def log(self) -> str:
        return self._log.read_text()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
