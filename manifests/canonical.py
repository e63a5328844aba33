"""One spelling for each value: canonical JSON and content digests."""

import hashlib
import json
import re
from typing import Any

from manifests.document import END

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}" + END
_DIGEST = re.compile(DIGEST_PATTERN)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(content: bytes) -> str:
    """The digest of some bytes, spelled ``sha256:<64 hex digits>``."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
