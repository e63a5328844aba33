"""The hub's languages on the wire, sans IO: bytes to values and back. Knows nothing of what the hub does with them."""
