"""Tokens of an issuer such as Microsoft Entra: a local one with real keys, its key set over HTTP, and forgeries."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloud_registry import wiring
from cloud_registry.adapters.entra_tokens import KEYS_FETCH_INTERVAL_S, EntraTokens, TokenTerms
from cloud_registry.config import read_config
from cloud_registry.errors import AccessDeniedError, TrustError, UsageError
from cloud_registry.ports import ModelQuery, Principal, Role
from tests.wire.registry.served import serving

pytestmark = pytest.mark.wire

ISSUER, AUDIENCE = "https://login.example/tenant/v2.0", "api://slipway"


@dataclass
class Issuer:
    """Publishes its keys at `url`; `fetched` counts how often they were asked for."""

    url: str = ""
    keys: dict[str, rsa.RSAPrivateKey] = field(default_factory=dict)
    fetched: int = 0
    is_away: bool = False

    def add_key(self, key_id: str) -> None:
        self.keys[key_id] = rsa.generate_private_key(65537, 2048)

    def key_set(self) -> bytes:
        keys = [
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig"}
            for key_id, key in self.keys.items()
        ]
        return json.dumps({"keys": keys}).encode()

    def token(self, key_id: str = "one", algorithm: str = "RS256", key: Any = None, **changes: Any) -> str:
        now = datetime.now(UTC)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": now + timedelta(hours=1),
            "nbf": now - timedelta(minutes=1),
            "oid": "0a1b",
            "preferred_username": "pat@plant.example",
            "roles": ["Slipway.Publisher"],
            **changes,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        signer = None if algorithm == "none" else key or self.keys[key_id]
        return jwt.encode(claims, signer, algorithm, headers={"kid": key_id})


@pytest.fixture(scope="module")
def running() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.add_key("one")

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetched += 1
            self.send_response(500 if issuer.is_away else 200)
            self.end_headers()
            self.wfile.write(issuer.key_set())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    yield issuer
    server.shutdown()
    server.server_close()


@pytest.fixture
def issuer(running: Issuer) -> Issuer:
    running.is_away, running.fetched = False, 0
    return running


@dataclass
class Watch:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def tokens(issuer: Issuer, watch: Watch) -> EntraTokens:
    return EntraTokens(TokenTerms(ISSUER, AUDIENCE, issuer.url), watch)


def test_a_token_names_its_holder_and_his_roles(issuer: Issuer, tokens: EntraTokens):
    both = issuer.token(roles=["Slipway.Reader", "operator", "Something.Else", 7])
    roles = frozenset({Role.READER, Role.OPERATOR})
    assert tokens.principal(both) == Principal("token:0a1b", "pat@plant.example", roles)
    service = issuer.token(preferred_username=None, oid=None, sub="a-service", azp="app")
    assert tokens.principal(service) == Principal("token:a-service", "app", frozenset({Role.PUBLISHER}))
    assert issuer.fetched == 1


def past(**ago: float) -> datetime:
    return datetime.now(UTC) - timedelta(**ago)


FORGED: dict[str, Any] = {
    "has expired": lambda issuer: issuer.token(exp=past(minutes=2)),
    "is not valid yet": lambda issuer: issuer.token(nbf=past(hours=-1)),
    "is of another issuer": lambda issuer: issuer.token(iss="https://login.example/other/v2.0"),
    "is for somebody else": lambda issuer: issuer.token(aud="api://other"),
    "never ends": lambda issuer: issuer.token(exp=None),
    "names no audience": lambda issuer: issuer.token(aud=None),
    "grants no role": lambda issuer: issuer.token(roles=["Something.Else"]),
    "has roles that are no list": lambda issuer: issuer.token(roles="publisher"),
    "asks for a device's role": lambda issuer: issuer.token(roles=["device"]),
    "names nobody": lambda issuer: issuer.token(oid=None),
    "is signed with another key of the same name": lambda issuer: issuer.token(
        key=rsa.generate_private_key(65537, 2048)
    ),
    "is signed with an unpublished key": lambda issuer: issuer.token("two", key=rsa.generate_private_key(65537, 2048)),
    "is not signed": lambda issuer: issuer.token(algorithm="none"),
    "takes the published key for a shared secret": lambda issuer: shared_secret(issuer),
    "was changed": lambda issuer: changed(issuer.token()),
    "is none": lambda issuer: "no token",
    "is half of one": lambda issuer: issuer.token()[:40],
}


def shared_secret(issuer: Issuer) -> str:
    """HS256 with the public key as the secret: what a verifier accepts that lets the token choose the algorithm."""
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    secret = issuer.keys["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode()).rstrip(b"=")
    body = issuer.token().split(".")[1].encode()
    mark = base64.urlsafe_b64encode(hmac.new(secret, head + b"." + body, hashlib.sha256).digest()).rstrip(b"=")
    return b".".join((head, body, mark)).decode()


def changed(token: str) -> str:
    head, body, mark = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["roles"] = ["operator"]
    return ".".join((head, base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode(), mark))


@pytest.mark.parametrize("flaw", FORGED)
def test_a_token_is_refused_that(flaw: str, issuer: Issuer, tokens: EntraTokens):
    with pytest.raises(TrustError):
        tokens.principal(FORGED[flaw](issuer))


def test_new_keys_are_learned_and_invented_ones_do_not_make_us_ask_without_end(
    issuer: Issuer, tokens: EntraTokens, watch: Watch
):
    stranger = rsa.generate_private_key(65537, 2048)
    tokens.principal(issuer.token())
    for number in range(20):
        with pytest.raises(TrustError):
            tokens.principal(issuer.token(f"invented-{number}", key=stranger))
    assert issuer.fetched == 1
    issuer.add_key("new")
    watch.now_s += KEYS_FETCH_INTERVAL_S + 1
    assert tokens.principal(issuer.token("new")).id == "token:0a1b"
    assert issuer.fetched == 2
    # While the issuer is away, keys that were good stay good.
    issuer.is_away = True
    watch.now_s += 48 * 3600
    assert tokens.principal(issuer.token("new")).id == "token:0a1b"
    watch.now_s += KEYS_FETCH_INTERVAL_S + 1
    with pytest.raises(TrustError, match="could not be fetched"):
        tokens.principal(issuer.token("newer", key=stranger))


def test_a_token_opens_the_server_and_keys_go_on_to_do_so(issuer: Issuer, tmp_path: Path):
    environment = {
        "SLIPWAY_TOKEN_ISSUER": ISSUER,
        "SLIPWAY_TOKEN_AUDIENCE": AUDIENCE,
        "SLIPWAY_TOKEN_KEYS": issuer.url,
    }
    with serving(tmp_path / "home", read_config(tmp_path / "home", environment)) as served:
        person = replace(served.as_role("reader"), api_key=issuer.token(roles=["Reader"]))
        assert wiring.open_models(person).search(ModelQuery()) == []
        with pytest.raises(AccessDeniedError, match=r"'pat@plant.example' is reader"):
            wiring.open_models(person).remove_orphans()
        assert wiring.open_models(served.as_role("reader")).search(ModelQuery()) == []
        entry = json.loads(served.audit()[0])
        assert (entry["who"], entry["name"]) == ("token:0a1b", "pat@plant.example")


def test_half_a_configuration_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="tokens need an issuer, an audience and the URL"):
        wiring.open_keys(read_config(tmp_path, {"SLIPWAY_TOKEN_ISSUER": ISSUER}))
