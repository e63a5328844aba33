"""Twins against a naive model: a section as a flat table of paths."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.iothub.core.twins import Section, Twin, merged
from simulators.iothub.errors import ServiceError

KEYS = st.sampled_from("abcd")
SCALARS = st.one_of(st.booleans(), st.integers(-5, 5), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=2))
PATCHES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(KEYS, st.one_of(st.none(), SCALARS), max_size=4),
    lambda children: st.dictionaries(KEYS, st.one_of(st.none(), SCALARS, children), max_size=4),
    max_leaves=12,
)
Path = tuple[str, ...]
# What a naive model keeps for a node that is an object rather than a value.
OBJECT = "an object"


class FlatModel:
    """The same section, as a table from paths to values; slow and plain."""

    def __init__(self) -> None:
        self.table: dict[Path, Any] = {}

    def patch(self, patch: dict[str, Any], at: Path = ()) -> None:
        for key, change in patch.items():
            path = (*at, key)
            if not isinstance(change, dict):
                self._remove(path)
                if change is not None:
                    self.table[path] = change
                continue
            if self.table.get(path) != OBJECT or isinstance(self.table.get(path), list):
                self._remove(path)
                self.table[path] = OBJECT
            self.patch(change, path)

    def _remove(self, path: Path) -> None:
        self.table = {place: value for place, value in self.table.items() if place[: len(path)] != path}


def flattened(values: dict[str, Any], at: Path = ()) -> dict[Path, Any]:
    table: dict[Path, Any] = {}
    for key, value in values.items():
        table[(*at, key)] = OBJECT if isinstance(value, dict) else value
        if isinstance(value, dict):
            table |= flattened(value, (*at, key))
    return table


@settings(deadline=None, max_examples=200)
@given(st.lists(PATCHES, max_size=6))
def test_merging_does_what_the_naive_model_does(patches: list[dict[str, Any]]) -> None:
    twin, model = Twin(), FlatModel()
    for number, patch in enumerate(patches):
        twin.report(patch, float(number))
        model.patch(patch)
        assert flattened(twin.reported.values) == model.table
        assert twin.reported.version == number + 2


@settings(deadline=None, max_examples=200)
@given(st.lists(PATCHES, max_size=5))
def test_metadata_has_a_node_for_each_value_and_no_other(patches: list[dict[str, Any]]) -> None:
    twin = Twin()
    for number, patch in enumerate(patches):
        twin.patch({"properties": {"desired": patch}}, None, float(number))

    def check(values: dict[str, Any], metadata: dict[str, Any]) -> None:
        assert {key for key in metadata if not key.startswith("$")} == values.keys()
        for key, value in values.items():
            # No child is newer than its parent.
            assert metadata[key].get("$lastUpdatedVersion", 0) <= metadata.get("$lastUpdatedVersion", 99)
            check(value if isinstance(value, dict) else {}, metadata[key])

    check(twin.desired.values, twin.desired.metadata)


@settings(deadline=None, max_examples=200)
@given(PATCHES, PATCHES)
def test_merging_twice_is_merging_once_and_leaves_what_was_given_alone(
    first: dict[str, Any], patch: dict[str, Any]
) -> None:
    values, metadata = merged({}, {}, first, {"$lastUpdated": "a"})
    before = repr((values, metadata, patch))
    once = merged(values, metadata, patch, {"$lastUpdated": "b"})
    assert merged(*once, patch, {"$lastUpdated": "b"}) == once
    assert repr((values, metadata, patch)) == before


BAD_PATCHES = st.sampled_from([{"a.b": 1}, {"a": {"$x": 1}}, {"a": "x" * 4097}, {"a": 2**60}, [], {"a": "\ud800"}])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["tags", "desired", "replace", "report"]), PATCHES | BAD_PATCHES), max_size=8)
)
def test_versions_grow_by_one_with_each_accepted_write_and_never_else(writes: list[tuple[str, Any]]) -> None:
    twin = Twin()
    for kind, patch in writes:
        desired, reported = twin.desired.version, twin.reported.version
        before = (twin.version, twin.etag, desired, reported)
        try:
            match kind:
                case "tags":
                    twin.patch({"tags": patch}, None, 0.0)
                case "desired":
                    twin.patch({"properties": {"desired": patch}}, None, 0.0)
                case "replace":
                    twin.replace({"properties": {"desired": patch}}, None, 0.0)
                case "report":
                    twin.report(patch, 0.0)
        except ServiceError:
            assert (twin.version, twin.etag, twin.desired.version, twin.reported.version) == before
            continue
        assert twin.version == before[0] + 1
        assert twin.etag != before[1]
        assert twin.desired.version - desired == (kind in ("desired", "replace"))
        assert twin.reported.version - reported == (kind == "report")


@settings(deadline=None, max_examples=100)
@given(PATCHES, PATCHES)
def test_replacing_forgets_everything_before(first: dict[str, Any], second: dict[str, Any]) -> None:
    patched, fresh = Twin(), Twin()
    patched.patch({"tags": first, "properties": {"desired": first}}, None, 0.0)
    for twin in (patched, fresh):
        twin.replace({"tags": second, "properties": {"desired": second}}, None, 1.0)
    assert (patched.tags, patched.desired.values) == (fresh.tags, fresh.desired.values)
    assert isinstance(patched.desired, Section)
