"""What a connection has shown that it may do: tokens that were put on it, and what each covers.

An audience is a URL (``sb://host/hub/consumergroups/$default``, ``https://host``); a token covers its own resource and
everything below. Event Hubs compares them without regard to case.
"""

import base64
from dataclasses import dataclass
from urllib.parse import unquote

from simulators.iothub.core.access import ALL_RIGHTS, Gatekeeper, Policy, Right, SasToken
from simulators.iothub.errors import Fault, ServiceError

CLAIMS_MAX = 64
BEARER_LIFETIME_S = 3600.0
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """Rights on a path and all below it; `expires_at` is None where they last as long as the connection."""

    path: Path
    rights: Right
    expires_at: float | None

    def covers(self, path: Path) -> bool:
        return path[: len(self.path)] == self.path


def path_of(address: str) -> tuple[str, Path]:
    """Host (without its port; empty where there is none) and path of an address or audience, in lower case."""
    text = address.lower()
    if "://" in text:
        text = text.partition("://")[2]
        host, _, rest = text.partition("/")
    else:
        host, rest = "", text
    return host.partition(":")[0], tuple(segment for segment in rest.split("/") if segment)


def read_claim(gatekeeper: Gatekeeper, token_text: str, audience: str, now: float) -> Claim:
    """Judge a token that is put for an audience.

    Event Hubs audiences (``sb://``) may name a namespace of any host: a client that is led here by a custom endpoint
    address keeps the name it was given, and the signature says enough.

    Raises:
        ServiceError: IotHubUnauthorizedAccess, and why.
    """
    token = SasToken.parse(token_text)
    policy = find_policy(gatekeeper, token.policy)
    if policy is None or not _is_signed(token, policy):
        raise _refused(f"the token is not signed by a key of policy {token.policy!r}")
    resource = unquote(token.resource)
    is_namespace = resource.lower().startswith(("sb://", "amqps://", "amqp://"))
    # IoT Hub tokens name a host without a scheme.
    host, path = path_of(resource if "://" in resource else f"https://{resource}")
    if not is_namespace and not gatekeeper.knows_host(host):
        raise _refused(f"the token is for {host}, which this hub is not")
    _, wanted = path_of(audience if "://" in audience else f"https://{audience}")
    if wanted[: len(path)] != path:
        raise _refused(f"the token is for /{'/'.join(path)}, which does not cover /{'/'.join(wanted)}")
    if token.expires_at <= now:
        raise _refused(f"the token expired {now - token.expires_at:.0f} s ago")
    return Claim(wanted, policy.rights, float(token.expires_at))


def read_bearer(token_text: str, now: float) -> Claim:
    """Take a token of Microsoft Entra, whose audience is the service and not this hub: it opens everything for an hour.

    Raises:
        ServiceError: IotHubUnauthorizedAccess; it is empty.
    """
    if not token_text.removeprefix("Bearer ").strip():
        raise _refused("the token is empty")
    return Claim((), ALL_RIGHTS, now + BEARER_LIFETIME_S)


def read_plain(gatekeeper: Gatekeeper, user: str, password: str, now: float) -> Claim:
    """Judge a user name and password (SASL PLAIN): a policy with one of its keys, or with a token.

    Raises:
        ServiceError: IotHubUnauthorizedAccess.
    """
    if password.startswith("SharedAccessSignature "):
        return read_claim(gatekeeper, password, f"https://{SasToken.parse(password).path[0]}", now)
    # IoT Hub spells the name policy@sas.root.hub.
    policy = find_policy(gatekeeper, user.partition("@")[0])
    if policy is None or password not in policy.keys:
        raise _refused(f"the password is no key of policy {user!r}")
    return Claim((), policy.rights, None)


def find_policy(gatekeeper: Gatekeeper, name: str) -> Policy | None:
    try:
        return gatekeeper.policy(name)
    except KeyError:
        return None


def _is_signed(token: SasToken, policy: Policy) -> bool:
    """Whether a policy's key has signed a token: its bytes as IoT Hub has it, or its text as Event Hubs has it."""
    texts = (base64.b64encode(key.encode()).decode() for key in policy.keys)
    return token.is_signed_by((*policy.keys, *texts))


class Claims:
    """The claims of one connection, by path: a newer one for the same path replaces the older."""

    def __init__(self) -> None:
        self._by_path: dict[Path, Claim] = {}

    @property
    def is_empty(self) -> bool:
        return not self._by_path

    def add(self, claim: Claim) -> None:
        """Keep a claim.

        Raises:
            ServiceError: there are too many.
        """
        if len(self._by_path) >= CLAIMS_MAX and claim.path not in self._by_path:
            raise ServiceError(Fault.ArgumentInvalid, f"a connection holds at most {CLAIMS_MAX} tokens")
        self._by_path[claim.path] = claim

    def allow(self, path: Path, right: Right, now: float) -> bool:
        """Whether a claim that has not ended gives a right on a path."""
        return any(
            right in claim.rights and claim.covers(path) and (claim.expires_at is None or claim.expires_at > now)
            for claim in self._by_path.values()
        )


def _refused(message: str) -> ServiceError:
    return ServiceError(Fault.IotHubUnauthorizedAccess, f"Unauthorized: {message}")
