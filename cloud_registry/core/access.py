"""Who may do what on a server: roles, and how an API key is spelled. Pure.

Handles: which roles include which, reading and checking a key's text, which devices a device's key speaks for.
Leaves to the caller: where keys are kept, chance, the clock, and what a fleet is offered (offers.py).
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from cloud_registry.errors import AccessDeniedError, UsageError
from cloud_registry.ports import ApiKey, Principal, Role

KEY_PREFIX = "slipway"
KEY_ID_BYTES = 6
KEY_SECRET_BYTES = 32
KEY_NAME_LENGTH_MAX = 128
DEVICE_PATTERNS_MAX = 1000
# No key of ours and no token is longer; what is longer is not looked at.
CREDENTIAL_LENGTH_MAX = 16 * 1024

_KEY = re.compile(rf"{KEY_PREFIX}_([0-9a-f]{{{2 * KEY_ID_BYTES}}})_([A-Za-z0-9_-]{{20,200}})")
_DEVICE_PATTERN = re.compile(r"[A-Za-z0-9\-.%_*?!(),:=@$']{1,128}")


# Whoever writes may read. A device reads no catalog.
_INCLUDED = {
    Role.READER: frozenset({Role.READER}),
    Role.PUBLISHER: frozenset({Role.PUBLISHER, Role.READER}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.READER}),
    Role.DEVICE: frozenset({Role.DEVICE}),
}


def may(principal: Principal, role: Role) -> bool:
    """Whether one of its roles is this one, or includes it."""
    return any(role in _INCLUDED[own] for own in principal.roles)


def check_grant(granter: Principal, roles: frozenset[Role], expires_at: datetime | None) -> None:
    """Nobody hands out what he does not hold himself. A device's right is a part of a reader's.

    Raises:
        AccessDeniedError: a role that he does not hold, or a key that is good for longer than his own.
    """
    beyond = sorted(role for role in roles if not may(granter, Role.READER if role is Role.DEVICE else role))
    if beyond:
        raise AccessDeniedError(
            f"{granter.name!r} does not hold the role {beyond[0]}, and nobody hands out what he does not hold",
            hint=f"Ask somebody with the roles operator and {beyond[0]}, or make it at the server's machine.",
        )
    own_end = granter.expires_at
    if own_end is not None and (expires_at is None or expires_at > own_end):
        raise AccessDeniedError(
            f"the key of {granter.name!r} ends at {own_end:%Y-%m-%d %H:%M} UTC, and one that it makes ends no later",
            hint="Give a shorter --valid-for, or use a key that is good for longer.",
        )


def is_own_device(principal: Principal, device_id: str) -> bool:
    return any(fnmatchcase(device_id, pattern) for pattern in principal.devices)


def principal_of(key: ApiKey) -> Principal:
    return Principal(f"key:{key.id}", key.name, key.roles, key.devices, key.expires_at)


def flaw_of(key: ApiKey, now: datetime) -> str | None:
    """Why a key is no longer good, as a clause, or None."""
    if key.revoked_at is not None:
        return "was revoked"
    if key.expires_at is not None and now >= key.expires_at:
        return f"expired at {key.expires_at:%Y-%m-%d %H:%M} UTC"
    return None


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as it is told: without the digest of its secret."""

    id: str
    name: str
    roles: tuple[Role, ...]
    devices: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    @classmethod
    def of(cls, key: ApiKey) -> "ListedKey":
        roles = tuple(sorted(key.roles))
        return cls(key.id, key.name, roles, key.devices, key.created_at, key.expires_at, key.revoked_at)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "roles": list(self.roles),
            "devices": list(self.devices),
            "createdAt": self.created_at.isoformat(timespec="seconds"),
            "expiresAt": self.expires_at.isoformat(timespec="seconds") if self.expires_at else None,
            "revokedAt": self.revoked_at.isoformat(timespec="seconds") if self.revoked_at else None,
        }


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A new key. `text` opens the server; it is shown this once."""

    key: ListedKey
    text: str

    def as_json(self) -> dict[str, Any]:
        return {**self.key.as_json(), "key": self.text}


def key_text(key_id: str, secret: str) -> str:
    """What its holder is given, once."""
    return f"{KEY_PREFIX}_{key_id}_{secret}"


def read_key(text: str) -> tuple[str, str] | None:
    """The id and the secret of a key's text; None where it is none of ours."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


def secret_digest(secret: str) -> str:
    # The secret is 256 bits of chance, so no slow hash is needed: nobody tries them all.
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret(secret: str, digest: str) -> bool:
    return hmac.compare_digest(secret_digest(secret), digest)


def checked_roles(names: Iterable[str], devices: Iterable[str]) -> tuple[frozenset[Role], tuple[str, ...]]:
    """The roles and device patterns of a new key.

    Raises:
        UsageError: no role, a device's role without devices or with other roles, a pattern that fits no device.
    """
    roles = frozenset(Role(name) for name in names)
    patterns = tuple(dict.fromkeys(devices))
    if not roles:
        raise UsageError("a key without a role opens nothing", hint="For example: --role publisher")
    if Role.DEVICE in roles and len(roles) > 1:
        raise UsageError(
            "a device's key has no other role", hint="Whoever takes it from a device could do as much. Make two keys."
        )
    if (Role.DEVICE in roles) != bool(patterns):
        raise UsageError(
            "--role device and --device go together",
            hint="For example: --role device --device 'line-3-*' for the devices of a fleet.",
        )
    if len(patterns) > DEVICE_PATTERNS_MAX:
        raise UsageError(f"a key speaks for at most {DEVICE_PATTERNS_MAX} devices and patterns")
    for pattern in patterns:
        if not _DEVICE_PATTERN.fullmatch(pattern):
            raise UsageError(f"{pattern!r} fits no device id", hint="Write an id, with * for anything in it.")
    return roles, patterns
