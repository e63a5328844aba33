"""What the core is given from outside."""

import base64
from typing import Protocol


class Entropy(Protocol):
    """Where keys and ids come from: random in a server, a fixed stream in a test."""

    def key(self) -> str:
        """A new symmetric key: 32 bytes in base64."""
        ...

    def identifier(self) -> str:
        """A new id that no other shares, of letters, digits and hyphens."""
        ...


def chance_of(entropy: Entropy) -> float:
    """A number from 0 to below 1, as even as the keys are."""
    return int.from_bytes(base64.b64decode(entropy.key())[-4:]) / 2**32
