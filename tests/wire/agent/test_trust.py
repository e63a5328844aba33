"""Attacks on the signed metadata, after those of python-tuf's own repository simulator, over a real HTTP server."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from device_agent.adapters.tuf_trust import TufTrust
from device_agent.adapters.web_client import WebClient
from device_agent.errors import DownloadError
from device_agent.ports import RemoteFile
from manifests.canonical import digest_of
from tests.tuf_repository import LIFETIME, TufRepository, described, in_time, signed_by
from tests.wire.agent import rough_server as rough
from tests.wire.agent.rough_server import RoughServer

pytestmark = [pytest.mark.wire, pytest.mark.timeout(60)]

MODEL = b"a model" * 100
TARGET = "digits/2/model.onnx"
FILE = RemoteFile(TARGET, digest_of(MODEL), len(MODEL), "digits", 2)
DAY = timedelta(days=1)


class Device:
    """A device with a pinned root; every look is that of a newly started agent."""

    def __init__(self, directory: Path, server: RoughServer, repository: TufRepository) -> None:
        self.directory = directory
        self.server = server
        self.repository = repository
        self.root = directory / "root.json"
        self.root.write_bytes(repository.pinned)
        self.now = lambda: datetime.now(UTC)

    def verdicts(self, *files: RemoteFile, is_present: bool = False) -> list[DownloadError | None]:
        self.server.files = {f"metadata/{name}": content for name, content in self.repository.files.items()}
        for target in self.server.behaviours:
            self.server.files.setdefault(target, b"x" * 100)
        trust = TufTrust(
            self.directory / "trust", self.root, self.server.url + "metadata/",
            WebClient(head_timeout_s=1), lambda: self.now(), window_s=0.4,
        )  # fmt: skip
        return trust.verdicts(files or (FILE,), is_present)

    def allows(self, file: RemoteFile = FILE, **options: bool) -> bool:
        return self.verdicts(file, **options) == [None]

    def refusal(self, file: RemoteFile = FILE, **options: bool) -> DownloadError:
        """The one error, whether it is of the metadata or of the file."""
        try:
            (verdict,) = self.verdicts(file, **options)
        except DownloadError as err:
            return err
        assert verdict is not None, "it was allowed"
        return verdict

    def refuses(self, code: str, words: str, file: RemoteFile = FILE, *, again: bool, **options: bool) -> None:
        err = self.refusal(file, **options)
        assert (err.code, err.is_retryable) == (code, again), err.message
        assert words in err.message
        assert err.message.endswith(".")
        assert "\n" not in err.message


@pytest.fixture
def repository():
    made = TufRepository()
    made.allow(TARGET, MODEL)
    return made


@pytest.fixture
def device(repository, tmp_path):
    server = RoughServer()
    yield Device(tmp_path, server, repository)
    server.stop()


# Targets --------------------------------------------------------------------------------------------------------------


def test_what_is_signed_is_allowed_and_what_is_not_is_told_in_words(device):
    other = digest_of(b"other")
    found = device.verdicts(
        FILE,
        replace(FILE, digest=other),
        replace(FILE, size_bytes=3),
        replace(FILE, target="digits/3/model.onnx"),
    )
    assert [err and (err.code, err.is_retryable) for err in found] == [
        None,
        ("TRUST_TARGET_MISMATCH", False),
        ("TRUST_TARGET_MISMATCH", False),
        ("TRUST_UNKNOWN_TARGET", True),
    ]
    assert f"the digest {FILE.digest[:15]}…, the offer says {other[:15]}…" in found[1].message
    assert "700 bytes, the offer says 3" in found[2].message
    assert "does not allow digits/3/model.onnx" in found[3].message


def test_a_file_that_was_signed_for_one_model_is_not_taken_for_another(device, repository):
    repository.allow(TARGET, MODEL, custom={"model": "digits", "version": 2})
    assert device.allows()
    words = "is signed with version 2 of digits, the offer calls it version 2 of wakeword"
    device.refuses("TRUST_TARGET_MISMATCH", words, replace(FILE, model="wakeword"), again=False)
    device.refuses("TRUST_TARGET_MISMATCH", "version 9 of digits", replace(FILE, version=9), again=False)


def test_what_was_taken_back_is_no_longer_allowed_even_if_it_is_on_the_disk(device, repository):
    assert device.allows()
    repository.forbid(TARGET)
    device.refuses("TRUST_UNKNOWN_TARGET", "does not allow", again=True, is_present=True)


def test_delegated_roles_speak_for_their_paths_only(device, repository):
    repository.delegate("models", "digits/*/*")
    repository.allow("digits/5/model.onnx", MODEL, role="models")
    repository.allow("other/1/model.onnx", MODEL, role="models")
    assert device.allows(replace(FILE, target="digits/5/model.onnx", version=5))
    outside = replace(FILE, target="other/1/model.onnx")
    device.refuses("TRUST_UNKNOWN_TARGET", "does not allow other/1/model.onnx", outside, again=True)
    repository.signers["models"] = [CryptoSigner.generate_ed25519()]
    repository.publish()
    delegated = replace(FILE, target="digits/5/model.onnx")
    device.refuses("TRUST_BAD_SIGNATURE", "models was signed by 0/1 keys", delegated, again=False)


# Attacks --------------------------------------------------------------------------------------------------------------


def rollback_of_timestamp(repository):
    before = dict(repository.files)
    yield
    repository.files["timestamp.json"] = before["timestamp.json"]


def rollback_of_snapshot(repository):
    yield
    repository.snapshot.version -= 1
    repository.timestamp.version += 1
    repository.write()


def rollback_of_targets(repository):
    yield
    repository.targets.version -= 1
    repository.snapshot.version += 1
    repository.timestamp.version += 1
    repository.write()


def removal_of_targets(repository):
    yield
    del repository.snapshot.meta["targets.json"]
    repository.snapshot.version += 1
    content = signed_by(repository.snapshot, repository.signers["snapshot"])
    repository.files[f"{repository.snapshot.version}.snapshot.json"] = content
    repository.timestamp.version += 1
    repository.timestamp.snapshot_meta = described(repository.snapshot.version, content)
    repository.write_timestamp(repository.signers["timestamp"])


ROLLBACKS = {
    rollback_of_timestamp: ("TRUST_ROLLBACK", "New timestamp version"),
    rollback_of_snapshot: ("TRUST_ROLLBACK", "New snapshot version must be"),
    rollback_of_targets: ("TRUST_ROLLBACK", "Expected targets.json version"),
    removal_of_targets: ("TRUST_BAD_METADATA", "missing info for 'targets.json'"),
}


@pytest.mark.parametrize("attack", ROLLBACKS)
def test_metadata_that_is_older_than_what_was_seen_is_noticed_after_a_restart_too(device, repository, attack):
    code, words = ROLLBACKS[attack]
    repository.publish()
    steps = attack(repository)
    next(steps)
    repository.publish()
    assert device.allows()
    next(steps, None)
    device.refuses(code, words, again=True)
    device.refuses(code, words, again=True, is_present=True)
    repository.targets.version += 3
    repository.snapshot.version += 3
    repository.timestamp.version += 3
    repository.write()
    assert device.allows(), "a repository that comes back to its senses is trusted again"


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_frozen_repository_is_noticed_when_its_metadata_expires(device, repository, role):
    assert device.allows()
    getattr(repository, role).expires = in_time(-DAY)
    if role == "root":
        repository.root.version += 1
        repository.write_root(repository.signers["root"])
    repository.publish()
    device.refuses("TRUST_EXPIRED", role, again=True)
    assert "; the repository may be frozen or forgotten." in device.refusal().message
    device.refuses("TRUST_EXPIRED", role, again=True, is_present=True)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_pieces_of_different_states_do_not_mix(device, repository, role):
    old = repository.files[f"{getattr(repository, role).version}.{role}.json"]
    repository.allow("digits/3/model.onnx", b"newer")
    repository.files[f"{getattr(repository, role).version}.{role}.json"] = old
    device.refuses("TRUST_BAD_METADATA", "Observed", again=True)


def test_after_a_fast_forward_by_stolen_keys_new_keys_bring_the_device_back(device, repository):
    """Versions are forgotten where the keys that vouched for them are gone: TUF specification 5.3.11."""
    assert device.allows()
    for signed in (repository.snapshot, repository.timestamp):
        signed.version = 99_999
    repository.write()
    assert device.allows()
    for signed in (repository.snapshot, repository.timestamp):
        signed.version = 7
    repository.write()
    device.refuses("TRUST_ROLLBACK", "99999", again=True)
    for role in ("snapshot", "timestamp"):
        repository.rotate(role)
    repository.write()
    assert device.allows()


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_endless_metadata_ends(device, name):
    device.server.behaviours[f"metadata/{name}"] = rough.endless
    device.refuses("TRUST_BAD_METADATA", "exceeding the maximum allowed length", again=True)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_key_that_the_root_does_not_know_signs_nothing(device, repository, role):
    assert device.allows()
    repository.signers[role] = [CryptoSigner.generate_ed25519()]
    repository.publish()
    device.refuses("TRUST_BAD_SIGNATURE", f"{role} was signed by 0/1 keys", again=False)


@pytest.mark.parametrize("signers", [0, 1])
def test_a_new_root_needs_as_many_of_the_old_keys_as_the_old_root_says(device, repository, signers):
    """One stolen root key, or new keys alone, do not make a root."""
    assert device.allows()
    old = repository.signers["root"]
    repository.rotate("root")
    repository.write_root([*old[:signers], *repository.signers["root"]])
    device.refuses("TRUST_BAD_SIGNATURE", f"root was signed by {signers}/2 keys", again=False)
    repository.write_root([*old, *repository.signers["root"]])
    assert device.allows()


def test_a_threshold_of_two_is_not_met_by_one_key_twice(device, repository):
    repository.root.roles["targets"].threshold = 2
    repository.root.version += 1
    repository.write_root(repository.signers["root"])
    repository.publish()
    device.refuses("TRUST_BAD_SIGNATURE", "targets was signed by 1/2 keys", again=False)


def test_roots_are_followed_one_by_one_from_the_pinned_one(device, repository):
    for role in ("root", "timestamp", "root", "snapshot", "targets"):
        repository.rotate(role)
    repository.publish()
    assert device.allows()
    missing = repository.files.pop("3.root.json")
    assert device.allows(), "what was seen once is kept"
    shutil.rmtree(device.directory / "trust")
    device.refuses("TRUST_BAD_SIGNATURE", "timestamp was signed by 0/1 keys", again=False)
    repository.files["3.root.json"] = missing
    assert device.allows()


def test_the_root_of_another_owner_is_no_root_of_ours(device):
    device.repository = TufRepository()
    device.repository.allow(TARGET, MODEL)
    device.refuses("TRUST_BAD_SIGNATURE", "was signed by 0/1 keys", again=False)


# The way there --------------------------------------------------------------------------------------------------------

WAYS = {
    "nobody there": (None, "the connection failed"),
    "broken": (rough.status(503), "timestamp.json: it answered 503"),
    "no repository": (rough.status(404), "timestamp.json: it answered 404"),
    "a captive portal": (rough.web_page, "a captive portal or a login is in between"),
    "drips": (rough.drip(0.03), "timestamp.json: it drips"),
    "a head that drips": (rough.drip(0.1, in_head=True), "timestamp.json: it did not answer in time"),
}


@pytest.mark.parametrize("case", WAYS)
def test_a_repository_out_of_reach_is_tried_again_and_bytes_on_the_disk_need_not_wait_for_it(device, case):
    behaviour, words = WAYS[case]
    assert device.allows()
    if behaviour is None:
        device.server.stop()
    else:
        device.server.behaviours["metadata/timestamp.json"] = behaviour
    device.refuses("TRUST_UNREACHABLE", words, again=True)
    assert device.allows(is_present=True)
    unknown = replace(FILE, target="digits/9/model.onnx")
    device.refuses("TRUST_UNKNOWN_TARGET", "does not allow", unknown, again=True, is_present=True)


def test_what_was_never_seen_is_not_trusted_without_a_repository(device):
    device.server.behaviours["metadata/timestamp.json"] = rough.status(503)
    device.refuses("TRUST_UNREACHABLE", "it answered 503", again=True, is_present=True)


def test_metadata_that_expired_meanwhile_will_not_do_without_a_repository(device, repository):
    assert device.allows()
    device.server.behaviours["metadata/timestamp.json"] = rough.status(503)
    assert device.allows(is_present=True)
    # As it is on the disk when its time has passed.
    repository.timestamp.expires = in_time(-DAY)
    repository.write_timestamp(repository.signers["timestamp"])
    (device.directory / "trust" / "kept" / "timestamp.json").write_bytes(repository.files["timestamp.json"])
    device.refuses("TRUST_UNREACHABLE", "it answered 503", again=True, is_present=True)


# The disk -------------------------------------------------------------------------------------------------------------

NAMES = ("timestamp.json", "snapshot.json", "targets.json", "root_history/1.root.json", "root_history/2.root.json")
DAMAGES = {
    "empty": lambda path, content: path.write_bytes(b""),
    "torn": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "zeroed": lambda path, content: path.write_bytes(bytes(len(content))),
    "noise": lambda path, content: path.write_bytes(b"\xff\xfe{" * 20),
    "gone": lambda path, content: path.unlink(),
    "a folder": lambda path, content: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_cache_that_was_damaged_heals(device, repository, name, damage):
    repository.rotate("timestamp")
    repository.publish()
    assert device.allows()
    path = device.directory / "trust" / "kept" / name
    content = path.read_bytes()
    DAMAGES[damage](path, content)
    assert device.allows()
    assert path.read_bytes() == content


def test_what_a_look_left_when_it_was_cut_off_is_not_believed(device, repository):
    """Only what was synced under its name counts: a power cut in the library's own writing tears nothing."""
    repository.publish()
    assert device.allows()
    kept = {path.name: path.read_bytes() for path in (device.directory / "trust" / "kept").glob("*.json")}
    work = device.directory / "trust" / "work" / "root_history"
    work.mkdir(parents=True)
    (work.parent / "timestamp.json").write_bytes(b"torn")
    (device.directory / "trust" / "kept" / "timestamp.json.new").write_bytes(b"torn")
    assert device.allows()
    assert {path.name: path.read_bytes() for path in (device.directory / "trust" / "kept").glob("*.json")} == kept
    assert not work.parent.exists()


@pytest.mark.parametrize(
    ("content", "code"), [(None, "TRUST_NO_ROOT"), (b"", "TRUST_NO_ROOT"), (b"{}", "TRUST_NO_ROOT")]
)
def test_without_a_readable_root_nothing_is_trusted(device, content, code):
    device.root.unlink()
    if content is not None:
        device.root.write_bytes(content)
    device.refuses(code, "nothing can be trusted", again=False)


def test_a_pinned_root_that_was_tampered_with_does_not_vouch_for_itself(device):
    content = device.root.read_bytes().replace(b'"threshold":2', b'"threshold":1')
    assert content != device.root.read_bytes()
    device.root.write_bytes(content)
    device.refuses("TRUST_BAD_SIGNATURE", "root was signed by 0/1 keys", again=False)


# Clocks ---------------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_does_not_revive_what_has_expired(device, repository):
    """The library reads this machine's clock, so here the past is the present, and what is known is the future."""
    later = datetime.now(UTC) + 5 * DAY
    device.now = lambda: later
    assert device.allows()
    device.now = lambda: datetime.now(UTC)
    assert device.allows(), "the same metadata was still good then"
    for role in (repository.targets, repository.snapshot, repository.timestamp):
        good, role.expires = role.expires, in_time(3 * DAY)
        repository.publish()
        device.refuses("TRUST_EXPIRED", "and it is at least", again=True)
        device.refuses("TRUST_EXPIRED", "and it is at least", again=True, is_present=True)
        role.expires = good
    repository.publish()
    assert device.allows()


def test_a_clock_that_went_ahead_and_came_back_does_not_lock_the_device_out(device, repository):
    device.now = lambda: datetime.now(UTC) + 3650 * DAY
    assert device.allows(), "the library's own clock is right here, so only the floor could suffer"
    device.now = lambda: datetime.now(UTC)
    repository.timestamp.expires = in_time(LIFETIME + DAY)
    for role in (repository.root, repository.targets, repository.snapshot):
        role.expires = in_time(LIFETIME + DAY)
    repository.root.version += 1
    repository.write_root(repository.signers["root"])
    repository.publish()
    assert device.allows()


def test_a_device_that_wakes_up_before_its_program_was_written_knows_better(device, repository):
    device.now = lambda: datetime(1970, 1, 1, tzinfo=UTC)
    assert device.allows()
    floor = device.directory / "trust" / "time-floor"
    assert not floor.exists()
    floor.write_bytes(b"\xff torn")
    assert device.allows()


def test_a_clock_that_is_wrong_by_days_is_named(device, repository):
    repository.timestamp.expires = in_time(-DAY)
    repository.publish()
    device.now = lambda: datetime.now(UTC) + 400 * DAY
    assert "set the clock" in device.refusal().message
