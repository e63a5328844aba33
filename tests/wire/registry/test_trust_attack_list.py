"""python-tuf's own list of attacks, a row each: on a repository of our keeper, what does the agent's own client say?

The names are those of the tests of `tuf.ngclient` (test_updater_top_level_update, _delegation_graphs, _key_rotations,
test_trusted_metadata_set). docs/registry/trust.md holds the same table, and a test here that it does.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Targets

from tests.trust_repositories import Publisher, model_file
from tests.wire.agent import rough_server as rough
from tests.wire.agent.rough_server import RoughServer
from tests.wire.registry.trust_attack import Attack

pytestmark = [pytest.mark.wire, pytest.mark.timeout(60)]

ONE, TWO = model_file("digits:1", b"one"), model_file("digits:2", b"two")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
MODEL = "model-digits"
PAGE = Path(__file__).parents[3] / "docs" / "registry" / "trust.md"


def expired(signed: Any) -> None:
    signed.expires = LONG_AGO


def roots(attack: Attack, *names: str) -> list[Any]:
    return [attack.offline(name) for name in names or ("root-1", "root-2")]


# Root -------------------------------------------------------------------------------------------------------------


def root_unsigned(attack: Attack) -> None:
    attack.next_of("root")


def root_in_between_unsigned(attack: Attack) -> None:
    attack.publisher.service.refresh(["root"])
    attack.publisher.service.refresh(["root"])
    attack.serve("2.root.json", attack.publisher.store.root_chain()[1])


def root_without_old_keys(attack: Attack) -> None:
    thieves = [CryptoSigner.generate_ed25519() for _ in range(2)]
    attack.next_of("root", lambda root: _only_keys(root, "root", thieves), *thieves)


def root_without_new_keys(attack: Attack) -> None:
    others = [CryptoSigner.generate_ed25519() for _ in range(2)]
    attack.next_of("root", lambda root: _only_keys(root, "root", others), *roots(attack))


def root_threshold_lowered_by_one(attack: Attack) -> None:
    attack.next_of("root", lambda root: _set_threshold(root, 1), attack.offline("root-1"))


def root_threshold_not_reached(attack: Attack) -> None:
    attack.next_of("root", lambda root: _set_threshold(root, 3), *roots(attack))


def root_of_the_same_version(attack: Attack) -> None:
    attack.serve("2.root.json", attack.publisher.read("root"), *roots(attack))


def root_that_leaps(attack: Attack) -> None:
    def leap(root: Any) -> None:
        root.version += 1

    attack.next_of("root", leap, *roots(attack))


def root_expired(attack: Attack) -> None:
    attack.next_of("root", expired, *roots(attack))


def root_in_between_expired(attack: Attack) -> None:
    attack.publisher.service.refresh(["root"])
    attack.publisher.service.refresh(["root"])
    middle = attack.publisher.store.root_chain()[1]
    middle.signed.expires = LONG_AGO
    attack.serve("2.root.json", middle, *roots(attack))


def root_of_another_type(attack: Attack) -> None:
    attack.served["2.root.json"] = attack.publisher.files["timestamp.json"]


def pinned_root_unsigned(attack: Attack) -> None:
    root = attack.publisher.read("root")
    root.signatures.clear()
    attack.root.write_bytes(root.to_bytes())
    shutil.rmtree(attack.directory / "device")


def pinned_root_unreadable(attack: Attack) -> None:
    attack.root.write_bytes(b"")


def _only_keys(root: Any, role: str, signers: list[Any]) -> None:
    for key_id in list(root.roles[role].keyids):
        root.revoke_key(key_id, role)
    for signer in signers:
        root.add_key(signer.public_key, role)


def _set_threshold(root: Any, threshold: int) -> None:
    root.roles["root"].threshold = threshold


# Every other role -------------------------------------------------------------------------------------------------


def unsigned(attack: Attack, role: str) -> None:
    _serve_signed(attack, role)


def by_a_stranger(attack: Attack, role: str) -> None:
    _serve_signed(attack, role, CryptoSigner.generate_ed25519())


def by_a_key_of_another_role(attack: Attack, role: str) -> None:
    key = attack.online("snapshot") if role == "timestamp" else attack.online("timestamp")
    _serve_signed(attack, role, key)


def expired_role(attack: Attack, role: str) -> None:
    if role == "timestamp":
        attack.serve_online({}, change_timestamp=expired)
    elif role == "snapshot":
        attack.serve_online({}, change_snapshot=expired)
    else:
        attack.serve_online({role: attack.next_of(role, expired, attack.offline("targets-1"))})


def rolled_back(attack: Attack, role: str) -> None:
    """What was good once, and newer was seen."""
    old = attack.publisher.files
    before = attack.publisher.read(role).signed.version
    attack.publisher.service.refresh(["targets", MODEL])
    assert attack.verdict(ONE) == "allowed"
    if role == "timestamp":
        attack.served["timestamp.json"] = old["timestamp.json"]
    elif role == "snapshot":
        meta = MetaFile.from_data(before, old[f"{before}.snapshot.json"], ["sha256"])
        attack.next_of("timestamp", lambda signed: setattr(signed, "snapshot_meta", meta), attack.online("timestamp"))
    else:
        attack.serve_online({role: old[f"{before}.{role}.json"]})


def fast_forwarded_and_healed(attack: Attack, role: str) -> None:
    """Stolen keys sign version 99,999; new keys of the online roles bring the device back."""

    def leap(signed: Any) -> None:
        signed.version = 99_999

    if role in ("timestamp", "snapshot"):
        attack.serve_online({}, **{f"change_{role}": leap})
    else:
        content = attack.next_of(role, leap, attack.offline("targets-1"))
        attack.served[f"99999.{role}.json"] = content
        attack.serve_online({role: content})
    assert attack.verdict(ONE) == "allowed"
    attack.served.clear()
    attack.publisher.sign(TWO)
    assert attack.verdict(TWO) != "allowed"
    for online in ("snapshot", "timestamp"):
        attack.publisher.service.rotate(online, [])


def of_another_version_than_said(attack: Attack, role: str) -> None:
    def other(signed: Any) -> None:
        signed.version += 1

    if role == "snapshot":
        content = attack.next_of("snapshot", other, attack.online("snapshot"))
        meta = MetaFile.from_data(attack.publisher.read("snapshot").signed.version + 1, content, ["sha256"])
        attack.next_of("timestamp", lambda signed: setattr(signed, "snapshot_meta", meta), attack.online("timestamp"))
        return
    content = attack.next_of(role, other, attack.offline("targets-1"))
    version = attack.publisher.read(role).signed.version + 1
    meta = MetaFile.from_data(version, content, ["sha256"])
    attack.serve_online({}, change_snapshot=lambda signed: signed.meta.update({f"{role}.json": meta}))


def with_another_hash(attack: Attack, role: str) -> None:
    _described(attack, role, lambda meta: meta.hashes.update(sha256="0" * 64))


def shorter_than_said(attack: Attack, role: str) -> None:
    _described(attack, role, lambda meta: setattr(meta, "length", meta.length + 1))


def longer_than_said(attack: Attack, role: str) -> None:
    _described(attack, role, lambda meta: setattr(meta, "length", meta.length - 1))


def taken_from_the_snapshot(attack: Attack, role: str) -> None:
    attack.serve_online({}, change_snapshot=lambda signed: signed.meta.pop(f"{role}.json") and None)


def mixed(attack: Attack, role: str) -> None:
    """A piece of an earlier state where that of the present one should be."""
    before = attack.publisher.read(role).signed.version
    old = attack.publisher.files[f"{before}.{role}.json"]
    attack.publisher.service.refresh(["targets", MODEL])
    attack.served[f"{attack.publisher.read(role).signed.version}.{role}.json"] = old


def of_another_type(attack: Attack, role: str) -> None:
    _in_place(attack, role, attack.publisher.files["1.root.json"])


def endless(attack: Attack, role: str) -> None:
    _in_place(attack, role, b"-")
    attack.server.behaviours[f"metadata/{_name(attack, role)}"] = rough.endless


def dripping(attack: Attack, role: str) -> None:
    _in_place(attack, role, attack.publisher.files["1.root.json"])
    attack.server.behaviours[f"metadata/{_name(attack, role)}"] = rough.drip(0.2)


def gone(attack: Attack, role: str) -> None:
    _in_place(attack, role, None)


def _serve_signed(attack: Attack, role: str, *signers: Any) -> None:
    content = attack.next_of(role, lambda _: None, *signers)
    if role == "snapshot":
        meta = MetaFile.from_data(attack.publisher.read(role).signed.version + 1, content, ["sha256"])
        attack.next_of("timestamp", lambda signed: setattr(signed, "snapshot_meta", meta), attack.online("timestamp"))
    elif role != "timestamp":
        attack.serve_online({role: content})


def _described(attack: Attack, role: str, change: Callable[[Any], Any]) -> None:
    """The next version of a role, which is described otherwise than it is, by the stolen online keys."""

    def change_meta(signed: Any) -> None:
        change(signed.snapshot_meta if role == "snapshot" else signed.meta[f"{role}.json"])

    if role == "snapshot":
        attack.serve_online({}, change_timestamp=change_meta)
    else:
        content = attack.next_of(role, lambda _: None, attack.offline("targets-1"))
        attack.serve_online({role: content}, change_snapshot=change_meta)


def _name(attack: Attack, role: str) -> str:
    return "timestamp.json" if role == "timestamp" else f"{attack.publisher.read(role).signed.version}.{role}.json"


def _in_place(attack: Attack, role: str, content: bytes | None) -> None:
    attack.publisher.sign(TWO)
    # What a device has seen before it need not ask for again.
    shutil.rmtree(attack.directory / "device")
    attack.served[_name(attack, role)] = content


# Delegations ------------------------------------------------------------------------------------------------------


def _delegating(attack: Attack, names: list[str], key: Any) -> Callable[[Any], None]:
    def change(targets: Any) -> None:
        roles = {name: DelegatedRole(name, [key.public_key.keyid], 1, False, ["digits/*/*"]) for name in names}
        targets.delegations = Delegations({key.public_key.keyid: key.public_key}, roles)

    return change


def model_that_delegates_in_a_circle(attack: Attack) -> None:
    key = attack.offline("targets-1")
    content = attack.next_of(MODEL, lambda targets: (_delegating(attack, [MODEL], key)(targets), _forget(targets)), key)
    attack.serve_online({MODEL: content})


def model_that_delegates_on_and_on(attack: Attack) -> None:
    """More roles than a device follows; the file is in the last of them."""
    key, names = attack.offline("targets-1"), [f"more-{number}" for number in range(40)]
    contents = {}
    for name in names:
        role = Metadata(Targets(version=1, expires=attack.publisher.read("targets").signed.expires))
        if name == names[-1]:
            role.signed.targets = deepcopy(attack.publisher.read(MODEL).signed.targets)
        contents[name] = attack.serve(f"1.{name}.json", role, key)
    change = _delegating(attack, names, key)
    contents[MODEL] = attack.next_of(MODEL, lambda targets: (change(targets), _forget(targets)), key)
    attack.serve_online(contents)


def model_that_delegates_to_a_path(attack: Attack) -> None:
    """A role whose name would lead out of the device's folder."""
    key = attack.offline("targets-1")
    change = _delegating(attack, ["../../../evil"], key)
    role = Metadata(Targets(version=1, expires=attack.publisher.read("targets").signed.expires))
    content = attack.serve("1...%2F..%2F..%2Fevil.json", role, key)
    attack.served["1.../../../evil.json"] = content
    model = attack.next_of(MODEL, lambda targets: (change(targets), _forget(targets)), key)
    attack.serve_online({MODEL: model, "../../../evil": content})


def _forget(targets: Any) -> None:
    targets.targets.clear()


def name_of_another_model(attack: Attack) -> None:
    """The role of one model allows a file of another."""
    attack.publisher.sign(model_file("wakeword:1", b"w"))
    info = deepcopy(attack.publisher.read(MODEL).signed.targets["digits/1/model.onnx"])
    attack.publisher.service.sign(withdrawn=[ONE.reference])
    info.path = "digits/1/model.onnx"
    key = attack.offline("targets-1")
    content = attack.next_of("model-wakeword", lambda targets: targets.targets.update({info.path: info}), key)
    attack.serve_online({"model-wakeword": content})


# The table --------------------------------------------------------------------------------------------------------

BELOW = ("timestamp", "snapshot", "targets", MODEL)
SIGNATURE, ROLLBACK, EXPIRED = "TRUST_BAD_SIGNATURE", "TRUST_ROLLBACK", "TRUST_EXPIRED"
METADATA, UNREACHABLE, UNKNOWN = "TRUST_BAD_METADATA", "TRUST_UNREACHABLE", "TRUST_UNKNOWN_TARGET"

OF_ROOT: list[tuple[str, Callable[[Attack], None], str, str]] = [
    ("unsigned", root_unsigned, "root", SIGNATURE),
    ("a version in between is unsigned", root_in_between_unsigned, "root", SIGNATURE),
    ("new keys that the old ones did not sign", root_without_old_keys, "root", SIGNATURE),
    ("new keys that did not sign", root_without_new_keys, "root", SIGNATURE),
    ("a lower threshold, signed by as few", root_threshold_lowered_by_one, "root", SIGNATURE),
    ("a higher threshold that is not reached", root_threshold_not_reached, "root", SIGNATURE),
    ("the same version again", root_of_the_same_version, "root", ROLLBACK),
    ("a version that leaps", root_that_leaps, "root", ROLLBACK),
    ("expired", root_expired, "root", EXPIRED),
    ("a version in between has expired", root_in_between_expired, "root", "allowed"),
    ("metadata of another type", root_of_another_type, "root", METADATA),
    ("the pinned one is unsigned", pinned_root_unsigned, "root", SIGNATURE),
    ("the pinned one is unreadable", pinned_root_unreadable, "root", "TRUST_NO_ROOT"),
    ("delegates in a circle", model_that_delegates_in_a_circle, MODEL, UNKNOWN),
    ("delegates to more roles than 32", model_that_delegates_on_and_on, MODEL, UNKNOWN),
    ("delegates to a name that is a path", model_that_delegates_to_a_path, MODEL, UNKNOWN),
    ("allows a file of another model", name_of_another_model, MODEL, UNKNOWN),
]
OF_ROLES: list[tuple[str, Callable[[Attack, str], None], tuple[str, ...], str]] = [
    ("unsigned", unsigned, BELOW, SIGNATURE),
    ("signed by a stranger", by_a_stranger, BELOW, SIGNATURE),
    ("signed by a key of another role", by_a_key_of_another_role, BELOW, SIGNATURE),
    ("expired", expired_role, BELOW, EXPIRED),
    ("rolled back to what was good once", rolled_back, BELOW, ROLLBACK),
    ("leapt ahead, then new online keys", fast_forwarded_and_healed, BELOW, "allowed"),
    ("another version than its list says", of_another_version_than_said, BELOW[1:], ROLLBACK),
    ("another hash than its list says", with_another_hash, BELOW[1:], METADATA),
    ("shorter than its list says", shorter_than_said, BELOW[1:], METADATA),
    ("longer than its list says", longer_than_said, BELOW[1:], METADATA),
    ("no longer in its list", taken_from_the_snapshot, ("targets", MODEL), METADATA),
    ("mixed with an earlier state", mixed, BELOW[1:], METADATA),
    ("metadata of another type", of_another_type, BELOW, METADATA),
    ("without an end", endless, BELOW, METADATA),
    ("dripping", dripping, ("timestamp", MODEL), UNREACHABLE),
    ("not there", gone, BELOW, UNREACHABLE),
]
ROWS = [(words, act, role, code) for words, act, role, code in OF_ROOT] + [
    (words, partial(act, role=role), role, code) for words, act, roles, code in OF_ROLES for role in roles
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """A device that has seen a good repository, and a copy of both beside them."""
    directory = tmp_path_factory.mktemp("attacks") / "world"
    directory.mkdir()
    publisher = Publisher(directory)
    publisher.sign(ONE)
    made = Attack(directory, RoughServer(), publisher)
    assert made.verdict(ONE) == "allowed"
    shutil.copytree(directory, directory.with_name("as it was"))
    yield made
    made.server.stop()


@pytest.fixture
def attack(world: Attack) -> Attack:
    shutil.rmtree(world.directory)
    shutil.copytree(world.directory.with_name("as it was"), world.directory)
    world.served.clear()
    world.server.behaviours.clear()
    return world


@pytest.mark.parametrize(
    ("words", "act", "role", "code"), ROWS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_device_says(attack, words, act, role, code):
    act(attack)
    is_new = attack.publisher.desk.unsigned([TWO]) == []
    assert attack.verdict(TWO if is_new else ONE) == code
    assert list(attack.directory.parent.rglob("evil.json")) == []


def test_the_page_has_the_same_table():
    by_words: dict[tuple[str, str], list[str]] = defaultdict(list)
    for words, _, role, code in ROWS:
        by_words[words, code].append("model" if role == MODEL else role)
    said = [f"| {words} | {', '.join(roles)} | {code} |" for (words, code), roles in by_words.items()]
    page = PAGE.read_text()
    assert [line for line in said if line not in page] == []
