"""What a release asks for and a machine does not have, before anything is fetched."""

from dataclasses import replace

import pytest

from device_agent.core import events as e
from device_agent.core.codes import Code, problem
from device_agent.core.preflight import ROOM_RESERVE_BYTES, Machine, shortcoming
from device_agent.ports import EngineFacts
from manifests.release import Requirements
from manifests.twin import Phase
from tests.unit.agent.test_update_machine import PASSED, TO_TRIAL, Device, committed, digest, release

ENGINE = EngineFacts("onnxruntime", "1.17.3", 20, ("CPUExecutionProvider",))
PLENTY = Machine(is_present=False, missing_bytes=1000, room_bytes=10_000_000, memory_bytes=100_000_000, engine=ENGINE)

# A sentence -> (what the release requires, the machine, the code).
CASES = {
    "it asks for nothing": (None, PLENTY, None),
    "the disk is full": (None, replace(PLENTY, room_bytes=1000 + ROOM_RESERVE_BYTES - 1), Code.NO_SPACE),
    "the disk has just enough": (None, replace(PLENTY, room_bytes=1000 + ROOM_RESERVE_BYTES), None),
    "the disk is full, but the bytes are there": (None, replace(PLENTY, is_present=True, room_bytes=0), None),
    "the memory is short": (Requirements(memory_bytes=100_000_001), PLENTY, Code.NO_MEMORY),
    "the memory is enough": (Requirements(memory_bytes=100_000_000), PLENTY, None),
    "the memory is not known": (Requirements(memory_bytes=10**12), replace(PLENTY, memory_bytes=None), None),
    "the opset is too new": (Requirements(opset=21), PLENTY, Code.UNSUPPORTED_OPSET),
    "the opset is the newest": (Requirements(opset=20), PLENTY, None),
    "the engine knows no opsets": (
        Requirements(opset=99), replace(PLENTY, engine=replace(ENGINE, opset_max=None)), None,
    ),
    "the engine is not known": (Requirements(opset=99, engine="tvm"), replace(PLENTY, engine=None), None),
    "the engine is another": (Requirements(engine="ai-edge-litert"), PLENTY, Code.UNSUPPORTED_ENGINE),
    "the engine is the one": (Requirements(engine="onnxruntime"), PLENTY, None),
    "the engine is new enough": (Requirements(engine="onnxruntime>=1.17"), PLENTY, None),
    "the engine is exactly as new": (Requirements(engine="onnxruntime >= 1.17.3"), PLENTY, None),
    "the engine is too old": (Requirements(engine="onnxruntime>=1.18"), PLENTY, Code.UNSUPPORTED_ENGINE),
    "two digits are more than one": (Requirements(engine="onnxruntime>=1.9"), PLENTY, None),
    "a zero more is no newer version": (
        Requirements(engine="onnxruntime>=1.17.0"),
        replace(PLENTY, engine=replace(ENGINE, version="1.17")),
        None,
    ),
    "a release candidate": (
        Requirements(engine="onnxruntime>=1.18"), replace(PLENTY, engine=replace(ENGINE, version="1.18.0rc1")), None,
    ),
    "all at once: what no later day will mend": (
        Requirements(opset=99, memory_bytes=10**12), replace(PLENTY, room_bytes=0), Code.UNSUPPORTED_OPSET,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_release_and_a_machine(case):
    requires, machine, code = CASES[case]
    found = shortcoming(release(2, requires=requires), machine)
    assert (found.code if found else None) == code
    if found is not None:
        assert found.message.startswith("Version 2 ")
        assert found.message.endswith(".")


@pytest.mark.parametrize(
    ("code", "phase"),
    [(Code.UNSUPPORTED_OPSET, "rejected"), (Code.UNSUPPORTED_ENGINE, "rejected"), (Code.NO_MEMORY, "failed")],
)
def test_what_this_machine_will_never_run_is_rejected_and_what_it_may_run_later_fails(code, phase):
    device = committed(1).hears(e.Desired(release(2))).says((e.PreflightFailed, (problem(code, "No."),)))
    assert (device.chain, device.state.problem.code) == (["offered", phase], code)
    assert device.hears(e.Desired(release(3))).state.phase is Phase.OFFERED


FULL = (e.PreflightFailed, (problem(Code.NO_SPACE, "Full."),))


def test_releases_that_are_kept_make_room_oldest_first_and_the_committed_one_never():
    device = Device()
    for generation in (1, 2, 3):
        device.hears(e.Desired(release(generation))).says(*TO_TRIAL, PASSED)
    device.hears(e.Desired(release(4)))
    kept = []
    for _ in range(2):
        device.says(FULL)
        assert device.kinds == ["Sweep", "Preflight"]
        kept.append(device.state.digests() - {digest(4)})
    assert kept == [{digest(2), digest(3)}, {digest(3)}]
    device.says(FULL)
    assert (device.state.phase, device.state.current) == (Phase.FAILED, release(3))
