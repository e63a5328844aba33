"""The trust repository: what is signed, by whom, what waits, what expires, and where no key ever is."""

import json
import threading
from pathlib import Path

import pytest

from cloud_registry.adapters.signing_keys import SigningKeys
from cloud_registry.adapters.trust_memory import FolderMemory
from cloud_registry.adapters.tuf_repository import TufFolder, read_staged, write_staged
from cloud_registry.errors import ConflictError, NotFoundError, RegistryError, TrustError, UsageError
from cloud_registry.service.trust import NewRepository, TrustService, check_pinned
from cloud_registry.service.trust_desk import TrustDesk
from manifests.identity import ModelReference
from tests.trust_repositories import Publisher, model_file, no_secret

ONE = model_file("digits:1", b"one")
TWO = model_file("digits:2", b"two")
OTHER = model_file("wakeword:1", b"other")


@pytest.fixture
def publisher(tmp_path):
    return Publisher(tmp_path)


def waiting(outcome) -> list[tuple[str, int]]:
    return [(one.role, one.needed) for one in outcome.waiting]


def test_a_new_repository_has_offline_root_and_targets_keys_elsewhere_and_online_keys_with_it(publisher):
    assert publisher.first.published == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}
    assert sorted(publisher.files) == ["1.root.json", "1.snapshot.json", "1.targets.json", "timestamp.json"]
    kept = sorted(str(path.relative_to(publisher.store.directory)) for path in publisher.store.directory.rglob("*.pem"))
    assert kept == ["keys/snapshot-1.pem", "keys/timestamp-1.pem"]
    root = publisher.read("root").signed
    assert {role: (keys.threshold, len(keys.keyids)) for role, keys in root.roles.items()} == {
        "root": (2, 3), "targets": (1, 1), "snapshot": (1, 1), "timestamp": (1, 1),
    }  # fmt: skip
    with pytest.raises(ConflictError, match="there is a trust repository"):
        publisher.service.init(NewRepository((publisher.key("a"),), (publisher.key("b"),)))
    assert not Path(publisher.key("a")).exists(), "no key was made for nothing"


def test_only_its_owner_may_read_a_key_and_none_is_written_over(publisher):
    for path in (*publisher.safe.iterdir(), *(publisher.store.directory / "keys").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError, match="is there already"):
        publisher.keys.create(publisher.keys.place(publisher.key("root-1")), has_passphrase=False)


def test_nothing_but_the_key_files_ever_holds_a_private_key(publisher, caplog):
    publisher.sign(ONE)
    publisher.service.rotate("model-digits", [publisher.key("team")])
    publisher.take_away("team")
    publisher.sign(TWO)
    secrets = [
        line
        for folder in (publisher.safe, publisher.store.directory / "keys")
        for path in folder.iterdir()
        for line in path.read_text().splitlines()
        if "PRIVATE KEY" not in line
    ]
    assert secrets
    others = [path for path in publisher.store.directory.rglob("*") if path.is_file() and path.suffix != ".pem"]
    assert "staged.json" in {path.name for path in others}
    texts = [*(path.read_text() for path in others), caplog.text]
    assert not [line for line in secrets for text in texts if line in text]


def test_a_version_is_allowed_by_the_digest_of_each_of_its_files(publisher):
    with pytest.raises(TrustError, match="digits:1 and digits:2 are not signed: devices would refuse digits/1/") as err:
        publisher.desk.check([ONE, TWO])
    assert err.value.hint == "Sign with: slipway trust sign digits:1 digits:2"
    assert publisher.sign(ONE).published == {"targets": 2, "model-digits": 1, "snapshot": 2, "timestamp": 2}
    publisher.desk.check([ONE])
    # Other bytes under the same name are something else.
    assert publisher.service.unsigned([model_file("digits:1", b"swapped")]) != []
    assert publisher.sign(ONE).published == {}, "what is signed already is not signed again"
    assert publisher.sign(TWO).published == {"model-digits": 2, "snapshot": 3, "timestamp": 3}
    info = publisher.read("model-digits").signed.targets["digits/2/model.onnx"]
    assert (info.length, info.custom) == (3, {"model": "digits", "version": 2})
    publisher.desk.check([ONE, TWO])


def test_a_version_that_is_taken_back_is_no_longer_allowed(publisher):
    publisher.sign(ONE, TWO)
    publisher.service.sign(withdrawn=[ModelReference("digits", 1)])
    assert publisher.service.unsigned([ONE, TWO]) == [ONE]
    with pytest.raises(NotFoundError, match="digits:1 is not signed"):
        publisher.service.sign(withdrawn=[ModelReference("digits", 1)])


def test_every_model_has_a_role_of_its_own_and_a_team_may_hold_its_keys(publisher):
    publisher.sign(ONE, OTHER)
    delegations = publisher.read("targets").signed.delegations
    assert {name: role.paths for name, role in delegations.roles.items()} == {
        "model-digits": ["digits/*/*"], "model-wakeword": ["wakeword/*/*"],
    }  # fmt: skip
    outcome = publisher.service.rotate("model-digits", [publisher.key("team")])
    assert outcome.published == {"targets": 3, "model-digits": 2, "snapshot": 3, "timestamp": 3}
    publisher.take_away("team")
    outcome = publisher.sign(TWO)
    assert waiting(outcome) == [("model-digits", 1)]
    assert publisher.service.unsigned([TWO]) == [TWO]
    publisher.take_away("targets-1")
    publisher.bring("team")
    assert publisher.service.sign().published == {"model-digits": 3, "snapshot": 4, "timestamp": 4}
    publisher.desk.check([ONE, TWO, OTHER])


@pytest.mark.parametrize("name", ["root", "targets", "snapshot", "timestamp"])
def test_a_model_may_be_called_like_a_role(publisher, name):
    file = model_file(f"{name}:1", b"bytes")
    publisher.sign(file)
    publisher.desk.check([file])


def test_a_model_with_more_versions_than_devices_read_of_is_refused_before_anything_is_written(publisher):
    long = "x" * 2000
    publisher.sign(*(model_file(f"digits:{number}", b"bytes", long) for number in range(1, 1500)))
    before = publisher.files
    with pytest.raises(RegistryError, match=r"model-digits would have .* bytes, and devices read 5,000,000"):
        publisher.sign(*(model_file(f"digits:{number}", b"bytes", long) for number in range(1500, 3000)))
    assert publisher.files == before
    assert publisher.store.staged() == {}
    publisher.sign(OTHER)


# Thresholds -----------------------------------------------------------------------------------------------------------


def test_what_lacks_signatures_waits_and_nothing_of_it_is_published(tmp_path):
    keys = tuple(str(tmp_path / "safe" / f"targets-{number}.pem") for number in (1, 2, 3))
    publisher = Publisher(tmp_path, targets_keys=keys, targets_threshold=2)
    publisher.take_away("targets-1", "targets-2", "targets-3")
    before = publisher.files
    outcome = publisher.sign(ONE)
    assert waiting(outcome) == [("targets", 2), ("model-digits", 2)]
    assert len(outcome.waiting[0].missing) == 3
    publisher.bring("targets-3")
    assert waiting(publisher.service.sign()) == [("targets", 1), ("model-digits", 1)]
    assert waiting(publisher.service.sign()) == [("targets", 1), ("model-digits", 1)], "a key counts once"
    assert publisher.files == before
    # Another version is added to what waits: who signed the first must sign again.
    publisher.take_away("targets-3")
    assert waiting(publisher.sign(TWO)) == [("targets", 1), ("model-digits", 2)]
    publisher.bring("targets-1", "targets-2")
    assert publisher.service.sign().published == {"targets": 2, "model-digits": 1, "snapshot": 2, "timestamp": 2}
    publisher.desk.check([ONE, TWO])


def test_what_waits_for_a_person_does_not_keep_the_timestamp_from_being_refreshed(publisher):
    publisher.sign(ONE)
    publisher.take_away("targets-1")
    publisher.sign(TWO)
    for version in (3, 4, 5):
        publisher.later(days=5)
        outcome = publisher.service.refresh()
        assert outcome.published["timestamp"] == version
        assert waiting(outcome) == [("model-digits", 1)]
        assert publisher.service.state().problems == ()
    assert publisher.service.unsigned([ONE, TWO]) == [TWO]
    publisher.bring("targets-1")
    assert publisher.service.sign().published["model-digits"] == 2


def test_a_model_that_lacks_nothing_does_not_wait_for_what_others_began(publisher):
    publisher.sign(ONE, OTHER)
    publisher.service.rotate("model-digits", [publisher.key("team")])
    publisher.take_away("team")
    assert waiting(publisher.sign(TWO)) == [("model-digits", 1)]
    more = model_file("wakeword:2", b"more")
    outcome = publisher.sign(more)
    assert waiting(outcome) == [("model-digits", 1)]
    assert outcome.published == {"model-wakeword": 2, "snapshot": 4, "timestamp": 4}
    assert publisher.service.unsigned([ONE, TWO, OTHER, more]) == [TWO]
    assert list(publisher.store.staged()) == ["model-digits"]
    # New keys of a model wait with the role that names them.
    publisher.take_away("targets-1")
    outcome = publisher.service.rotate("model-wakeword", [publisher.key("ears")])
    assert [role for role, _ in waiting(outcome)] == ["model-digits", "targets"]
    assert outcome.published == {}
    publisher.bring("team", "targets-1")
    assert set(publisher.service.sign().published) == {
        "targets", "model-digits", "model-wakeword", "snapshot", "timestamp",
    }  # fmt: skip
    publisher.desk.check([ONE, TWO, OTHER, more])


def test_many_at_once_on_one_machine_lose_nothing(publisher):
    """Each command is a process of its own to the lock, which is a file's."""
    models = [f"m{number}" for number in range(4)]
    publisher.sign(*(model_file(f"{model}:1", b"first") for model in models))
    refused: list[ConflictError] = []

    def work(model: str) -> None:
        store = TufFolder(publisher.store.directory)
        desk = TrustDesk(store, publisher.keys, lambda: publisher.now)
        service = TrustService(desk, FolderMemory(store, publisher.safe), publisher.keys, lambda: publisher.now)
        for version in (2, 3):
            desk.refresh(force=True)
            while model_file(f"{model}:{version}", b"next") in service.unsigned(
                [model_file(f"{model}:{version}", b"next")]
            ):
                try:
                    service.sign([model_file(f"{model}:{version}", b"next")])
                except ConflictError as err:
                    refused.append(err)

    threads = [threading.Thread(target=work, args=(model,)) for model in (*models, "m0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all("was changed since" in err.message or "would be the next" in err.message for err in refused)
    assert publisher.service.state().problems == ()
    assert publisher.store.staged() == {}
    publisher.desk.check(model_file(f"{model}:{version}", b"next") for model in models for version in (2, 3))


def test_what_waits_can_be_thrown_away(publisher):
    publisher.take_away("targets-1")
    publisher.sign(ONE)
    assert publisher.service.discard() == ["targets", "model-digits"]
    publisher.bring("targets-1")
    assert publisher.service.sign().published == {}
    assert publisher.sign(TWO).published["model-digits"] == 1


def test_a_new_root_needs_the_old_keys_and_the_new_ones(publisher):
    publisher.take_away("root-1", "root-2")
    outcome = publisher.service.rotate("root", [publisher.key("root-4"), publisher.key("root-5")], threshold=2)
    assert waiting(outcome) == [("root", 1)], "both new keys and one of the old have signed"
    assert "2.root.json" not in publisher.files
    publisher.bring("root-2")
    assert publisher.service.sign().published == {"root": 2}
    publisher.take_away("root-2", "root-3")
    # The old ones have no say any more.
    assert publisher.service.rotate("timestamp", []).published == {"root": 3, "timestamp": 2}


@pytest.mark.parametrize(
    ("names", "threshold", "words"),
    [([], None, "no key for root"), (["a", "a"], 1, "named twice"), (["a"], 2, "2 of 1 keys cannot sign for root")],
)
def test_keys_that_cannot_do_are_refused_before_one_is_made(publisher, names, threshold, words):
    with pytest.raises(UsageError, match=words):
        publisher.service.rotate("root", [publisher.key(name) for name in names], threshold=threshold)
    assert not Path(publisher.key("a")).exists()


def test_an_offline_key_does_not_belong_into_the_repository(publisher):
    inside = str(publisher.store.directory / "keys" / "root-9.pem")
    with pytest.raises(UsageError, match="whoever breaks in finds it"):
        publisher.service.rotate("root", [inside])


def test_a_key_that_was_replaced_at_its_place_is_told(publisher):
    Path(publisher.key("root-1")).replace(publisher.key("targets-1"))
    outcome = publisher.sign(ONE)
    assert waiting(outcome) == [("targets", 1), ("model-digits", 1)]
    assert outcome.unavailable == (f"there is another key at file:{publisher.key('targets-1')} now",)


# Another machine ------------------------------------------------------------------------------------------------------


def test_a_machine_without_a_network_signs_what_another_has_staged(publisher, tmp_path):
    publisher.take_away("targets-1")
    publisher.sign(ONE)
    carried = tmp_path / "carried.json"
    carried.write_bytes(publisher.store.staged_path.read_bytes())
    publisher.bring("targets-1")
    elsewhere = TrustService(publisher.desk, publisher.memory, SigningKeys(no_secret), lambda: publisher.now)
    stage = read_staged(carried)
    check_pinned(publisher.store.root_chain()[0], stage.chain)
    signed, outcome = elsewhere.sign_elsewhere(stage.chain, stage.published, stage.staged, [publisher.key("targets-1")])
    assert outcome.waiting == ()
    key_id = publisher.read("root").signed.roles["targets"].keyids[0]
    assert outcome.changes == (
        f"targets version 2: + keys of model-digits 1 of {key_id[:8]}",
        f"model-digits version 1: + digits/1/model.onnx {ONE.digest}",
    )
    write_staged(publisher.store.staged_path, type(stage)(stage.chain, stage.published, signed))
    publisher.take_away("targets-1")
    assert publisher.service.sign().published["model-digits"] == 1
    publisher.desk.check([ONE])


def test_nothing_is_signed_for_somebody_elses_repository(publisher, tmp_path):
    theirs = Publisher(tmp_path / "theirs")
    with pytest.raises(TrustError, match="another one than devices have pinned"):
        theirs.service.check_root(publisher.store.root_chain()[0])
    publisher.service.check_root(publisher.store.root_chain()[0])
    # Nor upon roles that somebody has changed on the way.
    theirs.sign(ONE)
    theirs.take_away("targets-1")
    theirs.sign(TWO)
    value = json.loads(theirs.store.staged_path.read_bytes())
    value["published"]["model-digits"]["signed"]["targets"]["digits/7/model.onnx"] = {
        "length": 4, "hashes": {"sha256": "0" * 64},
    }  # fmt: skip
    theirs.store.staged_path.write_text(json.dumps(value))
    stage = read_staged(theirs.store.staged_path)
    theirs.bring("targets-1")
    with pytest.raises(TrustError, match="not signed by the keys that speak for it"):
        theirs.service.sign_elsewhere(stage.chain, stage.published, stage.staged, [theirs.key("targets-1")])


def test_what_somebody_put_into_the_folder_is_not_signed_along(publisher):
    """Whoever owns the registry's machine waits for the owner of the keys to build upon what they have put there."""
    publisher.sign(ONE)
    path = publisher.store.metadata / "1.model-digits.json"
    value = json.loads(path.read_bytes())
    value["signed"]["targets"]["digits/2/model.onnx"] = {"length": 4, "hashes": {"sha256": "0" * 64}}
    path.write_text(json.dumps(value))
    with pytest.raises(TrustError, match="model-digits, version 1, is not signed by the keys that speak for it"):
        publisher.sign(TWO)
    with pytest.raises(TrustError, match="devices would refuse every update: model-digits is not signed"):
        publisher.desk.check([ONE])


# Expiry ---------------------------------------------------------------------------------------------------------------


def test_a_program_signs_again_when_half_of_a_life_is_over(publisher):
    publisher.later(days=3)
    assert publisher.service.refresh().published == {}
    assert publisher.service.refresh(force=True).published == {"snapshot": 2, "timestamp": 2}
    publisher.later(days=3.5)
    assert publisher.service.refresh().published == {"timestamp": 3}
    publisher.later(days=15)
    assert publisher.service.refresh().published == {"snapshot": 3, "timestamp": 4}


def test_a_server_keeps_it_fresh_and_logs_what_is_due_once_a_day(publisher, caplog):
    publisher.later(days=4)
    publisher.desk.keep_fresh()
    assert publisher.read("timestamp").signed.version == 2
    for _ in range(51):
        publisher.later(days=3)
        publisher.desk.keep_fresh()
        publisher.desk.keep_fresh()
    assert publisher.service.state().problems == ()
    said = [record.message.partition(", at")[0] for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["targets expires in 25 days", "targets expires in 22 days"]
    caplog.clear()
    (publisher.store.directory / "keys" / "timestamp-1.pem").unlink()
    for _ in range(3):
        publisher.later(days=4)
        publisher.desk.keep_fresh()
    assert len([record for record in caplog.records if "timestamp cannot be signed" in record.message]) == 1
    empty = TrustDesk(type(publisher.store)(publisher.safe / "nowhere"), publisher.keys, lambda: publisher.now)
    empty.keep_fresh()


def test_what_a_person_must_sign_again_is_announced_weeks_ahead(publisher):
    publisher.sign(ONE)
    for _ in range(15):
        assert publisher.service.state().announcements == ()
        publisher.later(days=10)
        publisher.service.refresh()
    publisher.later(days=2.5)
    publisher.service.refresh()
    said = publisher.service.state().announcements
    assert [sentence.partition(", at ")[0] for sentence in said] == [
        "targets expires in 27 days", "model-digits expires in 27 days",
    ]  # fmt: skip
    assert said[1].endswith("Run: slipway trust refresh --role model:digits")
    publisher.service.refresh(["targets", "model-digits"])
    assert publisher.service.state().announcements == ()


@pytest.mark.parametrize(("role", "days"), [("timestamp", 8), ("snapshot", 31), ("targets", 181), ("root", 366)])
def test_what_has_expired_is_told_and_no_rollout_starts(tmp_path, role, days):
    publisher = Publisher(tmp_path)
    publisher.sign(ONE)
    publisher.later(days=days)
    problems = publisher.service.state().problems
    assert any(problem.startswith(f"{role} expired at ") for problem in problems)
    with pytest.raises(TrustError, match="devices would refuse every update: "):
        publisher.desk.check([ONE])
    publisher.service.refresh(["root", "targets", "model-digits"])
    assert publisher.service.state().problems == ()
    publisher.desk.check([ONE])


def test_an_online_role_that_nobody_refreshes_is_announced_too(publisher):
    publisher.later(days=5.5)
    (said,) = publisher.service.state().announcements
    assert said.startswith("timestamp expires in 36 hours, at ")
    assert said.endswith("Run: slipway trust refresh")


def test_lifetimes_are_those_that_were_asked_for(tmp_path):
    publisher = Publisher(tmp_path, lifetimes_d={"timestamp": 1, "targets": 30})
    left = {state.role: state.expires_at - publisher.now for state in publisher.service.state().roles}
    assert {role: round(span.total_seconds() / 86400) for role, span in left.items()} == {
        "root": 365, "targets": 30, "snapshot": 30, "timestamp": 1,
    }  # fmt: skip
    publisher.sign(ONE)
    publisher.later(days=19)
    assert not any("model-digits" in said for said in publisher.service.state().announcements)
    publisher.later(days=1.5)
    assert any("model-digits expires in 9 days" in said for said in publisher.service.state().announcements)


def test_new_keys_of_targets_leave_the_old_ones_nothing_to_say(publisher):
    """A stolen key must not go on speaking for the models that it spoke for."""
    publisher.sign(ONE, OTHER)
    publisher.service.rotate("model-wakeword", [publisher.key("team")])
    old, team = (publisher.read("root").signed.roles["targets"].keyids[0], publisher.read("targets").signed)
    team_id = team.delegations.roles["model-wakeword"].keyids[0]
    outcome = publisher.service.rotate("targets", [publisher.key("targets-2")])
    assert outcome.published == {"root": 2, "targets": 4, "model-digits": 2, "snapshot": 4, "timestamp": 4}
    delegated = publisher.read("targets").signed.delegations
    assert old not in delegated.keys
    assert delegated.roles["model-wakeword"].keyids == [team_id], "what a team holds stays in its hands"
    publisher.take_away("targets-1")
    publisher.sign(TWO)
    publisher.desk.check([ONE, TWO, OTHER])


# Keys that are lost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_an_online_key_that_is_lost_is_replaced_by_the_keys_of_root(publisher, role):
    (publisher.store.directory / "keys" / f"{role}-1.pem").unlink()
    with pytest.raises(TrustError, match=f"{role} cannot be signed: its key is not at file:") as err:
        publisher.sign(ONE)
    assert err.value.hint.endswith(f"slipway trust rotate {role}")
    assert publisher.service.unsigned([ONE]) == [ONE]
    outcome = publisher.service.rotate(role, [])
    assert outcome.published["root"] == 2
    assert publisher.service.unsigned([ONE]) == [ONE], "what was refused is not done later, unasked"
    publisher.sign(ONE)
    publisher.desk.check([ONE])


def test_a_lost_online_key_is_replaced_though_its_role_expires_meanwhile(publisher):
    (publisher.store.directory / "keys" / "timestamp-1.pem").unlink()
    publisher.later(days=6)
    publisher.take_away("root-1", "root-2")
    outcome = publisher.service.rotate("timestamp", [])
    assert waiting(outcome) == [("root", 1)]
    assert "timestamp cannot be signed" in outcome.unavailable[-1]
    publisher.bring("root-2")
    assert publisher.service.sign().published == {"root": 2, "timestamp": 2}


@pytest.mark.parametrize("role", ["targets", "root", "model-digits"])
def test_a_new_key_that_is_lost_before_it_was_published_is_replaced_by_another(publisher, role):
    """In the midst of a rotation: what waits names a key that nobody has any more."""
    publisher.sign(ONE)
    publisher.take_away("root-1", "root-2", "root-3", "targets-1")
    outcome = publisher.service.rotate(role, [publisher.key("lost")])
    assert outcome.published == {}
    Path(publisher.key("lost")).unlink()
    publisher.bring("root-1", "root-2", "root-3", "targets-1")
    publisher.service.rotate(role, [publisher.key("found")])
    publisher.sign(TWO)
    state = publisher.service.state()
    assert (state.problems, state.waiting) == ((), ())
    publisher.desk.check([ONE, TWO])


def test_a_rotation_whose_new_key_is_lost_can_be_thrown_away(publisher):
    publisher.take_away("root-1", "root-2", "root-3")
    publisher.service.rotate("root", [publisher.key("lost")])
    Path(publisher.key("lost")).unlink()
    publisher.bring("root-1", "root-2", "root-3")
    assert publisher.service.discard() == ["root"]
    publisher.sign(ONE)
    assert publisher.read("root").signed.version == 1


def test_of_three_root_keys_one_may_be_lost(publisher):
    Path(publisher.key("root-2")).unlink()
    fresh = [publisher.key(f"root-{number}") for number in (1, 3, 4)]
    assert publisher.service.rotate("root", fresh, threshold=2).published == {"root": 2}
    assert len(publisher.read("root").signed.roles["root"].keyids) == 3


def test_keys_that_others_may_read_are_told_and_made_so_that_nobody_may(tmp_path):
    said: list[str] = []
    keys = SigningKeys(no_secret, say=said.append)
    place = keys.place(str(tmp_path / "safe" / "root.pem"))
    keys.create(place, has_passphrase=False)
    assert (tmp_path / "safe").stat().st_mode & 0o777 == 0o700
    assert said == []
    (tmp_path / "safe").chmod(0o755)
    keys.create(keys.place(str(tmp_path / "safe" / "other.pem")), has_passphrase=False)
    (tmp_path / "safe" / "root.pem").chmod(0o644)
    keys.open(place)
    keys.open(place)
    assert [line.partition(": ")[2].split(" /")[0] for line in said] == [
        "others than its owner may look into the folder of keys", "others than its owner may read the key",
    ]  # fmt: skip
    assert said[1].endswith(f"Mend it with: chmod 600 {tmp_path}/safe/root.pem")


def test_two_commands_at_once_do_not_mix(publisher):
    with publisher.store.locked(), pytest.raises(ConflictError, match="another command is changing"):
        publisher.sign(ONE)


def test_without_a_repository_nothing_is_asked_and_a_command_says_so(tmp_path):
    publisher = Publisher(tmp_path)
    empty = TrustDesk(type(publisher.store)(tmp_path / "nowhere"), publisher.keys, lambda: publisher.now)
    empty.check([ONE])
    for command in (empty.state, empty.stand, empty.refresh):
        with pytest.raises(NotFoundError, match="there is no trust repository") as err:
            command()
        assert err.value.hint == "Make one with: slipway trust init"


# Passphrases ----------------------------------------------------------------------------------------------------------


def test_a_key_may_be_locked_with_a_passphrase(tmp_path):
    asked: list[tuple[str, bool]] = []
    answers = {"words": "a long sentence"}

    def secret(what: str, is_new: bool) -> str | None:
        asked.append((what, is_new))
        return answers["words"]

    publisher = Publisher(tmp_path, secret)
    assert all(is_new for _, is_new in asked)
    assert len(asked) == 4, "nobody is asked for the online keys"
    assert b"ENCRYPTED" in Path(publisher.key("targets-1")).read_bytes()
    publisher.sign(ONE)
    assert asked[-1] == (f"passphrase of the key {publisher.key('targets-1')}", False)
    answers["words"] = "wrong"
    outcome = publisher.sign(TWO)
    assert waiting(outcome) == [("model-digits", 1)]
    assert "or its passphrase is another one" in outcome.unavailable[0]
    with pytest.raises(TrustError, match="its passphrase is another one"):
        publisher.service.sign(keys=[publisher.key("targets-1")])


def test_what_is_no_key_is_told_without_being_quoted(publisher):
    path = Path(publisher.key("note"))
    path.write_text("the PIN is 4711")
    with pytest.raises(TrustError, match="is no private key that signs") as err:
        publisher.service.sign(keys=[str(path)])
    assert "4711" not in str(err.value)
    with pytest.raises(NotFoundError, match="cannot be read"):
        publisher.service.sign(keys=[publisher.key("nowhere")])


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pkcs11:token=a;id=%01?pin-value=1234&module-path=/lib/x.so", "a PIN in a URI is read by everyone"),
        ("pkcs11:id=%01?module-path=/lib/x.so", "names no token, or no id"),
        ("pkcs11:token=a?module-path=/lib/x.so", "names no token, or no id"),
        ("pkcs11:token=a;id=%01", "names no module"),
    ],
)
def test_a_pkcs11_uri_names_token_key_and_module_and_never_the_pin(publisher, uri, words):
    with pytest.raises(UsageError, match=words) as err:
        publisher.service.sign(keys=[uri])
    assert "1234" not in err.value.message


def test_whatever_step_of_a_publication_is_the_last_one_the_next_command_goes_on(publisher, monkeypatch):
    """As if the process was killed between two files, for a change of every key."""
    publisher.sign(ONE)
    steps = 0
    for stop_after in range(8):
        publisher.later(hours=1)
        count = {"left": stop_after}

        def publish(files, count=count):
            for name, content in files:
                if not count["left"]:
                    raise KeyboardInterrupt
                count["left"] -= 1
                type(publisher.store).publish(publisher.store, [(name, content)])

        monkeypatch.setattr(publisher.store, "publish", publish)
        try:
            publisher.service.rotate("timestamp", [])
            publisher.service.rotate("targets", [publisher.key(f"targets-{stop_after + 10}")])
        except KeyboardInterrupt:
            steps += 1
        monkeypatch.undo()
        publisher.service.refresh()
        assert publisher.service.state().problems == ()
        publisher.desk.check([ONE])
        assert publisher.store.staged() == {}
    assert steps >= 6
