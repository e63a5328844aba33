"""How many requests somebody may make: token buckets. Pure; the clock is handed in.

Handles: one bucket for each caller, a bound on the number of callers remembered.
Leaves to the caller: who a caller is, and what is answered to one who asks too often.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

# Beyond it the one who asked longest ago is forgotten: his bucket is full again by then, or nearly so.
CALLERS_MAX = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


@dataclass(slots=True)
class RequestRate:
    """At most `per_second` requests of one caller in the long run, and `burst` at once."""

    per_second: float
    burst: float
    _buckets: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)

    def delay_s(self, caller: str, now_s: float) -> float:
        """Take one token: 0 where there is one, else the time until there is one, and nothing is taken."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = _Bucket(self.burst, now_s)
            if len(self._buckets) > CALLERS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(caller)
        elapsed_s = max(0.0, now_s - bucket.at_s)
        bucket.tokens = min(self.burst, bucket.tokens + elapsed_s * self.per_second)
        bucket.at_s = now_s
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self.per_second
        bucket.tokens -= 1
        return 0.0
