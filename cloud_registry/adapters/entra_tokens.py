"""Bearer tokens of Microsoft Entra, or of any issuer of JSON Web Tokens that publishes its keys (RFC 7519, 7517).

What is checked: signature by a published key, issuer, audience, times. What is read: the application roles in the claim
``roles``, whose last part is a role of ours (``reader``, ``Slipway.Publisher``).
https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import requests

from cloud_registry.errors import TrustError
from cloud_registry.ports import Principal, Role

# Asymmetric only: a published key must never pass for a shared secret.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384")
LEEWAY_S = 60
FETCH_TIMEOUT_S = 10.0
KEYS_LIFE_S = 24 * 3600.0
# Keys are fetched anew for a key id that is not known, but not more often: anybody can invent key ids.
KEYS_FETCH_INTERVAL_S = 30.0
KEYS_LENGTH_MAX = 1024 * 1024
# A person's token carries no device role: what a device is, a device's key says.
_ROLES = {role.value: role for role in Role if role is not Role.DEVICE}


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """Whose tokens are accepted. `keys_url` gives the issuer's JSON Web Key Set."""

    issuer: str
    audience: str
    keys_url: str
    ca_file: Path | None = None


class EntraTokens:
    """A TokenReader. `monotonic_s` is a clock that only goes forward. May be asked from several threads."""

    def __init__(self, terms: TokenTerms, monotonic_s: Callable[[], float]) -> None:
        self._terms = terms
        self._monotonic_s = monotonic_s
        self._fetching = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at_s: float | None = None

    def principal(self, token: str) -> Principal:
        try:
            key = self._key(str(jwt.get_unverified_header(token).get("kid", "")))
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=list(ALGORITHMS),
                audience=self._terms.audience,
                issuer=self._terms.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError as err:
            raise TrustError("the token has expired", hint="Get a new one from its issuer.") from err
        except (jwt.PyJWTError, ValueError, TypeError) as err:
            raise TrustError(
                f"the token is not good: {err}", hint=f"It must be one of {self._terms.issuer} for this server."
            ) from err
        return _principal(claims)

    def _key(self, key_id: str) -> jwt.PyJWK:
        with self._fetching:
            age_s = None if self._fetched_at_s is None else self._monotonic_s() - self._fetched_at_s
            is_known = key_id in self._keys
            if age_s is None or age_s > KEYS_LIFE_S or (not is_known and age_s > KEYS_FETCH_INTERVAL_S):
                self._fetched_at_s = self._monotonic_s()
                try:
                    self._keys = self._fetch()
                except (requests.RequestException, jwt.PyJWTError, ValueError) as err:
                    # Keys that were good stay good while the issuer is away.
                    if not is_known:
                        raise TrustError(
                            f"the token cannot be checked: the keys of {self._terms.issuer} could not be fetched",
                            hint="Try again in a moment; or use an API key.",
                        ) from err
            if key_id not in self._keys:
                raise TrustError(f"the token is signed with a key that {self._terms.issuer} does not publish")
            return self._keys[key_id]

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        verify = str(self._terms.ca_file) if self._terms.ca_file is not None else True
        with requests.get(self._terms.keys_url, timeout=FETCH_TIMEOUT_S, verify=verify, stream=True) as answer:
            answer.raise_for_status()
            content = answer.raw.read(KEYS_LENGTH_MAX + 1, decode_content=True)
        if len(content) > KEYS_LENGTH_MAX:
            raise ValueError("the issuer's keys have no end")
        return {key.key_id: key for key in jwt.PyJWKSet.from_json(content.decode()).keys if key.key_id}


def _principal(claims: dict[str, Any]) -> Principal:
    given = claims.get("roles", [])
    words = [str(word).rsplit(".", 1)[-1].lower() for word in given] if isinstance(given, list) else []
    roles = frozenset(_ROLES[word] for word in words if word in _ROLES)
    subject = str(claims.get("oid") or claims.get("sub") or "")
    if not roles or not subject:
        raise TrustError(
            "the token grants no role here",
            hint="Assign one of the application roles reader, publisher and operator to whoever holds it.",
        )
    name = claims.get("preferred_username") or claims.get("app_displayname") or claims.get("azp") or subject
    return Principal(f"token:{subject[:100]}", str(name)[:100], roles)
