"""How a fleet is cut into waves, and who is left out and why. Pure.

Handles: the notation ``1,25%,100%``, the stable order of devices, the split.
Leaves to the caller: which devices the fleet has, and what a wave must show before the next one opens.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from cloud_registry.errors import UsageError

WAVES_MAX = 50
# One device first, then a quarter, then everyone: small fleets still get a canary.
DEFAULT_WAVES = "1,25%,100%"


@dataclass(frozen=True, slots=True)
class Share:
    """A count of devices, or a percentage of however many there are."""

    count: int | None = None
    percent: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``3`` or ``12.5%``; raises UsageError for anything else."""
        stripped = text.strip()
        try:
            if stripped.endswith("%"):
                percent = Fraction(stripped[:-1])
                if 0 <= percent <= 100 and "/" not in stripped:
                    return cls(percent=percent)
            elif stripped.isascii() and stripped.isdigit():
                return cls(count=int(stripped))
        except (ValueError, ZeroDivisionError):
            pass
        raise UsageError(f"{text!r} is neither a count nor a percentage", hint="Write a number such as 3, or 25%.")

    def at_least(self, total: int) -> int:
        """Devices out of `total`, rounded up: what a wave holds, or a success needs. Never more than `total`."""
        return min(total, -((-self._exact(total)) // 1))

    def at_most(self, total: int) -> int:
        """Devices out of `total`, rounded down: what is tolerated. 10% of 5 devices tolerates none."""
        return min(total, self._exact(total) // 1)

    def _exact(self, total: int) -> Fraction:
        if self.percent is not None:
            return self.percent * total / 100
        return Fraction(self.count or 0)

    def __str__(self) -> str:
        if self.percent is None:
            return str(self.count)
        return f"{float(self.percent):g}%"


def parse_waves(text: str) -> tuple[Share, ...]:
    """Read cumulative wave sizes such as ``1,25%,100%``.

    Raises:
        UsageError: a size cannot be read, is zero, or does not exceed the one before it.
    """
    shares = tuple(Share.parse(part) for part in text.split(","))
    if len(shares) > WAVES_MAX:
        raise UsageError(f"{len(shares)} waves are more than {WAVES_MAX}", hint="Use fewer, larger waves.")
    for share in shares:
        if share in (Share(count=0), Share(percent=Fraction(0))):
            raise UsageError(f"a wave of {share} devices is none", hint=f"For example: --waves {DEFAULT_WAVES}")
    for kind in ("count", "percent"):
        sizes = [getattr(share, kind) for share in shares if getattr(share, kind) is not None]
        if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
            raise UsageError(
                f"the waves {text} do not grow: each size counts all devices so far",
                hint=f"For example: --waves {DEFAULT_WAVES}",
            )
    return shares


def cohort_order(devices: Sequence[str], salt: str) -> list[str]:
    """The devices in the order in which they take part: by H(salt ‖ device), so it depends on nothing else.

    Another salt gives another order, so that the same devices are not the canaries of every release.
    """
    return sorted(set(devices), key=lambda device: (hashlib.sha256(f"{salt}\0{device}".encode()).digest(), device))


def split(devices: Sequence[str], shares: Sequence[Share], salt: str) -> tuple[tuple[str, ...], ...]:
    """Cut the devices into waves; together they hold every device exactly once.

    A share that adds no device to the one before it (10% of 5 devices after 1) makes no wave.

    Raises:
        UsageError: the last share leaves devices out.
    """
    ordered = cohort_order(devices, salt)
    waves: list[tuple[str, ...]] = []
    taken = 0
    for share in shares:
        size = share.at_least(len(ordered))
        if size > taken:
            waves.append(tuple(ordered[taken:size]))
            taken = size
    if taken < len(ordered):
        raise UsageError(
            f"the waves end at {shares[-1]}: {len(ordered) - taken} of {len(ordered)} devices would be left out",
            hint="End the waves with 100%.",
        )
    return tuple(waves)
