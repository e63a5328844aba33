"""Tiers: how often a hub of a size lets each kind of operation happen, and how many messages a day it takes.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling. What is above a limit passes at
first (a minute's worth), then waits for its turn at the rate of the limit (traffic shaping), and when the queue is full
it is refused. Time is passed in; who asks does the waiting.
"""

import enum
import math
from dataclasses import dataclass
from typing import Any

from simulators.iothub.errors import Fault, ServiceError

# "For the first minute or two" what is above the limit is handled at once.
BURST_S = 60.0
# The service says that its queue is limited, and not how long it is.
QUEUE_S_MAX = 10.0
DAY_S = 86_400
METHOD_METER_BYTES = 4096


class Operation(enum.Enum):
    """What is counted together."""

    REGISTRY = "identity registry"
    CONNECT = "new connections"
    EVENT = "device-to-cloud sends"
    MESSAGE = "cloud-to-device sends"
    RECEIVE = "cloud-to-device receives"
    UPLOAD = "file upload initiations"
    METHOD = "direct methods"
    QUERY = "queries"
    TWIN_READ = "twin reads"
    TWIN_UPDATE = "twin updates"
    JOB = "jobs"
    JOB_DEVICE = "jobs device operations"
    CONFIGURATION = "configurations"


@dataclass(frozen=True, slots=True)
class Limit:
    """Operations in a period: so many for each unit, and so many for the hub at the least."""

    per_unit: float = 0.0
    per_hub: float = 0.0
    period_s: int = 1

    def per_second(self, units: int) -> float:
        return max(self.per_hub, self.per_unit * units) / self.period_s


def _per_minute(count: int) -> Limit:
    return Limit(per_unit=count, period_s=60)


# Limits of F1 and S1, of S2, and of S3. Direct methods are counted in meters of 4 KB.
LIMITS: dict[Operation, tuple[Limit, Limit, Limit]] = {
    Operation.REGISTRY: (_per_minute(100), _per_minute(100), _per_minute(5000)),
    Operation.CONNECT: (Limit(12, 100), Limit(120), Limit(6000)),
    Operation.EVENT: (Limit(12, 100), Limit(120), Limit(6000)),
    Operation.MESSAGE: (_per_minute(100), _per_minute(100), _per_minute(5000)),
    Operation.RECEIVE: (_per_minute(1000), _per_minute(1000), _per_minute(50_000)),
    Operation.UPLOAD: (_per_minute(100), _per_minute(100), _per_minute(5000)),
    Operation.METHOD: (Limit(40), Limit(120), Limit(6144)),
    Operation.QUERY: (_per_minute(20), _per_minute(20), _per_minute(1000)),
    Operation.TWIN_READ: (Limit(per_hub=100), Limit(10, 100), Limit(500)),
    Operation.TWIN_UPDATE: (Limit(per_hub=50), Limit(5, 50), Limit(250)),
    Operation.JOB: (_per_minute(100), _per_minute(100), _per_minute(5000)),
    Operation.JOB_DEVICE: (Limit(per_hub=10), Limit(1, 10), Limit(50)),
    Operation.CONFIGURATION: (_per_minute(20), _per_minute(20), _per_minute(20)),
}


@dataclass(frozen=True, slots=True)
class Tier:
    """A size of hub. `column` is that of LIMITS; messages a day are for each unit."""

    column: int
    units_max: int
    messages_a_day: int
    meter_bytes: int
    jobs_max: int
    configurations_max: int


# https://azure.microsoft.com/pricing/details/iot-hub for units and messages a day.
TIERS = {
    "F1": Tier(0, 1, 8_000, 512, 1, 10),
    "S1": Tier(0, 200, 400_000, 4096, 1, 100),
    "S2": Tier(1, 200, 6_000_000, 4096, 5, 100),
    "S3": Tier(2, 10, 300_000_000, 4096, 10, 100),
}


class Bucket:
    """What one kind of operation has used up of its limit.

    `_free_at` is when all that was let in will have been handled at the rate of the limit; after quiet times it lies up
    to a burst in the past.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self.taken = self.delayed = self.refused = 0
        self._free_at = -math.inf

    def take(self, cost: float, now: float) -> float | None:
        """How many seconds an operation has to wait for its turn; None where there is no place in the queue."""
        # A clock that was set back must not close the hub for as long.
        is_clock_set_back = self._free_at > now + QUEUE_S_MAX + BURST_S
        begins_at = now if is_clock_set_back else max(self._free_at, now - BURST_S)
        free_at = begins_at + cost / self.per_second
        if free_at - now > QUEUE_S_MAX and begins_at > now - BURST_S:
            self.refused += 1
            return None
        self._free_at = free_at
        self.taken += 1
        wait_s = min(max(0.0, free_at - now), QUEUE_S_MAX)
        self.delayed += wait_s > 0
        return wait_s

    def take_at_once(self, now: float) -> bool:
        """Count an operation that has its turn now; others are to ask again."""
        if max(self._free_at, now - BURST_S) + 1 / self.per_second > now:
            return False
        return self.take(1.0, now) is not None


class Throttles:
    """The limits of a hub of a tier and size, and what is used up of them."""

    def __init__(self, tier: str, units: int) -> None:
        self.tier_name, self.units = tier, units
        self.tier = TIERS[tier]
        self._buckets = {
            operation: Bucket(limits[self.tier.column].per_second(units)) for operation, limits in LIMITS.items()
        }
        self._quota = self.tier.messages_a_day * units
        self._day = 0
        self._used = 0

    @classmethod
    def of(cls, tier: str, units: int) -> "Throttles":
        """The limits of a hub that can be had.

        Raises:
            ValueError: there is no such tier, or not with so many units.
        """
        if tier not in TIERS:
            raise ValueError(f"tier {tier!r} is none of {', '.join(TIERS)}")
        if not 1 <= units <= TIERS[tier].units_max:
            raise ValueError(f"a hub of tier {tier} has 1 to {TIERS[tier].units_max} units, not {units}")
        return cls(tier, units)

    def admit(self, operation: Operation, now: float, cost: float = 1.0) -> float:
        """Count an operation and say how many seconds it has to wait.

        Raises:
            ServiceError: ThrottlingException.
        """
        wait_s = self._buckets[operation].take(cost, now)
        if wait_s is None:
            raise ServiceError(
                Fault.ThrottlingException,
                f"{operation.value}: more than {self._buckets[operation].per_second * 60:g} a minute"
                f" ({self.tier_name} with {self.units} units)",
            )
        return wait_s

    def has_room(self, operation: Operation, now: float) -> bool:
        """Count an operation that cannot wait."""
        return self._buckets[operation].take(1.0, now) is not None

    def has_turn(self, operation: Operation, now: float) -> bool:
        """Count an operation if it need not wait."""
        return self._buckets[operation].take_at_once(now)

    def meter(self, size_bytes: int, now: float) -> None:
        """Count a message against what the hub takes in a day (UTC).

        Raises:
            ServiceError: IotHubQuotaExceeded.
        """
        day = int(now // DAY_S)
        if day != self._day:
            self._day, self._used = day, 0
        count = meters(size_bytes, self.tier.meter_bytes)
        if self._used + count > self._quota:
            raise ServiceError(
                Fault.IotHubQuotaExceeded,
                f"Total number of messages on IotHub exceeded the allocated quota. Max allowed message count:"
                f" {self._quota}, current message count: {self._used}",
            )
        self._used += count

    def admit_event(self, size_bytes: int, now: float) -> float:
        """Count a device's message; see `admit` and `meter`."""
        wait_s = self.admit(Operation.EVENT, now)
        self.meter(size_bytes, now)
        return wait_s

    def admit_message(self, size_bytes: int, now: float) -> None:
        """Count a message to a device that cannot wait."""
        self.admit(Operation.MESSAGE, now)
        self.meter(size_bytes, now)

    def admit_twin(self, operation: Operation, size_bytes: int, now: float) -> float:
        """Count what a device does with its twin."""
        wait_s = self.admit(operation, now)
        self.meter(size_bytes, now)
        return wait_s

    def document(self, now: float) -> dict[str, Any]:
        used = self._used if int(now // DAY_S) == self._day else 0
        return {
            "tier": self.tier_name,
            "units": self.units,
            "dailyMessages": {"limit": self._quota, "used": used, "meterBytes": self.tier.meter_bytes},
            "operations": {
                operation.value: {
                    "perMinute": round(bucket.per_second * 60, 3),
                    "taken": bucket.taken,
                    "delayed": bucket.delayed,
                    "refused": bucket.refused,
                }
                for operation, bucket in self._buckets.items()
            },
        }


def meters(size_bytes: int, meter_bytes: int) -> int:
    """How many meters a size takes; nothing takes one too."""
    return max(1, -(-size_bytes // meter_bytes))
