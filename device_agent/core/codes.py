"""Why an update did not succeed: one code for programs and one sentence for people."""

import enum

from manifests.twin import TWIN_STRING_BYTES_MAX, UpdateProblem

# A twin refuses strings over 4 KB; an engine's message can be longer than anyone reads.
MESSAGE_CHARACTERS_MAX = min(600, TWIN_STRING_BYTES_MAX // 4)


class Code(enum.StrEnum):
    """Stable words of ``reported.models.*.error.code``."""

    EXPIRED = "EXPIRED"
    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    QUARANTINED = "QUARANTINED"
    MALFORMED_OFFER = "MALFORMED_OFFER"
    NO_SPACE = "NO_SPACE"
    TRUST_NO_ROOT = "TRUST_NO_ROOT"
    TRUST_UNREACHABLE = "TRUST_UNREACHABLE"
    TRUST_EXPIRED = "TRUST_EXPIRED"
    TRUST_ROLLBACK = "TRUST_ROLLBACK"
    TRUST_BAD_SIGNATURE = "TRUST_BAD_SIGNATURE"
    TRUST_BAD_METADATA = "TRUST_BAD_METADATA"
    TRUST_UNKNOWN_TARGET = "TRUST_UNKNOWN_TARGET"
    TRUST_TARGET_MISMATCH = "TRUST_TARGET_MISMATCH"
    DOWNLOAD_FAILED = "DOWNLOAD_FAILED"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    DELTA_FAILED = "DELTA_FAILED"
    LOAD_FAILED = "LOAD_FAILED"
    GOLDEN_MISMATCH = "GOLDEN_MISMATCH"
    SHADOW_CRASHED = "SHADOW_CRASHED"
    TRIAL_LOW_CONFIDENCE = "TRIAL_LOW_CONFIDENCE"
    TRIAL_DISAGREEMENT = "TRIAL_DISAGREEMENT"
    TRIAL_ERRORS = "TRIAL_ERRORS"
    TRIAL_NO_EVIDENCE = "TRIAL_NO_EVIDENCE"
    TRIAL_CRASHED = "TRIAL_CRASHED"
    INTERNAL_ERROR = "INTERNAL_ERROR"


def problem(code: str, message: str) -> UpdateProblem:
    """A problem as it is reported, its sentence cut to what a twin can hold."""
    if len(message) > MESSAGE_CHARACTERS_MAX:
        message = message[: MESSAGE_CHARACTERS_MAX - 1] + "…"
    return UpdateProblem(code=str(code), message=message)
