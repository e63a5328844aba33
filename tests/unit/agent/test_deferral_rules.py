"""When an update waits: window, battery, link and busy hook, and how the update machine goes on from it."""

# ruff: noqa: DTZ001  (a window is judged in the device's own time of day)

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from device_agent.core import commands as c
from device_agent.core import events as e
from device_agent.core.codes import Code
from device_agent.core.deferral import Policy, deferral, read_windows
from device_agent.core.model_state import Rules
from device_agent.core.update import step
from device_agent.errors import ConfigurationError
from device_agent.ports import Surroundings
from manifests.twin import Phase
from tests.unit.agent.test_update_machine import BAD, NOW, PASSED, ROOM, Device, committed, digest, release

BERLIN = ZoneInfo("Europe/Berlin")
# A Saturday.
NOON = datetime(2025, 3, 1, 12, tzinfo=BERLIN)
NIGHT = datetime(2025, 3, 1, 2, 30, tzinfo=BERLIN)
NIGHTS = Policy(windows=read_windows(("02:00-05:00",), ()))


# A sentence -> (window, days, local time, whether it is open).
WINDOWS = {
    "in the middle": ("02:00-05:00", (), datetime(2025, 3, 1, 3), True),
    "at its first instant": ("02:00-05:00", (), datetime(2025, 3, 1, 2), True),
    "at its end": ("02:00-05:00", (), datetime(2025, 3, 1, 5), False),
    "before it": ("02:00-05:00", (), datetime(2025, 3, 1, 1, 59, 59), False),
    "over midnight, in the evening": ("22:00-04:00", (), datetime(2025, 3, 1, 23), True),
    "over midnight, in the morning": ("22:00-04:00", (), datetime(2025, 3, 1, 3, 59), True),
    "over midnight, at noon": ("22:00-04:00", (), datetime(2025, 3, 1, 12), False),
    "to midnight": ("22:00-00:00", (), datetime(2025, 3, 1, 23, 59, 59), True),
    "on a day that is not named": ("02:00-05:00", ("sun",), datetime(2025, 3, 1, 3), False),
    "on the day that is named": ("02:00-05:00", ("sun", "sat"), datetime(2025, 3, 1, 3), True),
    "opened on the day before": ("22:00-04:00", ("fri",), datetime(2025, 3, 1, 1), True),
    "not opened on the day before": ("22:00-04:00", ("sat",), datetime(2025, 3, 1, 1), False),
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOWS)
def test_a_window_is_open(case):
    text, days, local, is_open = WINDOWS[case]
    (window,) = read_windows((text,), days)
    assert window.is_open(local) is is_open


# A sentence -> (window, days, local time, the next opening).
OPENINGS = {
    "later today": ("02:00-05:00", (), datetime(2025, 3, 1, 1), datetime(2025, 3, 1, 2)),
    "tomorrow": ("02:00-05:00", (), datetime(2025, 3, 1, 12), datetime(2025, 3, 2, 2)),
    "on Sunday in a week, as this one is over": (
        "02:00-05:00", ("sun",), datetime(2025, 3, 2, 5), datetime(2025, 3, 9, 2),
    ),
    "in the next year": ("02:00-05:00", (), datetime(2025, 12, 31, 12), datetime(2026, 1, 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENINGS)
def test_a_window_opens(case):
    text, days, local, opens = OPENINGS[case]
    (window,) = read_windows((text,), days)
    assert window.next_opening(local) == opens


@pytest.mark.parametrize("text", ["", "2-5", "02:00", "02:00-02:00", "25:00-03:00", "night", "02:00Z-05:00Z"])
def test_what_is_no_window_is_refused_by_name(text):
    with pytest.raises(ConfigurationError, match=r"window in \[update\] is"):
        read_windows((text,), ())


def test_what_is_no_day_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="'sunday', which is no day"):
        read_windows(("02:00-05:00",), ("mon", "sunday"))


def test_the_opening_is_told_in_universal_time_and_follows_the_zone():
    """The night to summer time: the window opens at two, which that night is an hour earlier for everybody else."""
    (before, after) = (
        deferral(release(1), "activation", 0, NIGHTS, Surroundings(local=datetime(2025, 3, day, 12, tzinfo=BERLIN)))
        for day in (28, 30)
    )
    assert (before.until, after.until) == ("2025-03-29T01:00:00+00:00", "2025-03-31T00:00:00+00:00")


LOW = {"battery_percent": 15.0, "is_on_mains": False}
EMPTY = {"battery_percent": 4.0, "is_on_mains": False}
BUSY = {"busy": "The busy hook ended with 1."}
# A sentence -> (moment, urgent, missing bytes, policy, surroundings, the reason).
JUDGED = {
    "nothing is configured": ("activation", False, 0, Policy(), {}, None),
    "outside the window": ("activation", False, 0, NIGHTS, {}, "window"),
    "inside the window": ("activation", False, 0, NIGHTS, {"local": NIGHT}, None),
    "outside the window, urgent": ("activation", True, 0, NIGHTS, {}, None),
    "bytes are fetched ahead of the window": ("download", False, 100, NIGHTS, {}, None),
    "bytes are fetched in the window only": (
        "download", False, 100, replace(NIGHTS, is_downloaded_ahead=False), {}, "window",
    ),
    "a large download over a metered link": ("download", False, 2_000_000, Policy(), {"is_metered": True}, "metered"),
    "a small one": ("download", False, 1024 * 1024, Policy(), {"is_metered": True}, None),
    "a large one that is urgent": ("download", True, 2_000_000, Policy(), {"is_metered": True}, None),
    "activation over a metered link": ("activation", False, 2_000_000, Policy(), {"is_metered": True}, None),
    "a low battery": ("download", False, 100, Policy(), LOW, "battery"),
    "a low battery at the activation": ("activation", False, 0, Policy(), LOW, "battery"),
    "a low battery on mains": ("activation", False, 0, Policy(), {**LOW, "is_on_mains": True}, None),
    "a low battery, urgent": ("activation", True, 0, Policy(), LOW, None),
    "an empty battery, urgent": ("activation", True, 0, Policy(), EMPTY, "battery"),
    "exactly enough charge": ("activation", False, 0, Policy(), {**LOW, "battery_percent": 20.0}, None),
    "a busy device": ("activation", False, 0, Policy(), BUSY, "busy"),
    "a busy device, urgent": ("activation", True, 0, Policy(), BUSY, "busy"),
    "a busy device may fetch": ("download", False, 100, Policy(), BUSY, None),
    "all at once: the battery": ("activation", False, 0, NIGHTS, {**LOW, **BUSY}, "battery"),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_what_speaks_against_a_moment(case):
    moment, is_urgent, missing_bytes, policy, seen, reason = JUDGED[case]
    surroundings = Surroundings(**{"local": NOON, **seen})
    found = deferral(release(1, urgent=is_urgent), moment, missing_bytes, policy, surroundings)
    assert (found.reason if found else None) == reason
    if found is not None:
        assert found.step == moment
        assert (found.until is not None) == (reason == "window")


def test_while_nothing_changes_the_words_do_not_change_either():
    """What a device says of its waiting is stored and sent whenever it differs."""
    said = {
        deferral(release(1), "activation", 0, NIGHTS, Surroundings(local=NOON + timedelta(minutes=passed)))
        for passed in (0, 1, 300)
    }
    assert len(said) == 1
    low = {
        deferral(release(1), "download", 0, Policy(), Surroundings(local=NOON, battery_percent=p, is_on_mains=False))
        for p in (19, 12, 3)
    }
    assert len(low) == 1


# The machine ----------------------------------------------------------------------------------------------------------

RULES = Rules(formats=("onnx",), download_attempts_max=3, deferral=NIGHTS)


class Waiting(Device):
    """A device with a window, in which nobody looks around but the story."""

    def hears(self, *events):
        for event in events:
            self.state, commands = step(self.state, event, self.now, RULES)
            self.asked = list(commands) or self.asked
            phase = str(self.state.phase) if self.state.phase else "idle"
            if not self.chain or self.chain[-1] != phase:
                self.chain.append(phase)
        return self

    def looks_around(self):
        return self

    def sees(self, local=NOON, **seen):
        return self.says((e.SurroundingsSeen, (Surroundings(local=local, **seen),)))

    now = NOW


def with_bytes_at_hand(**changes) -> Waiting:
    """Version 2 was fetched and verified at noon, and waits for the night."""
    device = Waiting(committed(1).state).hears(e.Desired(release(2, **changes)))
    device.says(ROOM).sees().says(e.Downloaded, e.Verified).sees()
    assert device.chain == ["offered", "downloading", "verifying", "staged", "deferred"]
    device.chain.clear()
    return device


def test_bytes_are_fetched_ahead_and_activated_in_the_window():
    device = with_bytes_at_hand()
    known = device.state.deferred
    assert (known.reason, known.step, known.until) == ("window", "activation", "2025-03-02T01:00:00+00:00")
    assert device.work == c.LookAround(device.state.ticket, release(2), "activation", 100, known)
    assert digest(2) in device.state.digests()
    device.sees(NIGHT).says(e.Verified).sees(NIGHT).says(e.Loaded, e.ShadowPassed)
    device.says(e.Switched, PASSED)
    assert device.chain == ["verifying", "staged", "shadow", "switching", "trial", "committed"]
    assert (device.state.current, device.state.deferred) == (release(2), None)


def test_the_same_surroundings_again_leave_it_waiting():
    device = with_bytes_at_hand()
    before = device.state
    device.sees(NOON + timedelta(hours=1))
    assert replace_ticket(device.state, before.ticket) == before


def replace_ticket(state, ticket):
    return type(state).from_wire({**state.to_wire(), "ticket": ticket})


def test_a_device_that_waits_for_another_thing_says_so():
    device = with_bytes_at_hand().sees(NIGHT, **BUSY)
    assert (device.state.phase, device.state.deferred.reason) == (Phase.DEFERRED, "busy")


def test_an_offer_that_expires_while_it_waits_is_rejected_and_its_bytes_are_swept():
    device = with_bytes_at_hand(not_after="2025-03-01T20:00:00Z")
    device.now = datetime(2025, 3, 1, 20, 0, 1, tzinfo=UTC)
    device.sees(NIGHT)
    assert (device.chain, device.state.problem.code, device.kinds) == (["rejected"], Code.EXPIRED, ["Sweep"])
    assert device.state.digests() == {digest(1)}
    device.hears(e.Desired(release(3)))
    assert device.state.phase is Phase.OFFERED


def test_an_offer_that_waits_is_replaced_by_a_newer_one_and_by_nothing_older():
    device = with_bytes_at_hand()
    before = device.state
    device.hears(e.Desired(release(2)), e.Desired(release(1)))
    assert device.state == before
    device.hears(e.Desired(release(3)))
    assert (device.state.phase, device.state.offer, device.state.deferred) == (Phase.OFFERED, release(3), None)


def test_after_a_restart_it_serves_and_goes_on_waiting():
    device = with_bytes_at_hand().hears(e.Restarted(is_unclean=True))
    assert device.work == c.Restore(device.state.ticket, (release(1),))
    device.says((e.Restored, (digest(1),)))
    assert (device.state.phase, device.state.unclean_ends) == (Phase.DEFERRED, 0)
    assert isinstance(device.work, c.LookAround)


def test_killed_on_trial_in_the_night_and_back_at_noon_the_new_model_waits_for_the_next_night():
    device = with_bytes_at_hand().sees(NIGHT).says(e.Verified).sees(NIGHT)
    device.says(e.Loaded, e.ShadowPassed, e.Switched).hears(e.Restarted(is_unclean=True))
    device.says((e.Restored, (digest(1),))).sees(NOON)
    assert (device.chain[-2:], device.state.serving) == (["staged", "deferred"], digest(1))


def test_a_download_whose_line_becomes_metered_waits_between_two_attempts():
    device = (
        Waiting(committed(1).state).hears(e.Desired(release(2))).says((e.PreflightPassed, (False, 5_000_000))).sees()
    )
    device.says((e.DownloadFailed, (BAD, True, True))).sees(is_metered=True)
    assert device.chain == ["offered", "downloading", "deferred"]
    assert device.state.deferred.reason == "metered"
    device.sees().says((e.PreflightPassed, (False, 1_000))).sees(is_metered=True)
    assert isinstance(device.work, c.Download)


def test_a_look_that_fails_ends_the_update_and_no_later_one():
    device = with_bytes_at_hand().says((e.LookFailed, (BAD,)))
    assert (device.state.phase, device.state.deferred) == (Phase.FAILED, None)
    assert device.hears(e.Desired(release(3))).state.phase is Phase.OFFERED


@pytest.mark.parametrize("years", [-1, 1])
def test_a_clock_that_jumps_a_year_is_judged_by_what_it_says_now(years):
    device = with_bytes_at_hand()
    jumped = NIGHT.replace(year=NIGHT.year + years)
    device.now = jumped.astimezone(UTC)
    device.sees(jumped)
    assert device.state.phase is Phase.VERIFYING


def test_a_journal_that_says_deferred_without_a_reason_is_taken_as_an_offer_that_was_not_started():
    state = with_bytes_at_hand().state
    wire = {key: value for key, value in state.to_wire().items() if key != "deferred"}
    device = Waiting(type(state).from_wire(wire)).hears(e.Restarted(is_unclean=False)).says((e.Restored, (digest(1),)))
    assert device.chain == ["deferred", "offered"]


def test_surroundings_in_a_fixed_zone_are_as_good():
    plus_one = timezone(timedelta(hours=1))
    found = deferral(release(1), "activation", 0, NIGHTS, Surroundings(local=NOON.astimezone(plus_one)))
    assert found.until == "2025-03-02T01:00:00+00:00"
