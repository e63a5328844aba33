"""What the first look at a model file tells, before any engine touches it. Pure: the bytes are handed in.

Handles: which format a file claims to be, whether an ONNX file is whole as far as its outermost fields tell.
Leaves to the engine: whether the network inside makes sense.
"""

from collections.abc import Callable
from pathlib import PurePath

from cloud_registry.errors import UsageError
from cloud_registry.ports import SampleKind
from manifests.model import FORMAT_SUFFIXES, ModelFormat

HEAD_BYTES = 16

# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3, message ModelProto: field number -> wire type.
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_ONNX_GRAPH = 7
_TFLITE_IDENTIFIER = b"TFL3"

SAMPLE_KINDS: dict[str, SampleKind] = {
    ".npz": "npz",
    ".csv": "csv",
    ".json": "json",
    ".png": "image",
    ".jpg": "image",
    ".jpeg": "image",
    ".bmp": "image",
    # Of pictures; a folder of them is packed into one.
    ".zip": "image",
}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
PICTURES_MAX = 1000
PICTURE_BYTES_MAX = 64 * 1024 * 1024

# What an engine takes for a model of ordinary size, and how often a large one is in memory while it is loaded.
MEMORY_BYTES_MIN = 4 * 1024**3
MEMORY_PER_MODEL = 6
AVAILABLE_SHARE = 0.8

_KNOWN_HEADS = {
    b"PK\x03\x04": "a ZIP archive (perhaps an .npz, a Keras or a PyTorch file)",
    b"\x89HDF": "an HDF5 file (perhaps a Keras model)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x93NUMPY": "a NumPy array",
    b"version https:": "a Git LFS pointer, not the file it points to",
    b"<": "a web page or XML",
}


def format_of(path: PurePath) -> ModelFormat | None:
    """The format by the file's suffix, or None."""
    suffix = path.suffix.lower()
    return next((format_ for format_, known in FORMAT_SUFFIXES.items() if known == suffix), None)


def sample_kind(path: PurePath) -> SampleKind:
    """The form of a sample by the file's suffix; raises UsageError."""
    kind = SAMPLE_KINDS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(
            f"{path.name} is no sample of a known form", hint=f"Known are {', '.join(SAMPLE_KINDS)} (docs/registry)."
        )
    return kind


def memory_bound_bytes(model_bytes: int, available_bytes: int | None) -> int:
    """How much memory a model may take to be proven: room for its size, and never the whole machine."""
    bound = max(MEMORY_BYTES_MIN, MEMORY_PER_MODEL * model_bytes)
    return bound if available_bytes is None else min(bound, int(available_bytes * AVAILABLE_SHARE))


def first_look(format_: ModelFormat, size_bytes: int, read: Callable[[int, int], bytes]) -> str | None:
    """What is wrong with the file as a clause (``is empty``), or None.

    Args:
        read: gives at most `count` bytes from `offset`: ``read(offset, count)``.
    """
    if size_bytes == 0:
        return "is empty"
    if format_ == "python":
        return None
    head = read(0, HEAD_BYTES)
    known = next((words for magic, words in _KNOWN_HEADS.items() if head.startswith(magic)), None)
    if known is not None:
        return f"is {known}, not {_article(format_)} model"
    if format_ == "tflite":
        return None if head[4:8] == _TFLITE_IDENTIFIER else "does not carry the mark of a TFLite model (TFL3)"
    return _onnx_flaw(size_bytes, read)


def _article(format_: ModelFormat) -> str:
    return {"onnx": "an ONNX", "tflite": "a TFLite", "python": "a Python"}[format_]


def _onnx_flaw(size_bytes: int, read: Callable[[int, int], bytes]) -> str | None:
    offset, has_graph = 0, False
    while offset < size_bytes:
        tag, offset = _varint(read, offset)
        field, wire_type = (tag or 0) >> 3, (tag or 0) & 7
        # Later editions of the format may add fields; ahead of the graph an unknown one is another kind of file.
        is_known = _ONNX_FIELDS.get(field) == wire_type or (has_graph and field not in _ONNX_FIELDS)
        if tag is None or field == 0 or not is_known or wire_type not in (0, 2):
            return "is not an ONNX model" if not has_graph else "is damaged after its graph"
        value, offset = _varint(read, offset)
        if value is None:
            return f"is cut short: it ends inside a field, at byte {size_bytes:,}"
        if wire_type == 2:
            offset += value
            if offset > size_bytes:
                return f"is cut short: it should have {offset:,} bytes or more and has {size_bytes:,}"
            has_graph = has_graph or field == _ONNX_GRAPH
    return None if has_graph else "holds no graph, so it is not an ONNX model or is cut short"


def _varint(read: Callable[[int, int], bytes], offset: int) -> tuple[int | None, int]:
    """The number at `offset` and the offset after it; None where it does not end."""
    value = 0
    for index, byte in enumerate(read(offset, 10)):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, offset + index + 1
    return None, offset
