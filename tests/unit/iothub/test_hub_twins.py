"""Twins: merging, versions, metadata, ETags and limits, by the rules of the developer guide."""

from typing import Any

import pytest

from simulators.iothub.core.registry import matches_etag
from simulators.iothub.core.twins import INTEGER_MAX, INTEGER_MIN, Twin
from simulators.iothub.errors import ServiceError

NOW = 1_700_000_000.0
AT = "2023-11-14T22:13:20.0000000Z"


def desired(patch: Any) -> dict[str, Any]:
    return {"properties": {"desired": patch}}


def test_a_new_twin_is_as_the_service_makes_it() -> None:
    twin = Twin()
    empty = {"$metadata": {"$lastUpdated": "0001-01-01T00:00:00Z"}, "$version": 1}
    assert (twin.etag, twin.version, twin.tags) == ("AAAAAAAAAAE=", 2, {})
    assert (twin.desired.document(), twin.reported.document()) == (empty, empty)


MERGES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "a new key is added": ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    "null deletes": ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
    "null for what is not there is nothing": ({"a": 1}, {"b": None}, {"a": 1}),
    "an object merges into an object": ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
    "null deletes within": ({"a": {"x": 1, "y": 2}}, {"a": {"x": None}}, {"a": {"y": 2}}),
    "an object that lost its last key stays": ({"a": {"x": 1}}, {"a": {"x": None}}, {"a": {}}),
    "a scalar replaces an object": ({"a": {"x": 1}}, {"a": 5}, {"a": 5}),
    "an object replaces a scalar": ({"a": 5}, {"a": {"x": 1}}, {"a": {"x": 1}}),
    "an array replaces an array": ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
    "nulls in an object that is new leave nothing": ({}, {"a": {"x": None, "y": 1}}, {"a": {"y": 1}}),
    "an empty patch changes nothing": ({"a": 1}, {}, {"a": 1}),
    "$version and $metadata are read-only": (
        {"a": 1},
        {"$version": 77, "$metadata": {"a": 1}, "b": 1},
        {"a": 1, "b": 1},
    ),
}


@pytest.mark.parametrize(("before", "patch", "after"), MERGES.values(), ids=MERGES.keys())
def test_a_patch_merges(before: dict[str, Any], patch: dict[str, Any], after: dict[str, Any]) -> None:
    twin = Twin()
    twin.patch({"tags": before, **desired(before)}, None, NOW)
    twin.report(before, NOW)
    twin.patch({"tags": patch, **desired(patch)}, None, NOW)
    twin.report(patch, NOW)
    assert (twin.tags, twin.desired.values, twin.reported.values) == (after, after, after)


def test_metadata_mirrors_the_tree_and_stamps_the_parents_of_a_change() -> None:
    twin = Twin()
    twin.patch(desired({"a": {"x": 1, "y": 2}, "b": 3}), None, NOW)
    twin.patch(desired({"a": {"x": None}}), None, NOW + 1)
    first = {"$lastUpdated": AT, "$lastUpdatedVersion": 2}
    second = {"$lastUpdated": "2023-11-14T22:13:21.0000000Z", "$lastUpdatedVersion": 3}
    assert twin.desired.document() == {
        "a": {"y": 2},
        "b": 3,
        "$metadata": {**second, "a": {**second, "y": first}, "b": first},
        "$version": 3,
    }


def test_reported_metadata_has_no_version() -> None:
    twin = Twin()
    assert twin.report({"a": 1}, NOW) == 2
    assert twin.reported.metadata == {"$lastUpdated": AT, "a": {"$lastUpdated": AT}}


def test_which_version_each_kind_of_write_raises() -> None:
    twin = Twin()

    def versions() -> tuple[int, int, int, str]:
        return twin.version, twin.desired.version, twin.reported.version, twin.etag

    assert versions() == (2, 1, 1, "AAAAAAAAAAE=")
    assert twin.patch({"tags": {"a": 1}}, None, NOW) is None
    assert versions() == (3, 1, 1, "AAAAAAAAAAI=")
    assert twin.patch({"tags": {"a": 2}, **desired({"b": 1})}, None, NOW) == {"b": 1}
    assert versions() == (4, 2, 1, "AAAAAAAAAAM=")
    assert twin.report({"c": 1}, NOW) == 2
    assert versions() == (5, 2, 2, "AAAAAAAAAAQ=")
    assert twin.replace({}, None, NOW) == {}
    assert versions() == (6, 3, 2, "AAAAAAAAAAU=")


def test_replacing_puts_tags_and_desired_anew_and_leaves_reported_alone() -> None:
    twin = Twin()
    twin.patch({"tags": {"a": 1}, **desired({"b": 1})}, None, NOW)
    twin.report({"c": 1}, NOW)
    assert twin.replace({"tags": {"x": 1}, **desired({"y": {"z": 1}})}, None, NOW) == {"y": {"z": 1}}
    assert (twin.tags, twin.desired.values, twin.reported.values) == ({"x": 1}, {"y": {"z": 1}}, {"c": 1})


def test_a_patch_for_the_device_keeps_its_nulls() -> None:
    twin = Twin()
    twin.patch(desired({"a": 1}), None, NOW)
    assert twin.patch(desired({"a": None}), None, NOW) == {"a": None}


@pytest.mark.parametrize(
    ("condition", "passes"),
    [('"*"', True), ("*", True), ('"AAA="', True), ("AAA=", True), ('W/"AAA="', True), ('"BBB="', False), ("", False)],
)
def test_if_match_passes_for_the_etag_and_the_star_quoted_or_not(condition: str, passes: bool) -> None:
    assert matches_etag(condition, "AAA=") is passes


def test_a_stale_etag_changes_nothing() -> None:
    twin = Twin()
    twin.patch({"tags": {"a": 1}}, '"AAAAAAAAAAE="', NOW)
    for write in (twin.patch, twin.replace):
        with pytest.raises(ServiceError) as refused:
            write({"tags": {"a": 2}}, '"AAAAAAAAAAE="', NOW)
        assert (refused.value.status, refused.value.fault.name) == (412, "PreconditionFailed")
    assert (twin.tags, twin.version) == ({"a": 1}, 3)


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"leaf": 1}
    for _ in range(depth):
        tree = {"n": tree}
    return tree


LIMITS: dict[str, tuple[Any, bool]] = {
    "a string of 4096 bytes": ({"a": "é" * 2048}, True),
    "a string of 4097 bytes": ({"a": "é" * 2048 + "x"}, False),
    "control characters do not count": ({"a": "x" * 4096 + "\x01\x85"}, True),
    "a string of 4097 bytes in an array": ({"a": [["x" * 4097]]}, False),
    "the largest integer": ({"a": INTEGER_MAX}, True),
    "one more": ({"a": INTEGER_MAX + 1}, False),
    "the smallest integer": ({"a": INTEGER_MIN}, True),
    "one less": ({"a": INTEGER_MIN - 1}, False),
    "ten levels": (nested(10), True),
    "eleven levels": (nested(11), False),
    "a key with a dot": ({"a.b": 1}, False),
    "a key with a dollar": ({"a$": 1}, False),
    "a key with a space": ({"a b": 1}, False),
    "a key with a control character": ({"a\n": 1}, False),
    "an empty key": ({"": 1}, False),
    "a bad key within": ({"a": {"b": {"$c": 1}}}, False),
    "a bad key in an array": ({"a": [{"$c": 1}]}, False),
    "$version within": ({"a": {"$version": 1}}, False),
    "a key of 1024 bytes": ({"k" * 1024: 1}, True),
    "a key of 1025 bytes": ({"k" * 1025: 1}, False),
    "a key in another script": ({"température": 1}, True),
    "a lone surrogate": ({"a": "\ud800"}, False),
    "a list for an object": ([1], False),
    "a string for an object": ("x", False),
}


@pytest.mark.parametrize(("patch", "is_allowed"), LIMITS.values(), ids=LIMITS.keys())
def test_limits_of_keys_and_values(patch: Any, is_allowed: bool) -> None:
    for write in (
        lambda twin: twin.patch(desired(patch), None, NOW),
        lambda twin: twin.patch({"tags": patch}, None, NOW),
        lambda twin: twin.replace(desired(patch), None, NOW),
        lambda twin: twin.report(patch, NOW),
    ):
        twin = Twin()
        if is_allowed:
            write(twin)
            continue
        with pytest.raises(ServiceError) as refused:
            write(twin)
        assert (refused.value.status, refused.value.fault.name, twin) == (400, "ArgumentInvalid", Twin())


def filler(size_bytes: int) -> dict[str, Any]:
    """A tree of exactly so many bytes: keys of four, strings of the rest."""
    tree: dict[str, Any] = {}
    while size_bytes:
        part = min(size_bytes, 4000)
        tree[f"k{len(tree):03}"] = "x" * (part - 4)
        size_bytes -= part
    return tree


@pytest.mark.parametrize(("section", "bytes_max"), [("tags", 8192), ("desired", 32768), ("reported", 32768)])
def test_a_section_may_grow_to_its_limit_and_no_further(section: str, bytes_max: int) -> None:
    def write(twin: Twin, patch: dict[str, Any]) -> None:
        if section == "reported":
            twin.report(patch, NOW)
        else:
            twin.patch({"tags": patch} if section == "tags" else desired(patch), None, NOW)

    twin = Twin()
    # One key byte and eight of a number, one and four of a boolean: 14 that are no strings.
    write(twin, {**filler(bytes_max - 14), "n": 1, "b": True})
    full = (twin.version, twin.tags, twin.desired, twin.reported)
    with pytest.raises(ServiceError, match=f"{section} would be {bytes_max + 1} bytes; {bytes_max} are allowed"):
        write(twin, {"k": ""})
    assert (twin.version, twin.tags, twin.desired, twin.reported) == full


def test_a_section_that_is_too_large_may_still_shrink() -> None:
    twin = Twin()
    twin.reported.values = filler(40_000)
    twin.report({"k000": None}, NOW)
    with pytest.raises(ServiceError, match="reported would be 37000 bytes"):
        twin.report({"more": "x" * 996}, NOW)
