"""The update machine of one model. Pure: ``step(state, event, now, rules) -> (state, commands)``.

Handles: which offers are followed, what they wait for, the order of download, verification, shadow, switch and trial,
retries, reverts, quarantine, what stays on the disk, and what a restart goes on with. The state is to be stored before
the commands are done; then a kill at any moment loses nothing, because `Restarted` asks again for whatever the stored
phase waits for.

Leaves to the caller: doing the commands, keeping the state, measuring, and waiting between attempts.

The rules come from the deployment plan: success is a committed model and nothing else; a device follows a higher
generation only; a newer offer takes the place of a download but never interrupts a trial; a release that failed is not
tried again until the cloud raises its generation; and a failed update never blocks the next one.
"""
# ruff: noqa: ARG001  (every handler of the table has the same signature)

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from device_agent.core import commands as c
from device_agent.core import events as e
from device_agent.core import retention
from device_agent.core.codes import Code, problem
from device_agent.core.deferral import deferral
from device_agent.core.model_state import QUARANTINE_MAX, ModelState, Rules, is_expired
from device_agent.core.preflight import HOPELESS
from device_agent.ports import Moment
from manifests.errors import ManifestError
from manifests.release import Release
from manifests.twin import Phase, UpdateProblem

Step = tuple[ModelState, tuple[c.Command, ...]]
Standing = Phase | None

# No offer stands: nothing was ever asked for, or what was asked for was withdrawn.
IDLE: Standing = None
STANDINGS: tuple[Standing, ...] = (IDLE, *Phase)
# The device gave its last word on the offer, and keeps what it runs in order.
_ENDED = (Phase.COMMITTED, Phase.FAILED, Phase.REVERTED_QUARANTINED, Phase.REJECTED)
RESTING: frozenset[Standing] = frozenset({IDLE, *_ENDED})


@dataclass(frozen=True, slots=True)
class Context:
    now: datetime
    rules: Rules


Handler = Callable[[ModelState, Any, Context], Step]


def step(state: ModelState, event: e.Event, now: datetime, rules: Rules) -> Step:
    """What the model's state becomes, and what is to be done then, in order.

    An answer with an old ticket changes nothing: its command was superseded, or it was answered before.
    """
    if isinstance(event, e.Answer) and event.ticket != state.ticket:
        return state, ()
    key = (state.phase, type(event))
    if key in IGNORED:
        return state, ()
    return TRANSITIONS[key](state, event, Context(now, rules))


# Offers -------------------------------------------------------------------------------------------------------------


def _accept(state: ModelState, event: e.Desired, context: Context) -> Step:
    """Start on a newer offer, letting go of an older one that is still on its way. A replay is a no-op."""
    if event.release.generation > state.generation_highest:
        return _begin(state, event.release, context)
    return _still_asked(state, event)


def _remember(state: ModelState, event: e.Desired, context: Context) -> Step:
    """A trial is never interrupted; what is asked for meanwhile comes after it."""
    if event.release.generation > state.generation_highest:
        newer = replace(
            state,
            pending=event.release,
            generation_highest=event.release.generation,
            is_withdrawal_pending=False,
        )
        return newer, ()
    return _still_asked(state, event)


def _still_asked(state: ModelState, event: e.Desired) -> Step:
    """A replay: no-op, but for a withdrawal that was taken back before it was carried out."""
    if not state.is_withdrawal_pending or event.release.generation != state.generation_highest:
        return state, ()
    # What waited for the verdict when the withdrawal came waits again.
    pending = None if event.release.generation == _offer(state).generation else event.release
    return replace(state, pending=pending, is_withdrawal_pending=False), ()


def _withdraw(state: ModelState, event: e.Withdrawn | None, context: Context) -> Step:
    """Nothing is asked for any more: nothing serves. The generation is kept, so that old offers stay old."""
    bare = ModelState(
        name=state.name,
        phase=IDLE,
        generation_highest=state.generation_highest,
        factory=state.factory,
        ticket=state.ticket,
        quarantine=state.quarantine,
    )
    return _ask(bare, lambda ticket: c.Restore(ticket, ()))


def _remember_withdrawal(state: ModelState, event: e.Withdrawn, context: Context) -> Step:
    return replace(state, pending=None, is_withdrawal_pending=True), ()


def _begin(state: ModelState, offer: Release, context: Context) -> Step:
    fresh = replace(
        state,
        phase=Phase.OFFERED,
        generation_highest=max(offer.generation, state.generation_highest),
        offer=offer,
        pending=None,
        is_withdrawal_pending=False,
        attempt=0,
        verify_failures=0,
        unclean_ends=0,
        is_in_place=False,
        missing_bytes=0,
        deferred=None,
        transfer=None,
        problem=None,
        shadow=None,
        evidence=None,
    )
    return _preflight(fresh, None, context)


def _preflight(state: ModelState, event: e.Restored | None, context: Context) -> Step:
    """Refuse what can be refused without touching the disk, then see what the machine has for it."""
    state = replace(_served(state, event), deferred=None)
    offer = _offer(state)
    refusal = _refusal(state, offer, context)
    if refusal is not None:
        return _rest(replace(state, phase=Phase.REJECTED, problem=refusal), context)
    is_same = state.current is not None and state.current.processing == offer.processing
    if state.current is not None and is_same and state.current.digest == offer.digest == state.serving:
        return _ask(replace(state, phase=Phase.VERIFYING, is_in_place=True), lambda ticket: c.Verify(ticket, offer))
    looking, asked = _ask(replace(state, phase=Phase.OFFERED), lambda ticket: c.Preflight(ticket, offer))
    # What was fetched for an offer that came to nothing must not take the room of this one.
    return looking, (c.Sweep(), *asked)


def _refusal(state: ModelState, offer: Release, context: Context) -> UpdateProblem | None:
    what = f"version {offer.version} (generation {offer.generation})"
    late = _expiry(offer, context)
    if late is not None:
        return late
    if offer.format not in context.rules.formats:
        runs = " and ".join(context.rules.formats) or "no format at all"
        return problem(
            Code.UNSUPPORTED_FORMAT, f"The offer of {what} is a model in {offer.format}; this device runs {runs}."
        )
    if state.quarantine.get(offer.digest, 0) >= offer.generation:
        return problem(
            Code.QUARANTINED, f"The bytes of {what} failed their trial here; a higher generation would try them again."
        )
    return None


def _expiry(offer: Release, context: Context) -> UpdateProblem | None:
    what = f"version {offer.version} (generation {offer.generation})"
    try:
        expired = is_expired(offer, context.now)
    except ManifestError as err:
        return problem(Code.MALFORMED_OFFER, f"The offer of {what} is refused: {err}.")
    if not expired:
        return None
    return problem(Code.EXPIRED, f"The offer of {what} expired at {offer.not_after}, before it was started.")


# From the offer to the shadow ---------------------------------------------------------------------------------------


def _fits(state: ModelState, event: e.PreflightPassed, context: Context) -> Step:
    """Bytes that are on the disk already are verified; others wait for the moment to fetch them."""
    state = replace(state, missing_bytes=event.missing_bytes)
    return _verify(state, None, context) if event.is_present else _look_around(state, "download")


def _does_not_fit(state: ModelState, event: e.PreflightFailed, context: Context) -> Step:
    """Give up the oldest release that is kept, where room is all that is missing; else the update ends."""
    code = event.problem.code
    thinner = retention.without_oldest(state) if code == Code.NO_SPACE else None
    if thinner is not None:
        again, asked = _ask(thinner, lambda ticket: c.Preflight(ticket, _offer(thinner)))
        return again, (c.Sweep(), *asked)
    phase = Phase.REJECTED if code in HOPELESS else Phase.FAILED
    return _rest(replace(state, phase=phase, problem=event.problem), context)


def _look_around(state: ModelState, moment: Moment) -> Step:
    """See whether this is the moment; while the offer waits, only what is judged otherwise is news."""
    return _ask(state, lambda ticket: c.LookAround(ticket, _offer(state), moment, state.missing_bytes, state.deferred))


def _seen_before_download(state: ModelState, event: e.SurroundingsSeen, context: Context) -> Step:
    """Fetch the bytes, or wait for a better moment."""
    return _deferred(state, "download", event, context) or _download(state)


def _seen_before_activation(state: ModelState, event: e.SurroundingsSeen, context: Context) -> Step:
    """Load the new model beside the old one, or wait for the window with the bytes at hand."""
    return _deferred(state, "activation", event, context) or _load(state)


def _seen_while_waiting(state: ModelState, event: e.SurroundingsSeen, context: Context) -> Step:
    """What waited for its download is looked at again, since days may have passed; what lies ready is verified."""
    assert state.deferred is not None
    late = _expiry(_offer(state), context)
    if late is not None:
        return _rest(replace(state, phase=Phase.REJECTED, problem=late, deferred=None), context)
    moment = state.deferred.step
    go_on = _preflight if moment == "download" else _verify
    return _deferred(state, moment, event, context) or go_on(replace(state, deferred=None), None, context)


def _deferred(state: ModelState, moment: Moment, event: e.SurroundingsSeen, context: Context) -> Step | None:
    wait = deferral(_offer(state), moment, state.missing_bytes, context.rules.deferral, event.surroundings)
    if wait is None:
        return None
    return _look_around(replace(state, phase=Phase.DEFERRED, deferred=wait), moment)


def _wait(state: ModelState, event: e.Restored, context: Context) -> Step:
    """Go on waiting after a restart."""
    state = _served(state, event)
    return _preflight(state, None, context) if state.deferred is None else _look_around(state, state.deferred.step)


def _download(state: ModelState) -> Step:
    downloading = replace(state, phase=Phase.DOWNLOADING, is_in_place=False)
    return _ask(downloading, lambda ticket: c.Download(ticket, _offer(state), state.attempt))


def _resume(state: ModelState, event: e.Restored | None, context: Context) -> Step:
    """Look around before going on: a line that broke may have been replaced by one that costs money."""
    return _look_around(replace(_served(state, event), phase=Phase.DOWNLOADING, is_in_place=False), "download")


def _download_failed(state: ModelState, event: e.DownloadFailed, context: Context) -> Step:
    attempt = 1 if event.has_advanced else state.attempt + 1
    if event.is_retryable and attempt < context.rules.download_attempts_max:
        return _resume(replace(state, attempt=attempt), None, context)
    return _fail(state, event, context)


def _downloaded(state: ModelState, event: e.Downloaded, context: Context) -> Step:
    return _verify(replace(state, transfer=event.transfer), event, context)


def _verify(state: ModelState, event: e.Downloaded | e.Restored | None, context: Context) -> Step:
    state = _served(state, event)
    if state.is_in_place and state.serving != _offer(state).digest:
        # After a restart the committed bytes no longer serve, so the offer takes the long way.
        return _preflight(replace(state, is_in_place=False), None, context)
    return _ask(replace(state, phase=Phase.VERIFYING), lambda ticket: c.Verify(ticket, _offer(state)))


def _verified(state: ModelState, event: e.Verified, context: Context) -> Step:
    if _is_of_current(state):
        state = replace(state, is_current_damaged=False)
    if state.is_in_place:
        return _rest(replace(state, phase=Phase.COMMITTED, current=state.offer), context)
    return _stage(state, None, context)


def _verify_failed(state: ModelState, event: e.VerifyFailed, context: Context) -> Step:
    """Bytes can rot on the disk or lose their tail in a power cut, so they are fetched afresh once."""
    if _is_of_current(state):
        state = replace(state, is_current_damaged=True)
    if event.problem.code != Code.NO_SPACE and state.verify_failures == 0:
        afresh = replace(state, verify_failures=1, attempt=0, missing_bytes=retention.total_bytes([_offer(state)]))
        return _resume(afresh, None, context)
    return _fail(state, event, context)


def _stage(state: ModelState, event: e.Restored | None, context: Context) -> Step:
    """See whether this is the moment to activate. After a kill in shadow, switch or trial the update goes on here."""
    return _look_around(replace(_served(state, event), phase=Phase.STAGED, deferred=None), "activation")


def _load(state: ModelState) -> Step:
    return _ask(replace(state, phase=Phase.SHADOW), lambda ticket: c.Load(ticket, _offer(state)))


def _loaded(state: ModelState, event: e.Loaded, context: Context) -> Step:
    """Ask the golden set and measure, while the old model serves."""
    offer = _offer(state)
    return _ask(state, lambda ticket: c.Examine(ticket, offer, offer.trial))


def _examined(state: ModelState, event: e.ShadowPassed, context: Context) -> Step:
    return _ask(
        replace(state, phase=Phase.SWITCHING, shadow=event.evidence), lambda ticket: c.Switch(ticket, _offer(state))
    )


def _fail(state: ModelState, event: Any, context: Context) -> Step:
    """End the update before the switch: the old model never stopped serving."""
    return _rest(replace(state, phase=Phase.FAILED, problem=event.problem, deferred=None), context)


# From the switch to the verdict -------------------------------------------------------------------------------------


def _switched(state: ModelState, event: e.Switched, context: Context) -> Step:
    offer = _offer(state)
    on_trial = replace(state, phase=Phase.TRIAL, serving=offer.digest)
    return _ask(on_trial, lambda ticket: c.RunTrial(ticket, offer, offer.trial))


def _commit(state: ModelState, event: e.TrialPassed, context: Context) -> Step:
    kept = retention.committed(state, _offer(state), context.rules)
    return _rest(replace(kept, phase=Phase.COMMITTED, is_current_damaged=False, evidence=event.evidence), context)


def _trial_failed(state: ModelState, event: e.TrialFailed, context: Context) -> Step:
    judged = replace(state, problem=event.problem, evidence=event.evidence)
    return _revert(_quarantined(judged) if event.is_quarantined else judged)


def _revert(state: ModelState) -> Step:
    return _ask(replace(state, phase=Phase.REVERTING), lambda ticket: c.Restore(ticket, _candidates(state)))


def _reverted(state: ModelState, event: e.Restored, context: Context) -> Step:
    offer = _offer(state)
    is_quarantined = state.quarantine.get(offer.digest) == offer.generation
    phase = Phase.REVERTED_QUARANTINED if is_quarantined else Phase.FAILED
    current = state.current
    if current is not None and current.digest == event.digest and not event.is_on_disk:
        state = replace(state, is_current_damaged=True)
    return _rest(replace(_served(state, event), phase=phase), context)


def _quarantined(state: ModelState) -> ModelState:
    offer = _offer(state)
    kept = {digest: generation for digest, generation in state.quarantine.items() if digest != offer.digest}
    newest = dict(sorted({**kept, offer.digest: offer.generation}.items(), key=lambda item: item[1])[-QUARANTINE_MAX:])
    return replace(state, quarantine=newest)


# Restart and rest ---------------------------------------------------------------------------------------------------


def _restart(state: ModelState, event: e.Restarted, context: Context) -> Step:
    """Serve what is committed before anything else; the phase then goes on from `Restored`."""
    return _ask(replace(state, serving=None), lambda ticket: c.Restore(ticket, _candidates(state)))


def _restart_shadow(state: ModelState, event: e.Restarted, context: Context) -> Step:
    state = replace(state, unclean_ends=state.unclean_ends + event.is_unclean)
    if state.unclean_ends < context.rules.unclean_ends_max:
        return _restart(state, event, context)
    offer = _offer(state)
    seen = problem(
        Code.SHADOW_CRASHED,
        f"The agent died {state.unclean_ends} times while it loaded version {offer.version} or asked its golden set.",
    )
    return _restart(replace(state, phase=Phase.FAILED, problem=seen), event, context)


def _restart_trial(state: ModelState, event: e.Restarted, context: Context) -> Step:
    state = replace(state, unclean_ends=state.unclean_ends + event.is_unclean)
    if state.unclean_ends < context.rules.unclean_ends_max:
        return _restart(state, event, context)
    offer = _offer(state)
    seen = problem(
        Code.TRIAL_CRASHED, f"The agent died {state.unclean_ends} times while version {offer.version} was on trial."
    )
    return _revert(_quarantined(replace(state, problem=seen, serving=None)))


def _restored(state: ModelState, event: e.Restored, context: Context) -> Step:
    return _rest(_served(state, event), context)


def _rest(state: ModelState, context: Context) -> Step:
    """The device gave its last word on the offer: go on with what waits, else put the house in order."""
    if state.is_withdrawal_pending:
        return _withdraw(state, None, context)
    if state.pending is not None:
        return _begin(state, state.pending, context)
    current = state.current
    if current is not None and (state.serving != current.digest or state.is_current_damaged):
        repairing, asked = _ask(replace(state, attempt=0), lambda ticket: c.Repair(ticket, current))
        return repairing, (c.Sweep(), *asked)
    # Ends the last command, so that a late second answer to it is known as such.
    return replace(state, ticket=state.ticket + 1), (c.Sweep(),)


def _repaired(state: ModelState, event: e.Repaired, context: Context) -> Step:
    assert state.current is not None
    return _rest(replace(state, serving=state.current.digest, is_current_damaged=False), context)


def _repair_failed(state: ModelState, event: e.RepairFailed, context: Context) -> Step:
    """There is nothing else to do than to try again: what the device should run is not on its disk."""
    current, attempt = state.current, state.attempt + 1
    assert current is not None
    return _ask(replace(state, attempt=attempt), lambda ticket: c.Repair(ticket, current, attempt))


def _is_of_current(state: ModelState) -> bool:
    """Whether the offer holds the very bytes that are committed."""
    return state.current is not None and state.current.digest == _offer(state).digest


def _served(state: ModelState, event: Any) -> ModelState:
    return replace(state, serving=event.digest) if isinstance(event, e.Restored) else state


def _candidates(state: ModelState) -> tuple[Release, ...]:
    """What may serve, best first: the factory model last, unless nothing is to serve at all."""
    factory = None if state.is_withdrawn() else state.factory
    releases = (state.current, state.previous, *state.older, factory)
    return tuple(release for release in releases if release is not None)


def _offer(state: ModelState) -> Release:
    assert state.offer is not None, f"{state.name}: phase {state.phase} without an offer"
    return state.offer


def _ask(state: ModelState, command: Callable[[int], c.Work]) -> Step:
    """Number the command, so that its answer can be told from every other one."""
    ticket = state.ticket + 1
    return replace(state, ticket=ticket), (command(ticket),)


# The table ----------------------------------------------------------------------------------------------------------

_AT_REST: dict[type[e.Event], Handler] = {
    e.Desired: _accept,
    e.Withdrawn: _withdraw,
    e.Restarted: _restart,
    e.Restored: _restored,
    e.Repaired: _repaired,
    e.RepairFailed: _repair_failed,
}

TRANSITIONS: dict[tuple[Standing, type[e.Event]], Handler] = {
    (IDLE, e.Desired): _accept,
    (IDLE, e.Restarted): _restart,
    (IDLE, e.Restored): _restored,
    (Phase.OFFERED, e.Desired): _accept,
    (Phase.OFFERED, e.Withdrawn): _withdraw,
    (Phase.OFFERED, e.Restarted): _restart,
    (Phase.OFFERED, e.Restored): _preflight,
    (Phase.OFFERED, e.PreflightPassed): _fits,
    (Phase.OFFERED, e.PreflightFailed): _does_not_fit,
    (Phase.OFFERED, e.SurroundingsSeen): _seen_before_download,
    (Phase.OFFERED, e.LookFailed): _fail,
    (Phase.DEFERRED, e.Desired): _accept,
    (Phase.DEFERRED, e.Withdrawn): _withdraw,
    (Phase.DEFERRED, e.Restarted): _restart,
    (Phase.DEFERRED, e.Restored): _wait,
    (Phase.DEFERRED, e.SurroundingsSeen): _seen_while_waiting,
    (Phase.DEFERRED, e.LookFailed): _fail,
    # A newer offer takes the place of everything up to the shadow.
    (Phase.DOWNLOADING, e.Desired): _accept,
    (Phase.DOWNLOADING, e.Withdrawn): _withdraw,
    (Phase.DOWNLOADING, e.Restarted): _restart,
    (Phase.DOWNLOADING, e.Restored): _resume,
    (Phase.DOWNLOADING, e.SurroundingsSeen): _seen_before_download,
    (Phase.DOWNLOADING, e.LookFailed): _fail,
    (Phase.DOWNLOADING, e.Downloaded): _downloaded,
    (Phase.DOWNLOADING, e.DownloadFailed): _download_failed,
    (Phase.VERIFYING, e.Desired): _accept,
    (Phase.VERIFYING, e.Withdrawn): _withdraw,
    (Phase.VERIFYING, e.Restarted): _restart,
    (Phase.VERIFYING, e.Restored): _verify,
    (Phase.VERIFYING, e.Verified): _verified,
    (Phase.VERIFYING, e.VerifyFailed): _verify_failed,
    (Phase.STAGED, e.Desired): _accept,
    (Phase.STAGED, e.Withdrawn): _withdraw,
    (Phase.STAGED, e.Restarted): _restart,
    (Phase.STAGED, e.Restored): _stage,
    (Phase.STAGED, e.SurroundingsSeen): _seen_before_activation,
    (Phase.STAGED, e.LookFailed): _fail,
    (Phase.SHADOW, e.Desired): _accept,
    (Phase.SHADOW, e.Withdrawn): _withdraw,
    (Phase.SHADOW, e.Restarted): _restart_shadow,
    (Phase.SHADOW, e.Restored): _stage,
    (Phase.SHADOW, e.Loaded): _loaded,
    (Phase.SHADOW, e.LoadFailed): _fail,
    (Phase.SHADOW, e.ShadowPassed): _examined,
    (Phase.SHADOW, e.ShadowFailed): _fail,
    # From the switch to the verdict nothing interrupts.
    (Phase.SWITCHING, e.Desired): _remember,
    (Phase.SWITCHING, e.Withdrawn): _remember_withdrawal,
    (Phase.SWITCHING, e.Restarted): _restart_trial,
    (Phase.SWITCHING, e.Restored): _stage,
    (Phase.SWITCHING, e.Switched): _switched,
    (Phase.TRIAL, e.Desired): _remember,
    (Phase.TRIAL, e.Withdrawn): _remember_withdrawal,
    (Phase.TRIAL, e.Restarted): _restart_trial,
    # Evidence does not outlive its process, so a trial begins again and is never committed for having been interrupted.
    (Phase.TRIAL, e.Restored): _stage,
    (Phase.TRIAL, e.TrialPassed): _commit,
    (Phase.TRIAL, e.TrialFailed): _trial_failed,
    (Phase.REVERTING, e.Desired): _remember,
    (Phase.REVERTING, e.Withdrawn): _remember_withdrawal,
    (Phase.REVERTING, e.Restarted): _restart,
    (Phase.REVERTING, e.Restored): _reverted,
    **{(phase, kind): handler for phase in _ENDED for kind, handler in _AT_REST.items()},
}


# Tickets keep most of these from happening; listing them says that there is nothing to do, not that it was forgotten.
def _unawaited(kinds: Iterable[type[e.Event]], *awaited_in: Standing) -> set[tuple[Standing, type[e.Event]]]:
    return {(standing, kind) for kind in kinds for standing in STANDINGS if standing not in awaited_in}


IGNORED: frozenset[tuple[Standing, type[e.Event]]] = frozenset(
    {(IDLE, e.Withdrawn)}
    | _unawaited((e.Repaired, e.RepairFailed), *_ENDED)
    | _unawaited((e.PreflightPassed, e.PreflightFailed), Phase.OFFERED)
    | _unawaited((e.SurroundingsSeen, e.LookFailed), Phase.OFFERED, Phase.DEFERRED, Phase.DOWNLOADING, Phase.STAGED)
    | _unawaited((e.Downloaded, e.DownloadFailed), Phase.DOWNLOADING)
    | _unawaited((e.Verified, e.VerifyFailed), Phase.VERIFYING)
    | _unawaited((e.Loaded, e.LoadFailed, e.ShadowPassed, e.ShadowFailed), Phase.SHADOW)
    | _unawaited((e.Switched,), Phase.SWITCHING)
    | _unawaited((e.TrialPassed, e.TrialFailed), Phase.TRIAL)
)
