"""Signing from afar: offline keys stay with their owner, online keys with the server; neither believes the other."""

import json
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from cloud_registry import wiring
from cloud_registry.adapters import remote_registry
from cloud_registry.cli import main
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.core import trust_exchange as exchange
from cloud_registry.core.trust_answers import Proposal
from cloud_registry.errors import (
    AccessDeniedError,
    ConflictError,
    MetadataRefusedError,
    NotFoundError,
    RegistryError,
    TrustError,
    UsageError,
)
from cloud_registry.service.registration import Registration
from cloud_registry.service.trust import NewRepository, TrustService
from tests.trust_repositories import model_file, no_secret
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.wire.registry.served import Served, serving

pytestmark = [pytest.mark.wire, pytest.mark.timeout(60)]

ONE, TWO = model_file("digits:1", b"one"), model_file("digits:2", b"two")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "home") as running:
        yield running


@dataclass
class Person:
    """Somebody with keys in a folder of their own, somewhere else."""

    config: RegistryConfig
    safe: Path

    @property
    def trust(self) -> TrustService:
        return wiring.open_trust(self.config, no_secret)

    @property
    def desk(self) -> Any:
        """The server as it is, without the care of the client."""
        return self.trust._desk

    def key(self, name: str) -> str:
        return str(self.safe / f"{name}.pem")


def person(served: Served, role: str, name: str, **roles: str) -> Person:
    config = replace(served.as_role(role), home=served.home.with_name(f"home-of-{name}"), **roles)
    safe = served.home.with_name(f"safe-of-{name}")
    safe.mkdir(mode=0o700, exist_ok=True)
    return Person(config, safe)


@pytest.fixture
def operator(served: Served) -> Person:
    made = person(served, "operator", "ada")
    roots = tuple(made.key(f"root-{number}") for number in (1, 2, 3))
    made.trust.init(NewRepository(roots, (made.key("targets-1"),), 2))
    return made


@pytest.fixture
def publisher(served: Served, operator: Person) -> Person:
    """With the keys of targets from the operator's safe."""
    made = person(served, "publisher", "eve")
    Path(made.key("targets-1")).write_bytes(Path(operator.key("targets-1")).read_bytes())
    Path(made.key("targets-1")).chmod(0o600)
    return made


def meanwhile(who: Person, action: Callable[[], Any]) -> TrustService:
    """Their trust, where something happens between their look at what stands and their signature."""
    return wiring.open_trust(who.config, no_secret, approve=lambda _: action() and None)


def here(served: Served) -> TrustService:
    return wiring.open_trust(served.config, no_secret)


# From the first key to a change of all ----------------------------------------------------------------------------


def test_from_the_first_key_to_a_signed_version_and_new_keys(served, operator, publisher):
    kept = sorted(path.name for path in (served.home / "trust").rglob("*.pem"))
    assert kept == ["snapshot-1.pem", "timestamp-1.pem"], "offline keys are elsewhere"
    assert publisher.trust.unsigned([ONE]) == [ONE]
    outcome = publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    assert outcome.published == {"targets": 2, "model-digits": 1, "snapshot": 2, "timestamp": 2}
    assert any(line.startswith("model-digits version 1: + digits/1/model.onnx sha256:") for line in outcome.changes)
    # The key is found again where it was, on the machine of its owner.
    assert publisher.trust.sign([TWO]).published == {"model-digits": 2, "snapshot": 3, "timestamp": 3}
    wiring.open_trust_desk(served.config).check([ONE, TWO])
    assert operator.trust.rotate("timestamp", []).published == {"root": 2, "timestamp": 4}
    assert operator.trust.rotate("targets", [operator.key("targets-2")]).published == {
        "root": 3, "targets": 3, "model-digits": 3, "snapshot": 4, "timestamp": 5,
    }  # fmt: skip
    assert operator.trust.refresh(["root"], force=True).published == {"snapshot": 5, "timestamp": 6, "root": 4}
    state = operator.trust.state()
    assert state.problems == ()
    assert [(role.role, role.version) for role in state.roles][:2] == [("root", 4), ("targets", 3)]
    assert state.key_places[state.roles[0].key_ids[0]] == f"file:{operator.key('root-1')}"
    assert here(served).state().problems == ()


def test_the_command_line_signs_at_a_server_as_it_does_at_home(served, monkeypatch, tmp_path):
    (tmp_path / "digits.onnx").write_bytes(linear_onnx(tmp_path / "made.onnx", IDENTITY).read_bytes())
    (manifest,) = [wiring.open_models(served.config).register(Registration("digits", (tmp_path / "digits.onnx",)))]
    digest = manifest.manifest.artifacts[0].digest
    both = wiring.open_keys(served.config).create("both", ["publisher", "operator"])[1]
    monkeypatch.chdir(tmp_path)

    def run(*words: str, expect: int = 0) -> Result:
        environment = {
            "SLIPWAY_REGISTRY": served.url, "SLIPWAY_API_KEY": both, "SLIPWAY_HOME": str(tmp_path / "mine"),
            "SLIPWAY_TRUST_PASSPHRASE": "correct horse battery staple",
        }  # fmt: skip
        done = CliRunner().invoke(main, ["trust", *words], env=environment)
        assert done.exit_code == expect, done.output
        return done

    assert run("status", expect=6).stderr.splitlines()[1] == "Make one with: slipway trust init"
    assert "registry's own folder" in run("init", "--keys", "mine/keys", expect=2).stderr
    made = json.loads(run("init", "--keys", "safe", "--json").stdout)
    assert made["metadata"] == f"{served.url}/metadata/"
    pinned = Metadata.from_bytes(Path(made["root"]).read_bytes())
    assert (
        pinned.signed_bytes
        == Metadata.from_bytes((served.home / "trust/metadata/1.root.json").read_bytes()).signed_bytes
    )
    assert "there is a trust repository already" in run("init", "--keys", "other", expect=5).stderr
    assert not (tmp_path / "other").exists()
    unsigned = json.loads(run("sign", "digits", "--dry-run", "--json").stdout)["unsigned"]
    assert ("digits/1/model.onnx", digest) in [(one["target"], one["digest"]) for one in unsigned]
    said = run("sign", "digits:1", "--root", made["root"])
    assert f"model-digits version 1: + digits/1/model.onnx {digest}\n" in said.stderr
    assert said.stdout == "Published targets 2, model-digits 1, snapshot 2, timestamp 2\n"
    assert run("sign", "digits", "--dry-run").stdout == "All of it is signed.\n"
    assert run("rotate", "model:digits", "--new-key", "team/digits.pem").stdout.startswith(
        "Published targets 3, model-"
    )
    assert "made at the server" in run("rotate", "timestamp", "--new-key", "x.pem", expect=2).stderr
    assert run("refresh").stdout == "Nothing was published.\n"
    assert run("sign", "--withdraw", "digits:1").stdout.startswith("Published model-digits 3")
    status = json.loads(run("status", "--json").stdout)
    assert [(role["role"], role["version"]) for role in status["roles"]][-1] == ("model-digits", 3)
    # No passphrase, no key and no place of one went to the server, nor into its audit log.
    secrets = [b"correct horse", str(tmp_path / "safe").encode(), str(tmp_path / "team").encode()]
    secrets += [line for path in tmp_path.glob("*/*.pem") for line in path.read_bytes().splitlines()[1:-1]]
    held = [path.read_bytes() for path in served.home.rglob("*") if path.is_file()]
    assert not [secret for secret in secrets for content in held if secret in content]
    assert any('"what":"trust.submit"' in line for line in served.audit())


def test_a_person_at_a_terminal_is_asked_before_a_key_signs_what_a_server_proposes(
    served, operator, publisher, monkeypatch, tmp_path
):
    wiring.open_models(served.config).register(Registration("digits", (linear_onnx(tmp_path / "d.onnx", IDENTITY),)))
    monkeypatch.setattr("cloud_registry.cli.trust._is_terminal", lambda: True)
    monkeypatch.setenv("SLIPWAY_REGISTRY", served.url)
    monkeypatch.setenv("SLIPWAY_API_KEY", served.keys["publisher"])
    monkeypatch.setenv("SLIPWAY_HOME", str(publisher.config.home))
    words = ["trust", "sign", "digits:1", "--key", publisher.key("targets-1")]
    for answer, code in (("n\n", 2), ("", 1)):
        said = CliRunner().invoke(main, words, input=answer)
        assert said.exit_code == code, said.output
        assert "+ digits/1/model.onnx sha256:" in said.stderr
        assert "Sign this? [y/N]" in said.stderr
    assert here(served).state().waiting == ()
    assert CliRunner().invoke(main, words, input="y\n").stdout.startswith("Published targets 2, model-digits 1")
    said = CliRunner().invoke(main, ["trust", "sign", "--withdraw", "digits:1", "--yes"], input="")
    assert said.stdout.startswith("Published model-digits 2"), said.output


def test_nothing_that_crosses_the_wire_holds_a_key_or_what_opens_one(served, operator, publisher, monkeypatch):
    sent: list[bytes] = []
    once = remote_registry.HttpRegistry._once

    def recorded(self: Any, method: str, path: str, query: Any, body: bytes | None, headers: Any) -> Any:
        sent.append(body or b"")
        return once(self, method, path, query, body, headers)

    monkeypatch.setattr(remote_registry.HttpRegistry, "_once", recorded)
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    operator.trust.rotate("root", [operator.key("root-4"), operator.key("root-5")])
    assert len(sent) >= 4
    assert any(b"model-digits" in body for body in sent)
    secrets = [
        line for folder in (operator.safe, publisher.safe) for path in folder.iterdir()
        for line in path.read_bytes().splitlines()[1:-1]
    ]  # fmt: skip
    assert len(secrets) >= 7
    assert not [1 for secret in (*secrets, str(operator.safe).encode()) for body in sent if secret in body]


# Who may do what --------------------------------------------------------------------------------------------------


def test_a_publisher_signs_models_and_gives_nobody_other_keys(served, publisher, operator):
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    with pytest.raises(AccessDeniedError, match="takes the role operator"):
        publisher.trust.rotate("model-digits", [publisher.key("team")])
    assert not here(served).state().waiting
    # Nor by the door of models' files.
    stand = publisher.desk.stand(["model-digits"])
    targets = exchange.read_role("targets", deepcopy(stand.published["targets"]))
    thief = CryptoSigner.generate_ed25519()
    targets.signed.version += 1
    targets.signed.add_key(thief.public_key, "model-digits")
    base = {"targets": exchange.footing(exchange.read_roles(stand.published), {}, "targets")}
    with pytest.raises(AccessDeniedError, match="this changes keys"):
        publisher.desk.submit({"targets": exchange.spelled(targets)}, base)
    with pytest.raises(AccessDeniedError, match="takes the role publisher"):
        operator.trust.sign([TWO])
    reader = person(served, "reader", "bob")
    assert reader.trust.state().problems == ()
    with pytest.raises(AccessDeniedError, match="takes the role publisher"):
        reader.trust.sign([TWO])


def test_what_one_stages_others_sign_from_where_their_keys_are(served, operator, publisher):
    Path(publisher.key("targets-1")).rename(publisher.safe / "away")
    outcome = publisher.trust.sign([ONE])
    assert [(one.role, one.needed) for one in outcome.waiting] == [("targets", 1), ("model-digits", 1)]
    assert here(served).unsigned([ONE]) == [ONE]
    # On the server's machine nobody's key is found, and what waits stays as it is.
    assert here(served).sign().published == {}
    carrier = person(served, "publisher", "carrier")
    Path(carrier.key("t")).write_bytes(Path(operator.key("targets-1")).read_bytes())
    signed = carrier.trust.sign(keys=[carrier.key("t")])
    assert signed.published == {"targets": 2, "model-digits": 1, "snapshot": 2, "timestamp": 2}
    assert carrier.trust.discard() == []


# Two at once ------------------------------------------------------------------------------------------------------


def test_of_two_who_publish_at_once_one_gets_a_conflict_and_nothing_is_lost(served, operator, publisher):
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    other = person(served, "publisher", "fay")
    Path(other.key("k")).write_bytes(Path(publisher.key("targets-1")).read_bytes())
    slow = meanwhile(other, lambda: publisher.trust.sign([TWO]))
    three = model_file("digits:3", b"three")
    with pytest.raises(ConflictError, match="model-digits was changed since this command looked") as err:
        slow.sign([three], keys=[other.key("k")])
    assert "run the command again" in err.value.hint
    assert here(served).unsigned([ONE, TWO, three]) == [three]
    other.trust.sign([three])
    assert here(served).unsigned([ONE, TWO, three]) == []


def test_signatures_of_two_at_once_are_both_kept(served, operator, publisher):
    """Both sign the same root that waits, and neither is told to come again."""
    for number in (1, 2, 3):
        Path(operator.key(f"root-{number}")).rename(operator.safe / f"away-{number}")
    waiting = operator.trust.rotate("timestamp", []).waiting
    assert [(one.role, one.needed) for one in waiting] == [("root", 2)]
    second = person(served, "operator", "fay")
    slow = meanwhile(second, lambda: operator.trust.sign(keys=[str(operator.safe / "away-1")]))
    outcome = slow.sign(keys=[str(operator.safe / "away-2")])
    assert outcome.published == {"root": 2, "timestamp": 2}


def test_a_server_that_refreshes_while_a_person_signs_is_in_nobodys_way(served, operator, publisher):
    refreshed: list[Any] = []
    desk = wiring.open_trust_desk(served.config)
    slow = meanwhile(publisher, lambda: refreshed.append(desk.refresh(force=True).published))
    assert slow.sign([ONE], keys=[publisher.key("targets-1")]).published == {
        "targets": 2, "model-digits": 1, "snapshot": 3, "timestamp": 3,
    }  # fmt: skip
    assert refreshed == [{"snapshot": 2, "timestamp": 2}]


def test_many_at_once_each_with_a_model_of_their_own_lose_nothing(served, operator, publisher):
    files = [model_file(f"m{number}:1", b"bytes") for number in range(6)]
    # Their first versions change targets, each of them, so that they go one after the other.
    publisher.trust.sign(files, keys=[publisher.key("targets-1")])
    more = [model_file(f"m{number}:2", b"other bytes") for number in range(6)]
    errors: list[Exception] = []

    def sign(file: Any) -> None:
        try:
            publisher.trust.sign([file], keys=[publisher.key("targets-1")])
        except RegistryError as err:
            errors.append(err)

    threads = [threading.Thread(target=sign, args=(file,)) for file in more]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert here(served).unsigned([*files, *more]) == []
    assert here(served).state().problems == ()


# A client that does not believe its server -----------------------------------------------------------------------


def test_a_server_that_was_taken_back_or_replaced_gets_no_signature(served, operator, publisher, tmp_path):
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    folder, copy = served.home / "trust" / "metadata", tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    publisher.trust.sign([TWO])
    for path in folder.iterdir():
        path.unlink()
    for path in copy.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TrustError, match="model-digits has version 1, and 2 was seen before") as err:
        publisher.trust.sign([TWO])
    assert "Sign nothing" in err.value.hint
    with pytest.raises(TrustError, match="was seen before"):
        publisher.trust.state()
    # Another repository in its place, whole and in good order.
    served.home.joinpath("trust").rename(tmp_path / "old")
    theirs = person(served, "operator", "thief")
    theirs.trust.init(NewRepository((theirs.key("r"),), (theirs.key("t"),)))
    with pytest.raises(TrustError, match="version 1 of the root is another one than devices have pinned"):
        publisher.trust.sign([TWO])


def test_a_server_that_proposes_what_nobody_asked_for_gets_no_signature(served, operator, publisher):
    trust = publisher.trust
    evil = model_file("wakeword:1", b"evil")

    class Desk:
        def propose(self, *_: Any, **__: Any) -> Any:
            return Proposal((evil,))

    trust._desk = Desk()  # type: ignore[assignment]
    with pytest.raises(TrustError, match="of wakeword:1 was proposed, and digits:1 asked for"):
        trust.propose(["digits:1"])


def test_other_bytes_under_a_path_that_was_signed_are_not_signed(served, operator, publisher):
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    with pytest.raises(TrustError, match=r"digits/1/model.onnx is signed with sha256:.* and now"):
        publisher.trust.sign([model_file("digits:1", b"swapped")])


def test_whoever_does_not_agree_signs_nothing(served, operator, publisher):
    def refuse(_: Any) -> None:
        raise UsageError("nothing was signed")

    trust = wiring.open_trust(publisher.config, no_secret, approve=refuse)
    with pytest.raises(UsageError):
        trust.sign([ONE], keys=[publisher.key("targets-1")])
    assert here(served).state().waiting == ()


# A server that does not believe its client -----------------------------------------------------------------------

Change = Callable[[Metadata[Any]], None]


def _other_model(metadata: Metadata[Any]) -> None:
    info = deepcopy(metadata.signed.targets["digits/1/model.onnx"])
    metadata.signed.targets["wakeword/1/model.onnx"] = info


def _wide_path(metadata: Metadata[Any]) -> None:
    metadata.signed.targets["digits/../x"] = metadata.signed.targets.pop("digits/1/model.onnx")


def _for_ever(metadata: Metadata[Any]) -> None:
    metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=4000)


def _expired(metadata: Metadata[Any]) -> None:
    metadata.signed.expires = datetime(2020, 1, 1, tzinfo=UTC)


def _leap(metadata: Metadata[Any]) -> None:
    metadata.signed.version = 999


REFUSED: list[tuple[Change, type[Exception], str]] = [
    (_other_model, MetadataRefusedError, "is no file of a version of digits"),
    (_wide_path, MetadataRefusedError, "is no file of a version of digits"),
    (_for_ever, MetadataRefusedError, "Compare|would expire"),
    (_expired, MetadataRefusedError, "would expire"),
    (_leap, ConflictError, "version 999 of model-digits came, and 2 would be the next"),
]


def test_signed_metadata_that_is_not_as_it_should_be_is_refused_whole(served, operator, publisher):
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    published = exchange.read_roles(publisher.desk.stand(["model-digits"]).published)
    base = {"model-digits": exchange.footing(published, {}, "model-digits")}
    before = {path.name: path.read_bytes() for path in (served.home / "trust").rglob("*.json")}
    for change, kind, words in REFUSED:
        role = Metadata(deepcopy(published["model-digits"].signed))
        role.signed.version += 1
        change(role)
        role.sign(publisher.trust._keys.open(f"file:{publisher.key('targets-1')}"))
        with pytest.raises(kind, match=words):
            publisher.desk.submit({"model-digits": exchange.spelled(role)}, base)
    assert {path.name: path.read_bytes() for path in (served.home / "trust").rglob("*.json")} == before


NO_METADATA: list[dict[str, Any]] = [
    {"timestamp": {}}, {"model-digits": {"signed": {}}}, {"model-digits": {"signed": [], "signatures": 7}},
    {"../../etc": {}}, {"": {}}, {"model-a": {"signatures": [], "signed": {"_type": "root"}}},
]  # fmt: skip


def test_what_is_no_metadata_is_refused(served, operator, publisher):
    for roles in NO_METADATA:
        with pytest.raises(MetadataRefusedError):
            publisher.desk.submit(roles, {})


def test_an_online_role_is_nobodys_to_send_and_a_forged_signature_is_none(served, operator, publisher):
    publisher.trust.sign([ONE], keys=[publisher.key("targets-1")])
    store = wiring.open_trust_desk(served.config)._store
    published = store.published()
    for role in ("timestamp", "snapshot"):
        metadata = deepcopy(published[role])
        metadata.signed.version += 1
        base = {role: exchange.footing(published, {}, role)}
        with pytest.raises((MetadataRefusedError, ConflictError)):
            publisher.desk.submit({role: exchange.spelled(metadata)}, base)
    forged = exchange.spelled(published["model-digits"])
    forged["signed"]["version"] = 2
    base = {"model-digits": exchange.footing(published, {}, "model-digits")}
    with pytest.raises(MetadataRefusedError, match=r"the signature of key .* on model-digits is not good"):
        publisher.desk.submit({"model-digits": forged}, base)
    # By a key that does not count: it waits, signed by nobody.
    thief = CryptoSigner.generate_ed25519()
    role = Metadata(deepcopy(published["model-digits"].signed))
    role.signed.version += 1
    role.sign(thief)
    outcome = publisher.desk.submit({"model-digits": exchange.spelled(role)}, base)
    assert [(one.role, one.needed, one.signed) for one in outcome.waiting] == [("model-digits", 1, ())]
    assert outcome.published == {}


def test_a_root_whose_online_keys_are_not_the_servers_is_refused(served, operator):
    stand = operator.desk.stand([])
    root = exchange.read_role("root", deepcopy(stand.published["root"]))
    root.signed.version += 1
    thief = CryptoSigner.generate_ed25519()
    root.signed.revoke_key(root.signed.roles["timestamp"].keyids[0], "timestamp")
    root.signed.add_key(thief.public_key, "timestamp")
    base = {"root": exchange.footing(exchange.read_roles(stand.published), {}, "root")}
    with pytest.raises(MetadataRefusedError, match="keys that are not this server's"):
        operator.desk.submit_keys({"root": exchange.spelled(root)}, base)
    with pytest.raises(UsageError, match="are not the server's to make"):
        operator.desk.make_online_key("root")


def test_without_a_repository_a_server_says_so(served):
    nobody = person(served, "publisher", "eve")
    for ask in (nobody.trust.state, lambda: nobody.trust.sign([ONE]), lambda: nobody.desk.submit({}, {})):
        with pytest.raises(NotFoundError, match="there is no trust repository") as err:
            ask()
        assert err.value.hint == "Make one with: slipway trust init"
    assert read_config(served.home, {}).trust_directory == served.home / "trust"
