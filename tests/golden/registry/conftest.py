"""Command sessions as files: what a person types, and every word that comes back."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_registry.cli import main
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, linear_tflite, save_arrays

# What differs from run to run, and what stands for it in a transcript.
_CHANGING = (
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:<digest>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "<time>"),
    (re.compile(r"[\d.e-]+ ms a sample"), "<latency> ms a sample"),
    (re.compile(r"[\d.]+ ([kMG]B|bytes) at most"), "<memory> at most"),
    (re.compile(r"(onnxruntime|ai-edge-litert|tflite-runtime) \d[\d.]*"), r"\1 <version>"),
    (re.compile(r"^(machine +|  limits +)\S.*$", re.MULTILINE), r"\1<of this machine>"),
)


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Runs a session; gives the transcript as it is and as it was written down."""
    for name in (
        "IOTHUB_CONNECTION_STRING",
        "SLIPWAY_TELEMETRY_URL",
        "EVENTHUB_CONNECTION_STRING",
        "SLIPWAY_DATABASE",
        "SLIPWAY_ARTIFACTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    linear_onnx(work / "digits.onnx", IDENTITY)
    linear_tflite(work / "digits.tflite", IDENTITY)
    linear_tflite(work / "double.tflite", 2 * IDENTITY)
    (work / "cut.onnx").write_bytes((work / "digits.onnx").read_bytes()[:100])
    save_arrays(work / "sample.npz", input_x=ROWS)

    def run(session: Path, database_url: str | None = None) -> tuple[str, str]:
        if database_url is not None:
            monkeypatch.setenv("SLIPWAY_DATABASE", database_url)
        runner = CliRunner()
        lines = []
        for line in session.read_text().splitlines():
            if line.startswith("#") or (not line and (not lines or lines[-1].startswith("#"))):
                lines.append(line)
            elif line.startswith("$ "):
                if lines and not lines[-1].startswith("#"):
                    lines.append("")
                program, *arguments = shlex.split(line[2:])
                assert program == "slipway"
                result = runner.invoke(main, arguments)
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
