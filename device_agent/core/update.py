"""The update machine of one model. Pure: ``step(state, event, now, rules) -> (state, commands)``.

Handles: which offers are followed, the order of download, verification, shadow, switch and trial, retries, reverts,
quarantine, and what a restart goes on with. The state is to be stored before the commands are done; then a kill at any
moment loses nothing, because `Restarted` asks again for whatever the stored phase waits for.

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
from device_agent.core.codes import Code, problem
from device_agent.core.model_state import QUARANTINE_MAX, ModelState, Rules, is_expired
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
    if state.is_withdrawal_pending and event.release.generation == state.generation_highest:
        return replace(state, is_withdrawal_pending=False), ()
    return state, ()


def _withdraw(state: ModelState, event: e.Withdrawn | None, context: Context) -> Step:
    """Nothing is asked for any more: nothing serves. The generation is kept, so that old offers stay old."""
    bare = ModelState(
        name=state.name,
        phase=IDLE,
        generation_highest=state.generation_highest,
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
        transfer=None,
        problem=None,
        evidence=None,
    )
    return _preflight(fresh, None, context)


def _preflight(state: ModelState, event: e.Restored | None, context: Context) -> Step:
    """Refuse what can be refused without touching the disk, then see whether there is room."""
    state = _served(state, event)
    offer = _offer(state)
    refusal = _refusal(state, offer, context)
    if refusal is not None:
        return _rest(replace(state, phase=Phase.REJECTED, problem=refusal), context)
    is_same = state.current is not None and state.current.processing == offer.processing
    if state.current is not None and is_same and state.current.digest == offer.digest == state.serving:
        return _ask(replace(state, phase=Phase.VERIFYING, is_in_place=True), lambda ticket: c.Verify(ticket, offer))
    return _ask(replace(state, phase=Phase.OFFERED), lambda ticket: c.Preflight(ticket, offer))


def _refusal(state: ModelState, offer: Release, context: Context) -> UpdateProblem | None:
    what = f"version {offer.version} (generation {offer.generation})"
    try:
        expired = is_expired(offer, context.now)
    except ManifestError as err:
        return problem(Code.MALFORMED_OFFER, f"The offer of {what} is refused: {err}.")
    if expired:
        return problem(Code.EXPIRED, f"The offer of {what} expired at {offer.not_after}, before it was started.")
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


# From the offer to the shadow ---------------------------------------------------------------------------------------


def _room_seen(state: ModelState, event: e.PreflightPassed, context: Context) -> Step:
    if event.is_present:
        return _verify(state, None, context)
    return _download(state, None, context)


def _download(state: ModelState, event: e.Restored | None, context: Context) -> Step:
    state = _served(state, event)
    return _ask(
        replace(state, phase=Phase.DOWNLOADING, is_in_place=False),
        lambda ticket: c.Download(ticket, _offer(state), state.attempt),
    )


def _download_failed(state: ModelState, event: e.DownloadFailed, context: Context) -> Step:
    attempt = 1 if event.has_advanced else state.attempt + 1
    if event.is_retryable and attempt < context.rules.download_attempts_max:
        return _download(replace(state, attempt=attempt), None, context)
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
    return _load(state, None, context)


def _verify_failed(state: ModelState, event: e.VerifyFailed, context: Context) -> Step:
    """Bytes can rot on the disk or lose their tail in a power cut, so they are fetched afresh once."""
    if _is_of_current(state):
        state = replace(state, is_current_damaged=True)
    if event.problem.code != Code.NO_SPACE and state.verify_failures == 0:
        return _download(replace(state, verify_failures=1, attempt=0), None, context)
    return _fail(state, event, context)


def _load(state: ModelState, event: e.Restored | None, context: Context) -> Step:
    """Load beside the old model. After a kill in shadow, switch or trial this is where the update goes on."""
    state = _served(state, event)
    return _ask(replace(state, phase=Phase.STAGED), lambda ticket: c.Load(ticket, _offer(state)))


def _loaded(state: ModelState, event: e.Loaded, context: Context) -> Step:
    return _ask(replace(state, phase=Phase.SHADOW), lambda ticket: c.Examine(ticket, _offer(state)))


def _examined(state: ModelState, event: e.ShadowPassed, context: Context) -> Step:
    return _ask(replace(state, phase=Phase.SWITCHING), lambda ticket: c.Switch(ticket, _offer(state)))


def _fail(state: ModelState, event: Any, context: Context) -> Step:
    """End the update before the switch: the old model never stopped serving."""
    return _rest(replace(state, phase=Phase.FAILED, problem=event.problem), context)


# From the switch to the verdict -------------------------------------------------------------------------------------


def _switched(state: ModelState, event: e.Switched, context: Context) -> Step:
    offer = _offer(state)
    on_trial = replace(state, phase=Phase.TRIAL, serving=offer.digest)
    return _ask(on_trial, lambda ticket: c.RunTrial(ticket, offer, offer.trial))


def _commit(state: ModelState, event: e.TrialPassed, context: Context) -> Step:
    offer = _offer(state)
    is_same = _is_of_current(state)
    committed = replace(
        state,
        phase=Phase.COMMITTED,
        current=offer,
        previous=state.previous if is_same else state.current,
        is_current_damaged=False,
        evidence=event.evidence,
    )
    return _rest(committed, context)


def _trial_failed(state: ModelState, event: e.TrialFailed, context: Context) -> Step:
    judged = replace(state, problem=event.problem, evidence=event.evidence)
    return _revert(_quarantined(judged) if event.is_quarantined else judged)


def _revert(state: ModelState) -> Step:
    return _ask(replace(state, phase=Phase.REVERTING), lambda ticket: c.Restore(ticket, _candidates(state)))


def _reverted(state: ModelState, event: e.Restored, context: Context) -> Step:
    offer = _offer(state)
    is_quarantined = state.quarantine.get(offer.digest) == offer.generation
    phase = Phase.REVERTED_QUARANTINED if is_quarantined else Phase.FAILED
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
    return tuple(release for release in (state.current, state.previous) if release is not None)


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
    (Phase.OFFERED, e.PreflightPassed): _room_seen,
    (Phase.OFFERED, e.PreflightFailed): _fail,
    # Nothing defers yet; a journal that says so is taken as an offer that was not started.
    (Phase.DEFERRED, e.Desired): _accept,
    (Phase.DEFERRED, e.Withdrawn): _withdraw,
    (Phase.DEFERRED, e.Restarted): _restart,
    (Phase.DEFERRED, e.Restored): _preflight,
    # A newer offer takes the place of everything up to the shadow.
    (Phase.DOWNLOADING, e.Desired): _accept,
    (Phase.DOWNLOADING, e.Withdrawn): _withdraw,
    (Phase.DOWNLOADING, e.Restarted): _restart,
    (Phase.DOWNLOADING, e.Restored): _download,
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
    (Phase.STAGED, e.Restarted): _restart_shadow,
    (Phase.STAGED, e.Restored): _load,
    (Phase.STAGED, e.Loaded): _loaded,
    (Phase.STAGED, e.LoadFailed): _fail,
    (Phase.SHADOW, e.Desired): _accept,
    (Phase.SHADOW, e.Withdrawn): _withdraw,
    (Phase.SHADOW, e.Restarted): _restart_shadow,
    (Phase.SHADOW, e.Restored): _load,
    (Phase.SHADOW, e.ShadowPassed): _examined,
    (Phase.SHADOW, e.ShadowFailed): _fail,
    # From the switch to the verdict nothing interrupts.
    (Phase.SWITCHING, e.Desired): _remember,
    (Phase.SWITCHING, e.Withdrawn): _remember_withdrawal,
    (Phase.SWITCHING, e.Restarted): _restart_trial,
    (Phase.SWITCHING, e.Restored): _load,
    (Phase.SWITCHING, e.Switched): _switched,
    (Phase.TRIAL, e.Desired): _remember,
    (Phase.TRIAL, e.Withdrawn): _remember_withdrawal,
    (Phase.TRIAL, e.Restarted): _restart_trial,
    # Evidence does not outlive its process, so a trial begins again and is never committed for having been interrupted.
    (Phase.TRIAL, e.Restored): _load,
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
    | _unawaited((e.Downloaded, e.DownloadFailed), Phase.DOWNLOADING)
    | _unawaited((e.Verified, e.VerifyFailed), Phase.VERIFYING)
    | _unawaited((e.Loaded, e.LoadFailed), Phase.STAGED)
    | _unawaited((e.ShadowPassed, e.ShadowFailed), Phase.SHADOW)
    | _unawaited((e.Switched,), Phase.SWITCHING)
    | _unawaited((e.TrialPassed, e.TrialFailed), Phase.TRIAL)
)
