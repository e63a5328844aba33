"""Brings an ONNX model's weights home: exporters leave them in files beside it, and a device is sent one file.

Done in the bounded process, since a stranger's file is parsed whole. Needs the `onnx` library.
"""

import mmap
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from cloud_registry.adapters.model_confinement import FILE_BYTES_MAX
from cloud_registry.adapters.model_probe import ask_worker
from cloud_registry.core.external_weights import weight_files
from cloud_registry.core.model_bytes import MalformedModelError
from cloud_registry.core.model_directory import check_member_path
from cloud_registry.errors import RefusedModelError

MERGE_DURATION_MAX_S = 300.0


def files_beside(model: Path, path: str, known: Collection[str]) -> tuple[str, ...]:
    """Paths of the files that hold weights of the model at `path`; raises RefusedModelError where one is missing."""
    if not model.stat().st_size:
        return ()
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            locations = weight_files(view)
        except MalformedModelError:
            # Whatever it is, the first look at it has better words.
            return ()
        finally:
            view.release()
    found = []
    for location in locations:
        check_member_path(location, path)
        beside = str(PurePosixPath(path).parent / location)
        if beside not in known:
            raise RefusedModelError(
                f"{path} keeps weights in {location!r}, which is not there",
                hint="Copy that file too, or save the model as one file.",
            )
        found.append(beside)
    return tuple(found)


def merged(path: str, beside: tuple[str, ...], place: Callable[[str], Path], workspace: Path) -> Path:
    """The model as one file, in a folder of its own; raises RefusedModelError where it cannot be."""
    size_bytes = sum(place(each).stat().st_size for each in (path, *beside))
    if size_bytes > FILE_BYTES_MAX:
        raise RefusedModelError(
            f"{path} and its weights have {size_bytes:,} bytes; one ONNX file has at most {FILE_BYTES_MAX:,}",
            hint="Quantise it, or split it into several models with a score.py.",
        )
    folder = Path(tempfile.mkdtemp(dir=workspace))
    parent = PurePosixPath(path).parent
    for each in (path, *beside):
        target = folder / PurePosixPath(each).relative_to(parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        # No link: the library takes a file of several names for an attack, and it may be one.
        shutil.copyfile(place(each), target)
    result = folder / "merged" / PurePosixPath(path).name
    result.parent.mkdir()
    model = folder / PurePosixPath(path).name
    ask_worker({"mergeTo": str(result), "model": str(model), "name": path}, size_bytes, MERGE_DURATION_MAX_S)
    return result
