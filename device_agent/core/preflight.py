"""Whether this machine can take a release at all, seen before a byte is fetched. Pure.

Handles: room on the disk, free memory, the engine and its newest opset.
Leaves to the caller: looking at disk, memory and engine. What is not known speaks for nobody.
"""

from dataclasses import dataclass

from device_agent.core.codes import Code, problem
from device_agent.ports import EngineFacts
from manifests.release import Release, Requirements
from manifests.twin import UpdateProblem

# What an update leaves free for the journal and the outbox.
ROOM_RESERVE_BYTES = 64 * 1024
# Code of the problems that no later attempt on this machine would get over: the offer is rejected, not failed.
HOPELESS = frozenset({Code.UNSUPPORTED_ENGINE, Code.UNSUPPORTED_OPSET})


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. `missing_bytes` of the release are not on the disk yet, `is_present` where every file is."""

    is_present: bool
    missing_bytes: int
    room_bytes: int
    memory_bytes: int | None = None
    engine: EngineFacts | None = None


def shortcoming(offer: Release, machine: Machine) -> UpdateProblem | None:
    """What the release asks for and the machine does not have; None where it may go on.

    What lasts comes first: a device whose disk is full today is told that it also lacks the engine.
    """
    requires = offer.requires or Requirements()
    return (
        _of_engine(offer, requires, machine)
        or _of_opset(offer, requires, machine)
        or _of_room(offer, machine)
        or _of_memory(offer, requires, machine)
    )


def _of_engine(offer: Release, requires: Requirements, machine: Machine) -> UpdateProblem | None:
    if requires.engine is None or machine.engine is None:
        return None
    name, _, least = (part.strip() for part in requires.engine.partition(">="))
    engine = machine.engine
    if name == engine.name and (not least or _numbers(engine.version) >= _numbers(least)):
        return None
    return problem(
        Code.UNSUPPORTED_ENGINE,
        f"Version {offer.version} asks for {requires.engine}; this device has {engine.name} {engine.version}.",
    )


def _of_opset(offer: Release, requires: Requirements, machine: Machine) -> UpdateProblem | None:
    engine = machine.engine
    if requires.opset is None or engine is None or engine.opset_max is None or requires.opset <= engine.opset_max:
        return None
    return problem(
        Code.UNSUPPORTED_OPSET,
        f"Version {offer.version} uses opset {requires.opset}; {engine.name} {engine.version} on this device runs "
        f"opsets up to {engine.opset_max}.",
    )


def _of_room(offer: Release, machine: Machine) -> UpdateProblem | None:
    if machine.is_present or machine.missing_bytes + ROOM_RESERVE_BYTES <= machine.room_bytes:
        return None
    return problem(
        Code.NO_SPACE,
        f"Version {offer.version} needs {machine.missing_bytes:,} bytes more; the disk has {machine.room_bytes:,} "
        "free.",
    )


def _of_memory(offer: Release, requires: Requirements, machine: Machine) -> UpdateProblem | None:
    needed, free = requires.memory_bytes, machine.memory_bytes
    if needed is None or free is None or needed <= free:
        return None
    return problem(
        Code.NO_MEMORY, f"Version {offer.version} needs {needed:,} bytes of memory; this device has {free:,} free."
    )


def _numbers(version: str) -> tuple[int, ...]:
    """1.17.0rc1 as (1, 17, 0): enough to order the releases of an engine."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    # 1.17 and 1.17.0 are one version.
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)
