"""What the keeper of a trust repository answers, and what a command led to. Pure, and without the library of TUF."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cloud_registry.core.trust_files import SignedFile
from manifests.identity import ModelReference


@dataclass(frozen=True, slots=True)
class Signatures:
    """How far a role is signed: `signed` and `missing` are key ids, `needed` is how many more it takes."""

    role: str
    version: int
    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class RoleState:
    role: str
    version: int
    expires_at: datetime
    threshold: int
    key_ids: tuple[str, ...]
    versions: tuple[ModelReference, ...] = ()


@dataclass(frozen=True, slots=True)
class TrustState:
    """How the repository stands. `problems` are why devices refuse it now; `announcements` what is due soon."""

    roles: tuple[RoleState, ...]
    waiting: tuple[Signatures, ...]
    announcements: tuple[str, ...]
    problems: tuple[str, ...]
    key_places: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrustStand:
    """What stands, as far as it was asked for: every root, roles that are published, roles that wait for signatures;
    metadata in the form of TUF."""

    roots: tuple[dict[str, Any], ...]
    published: dict[str, dict[str, Any]]
    staged: dict[str, dict[str, Any]]
    lifetimes_d: dict[str, float]


@dataclass(frozen=True, slots=True)
class Proposal:
    """The files that a repository's keeper would have signed, and what a person should know of them."""

    files: tuple[SignedFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command led to: roles published with their new versions, or those that wait and for whom.

    `changes` says what the roles that were signed or wait would change, a sentence each; `unavailable` why known keys
    did not sign.
    """

    published: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[Signatures, ...] = ()
    key_places: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()


# The stable fields of --json --------------------------------------------------------------------------------------


def state_as_json(state: TrustState) -> dict[str, Any]:
    return {
        "roles": [
            {
                "role": role.role,
                "version": role.version,
                "expiresAt": role.expires_at.isoformat(),
                "threshold": role.threshold,
                "keys": [{"id": key_id, "place": state.key_places.get(key_id)} for key_id in role.key_ids],
                "versions": [str(reference) for reference in role.versions],
            }
            for role in state.roles
        ],
        "waiting": waiting_as_json(state.waiting, state.key_places),
        "announcements": list(state.announcements),
        "problems": list(state.problems),
    }


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "published": dict(outcome.published),
        "waiting": waiting_as_json(outcome.waiting, outcome.key_places),
        "changes": list(outcome.changes),
    }


def waiting_as_json(waiting: tuple[Signatures, ...], key_places: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "role": one.role,
            "version": one.version,
            "needed": one.needed,
            "signed": list(one.signed),
            "missing": [{"id": key_id, "place": key_places.get(key_id)} for key_id in one.missing],
        }
        for one in waiting
    ]
