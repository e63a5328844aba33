"""Signing keys by URI: PEM files (``file:/media/safe/root-1.pem``), and tokens (``pkcs11:token=slipway;id=%01``).

A key never leaves the file or the token that it is in: nothing here writes one anywhere else, prints or logs it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote_to_bytes

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signature, Signer, SSlibKey

from cloud_registry.errors import ConflictError, NotFoundError, TrustError, UsageError

# Asked for the passphrase of a key file or the PIN of a token; the second value says that it is for a new key. None or
# an empty answer stands for no passphrase.
Secret = Callable[[str, bool], str | None]

_TOKEN_WORDS = "pkcs11:token=slipway;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so"  # noqa: S105


class SigningKeys:
    """Satisfies `service.trust_work.KeyRing`. `say` is told of keys that others than their owner may reach."""

    def __init__(
        self, secret: Secret, pkcs11_module: str | None = None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._secret = secret
        self._module = pkcs11_module
        self._say = say
        self._told: set[Path] = set()

    def place(self, text: str) -> str:
        """The one spelling of where a key is; a bare path is a file's. Raises UsageError."""
        if text.startswith("pkcs11:"):
            return _TokenKey.parse(text, self._module).uri
        return f"file:{Path(text.removeprefix('file:')).expanduser().absolute()}"

    def is_there(self, place: str) -> bool:
        """Whether the key might be opened here and now, without asking for its secret."""
        if place.startswith("pkcs11:"):
            return Path(_TokenKey.parse(place, self._module).module).is_file()
        return _path(place).is_file()

    def create(self, place: str, *, has_passphrase: bool) -> Signer:
        """Make a new key in a file that only its owner may read.

        Raises:
            ConflictError: there is something already.
            TrustError: it is a token's; keys of a token are made with the token's own tools.
        """
        if place.startswith("pkcs11:"):
            return self.open(place)
        path = _path(place)
        key = Ed25519PrivateKey.generate()
        words = self._secret(f"passphrase of the new key {path}", True) if has_passphrase else None
        encryption: KeySerializationEncryption = NoEncryption()
        if words:
            encryption = BestAvailableEncryption(words.encode())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        if not path.parent.is_dir():
            # The folders above are as the person's umask wants them; this one is made for keys.
            path.parent.mkdir(parents=True, mode=0o700)
        self._warn_of_folder(path.parent)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as err:
            raise ConflictError(
                f"{path} is there already", hint="A key is never written over. Choose another place."
            ) from err
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return CryptoSigner(key)

    def open(self, place: str) -> Signer:
        """The signer for a key.

        Raises:
            NotFoundError: there is no such key.
            TrustError: it cannot be opened, or is no key that signs.
        """
        if place.startswith("pkcs11:"):
            return _TokenSigner.of(_TokenKey.parse(place, self._module), self._pin)
        path = _path(place)
        try:
            content = path.read_bytes()
        except OSError as err:
            raise NotFoundError(f"the key {path} cannot be read: {err.strerror}") from err
        self._warn_of_file(path)
        is_locked = b"ENCRYPTED" in content.partition(b"\n")[0]
        words = self._secret(f"passphrase of the key {path}", False) if is_locked else None
        if is_locked and not words:
            raise TrustError(
                f"the key {path} is locked with a passphrase", hint="Set SLIPWAY_TRUST_PASSPHRASE, or use a terminal."
            )
        try:
            key = load_pem_private_key(content, words.encode() if words else None)
            return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))
        except (ValueError, TypeError) as err:
            # The library's own words may quote what it read.
            raise TrustError(f"{path} is no private key that signs, or its passphrase is another one") from err

    def _warn_of_file(self, path: Path) -> None:
        if path not in self._told and path.stat().st_mode & 0o077:
            self._told.add(path)
            self._say(f"Warning: others than its owner may read the key {path}. Mend it with: chmod 600 {path}")

    def _warn_of_folder(self, folder: Path) -> None:
        """Who may write there may put another key in the place of this one."""
        if folder not in self._told and folder.stat().st_mode & 0o077:
            self._told.add(folder)
            self._say(
                f"Warning: others than its owner may look into the folder of keys {folder}. "
                f"Mend it with: chmod 700 {folder}"
            )

    def _pin(self, token: str) -> str:
        pin = self._secret(f"PIN of the token {token}", False)
        if not pin:
            raise TrustError(f"the token {token} wants a PIN", hint="Set SLIPWAY_PKCS11_PIN, or use a terminal.")
        return pin


def _path(place: str) -> Path:
    return Path(place.removeprefix("file:"))


@dataclass(frozen=True, slots=True)
class _TokenKey:
    """A PKCS#11 URI (RFC 7512), as far as it names a key: the token's label, the key's id, the module's path."""

    token: str
    key_id: bytes
    module: str

    @classmethod
    def parse(cls, text: str, module: str | None) -> "_TokenKey":
        path, _, query = text.removeprefix("pkcs11:").partition("?")
        parts = dict(part.partition("=")[::2] for part in path.split(";"))
        asked = parse_qs(query)
        hint = f"For example: {_TOKEN_WORDS}"
        if "pin-value" in asked or "pin-value" in parts:
            raise UsageError(
                "a PIN in a URI is read by everyone who lists processes", hint="Set SLIPWAY_PKCS11_PIN instead."
            )
        if not parts.get("token") or not parts.get("id"):
            raise UsageError("the PKCS#11 URI names no token, or no id of a key", hint=hint)
        found = asked.get("module-path", [module or ""])[0]
        if not found:
            raise UsageError("the PKCS#11 URI names no module", hint=f"Set SLIPWAY_PKCS11_MODULE, or name it. {hint}")
        return cls(unquote_to_bytes(parts["token"]).decode(), unquote_to_bytes(parts["id"]), found)

    @property
    def uri(self) -> str:
        key_id = "".join(f"%{byte:02x}" for byte in self.key_id)
        return f"pkcs11:token={quote(self.token)};id={key_id}?module-path={quote(self.module)}"

    @property
    def words(self) -> str:
        return f"key {self.key_id.hex()} of token {self.token}"


class _TokenSigner(Signer):
    """securesystemslib's signer for PKCS#11, told which module to load."""

    def __init__(self, key: _TokenKey, public_key: SSlibKey, pin: Callable[[str], str]) -> None:
        self._key = key
        self._public_key = public_key
        self._pin = pin

    @classmethod
    def of(cls, key: _TokenKey, pin: Callable[[str], str]) -> "_TokenSigner":
        from securesystemslib.signer import HSMSigner

        with _token_words(key):
            number = int.from_bytes(key.key_id, "big")
            # A token may show even its public keys to those alone who know the PIN.
            _, public_key = HSMSigner.import_(number, key.token, lambda _: pin(key.token))
        return cls(key, public_key, pin)

    @classmethod
    def from_priv_key_uri(cls, *_: object, **__: object) -> "Signer":
        raise UsageError("keys are opened by SigningKeys")

    @property
    def public_key(self) -> SSlibKey:
        return self._public_key

    def sign(self, payload: bytes) -> Signature:
        from securesystemslib.signer import HSMSigner

        number = int.from_bytes(self._key.key_id, "big")
        with _token_words(self._key):
            signer = HSMSigner(number, self._public_key, lambda _: self._pin(self._key.token), self._key.token)
            return signer.sign(payload)


@contextmanager
def _token_words(key: _TokenKey) -> Iterator[None]:
    """Tell the library which module to load, and say in words what a token answered."""
    try:
        from pkcs11.exceptions import PinIncorrect, PinLocked, PKCS11Error
    except ImportError as err:
        raise TrustError(
            "keys of tokens need the package python-pkcs11, which is not installed",
            hint="Install it with: pip install 'slipway[pkcs11]'",
        ) from err
    # The library takes the module's path from the environment alone.
    os.environ["PYKCS11LIB"] = key.module
    try:
        yield
    except (PinIncorrect, PinLocked) as err:
        locked = isinstance(err, PinLocked)
        raise TrustError(
            f"the token {key.token} {'is locked after too many wrong PINs' if locked else 'refused the PIN'}"
        ) from err
    except (PKCS11Error, ValueError, RuntimeError, OSError) as err:
        raise TrustError(
            f"the {key.words} cannot be used: {str(err) or type(err).__name__}",
            hint="It must be an EC key on P-256 or P-384, made for example with: pkcs11-tool --module "
            f"{key.module} --token-label {key.token} --login --keypairgen --key-type EC:prime256v1 "
            f"--id {key.key_id.hex()}",
        ) from err
