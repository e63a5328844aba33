"""A TUF repository in memory: what a publisher signs, and what a thief of some of its keys could sign.

`files` is what a server would serve by name. Tests attack by signing with the wrong keys, by serving old files or other
ones, and by leaving things undone.
"""

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

LIFETIME = timedelta(days=10)


def in_time(delta: timedelta = LIFETIME) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + delta


class TufRepository:
    """Roles with a key each, root with two that must both sign. Names and versions as with consistent snapshots."""

    def __init__(self) -> None:
        self.signers = {name: [CryptoSigner.generate_ed25519()] for name in TOP_LEVEL_ROLE_NAMES}
        self.signers["root"].append(CryptoSigner.generate_ed25519())
        self.root = Root(expires=in_time(), consistent_snapshot=True)
        self.targets = Targets(expires=in_time())
        self.snapshot = Snapshot(expires=in_time())
        self.timestamp = Timestamp(expires=in_time())
        # Delegated roles by name.
        self.delegated: dict[str, Targets] = {}
        self.files: dict[str, bytes] = {}
        for name, signers in self.signers.items():
            for signer in signers:
                self.root.add_key(signer.public_key, name)
        self.root.roles["root"].threshold = 2
        self.write_root(self.signers["root"])
        self.publish()

    @property
    def pinned(self) -> bytes:
        """The root metadata that a device is given when it is provisioned."""
        return self.files["1.root.json"]

    # What a publisher does --------------------------------------------------------------------------------------------

    def allow(self, target: str, content: bytes, custom: Mapping[str, Any] | None = None, role: str = "") -> None:
        """Sign a file in, and publish."""
        info = TargetFile.from_data(target, content, ["sha256"])
        if custom is not None:
            info.unrecognized_fields["custom"] = dict(custom)
        (self.delegated[role] if role else self.targets).targets[target] = info
        self.publish()

    def forbid(self, target: str) -> None:
        del self.targets.targets[target]
        self.publish()

    def delegate(self, role: str, pattern: str) -> None:
        signer = CryptoSigner.generate_ed25519()
        self.signers[role] = [signer]
        delegated = DelegatedRole(role, [signer.public_key.keyid], 1, terminating=True, paths=[pattern])
        self.targets.delegations = Delegations({signer.public_key.keyid: signer.public_key}, {role: delegated})
        self.delegated[role] = Targets(expires=in_time())
        self.publish()

    def publish(self) -> None:
        """A new version of everything but the root."""
        for signed in (self.targets, *self.delegated.values(), self.snapshot, self.timestamp):
            signed.version += 1
        self.write()

    def rotate(self, role: str) -> None:
        """Replace the role's keys by a new one, in a new root that the old root keys sign as well."""
        old_root_signers = self.signers["root"]
        for signer in self.signers[role]:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in self.signers[role]]
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.root.version += 1
        signers = [*old_root_signers, *(signer for signer in self.signers["root"] if signer not in old_root_signers)]
        self.write_root(signers)

    # What stands on the server ----------------------------------------------------------------------------------------

    def write_root(self, signers: list[CryptoSigner]) -> None:
        self.files[f"{self.root.version}.root.json"] = signed_by(self.root, signers)

    def write(self) -> None:
        """Sign what there is, at the versions that it has now."""
        for name, signed in {"targets": self.targets, **self.delegated}.items():
            content = signed_by(signed, self.signers[name])
            self.files[f"{signed.version}.{name}.json"] = content
            self.snapshot.meta[f"{name}.json"] = described(signed.version, content)
        content = signed_by(self.snapshot, self.signers["snapshot"])
        self.files[f"{self.snapshot.version}.snapshot.json"] = content
        self.timestamp.snapshot_meta = described(self.snapshot.version, content)
        self.write_timestamp(self.signers["timestamp"])

    def write_timestamp(self, signers: list[CryptoSigner]) -> None:
        self.files["timestamp.json"] = signed_by(self.timestamp, signers)


def described(version: int, content: bytes) -> MetaFile:
    return MetaFile.from_data(version, content, ["sha256"])


def signed_by(signed: Root | Targets | Snapshot | Timestamp, signers: list[CryptoSigner]) -> bytes:
    metadata = Metadata(deepcopy(signed))
    for signer in signers:
        metadata.sign(signer, append=True)
    content: bytes = metadata.to_bytes()
    return content
