"""What happened to a model on this device, as one line for each change of its update. Pure."""

from datetime import datetime

from device_agent.core.events import Event
from device_agent.core.model_state import ModelState
from manifests.document import Document
from manifests.twin import Phase

# Kept over all models: some twenty updates, and well below a quarter of a megabyte.
TRANSITIONS_MAX = 200
_MESSAGE_CHARACTERS_MAX = 300


class Transition(Document, frozen=True, kw_only=True):
    """One change: when, of which offer of whom, from which phase to which, and why.

    `event` is what the update machine heard; `code` and `message` are there where it heard of a problem, and the
    message alone where an offer was deferred.
    """

    at: str
    model: str
    event: str
    before: Phase | None = None
    after: Phase | None = None
    rollout: str = ""
    generation: int = 0
    version: int = 0
    code: str | None = None
    message: str | None = None


def transition_between(before: ModelState, after: ModelState, event: Event, now: datetime) -> Transition | None:
    """The line that tells of this step; None for a step that changes nothing a person would ask about."""
    is_new_problem = after.problem is not None and after.problem != before.problem
    if before.phase == after.phase and before.offer == after.offer and not is_new_problem:
        return None
    offer = after.offer or before.offer
    seen = after.problem if is_new_problem else None
    is_deferred = after.phase is Phase.DEFERRED and after.deferred is not None
    why = seen or (after.deferred if is_deferred else None)
    return Transition(
        at=now.isoformat(timespec="seconds"),
        model=after.name,
        event=type(event).__name__,
        before=before.phase,
        after=after.phase,
        rollout=offer.rollout if offer else "",
        generation=offer.generation if offer else 0,
        version=offer.version if offer else 0,
        code=seen.code if seen else None,
        message=why.message[:_MESSAGE_CHARACTERS_MAX] if why else None,
    )
