"""Which releases stay on the disk. Pure.

The committed release and the one on trial always do. Of those before, the newest few stay for an instant way back, as
long as they fit into the byte budget; and they make room, oldest first, for an update that has none.
"""

from msgspec.structs import replace

from device_agent.core.model_state import ModelState, Rules, sizes_bytes
from manifests.release import Release


def committed(state: ModelState, offer: Release, rules: Rules) -> ModelState:
    """The state after a commit of `offer`: what was committed before it becomes the way back, if it is kept."""
    before = [release for release in (state.current, state.previous, *state.older) if release is not None]
    kept: list[Release] = []
    for release in before:
        is_new = release.digest not in {offer.digest, *(other.digest for other in kept)}
        if is_new and len(kept) < rules.keep_releases:
            if total_bytes([offer, *kept, release]) > rules.keep_bytes_max:
                break
            kept.append(release)
    return _with_history(replace(state, current=offer), kept)


def without_oldest(state: ModelState) -> ModelState | None:
    """The state with one release less to keep; None where nothing is left to give up.

    The committed release is the way back of an update, so even the one before it may make room.
    """
    history = [release for release in (state.previous, *state.older) if release is not None]
    return _with_history(state, history[:-1]) if history else None


def total_bytes(releases: list[Release]) -> int:
    """Bytes on the disk: files that two releases share count once."""
    sizes: dict[str, int] = {}
    for release in releases:
        sizes |= sizes_bytes(release)
    return sum(sizes.values())


def _with_history(state: ModelState, history: list[Release]) -> ModelState:
    return replace(state, previous=history[0] if history else None, older=tuple(history[1:]))
