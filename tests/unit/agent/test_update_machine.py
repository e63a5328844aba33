"""The update machine as stories: what happens, and the phases that a device goes through for it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from device_agent.core import commands as c
from device_agent.core import events as e
from device_agent.core.codes import Code, problem
from device_agent.core.model_state import ModelState, Rules
from device_agent.core.update import IGNORED, STANDINGS, TRANSITIONS, step
from device_agent.ports import Surroundings
from manifests.canonical import digest_of
from manifests.release import Release
from manifests.twin import Phase, TrialEvidence

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
CALM = Surroundings(local=NOW)
RULES = Rules(formats=("onnx",), download_attempts_max=3)
SEEN = TrialEvidence(inferences=50, confidence_mean=0.9)
BAD = problem(Code.DIGEST_MISMATCH, "Other bytes.")
UNSURE = problem(Code.TRIAL_LOW_CONFIDENCE, "Unsure.")


def release(generation: int, content: str | None = None, **changes) -> Release:
    content = content or f"model {generation}"
    fields = {
        "generation": generation,
        "rollout": f"r-{generation:04}",
        "version": generation,
        "format": "onnx",
        "digest": digest_of(content.encode()),
        "size_bytes": len(content),
        "target": f"digits/{generation}/model.onnx",
    }
    return Release(**{**fields, **changes})


def digest(generation: int) -> str:
    return release(generation).digest


@dataclass
class Device:
    """A machine and whoever answers it: `says` answers the newest command."""

    state: ModelState = field(default_factory=lambda: ModelState(name="digits"))
    asked: list[c.Command] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)

    def hears(self, *events: e.Event) -> "Device":
        for event in events:
            self.state, commands = step(self.state, event, NOW, RULES)
            self.asked = list(commands) or self.asked
            phase = str(self.state.phase) if self.state.phase else "idle"
            if not self.chain or self.chain[-1] != phase:
                self.chain.append(phase)
        return self

    def says(self, *kinds) -> "Device":
        """Answer in the newest ticket's name: an event type, or one with its arguments."""
        for kind in kinds:
            make, arguments = kind if isinstance(kind, tuple) else (kind, ())
            if make not in (e.SurroundingsSeen, e.LookFailed):
                self.looks_around()
            self.hears(make(self.state.ticket, *arguments))
        return self.looks_around()

    def looks_around(self) -> "Device":
        """Where the machine asks for the surroundings and a story says nothing of them, nothing speaks against it."""
        while self.asked and isinstance(self.work, c.LookAround) and self.state.phase is not Phase.DEFERRED:
            self.hears(e.SurroundingsSeen(self.work.ticket, CALM))
        return self

    @property
    def work(self) -> c.Command:
        return self.asked[-1]

    @property
    def kinds(self) -> list[str]:
        return [type(command).__name__ for command in self.asked]


ROOM = (e.PreflightPassed, (False, 100))
PRESENT = (e.PreflightPassed, (True,))
TO_TRIAL = (ROOM, e.Downloaded, e.Verified, e.Loaded, e.ShadowPassed, e.Switched)
PASSED = (e.TrialPassed, (SEEN,))


def committed(generation: int = 1) -> Device:
    device = Device().hears(e.Desired(release(generation))).says(*TO_TRIAL, PASSED)
    assert device.state.phase is Phase.COMMITTED
    device.chain.clear()
    return device


def on_trial() -> Device:
    device = committed(1).hears(e.Desired(release(2))).says(*TO_TRIAL)
    device.chain.clear()
    return device


UPDATE = ["offered", "downloading", "verifying", "staged", "shadow", "switching", "trial"]


def test_every_phase_has_decided_what_to_do_with_every_event():
    pairs = {(standing, kind) for standing in STANDINGS for kind in e.EVENTS}
    assert set(TRANSITIONS) | IGNORED == pairs
    assert set(TRANSITIONS) & IGNORED == set()
    assert (len(TRANSITIONS), len(IGNORED)) == (84, 210)


# A sentence -> (events and answers from the first offer on, the chain of phases, the code reported at the end).
FIRST_OFFERS = {
    "all goes well: the model is committed": ((*TO_TRIAL, PASSED), [*UPDATE, "committed"], None),
    "there is no room: nothing is downloaded": (
        ((e.PreflightFailed, (problem(Code.NO_SPACE, "Full."),)),),
        ["offered", "failed"],
        Code.NO_SPACE,
    ),
    "the bytes are on the disk already: they are verified and not downloaded": (
        (PRESENT, e.Verified),
        ["offered", "verifying", "staged", "shadow"],
        None,
    ),
    "the server says no: the update fails at once": (
        (ROOM, (e.DownloadFailed, (problem(Code.DOWNLOAD_FAILED, "404."),))),
        ["offered", "downloading", "failed"],
        Code.DOWNLOAD_FAILED,
    ),
    "the line is cut twice without a byte: the third attempt still succeeds": (
        (
            ROOM,
            (e.DownloadFailed, (BAD, True)),
            (e.DownloadFailed, (BAD, True)),
            e.Downloaded,
        ),
        ["offered", "downloading", "verifying"],
        None,
    ),
    "the line is cut three times without a byte: the update fails": (
        (ROOM, *[(e.DownloadFailed, (problem(Code.DOWNLOAD_FAILED, "Cut."), True))] * 3),
        ["offered", "downloading", "failed"],
        Code.DOWNLOAD_FAILED,
    ),
    "the line is cut ten times but bytes came each time: it goes on": (
        (ROOM, *[(e.DownloadFailed, (BAD, True, True))] * 10, e.Downloaded),
        ["offered", "downloading", "verifying"],
        None,
    ),
    "the digest differs once: the bytes are fetched afresh": (
        (ROOM, e.Downloaded, (e.VerifyFailed, (BAD,)), e.Downloaded, e.Verified),
        ["offered", "downloading", "verifying", "downloading", "verifying", "staged", "shadow"],
        None,
    ),
    "the digest differs twice: nothing is activated": (
        (ROOM, e.Downloaded, (e.VerifyFailed, (BAD,)), e.Downloaded, (e.VerifyFailed, (BAD,))),
        ["offered", "downloading", "verifying", "downloading", "verifying", "failed"],
        Code.DIGEST_MISMATCH,
    ),
    "the engine refuses the model: nothing is switched": (
        (ROOM, e.Downloaded, e.Verified, (e.LoadFailed, (problem(Code.LOAD_FAILED, "No."),))),
        ["offered", "downloading", "verifying", "staged", "shadow", "failed"],
        Code.LOAD_FAILED,
    ),
    "the golden set is answered wrong: nothing is switched": (
        (*TO_TRIAL[:4], (e.ShadowFailed, (problem(Code.GOLDEN_MISMATCH, "Off."),))),
        ["offered", "downloading", "verifying", "staged", "shadow", "failed"],
        Code.GOLDEN_MISMATCH,
    ),
    "a first model fails its trial: nothing serves again, and its bytes are quarantined": (
        (*TO_TRIAL, (e.TrialFailed, (UNSURE, SEEN)), (e.Restored, (None,))),
        [*UPDATE, "reverting", "revertedQuarantined"],
        Code.TRIAL_LOW_CONFIDENCE,
    ),
    "nobody asks the model anything: it goes back without being held against its bytes": (
        (*TO_TRIAL, (e.TrialFailed, (problem(Code.TRIAL_NO_EVIDENCE, "None."), SEEN, False)), (e.Restored, (None,))),
        [*UPDATE, "reverting", "failed"],
        Code.TRIAL_NO_EVIDENCE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", FIRST_OFFERS)
def test_a_first_offer(story):
    answers, chain, code = FIRST_OFFERS[story]
    device = Device().hears(e.Desired(release(1))).says(*answers)
    assert device.chain == chain
    assert (device.state.problem.code if device.state.problem else None) == code


REFUSED = {
    "its time is over": (release(2, not_after="2025-03-01T11:59:59+00:00"), Code.EXPIRED),
    "its time is no instant": (release(2, not_after="tomorrow"), Code.MALFORMED_OFFER),
    "this device has no engine for it": (release(2, format="tflite"), Code.UNSUPPORTED_FORMAT),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_offer_is_rejected_without_touching_the_disk_when(reason):
    offer, code = REFUSED[reason]
    device = committed(1).hears(e.Desired(offer))
    assert (device.chain, device.kinds, device.state.problem.code) == (["rejected"], ["Sweep"], code)
    assert (device.state.current, device.state.serving) == (release(1), digest(1))


def test_an_offer_that_still_has_a_second_is_started():
    device = Device().hears(e.Desired(release(1, not_after="2025-03-01T12:00:00Z")))
    assert device.chain == ["offered"]


def test_an_offer_that_expired_while_the_device_was_off_is_not_started():
    device = Device().hears(e.Desired(release(1, not_after="2025-03-01T12:30:00Z")), e.Restarted(is_unclean=True))
    later = datetime(2025, 3, 1, 13, tzinfo=UTC)
    state, _ = step(device.state, e.Restored(device.state.ticket, None), later, RULES)
    assert (state.phase, state.problem.code) == (Phase.REJECTED, Code.EXPIRED)


def test_a_failed_trial_brings_the_old_model_back_and_its_generation_is_over():
    device = on_trial().says((e.TrialFailed, (UNSURE, SEEN)))
    assert device.work == c.Restore(device.state.ticket, (release(1),))
    device.says((e.Restored, (digest(1),)))
    state = device.state
    assert device.chain == ["reverting", "revertedQuarantined"]
    assert (state.current, state.serving, state.quarantine) == (release(1), digest(1), {digest(2): 2})
    device.hears(e.Desired(release(2)))
    assert device.chain == ["reverting", "revertedQuarantined"]


def test_condemned_bytes_are_tried_again_only_under_a_higher_generation():
    device = on_trial().says((e.TrialFailed, (UNSURE, SEEN)), (e.Restored, (digest(1),)))
    assert device.hears(e.Desired(release(2, content="model 2"))).state.phase is Phase.REVERTED_QUARANTINED
    assert device.hears(e.Desired(release(3, content="model 2"))).state.phase is Phase.OFFERED


def test_a_quarantine_that_outlived_its_generation_still_holds():
    known = ModelState(name="digits", quarantine={digest(4): 4})
    device = Device(known).hears(e.Desired(release(4)))
    assert (device.chain, device.state.problem.code) == (["rejected"], Code.QUARANTINED)


def test_the_same_bytes_under_a_new_generation_are_verified_and_committed_without_a_download_or_a_trial():
    device = committed(1).hears(e.Desired(release(2, content="model 1")))
    assert device.work == c.Verify(device.state.ticket, release(2, content="model 1"))
    device.says(e.Verified)
    assert device.chain == ["verifying", "committed"]
    assert (device.state.current.generation, device.state.previous) == (2, None)


def test_the_same_bytes_that_rotted_on_the_disk_take_the_long_way():
    device = committed(1).hears(e.Desired(release(2, content="model 1"))).says((e.VerifyFailed, (BAD,)))
    device.says(e.Downloaded, e.Verified, e.Loaded, e.ShadowPassed, e.Switched, PASSED)
    assert device.chain == ["verifying", "downloading", *UPDATE[2:], "committed"]


def test_committed_bytes_that_rotted_are_fetched_again_even_if_the_offer_that_found_it_comes_to_nothing():
    device = committed(1).hears(e.Desired(release(2, content="model 1"))).says((e.VerifyFailed, (BAD,)))
    device.hears(e.Desired(release(3, not_after="2025-03-01T11:00:00Z")))
    assert device.state.phase is Phase.REJECTED
    assert device.work == c.Repair(device.state.ticket, release(1))
    assert device.says(e.Repaired).kinds == ["Sweep"]


def test_a_newer_offer_takes_the_place_of_a_download():
    device = committed(1).hears(e.Desired(release(2))).says(ROOM)
    late = device.state.ticket
    device.hears(e.Desired(release(3)), e.Downloaded(late))
    assert (device.state.phase, device.state.offer) == (Phase.OFFERED, release(3))


def test_a_newer_offer_waits_for_the_verdict_and_is_started_then():
    device = on_trial().hears(e.Desired(release(3)), e.Desired(release(5)), e.Desired(release(4)))
    assert (device.chain, device.state.pending) == (["trial"], release(5))
    device.says(PASSED)
    assert device.chain == ["trial", "offered"]
    assert (device.state.current, device.state.previous) == (release(2), release(1))
    assert (device.state.offer, device.state.pending) == (release(5), None)


def test_a_failed_trial_does_not_block_what_waited():
    device = on_trial().hears(e.Desired(release(3))).says((e.TrialFailed, (UNSURE, SEEN)), (e.Restored, (digest(1),)))
    assert (device.state.phase, device.state.offer, device.state.current) == (Phase.OFFERED, release(3), release(1))


@pytest.mark.parametrize("generation", [1, 2])
def test_an_old_desired_section_that_is_replayed_changes_nothing(generation):
    """Azure Device Update #609 and #625, flightctl#1586."""
    device = committed(2)
    before = device.state
    device.hears(e.Desired(release(generation)), e.Desired(before.offer))
    assert device.state == before


def test_a_rollback_is_a_higher_generation_with_older_bytes_and_needs_no_download():
    device = on_trial().says(PASSED)
    device.hears(e.Desired(release(3, content="model 1", version=1)))
    device.says(PRESENT, e.Verified, e.Loaded, e.ShadowPassed, e.Switched, PASSED)
    state = device.state
    assert (state.phase, state.current.version, state.previous.version) == (Phase.COMMITTED, 1, 2)


# A sentence -> (where the device was, how often it died there, the chain after its restarts, the code).
KILLED = {
    "while the offer was looked at: it is looked at again": ((), 1, ["offered"], None),
    "in the download: it goes on": ((ROOM,), 1, ["downloading"], None),
    "in the download, ten times: it still goes on": ((ROOM,), 10, ["downloading"], None),
    "in the verification: the bytes are verified again": (TO_TRIAL[:2], 1, ["verifying"], None),
    "while it is loaded: the model is loaded again": (TO_TRIAL[:3], 1, ["shadow", "staged", "shadow"], None),
    "in shadow: the model is loaded again": (TO_TRIAL[:4], 1, ["shadow", "staged", "shadow"], None),
    "while it is loaded, twice: the model is not loaded a third time": (
        TO_TRIAL[:3], 2, ["shadow", "staged", "shadow", "failed"], Code.SHADOW_CRASHED,
    ),
    "in the switch: the old model serves, and the new one is loaded again": (
        TO_TRIAL[:5], 1, ["switching", "staged", "shadow"], None,
    ),
    "in the trial: the trial begins again and is not committed for it": (
        TO_TRIAL, 1, ["trial", "staged", "shadow"], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", KILLED)
def test_killed(where):
    answers, times, chain, code = KILLED[where]
    device = committed(1).hears(e.Desired(release(2))).says(*answers)
    device.chain[:] = device.chain[-1:]
    for _ in range(times):
        device.hears(e.Restarted(is_unclean=True))
        assert device.work == c.Restore(device.state.ticket, (release(1),))
        device.says((e.Restored, (digest(1),)))
    assert device.chain == chain
    assert (device.state.problem.code if device.state.problem else None) == code
    assert device.state.serving == digest(1)


def test_killed_in_the_trial_and_again_in_the_next_one_the_device_goes_back():
    device = on_trial().hears(e.Restarted(is_unclean=True)).says((e.Restored, (digest(1),)), *TO_TRIAL[3:])
    device.hears(e.Restarted(is_unclean=True)).says((e.Restored, (digest(1),)))
    assert device.chain == ["trial", "staged", "shadow", "switching", "trial", "reverting", "revertedQuarantined"]
    assert (device.state.problem.code, device.state.quarantine) == (Code.TRIAL_CRASHED, {digest(2): 2})


def test_a_device_that_is_switched_off_properly_during_trials_is_not_held_against_the_model():
    """meta-balena#1316: ordinary reboots were taken for failures."""
    device = on_trial()
    for _ in range(5):
        device.hears(e.Restarted(is_unclean=False)).says((e.Restored, (digest(1),)), *TO_TRIAL[3:])
    assert (device.says(PASSED).state.phase, device.state.unclean_ends) == (Phase.COMMITTED, 0)


def test_killed_while_going_back_it_goes_back():
    device = on_trial().says((e.TrialFailed, (UNSURE, SEEN))).hears(e.Restarted(is_unclean=True))
    device.says((e.Restored, (digest(1),)))
    assert (device.state.phase, device.state.problem) == (Phase.REVERTED_QUARANTINED, UNSURE)


def test_a_committed_model_that_rotted_is_replaced_by_the_previous_one_and_fetched_again():
    device = on_trial().says(PASSED).hears(e.Restarted(is_unclean=True))
    assert device.work == c.Restore(device.state.ticket, (release(2), release(1)))
    device.says((e.Restored, (digest(1),)))
    assert (device.state.phase, device.state.serving) == (Phase.COMMITTED, digest(1))
    assert device.work == c.Repair(device.state.ticket, release(2))
    device.says((e.RepairFailed, (BAD,)))
    assert device.work == c.Repair(device.state.ticket, release(2), attempt=1)
    device.says(e.Repaired)
    assert (device.state.phase, device.state.serving, device.kinds) == (Phase.COMMITTED, digest(2), ["Sweep"])


def test_an_endless_repair_does_not_keep_the_next_update_out():
    device = committed(1).hears(e.Restarted(is_unclean=True)).says((e.Restored, (None,)), (e.RepairFailed, (BAD,)))
    device.hears(e.Desired(release(2))).says(*TO_TRIAL, PASSED)
    assert (device.state.phase, device.state.serving) == (Phase.COMMITTED, digest(2))


def test_a_withdrawn_model_stops_serving_and_old_offers_stay_old():
    device = committed(3).hears(e.Withdrawn())
    assert device.work == c.Restore(device.state.ticket, ())
    device.says((e.Restored, (None,)))
    assert (device.chain, device.state.current, device.state.serving) == (["idle"], None, None)
    assert device.hears(e.Desired(release(3))).state.phase is None
    assert device.hears(e.Desired(release(4))).state.phase is Phase.OFFERED


def test_a_withdrawal_waits_for_the_verdict():
    device = on_trial().hears(e.Withdrawn())
    assert device.chain == ["trial"]
    device.says(PASSED)
    assert (device.chain, device.state.current) == (["trial", "idle"], None)


def test_a_withdrawal_that_was_taken_back_during_the_trial_does_not_happen():
    device = on_trial().hears(e.Withdrawn(), e.Desired(release(2))).says(PASSED)
    assert (device.chain, device.state.current) == (["trial", "committed"], release(2))


def test_an_offer_that_waited_and_was_withdrawn_and_asked_for_again_still_waits():
    """Found by a generated world, the 4,013th of its kind."""
    device = on_trial().hears(e.Desired(release(3)), e.Withdrawn(), e.Desired(release(3)))
    assert (device.state.pending, device.state.is_withdrawal_pending) == (release(3), False)
    device.says(PASSED)
    assert (device.state.phase, device.state.offer) == (Phase.OFFERED, release(3))


def test_a_commit_sweeps_all_but_the_committed_release_and_the_two_before_it():
    device = on_trial().says(PASSED)
    assert device.kinds == ["Sweep"]
    assert device.state.digests() == {digest(1), digest(2)}
    device.hears(e.Desired(release(3))).says(*TO_TRIAL, PASSED)
    assert device.state.digests() == {digest(1), digest(2), digest(3)}
    device.hears(e.Desired(release(4))).says(*TO_TRIAL, PASSED)
    assert device.state.digests() == {digest(2), digest(3), digest(4)}
    assert (device.state.previous, device.state.older) == (release(3), (release(2),))


@pytest.mark.parametrize("answered", range(len(TO_TRIAL)))
def test_an_answer_with_another_ticket_is_not_taken(answered):
    """Late, doubled, or from before a restart: each phase waits for the answer to its own command."""
    device = Device().hears(e.Desired(release(1))).says(*TO_TRIAL[:answered])
    before = device.state
    for ticket in (before.ticket - 1, before.ticket + 1):
        make, arguments = TO_TRIAL[answered] if isinstance(TO_TRIAL[answered], tuple) else (TO_TRIAL[answered], ())
        device.hears(make(ticket, *arguments))
    assert device.state == before
    assert device.says(TO_TRIAL[answered]).state != before


def test_bytes_that_are_committed_but_do_not_serve_take_the_long_way():
    device = committed(1).hears(e.Restarted(is_unclean=True)).says((e.Restored, (None,)))
    device.hears(e.Desired(release(2, content="model 1")))
    assert (device.state.phase, device.kinds) == (Phase.OFFERED, ["Sweep", "Preflight"])


def test_a_failed_update_leaves_what_was_committed():
    device = committed(1).hears(e.Desired(release(2))).says(*TO_TRIAL[:3], (e.LoadFailed, (BAD,)))
    assert (device.state.phase, device.state.current, device.state.serving) == (Phase.FAILED, release(1), digest(1))


def test_a_newer_offer_takes_back_a_withdrawal_that_waited():
    device = on_trial().hears(e.Withdrawn(), e.Desired(release(3)))
    assert (device.state.is_withdrawal_pending, device.state.pending) == (False, release(3))
    device.says(PASSED)
    assert (device.state.phase, device.state.offer, device.state.current) == (Phase.OFFERED, release(3), release(2))
