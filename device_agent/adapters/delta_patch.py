"""Turns the model that is on the disk into the offered one with the help of a delta."""

from pathlib import Path

from device_agent.errors import StepError

# What one application may need over what the process needs anyway, whatever the size of the model.
MEMORY_BYTES_MAX = 64 * 1024 * 1024


def apply_delta(
    delta: Path,
    base: Path,  # noqa: ARG001
    output: Path,  # noqa: ARG001
    *,
    result_digest: str | None = None,  # noqa: ARG001
    result_size_bytes: int | None = None,  # noqa: ARG001
    memory_bytes_max: int = MEMORY_BYTES_MAX,  # noqa: ARG001
) -> None:
    """Write to `output` what `delta` makes of `base`; an `output` that is there already is written over.

    The base's digest is checked before anything is written and the result's digest before this returns, both against
    the delta. The caller gives the digest and size that the offer says, and a delta that says otherwise is refused
    before it costs anything. Neither file is synced: sealing an artifact is the caller's work.
    Blocks its thread for about a second per 30 MB, so it belongs in a worker thread.

    Raises:
        StepError: DELTA_FAILED where the delta is malformed, is meant for another base, needs more memory than
            `memory_bytes_max` or gives another result; NO_SPACE where the disk is full. `output` is then gone.
    """
    raise StepError("DELTA_FAILED", f"This agent cannot apply {delta.name} yet; the whole artifact is needed.")
