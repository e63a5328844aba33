"""What differs between two readings of one twin, in lines for a person."""

import json
from collections.abc import Iterator
from typing import Any

# Numbers and times that follow from a change and are none.
_FOLLOWING = {"$metadata", "$version", "version", "etag", "deviceEtag", "lastActivityTime"}


def changes_between(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line a value, ``desired.interval: 5 -> 10``; none where nothing was written.

    A value that was written anew as it was counts as a change, since it has a new version.
    """
    old, new = dict(_leaves("", before)), dict(_leaves("", after))
    lines = [
        f"{name}: {old.get(name, '(none)')} -> {new.get(name, '(gone)')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not lines and before["version"] != after["version"]:
        return [f"(written anew, version {after['version']})"]
    return lines


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict) or not (value or path):
        yield path, json.dumps(value, ensure_ascii=False)
        return
    for key, inner in value.items():
        if key not in _FOLLOWING:
            yield from _leaves(f"{path}.{key}".removeprefix(".").removeprefix("properties."), inner)
