"""Puts models to the proof in a process of their own, so that a file that crashes an engine is refused, no more.

The files are copied first and the copies are what is looked at, run and handed on: a file that changes meanwhile, or
that needs its neighbours, cannot be registered as something that it is not.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from cloud_registry.adapters.given_files import opened
from cloud_registry.adapters.model_confinement import BARRIERS
from cloud_registry.core.model_files import (
    PICTURE_BYTES_MAX,
    PICTURE_SUFFIXES,
    PICTURES_MAX,
    first_look,
    memory_bound_bytes,
    sample_kind,
)
from cloud_registry.errors import RefusedModelError
from cloud_registry.ports import ProgressListener, Proof, ProofTerms, ProvenArtifact, ScratchFolders, Speed, SpeedTerms
from manifests.model import FORMAT_SUFFIXES, DataSchema, ModelFormat, Signature, Verdict

# For loading a model and its first runs, when it is measured.
LOADING_MAX_S = 120.0
COPY_CHUNK_BYTES = 1024 * 1024
LAST_WORDS_LENGTH_MAX = 300
# What the engine's process may know of ours: where libraries are, and no connection string.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS")


class SubprocessProver:
    """A ModelProver and a ModelBench. What it copies and writes is in folders of `scratch`."""

    def __init__(self, scratch: ScratchFolders) -> None:
        self._scratch = scratch

    def measure(self, format_: ModelFormat, path: Path, golden: Path | None, terms: SpeedTerms) -> Speed:
        with self._scratch.open("benchmark") as folder:
            copy = _copied(format_, path, folder, None)
            proof_terms = ProofTerms(
                golden=golden,
                duration_max_s=LOADING_MAX_S + terms.duration_s,
                memory_max_bytes=terms.memory_max_bytes,
            )
            request = _request(copy, proof_terms, None, golden) | {"measureS": terms.duration_s}
            report = _examine(copy, request, proof_terms.duration_max_s)
        return Speed(
            format=format_,
            engine=report["engine"],
            engine_version=report["engineVersion"],
            runs=report["runs"],
            load_ms=report["loadMs"],
            latency_median_ms=report["latencyMs"][0],
            latency_p90_ms=report["latencyMs"][1],
            latency_p99_ms=report["latencyMs"][2],
            per_second=report["perSecond"],
            memory_peak_bytes=report["memoryPeakBytes"],
        )

    def prove(
        self, files: Sequence[tuple[ModelFormat, Path]], terms: ProofTerms, on_progress: ProgressListener | None = None
    ) -> AbstractContextManager[Proof]:
        return _proof(self._scratch, files, terms, on_progress)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A private copy of a model file, and where it came from."""

    format: ModelFormat
    original: Path
    path: Path
    digest: str


@contextmanager
def _proof(
    scratch: ScratchFolders,
    files: Sequence[tuple[ModelFormat, Path]],
    terms: ProofTerms,
    on_progress: ProgressListener | None,
) -> Iterator[Proof]:
    with scratch.open("proof") as folder:
        copies = [_copied(format_, path, folder, on_progress) for format_, path in files]
        sample, golden = _sample_copied(terms.sample, folder), _arrays_copied(terms.golden, folder)
        is_run = copies[0].format != "python"
        recorded = folder / "recorded.npz" if is_run and sample and not golden else None
        proven: list[ProvenArtifact] = []
        first: dict[str, Any] = {}
        for number, copy in enumerate(copies):
            if on_progress is not None:
                on_progress(f"running {copy.original.name}", number, len(copies))
            request = _request(copy, terms, sample, golden)
            if proven:
                # The first file's answers are asked of all the others.
                request |= {"like": proven[0].signature.to_wire(), "likeName": copies[0].original.name}
                if recorded:
                    request |= {"golden": str(recorded), "against": copies[0].original.name}
            elif recorded:
                request |= {"recorded": str(recorded)}
            report = _examine(copy, request, terms.duration_max_s)
            proven.append(_proven(copy, report))
            first = first or report
        if terms.script is not None:
            _prove_script(terms, folder, on_progress)
        # With arrays comes NumPy, which most commands need not wait for.
        from cloud_registry.core.data_schema import completed

        yield Proof(
            artifacts=tuple(proven),
            golden=golden or recorded,
            samples=first["samples"],
            sample=(sample, sample_kind(sample)) if sample else None,
            schema=completed(terms.schema or DataSchema(), DataSchema.from_wire(first["schema"])),
            verdict=proven[0].verdict,
        )


def _prove_script(terms: ProofTerms, folder: Path, on_progress: ProgressListener | None) -> None:
    """Have the script beside a model parsed, which is all that registration does with Python."""
    assert terms.script is not None
    copy = _copied("python", terms.script, folder, on_progress)
    _examine(copy, _request(copy, replace(terms, schema=None), None, None), terms.duration_max_s)


def _copied(format_: ModelFormat, path: Path, folder: Path, on_progress: ProgressListener | None) -> _Copy:
    # A folder of its own: two formats may not see each other, and neither sees external weights beside the original.
    target = folder / format_ / ("score.py" if format_ == "python" else f"model{FORMAT_SUFFIXES[format_]}")
    target.parent.mkdir()
    digest, done_bytes = hashlib.sha256(), 0
    with opened(path) as source, target.open("wb") as copy:
        status = os.fstat(source.fileno())
        total_bytes, written_ns = status.st_size, status.st_mtime_ns
        flaw = first_look(format_, total_bytes, lambda offset, count: _slice(source, offset, count))
        if flaw is not None:
            raise RefusedModelError(f"{path.name} {flaw}", hint="Export or copy the file again, and compare its size.")
        _check_room(total_bytes, folder, path.name)
        source.seek(0)
        # A file that somebody goes on writing to has no end: one byte more than it had is enough to know.
        while done_bytes <= total_bytes and (chunk := source.read(COPY_CHUNK_BYTES)):
            digest.update(chunk)
            copy.write(chunk)
            done_bytes += len(chunk)
            if on_progress is not None:
                on_progress(f"reading {path.name}", done_bytes, total_bytes)
        if done_bytes != total_bytes or (path.stat().st_size, path.stat().st_mtime_ns) != (total_bytes, written_ns):
            raise RefusedModelError(
                f"{path.name} changed while it was read",
                hint="Wait until whatever writes it is done, then register it again.",
            )
    return _Copy(format_, path, target, "sha256:" + digest.hexdigest())


def _check_room(size_bytes: int, folder: Path, name: str) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        raise RefusedModelError(
            f"{name} has {size_bytes:,} bytes, and the disk of the registry's home has {free_bytes:,} free",
            hint="It is copied before it is proven. Free some space, or set --home to a larger disk.",
        )


def _sample_copied(path: Path | None, folder: Path) -> Path | None:
    """A private copy of a sample; of a folder of pictures an archive, the same bytes whoever packs it."""
    if path is None or not path.is_dir():
        return _arrays_copied(path, folder)
    pictures = sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise RefusedModelError(f"{path} holds no picture", hint=f"It takes {', '.join(PICTURE_SUFFIXES)} files.")
    if len(pictures) > PICTURES_MAX:
        raise RefusedModelError(
            f"{path} holds {len(pictures):,} pictures; at most {PICTURES_MAX:,} are taken",
            hint="A few dozen samples are enough: devices run all of them before they trust a model.",
        )
    target = folder / "given.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for picture in pictures:
            with opened(picture) as source:
                content = source.read(PICTURE_BYTES_MAX + 1)
            if len(content) > PICTURE_BYTES_MAX:
                raise RefusedModelError(f"{picture} has more than {PICTURE_BYTES_MAX:,} bytes")
            # Of no date of its own, so that the same pictures are the same sample.
            archive.writestr(zipfile.ZipInfo(picture.name), content)
    return target


def _arrays_copied(path: Path | None, folder: Path) -> Path | None:
    if path is None:
        return None
    target = folder / f"given{path.suffix.lower()[:16]}"
    with opened(path) as source, target.open("wb") as copy:
        size_bytes = os.fstat(source.fileno()).st_size
        _check_room(size_bytes, folder, path.name)
        done_bytes = 0
        while done_bytes <= size_bytes and (chunk := source.read(COPY_CHUNK_BYTES)):
            copy.write(chunk)
            done_bytes += len(chunk)
    if done_bytes != size_bytes:
        raise RefusedModelError(
            f"{path.name} changed while it was read",
            hint="Wait until whatever writes it is done, then register again.",
        )
    return target


def _slice(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _request(copy: _Copy, terms: ProofTerms, sample: Path | None, golden: Path | None) -> dict[str, Any]:
    given = terms.golden or terms.sample
    return {
        "parent": os.getpid(),
        "memoryMaxBytes": terms.memory_max_bytes or memory_bound_bytes(copy.path.stat().st_size, _available_bytes()),
        "barriers": BARRIERS,
        "isUnconfined": terms.is_unconfined,
        "format": copy.format,
        "model": str(copy.path),
        "name": copy.original.name,
        "sample": str(sample) if sample else None,
        "sampleKind": sample_kind(sample) if sample else None,
        "renamed": dict(terms.renamed),
        "schema": terms.schema.to_wire() if terms.schema else None,
        "processing": terms.processing.to_wire() if terms.processing else None,
        "golden": str(golden) if golden else None,
        "against": terms.golden.name if terms.golden else "",
        "recorded": None,
        "like": None,
        "likeName": "",
        "tolerance": terms.tolerance_absolute,
        "durationMaxS": terms.duration_max_s,
        "arraysName": given.name if given else "",
    }


def _proven(copy: _Copy, report: dict[str, Any]) -> ProvenArtifact:
    return ProvenArtifact(
        format=copy.format,
        path=copy.path,
        size_bytes=copy.path.stat().st_size,
        digest=copy.digest,
        signature=Signature.from_wire(report["signature"]),
        latency_median_ms=report["latencyMedianMs"],
        verdict=_verdict(report),
    )


def ask_worker(request: dict[str, Any], size_bytes: int, duration_max_s: float) -> dict[str, Any]:
    """Have something else done with a stranger's file in a bounded process; its report. Refusals are raised."""
    bounds = {
        "parent": os.getpid(),
        "memoryMaxBytes": memory_bound_bytes(size_bytes, _available_bytes()),
        "barriers": BARRIERS,
        # What reads a file and runs nothing of it has no use for a network, and no harm to do with one.
        "isUnconfined": True,
        "durationMaxS": duration_max_s,
    }
    path = Path(request["model"])
    copy = _Copy("onnx", Path(request["name"]), path, "")
    return _examine(copy, bounds | request, duration_max_s)


def _verdict(report: dict[str, Any]) -> Verdict:
    return Verdict(
        engine=report["engine"],
        engine_version=report["engineVersion"],
        opset=report["opset"],
        operators=report["operators"],
        latency_median_ms=report["latencyMedianMs"],
        memory_peak_bytes=report["memoryPeakBytes"],
        limits=tuple(report["limits"]),
        samples=report["samples"],
    )


def _available_bytes() -> int | None:
    """Memory that is free or could be freed, or None where the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _examine(copy: _Copy, request: dict[str, Any], duration_max_s: float) -> dict[str, Any]:
    """Run the worker on one file; its report. What it refuses is raised here."""
    report_path = copy.path.with_suffix(".report.json")
    exit_status, last_words = _run_worker(request, report_path, duration_max_s)
    if not report_path.exists():
        raise _fallen(copy.original, exit_status, last_words, request["memoryMaxBytes"])
    report: dict[str, Any] = json.loads(report_path.read_bytes())
    if "refused" in report:
        raise RefusedModelError(report["refused"], hint=report["hint"])
    return report


def _run_worker(request: dict[str, Any], report: Path, duration_max_s: float) -> tuple[int, str]:
    """Exit status and the end of what it wrote; raises RefusedModelError where it takes too long."""
    noise = report.with_suffix(".log")
    command = [sys.executable, "-P", "-m", "cloud_registry.adapters.model_probe_worker", str(report)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # Some engines keep notes about their machine in the home folder, or where temporary files go.
    environment |= dict.fromkeys(("HOME", "TMPDIR"), str(report.parent))
    with noise.open("wb") as output:
        # Its own session: whatever the engine starts ends with it.
        process = subprocess.Popen(  # noqa: S603  (our interpreter, our module)
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=report.parent,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(request).encode(), timeout=duration_max_s)
        except subprocess.TimeoutExpired as err:
            raise RefusedModelError(
                f"{request['name']} did not load and run its samples within {duration_max_s:g} s",
                hint="Give fewer samples, or more time with --time-limit.",
            ) from err
        finally:
            _end(process)
    return process.returncode, noise.read_bytes().decode(errors="replace").strip()[-LAST_WORDS_LENGTH_MAX:]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _fallen(original: Path, exit_status: int, last_words: str, memory_max_bytes: int) -> RefusedModelError:
    if "bad_alloc" in last_words or "MemoryError" in last_words:
        return RefusedModelError(
            f"{original.name} needs more than the {memory_max_bytes:,} bytes of memory that it may take",
            hint="Give it more with --memory-limit, or register it on a larger machine.",
        )
    if exit_status == -signal.SIGKILL:
        return RefusedModelError(
            f"{original.name} was killed while it was loaded or run, most likely for want of memory",
            hint="Free some memory, or register it on a larger machine.",
        )
    if exit_status < 0:
        return RefusedModelError(
            f"{original.name} crashed the inference engine ({signal.Signals(-exit_status).name}) when loaded or run",
            hint="It would crash a device as well. Export it again, or with another version of the converter.",
        )
    return RefusedModelError(
        f"{original.name} could not be examined: the examining process ended with code {exit_status}: "
        f"{last_words or 'it said nothing'}",
        hint="Check that the inference engines are installed: pip install 'slipway[cloud]'.",
    )
