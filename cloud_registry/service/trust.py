"""Which files devices may install, decided where the offline keys are: signing versions, changing keys.

The repository may be in a folder here or at a server: a desk (service/trust_desk.py) tells what stands, and takes what
was signed. A server is not believed: what it says must build upon the root that was seen of it before, and what would
be signed is shown, a line each, before a key signs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata

from cloud_registry.core import trust as rules
from cloud_registry.core import trust_exchange as exchange
from cloud_registry.core.trust import ONLINE_ROLES, ROOT, TARGETS, Roles, TrustSettings
from cloud_registry.core.trust_answers import Outcome, Proposal, TrustStand, TrustState
from cloud_registry.core.trust_exchange import SeenRepository
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.errors import ConflictError, NotFoundError, TrustError, UsageError
from cloud_registry.ports import ProgressListener
from cloud_registry.service.trust_desk import check_believed
from cloud_registry.service.trust_work import KeyRing, Staged, TrustWork
from cloud_registry.service.verbs import TrustVerbs
from manifests.identity import ModelReference

# Told, before any key signs, what would be; raises to refuse it.
Approval = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class NewRepository:
    """A repository to be made: where the offline keys of root and targets are, or go; thresholds; lifetimes in days."""

    root_keys: tuple[str, ...]
    targets_keys: tuple[str, ...]
    root_threshold: int = 1
    targets_threshold: int = 1
    lifetimes_d: Mapping[str, float] = field(default_factory=dict)


class TrustMemory(Protocol):
    """What a keeper of keys remembers of one repository. See adapters/trust_memory.py."""

    @property
    def forbidden_prefixes(self) -> Sequence[str]:
        """Places that begin so are the registry's own: no offline key may lie there."""
        ...

    def seen(self) -> SeenRepository: ...

    def remember(self, seen: SeenRepository, *, is_new: bool = False) -> None:
        """Add to what is known of the repository; of a new one nothing but places of keys was known."""
        ...


class TrustService:
    """Signs. Methods raise what the desk raises, and TrustError where what it says cannot be believed.

    `approve` is told what would be signed.
    """

    def __init__(
        self,
        desk: TrustVerbs,
        memory: TrustMemory,
        keys: KeyRing,
        now: Callable[[], datetime],
        approve: Approval = lambda _: None,
    ) -> None:
        self._desk = desk
        self._memory = memory
        self._keys = keys
        self._now = now
        self._approve = approve

    # Making and changing ----------------------------------------------------------------------------------------------

    def init(self, request: NewRepository) -> Outcome:
        """Make the keys that are not there, sign the first version of everything, and have it published.

        Raises:
            ConflictError: there is a repository already.
            UsageError: a threshold that its keys cannot reach, or an offline key where no such key may lie.
        """
        thresholds = {ROOT: request.root_threshold, TARGETS: request.targets_threshold}
        texts = {ROOT: request.root_keys, TARGETS: request.targets_keys}
        places = {role: self._places(role, of_role, thresholds[role]) for role, of_role in texts.items()}
        # All refusals come before the first key is made.
        self._check_none_is_there()
        signers = {place: self._opened_or_new(place) for of_role in places.values() for place in of_role}
        keys: dict[str, list[Key]] = {
            role: [signers[place].public_key for place in of_role] for role, of_role in places.items()
        }
        keys |= {role: [self._online_key(role)] for role in ONLINE_ROLES}
        settings = TrustSettings(lifetimes_d=dict(request.lifetimes_d))
        work = TrustWork(self._keys, settings, {}, {}, self._now())
        work.know(list(signers.values()), list(signers))
        work.change({ROOT: rules.first_root(keys, thresholds), TARGETS: rules.first_targets()})
        self._approve(rules.changes({}, work.staged))
        work.sign()
        outcome = self._desk.begin(
            exchange.spelled(work.staged[ROOT]), exchange.spelled(work.staged[TARGETS]), dict(request.lifetimes_d)
        )
        root = exchange.spelled(work.staged[ROOT])
        seen = SeenRepository(root=root, versions={ROOT: 1, TARGETS: 1}, key_places=work.settings.key_places)
        self._memory.remember(seen, is_new=True)
        return replace(outcome, key_places={**outcome.key_places, **work.settings.key_places})

    def propose(
        self, references: Sequence[str], *, deltas: bool = True, on_progress: ProgressListener | None = None
    ) -> Proposal:
        """The files of versions that there are to sign; raises TrustError where others than asked for are proposed."""
        if not references:
            return Proposal(())
        proposal = self._desk.propose(references, deltas=deltas, on_progress=on_progress)
        asked = {text.partition(":")[0]: text for text in references}
        for file in proposal.files:
            reference = file.reference
            is_asked = any(text in (reference.name, str(reference)) for text in references)
            if not is_asked or not file.target.startswith(f"{reference.name}/{reference.version}/"):
                raise TrustError(
                    f"{file.target} of {reference} was proposed, and {' '.join(asked.values())} asked for",
                    hint="Do not sign anything for this server before somebody has looked at it.",
                )
        return proposal

    def sign(
        self, files: Iterable[SignedFile] = (), withdrawn: Iterable[ModelReference] = (), keys: Iterable[str] = ()
    ) -> Outcome:
        """Allow files, take versions back, or add signatures to what waits for them."""
        files, withdrawn = list(files), list(withdrawn)
        models = {file.reference.name for file in files} | {reference.name for reference in withdrawn}

        def change(work: TrustWork) -> Roles:
            rules.check_same_bytes(work.published, files)
            return rules.with_files(work.coming, files, withdrawn)

        return self._change([rules.role_of(model) for model in sorted(models)], change, keys)

    def rotate(
        self, role: str, new_keys: Sequence[str], *, threshold: int | None = None, keys: Iterable[str] = ()
    ) -> Outcome:
        """Give a role new keys in place of all that it has; `new_keys` are made where they are not there.

        The role of a model may be given keys of its own so. An online role gets one new key, made where the repository
        is, without being told where.

        Raises:
            UsageError: no key, one named twice, or a threshold that they cannot reach.
        """

        def change(work: TrustWork) -> Roles:
            public: list[Key] = []
            if role in ONLINE_ROLES and not new_keys:
                public = [self._online_key(role)]
            wanted = threshold or self._threshold(work, role, len(new_keys))
            if not public:
                places = self._places(role, new_keys, wanted)
                signers = [self._opened_or_new(place, is_online=role in ONLINE_ROLES) for place in places]
                work.know(signers, places)
                public = [signer.public_key for signer in signers]
            return rules.with_keys(work.coming, role, public, wanted)

        return self._change(None if role == TARGETS else [role], change, keys)

    def refresh(self, roles: Iterable[str] = (), keys: Iterable[str] = (), *, force: bool = False) -> Outcome:
        """Have the online roles signed again where that is due, and sign whatever else is named."""
        named, keys = list(dict.fromkeys(roles)), list(keys)
        offline = [role for role in named if role not in ONLINE_ROLES]
        program = Outcome()
        if not (offline or keys) or force or len(offline) < len(named):
            program = self._desk.refresh(force or len(offline) < len(named))
            if not (offline or keys):
                return self._told(program)

        def again(work: TrustWork) -> Roles:
            for role in offline:
                if role not in work.coming:
                    raise NotFoundError(f"there is no role {role}", hint="See which there are: slipway trust status")
            return {role: rules.unsigned_next(work.coming[role]) for role in offline}

        outcome = self._change(offline, again, keys)
        return replace(outcome, published={**program.published, **outcome.published})

    def discard(self) -> list[str]:
        """Throw away what waits for signatures; the roles that did."""
        return list(self._desk.discard())

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
        changes = rules.changes(published, work.staged)
        self._approve(changes)
        waiting = work.sign()
        return work.staged, Outcome({}, waiting, {}, changes)

    # Looking ----------------------------------------------------------------------------------------------------------

    def state(self) -> TrustState:
        """How the repository stands, if it is the one that was seen before."""
        state = self._desk.state()
        seen = self._memory.seen()
        if seen.root is not None:
            self._believed(self._desk.stand([]))
            _check_not_older({role.role: role.version for role in state.roles}, seen)
        return replace(state, key_places={**state.key_places, **seen.key_places})

    def unsigned(self, files: Iterable[SignedFile]) -> list[SignedFile]:
        """Those of the files that devices would refuse, since they are not signed or with other bytes."""
        return list(self._desk.unsigned(list(files)))

    def check_root(self, pinned: Metadata[Any]) -> None:
        """Raises TrustError where devices with this root would not follow the repository; else remember it."""
        check_pinned(pinned, [exchange.read_role(ROOT, root) for root in self._desk.stand([]).roots])
        seen = self._memory.seen()
        if seen.root is None:
            self._memory.remember(SeenRepository(root=exchange.spelled(pinned)))

    @property
    def has_seen_nothing(self) -> bool:
        """Whether this repository was never seen before, so that its root is believed as it comes."""
        return self._memory.seen().root is None

    # Parts ------------------------------------------------------------------------------------------------------------

    def _change(
        self, roles: Sequence[str] | None, change: Callable[[TrustWork], Roles], keys: Iterable[str]
    ) -> Outcome:
        """Sign a change of what stands, with the keys that are named or at hand, and have it published or kept."""
        stand = self._desk.stand(roles)
        published, staged = self._believed(stand)
        seen = self._memory.seen()
        settings = TrustSettings(lifetimes_d=stand.lifetimes_d, key_places=seen.key_places)
        work = TrustWork(self._keys, settings, published, staged, self._now())
        for text in keys:
            place = self._keys.place(text)
            work.know([self._keys.open(place)], [place])
        before, waited = dict(work.staged), {role: len(metadata.signatures) for role, metadata in work.staged.items()}
        work.change(change(work))
        if not work.staged:
            # Nothing to sign, but what a program signs may be due.
            return self._told(self._desk.submit({}, {}))
        changes = rules.changes(published, work.staged)
        self._approve(changes)
        work.sign()
        # Before it is asked for: a place too many does no harm, a key that nobody finds does.
        self._memory.remember(SeenRepository(key_places=work.settings.key_places))
        sent = {
            role: exchange.spelled(metadata)
            for role, metadata in work.staged.items()
            if metadata is not before.get(role) or len(metadata.signatures) > waited[role]
        }
        base = {role: exchange.footing(published, staged, role) for role in sent}
        fresh = {role: work.staged[role] for role in sent if work.staged[role] is not before.get(role)}
        # Whoever adds a signature to what waits does what that is; whoever changes more is judged by that alone.
        built_on = {**published, **before} if fresh else published
        has_other_keys = exchange.changes_keys(built_on, fresh or {role: work.staged[role] for role in sent})
        outcome = (self._desk.submit_keys if has_other_keys else self._desk.submit)(sent, base)
        self._note(published, outcome)
        return self._told(replace(outcome, changes=changes, unavailable=(*work.unavailable, *outcome.unavailable)))

    def _told(self, outcome: Outcome) -> Outcome:
        return replace(outcome, key_places={**outcome.key_places, **self._memory.seen().key_places})

    def _believed(self, stand: TrustStand) -> tuple[Staged, Staged]:
        """What is published and what waits, if it builds upon what was seen before."""
        chain = [exchange.read_role(ROOT, root) for root in stand.roots]
        published, staged = exchange.read_roles(stand.published), exchange.read_roles(stand.staged)
        if not chain or ROOT not in published or published[ROOT].signed_bytes != chain[-1].signed_bytes:
            raise TrustError("what was told of the repository has no root, or another one than its newest")
        check_believed(chain, published, is_changing=bool(staged))
        seen = self._memory.seen()
        if seen.root is not None:
            check_pinned(exchange.read_role(ROOT, seen.root), chain)
        _check_not_older({role: metadata.signed.version for role, metadata in published.items()}, seen)
        return published, staged

    def _note(self, published: Roles, outcome: Outcome) -> None:
        """Remember how far the repository is, so that nobody takes it back unnoticed."""
        versions = {role: int(metadata.signed.version) for role, metadata in published.items()}
        versions |= {role: version for role, version in outcome.published.items() if role not in ONLINE_ROLES}
        self._memory.remember(SeenRepository(root=exchange.spelled(published[ROOT]), versions=versions))

    def _check_none_is_there(self) -> None:
        try:
            self._desk.stand([])
        except NotFoundError:
            return
        raise ConflictError("there is a trust repository already", hint="Change its keys with: slipway trust rotate")

    def _online_key(self, role: str) -> Key:
        given = dict(self._desk.make_online_key(role))
        try:
            return Key.from_dict(given.pop("keyid"), given)
        except (KeyError, ValueError, TypeError, AttributeError) as err:
            raise TrustError(f"what came as the key of {role} is none: {err}") from err

    def _places(self, role: str, texts: Sequence[str], threshold: int) -> list[str]:
        """Where keys are, each once, and those of a person's outside the registry's folders."""
        if not texts:
            raise UsageError(f"no key for {role} was named", hint="Name each by its place, such as /media/safe/key.pem")
        if not 1 <= threshold <= len(texts):
            raise UsageError(f"{threshold} of {len(texts)} keys cannot sign for {role}", hint="Name more keys.")
        places = [self._keys.place(text) for text in texts]
        if len(set(places)) < len(places):
            raise UsageError(f"the same key was named twice for {role}")
        inside = tuple(self._memory.forbidden_prefixes)
        if role not in ONLINE_ROLES and any(place.startswith(inside) for place in places):
            raise UsageError(
                f"a key for {role} would lie within the registry's own folder, where whoever breaks in finds it",
                hint="Keep the keys of root, targets and models elsewhere: on a stick in a safe, or on a token.",
            )
        return places

    def _opened_or_new(self, place: str, *, is_online: bool = False) -> Signer:
        if self._keys.is_there(place):
            return self._keys.open(place)
        # A program that signs has nobody to ask for a passphrase.
        return self._keys.create(place, has_passphrase=not is_online)

    @staticmethod
    def _threshold(work: TrustWork, role: str, count: int) -> int:
        try:
            return min(rules.role_keys(work.coming, role)[0].threshold, max(count, 1))
        except NotFoundError:
            return 1


def _check_not_older(versions: Mapping[str, int], seen: SeenRepository) -> None:
    for role, version in versions.items():
        if version < seen.versions.get(role, 0):
            raise TrustError(
                f"{role} has version {version}, and {seen.versions[role]} was seen before",
                hint="Somebody has taken the repository back. Sign nothing until it stands as it did.",
            )


def check_pinned(pinned: Metadata[Any], chain: Sequence[Metadata[Any]]) -> None:
    """Raises TrustError where a chain of roots does not go through the root that devices have pinned."""
    found = [root for root in chain if root.signed.version == pinned.signed.version]
    if not found or found[0].signed_bytes != pinned.signed_bytes:
        raise TrustError(
            f"version {pinned.signed.version} of the root is another one than devices have pinned",
            hint="This repository is not the one that your devices follow. Do not sign anything for it.",
        )
