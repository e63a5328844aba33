"""`slipway trust` as a person and a script meet it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_registry import wiring
from cloud_registry.adapters.signing_keys import SigningKeys
from cloud_registry.cli import main
from cloud_registry.cli.trust import trust
from cloud_registry.config import read_config
from manifests.canonical import digest_of
from manifests.model import Artifact, ModelManifest, Signature


@pytest.fixture
def slipway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in ("IOTHUB_CONNECTION_STRING", "SLIPWAY_DATABASE", "SLIPWAY_ARTIFACTS", "SLIPWAY_TRUST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str, expect: int = 0) -> Result:
        done = CliRunner().invoke(main, ["trust", *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == expect, f"exit {done.exit_code}\n{done.output}"
        return done

    return run


@pytest.fixture
def version(tmp_path: Path) -> ModelManifest:
    """A version that is in the catalog; nothing of it is loaded."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "model.onnx").write_bytes(b"bytes")
    models = wiring.open_local_models(read_config(home, {}))
    models.artifacts.put(tmp_path / "model.onnx")
    artifact = Artifact(
        format="onnx", digest=digest_of(b"bytes"), size_bytes=5, target="digits/1/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )  # fmt: skip
    return models.catalog.add(
        "digits", lambda number: ModelManifest(name="digits", version=number, artifacts=(artifact,), created_at="2026")
    )


def test_from_the_first_key_to_a_signed_version(slipway, version, tmp_path):
    assert slipway("status", expect=6).stderr == (
        f"Error: there is no trust repository in {tmp_path}/home/trust\nMake one with: slipway trust init\n"
    )
    made = json.loads(slipway("init", "--keys", "safe", "--json").stdout)
    assert made["published"] == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}
    assert Path(made["root"]).is_file()
    assert sorted(path.name for path in (tmp_path / "safe").iterdir()) == [
        "root-1.pem", "root-2.pem", "root-3.pem", "targets-1.pem",
    ]  # fmt: skip
    unsigned = json.loads(slipway("sign", "digits", "--dry-run", "--json").stdout)
    assert unsigned == {"unsigned": [{"target": "digits/1/model.onnx", "digest": digest_of(b"bytes"), "size": 5}]}
    said = slipway("sign", "digits:1")
    assert said.stdout == "Published targets 2, model-digits 1, snapshot 2, timestamp 2\n"
    assert f"model-digits version 1: + digits/1/model.onnx {digest_of(b'bytes')}\n" in said.stderr
    assert slipway("sign", "digits:1", "--dry-run").stdout == "All of it is signed.\n"
    status = json.loads(slipway("status", "--json").stdout)
    assert status.keys() == {"metadata", "roles", "waiting", "announcements", "problems"}
    assert [(role["role"], role["version"], role["threshold"], role["versions"]) for role in status["roles"]] == [
        ("root", 1, 2, []), ("targets", 2, 1, []), ("snapshot", 2, 1, []), ("timestamp", 2, 1, []),
        ("model-digits", 1, 1, ["digits:1"]),
    ]  # fmt: skip
    assert status["roles"][1]["keys"][0]["place"] == f"file:{tmp_path}/safe/targets-1.pem"
    assert slipway("sign", "--withdraw", "digits:1").stdout == "Published model-digits 2, snapshot 3, timestamp 3\n"
    assert "digits/1/model.onnx" in slipway("sign", "digits:1", "--dry-run").stdout


def test_what_waits_goes_to_another_machine_and_back(slipway, version, tmp_path, monkeypatch):
    slipway("init", "--keys", "safe")
    (tmp_path / "safe").rename(tmp_path / "away")
    said = slipway("sign", "digits:1", "--json")
    waiting = json.loads(said.stdout)["waiting"]
    assert [(one["role"], one["needed"]) for one in waiting] == [("targets", 1), ("model-digits", 1)]
    staged = tmp_path / "stick.json"
    staged.write_bytes((tmp_path / "home" / "trust" / "staged.json").read_bytes())
    # On a machine that knows nothing but the key, the pinned root and the file.
    root = tmp_path / "home" / "trust" / "metadata" / "1.root.json"
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "elsewhere"))
    said = slipway("sign", "--staged", str(staged), "--root", str(root), "--key", "away/targets-1.pem")
    assert "+ digits/1/model.onnx" in said.stderr
    assert not (tmp_path / "elsewhere").exists()
    assert "--root nobody checks" in slipway("sign", "--staged", str(staged), "--key", "away/targets-1.pem").stderr
    other = tmp_path / "other.json"
    other.write_bytes(
        root.read_bytes().replace(b'"version":1', b'"version":1 ').replace(b'"threshold":2', b'"threshold":1')
    )
    refused = slipway("sign", "--staged", str(staged), "--root", str(other), "--key", "away/targets-1.pem", expect=7)
    assert "is another one than devices have pinned" in refused.stderr
    # Back at home the signatures are there, and no key is.
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "trust" / "staged.json").write_bytes(staged.read_bytes())
    assert "model-digits 1" in slipway("sign").stdout


def test_what_expires_is_said_by_every_command_and_what_has_expired_by_the_exit_code(slipway, tmp_path):
    slipway("init", "--keys", "safe", "--lifetime", "root=1", "--lifetime", "timestamp=0.000000001")
    said = slipway("status", expect=7)
    assert "Devices refuse every update: timestamp expired at " in said.stderr
    assert "Note: timestamp expired at " in said.stderr
    assert said.stderr.count("Run: slipway trust refresh\n") == 1
    assert slipway("refresh").stdout == "Published timestamp 2\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("init",), 2, "nobody said where the keys of root and targets go"),
        (("init", "--keys", "safe", "--lifetime", "root=0"), 2, "'root=0' is no lifetime"),
        (("init", "--keys", "safe", "--lifetime", "boss=3"), 2, "'boss=3' is no lifetime"),
        (("init", "--keys", "safe", "--root-threshold", "4"), 2, "4 of 3 keys cannot sign for root"),
        (("init", "--keys", "home/trust/offline"), 2, "whoever breaks in finds it"),
        (("init", "--keys", "home/offline"), 2, "within the registry's own folder"),
        (("rotate", "boss"), 2, "'boss' is no role"),
        (("rotate", "model:../../etc"), 2, "is not a model name"),
        (("refresh",), 6, "there is no trust repository"),
        (("sign", "digits:1"), 6, "there is no trust repository"),
        (("sign", "--staged", "nowhere.json", "--key", "k"), 6, "nowhere.json cannot be read"),
        (("sign", "--staged", "nowhere.json"), 2, "no key was named"),
    ],
)
def test_a_refusal_says_what_to_do_and_leaves_nothing(slipway, tmp_path, words, code, said):
    done = slipway(*words, expect=code)
    assert said in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.rglob("*.pem"))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"roots": [], "published": {}, "staged": {}}', b"\xff"])
def test_a_file_that_is_no_stage_is_told(slipway, tmp_path, content):
    (tmp_path / "stage.json").write_bytes(content)
    done = slipway("sign", "--staged", "stage.json", "--key", "key.pem", expect=7)
    assert "holds no roles that wait for signatures" in done.stderr


@pytest.mark.parametrize("content", [b"", b"{", b'{"signed": {}}'])
def test_metadata_that_somebody_damaged_stops_every_command_in_a_sentence(slipway, version, tmp_path, content):
    slipway("init", "--keys", "safe")
    (tmp_path / "home" / "trust" / "metadata" / "1.targets.json").write_bytes(content)
    for words in (("status",), ("sign", "digits:1"), ("refresh",)):
        assert "1.targets.json is no signed metadata" in slipway(*words, expect=7).stderr
    (tmp_path / "home" / "trust" / "metadata" / "1.targets.json").unlink()
    done = slipway("status", expect=7)
    assert "the signed metadata 1.targets.json cannot be read: No such file or directory" in done.stderr
    assert "Restore the folder" in done.stderr


def test_a_passphrase_comes_from_the_environment_and_goes_nowhere(slipway, version, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPWAY_TRUST_PASSPHRASE", "correct horse battery staple")
    slipway("init", "--keys", "safe")
    slipway("sign", "digits:1")
    assert b"ENCRYPTED" in (tmp_path / "safe" / "targets-1.pem").read_bytes()
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [path for path in written if b"correct horse" in path.read_bytes()]
    monkeypatch.delenv("SLIPWAY_TRUST_PASSPHRASE")
    said = slipway("sign", "--key", "safe/targets-1.pem", expect=7)
    assert "is locked with a passphrase\nSet SLIPWAY_TRUST_PASSPHRASE" in said.stderr
    key = SigningKeys(lambda _what, _is_new: "correct horse battery staple").open(f"file:{tmp_path}/safe/targets-1.pem")
    assert key.public_key.keytype == "ed25519"


def test_no_option_takes_a_secret_since_everybody_sees_the_arguments_of_a_process():
    names = {option for command in trust.commands.values() for each in command.params for option in each.opts}
    assert "--key" in names
    assert not [name for name in names if any(word in name for word in ("pass", "pin", "secret"))]
