"""Whether this is the moment for an update, and what it waits for if not. Pure.

Handles: the update window in the device's local time, the busy hook, links that cost money, and the battery.
Leaves to the caller: asking clock, hook, link and battery, and looking again.

There are two moments. Bytes may be fetched ahead, which disturbs nothing that runs; activation (loading beside the old
model, the switch, the trial) waits for the window and for whatever the device is busy with.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from device_agent.errors import ConfigurationError
from device_agent.ports import Moment, Surroundings
from manifests.release import Release
from manifests.twin import Deferral

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """From `begins` to `ends` by the device's own clock, over midnight where that comes later.

    `days` counts from Monday as 0 and names the days on which the window opens; a window from 22:00 that opens on a
    Friday is still open on Saturday at one.
    """

    begins: time
    ends: time
    days: frozenset[int] = frozenset(range(7))

    def opening(self, day: date) -> tuple[datetime, datetime] | None:
        """When it opens and closes on that day, in naive local time; None where it does not open then."""
        if day.weekday() not in self.days:
            return None
        begins = datetime.combine(day, self.begins)
        ends = datetime.combine(day, self.ends)
        return begins, ends if ends > begins else ends + _DAY

    def is_open(self, local: datetime) -> bool:
        """`local` is naive local time, so that a change to summer time moves no window."""
        openings = (self.opening(day) for day in (local.date() - _DAY, local.date()))
        return any(opening is not None and opening[0] <= local < opening[1] for opening in openings)

    def next_opening(self, local: datetime) -> datetime:
        """The first opening later than `local`, both naive local times."""
        openings = (self.opening(local.date() + _DAY * ahead) for ahead in range(8))
        return next(opening[0] for opening in openings if opening is not None and opening[0] > local)


def read_windows(windows: tuple[str, ...], days: tuple[str, ...]) -> tuple[Window, ...]:
    """Windows such as ``02:00-05:00``; raises ConfigurationError that quotes the one that is none."""
    unknown = [day for day in days if day not in DAYS]
    if unknown:
        raise ConfigurationError(
            f"days in [update] names {unknown[0]!r}, which is no day.", hint=f"The days are {', '.join(DAYS)}."
        )
    chosen = frozenset(DAYS.index(day) for day in days) or frozenset(range(7))
    return tuple(_read_window(text, chosen) for text in windows)


def _read_window(text: str, days: frozenset[int]) -> Window:
    begins, dash, ends = text.partition("-")
    try:
        window = Window(time.fromisoformat(begins.strip()), time.fromisoformat(ends.strip()), days)
    except ValueError as err:
        raise ConfigurationError(
            f"window in [update] is {text!r}, which is no window.", hint="Write two times of day, as in 02:00-05:00."
        ) from err
    if not dash or window.begins == window.ends or window.begins.tzinfo or window.ends.tzinfo:
        raise ConfigurationError(
            f"window in [update] is {text!r}, which opens for no time or for ever.",
            hint="Write two different local times of day, as in 22:00-04:30; leave it out to take updates at any time.",
        )
    return window


@dataclass(frozen=True, slots=True)
class Policy:
    """When this device takes updates; the default is at once, unless its battery runs low."""

    windows: tuple[Window, ...] = ()
    # Fetch outside the window, activate inside it.
    is_downloaded_ahead: bool = True
    # A download of this size is made over a metered link as well.
    metered_bytes_max: int = 1024 * 1024
    battery_percent_min: float = 20.0
    # Below this, even what is urgent waits: a device that dies in the middle of an update helps nobody.
    battery_percent_floor: float = 5.0


def deferral(
    offer: Release, moment: Moment, missing_bytes: int, policy: Policy, surroundings: Surroundings
) -> Deferral | None:
    """What speaks against this moment, the longest wait first; None where nothing does.

    The text says nothing that changes by itself, such as the battery's charge: as long as a device waits for the same
    thing, nothing is stored or reported anew.

    An urgent offer waits for no window and uses any link; a busy device and an empty battery it respects.
    """
    waits = (
        _for_battery(offer, moment, policy, surroundings),
        _for_window(offer, moment, policy, surroundings),
        _for_link(offer, moment, missing_bytes, policy, surroundings),
        _for_device(moment, surroundings),
    )
    return next((wait for wait in waits if wait is not None), None)


def _for_battery(offer: Release, moment: Moment, policy: Policy, surroundings: Surroundings) -> Deferral | None:
    if surroundings.battery_percent is None or surroundings.is_on_mains:
        return None
    least = policy.battery_percent_floor if offer.urgent else policy.battery_percent_min
    if surroundings.battery_percent >= least:
        return None
    return Deferral(
        reason="battery", step=moment, message=f"The battery is below {least:g} % and the device not on mains."
    )


def _for_window(offer: Release, moment: Moment, policy: Policy, surroundings: Surroundings) -> Deferral | None:
    if not policy.windows or offer.urgent or (moment == "download" and policy.is_downloaded_ahead):
        return None
    local = surroundings.local.replace(tzinfo=None)
    if any(window.is_open(local) for window in policy.windows):
        return None
    opens = min(window.next_opening(local) for window in policy.windows)
    until = opens.replace(tzinfo=surroundings.local.tzinfo).astimezone(UTC)
    return Deferral(
        reason="window",
        step=moment,
        message=f"Updates are taken from {opens:%A %H:%M} device time on.",
        until=until.isoformat(timespec="seconds"),
    )


def _for_link(
    offer: Release, moment: Moment, missing_bytes: int, policy: Policy, surroundings: Surroundings
) -> Deferral | None:
    is_paid = moment == "download" and surroundings.is_metered and missing_bytes > policy.metered_bytes_max
    if offer.urgent or not is_paid:
        return None
    return Deferral(
        reason="metered",
        step=moment,
        message=f"The link is metered and {missing_bytes:,} bytes are more than the {policy.metered_bytes_max:,} that "
        "such a link is used for.",
    )


def _for_device(moment: Moment, surroundings: Surroundings) -> Deferral | None:
    if moment == "download" or surroundings.busy is None:
        return None
    return Deferral(reason="busy", step=moment, message=surroundings.busy)
