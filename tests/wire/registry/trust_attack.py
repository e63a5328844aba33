"""Somebody who owns the registry's machine and its network, a repository that the registry made, and a device."""

import json
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile

from device_agent.adapters.tuf_trust import TufTrust
from device_agent.adapters.web_client import WebClient
from device_agent.errors import DownloadError
from device_agent.ports import RemoteFile
from tests.trust_repositories import Publisher
from tests.wire.agent.rough_server import RoughServer

Change = Callable[[Any], None]


def unchanged(_signed: Any) -> None:
    return


class Attack:
    """A publisher, a server of files that an attacker chooses, and a device that has pinned the first root."""

    def __init__(self, directory: Path, server: RoughServer, publisher: Publisher) -> None:
        self.publisher = publisher
        self.server = server
        self.directory = directory
        self.root = directory / "pinned.json"
        self.root.write_bytes(publisher.files["1.root.json"])
        # By name, what is served in place of what the publisher published; None stands for nothing at all.
        self.served: dict[str, bytes | None] = {}

    def verdict(self, file: Any) -> str:
        """``allowed``, or the code of the agent's refusal, for an agent that was just started."""
        chosen = {**self.publisher.files, **self.served}
        self.server.files = {f"metadata/{name}": content for name, content in chosen.items() if content is not None}
        trust = TufTrust(
            self.directory / "device", self.root, self.server.url + "metadata/",
            WebClient(head_timeout_s=2), lambda: datetime.now(UTC), window_s=1.0,
        )  # fmt: skip
        remote = RemoteFile(file.target, file.digest, file.size_bytes, file.reference.name, file.reference.version)
        try:
            (refusal,) = trust.verdicts([remote], is_present=False)
        except DownloadError as err:
            return str(err.code)
        return "allowed" if refusal is None else str(refusal.code)

    # What an attacker makes ---------------------------------------------------------------------------------------

    def online(self, role: str) -> Signer:
        """An online key, which lies on the machine that they own."""
        newest = sorted((self.publisher.store.directory / "keys").glob(f"{role}-*.pem"))[-1]
        return self.publisher.keys.open(f"file:{newest}")

    def serve(self, name: str, metadata: Metadata[Any], *signers: Signer) -> bytes:
        copy = Metadata(deepcopy(metadata.signed))
        for signer in signers:
            copy.sign(signer, append=True)
        content = copy.to_bytes()
        self.served[name] = content
        return content

    def offline(self, name: str) -> Signer:
        """A key from the safe, which somebody has stolen."""
        return self.publisher.keys.open(f"file:{self.publisher.key(name)}")

    def next_of(self, role: str, change: Change = unchanged, *signers: Signer) -> bytes:
        """The role's next version, changed and signed so, in the place where a device looks for it."""
        metadata = Metadata(deepcopy(self.publisher.read(role).signed))
        metadata.signed.version += 1
        version = metadata.signed.version
        change(metadata.signed)
        return self.serve("timestamp.json" if role == "timestamp" else f"{version}.{role}.json", metadata, *signers)

    def serve_online(
        self,
        contents: dict[str, bytes],
        raised: int = 1,
        change_snapshot: Change = unchanged,
        change_timestamp: Change = unchanged,
    ) -> None:
        """A snapshot of these roles and a timestamp of it, with the online keys, `raised` versions up."""
        snapshot, timestamp = deepcopy(self.publisher.read("snapshot")), deepcopy(self.publisher.read("timestamp"))
        for role, content in contents.items():
            version = json.loads(content)["signed"]["version"]
            snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version, content, ["sha256"])
        snapshot.signed.version += raised
        change_snapshot(snapshot.signed)
        content = self.serve(f"{snapshot.signed.version}.snapshot.json", snapshot, self.online("snapshot"))
        timestamp.signed.version += raised
        timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, content, ["sha256"])
        change_timestamp(timestamp.signed)
        self.serve("timestamp.json", timestamp, self.online("timestamp"))
