"""The right to drive one rollout. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """Held by `owner` until `expires_at`.

    `token` grows whenever the lease changes hands, so that what an earlier owner still writes is refused by it.
    """

    rollout_id: str
    owner: str
    token: int
    expires_at: datetime
