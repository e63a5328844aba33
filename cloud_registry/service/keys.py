"""API keys: made, listed, revoked, and recognised when somebody shows one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cloud_registry.core.access import (
    CREDENTIAL_LENGTH_MAX,
    KEY_ID_BYTES,
    KEY_NAME_LENGTH_MAX,
    KEY_SECRET_BYTES,
    ListedKey,
    MadeKey,
    check_grant,
    checked_roles,
    flaw_of,
    is_secret,
    key_text,
    principal_of,
    read_key,
    secret_digest,
)
from cloud_registry.core.catalog import check_text
from cloud_registry.errors import NotFoundError, TrustError, UsageError
from cloud_registry.ports import ApiKey, ApiKeyStore, Principal, Role, TokenReader

_HOW_TO_GET_ONE = "Ask who runs the server for a key (slipway key create), and set SLIPWAY_API_KEY to it."


@dataclass(frozen=True, slots=True)
class KeyService:
    """`hex_chance` and `text_chance` give so many random bytes, as hex digits and as URL-safe text."""

    store: ApiKeyStore
    now: Callable[[], datetime]
    hex_chance: Callable[[int], str]
    text_chance: Callable[[int], str]
    tokens: TokenReader | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether anybody could have a key or a token: until then there is nothing to tell people apart by."""
        return self.tokens is not None or self.store.has_any()

    def create(
        self,
        name: str,
        roles: Sequence[str],
        devices: Sequence[str] = (),
        valid_for: timedelta | None = None,
        granter: Principal | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which is nowhere kept and cannot be shown again.

        Raises:
            AccessDeniedError: the granter does not hold what the key would open. Without one nothing is asked.
        """
        if not name.strip():
            raise UsageError("a key needs a name", hint="Name who holds it, for example: ci or line-3.")
        granted, patterns = checked_roles(roles, devices)
        secret, now = self.text_chance(KEY_SECRET_BYTES), self.now()
        key = ApiKey(
            id=self.hex_chance(KEY_ID_BYTES),
            name=check_text(name, "the key's name", KEY_NAME_LENGTH_MAX),
            roles=granted,
            secret_digest=secret_digest(secret),
            created_at=now,
            devices=patterns,
            expires_at=_end(now, valid_for),
        )
        if granter is not None:
            check_grant(granter, key.roles, key.expires_at)
        self.store.add(key)
        return key, key_text(key.id, secret)

    def all(self) -> Sequence[ApiKey]:
        return self.store.all()

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key; one that is revoked already stays as it is. Raises NotFoundError."""
        self.store.revoke(key_id, self.now())
        found = self.store.find(key_id)
        if found is None:
            raise NotFoundError(f"there is no key {key_id!r}", hint="See which there are with: slipway key list")
        return found

    def as_verbs(self, granter: Principal | None = None) -> "KeyDesk":
        """Keys as whoever sits at this machine has them, or as somebody elsewhere does."""
        return KeyDesk(self, granter)

    def recognise(self, credential: str | None) -> Principal:
        """Who shows this key or token; raises TrustError, which never tells whether a key's id exists."""
        if not credential:
            raise TrustError("no key was shown", hint=_HOW_TO_GET_ONE)
        if len(credential) > CREDENTIAL_LENGTH_MAX:
            raise TrustError("what was shown is too long for a key or a token", hint=_HOW_TO_GET_ONE)
        parts = read_key(credential)
        if parts is None:
            if self.tokens is None:
                raise TrustError("what was shown is no API key of this server", hint=_HOW_TO_GET_ONE)
            return self.tokens.principal(credential)
        key = self.store.find(parts[0])
        # A digest is compared in any case, so that time does not tell which ids there are.
        if not is_secret(parts[1], key.secret_digest if key is not None else "") or key is None:
            raise TrustError("the API key is not one of this server's", hint=_HOW_TO_GET_ONE)
        flaw = flaw_of(key, self.now())
        if flaw is not None:
            raise TrustError(f"the API key {key.name!r} {flaw}", hint=_HOW_TO_GET_ONE)
        return principal_of(key)


@dataclass(frozen=True, slots=True)
class KeyDesk:
    """Satisfies KeyVerbs for one who asks: `granter` is somebody elsewhere, None whoever sits at this machine."""

    service: KeyService
    granter: Principal | None = None

    def create(
        self, name: str, roles: Sequence[Role], devices: Sequence[str] = (), valid_for: timedelta | None = None
    ) -> MadeKey:
        key, text = self.service.create(name, roles, devices, valid_for, self.granter)
        return MadeKey(ListedKey.of(key), text)

    def keys(self) -> Sequence[ListedKey]:
        return [ListedKey.of(key) for key in self.service.all()]

    def revoke(self, key_id: str) -> ListedKey:
        return ListedKey.of(self.service.revoke(key_id))


def _end(now: datetime, valid_for: timedelta | None) -> datetime | None:
    if valid_for is None:
        return None
    if valid_for <= timedelta(0):
        raise UsageError("a key that is good for no time opens nothing", hint="For example: --valid-for 90d")
    try:
        return now + valid_for
    except OverflowError as err:
        raise UsageError("the key would be good until after the last year", hint="Leave --valid-for out.") from err
