"""The keeper of the signed metadata: what stands, what would be signed next, and what comes back signed.

It holds the online keys alone. Whoever holds others works with it here or from afar in the same way (service/trust.py),
and it judges what they send as if strangers had: by signatures, form, version and date.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tuf.api.metadata import Metadata

from cloud_registry.core import trust as rules
from cloud_registry.core import trust_exchange as exchange
from cloud_registry.core.publication import running_digests
from cloud_registry.core.trust import ONLINE_ROLES, ROOT, TARGETS, Roles, TrustSettings
from cloud_registry.core.trust_answers import Outcome, Proposal, RoleState, TrustStand, TrustState
from cloud_registry.core.trust_files import SignedFile, files_of, files_of_deltas
from cloud_registry.errors import (
    AccessDeniedError,
    ConflictError,
    HubError,
    HubUnreachableError,
    MetadataRefusedError,
    RegistryError,
    TrustError,
    UsageError,
)
from cloud_registry.ports import FleetHub, ProgressListener
from cloud_registry.service.publication import Publication
from cloud_registry.service.trust_work import KeyRing, Publishing, TrustStore
from manifests.model import ModelManifest

_log = logging.getLogger("slipway.trust")


class Manifests(Protocol):
    def resolve(self, text: str) -> ModelManifest: ...


@dataclass(frozen=True, slots=True)
class Proposals:
    """Which files of versions there are to sign. `open_hub` is None where no hub is configured."""

    models: Manifests
    publication: Publication
    open_hub: Callable[[], FleetHub] | None
    module_id: str

    def propose(
        self, references: Sequence[str], *, deltas: bool, on_progress: ProgressListener | None = None
    ) -> Proposal:
        """The files of versions, with deltas from what devices run; those are made where they are missing."""
        files: list[SignedFile] = []
        notes: dict[str, None] = {}
        for text in references:
            manifest = self.models.resolve(text)
            files += files_of(manifest)
            if deltas:
                running = self._running(manifest.name, notes)
                made = self.publication.publish(manifest, running, on_progress)
                offers = [offer for delta in made if (offer := delta.offer()) is not None]
                files += files_of_deltas(manifest.reference, offers)
        return Proposal(tuple(files), tuple(notes))

    def _running(self, model: str, notes: dict[str, None]) -> Mapping[str, int] | None:
        """How many devices run each artifact of a model; None where no hub can be asked."""
        if self.open_hub is None:
            return None
        try:
            return running_digests(self.open_hub().module_twins(self.module_id), model)
        except (HubUnreachableError, HubError) as err:
            notes[f"devices could not be asked what they run: {err.message}"] = None
            return None


class TrustDesk:
    """Satisfies TrustVerbs.

    Methods raise NotFoundError where there is no repository, TrustError where what is there cannot be believed or
    signed, ConflictError where somebody else has changed or is changing it.
    """

    def __init__(
        self,
        store: TrustStore,
        keys: KeyRing,
        now: Callable[[], datetime],
        open_proposals: Callable[[], Proposals] | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._now = now
        self._open_proposals = open_proposals
        # What was logged last; a number of days that falls makes a new sentence a day.
        self._said: frozenset[str] = frozenset()

    def exists(self) -> bool:
        return self._store.exists()

    # What stands, and what could be signed ----------------------------------------------------------------------------

    def stand(self, roles: Sequence[str] | None = None) -> TrustStand:
        """What stands of TUF's own roles, of these (or all) of models, and of what waits for signatures."""
        settings = self._store.settings()
        with self._store.locked():
            staged, published = self._read(roles)
            chain = self._store.root_chain()
        return TrustStand(
            tuple(map(exchange.spelled, chain)),
            {role: exchange.spelled(metadata) for role, metadata in published.items() if role not in ONLINE_ROLES},
            {role: exchange.spelled(metadata) for role, metadata in staged.items()},
            settings.lifetimes_d,
        )

    def propose(
        self, references: Sequence[str], *, deltas: bool = True, on_progress: ProgressListener | None = None
    ) -> Proposal:
        """The files of model versions (name:version, or a name for its latest) that there are to sign.

        With `deltas` those from what devices run are made first where they are missing.
        """
        self._store.settings()
        if self._open_proposals is None or not references:
            return Proposal(())
        return self._open_proposals().propose(references, deltas=deltas, on_progress=on_progress)

    def unsigned(self, files: Iterable[SignedFile]) -> list[SignedFile]:
        """Those of the files that devices would refuse, since they are not signed or with other bytes."""
        asked = list(files)
        published = self._store.published(_roles_of(asked))
        return [file for file in asked if not rules.allows(published, file)]

    def state(self) -> TrustState:
        """The roles, their versions and expiry, what waits for signatures, and what is due."""
        settings = self._store.settings()
        published, staged, now = self._store.published(), self._store.staged(), self._now()
        work = Publishing(self._keys, settings, published, staged, now)
        told = (
            rules.announcement(role, published[role].signed.expires, settings.lifetime(role), now)
            for role in _ordered(published)
        )
        return TrustState(
            tuple(_role_state(published, role) for role in _ordered(published)),
            tuple(rules.signatures_of(published, work.staged, role) for role in work.staged),
            tuple(sentence for sentence in told if sentence is not None),
            tuple(_problems(published, now)),
            settings.key_places,
        )

    def check(self, files: Iterable[SignedFile]) -> None:
        """Nothing where there is no repository, or devices would take all of the files.

        Raises:
            TrustError: they would not, and why.
        """
        if not self.exists():
            return
        asked = list(files)
        problems = _problems(self._store.published(_roles_of(asked)), self._now())
        if problems:
            raise TrustError(
                f"devices would refuse every update: {problems[0]}", hint="See what to do with: slipway trust status"
            )
        missing = self.unsigned(asked)
        if missing:
            versions = sorted({file.reference for file in missing})
            more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
            raise TrustError(
                f"{' and '.join(map(str, versions))} {'is' if len(versions) == 1 else 'are'} not signed: devices would "
                f"refuse {missing[0].target}{more}",
                hint=f"Sign with: slipway trust sign {' '.join(map(str, versions))}",
            )

    # What comes signed ------------------------------------------------------------------------------------------------

    def make_online_key(self, role: str) -> dict[str, Any]:
        """Make a new key of snapshot or timestamp, which stays here; its public part."""
        if role not in ONLINE_ROLES:
            raise UsageError(f"the keys of {role[:80]} are not the server's to make")
        with self._store.locked():
            signer = self._keys.create(self._store.online_key_place(role), has_passphrase=False)
        return {"keyid": signer.public_key.keyid, **signer.public_key.to_dict()}

    def begin(self, root: Mapping[str, Any], targets: Mapping[str, Any], lifetimes_d: Mapping[str, float]) -> Outcome:
        """Publish the first root and targets, signed by their keys, with a snapshot and a timestamp of ours.

        Raises:
            ConflictError: there is a repository already.
        """
        with self._store.locked():
            if self._store.exists():
                raise _exists_already(self._store)
            given = exchange.read_roles({ROOT: root, TARGETS: targets})
            work = Publishing(self._keys, _checked_lifetimes(lifetimes_d), {}, {}, self._now())
            self._judge(work, given)
            work.settings = settings = self._checked_settings(work.settings.lifetimes_d, given, {})
            for role, metadata in given.items():
                work.staged[role] = exchange.counted_signatures({}, given, role, metadata, work.payload(role, metadata))
            waiting = work.waiting()
            if waiting:
                raise MetadataRefusedError(f"the first {waiting[0].role} is not signed by enough of its own keys")
            new = work.completed()
            self._store.publish(work.files(new))
            # The settings are what makes it a repository, so they come last.
            self._store.keep_settings(work.settings)
            return Outcome(_versions(new), (), settings.key_places)

    def submit(self, roles: Mapping[str, Mapping[str, Any]], base: Mapping[str, str]) -> Outcome:
        """Take a change of models' files, or signatures: what is signed by enough keys is published with all that
        waits, else it waits too. `base` says what each role was built upon.

        Raises:
            MetadataRefusedError: a form, a date or a signature that is not good.
            AccessDeniedError: it gives roles other keys.
        """
        return self._take(roles, base, may_change_keys=False)

    def submit_keys(self, roles: Mapping[str, Mapping[str, Any]], base: Mapping[str, str]) -> Outcome:
        """Take a change of keys: see submit."""
        return self._take(roles, base, may_change_keys=True)

    def refresh(self, force: bool = False) -> Outcome:
        """Sign snapshot and timestamp again where that is due, or all the same."""
        with self._work(()) as work:
            return work.finish(self._store, force=force)

    def discard(self) -> list[str]:
        """Throw away what waits for signatures; the roles that did."""
        with self._work(()) as work:
            self._store.keep_staged({}, {}, ())
            return list(work.staged)

    def keep_fresh(self) -> None:
        """What a server does every hour: refresh what a program signs, and log what a person should. Never raises."""
        if not self.exists():
            return
        try:
            published = self.refresh().published
            said = self.state().announcements
        except RegistryError as err:
            said, published = (f"the signed metadata was not refreshed: {err.message}. {err.hint}",), {}
        if published:
            _log.info("signed again: %s", ", ".join(published))
        for sentence in said:
            if sentence not in self._said:
                _log.warning("%s", sentence)
        self._said = frozenset(said)

    # Parts ------------------------------------------------------------------------------------------------------------

    def _take(
        self, roles: Mapping[str, Mapping[str, Any]], base: Mapping[str, str], *, may_change_keys: bool
    ) -> Outcome:
        given = exchange.read_roles(roles)
        with self._work(given) as work:
            exchange.check_footing(work.published, work.staged, base, list(given))
            # Whoever adds a signature to what waits already sends nothing new.
            fresh = {
                role: metadata for role, metadata in given.items() if not _is_same(work.staged.get(role), metadata)
            }
            self._judge(work, fresh)
            if not may_change_keys and exchange.changes_keys(work.coming, fresh):
                raise AccessDeniedError(
                    "this changes keys, and came as a change of models' files", hint="Use: slipway trust rotate"
                )
            if ROOT in fresh:
                work.settings = self._checked_settings(work.settings.lifetimes_d, fresh, work.settings.key_places)
            coming = {**work.coming, **fresh}
            counted = {
                role: exchange.counted_signatures(work.published, coming, role, metadata, work.payload(role, metadata))
                for role, metadata in given.items()
            }
            for role, metadata in counted.items():
                if role in fresh:
                    work.staged[role] = metadata
                else:
                    work.staged[role].signatures.update(metadata.signatures)
            if ROOT in fresh:
                self._store.keep_settings(work.settings)
            return work.finish(self._store)

    def _judge(self, work: Publishing, given: Roles) -> None:
        for role, metadata in given.items():
            exchange.check_form(role, metadata, work.published.get(role))
            rules.check_size(role, metadata.to_bytes())
            exchange.check_expiry(role, metadata.signed.expires, work.settings.lifetime(role), self._now())
        for role in given:
            # A role that nobody delegated to is nobody's to send.
            rules.role_keys({**work.coming, **given}, role)

    def _checked_settings(
        self, lifetimes_d: Mapping[str, float], given: Roles, known: Mapping[str, str]
    ) -> TrustSettings:
        """The settings with the places of the online keys that a root names; raises MetadataRefusedError where they
        are not ours, since nothing could be published any more."""
        places = dict(known)
        for role in ONLINE_ROLES:
            speaks, _ = rules.role_keys(given, role)
            if not set(speaks.keyids) <= places.keys():
                places |= self._online_places(role)
            if len(set(speaks.keyids) & places.keys()) < speaks.threshold:
                raise MetadataRefusedError(
                    f"the root gives {role} keys that are not this server's", hint="They are made here, when asked for."
                )
        mine = {key_id for role in ONLINE_ROLES for key_id in rules.role_keys(given, role)[0].keyids}
        kept = {key_id: place for key_id, place in places.items() if key_id in mine or key_id in known}
        return TrustSettings(lifetimes_d=dict(lifetimes_d), key_places=kept)

    def _online_places(self, role: str) -> dict[str, str]:
        found = {}
        for place in self._store.online_key_places(role):
            with suppress(RegistryError):
                found[self._keys.open(place).public_key.keyid] = place
        return found

    def _read(self, roles: Collection[str] | None) -> tuple[dict[str, Metadata[Any]], dict[str, Metadata[Any]]]:
        """What waits, and what is published of these roles and of those that wait."""
        staged = self._store.staged()
        return staged, self._store.published(None if roles is None else {*roles, *staged})

    @contextmanager
    def _work(self, roles: Collection[str]) -> Iterator[Publishing]:
        """What stands now and is believed; nobody else changes it meanwhile."""
        self._store.settings()
        with self._store.locked():
            settings = self._store.settings()
            staged, published = self._read(roles)
            check_believed(self._store.root_chain(), published, is_changing=bool(staged))
            yield Publishing(self._keys, settings, published, staged, self._now())


def _is_same(waiting: Metadata[Any] | None, metadata: Metadata[Any]) -> bool:
    return waiting is not None and exchange.content_of(waiting) == exchange.content_of(metadata)


def _checked_lifetimes(lifetimes_d: Mapping[str, float]) -> TrustSettings:
    known = lifetimes_d.keys() <= rules.LIFETIMES_D.keys()
    if not known or not all(0 < days < rules.LIFETIME_D_MAX for days in lifetimes_d.values()):
        raise UsageError("a lifetime is of no role, or of no number of days")
    return TrustSettings(lifetimes_d=dict(lifetimes_d))


def _exists_already(store: TrustStore) -> ConflictError:
    return ConflictError(
        f"there is a trust repository in {store.directory} already", hint="Change its keys with: slipway trust rotate"
    )


def _roles_of(files: Iterable[SignedFile]) -> set[str]:
    return {rules.role_of(file.reference.name) for file in files}


def _versions(new: Roles) -> dict[str, int]:
    return {role: metadata.signed.version for role, metadata in new.items()}


def check_believed(chain: Sequence[Metadata[Any]], published: Roles, *, is_changing: bool) -> None:
    """Raises TrustError where a role is not what its keys signed: nothing may be built upon such a thing.

    While a change of keys is under way, what the root before vouches for counts too.
    """
    for older, metadata in zip([None, *chain], chain, strict=False):
        before = None if older is None else older.signed
        try:
            result = metadata.signed.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
        except ValueError as err:
            raise TrustError(f"the versions of the root have a gap: {err}") from err
        if not result:
            raise TrustError(f"version {metadata.signed.version} of the root is not signed by enough of its keys")
    believing = [{**published, ROOT: root} for root in (chain[-2:] if is_changing else chain[-1:])]
    for role, metadata in published.items():
        if role in (ROOT, *ONLINE_ROLES):
            continue
        if not any(rules.is_signed(roles, role, metadata) for roles in believing):
            raise TrustError(
                f"{role}, version {metadata.signed.version}, is not signed by the keys that speak for it",
                hint="Somebody has changed the folder. Restore it from a copy before anything is signed.",
            )


def _problems(published: Roles, now: datetime) -> list[str]:
    """Why devices refuse what is published, a clause each."""
    problems = []
    for role in _ordered(published):
        metadata = published[role]
        if metadata.signed.expires <= now:
            problems.append(f"{role} expired at {metadata.signed.expires:%Y-%m-%d %H:%M} UTC")
        elif role != ROOT and not rules.is_signed(published, role, metadata):
            problems.append(f"{role} is not signed by the keys that speak for it")
    return problems


def _ordered(published: Roles) -> list[str]:
    """TUF's own roles in the order of their rank, then those of models."""
    top = [role for role in rules.LIFETIMES_D if role in published]
    return [*top, *sorted(role for role in published if role not in top)]


def _role_state(published: Roles, role: str) -> RoleState:
    keys, _ = rules.role_keys(published, role)
    signed = published[role].signed
    versions = tuple(rules.versions_in(signed)) if hasattr(signed, "targets") else ()
    return RoleState(role, signed.version, signed.expires, keys.threshold, tuple(keys.keyids), versions)
