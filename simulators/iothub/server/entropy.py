"""Keys and ids from the operating system's randomness."""

import base64
import secrets
import uuid


class SystemEntropy:
    """The `Entropy` of a hub that serves."""

    def key(self) -> str:
        return base64.b64encode(secrets.token_bytes(32)).decode()

    def identifier(self) -> str:
        return str(uuid.uuid4())
