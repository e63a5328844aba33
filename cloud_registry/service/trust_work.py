"""One change of the signed metadata: what becomes new, who signs it, and in which order it is published.

A person's part, `TrustWork`, is done where the offline keys are; a program's, `Publishing`, where the repository is.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata

from cloud_registry.core import trust as rules
from cloud_registry.core.trust import (
    ROOT,
    SNAPSHOT,
    TIMESTAMP,
    Roles,
    TrustSettings,
    file_name,
)
from cloud_registry.core.trust_answers import Outcome, Signatures
from cloud_registry.errors import RegistryError, TrustError

Staged = dict[str, Metadata[Any]]


class TrustStore(Protocol):
    """Where the metadata is kept. See adapters/tuf_repository.py for what each method promises."""

    directory: Path
    metadata: Path

    @property
    def staged_path(self) -> Path: ...

    def exists(self) -> bool: ...

    def locked(self) -> AbstractContextManager[None]: ...

    def settings(self) -> TrustSettings: ...

    def keep_settings(self, settings: TrustSettings) -> None: ...

    def online_key_place(self, role: str) -> str: ...

    def online_key_places(self, role: str) -> list[str]: ...

    def published(self, roles: Collection[str] | None = None) -> dict[str, Metadata[Any]]: ...

    def root_chain(self) -> list[Metadata[Any]]: ...

    def publish(self, files: Sequence[tuple[str, bytes]]) -> None: ...

    def staged(self) -> dict[str, Metadata[Any]]: ...

    def keep_staged(self, published: Roles, staged: Roles, chain: Sequence[Metadata[Any]]) -> None: ...


class KeyRing(Protocol):
    """Keys by place, which is a URI. See adapters/signing_keys.py for what each method raises."""

    def place(self, text: str) -> str: ...

    def is_there(self, place: str) -> bool: ...

    def create(self, place: str, *, has_passphrase: bool) -> Signer: ...

    def open(self, place: str) -> Signer: ...


class TrustWork:
    """What is published, what is staged for it, and the signers at hand. `coming` is both together."""

    def __init__(self, keys: KeyRing, settings: TrustSettings, published: Roles, staged: Roles, now: datetime) -> None:
        self._keys = keys
        self._now = now
        self._signers: dict[str, Signer] = {}
        self._named: set[str] = set()
        self._unavailable: dict[str, str] = {}
        # What is signed of a staged role, by the object that it was spelled from.
        self._payloads: dict[str, tuple[object, bytes]] = {}
        self.settings = settings
        self.published = published
        # What was published by a command that was killed before it had cleared its stage is no longer staged.
        self.staged: Staged = {
            role: metadata
            for role, metadata in staged.items()
            if role not in published or metadata.signed.version > published[role].signed.version
        }

    @property
    def coming(self) -> Staged:
        return {**self.published, **self.staged}

    @property
    def unavailable(self) -> tuple[str, ...]:
        return tuple(self._unavailable.values())

    def know(self, signers: Sequence[Signer], places: Sequence[str]) -> None:
        """Sign with these, whether or not fewer would do, and find them again."""
        found = {signer.public_key.keyid: signer for signer in signers}
        self._signers.update(found)
        self._named.update(found)
        known = {**self.settings.key_places, **dict(zip(found, places, strict=True))}
        self.settings = TrustSettings(lifetimes_d=self.settings.lifetimes_d, key_places=known)

    def change(self, changed: Roles) -> None:
        """Stage new content of roles; whoever had signed an earlier stage of them must sign again."""
        for role, metadata in changed.items():
            metadata.signatures.clear()
            current = self.published.get(role)
            metadata.signed.version = 1 if current is None else current.signed.version + 1
            self._renew(role, metadata)
            self.staged[role] = metadata
            self._payloads.pop(role, None)

    def _renew(self, role: str, metadata: Metadata[Any]) -> None:
        metadata.signed.expires = (self._now + self.settings.lifetime(role)).replace(microsecond=0)

    # Signing ----------------------------------------------------------------------------------------------------------

    def sign(self) -> tuple[Signatures, ...]:
        """Sign what is staged, and return what still waits."""
        for role, metadata in self.staged.items():
            for key_id in self._key_ids(role):
                if key_id in self._named and key_id not in self._signed(role).signed:
                    self._add_signature(role, metadata, self._signers[key_id])
            for key_id in self._signed(role).missing:
                if self._signed(role).needed:
                    self._sign_if_at_hand(role, metadata, key_id)
            self._sign_for_old_root(role, metadata)
        return self.waiting()

    def waiting(self) -> tuple[Signatures, ...]:
        """What is staged and lacks signatures."""
        return tuple(state for role in self.staged if (state := self._signed(role)).needed)

    def _sign_for_old_root(self, role: str, metadata: Metadata[Any]) -> None:
        """Where the role's keys change, let the old ones sign too, if they are at hand: devices then notice nothing."""
        if ROOT not in self.staged or role == ROOT or role not in self.published:
            return
        for key_id in rules.role_keys(self.published, role)[0].keyids:
            if not rules.is_signed(self.published, role, metadata):
                self._sign_if_at_hand(role, metadata, key_id)

    def _sign_if_at_hand(self, role: str, metadata: Metadata[Any], key_id: str) -> None:
        """Sign with a key that nobody named, if it is where it was last and opens; else remember why not."""
        signer = self._signer(key_id)
        if signer is not None:
            try:
                self._add_signature(role, metadata, signer)
            except TrustError as err:
                self._unavailable[key_id] = err.message

    def _signed(self, role: str) -> Signatures:
        return rules.signatures_of(self.published, self.staged, role, self.payload(role, self.staged[role]))

    def payload(self, role: str, metadata: Metadata[Any]) -> bytes:
        """What is signed of a role; spelled once for what is said once."""
        known = self._payloads.get(role)
        if known is None or known[0] is not metadata.signed:
            known = self._payloads[role] = (metadata.signed, metadata.signed_bytes)
        return known[1]

    def _key_ids(self, role: str) -> list[str]:
        """The keys that speak for a role, and those that did until now: their signature makes the change seamless."""
        above = rules.delegator_of(role)
        delegator = self.staged[above] if above in self.staged else self.published[above]
        found = list(rules.role_keys({above: delegator}, role)[0].keyids)
        if role in self.published:
            found += rules.role_keys(self.published, role)[0].keyids
        return list(dict.fromkeys(found))

    def _signer(self, key_id: str) -> Signer | None:
        """The key from where it was last, if it is there now."""
        place = self.settings.key_places.get(key_id)
        if key_id not in self._signers and place is not None and self._keys.is_there(place):
            try:
                signer = self._keys.open(place)
            except RegistryError as err:
                self._unavailable[key_id] = err.message
                return None
            if signer.public_key.keyid == key_id:
                self._signers[key_id] = signer
            else:
                self._unavailable[key_id] = f"there is another key at {place} now"
        return self._signers.get(key_id)

    def _add_signature(self, role: str, metadata: Metadata[Any], signer: Signer) -> None:
        try:
            signature = signer.sign(self.payload(role, metadata))
        except RegistryError:
            raise
        except Exception as err:  # (a signer of the library may raise whatever its token or its key does)
            raise TrustError(f"a key refused to sign: {err}") from err
        metadata.signatures[signature.keyid] = signature


class Publishing(TrustWork):
    """A program's part: signing what is online, and writing what is signed by enough keys."""

    def finish(self, store: TrustStore, *, force: bool = False) -> Outcome:
        """Publish everything that is staged if it is signed by enough keys, else keep what waits for the others.

        A model that is signed by enough of the keys that already speak for it does not wait for what others began.
        """
        waiting = self.waiting()
        now = self._meanwhile() if waiting else self
        new = self._completed_now(now, force=force)
        files = now.files(new)
        # From here on nothing is refused any more.
        store.keep_staged(self.published, self.staged, store.root_chain())
        store.publish(files)
        left = {role: metadata for role, metadata in self.staged.items() if waiting and role not in new}
        if len(left) < len(self.staged):
            store.keep_staged({**self.published, **new}, left, store.root_chain())
        return Outcome(
            {role: metadata.signed.version for role, metadata in new.items()},
            waiting,
            self.settings.key_places,
            unavailable=self.unavailable,
        )

    def _meanwhile(self) -> "Publishing":
        """What need not wait for a person: models that lack nothing, and the timestamp, which must not expire."""
        ready = {
            role: metadata
            for role, metadata in self.staged.items()
            if rules.model_of(role) is not None
            and not self._signed(role).needed
            and rules.is_signed(self.published, role, metadata)
        }
        return Publishing(self._keys, self.settings, self.published, ready, self._now)

    def _completed_now(self, now: "Publishing", *, force: bool) -> Staged:
        try:
            return now.completed(force=force)
        except TrustError as err:
            if now is self:
                raise
            # What waits may well be the new key.
            self._unavailable[TIMESTAMP] = err.message
            return {}

    def completed(self, *, force: bool = False) -> Staged:
        """What is staged, with the snapshot and timestamp that belong to it, signed."""
        new = dict(self.staged)
        contents = {role: metadata.to_bytes() for role, metadata in new.items() if role != ROOT}
        if contents or force or self._is_stale(SNAPSHOT):
            new[SNAPSHOT] = self._by_program(SNAPSHOT, rules.next_snapshot(self.coming, contents))
        if SNAPSHOT in new or force or self._is_stale(TIMESTAMP):
            snapshot = new.get(SNAPSHOT)
            new[TIMESTAMP] = self._by_program(TIMESTAMP, rules.next_timestamp(self.coming, snapshot))
        return new

    def _is_stale(self, role: str) -> bool:
        current = self.published.get(role)
        if current is None or not rules.is_signed(self.coming, role, current):
            return True
        return rules.is_due(current.signed.expires, self.settings.lifetime(role), self._now)

    def _by_program(self, role: str, metadata: Metadata[Any]) -> Metadata[Any]:
        self._renew(role, metadata)
        threshold, _ = rules.role_keys(self.coming, role)
        for key_id in self._key_ids(role):
            self._sign_if_at_hand(role, metadata, key_id)
        if not rules.is_signed(self.coming, role, metadata):
            places = [self.settings.key_places.get(key_id, key_id) for key_id in threshold.keyids]
            raise TrustError(
                f"{role} cannot be signed: its key is not at {' or '.join(places)}",
                hint=f"Restore the key, or give the role a new one: slipway trust rotate {role}",
            )
        return metadata

    def files(self, new: Roles) -> list[tuple[str, bytes]]:
        """What to write, in an order in which a device that looks in between finds nothing wrong.

        A new root comes last where the rest is signed for the old one too; it must come before the timestamp where the
        old keys are lost.

        Raises:
            RegistryError: devices would not read so much.
        """
        first = [role for role in new if role not in (ROOT, TIMESTAMP)]
        last = [role for role in (TIMESTAMP, ROOT) if role in new]
        if ROOT in new and ROOT in self.published:
            old = {**self.coming, **new, ROOT: self.published[ROOT]}
            if not all(rules.is_signed(old, role, metadata) for role, metadata in new.items() if role != ROOT):
                last.reverse()
        elif ROOT in new:
            last.reverse()
        contents = {role: new[role].to_bytes() for role in (*first, *last)}
        for role, content in contents.items():
            rules.check_size(role, content)
        return [(file_name(role, new[role].signed.version), content) for role, content in contents.items()]
