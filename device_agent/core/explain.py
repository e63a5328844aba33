"""Why a device is not where it should be, and what to do about it. Pure.

Every code has a next action and every phase a sentence; tests see that none is left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from device_agent.core.history import Transition
from device_agent.core.model_state import BUSY_PHASES, ModelState
from manifests.release import Release
from manifests.twin import Phase, Progress, TrialEvidence

HISTORY_LINES_MAX = 12

# Code -> what somebody should do next. A key may be a code that only a newer agent gives.
NEXT_ACTIONS: Mapping[str, str] = {
    "EXPIRED": "Roll the version out again: a new rollout has a higher generation and a new notAfter.",
    "UNSUPPORTED_FORMAT": "Install the engine for that format on the device, "
    "or roll out the version in a format it runs.",
    "UNSUPPORTED_ENGINE": "Upgrade the engine on the device to what the release requires, or roll out without that.",
    "UNSUPPORTED_OPSET": "Export the model with an older opset, or upgrade onnxruntime on the device.",
    "NO_MEMORY": "Roll out a smaller model, or stop what else takes the device's memory.",
    "QUARANTINED": "Find out why these bytes failed their trial here; then roll out a corrected version, "
    "or the same one again with a new rollout to try it once more.",
    "MALFORMED_OFFER": "Correct the entry in the desired section, or let `slipway rollout` write it; "
    "an agent older than the registry may need an upgrade.",
    "NO_SPACE": "Free some space where the state directory lies, then roll out again.",
    "DOWNLOAD_FAILED": "See from the device that the artifact server answers (`slipway-agent doctor`), "
    "then roll out again.",
    "SIZE_MISMATCH": "Compare the file on the artifact server with the registry (`slipway model show`); "
    "a proxy that changes answers looks the same.",
    "DIGEST_MISMATCH": "Compare the file on the artifact server with the registry (`slipway model show`); "
    "where it is right, check the device's disk.",
    "LOAD_FAILED": "Load the file in the device's own engine: `slipway-agent score --model FILE --input FILE.npy`.",
    "SIGNATURE_MISMATCH": "The model's tensors are not what its release says: "
    "register the file again and roll out that version.",
    "DELTA_FAILED": "Nothing need be done: the whole artifact is fetched in place of the delta. "
    "Where it happens often, make the deltas again.",
    "TRUST_NO_ROOT": "Put the repository's root metadata where trusted_root in [download] points to.",
    "TRUST_UNREACHABLE": "See from the device that metadata_url answers (`slipway-agent doctor`), then roll out again.",
    "TRUST_EXPIRED": "Sign the repository's metadata anew where it is published, and check the device's clock; "
    "then roll out again.",
    "TRUST_ROLLBACK": "The server gives older metadata than this device has seen: find out who put it there, "
    "and publish the newest again.",
    "TRUST_BAD_SIGNATURE": "The metadata is not signed by whom the pinned root names: find out who wrote it; "
    "nothing of it is installed.",
    "TRUST_BAD_METADATA": "Publish the repository's metadata again: what the server gives is damaged or incomplete.",
    "TRUST_UNKNOWN_TARGET": "Publish the model's files in the repository, then roll out again.",
    "TRUST_TARGET_MISMATCH": "The hub asks for other bytes than the signed metadata allows: "
    "see who wrote the desired section, and publish what is meant.",
    "GOLDEN_MISMATCH": "The model answers differently on this hardware: compare with `slipway-agent score`, "
    "and widen the golden set's tolerance only where the difference is harmless.",
    "SHADOW_LATENCY": "The model is too slow for this device: quantise it, "
    "or roll out with a higher latencyRatioMax or latencyMaxMs.",
    "SHADOW_MEMORY": "The model takes too much memory on this device: roll out a smaller one.",
    "SHADOW_CRASHED": "Look for the reason in the system's log (out of memory, a crash of the engine), "
    "then roll out a smaller or corrected version.",
    "TRIAL_LOW_CONFIDENCE": "Compare what the sensor gives with what the model was trained on; "
    "`slipway telemetry summary` shows the confidence by version.",
    "TRIAL_DISAGREEMENT": "Look at readings on which the two versions differ; where the new one is right, "
    "roll out with a higher maxDisagreement.",
    "TRIAL_ERRORS": "The error of each reading is in the telemetry; mostly the sensor's shape is not the model's.",
    "TRIAL_LATENCY": "On live readings the model is too slow for this device: quantise it, "
    "or roll out with wider terms.",
    "TRIAL_NO_EVIDENCE": "Too few readings came before the deadline: check the sensor, "
    "or roll out with fewer inferences or a longer deadlineSeconds.",
    "TRIAL_CRASHED": "Look for the reason in the system's log, then roll out a corrected version.",
    "SERVING_PREVIOUS": "The committed model is fetched again by itself; where it goes bad again, check the disk.",
    "SERVING_FACTORY": "The committed model is fetched again by itself; where it goes bad again, check the disk.",
    "INTERNAL_ERROR": "The agent's log has the trace (`slipway-agent call logs`): report it, then roll out again.",
}
_NO_ACTION = "This agent knows no advice for the code; the sentence beside it says what was seen."

# Phase -> what it means that a device stands there.
PHASE_WORDS: Mapping[Phase, str] = {
    Phase.OFFERED: "The offer was taken and is being checked.",
    Phase.DEFERRED: "The offer waits for its time.",
    Phase.DOWNLOADING: "The files of the offer are being fetched; the old model serves meanwhile.",
    Phase.VERIFYING: "Size and digest are being checked.",
    Phase.STAGED: "The new model is on the disk, whole and checked; it is loaded as soon as the moment is right.",
    Phase.SHADOW: "The new model is loaded beside the old one and asked its golden set; the old one serves.",
    Phase.SWITCHING: "The new model takes over.",
    Phase.TRIAL: "The new model serves on trial.",
    Phase.COMMITTED: "The offered model serves for good. Nothing is left to do.",
    Phase.FAILED: "The update ended before or without a commit; the model from before serves.",
    Phase.REVERTING: "The trial failed; the model from before is being put back.",
    Phase.REVERTED_QUARANTINED: "The trial failed; the model from before serves, and these bytes are not tried again.",
    Phase.REJECTED: "The offer was refused before anything was fetched.",
}


@dataclass(frozen=True, slots=True)
class LinkStanding:
    """The line to the hub, as a running agent knows it."""

    is_connected: bool
    host_name: str
    problem: str | None = None
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """What lies in the state directory: sealed artifacts by digest, what is still growing, the database."""

    blobs: Mapping[str, int] = field(default_factory=dict)
    parts_bytes: int = 0
    database_bytes: int = 0
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """What only the running process knows; empty for a stopped one."""

    link: LinkStanding | None = None
    progress: Mapping[str, Progress] = field(default_factory=dict)
    evidence: Mapping[str, TrialEvidence] = field(default_factory=dict)
    retries_in_s: Mapping[str, float] = field(default_factory=dict)


def next_action(code: str) -> str:
    return NEXT_ACTIONS.get(code, _NO_ACTION)


def explanation(
    states: Mapping[str, ModelState],
    history: Iterable[Transition],
    disk: Disk,
    live: Live,
    *,
    is_running: bool,
    refusals: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The answer of ``explain``. Field names are stable; `hub` is null where no agent runs.

    `refusals` are offers that could not even be read, with why.
    """
    lines = list(history)
    models = {
        name: _model(state, [line for line in lines if line.model == name], live, is_running=is_running)
        for name, state in states.items()
    }
    for name, why in (refusals or {}).items():
        models.setdefault(name, _unread()).update(
            code="MALFORMED_OFFER", message=why, nextAction=next_action("MALFORMED_OFFER"), isSuccess=False
        )
    return {
        "isRunning": is_running,
        "hub": _hub(live.link),
        "models": models,
        "disk": _disk(states, disk),
    }


def _model(state: ModelState, history: list[Transition], live: Live, *, is_running: bool) -> dict[str, Any]:
    offer = state.offer
    seen = state.problem
    return {
        "phase": str(state.phase) if state.phase else None,
        "meaning": PHASE_WORDS[state.phase] if state.phase else "Nothing is asked of this model.",
        "isSuccess": state.phase in (None, Phase.COMMITTED),
        "generation": offer.generation if offer else state.generation_highest,
        "rollout": offer.rollout if offer else None,
        "offeredVersion": offer.version if offer else None,
        "servingVersion": _version_of(state, state.serving),
        "code": seen.code if seen else None,
        "message": seen.message if seen else None,
        "nextAction": next_action(seen.code) if seen else None,
        "deferred": state.deferred.to_wire() if state.deferred and state.phase is Phase.DEFERRED else None,
        "waitsFor": _waits_for(state, live, is_running=is_running),
        "history": [line.to_wire() for line in history[-HISTORY_LINES_MAX:]],
    }


def _unread() -> dict[str, Any]:
    return {"phase": None, "meaning": "The offer could not be read.", "waitsFor": [], "history": []}


def _waits_for(state: ModelState, live: Live, *, is_running: bool) -> list[str]:
    """Sentences, the most urgent first; empty where the device has nothing left to do."""
    if state.phase not in BUSY_PHASES:
        later = [f"generation {state.pending.generation}, which comes next"] if state.pending else []
        return later + _repair(state)
    if not is_running:
        return ["the agent to be started: it goes on where it was"]
    waits = []
    if state.phase is Phase.DEFERRED:
        waits.append(_moment(state))
    if state.phase is Phase.DOWNLOADING:
        waits.append(_download(state, live.progress.get(state.name)))
    if state.phase is Phase.TRIAL:
        waits.append(_trial(state, live.evidence.get(state.name)))
    if state.name in live.retries_in_s:
        waits.append(f"the next attempt, in {live.retries_in_s[state.name]:.0f} s")
    return waits or ["the step at hand to be done"]


def _moment(state: ModelState) -> str:
    wait = state.deferred
    if wait is None:
        return "the device to be free for it"
    until = f", until {wait.until} at the latest" if wait.until else ""
    return f"a better moment for its {wait.step}{until}: {wait.message}"


def _repair(state: ModelState) -> list[str]:
    is_whole = state.current is None or (state.serving == state.current.digest and not state.is_current_damaged)
    return [] if is_whole else ["the committed model to be fetched again: it is damaged or missing on the disk"]


def _download(state: ModelState, progress: Progress | None) -> str:
    attempt = f", attempt {state.attempt + 1}" if state.attempt else ""
    if progress is None:
        return f"the artifact server{attempt}"
    return f"{progress.total_bytes - progress.done_bytes:,} of {progress.total_bytes:,} bytes{attempt}"


def _trial(state: ModelState, evidence: TrialEvidence | None) -> str:
    terms = state.offer.trial if state.offer else None
    if terms is None or evidence is None:
        return "readings to judge the new model by"
    return (
        f"evidence: {evidence.inferences} of {terms.inferences_min} inferences, "
        f"{evidence.elapsed_s or 0:.0f} of {terms.duration_s:.0f} s"
    )


def _version_of(state: ModelState, digest: str | None) -> int | None:
    return next((release.version for _, release in _releases(state) if release.digest == digest), None)


def _hub(link: LinkStanding | None) -> dict[str, Any] | None:
    if link is None:
        return None
    return {
        "hostName": link.host_name,
        "isConnected": link.is_connected,
        "problem": link.problem,
        "retryInSeconds": None if link.retry_in_s is None else round(link.retry_in_s, 1),
    }


def _disk(states: Mapping[str, ModelState], disk: Disk) -> dict[str, Any]:
    kept = []
    seen = set()
    for name, state in states.items():
        for role, release in _releases(state):
            size_bytes = disk.blobs.get(release.digest)
            if size_bytes is None or (name, release.digest) in seen:
                continue
            seen.add((name, release.digest))
            kept.append({"model": name, "role": role, "version": release.version, "format": release.format,
                         "digest": release.digest, "bytes": size_bytes})  # fmt: skip
    return {
        "releases": kept,
        "artifactBytes": sum(disk.blobs.values()),
        "partBytes": disk.parts_bytes,
        "databaseBytes": disk.database_bytes,
        "freeBytes": disk.free_bytes,
    }


def _releases(state: ModelState) -> list[tuple[str, Release]]:
    """Every release that a model's state holds, with the field that holds it; the committed one before the others."""
    found: list[tuple[str, Release]] = []
    names = [name for name in state.__struct_fields__ if name != "offer"]
    for name in [*names, "offer"]:
        value = getattr(state, name)
        values = value if isinstance(value, tuple | list) else (value,)
        found += [(name, release) for release in values if isinstance(release, Release)]
    return found
