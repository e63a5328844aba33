"""python-tuf's list of attacks, on a repository that the registry made, against the agent's own client over HTTP.

The attacker owns the registry's machine and its network: every file that is served, and the online keys where a story
says so. The keys of root and targets are in the safe.
"""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, TargetFile

from tests.trust_repositories import Publisher, model_file
from tests.wire.agent.rough_server import RoughServer
from tests.wire.registry.trust_attack import Attack

pytestmark = [pytest.mark.wire, pytest.mark.timeout(60)]

ONE, TWO, EVIL = (
    model_file(f"digits:{number}", content) for number, content in ((1, b"one"), (2, b"two"), (3, b"evil"))
)


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Attack]:
    publisher = Publisher(tmp_path)
    publisher.sign(ONE)
    server = RoughServer()
    made = Attack(tmp_path, server, publisher)
    assert made.verdict(ONE) == "allowed"
    yield made
    server.stop()


def test_arbitrary_installation_a_file_that_nobody_signed_or_with_other_bytes(attack):
    assert attack.verdict(EVIL) == "TRUST_UNKNOWN_TARGET"
    assert attack.verdict(model_file("digits:1", b"EVIL")) == "TRUST_TARGET_MISMATCH"
    assert attack.verdict(model_file("digits:1", b"one, longer")) == "TRUST_TARGET_MISMATCH"


def test_wrong_software_a_signed_file_under_another_versions_name(attack):
    renamed = model_file("digits:2", b"one")
    assert (
        attack.verdict(type(ONE)(ONE.target, ONE.digest, ONE.size_bytes, renamed.reference)) == "TRUST_TARGET_MISMATCH"
    )


def test_arbitrary_installation_with_the_online_keys_stolen(attack):
    """They can say what is new, not what is allowed."""
    model = deepcopy(attack.publisher.read("model-digits"))
    model.signed.version += 1
    model.signed.targets[EVIL.target] = TargetFile(4, {"sha256": EVIL.digest[7:]}, EVIL.target)
    thief = CryptoSigner.generate_ed25519()
    for number, signers in enumerate(((), (attack.online("snapshot"), attack.online("timestamp")), (thief,)), start=1):
        content = attack.serve("2.model-digits.json", model, *signers)
        attack.serve_online({"model-digits": content}, raised=number)
        assert attack.verdict(EVIL) == "TRUST_BAD_SIGNATURE"
    attack.served.clear()
    for role in ("snapshot", "timestamp"):
        attack.publisher.service.rotate(role, [])
    assert attack.verdict(ONE) == "allowed", "new keys bring the device back"


def test_a_delegation_to_keys_of_their_own_is_not_believed(attack):
    thief = CryptoSigner.generate_ed25519()
    targets = deepcopy(attack.publisher.read("targets"))
    targets.signed.version += 1
    targets.signed.add_key(thief.public_key, "model-digits")
    attack.serve_online({"targets": attack.serve("3.targets.json", targets, thief)})
    assert attack.verdict(ONE) == "TRUST_BAD_SIGNATURE"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "model-digits"])
def test_rollback_to_metadata_that_was_good_once(attack, role):
    """A version was taken back, and an old role would still vouch for it; the online keys are theirs."""
    old = attack.publisher.files
    old_versions = {name: metadata.signed.version for name, metadata in attack.publisher.store.published().items()}
    attack.publisher.service.sign(withdrawn=[ONE.reference])
    attack.publisher.service.refresh(["targets"])
    assert attack.verdict(ONE) == "TRUST_UNKNOWN_TARGET"
    if role == "timestamp":
        attack.served["timestamp.json"] = old["timestamp.json"]
    elif role == "snapshot":
        timestamp = deepcopy(attack.publisher.read("timestamp"))
        timestamp.signed.version += 1
        content = old[f"{old_versions['snapshot']}.snapshot.json"]
        timestamp.signed.snapshot_meta = MetaFile.from_data(old_versions["snapshot"], content, ["sha256"])
        attack.serve("timestamp.json", timestamp, attack.online("timestamp"))
    else:
        attack.serve_online({role: old[f"{old_versions[role]}.{role}.json"]})
    assert attack.verdict(ONE) == "TRUST_ROLLBACK"


def test_freeze_the_same_answer_for_ever_is_noticed_when_the_timestamp_expires(tmp_path):
    """The publisher goes on, the device hears the answer of eight days ago."""
    publisher = Publisher(tmp_path)
    publisher.now -= timedelta(days=8)
    publisher.service.refresh(force=True)
    publisher.sign(ONE)
    frozen = publisher.files
    publisher.now += timedelta(days=8)
    publisher.service.refresh()
    publisher.sign(TWO)
    server = RoughServer()
    try:
        attack = Attack(tmp_path, server, publisher)
        attack.served = dict.fromkeys(publisher.files) | frozen
        assert attack.verdict(TWO) == "TRUST_EXPIRED"
        attack.served.clear()
        assert attack.verdict(TWO) == "allowed"
    finally:
        server.stop()


@pytest.mark.parametrize("role", ["snapshot", "targets", "model-digits"])
def test_mix_and_match_pieces_that_never_stood_together(attack, role):
    before = attack.publisher.store.published()[role].signed.version
    old = attack.publisher.files[f"{before}.{role}.json"]
    attack.publisher.service.refresh(["targets", "model-digits"])
    now = attack.publisher.store.published()[role].signed.version
    attack.served[f"{now}.{role}.json"] = old
    assert attack.verdict(ONE) == "TRUST_BAD_METADATA"


@pytest.mark.parametrize("stolen", [0, 1])
def test_wrong_thresholds_fewer_root_keys_than_it_takes_make_no_root(attack, stolen):
    thief = CryptoSigner.generate_ed25519()
    root = deepcopy(attack.publisher.read("root"))
    root.signed.version += 1
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.signed.add_key(thief.public_key, role)
        root.signed.roles[role].threshold = 1
    keys = [
        attack.publisher.keys.open(f"file:{attack.publisher.key(f'root-{number + 1}')}") for number in range(stolen)
    ]
    attack.serve("2.root.json", root, thief, *keys)
    assert attack.verdict(ONE) == "TRUST_BAD_SIGNATURE"


def test_one_root_key_twice_is_one_key(attack):
    root = deepcopy(attack.publisher.read("root"))
    root.signed.version += 1
    attack.serve("2.root.json", root, attack.publisher.keys.open(f"file:{attack.publisher.key('root-1')}"))
    value = json.loads(attack.served["2.root.json"])
    value["signatures"] *= 2
    attack.served["2.root.json"] = json.dumps(value).encode()
    assert attack.verdict(ONE) in ("TRUST_BAD_SIGNATURE", "TRUST_BAD_METADATA")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "model-digits"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 9, b'{"signed":', None], ids=repr)
def test_whatever_stands_in_the_place_of_metadata_nothing_is_installed(attack, role, content):
    attack.publisher.sign(TWO)
    version = attack.publisher.read(role).signed.version
    # What a device has seen before it need not ask for again.
    shutil.rmtree(attack.directory / "device")
    attack.served = {"timestamp.json" if role == "timestamp" else f"{version}.{role}.json": content}
    assert attack.verdict(TWO) in ("TRUST_BAD_METADATA", "TRUST_UNREACHABLE")


def test_another_owners_repository_whole_and_in_good_order(attack, tmp_path):
    theirs = Publisher(tmp_path / "theirs")
    theirs.sign(EVIL)
    attack.served = {**dict.fromkeys(attack.publisher.files), **theirs.files}
    assert attack.verdict(EVIL) == "TRUST_BAD_SIGNATURE"


def test_a_team_speaks_for_its_own_model_only(attack):
    publisher = attack.publisher
    publisher.service.rotate("model-digits", [publisher.key("team")])
    publisher.sign(other := model_file("wakeword:1", b"other"))
    team = publisher.keys.open(f"file:{publisher.key('team')}")
    # Their own role names a file of another model, and their key signs another model's role.
    model = deepcopy(publisher.read("model-digits"))
    model.signed.version += 1
    evil = model_file("wakeword:2", b"evil")
    model.signed.targets[evil.target] = TargetFile(4, {"sha256": evil.digest[7:]}, evil.target)
    attack.serve_online({"model-digits": attack.serve(f"{model.signed.version}.model-digits.json", model, team)})
    assert attack.verdict(evil) == "TRUST_UNKNOWN_TARGET"
    shutil.rmtree(attack.directory / "device")
    wakeword = deepcopy(publisher.read("model-wakeword"))
    wakeword.signed.version += 1
    attack.serve_online(
        {"model-wakeword": attack.serve(f"{wakeword.signed.version}.model-wakeword.json", wakeword, team)}, 2
    )
    assert attack.verdict(other) == "TRUST_BAD_SIGNATURE"


def test_fast_forward_with_stolen_online_keys_is_healed_by_new_ones(attack):
    publisher = attack.publisher
    attack.serve_online({}, raised=99_000)
    assert attack.verdict(ONE) == "allowed"
    attack.served.clear()
    publisher.sign(TWO)
    assert attack.verdict(TWO) == "TRUST_ROLLBACK"
    publisher.service.rotate("snapshot", [])
    publisher.service.rotate("timestamp", [])
    assert attack.verdict(TWO) == "allowed"


def test_stolen_keys_that_were_replaced_sign_nothing_any_more(attack):
    publisher = attack.publisher
    thief = attack.online("timestamp"), attack.online("snapshot")
    publisher.service.rotate("timestamp", [])
    publisher.service.rotate("targets", [publisher.key("targets-2")])
    publisher.sign(TWO)
    assert attack.verdict(TWO) == "allowed"
    timestamp = deepcopy(publisher.read("timestamp"))
    timestamp.signed.version += 1
    attack.serve("timestamp.json", timestamp, *thief)
    assert attack.verdict(TWO) == "TRUST_BAD_SIGNATURE"


@pytest.mark.parametrize("change", ["every key in turn", "a new version"])
def test_a_device_that_looks_between_any_two_files_of_a_publication_finds_nothing_wrong(attack, change, monkeypatch):
    publisher = attack.publisher
    verdicts: list[str] = []

    def publish(files):
        for file in files:
            type(publisher.store).publish(publisher.store, [file])
            verdicts.append(f"{file[0]} {attack.verdict(ONE)}")

    monkeypatch.setattr(publisher.store, "publish", publish)
    if change == "a new version":
        publisher.sign(TWO, model_file("wakeword:1", b"other"))
    else:
        for role in ("timestamp", "snapshot"):
            publisher.service.rotate(role, [])
        publisher.service.rotate("targets", [publisher.key("targets-2")])
        publisher.service.rotate("model-digits", [publisher.key("team")])
        publisher.service.rotate("root", [publisher.key("root-4"), publisher.key("root-5")])
    assert len(verdicts) >= 4
    assert [verdict for verdict in verdicts if not verdict.endswith(" allowed")] == []


def test_a_device_that_slept_through_every_change_of_keys_finds_its_way(attack):
    publisher = attack.publisher
    publisher.service.rotate("root", [publisher.key("root-4"), publisher.key("root-5")])
    publisher.take_away("root-1", "root-2", "root-3")
    for role in ("timestamp", "snapshot"):
        publisher.service.rotate(role, [])
    publisher.service.rotate("targets", [publisher.key("targets-2")])
    publisher.sign(TWO)
    assert attack.verdict(TWO) == "allowed"
