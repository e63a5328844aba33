"""Declared pre- and post-processing as it is registered: read, held against the tensors, and kept small. Pure."""

from collections.abc import Iterable

from cloud_registry.errors import UsageError
from manifests.errors import ManifestError
from manifests.model import Signature
from manifests.processing import LABEL_FILE_BYTES_MAX, Processing

# Of the 32 KB that the desired section of a twin may have for all models together.
PROCESSING_BYTES_MAX = 8 * 1024


def read_processing(text: bytes, name: str) -> Processing:
    """The document of a file; raises UsageError."""
    try:
        processing = Processing.from_json(text)
    except ManifestError as err:
        raise UsageError(f"{name}: {err}", hint="Its steps are described in docs/agent/inference.md.") from err
    if processing.label_file is not None:
        raise UsageError(
            f"{name} names a labelFile, which the registry writes itself",
            hint='Put the labels into the document, as "labels". A long list becomes a file of its own.',
        )
    if any("\n" in label or "\r" in label for label in processing.labels):
        raise UsageError(f"{name} has a label of several lines", hint="A label is one line.")
    return processing


def check_tensors_named(processing: Processing, signatures: Iterable[tuple[str, Signature]]) -> None:
    """Raise UsageError for a tensor that one of the files (by its format) does not have: devices would refuse it."""
    for format_, signature in signatures:
        sides = (("input", processing.inputs, signature.inputs), ("output", processing.outputs, signature.outputs))
        for role, entries, specs in sides:
            names = [spec.name for spec in specs]
            for entry in entries:
                if entry.tensor is None and len(names) > 1:
                    raise UsageError(
                        f"the processing names no tensor for an {role}, and the {format_} file has {', '.join(names)}",
                        hint='Add "tensor" to it.',
                    )
                if entry.tensor is not None and entry.tensor not in names:
                    raise UsageError(
                        f"the processing is for the {role} {entry.tensor!r}, and the {format_} file has "
                        f"{', '.join(names)}",
                        hint='Leave "tensor" out where there is only one, or export both files with the same names.',
                    )


def label_file_of(processing: Processing) -> bytes | None:
    """The labels as a file of their own, where a twin would be too small for them; raises UsageError."""
    size_bytes = len(processing.to_json())
    if size_bytes <= PROCESSING_BYTES_MAX:
        return None
    without = len(Processing(inputs=processing.inputs, outputs=processing.outputs).to_json())
    content = "".join(f"{label}\n" for label in processing.labels).encode()
    if without > PROCESSING_BYTES_MAX or len(content) > LABEL_FILE_BYTES_MAX:
        raise UsageError(
            f"the processing is {size_bytes:,} bytes; a twin has room for {PROCESSING_BYTES_MAX:,} besides the labels, "
            f"and a device for {LABEL_FILE_BYTES_MAX:,} of those",
            hint="What cannot be said in a few steps belongs into a scoring script inside a module image.",
        )
    return content
