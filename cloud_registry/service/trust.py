"""Which files devices may install: signing versions, keeping the signatures fresh, changing keys.

What is signed by enough keys is published at once, all of it or nothing; what is not waits for more signatures.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata

from cloud_registry.core import trust as rules
from cloud_registry.core.trust import ONLINE_ROLES, ROOT, TARGETS, Roles, Signatures, TrustSettings
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.errors import ConflictError, NotFoundError, RegistryError, TrustError, UsageError
from cloud_registry.service.trust_work import KeyRing, Outcome, Staged, TrustStore, TrustWork
from manifests.identity import ModelReference

_log = logging.getLogger("slipway.trust")


@dataclass(frozen=True, slots=True)
class NewRepository:
    """A repository to be made: where the offline keys of root and targets are, or go; thresholds; lifetimes in days."""

    root_keys: tuple[str, ...]
    targets_keys: tuple[str, ...]
    root_threshold: int = 1
    targets_threshold: int = 1
    lifetimes_d: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoleState:
    role: str
    version: int
    expires_at: datetime
    threshold: int
    key_ids: tuple[str, ...]
    versions: tuple[ModelReference, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustState:
    """How the repository stands. `problems` are why devices refuse it now; `announcements` what is due soon."""

    roles: tuple[RoleState, ...]
    waiting: tuple[Signatures, ...]
    announcements: tuple[str, ...]
    problems: tuple[str, ...]
    key_places: Mapping[str, str]


class TrustService:
    """Signs, publishes and judges.

    Methods raise NotFoundError where there is no repository, TrustError where what is there cannot be believed or
    signed, ConflictError where somebody else is changing it.
    """

    def __init__(self, store: TrustStore, keys: KeyRing, now: Callable[[], datetime]) -> None:
        self._store = store
        self._keys = keys
        self._now = now
        # What was logged last; a number of days that falls makes a new sentence a day.
        self._said: frozenset[str] = frozenset()

    def exists(self) -> bool:
        return self._store.exists()

    # Making and changing ----------------------------------------------------------------------------------------------

    def init(self, request: NewRepository) -> Outcome:
        """Make the keys that are not there, sign the first version of everything, and publish it.

        Raises:
            ConflictError: there is a repository already.
            UsageError: a threshold that its keys cannot reach, or an offline key within the repository.
        """
        with self._store.locked():
            if self._store.exists():
                raise ConflictError(
                    f"there is a trust repository in {self._store.directory} already",
                    hint="Change its keys with: slipway trust rotate",
                )
            thresholds = {ROOT: request.root_threshold, TARGETS: request.targets_threshold}
            texts = {ROOT: request.root_keys, TARGETS: request.targets_keys}
            places = {role: self._places(role, of_role, thresholds[role]) for role, of_role in texts.items()}
            places |= {role: [self._store.online_key_place(role)] for role in ONLINE_ROLES}
            # All refusals come before the first key is made.
            signers = {place: self._opened_or_new(place, role) for role, of_role in places.items() for place in of_role}
            keys = {role: [signers[place].public_key for place in of_role] for role, of_role in places.items()}
            work = TrustWork(self._keys, TrustSettings(lifetimes_d=dict(request.lifetimes_d)), {}, {}, self._now())
            work.know(list(signers.values()), list(signers))
            work.change({ROOT: rules.first_root(keys, thresholds), TARGETS: rules.first_targets()})
            work.sign()
            new = work.completed()
            self._store.publish(work.files(new))
            # The settings are what makes it a repository, so they come last.
            self._store.keep_settings(work.settings)
            return Outcome(
                {role: metadata.signed.version for role, metadata in new.items()}, (), work.settings.key_places
            )

    def sign(
        self, files: Iterable[SignedFile] = (), withdrawn: Iterable[ModelReference] = (), keys: Iterable[str] = ()
    ) -> Outcome:
        """Allow files, take versions back, or add signatures to what waits for them."""
        with self._work(keys) as work:
            work.change(rules.with_files(work.coming, files, withdrawn))
            return work.finish(self._store)

    def rotate(
        self, role: str, new_keys: Sequence[str], *, threshold: int | None = None, keys: Iterable[str] = ()
    ) -> Outcome:
        """Give a role new keys in place of all that it has; `new_keys` are made where they are not there.

        The role of a model may be given keys of its own so. An online role gets one new key without being told where.

        Raises:
            UsageError: no key, one named twice, or a threshold that they cannot reach.
        """
        with self._work(keys) as work:
            texts = list(new_keys)
            if role in ONLINE_ROLES and not texts:
                texts = [self._store.online_key_place(role)]
            wanted = threshold or self._threshold(work, role, len(texts))
            places = self._places(role, texts, wanted)
            signers = [self._opened_or_new(place, role) for place in places]
            work.know(signers, places)
            work.change(rules.with_keys(work.coming, role, [signer.public_key for signer in signers], wanted))
            return work.finish(self._store)

    def refresh(self, roles: Iterable[str] = (), keys: Iterable[str] = (), *, force: bool = False) -> Outcome:
        """Sign the online roles again where that is due, and whatever else is named."""
        with self._work(keys) as work:
            named = dict.fromkeys(roles)
            for role in named:
                if role not in work.coming:
                    raise NotFoundError(f"there is no role {role}", hint="See which there are: slipway trust status")
            again = {role: rules.unsigned_next(work.coming[role]) for role in named if role not in ONLINE_ROLES}
            work.change(again)
            return work.finish(self._store, force=force or len(again) < len(named))

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

    def discard(self) -> list[str]:
        """Throw away what waits for signatures; the roles that did."""
        with self._work(()) as work:
            self._store.keep_staged({}, {}, ())
            return list(work.staged)

    def check_root(self, pinned: Metadata[Any]) -> None:
        """Raises TrustError where devices with this root would not follow the repository."""
        check_pinned(pinned, self._store.root_chain())

    def sign_elsewhere(
        self, chain: Sequence[Metadata[Any]], published: Roles, staged: Roles, keys: Iterable[str]
    ) -> tuple[Staged, Outcome]:
        """Add signatures to what another machine has staged, and return it; this one needs no repository.

        Raises:
            TrustError: what it builds upon is not signed by the roots that are given.
        """
        check_believed(chain, published, is_changing=False)
        work = TrustWork(self._keys, TrustSettings(), published, staged, self._now())
        for text in keys:
            place = self._keys.place(text)
            work.know([self._keys.open(place)], [place])
        waiting = work.sign()
        return work.staged, Outcome({}, waiting, {}, rules.changes(published, work.staged))

    # Looking ----------------------------------------------------------------------------------------------------------

    def state(self) -> TrustState:
        settings = self._store.settings()
        published, staged, now = self._store.published(), self._store.staged(), self._now()
        work = TrustWork(self._keys, settings, published, staged, now)
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

    def unsigned(self, files: Iterable[SignedFile]) -> list[SignedFile]:
        """Those of the files that devices would refuse, since they are not signed or with other bytes."""
        published = self._store.published()
        return [file for file in files if not rules.allows(published, file)]

    def check(self, files: Iterable[SignedFile]) -> None:
        """Nothing where there is no repository, or devices would take all of the files.

        Raises:
            TrustError: they would not, and why.
        """
        if not self.exists():
            return
        problems = _problems(self._store.published(), self._now())
        if problems:
            raise TrustError(
                f"devices would refuse every update: {problems[0]}", hint="See what to do with: slipway trust status"
            )
        missing = self.unsigned(files)
        if missing:
            versions = sorted({file.reference for file in missing})
            more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
            raise TrustError(
                f"{' and '.join(map(str, versions))} {'is' if len(versions) == 1 else 'are'} not signed: devices would "
                f"refuse {missing[0].target}{more}",
                hint=f"Sign with: slipway trust sign {' '.join(map(str, versions))}",
            )

    # Parts ------------------------------------------------------------------------------------------------------------

    def _places(self, role: str, texts: Sequence[str], threshold: int) -> list[str]:
        """Where keys are, each once, and those of a person's outside the repository."""
        if not texts:
            raise UsageError(f"no key for {role} was named", hint="Name each by its place, such as /media/safe/key.pem")
        if not 1 <= threshold <= len(texts):
            raise UsageError(f"{threshold} of {len(texts)} keys cannot sign for {role}", hint="Name more keys.")
        places = [self._keys.place(text) for text in texts]
        if len(set(places)) < len(places):
            raise UsageError(f"the same key was named twice for {role}")
        inside = f"file:{self._store.directory.absolute()}/"
        if role not in ONLINE_ROLES and any(place.startswith(inside) for place in places):
            raise UsageError(
                f"a key for {role} would lie within the trust repository, where whoever breaks in finds it",
                hint="Keep the keys of root, targets and models elsewhere: on a stick in a safe, or on a token.",
            )
        return places

    def _opened_or_new(self, place: str, role: str) -> Signer:
        if self._keys.is_there(place):
            return self._keys.open(place)
        # A program that signs has nobody to ask for a passphrase.
        return self._keys.create(place, has_passphrase=role not in ONLINE_ROLES)

    @staticmethod
    def _threshold(work: TrustWork, role: str, count: int) -> int:
        try:
            return min(rules.role_keys(work.coming, role)[0].threshold, max(count, 1))
        except NotFoundError:
            return 1

    @contextmanager
    def _work(self, keys: Iterable[str]) -> Iterator[TrustWork]:
        """What stands now and is believed, with the keys that were named; nobody else changes it meanwhile."""
        settings = self._store.settings()
        with self._store.locked():
            published, staged = self._store.published(), self._store.staged()
            check_believed(self._store.root_chain(), published, is_changing=bool(staged))
            work = TrustWork(self._keys, settings, published, staged, self._now())
            for text in keys:
                place = self._keys.place(text)
                work.know([self._keys.open(place)], [place])
            yield work


def check_pinned(pinned: Metadata[Any], chain: Sequence[Metadata[Any]]) -> None:
    """Raises TrustError where a chain of roots does not go through the root that devices have pinned."""
    found = [root for root in chain if root.signed.version == pinned.signed.version]
    if not found or found[0].signed_bytes != pinned.signed_bytes:
        raise TrustError(
            f"version {pinned.signed.version} of the root is another one than devices have pinned",
            hint="This repository is not the one that your devices follow. Do not sign anything for it.",
        )


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
    roots = chain[-2:] if is_changing else chain[-1:]
    for role, metadata in published.items():
        believed = any(rules.is_signed({**published, ROOT: root}, role, metadata) for root in roots)
        if role not in (ROOT, *ONLINE_ROLES) and not believed:
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
