"""Rollouts as a service: what an operator asks for. The tick that drives them is in rollout_driver.py."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from cloud_registry.core.catalog import REASON_LENGTH_MAX, check_text
from cloud_registry.core.publication import digests_before, formats_offered, with_deltas
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import RolloutPlan, RolloutTerms
from cloud_registry.core.rollout.drafting import (
    ALREADY_RUNS,
    Candidate,
    Head,
    draft_release,
    draft_rollback,
    generation_max,
    restore_contents,
    versions_running,
)
from cloud_registry.core.rollout.planning import rollback_event
from cloud_registry.core.rollout.state import Rollout, RolloutState
from cloud_registry.core.trust_files import files_of_content, files_of_deltas
from cloud_registry.core.waves import DEFAULT_WAVES, parse_waves
from cloud_registry.errors import ConflictError, GateRefusedError, NotFoundError, RegistryError
from cloud_registry.ports import Clock, FleetHub, ModuleTwin, ProgressListener
from cloud_registry.service.fleet import Fleet, observations_of
from cloud_registry.service.rollout_driver import RolloutDriver, Tick
from cloud_registry.service.rollout_log import ModelCatalog, ReleaseDeltas, ReleaseTrust, RolloutLog, RolloutReader
from manifests.identity import ModelReference
from manifests.model import ModelManifest

COMMAND_ATTEMPTS_MAX = 5
SKIPPED_NAMED_MAX = 10

_log = logging.getLogger("slipway.rollouts")


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What an operator asks for: a version, for named devices or for all that meet a condition."""

    reference: str
    condition: str = "*"
    devices: tuple[str, ...] = ()
    waves: str = DEFAULT_WAVES
    salt: str | None = None
    terms: RolloutTerms = field(default_factory=RolloutTerms)

    @property
    def target(self) -> str:
        return "devices " + ", ".join(self.devices) if self.devices else self.condition


@dataclass(frozen=True, slots=True)
class RollbackRequest:
    """Taking a rollout back: to what each device ran before, or all to one version."""

    reason: str = ""
    to: str | None = None
    waves: str = "100%"


@dataclass(frozen=True, slots=True)
class Begun:
    """What came of a request: the plan, and the rollout; none where every device runs the version already."""

    plan: RolloutPlan
    rollout: Rollout | None = None


class RolloutService:
    """Plans, starts, drives and ends rollouts. Methods raise RegistryErrors; see each."""

    # Whoever has the event log and the hub at hand can drive.
    can_drive = True

    def __init__(
        self,
        log: RolloutLog,
        models: ModelCatalog,
        hub: Callable[[], FleetHub],
        clock: Clock,
        owner: str,
        module_id: str = "slipway",
        trust: ReleaseTrust | None = None,
        publication: ReleaseDeltas | None = None,
        on_twins: Callable[[Iterable[ModuleTwin]], None] = lambda _twins: None,
    ) -> None:
        """`on_twins` is handed every module twin that is read on the way."""
        self._trust = trust
        self._publication = publication
        self._events = log
        self._models = models
        self._fleet = Fleet(hub, module_id, on_twins)
        self._clock = clock
        self._reader = RolloutReader(log)
        self._driver = RolloutDriver(log, self._reader, self._fleet, clock, owner)

    # --- planning ------------------------------------------------------------

    def plan(self, request: RolloutRequest) -> RolloutPlan:
        """What `start` would store now, without storing it; its id is empty.

        Raises:
            UsageError: the waves or the condition cannot be read.
            NotFoundError: no such model version, a named device is unknown, or no device meets the condition.
            HubUnreachableError, TrustError: the fleet cannot be read.
        """
        manifest = self._models.resolve(request.reference)
        name = manifest.name
        if manifest.archived:
            raise ConflictError(
                f"{manifest.reference} is archived, so that nobody is offered it",
                hint=f"Take it out again first: slipway model restore {manifest.reference}",
            )
        shares = parse_waves(request.waves)
        candidates = self._fleet.named(request.devices) if request.devices else self._fleet.meeting(request.condition)
        head = Head(
            id="",
            kind="release",
            model=name,
            version=manifest.version,
            generation=self._events.next_generation(name, generation_max(candidates, name)),
            module_id=self._fleet.module_id,
            target=request.target,
            shares=shares,
            salt=request.salt or str(manifest.reference),
            terms=request.terms,
            created_at=self._clock.now(),
        )
        return draft_release(head, candidates, manifest, self._known(name, candidates))

    def conflicts(self, drafted: RolloutPlan) -> dict[str, list[str]]:
        """Unfinished rollouts with the devices of the plan that they hold: while there is one, `start` refuses."""
        held: dict[str, list[str]] = {}
        for device, rollout_id in sorted(self._events.claims(drafted.model).items()):
            if device in drafted.devices:
                held.setdefault(rollout_id, []).append(device)
        return held

    def begin(self, request: RolloutRequest, on_progress: ProgressListener | None = None) -> Begun:
        """Plan and start at once; nothing is started where every device runs the version already."""
        drafted = self.plan(request)
        if not drafted.devices and drafted.skipped and all(_has_it(skipped.reason) for skipped in drafted.skipped):
            return Begun(drafted)
        started = self.start(drafted, on_progress)
        return Begun(started.plan, started)

    def start(self, drafted: RolloutPlan, on_progress: ProgressListener | None = None) -> Rollout:
        """Store a plan as a rollout, with deltas from what its devices run.

        Nothing is written to any device yet: the first tick does that.

        Raises:
            ConflictError: a device takes part in an unfinished rollout of the model.
            RegistryError: no device is left to offer the version to.
            TrustError: devices would refuse it, or what they would go back to: it is not signed.
        """
        if not drafted.devices:
            raise RegistryError(
                f"there is no device to offer {drafted.model}:{drafted.version} to\n{_skipped_lines(drafted)}",
                hint="See who would take part with: slipway rollout plan",
            )
        if self._trust is not None:
            contents = drafted.contents.values()
            self._trust.check(file for content in contents for file in files_of_content(drafted.model, content))
        if drafted.kind == "release":
            drafted = self._with_deltas(drafted, on_progress)
        stored = self._events.create(drafted, drafted.generation - 1, self._clock.now())
        return self.status(stored.id)

    def _with_deltas(self, drafted: RolloutPlan, on_progress: ProgressListener | None) -> RolloutPlan:
        """The plan with what shortens its downloads; where a trust repository exists, only what is signed does."""
        if self._publication is None or drafted.version is None:
            return drafted
        reference, running = ModelReference(drafted.model, drafted.version), digests_before(drafted)
        is_signing = self._trust is not None and self._trust.exists()
        if running and not is_signing:
            self._publication.publish(self._models.manifest(reference), running, on_progress)
        found = self._publication.release_for(reference, formats_offered(drafted), running)
        if self._trust is not None and is_signing:
            offered = [offer for offers in found.values() for offer in offers]
            unsigned = {file.target for file in self._trust.unsigned(files_of_deltas(reference, offered))}
            found = {
                digest: tuple(offer for offer in offers if offer.target not in unsigned)
                for digest, offers in found.items()
            }
        return with_deltas(drafted, found)

    def _known(self, model: str, candidates: Iterable[Candidate]) -> dict[int, ModelManifest]:
        """Manifests of the versions now running, as far as the registry still has them."""
        known = {}
        for version in sorted(versions_running(candidates, model)):
            try:
                known[version] = self._models.manifest(ModelReference(model, version))
            except NotFoundError:
                _log.debug("%s:%s runs somewhere and is not in the catalog", model, version)
        return known

    # --- looking -------------------------------------------------------------

    def status(self, rollout_id: str) -> Rollout:
        """Where a rollout stands; raises NotFoundError."""
        return self._reader.status(rollout_id)

    def rollouts(self, *, active_only: bool = False) -> list[Rollout]:
        """All rollouts, oldest first."""
        return [self.status(rollout_id) for rollout_id in self._events.ids(active_only=active_only)]

    def history(self, rollout_id: str, after: int = 0) -> list[ev.RecordedEvent]:
        """Its events in order, those numbered above `after`; raises NotFoundError."""
        return self._events.read(rollout_id, after)

    def controller(self, rollout_id: str) -> str | None:
        """Who drives the rollout now; None where nobody does."""
        return self._events.controller(rollout_id, self._clock.now())

    # --- commands of an operator -----------------------------------------------

    def pause(self, rollout_id: str, reason: str = "") -> Rollout:
        """Offer nothing more until it is resumed; devices that have the offer go on."""
        _check_reason(reason)

        def decide(rollout: Rollout) -> ev.RolloutEvent | None:
            if rollout.state is RolloutState.PAUSED:
                return None
            _check_state(rollout, "paused", RolloutState.RUNNING)
            return ev.RolloutPaused(cause="operator", reason=reason or "paused by an operator")

        return self._command(rollout_id, decide)

    def resume(self, rollout_id: str, override_reason: str = "") -> Rollout:
        """Go on in the same wave with the evidence kept. A rollout that is not paused is left as it is.

        Raises:
            GateRefusedError: the gate paused it, and no reason was given to go on all the same.
        """
        _check_reason(override_reason)

        def decide(rollout: Rollout) -> ev.RolloutEvent | None:
            if rollout.is_ended:
                _check_state(rollout, "resumed", RolloutState.PAUSED)
            if rollout.state is not RolloutState.PAUSED:
                return None
            if rollout.pause_cause == "gate" and not override_reason:
                raise GateRefusedError(
                    f"the gate paused rollout {rollout_id}: {rollout.reason}",
                    hint=f"Take it back with: slipway rollout rollback {rollout_id}. Or accept the failures so far: "
                    f"slipway rollout resume {rollout_id} --override 'your reason'",
                )
            failed = tuple(
                device
                for device in rollout.opened_devices
                if override_reason and rollout.attempt(device).outcome in ev.FAILED_OUTCOMES
            )
            return ev.RolloutResumed(reason=override_reason, forgiven=failed)

        return self._command(rollout_id, decide)

    def abort(self, rollout_id: str, reason: str = "") -> Rollout:
        """Offer nothing more, ever; devices stay as they are, those under way finish."""
        _check_reason(reason)

        def decide(rollout: Rollout) -> ev.RolloutEvent | None:
            if rollout.state in (RolloutState.ABORTING, RolloutState.ABORTED):
                return None
            _check_state(rollout, "aborted", RolloutState.PLANNED, RolloutState.RUNNING, RolloutState.PAUSED)
            return ev.AbortRequested(reason=reason or "aborted by an operator")

        return self._command(rollout_id, decide)

    def rollback(self, rollout_id: str, request: RollbackRequest) -> Rollout:
        """Take a rollout back, under way or ended; the rollout that does it, which may be a new one.

        Raises:
            ConflictError: it was taken back already, or has touched no device.
        """
        _check_reason(request.reason)
        rollout = self.status(rollout_id)
        if rollout.state in (RolloutState.COMPLETED, RolloutState.ABORTED, RolloutState.ROLLBACK_INCOMPLETE):
            return self._start_rollback(rollout, request)
        if rollout.state is RolloutState.PLANNED:
            raise ConflictError(
                f"rollout {rollout_id} has not touched any device yet",
                hint=f"End it with: slipway rollout abort {rollout_id}",
            )
        return self._command(rollout_id, lambda latest: self._rollback_event(latest, request))

    def _rollback_event(self, rollout: Rollout, request: RollbackRequest) -> ev.RolloutEvent:
        _check_state(rollout, "rolled back", RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ABORTING)
        twins = self._fleet.twins(rollout.opened_devices)
        observations = observations_of(twins, rollout.plan.model)
        targets = None
        if request.to is not None:
            formats = {device: Candidate(device, twin).formats for device, twin in twins.items()}
            to = self._version_to(request.to, rollout.plan.model)
            targets = restore_contents(rollout.opened_devices, formats, to, rollout)
        reason = request.reason or "rolled back by an operator"
        return rollback_event(rollout, observations, cause="operator", reason=reason, targets=targets)

    def _start_rollback(self, origin: Rollout, request: RollbackRequest) -> Rollout:
        shares = parse_waves(request.waves)
        model = origin.plan.model
        to = None if request.to is None else self._version_to(request.to, model)
        twins = self._fleet.twins(origin.opened_devices)
        candidates = [Candidate(device, twins.get(device)) for device in origin.opened_devices]
        restored = {content.version for d in origin.opened_devices if (content := origin.plan.restore(d)) is not None}
        terms = RolloutTerms(timeout_s=origin.plan.terms.timeout_s, on_stop="pause")
        head = Head(
            id="",
            kind="rollback",
            model=model,
            version=to.version if to else (restored.pop() if len(restored) == 1 else None),
            generation=self._events.next_generation(model, generation_max(candidates, model)),
            module_id=self._fleet.module_id,
            target=f"devices of {origin.plan.id}",
            shares=shares,
            salt=origin.plan.salt,
            terms=msgspec.structs.replace(terms, trial=terms.trial_of_rollback()),
            created_at=self._clock.now(),
            reason=request.reason or "rolled back by an operator",
            origin=origin.plan.id,
        )
        drafted = draft_rollback(head, candidates, origin, to, self._known(model, candidates))
        if not drafted.devices:
            raise ConflictError(f"rollout {origin.plan.id} has nothing left to take back\n{_skipped_lines(drafted)}")
        self._check_still_registered(drafted)
        return self.start(drafted)

    def _check_still_registered(self, drafted: RolloutPlan) -> None:
        """Devices fetch what they go back to from us; raises NotFoundError for a version that was deleted meanwhile."""
        for version in sorted({content.version for d in drafted.devices if (content := drafted.offer(d)) is not None}):
            try:
                self._models.manifest(ModelReference(drafted.model, version))
            except NotFoundError as err:
                raise NotFoundError(
                    f"devices would go back to {drafted.model}:{version}, and {err.message}",
                    hint=f"Name a version that is still there, for example: --to {drafted.model}",
                ) from err

    def _version_to(self, text: str, model: str) -> ModelManifest:
        manifest = self._models.resolve(text)
        if manifest.name != model:
            raise ConflictError(
                f"the rollout carries {model}, not {manifest.name}",
                hint=f"Name a version of {model}, such as --to {model}:1",
            )
        return manifest

    def _command(self, rollout_id: str, decide: Callable[[Rollout], ev.RolloutEvent | None]) -> Rollout:
        """Append what an operator decided, on the latest state, whatever a controller writes meanwhile."""
        for attempt in range(1, COMMAND_ATTEMPTS_MAX + 1):
            rollout = self.status(rollout_id)
            event = decide(rollout)
            if event is None:
                break
            try:
                self._events.append(rollout_id, [event], expected_sequence=rollout.sequence, at=self._clock.now())
                break
            except ConflictError:
                if attempt == COMMAND_ATTEMPTS_MAX:
                    raise
        return self.status(rollout_id)

    # --- driving -------------------------------------------------------------

    def tick(self, rollout_id: str) -> Tick:
        """Drive one rollout as far as it goes without waiting; raises what the hub's errors are."""
        return self._driver.tick(rollout_id)

    def tick_all(self) -> None:
        """Drive every unfinished rollout once. Trouble is logged and never raised."""
        self._driver.tick_all()

    def release(self, rollout_id: str) -> None:
        """Stop driving it, so that another controller can take over at once."""
        self._driver.release(rollout_id)

    def release_all(self) -> None:
        """Stop driving whatever this process drives."""
        self._driver.release_all()


def _check_reason(reason: str) -> None:
    # It is kept with the rollout, shown to everybody, and may come from a program.
    check_text(reason, "the reason", REASON_LENGTH_MAX, lines=True)


def _has_it(reason: str) -> bool:
    return reason.startswith(ALREADY_RUNS)


def _skipped_lines(plan: RolloutPlan) -> str:
    return "\n".join(f"  {skipped.device}: {skipped.reason}" for skipped in plan.skipped[:SKIPPED_NAMED_MAX])


def _check_state(rollout: Rollout, wish: str, *allowed: RolloutState) -> None:
    if rollout.state not in allowed:
        raise ConflictError(
            f"rollout {rollout.plan.id} is {rollout.state.value} and cannot be {wish}",
            hint=f"Look at it with: slipway rollout status {rollout.plan.id}",
        )
