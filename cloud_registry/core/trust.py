"""What the signed metadata says, who must sign it, and when it must be signed again. Pure.

The metadata is TUF's (https://theupdateframework.github.io/specification/latest/). Each model has a delegated role of
its own, so that a device reads the targets of its own models alone, and a team may hold the keys of its model.
Handles: new versions of roles, thresholds, expiry. Leaves to the caller: keys, signing, files, the time.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    VerificationResult,
)

from cloud_registry.core.trust_answers import Signatures
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.errors import NotFoundError, RegistryError, TrustError
from manifests.document import Document
from manifests.identity import ModelReference

Roles = Mapping[str, Metadata[Any]]

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
ONLINE_ROLES = (SNAPSHOT, TIMESTAMP)
# What python-tuf's client reads of each role at most, a model's as of targets; a longer one would stop every device.
FILE_BYTES_MAX = {ROOT: 512_000, TIMESTAMP: 16_384, SNAPSHOT: 2_000_000, TARGETS: 5_000_000}
# Before a model's name; no role of TUF's own begins so, and a model may be called "root".
_MODEL_ROLE_PREFIX = "model-"

# How long a signature holds, in days. A frozen repository is noticed after the timestamp's at the latest; what needs a
# person and a key from a safe holds for months. Roles of models are as targets.
LIFETIMES_D: dict[str, float] = {ROOT: 365, TARGETS: 180, SNAPSHOT: 30, TIMESTAMP: 7}
LIFETIME_D_MAX = 36_500.0
# A role that a person must sign again is announced this long before, or in the last third of a shorter life.
ANNOUNCED_D = 28
_ANNOUNCED_SHARE = 1 / 3
# A program signs again when half of a life is over; in the last quarter something is wrong with that program.
_REFRESH_SHARE = 1 / 2
_OVERDUE_SHARE = 1 / 4


class TrustSettings(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What the repository keeps beside its metadata: lifetimes in days by role, and where each key may be found.

    `key_places` holds URIs by key id, never a key or what opens one.
    """

    lifetimes_d: dict[str, float] = {}
    key_places: dict[str, str] = {}
    schema_version: str = "1.0"

    def lifetime(self, role: str) -> timedelta:
        kind = role if role in LIFETIMES_D else TARGETS
        return timedelta(days=self.lifetimes_d.get(kind, LIFETIMES_D[kind]))


# Roles and their keys -------------------------------------------------------------------------------------------------


def role_of(model: str) -> str:
    """The role that speaks for a model's files."""
    return _MODEL_ROLE_PREFIX + model


def model_of(role: str) -> str | None:
    """The model that a role speaks for; None for a role of TUF's own."""
    return role.removeprefix(_MODEL_ROLE_PREFIX) if role.startswith(_MODEL_ROLE_PREFIX) else None


def delegator_of(role: str) -> str:
    """The role that says whose keys speak for this one."""
    return ROOT if model_of(role) is None else TARGETS


def file_name(role: str, version: int) -> str:
    """The name under which clients ask for a role, with consistent snapshots."""
    return f"{TIMESTAMP}.json" if role == TIMESTAMP else f"{version}.{role}.json"


def check_size(role: str, content: bytes) -> None:
    """Raises RegistryError where devices would not read so much."""
    size_bytes_max = FILE_BYTES_MAX.get(role, FILE_BYTES_MAX[TARGETS])
    if len(content) > size_bytes_max:
        raise RegistryError(
            f"{role} would have {len(content):,} bytes, and devices read {size_bytes_max:,} at most",
            hint="Take back versions that nobody needs any more: slipway trust sign --withdraw NAME:VERSION",
        )


def role_keys(roles: Roles, role: str) -> tuple[Role, dict[str, Key]]:
    """A role's threshold and keys as its delegator says; raises NotFoundError for a role that nobody delegated to."""
    delegator = roles[delegator_of(role)].signed
    try:
        found: Role = delegator.get_delegated_role(role)
    except ValueError as err:
        raise NotFoundError(f"nobody speaks for role {role} yet", hint="Sign a version of the model first.") from err
    return found, {key_id: delegator.get_key(key_id) for key_id in found.keyids}


def with_keys(roles: Roles, role: str, keys: Sequence[Key], threshold: int) -> dict[str, Metadata[Any]]:
    """The roles to be signed anew when these keys become the role's: its delegator, and the role itself.

    New keys of targets are also those of the models that its old ones spoke for: a stolen key must say nothing any
    more. `roles` must hold the metadata of these models.
    """
    delegator = delegator_of(role)
    changed = {delegator: unsigned_next(roles[delegator])}
    if delegator == TARGETS:
        targets: Targets = changed[TARGETS].signed
        if role not in _delegated(targets):
            _delegate(targets, role)
    _replace_keys(changed[delegator].signed, role, keys, threshold)
    # Those that a program signs are made anew with each publication anyway.
    if role not in (ROOT, *ONLINE_ROLES):
        changed[role] = unsigned_next(roles[role]) if role in roles else Metadata(Targets(version=1))
    if role == TARGETS:
        for model_role in roles_of_targets_keys(roles):
            _replace_keys(changed[TARGETS].signed, model_role, keys, threshold)
            changed[model_role] = unsigned_next(roles[model_role])
    return changed


def roles_of_targets_keys(roles: Roles) -> list[str]:
    """The models whom the keys of targets speak for, since nobody has given them keys of their own."""
    own = set(role_keys(roles, TARGETS)[0].keyids)
    return [name for name, role in _delegated(roles[TARGETS].signed).items() if set(role.keyids) == own]


def _delegated(targets: Targets) -> Mapping[str, DelegatedRole]:
    return {} if targets.delegations is None else targets.delegations.roles or {}


def _replace_keys(signed: Root | Targets, role: str, keys: Sequence[Key], threshold: int) -> None:
    for key_id in list(signed.get_delegated_role(role).keyids):
        signed.revoke_key(key_id, role)
    for key in keys:
        signed.add_key(key, role)
    signed.get_delegated_role(role).threshold = threshold


def _delegate(targets: Targets, role: str) -> None:
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    assert targets.delegations.roles is not None, "delegations are by name"
    # A pattern's * stands for no slash: <model>/<version>/<file> and nothing else.
    pattern = f"{model_of(role)}/*/*"
    targets.delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=[pattern])


def with_files(
    roles: Roles, files: Iterable[SignedFile], withdrawn: Iterable[ModelReference] = ()
) -> dict[str, Metadata[Any]]:
    """The roles to be signed anew so that these files are allowed, and none of the versions taken back; may be none.

    A model that nobody speaks for yet is delegated to the keys of targets. The work grows with what changes, and with
    each role that does; no role is copied twice.
    """
    of_models = _by_model(files)
    changed = _delegations_of(roles, [role_of(model) for model in of_models if role_of(model) not in roles])
    for model, of_model in of_models.items():
        role = role_of(model)
        allowed = (changed.get(role) or roles[role]).signed.targets
        wanted = {file.target: _target_file(file) for file in of_model}
        if any(allowed.get(target) != info for target, info in wanted.items()):
            _changing(changed, roles, role).targets.update(wanted)
    for reference in withdrawn:
        role = role_of(reference.name)
        current = changed.get(role) or roles.get(role)
        gone = [] if current is None else _targets_of(current.signed, reference)
        if not gone:
            raise NotFoundError(f"{reference} is not signed", hint="See what is with: slipway trust status")
        signed = _changing(changed, roles, role)
        for target in gone:
            del signed.targets[target]
    return changed


def _changing(changed: dict[str, Metadata[Any]], roles: Roles, role: str) -> Targets:
    if role not in changed:
        changed[role] = unsigned_next(roles[role])
    signed: Targets = changed[role].signed
    return signed


def _delegations_of(roles: Roles, new: Sequence[str]) -> dict[str, Metadata[Any]]:
    """Targets with new roles of models in the hands of its own keys, and these roles, empty; nothing where `new` is."""
    if not new:
        return {}
    changed = {TARGETS: unsigned_next(roles[TARGETS])}
    signed = changed[TARGETS].signed
    top, keys = role_keys(roles, TARGETS)
    for role in new:
        _delegate(signed, role)
        for key in keys.values():
            signed.add_key(key, role)
        signed.get_delegated_role(role).threshold = top.threshold
        changed[role] = Metadata(Targets(version=1))
    return changed


def check_same_bytes(roles: Roles, files: Iterable[SignedFile]) -> None:
    """Raises TrustError where a file of a version is to be signed with other bytes than it was signed with before.

    Versions never change; a delta may be made anew, and devices check what it makes.
    """
    for file in files:
        role = roles.get(role_of(file.reference.name))
        signed = None if role is None else role.signed.targets.get(file.target)
        digest = file.digest.removeprefix("sha256:")
        if signed is not None and signed.hashes.get("sha256") != digest and not file.target.endswith(".delta"):
            raise TrustError(
                f"{file.target} is signed with sha256:{signed.hashes.get('sha256')} and now has {file.digest}",
                hint="A version never changes, so somebody has changed the catalog. If you know why, take it back: "
                f"slipway trust sign --withdraw {file.reference}",
            )


def _by_model(files: Iterable[SignedFile]) -> dict[str, list[SignedFile]]:
    models: dict[str, list[SignedFile]] = {}
    for file in files:
        models.setdefault(file.reference.name, []).append(file)
    return models


def _target_file(file: SignedFile) -> TargetFile:
    hashes = {"sha256": file.digest.removeprefix("sha256:")}
    about = {"custom": {"model": file.reference.name, "version": file.reference.version}}
    return TargetFile(file.size_bytes, hashes, file.target, about)


def _targets_of(targets: Targets, reference: ModelReference) -> list[str]:
    prefix = f"{reference.name}/{reference.version}/"
    return [target for target in targets.targets if target.startswith(prefix)]


def versions_in(targets: Targets) -> list[ModelReference]:
    """The model versions of which a role allows files."""
    about = [info.custom for info in targets.targets.values() if isinstance(info.custom, dict)]
    return sorted({ModelReference(str(one["model"]), int(one["version"])) for one in about})


# Versions, signatures, thresholds -------------------------------------------------------------------------------------


def first_root(keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int]) -> Metadata[Root]:
    """Version 1 of the root with the keys of each role of TUF's own."""
    root = Root(consistent_snapshot=True)
    for role, of_role in keys.items():
        for key in of_role:
            root.add_key(key, role)
        root.roles[role].threshold = thresholds.get(role, 1)
    return Metadata(root)


def first_targets() -> Metadata[Targets]:
    return Metadata(Targets(version=1))


def unsigned_next(metadata: Metadata[Any]) -> Metadata[Any]:
    """A copy, one version up and signed by nobody."""
    # Through JSON, since that is ten times faster than copying object by object.
    signed = metadata.signed
    copy = Metadata(type(signed).from_dict(json.loads(json.dumps(signed.to_dict()))))
    copy.signed.version += 1
    return copy


def signatures_of(roles: Roles, staged: Roles, role: str, payload: bytes | None = None) -> Signatures:
    """How far a staged role is signed. A new root needs the old root's threshold as well as its own.

    `payload` is what is signed of it, where that is known: spelling a large role costs more than verifying it.
    """
    metadata = staged[role]
    payload = metadata.signed_bytes if payload is None else payload
    if role == ROOT:
        previous = roles[ROOT].signed if ROOT in roles else None
        both = metadata.signed.get_root_verification_result(previous, payload, metadata.signatures)
        results: list[VerificationResult] = [both.first, both.second]
    else:
        above = delegator_of(role)
        delegator = (staged[above] if above in staged else roles[above]).signed
        results = [delegator.get_verification_result(role, payload, metadata.signatures)]
    signed = dict.fromkeys(key_id for result in results for key_id in result.signed)
    missing = dict.fromkeys(key_id for result in results if not result for key_id in result.unsigned)
    return Signatures(
        role,
        metadata.signed.version,
        max(result.threshold for result in results),
        tuple(signed),
        tuple(missing),
        max(result.missing for result in results),
    )


def is_signed(roles: Roles, role: str, metadata: Metadata[Any]) -> bool:
    """Whether a role's delegator among these roles accepts it."""
    delegator = roles[delegator_of(role)].signed
    try:
        return bool(delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures))
    except ValueError:
        return False


def next_snapshot(roles: Roles, files: Mapping[str, bytes]) -> Metadata[Snapshot]:
    """The next snapshot, with new content of some roles; not yet signed."""
    snapshot = unsigned_next(roles[SNAPSHOT]) if SNAPSHOT in roles else Metadata(Snapshot(version=1))
    # What was listed once stays listed: a client takes a role that vanished for an attack.
    for role, content in files.items():
        snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(roles[role].signed.version, content, ["sha256"])
    return snapshot


def next_timestamp(roles: Roles, snapshot: Metadata[Snapshot] | None) -> Metadata[Timestamp]:
    """The next timestamp, of a new snapshot where there is one; not yet signed."""
    timestamp = unsigned_next(roles[TIMESTAMP]) if TIMESTAMP in roles else Metadata(Timestamp(version=1))
    if snapshot is not None:
        described = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
        timestamp.signed.snapshot_meta = described
    return timestamp


def allows(roles: Roles, file: SignedFile) -> bool:
    """Whether a device would take this file, given what is published."""
    role = role_of(file.reference.name)
    return role in roles and roles[role].signed.targets.get(file.target) == _target_file(file)


def changes(published: Roles, staged: Roles) -> tuple[str, ...]:
    """What staged roles would change, a line each: for whoever is asked to sign them."""
    lines = []
    for role, metadata in staged.items():
        old, new = published.get(role), metadata.signed
        head = f"{role} version {new.version}"
        before = {} if old is None else _facts(old.signed)
        after = _facts(new)
        lines += [f"{head}: + {name} {after[name]}" for name in after if name not in before]
        lines += [
            f"{head}: {name} {before[name]} becomes {after[name]}"
            for name in after
            if name in before and before[name] != after[name]
        ]
        lines += [f"{head}: - {name} {before[name]}" for name in before if name not in after]
        if before == after:
            lines.append(f"{head}: the same until {new.expires:%Y-%m-%d}")
    return tuple(lines)


def _facts(signed: Any) -> dict[str, str]:
    if isinstance(signed, Root):
        return {f"keys of {role}": _key_words(keys) for role, keys in signed.roles.items()}
    targets: Targets = signed
    facts = {target: f"sha256:{info.hashes['sha256']}" for target, info in targets.targets.items()}
    delegated = (targets.delegations.roles or {}) if targets.delegations is not None else {}
    return facts | {f"keys of {role}": _key_words(keys) for role, keys in delegated.items()}


def _key_words(role: Role) -> str:
    return f"{role.threshold} of " + " ".join(key_id[:8] for key_id in role.keyids)


# Expiry ---------------------------------------------------------------------------------------------------------------


def is_announced(role: str, expires_at: datetime, lifetime: timedelta, now: datetime) -> bool:
    """Whether it is time to say that a role expires."""
    left = expires_at - now
    if role in ONLINE_ROLES:
        return left <= lifetime * _OVERDUE_SHARE
    return left <= min(timedelta(days=ANNOUNCED_D), lifetime * _ANNOUNCED_SHARE)


def is_due(expires_at: datetime, lifetime: timedelta, now: datetime) -> bool:
    """Whether a program should sign a role again."""
    return expires_at - now <= lifetime * _REFRESH_SHARE


def announcement(role: str, expires_at: datetime, lifetime: timedelta, now: datetime) -> str | None:
    """A sentence on a role that expires soon, or has, with what to do; None where there is time."""
    if not is_announced(role, expires_at, lifetime, now):
        return None
    mend = "slipway trust refresh" if role in ONLINE_ROLES else f"slipway trust refresh --role {_spelled(role)}"
    if expires_at <= now:
        return f"{role} expired at {expires_at:%Y-%m-%d %H:%M} UTC: devices refuse every update. Run: {mend}"
    return f"{role} expires in {_words(expires_at - now)}, at {expires_at:%Y-%m-%d %H:%M} UTC. Run: {mend}"


def _words(left: timedelta) -> str:
    return f"{left.days} days" if left.days >= 2 else f"{left.total_seconds() / 3600:.0f} hours"


def _spelled(role: str) -> str:
    model = model_of(role)
    return role if model is None else f"model:{model}"
