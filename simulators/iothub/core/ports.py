"""What the core is given from outside."""

from typing import Protocol


class Entropy(Protocol):
    """Where keys and ids come from: random in a server, a fixed stream in a test."""

    def key(self) -> str:
        """A new symmetric key: 32 bytes in base64."""
        ...

    def identifier(self) -> str:
        """A new id that no other shares, of letters, digits and hyphens."""
        ...
