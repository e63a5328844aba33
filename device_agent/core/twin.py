"""The agent's dialect of the module twin: desired documents to offers, state to a reported section. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from device_agent.core.codes import Code, problem
from device_agent.core.model_state import ModelState
from manifests.errors import ManifestError
from manifests.identity import check_model_name
from manifests.model import ModelFormat
from manifests.release import Release, releases_in
from manifests.twin import Phase, PreviousModel, Progress, ReportedModel, TrialEvidence

# The keys of the reported section that are the agent's to write; whatever else stands there is left alone.
OWN_KEYS = ("models", "agent", "telemetry")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry that is no release: reported as rejected where it names at least a generation and a version."""

    generation: int
    version: int
    rollout: str
    message: str


@dataclass(frozen=True, slots=True)
class DesiredReading:
    """What a desired section asks for. `speaks_of_models` is False for a section without ``models``.

    A hub that never saw the module answers with an empty twin while it is offline; to take that as a withdrawal of
    everything would stop a device for no reason. A map without an entry does withdraw that model.
    """

    offers: dict[str, Release] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    speaks_of_models: bool = False

    def withdraws(self, name: str) -> bool:
        return self.speaks_of_models and name not in self.offers and name not in self.refusals


def read_desired(desired: Mapping[str, Any]) -> DesiredReading:
    """Read a whole desired section; each entry alone, so that a bad one hides no other."""
    offers: dict[str, Release] = {}
    refusals: dict[str, Refusal] = {}
    for name, entry in releases_in(dict(desired)).items():
        try:
            check_model_name(name)
            offers[name] = Release.from_wire(entry)
        except ManifestError as err:
            refusals[name] = _refusal(entry, str(err))
    return DesiredReading(offers, refusals, isinstance(desired.get("models"), dict))


def _refusal(entry: Any, message: str) -> Refusal:
    fields = entry if isinstance(entry, dict) else {}
    return Refusal(
        generation=_natural(fields.get("generation")),
        version=_natural(fields.get("version")),
        rollout=str(fields.get("rollout", ""))[:64],
        message=message,
    )


def _natural(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def merged(document: Any, patch: Any) -> Any:
    """A twin section after a patch: objects merge, null deletes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def patch_between(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest patch that turns `known` into `wanted`; empty where they are equal. Null removes what vanished.

    Satisfies ``merged(known, patch_between(known, wanted)) == wanted`` for documents without nulls.
    """
    patch: dict[str, Any] = {key: None for key in known if key not in wanted}
    for key, value in wanted.items():
        before = known.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = patch_between(before, value)
            if inner:
                patch[key] = inner
        elif key not in known or before != value or isinstance(before, bool) != isinstance(value, bool):
            patch[key] = value
    return patch


def own_section(reported: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's part of the reported section as a hub returns it."""
    return {key: reported[key] for key in OWN_KEYS if key in reported}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What the engine holds at this moment, read back from the engine."""

    version: int
    digest: str
    format: ModelFormat


def reported_model(
    state: ModelState,
    loaded: LoadedModel | None,
    progress: Progress | None = None,
    evidence: TrialEvidence | None = None,
) -> ReportedModel | None:
    """The entry of one model; None where the device has nothing to say of it. `evidence` is that of a running trial."""
    offer = state.offer
    if offer is None or state.phase is None:
        return None
    return ReportedModel(
        generation=offer.generation,
        rollout=offer.rollout,
        epoch=offer.epoch,
        phase=state.phase,
        version=offer.version,
        loaded_version=loaded.version if loaded else None,
        loaded_digest=loaded.digest if loaded else None,
        loaded_format=loaded.format if loaded else None,
        previous=_previous(state, loaded),
        progress=progress if state.phase is Phase.DOWNLOADING else None,
        transfer=state.transfer,
        trial=evidence if state.phase is Phase.TRIAL else state.evidence,
        error=state.problem,
    )


def refused_model(refusal: Refusal, loaded: LoadedModel | None) -> ReportedModel | None:
    """The entry for an offer that could not be read; None where it does not even say what it offers."""
    if not refusal.generation or not refusal.version:
        return None
    return ReportedModel(
        generation=refusal.generation,
        rollout=refusal.rollout,
        phase=Phase.REJECTED,
        version=refusal.version,
        loaded_version=loaded.version if loaded else None,
        loaded_digest=loaded.digest if loaded else None,
        loaded_format=loaded.format if loaded else None,
        error=problem(Code.MALFORMED_OFFER, f"The offer cannot be read: {refusal.message}."),
    )


def _previous(state: ModelState, loaded: LoadedModel | None) -> PreviousModel | None:
    """The model the device would go back to: during a trial the committed one, else the one before that."""
    is_trying = loaded is not None and state.current is not None and loaded.digest != state.current.digest
    back = state.current if is_trying else state.previous
    return PreviousModel(version=back.version, digest=back.digest) if back else None
