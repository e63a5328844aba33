"""What each file of a model's directory is for, and which names and sizes are not taken. Pure.

Known at the top: ``score.py``, ``requirements.txt`` or ``conda.yaml``, ``sample.*``, ``golden.npz``, ``labels.txt``,
``processing.json``, ``schema.json``. One ``.onnx`` and one ``.tflite`` file, wherever they are, are the model. Where
there is none, or several of a kind, and a script, it is a Python model. All else goes along.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cloud_registry.core.dependencies import CONDA_NAMES, REQUIREMENT_NAMES
from cloud_registry.core.model_files import SAMPLE_KINDS, format_of
from cloud_registry.core.scoring_script import SCRIPT_NAME
from cloud_registry.errors import RefusedModelError
from manifests.model import ModelFormat

FILES_MAX = 10_000
DEPTH_MAX = 32
PART_BYTES_MAX = 255
PATH_LENGTH_MAX = 1024
# What tools leave behind and no model needs.
_LITTER = {"__pycache__", ".git", ".ipynb_checkpoints", ".DS_Store", "Thumbs.db", "__MACOSX", ".gitattributes"}


def check_member_path(path: str, where: str) -> None:
    """Raise RefusedModelError for a path that could lead elsewhere, or that other systems could not keep.

    Args:
        path: with slashes, relative to the directory or archive `where`.
    """
    shown = path.encode("utf-8", "backslashreplace").decode()[:100]
    if not path.isprintable() or not _is_unicode(path):
        raise RefusedModelError(f"{where} holds a file whose name cannot be shown: {shown!r}", hint="Rename it.")
    parts = path.split("/")
    if "\\" in path or path.startswith("/") or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise RefusedModelError(
            f"{where} holds {shown!r}, a name that could lead outside it", hint="Pack or rename it again."
        )
    if len(path) > PATH_LENGTH_MAX or len(parts) > DEPTH_MAX or any(
        len(part.encode()) > PART_BYTES_MAX for part in parts
    ):  # fmt: skip
        raise RefusedModelError(
            f"{where} holds a file with a name of {len(path):,} characters in {len(parts)} levels; at most "
            f"{PATH_LENGTH_MAX:,} in {DEPTH_MAX} are kept, {PART_BYTES_MAX} bytes each"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_members(paths: Sequence[str], where: str) -> None:
    """Raise RefusedModelError for too many files, and for names that are one name on another system."""
    if len(paths) > FILES_MAX:
        raise RefusedModelError(f"{where} holds {len(paths):,} files; at most {FILES_MAX:,} are taken")
    seen: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if key in seen:
            raise RefusedModelError(
                f"{where} holds {seen[key]!r} and {path!r}, which are one name on some systems", hint="Rename one."
            )
        seen[key] = path


def is_litter(path: str) -> bool:
    return path.endswith(".pyc") or any(part in _LITTER for part in path.split("/"))


@dataclass(frozen=True, slots=True)
class DirectoryRoles:
    """Paths by what they are for. `artifacts` is empty for a Python model; `source` is what an image carries."""

    artifacts: tuple[tuple[ModelFormat, str], ...]
    script: str | None = None
    dependencies: str | None = None
    sample: str | None = None
    golden: str | None = None
    labels: str | None = None
    processing: str | None = None
    schema: str | None = None
    source: tuple[str, ...] = ()


def roles_of(paths: Sequence[str], where: str, chosen: Mapping[str, str] | None = None) -> DirectoryRoles:
    """What each file is for; raises RefusedModelError where no model is there, or it is not clear which.

    Args:
        chosen: roles that an imported document settles: ``sample``, ``dependencies``, or a format's ``onnx``.
    """
    chosen = chosen or {}
    top = {path for path in paths if "/" not in path}
    script = SCRIPT_NAME if SCRIPT_NAME in top else None
    artifacts = _artifacts(paths, where, script, chosen)
    samples = [path for path in sorted(top) if _is_sample(path)]
    if len(samples) > 1:
        raise RefusedModelError(f"{where} holds {samples[0]} and {samples[1]}", hint="One of them is the sample.")
    if not artifacts and script is None:
        raise RefusedModelError(
            f"{where} holds no model: no .onnx, no .tflite, and no {SCRIPT_NAME}",
            hint=f"A model that Python loads needs a {SCRIPT_NAME} with init() and run(), and a requirements.txt.",
        )
    dependencies = chosen.get("dependencies") or next(
        (name for name in (*REQUIREMENT_NAMES, *CONDA_NAMES) if name in top), None
    )
    if not artifacts and dependencies is None:
        raise RefusedModelError(
            f"{where} holds no requirements.txt and no conda.yaml",
            hint="An image is built with what they name. An empty requirements.txt says that nothing is needed.",
        )

    def at_top(name: str) -> str | None:
        return name if name in top else None

    sample = chosen.get("sample") or (samples[0] if samples else None)
    golden = at_top("golden.npz")
    apart = {path for _, path in artifacts} | {sample, golden}
    return DirectoryRoles(
        artifacts=artifacts,
        script=script,
        dependencies=dependencies,
        sample=sample,
        golden=golden,
        labels=at_top("labels.txt"),
        processing=at_top("processing.json"),
        schema=at_top("schema.json"),
        source=tuple(path for path in sorted(paths) if path not in apart),
    )


def _artifacts(
    paths: Sequence[str], where: str, script: str | None, chosen: Mapping[str, str]
) -> tuple[tuple[ModelFormat, str], ...]:
    found: dict[ModelFormat, list[str]] = {}
    for path in sorted(paths):
        format_ = format_of(PurePosixPath(path))
        if format_ is not None and chosen.get(format_, path) == path:
            found.setdefault(format_, []).append(path)
    several = next((same for same in found.values() if len(same) > 1), None)
    if several is not None and script is not None:
        # An ensemble: the script says how they play together.
        return ()
    if several is not None:
        raise RefusedModelError(
            f"{where} holds {several[0]} and {several[1]}",
            hint=f"A version has one file of each format. Several need a {SCRIPT_NAME}, or versions of their own.",
        )
    return tuple((format_, same[0]) for format_, same in sorted(found.items()))


def _is_sample(path: str) -> bool:
    file = PurePosixPath(path)
    return file.stem == "sample" and file.suffix.lower() in SAMPLE_KINDS


def common_folder(paths: Sequence[str]) -> str:
    """The folder that holds everything, where archives and downloads wrap a model in one; else nothing."""
    firsts = {path.partition("/")[0] for path in paths}
    if len(firsts) != 1 or not all("/" in path for path in paths):
        return ""
    return firsts.pop() + "/"
