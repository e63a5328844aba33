"""Device and module twins: merging, versions, metadata and limits.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins.
"""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from simulators.iothub.core.instants import NEVER, wire_time
from simulators.iothub.core.ledger import forget
from simulators.iothub.core.registry import IdentityId, check_etag
from simulators.iothub.errors import Fault, ServiceError

TAGS_BYTES_MAX = 8 * 1024
PROPERTIES_BYTES_MAX = 32 * 1024
STRING_BYTES_MAX = 4096
KEY_BYTES_MAX = 1024
DEPTH_MAX = 10
INTEGER_MIN, INTEGER_MAX = -4503599627370496, 4503599627370495

_FORBIDDEN_IN_KEYS = re.compile(r"[.$ \x00-\x1f\x7f-\x9f]")

Values = dict[str, Any]
SectionName = Literal["tags", "desired", "reported"]


@dataclass(slots=True)
class Section:
    """Desired or reported properties. `metadata` mirrors the tree of `values`."""

    values: Values = field(default_factory=dict)
    metadata: Values = field(default_factory=lambda: {"$lastUpdated": NEVER})
    version: int = 1

    def document(self) -> Values:
        return {**self.values, "$metadata": self.metadata, "$version": self.version}

    def device_document(self) -> Values:
        """What a device gets, without metadata."""
        return {**self.values, "$version": self.version}


@dataclass(slots=True)
class Twin:
    """The part of a twin that is its own; the rest of its document comes from the identity."""

    tags: Values = field(default_factory=dict)
    desired: Section = field(default_factory=Section)
    reported: Section = field(default_factory=Section)
    version: int = 2
    writes: int = 1
    model_id: str = ""
    configurations: Values = field(default_factory=dict)

    @property
    def etag(self) -> str:
        """Base64 of an eight-byte counter of accepted writes, as the service's is."""
        return base64.b64encode(self.writes.to_bytes(8)).decode()

    def patch(self, body: Any, if_match: str | None, now: float) -> Values | None:
        """Merge a service's patch; returns the desired patch to notify the device of, or None.

        Raises:
            ServiceError: 400 for a bad patch, 412 for a stale ETag; the twin is then as it was.
        """
        tags, desired = read_update(body)
        check_etag(if_match, self.etag, "the twin")
        tags_after = self.tags if tags is None else _merged_tags(self.tags, tags)
        if desired is not None:
            self.desired = _merged_section(self.desired, desired, "desired", now)
        return self._commit(tags_after, desired)

    def replace(self, body: Any, if_match: str | None, now: float) -> Values:
        """Replace tags and desired properties whole; returns the new desired properties to notify the device of."""
        tags, desired = read_update(body)
        check_etag(if_match, self.etag, "the twin")
        tags_after = _merged_tags({}, tags or {}, size_before=_size(self.tags))
        section = _merged_section(
            Section(version=self.desired.version), desired or {}, "desired", now, size_before=_size(self.desired.values)
        )
        self.desired = section
        self._commit(tags_after, section.values)
        return section.values

    def report(self, patch: Any, now: float) -> int:
        """Merge a device's reported patch; returns the new ``$version`` of the section."""
        self.reported = _merged_section(self.reported, _patch_object(patch, "reported"), "reported", now)
        self.version += 1
        self.writes += 1
        return self.reported.version

    def record(self) -> Values:
        """The twin as JSON, to be kept over a restart."""
        return {
            "tags": self.tags,
            **{
                name: [section.values, section.metadata, section.version]
                for name, section in (("desired", self.desired), ("reported", self.reported))
            },
            "version": self.version,
            "writes": self.writes,
            "modelId": self.model_id,
        }

    @classmethod
    def restored(cls, record: Any) -> "Twin":
        return cls(
            record["tags"],
            Section(*record["desired"]),
            Section(*record["reported"]),
            record["version"],
            record["writes"],
            record["modelId"],
        )

    def _commit(self, tags: Values, desired: Values | None) -> Values | None:
        self.tags = tags
        self.version += 1
        self.writes += 1
        return desired


class Twins(dict[IdentityId, Twin]):
    """The twins of a hub. Who changes one says so with `touch`."""

    def __init__(self, touch: Callable[[str], None] = forget) -> None:
        super().__init__()
        self._touch = touch

    def __setitem__(self, identity_id: IdentityId, twin: Twin) -> None:
        super().__setitem__(identity_id, twin)
        self.touch(identity_id)

    def __delitem__(self, identity_id: IdentityId) -> None:
        super().__delitem__(identity_id)
        self.touch(identity_id)

    def touch(self, identity_id: IdentityId) -> None:
        self._touch(identity_id.client_id)

    def record(self, key: str) -> Any | None:
        twin = self.get(IdentityId.of_client(key))
        return twin.record() if twin else None

    def restore(self, key: str, record: Any) -> None:
        self[IdentityId.of_client(key)] = Twin.restored(record)


def merged(values: Values, metadata: Values, patch: Values, stamp: Values) -> tuple[Values, Values]:
    """Merge `patch` into a tree and stamp the metadata of every node on the way; nothing given is changed.

    Null deletes, an object merges into an object, everything else replaces.
    """
    values, metadata = dict(values), {**metadata, **stamp}
    for key, change in patch.items():
        if change is None:
            values.pop(key, None)
            metadata.pop(key, None)
        elif isinstance(change, dict):
            before, before_metadata = values.get(key), metadata.get(key, {})
            if not isinstance(before, dict):
                before, before_metadata = {}, {}
            values[key], metadata[key] = merged(before, before_metadata, change, stamp)
        else:
            values[key], metadata[key] = change, dict(stamp)
    return values, metadata


def _merged_section(
    section: Section, patch: Values, name: SectionName, now: float, size_before: int | None = None
) -> Section:
    check_tree(patch, name)
    stamp: Values = {"$lastUpdated": wire_time(now)}
    if name == "desired":
        stamp["$lastUpdatedVersion"] = section.version + 1
    values, metadata = merged(section.values, section.metadata, patch, stamp)
    _check_size(values, _size(section.values) if size_before is None else size_before, name, PROPERTIES_BYTES_MAX)
    return Section(values, metadata, section.version + 1)


def _merged_tags(tags: Values, patch: Values, size_before: int | None = None) -> Values:
    check_tree(patch, "tags")
    values, _ = merged(tags, {}, patch, {})
    _check_size(values, _size(tags) if size_before is None else size_before, "tags", TAGS_BYTES_MAX)
    return values


def read_update(body: Any) -> tuple[Values | None, Values | None]:
    """Tags and desired properties of a service's twin document; read-only parts are ignored as the service does."""
    body = _patch_object(body, "twin")
    properties = body.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise ServiceError(Fault.ArgumentInvalid, "properties of the twin is not an object")
    tags, desired = body.get("tags"), (properties or {}).get("desired")
    return (
        None if tags is None else _patch_object(tags, "tags"),
        None if desired is None else _patch_object(desired, "desired"),
    )


def _patch_object(patch: Any, name: str) -> Values:
    if not isinstance(patch, dict):
        raise ServiceError(Fault.ArgumentInvalid, f"{name} is {type(patch).__name__}, not a JSON object")
    # A twin that was read may be written back: its own version and metadata are then no keys of the user's.
    return {key: value for key, value in patch.items() if key not in ("$version", "$metadata")}


def check_tree(tree: Values, name: str) -> None:
    """Check keys, values and depth of a patch; raises ServiceError ArgumentInvalid with the path of the offence."""
    for key, value in tree.items():
        _check_value(value, f"{name}.{_checked_key(key, name)}", 1)


def _check_value(value: Any, path: str, depth: int) -> None:
    match value:
        case None | bool():
            pass
        case str():
            if _text_size(value) > STRING_BYTES_MAX:
                raise ServiceError(Fault.ArgumentInvalid, f"{path} is a string of more than {STRING_BYTES_MAX} bytes")
        case int():
            if not INTEGER_MIN <= value <= INTEGER_MAX:
                raise ServiceError(Fault.ArgumentInvalid, f"{path} is {value}, beyond {INTEGER_MIN} to {INTEGER_MAX}")
        case float():
            pass
        case dict() | list():
            if depth > DEPTH_MAX:
                raise ServiceError(Fault.ArgumentInvalid, f"{path} is nested deeper than {DEPTH_MAX} levels")
            children = value.items() if isinstance(value, dict) else ((None, item) for item in value)
            for key, item in children:
                below = f"{path}[]" if key is None else f"{path}.{_checked_key(key, path)}"
                _check_value(item, below, depth + 1)
        case _:
            raise ServiceError(Fault.ArgumentInvalid, f"{path} is a {type(value).__name__}, which JSON does not have")


def _checked_key(key: str, path: str) -> str:
    if not key or _FORBIDDEN_IN_KEYS.search(key):
        raise ServiceError(
            Fault.ArgumentInvalid,
            f"{path} has the key {key!r}: a key is not empty and holds no '.', '$', space or control",
        )
    if _text_size(key) > KEY_BYTES_MAX:
        raise ServiceError(Fault.ArgumentInvalid, f"{path} has a key of more than {KEY_BYTES_MAX} bytes")
    return key


def _check_size(values: Values, size_before: int, name: str, bytes_max: int) -> None:
    # Only growth beyond the limit is refused, so that a twin which is too large can still be made smaller.
    size = _size(values)
    if size > bytes_max and size > size_before:
        raise ServiceError(Fault.ArgumentInvalid, f"{name} would be {size} bytes; {bytes_max} are allowed")


def _size(value: Any) -> int:
    """The size of a section as the service counts it: keys and values, without structure."""
    match value:
        case bool():
            return 4
        case int() | float():
            return 8
        case str():
            return _text_size(value)
        case dict():
            return sum(_text_size(key) + _size(item) for key, item in value.items())
        case list():
            return sum(map(_size, value))
    return 0


def _text_size(text: str) -> int:
    """UTF-8 bytes without control characters."""
    try:
        if text.isprintable():
            return len(text.encode())
        return len("".join(character for character in text if not _is_control(character)).encode())
    except UnicodeEncodeError as err:
        raise ServiceError(Fault.ArgumentInvalid, "a string holds a surrogate without its partner") from err


def _is_control(character: str) -> bool:
    return character < "\x20" or "\x7f" <= character <= "\x9f"
