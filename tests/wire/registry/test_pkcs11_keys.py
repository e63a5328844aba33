"""Keys on a token: SoftHSM's, by the same PKCS#11 calls that a smart card or a hardware security module answers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloud_registry.errors import TrustError
from tests.trust_repositories import Publisher, model_file

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
MODULE = next((path for path in MODULES if Path(path).is_file()), None)
IS_THERE = MODULE is not None and shutil.which("softhsm2-util") and shutil.which("pkcs11-tool")
if not IS_THERE and os.environ.get("CI") == "true":
    pytest.fail("CI must have softhsm2 and opensc", pytrace=False)
pytestmark = [
    pytest.mark.wire,
    pytest.mark.timeout(60),
    pytest.mark.skipif(not IS_THERE, reason="no softhsm2 and opensc (Debian: apt-get install softhsm2 opensc)"),
]

PIN = "741852"


class Token:
    """A token of SoftHSM in a folder of the test's own."""

    def __init__(self, directory: Path, label: str) -> None:
        self.label = label
        self._run("softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "96385274")

    def make_key(self, number: int, curve: str = "EC:prime256v1") -> str:
        """A key pair that never leaves the token; its place."""
        self._run(
            "pkcs11-tool", "--module", str(MODULE), "--token-label", self.label, "--login", "--pin", PIN,
            "--keypairgen", "--key-type", curve, "--id", f"{number:02x}", "--label", f"key-{number}",
        )  # fmt: skip
        return self.place(number)

    def place(self, number: int) -> str:
        return f"pkcs11:token={self.label};id=%{number:02x}?module-path={MODULE}"

    @staticmethod
    def _run(*words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    # The library reads its settings once a process, when it is first loaded.
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    made = Token(folder, "slipway")
    for number, curve in ((1, "EC:prime256v1"), (2, "EC:secp384r1"), (3, "EC:prime256v1")):
        made.make_key(number, curve)
    return made


class Asked:
    def __init__(self, pin: str | None = PIN) -> None:
        self.pin = pin
        self.whats: list[str] = []

    def __call__(self, what: str, is_new: bool) -> str | None:
        self.whats.append(what)
        return self.pin if what.startswith("PIN") else None


def repository(directory: Path, token: Token, asked: Asked) -> Publisher:
    return Publisher(
        directory, asked, root_keys=(token.place(1), token.place(2)), targets_keys=(token.place(3),), root_threshold=2
    )


def test_root_and_targets_keys_on_a_token_sign_and_no_file_of_theirs_exists(tmp_path, token):
    asked = Asked()
    publisher = repository(tmp_path, token, asked)
    file = model_file("digits:1", b"one")
    assert publisher.sign(file).published["model-digits"] == 1
    publisher.desk.check([file])
    assert set(asked.whats) == {"PIN of the token slipway"}
    assert not publisher.safe.exists()
    settings = (publisher.store.directory / "settings.json").read_text()
    assert token.place(3) in settings
    assert PIN not in settings
    # From a token to a file and back: one key of each kind.
    publisher.service.rotate("root", [token.place(1), publisher.key("root-1")], threshold=2)
    assert publisher.service.rotate("timestamp", []).published == {"root": 3, "timestamp": 3}


@pytest.mark.parametrize(
    ("pin", "words"),
    [("0000", "the token slipway refused the PIN"), (None, "the token slipway wants a PIN"), ("", "wants a PIN")],
)
def test_a_wrong_pin_signs_nothing_and_is_not_repeated(tmp_path, token, pin, words):
    asked = Asked()
    publisher = repository(tmp_path, token, asked)
    asked.pin = pin
    before = publisher.files
    with pytest.raises(TrustError, match=words) as err:
        publisher.service.sign([model_file("digits:1", b"one")], keys=[token.place(3)])
    assert not pin or pin not in str(err.value)
    assert publisher.files == before


def test_a_server_that_knows_no_pin_leaves_the_token_alone_and_goes_on(tmp_path, token):
    asked = Asked()
    publisher = repository(tmp_path, token, asked)
    asked.pin = None
    outcome = publisher.sign(model_file("digits:1", b"one"))
    assert set(outcome.unavailable) == {"the token slipway wants a PIN"}
    assert [one.role for one in outcome.waiting] == ["targets", "model-digits"]
    publisher.later(days=4)
    assert publisher.service.refresh().published == {"timestamp": 2}
    asked.pin = PIN
    assert publisher.service.sign().published["model-digits"] == 1


def test_what_is_not_on_the_token_is_told_with_how_to_make_it(tmp_path, token):
    publisher = repository(tmp_path, token, Asked())
    with pytest.raises(TrustError, match="key 09 of token slipway cannot be used: could not find") as err:
        publisher.service.sign(keys=[token.place(9)])
    assert "--keypairgen --key-type EC:prime256v1 --id 09" in err.value.hint
    with pytest.raises(TrustError, match="No PKCS#11 token found for label elsewhere"):
        publisher.service.sign(keys=[token.place(1).replace("slipway", "elsewhere")])


def test_a_module_that_is_none_is_told(tmp_path, token):
    publisher = repository(tmp_path, token, Asked())
    (tmp_path / "module.so").write_bytes(b"no library")
    with pytest.raises(TrustError, match="key 01 of token slipway cannot be used"):
        publisher.service.sign(keys=[f"pkcs11:token=slipway;id=%01?module-path={tmp_path}/module.so"])
