"""Command sessions of the agent as files: what a person types at a device, and every word that comes back."""

import os
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.cli import main
from device_agent.core import events as e
from device_agent.core.codes import Code, problem
from device_agent.core.history import transition_between
from device_agent.core.model_state import ModelState
from device_agent.ports import Stored
from manifests.canonical import digest_of
from manifests.release import Release
from manifests.twin import Phase
from tests.tiny_models import BETTER, GOOD, TinyModel, npz, readings

# What differs from run to run or from machine to machine, and what stands for it in a transcript.
_CHANGING = (
    (re.compile(r"sha256:[0-9a-f]{8}\b"), "sha256:<digest>"),
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:<digest>"),
    (re.compile(r"by onnxruntime [\d.]+"), "by onnxruntime <version>"),
    (re.compile(r"\([\d.]+ ms\)"), "(<latency> ms)"),
    (re.compile(r"[\d,]+ MiB free"), "<free> MiB free"),
    (re.compile(r"journal and outbox [\d,]+"), "journal and outbox <bytes>"),
    (re.compile(r'"(databaseBytes|freeBytes)": \d+'), r'"\1": "<bytes>"'),
)


def release(version: int, content: bytes) -> Release:
    return Release(
        generation=version, rollout=f"r-{version:04}", version=version, format="onnx", digest=digest_of(content),
        size_bytes=len(content), target=f"digits/{version}/model.onnx",
    )  # fmt: skip


def write_state(directory: Path) -> None:
    """A device that committed version 1 and refused version 2, which answers its golden set otherwise."""
    good, bad = TinyModel.of(GOOD), TinyModel.of(BETTER)
    first, second = release(1, good.content), release(2, bad.content)
    slots = FileSlots(directory)
    slots.part(first.digest).write_bytes(good.content)
    slots.seal(first.digest, first.size_bytes)
    seen = problem(
        Code.GOLDEN_MISMATCH, "Golden sample 1 of 8: output 'probabilities' is off by 0.019, tolerated are 0.001."
    )
    nothing = ModelState(name="digits")
    offered = ModelState(name="digits", phase=Phase.OFFERED, offer=first, generation_highest=1)
    committed = ModelState(name="digits", phase=Phase.COMMITTED, offer=first, current=first, serving=first.digest,
                           generation_highest=1)  # fmt: skip
    shadow = ModelState(name="digits", phase=Phase.SHADOW, offer=second, current=first, serving=first.digest,
                        generation_highest=2)  # fmt: skip
    failed = ModelState(name="digits", phase=Phase.FAILED, offer=second, current=first, serving=first.digest,
                        generation_highest=2, problem=seen)  # fmt: skip
    state = SqliteState.open(directory)
    state.begin_boot("b7f3c2")
    state.note_identity("dev-01", "slipway")
    steps = [
        (nothing, offered, e.Desired(first)), (offered, committed, e.Verified(1)),
        (committed, shadow, e.Loaded(2)), (shadow, failed, e.ShadowFailed(3, seen)),
    ]  # fmt: skip
    for minute, (before, after, event) in enumerate(steps):
        line = transition_between(before, after, event, datetime(2026, 3, 1, 12, minute, tzinfo=UTC))
        assert line is not None
        state.save_model("digits", after.to_json(), line.to_json())
    state.enqueue([Stored(1, "b7f3c2-1", b"{}", 1), Stored(2, "b7f3c2-2", b"{}", 2)], [])
    state.acknowledge([1])
    state.end_boot()
    state.close()


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[str, str]]:
    """Runs a session; gives the transcript as it is and as it was written down."""
    for name in [name for name in os.environ if name.startswith("SLIPWAY_")]:
        if name != "SLIPWAY_UPDATE_GOLDEN":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    write_state(tmp_path / "state")
    (tmp_path / "empty").mkdir()
    (tmp_path / "digits.onnx").write_bytes(TinyModel.of(GOOD).content)
    (tmp_path / "cut.onnx").write_bytes(TinyModel.of(GOOD).content[:100])
    np.save("reading.npy", np.array([0, 0, 1, 0], np.float32))
    np.save("five.npy", np.zeros(5, np.float32))
    (tmp_path / "golden.npz").write_bytes(npz(input__features=readings(2)))
    (tmp_path / "broken.toml").write_text("[log]\ncolour = 3\n")

    def run(session: Path) -> tuple[str, str]:
        runner = CliRunner()
        lines: list[str] = []
        for line in session.read_text().splitlines():
            if line.startswith("#") or (not line and (not lines or lines[-1].startswith("#"))):
                lines.append(line)
            elif line.startswith("$ "):
                if lines and not lines[-1].startswith("#"):
                    lines.append("")
                program, *arguments = shlex.split(line[2:])
                assert program == "slipway-agent"
                result = runner.invoke(main, arguments, prog_name="slipway-agent")
                lines += [line, *_settled(result.output).splitlines()]
                lines += [f"[exit {result.exit_code}]"] if result.exit_code else []
        transcript = "\n".join(lines) + "\n"
        if os.environ.get("SLIPWAY_UPDATE_GOLDEN"):
            session.write_text(transcript)
        return transcript, session.read_text()

    return run


def _settled(output: str) -> str:
    for pattern, stands_for in _CHANGING:
        output = pattern.sub(stands_for, output)
    return "\n".join(line.rstrip() for line in output.splitlines())
