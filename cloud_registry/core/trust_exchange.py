"""What a keeper of keys and the keeper of a repository tell each other: what stands, and signed changes of it. Pure.

Whoever has offline keys composes a change of what stands and signs it where the keys are; the repository judges what
comes back as if a stranger had sent it. Nothing that crosses holds a key that signs, or opens one.
Handles: the spelling of metadata, whether a change still fits, its form, which signatures count, what it may change.
Leaves to the caller: keeping, publishing, online keys, the time.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, Role, Root, Targets

from cloud_registry.core.trust import ROOT, TARGETS, Roles, model_of, role_keys
from cloud_registry.errors import ConflictError, MetadataRefusedError, NotFoundError
from manifests.document import Document
from manifests.identity import is_model_name

# Clocks of two machines differ; a signature that holds for this much longer than asked is a wrong clock, or a trick.
CLOCK_DIFFERENCE_MAX = timedelta(days=1)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Somebody else was quicker. Nothing of theirs or yours is lost: run the command again."


class SeenRepository(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What a keeper of keys remembers of a repository: its newest root, versions of roles, and where each key was."""

    root: dict[str, Any] | None = None
    versions: dict[str, int] = {}
    key_places: dict[str, str] = {}
    schema_version: str = "1.0"


def spelled(metadata: Metadata[Any]) -> dict[str, Any]:
    value: dict[str, Any] = metadata.to_dict()
    return value


def content_of(metadata: Metadata[Any]) -> bytes:
    """What a role says, without its signatures; the same for the same. Much faster than TUF's canonical form."""
    return json.dumps(metadata.signed.to_dict(), sort_keys=True).encode()


def read_roles(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Metadata[Any]]:
    """Metadata by role; raises MetadataRefusedError for what is none. What is given is used up."""
    return {role: read_role(role, value) for role, value in given.items()}


def read_role(role: str, given: Mapping[str, Any]) -> Metadata[Any]:
    try:
        return Metadata.from_dict(dict(given))
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise MetadataRefusedError(f"what came as {role[:80]} is no metadata: {err}") from err


# Whether a change still fits ------------------------------------------------------------------------------------------


def footing(published: Roles, staged: Roles, role: str) -> str:
    """What a change of a role builds upon, as a digest: its content, and who speaks for it. Signatures do not count,
    so that two people may sign the same thing at once."""
    coming = {name: staged.get(name) or published.get(name) for name in (role, ROOT, TARGETS)}
    known = {name: metadata for name, metadata in coming.items() if metadata is not None}
    digest = hashlib.sha256()
    if role in known:
        digest.update(content_of(known[role]))
    try:
        speaks, _ = role_keys(known, role)
        digest.update(json.dumps([sorted(speaks.keyids), speaks.threshold]).encode())
    except NotFoundError:
        digest.update(b"nobody")
    return digest.hexdigest()


def check_footing(published: Roles, staged: Roles, base: Mapping[str, str], roles: Sequence[str]) -> None:
    """Raises ConflictError where a role is not what its change was built upon."""
    for role in roles:
        if base.get(role) != footing(published, staged, role):
            raise ConflictError(f"{role} was changed since this command looked at it", hint=_AGAIN)


# Its form -------------------------------------------------------------------------------------------------------------


def check_form(role: str, metadata: Metadata[Any], current: Metadata[Any] | None) -> None:
    """Raises MetadataRefusedError where a role is not as this repository writes it, ConflictError for another version.

    Signatures alone would do for devices; this keeps them from being asked to read what they would stumble over.
    """
    signed = metadata.signed
    model = model_of(role)
    if role == ROOT and isinstance(signed, Root):
        if not signed.consistent_snapshot:
            raise MetadataRefusedError("the root must ask for consistent snapshots")
        _check_keys(list(signed.roles.values()), signed.keys)
    elif role == TARGETS and isinstance(signed, Targets):
        _check_delegations(signed)
    elif model is not None and is_model_name(model) and isinstance(signed, Targets):
        _check_targets(role, model, signed)
    else:
        raise MetadataRefusedError(
            f"{role[:80]!r} is no role that a person signs, or holds the metadata of another one",
            hint="Snapshot and timestamp are signed by the server alone.",
        )
    version = 1 if current is None else current.signed.version + 1
    if signed.version != version:
        raise ConflictError(f"version {signed.version} of {role} came, and {version} would be the next", hint=_AGAIN)


def _check_delegations(targets: Targets) -> None:
    if targets.targets:
        raise MetadataRefusedError("targets names files itself; the role of each model does that")
    if targets.delegations is None:
        return
    if targets.delegations.roles is None:
        raise MetadataRefusedError("targets delegates by hashes and not by name")
    for name, role in targets.delegations.roles.items():
        model = model_of(name)
        is_ours = model is not None and is_model_name(model) and role.paths == [f"{model}/*/*"] and role.terminating
        if not is_ours or role.unrecognized_fields:
            raise MetadataRefusedError(f"targets delegates to {name[:80]!r}, or lets it speak for more than its model")
    _check_keys(list(targets.delegations.roles.values()), targets.delegations.keys)


def _check_keys(roles: Sequence[Role], keys: Mapping[str, Key]) -> None:
    for role in roles:
        if not set(role.keyids) <= keys.keys() or len(role.keyids) < role.threshold:
            raise MetadataRefusedError("a role has fewer keys than must sign for it")


def _check_targets(role: str, model: str, targets: Targets) -> None:
    if targets.delegations is not None:
        raise MetadataRefusedError(f"{role} delegates to others, which no model's role does")
    for path, file in targets.targets.items():
        parts = path.split("/")
        version = parts[1] if len(parts) == 3 else ""
        is_path = parts[0] == model and version.isascii() and version.isdigit() and parts[2] not in ("", ".", "..")
        about = {"model": model, "version": int(version) if is_path else 0}
        is_file = file.length >= 0 and _SHA256.fullmatch(str(file.hashes.get("sha256", "")))
        if not is_path or not is_file or file.custom != about:
            raise MetadataRefusedError(f"{role} names {path[:80]!r}, which is no file of a version of {model}")


def check_expiry(role: str, expires_at: datetime, lifetime: timedelta, now: datetime) -> None:
    """Raises MetadataRefusedError for a signature that holds for longer than it should, or not any more."""
    if not now < expires_at <= now + lifetime + CLOCK_DIFFERENCE_MAX:
        raise MetadataRefusedError(
            f"{role} would expire at {expires_at:%Y-%m-%d %H:%M} UTC; it is {now:%Y-%m-%d %H:%M} UTC here, and a "
            f"signature of it holds for {lifetime.total_seconds() / 86400:g} days",
            hint="Compare the clocks of the two machines.",
        )


# Signatures -----------------------------------------------------------------------------------------------------------


def counted_signatures(
    published: Roles, coming: Roles, role: str, metadata: Metadata[Any], payload: bytes
) -> Metadata[Any]:
    """The metadata with those signatures alone that count, now or as long as the roles before are still believed.

    `payload` is what is signed of it.

    Raises:
        MetadataRefusedError: a key that counts did not make the signature that bears its name.
    """
    keys: dict[str, Key] = {}
    for roles in (published, coming):
        if ROOT in roles:
            try:
                keys |= role_keys(roles, role)[1]
            except NotFoundError:
                continue
    counted = Metadata(metadata.signed, unrecognized_fields=metadata.unrecognized_fields)
    for key_id, signature in metadata.signatures.items():
        if key_id not in keys:
            continue
        try:
            keys[key_id].verify_signature(signature, payload)
        except (UnverifiedSignatureError, VerificationError, UnsignedMetadataError) as err:
            raise MetadataRefusedError(f"the signature of key {key_id[:8]} on {role} is not good") from err
        counted.signatures[key_id] = signature
    return counted


# What it changes ------------------------------------------------------------------------------------------------------


def changes_keys(coming: Roles, changed: Roles) -> bool:
    """Whether a change gives roles other keys, thresholds or paths than they have; new models of targets' own keys,
    new files and later dates do not."""
    for role, metadata in changed.items():
        current = coming.get(role)
        if current is not None and content_of(current) == content_of(metadata):
            continue
        if role == ROOT:
            return True
        if role == TARGETS and _delegates_otherwise(coming, metadata.signed):
            return True
    return False


def _delegates_otherwise(coming: Roles, targets: Targets) -> bool:
    top, keys = role_keys(coming, TARGETS)
    old, new = _delegations(coming[TARGETS].signed), _delegations(targets)
    if any(new.get(name) != facts for name, facts in old.items()):
        return True
    of_targets = (sorted(top.keyids), top.threshold, {key_id: key.to_dict() for key_id, key in keys.items()})
    return any(new[name] != of_targets for name in new.keys() - old.keys())


def _delegations(targets: Targets) -> dict[str, Any]:
    if targets.delegations is None or targets.delegations.roles is None:
        return {}
    known = targets.delegations.keys
    return {
        name: (sorted(role.keyids), role.threshold, {key_id: known[key_id].to_dict() for key_id in role.keyids})
        for name, role in targets.delegations.roles.items()
    }
