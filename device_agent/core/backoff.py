"""How long to wait before trying again. Pure: chance and time are given."""

from dataclasses import dataclass

# Beyond this exponent the cap has long been reached; it keeps the power from overflowing after a year of retries.
_EXPONENT_MAX = 32


def delay_s(attempt: int, chance: float, *, base_s: float, cap_s: float) -> float:
    """The delay before retry number `attempt` (from 1): doubling from `base_s` up to `cap_s`, less up to one half.

    `chance` is uniform in [0, 1). The jitter keeps a fleet that lost its hub from coming back in one beat.
    """
    if attempt <= 0:
        return 0.0
    full = min(cap_s, base_s * 2.0 ** min(attempt - 1, _EXPONENT_MAX))
    return full * (1.0 - chance / 2)


@dataclass(slots=True)
class Backoff:
    """The delays of one thing that is tried again and again: they grow with failures and begin anew after a success."""

    base_s: float
    cap_s: float
    failures: int = 0

    def failed(self, chance: float) -> float:
        """One more failure: how long to wait before the next attempt."""
        self.failures += 1
        return delay_s(self.failures, chance, base_s=self.base_s, cap_s=self.cap_s)

    def succeeded(self) -> None:
        self.failures = 0
