"""The catalog's rules: references, tags, metrics, search, and who holds a version."""

import pytest

from cloud_registry.core.catalog import (
    Holder,
    ModelFacts,
    Selector,
    edited_tags,
    grown_properties,
    holders,
    matches,
    parse_metric,
    parse_reference,
    parse_selector,
    parse_tag,
    parse_tag_query,
)
from cloud_registry.errors import ConflictError, UsageError
from cloud_registry.ports import ImageReference, ModelQuery, ModuleTwin, RolloutReference, VersionNames
from manifests.errors import ManifestError
from manifests.identity import ModelReference
from manifests.model import Dataset, Lineage, ModelManifest

V2 = ModelReference("digits", 2)
DIGEST = "sha256:" + "2" * 64
OTHER = "sha256:" + "3" * 64


def twin(desired: object = None, reported: object = None) -> ModuleTwin:
    return ModuleTwin(
        "dev-01",
        "slipway",
        True,
        desired={"models": {"digits": desired}} if desired is not None else {},
        reported={"models": {"digits": reported}} if reported is not None else {},
    )


# What one module's twin says, and why that holds digits:2.
TWINS = {
    "a device that is asked to run it": (twin(desired={"version": 2, "digest": DIGEST}), ["is asked to run it"]),
    "a device that runs it": (
        twin(reported={"phase": "committed", "version": 2, "loadedVersion": 2, "loadedDigest": DIGEST}),
        ["runs it"],
    ),
    "a device that runs it and is asked to": (
        twin({"version": 2}, {"phase": "committed", "version": 2, "loadedVersion": 2}),
        ["is asked to run it", "runs it"],
    ),
    "a device that is asked to leave it and still runs it": (
        twin({"version": 3}, {"phase": "downloading", "version": 3, "loadedVersion": 2}),
        ["runs it"],
    ),
    "a device that keeps it to go back to": (
        twin({"version": 3}, {"loadedVersion": 3, "previous": {"version": 2, "digest": DIGEST}}),
        ["keeps it to go back to"],
    ),
    "a device in the middle of the update": (
        twin(reported={"phase": "trial", "version": 2, "loadedVersion": 1}),
        ["is being updated to it (phase trial)"],
    ),
    "a device that rejected it": (twin(reported={"phase": "rejected", "version": 2, "loadedVersion": 1}), []),
    "a report without versions, told apart by the digest": (twin(reported={"loadedDigest": DIGEST}), ["runs it"]),
    "another version with the same bytes": (
        twin({"version": 3, "digest": DIGEST}, {"version": 3, "loadedVersion": 3, "loadedDigest": DIGEST}),
        [],
    ),
    "another version": (twin({"version": 3, "digest": OTHER}, {"version": 3, "loadedVersion": 3}), []),
    "a report of a later schema that our documents cannot read": (
        twin(reported={"phase": "meditating", "version": 9, "loadedVersion": 2, "generation": "soon"}),
        ["runs it"],
    ),
    "a report that is broken": (twin("nonsense", ["nonsense"]), []),
    "a twin with no word of models": (twin(), []),
    "a removed entry": (ModuleTwin("dev-01", "slipway", False, {"models": {"digits": None}}, {"models": None}), []),
}


@pytest.mark.parametrize("story", TWINS)
def test_a_module_holds_what_its_twin_names(story: str):
    module, why = TWINS[story]
    found = holders(V2, frozenset({DIGEST}), [module], VersionNames())
    assert found == tuple(Holder("dev-01/slipway", word) for word in why)


def test_rollouts_hold_what_they_carry_and_what_they_would_go_back_to():
    names = VersionNames(rollouts=(RolloutReference("r-0002", False), RolloutReference("r-0001", True)))
    assert holders(V2, frozenset({DIGEST}), [], names) == (
        Holder("r-0001", "carries it to devices"),
        Holder("r-0002", "would go back to it"),
    )


def test_holders_are_told_in_order_and_once():
    modules = [
        ModuleTwin(f"dev-0{number}", "slipway", True, {"models": {"digits": {"version": 2}}}) for number in (3, 1, 2, 1)
    ]
    found = holders(V2, frozenset(), modules, VersionNames(rollouts=(RolloutReference("r-0001", True),)))
    assert [holder.where for holder in found] == ["dev-01/slipway", "dev-02/slipway", "dev-03/slipway", "r-0001"]


def test_images_and_aliases_hold_what_they_name():
    names = VersionNames(aliases=("champion",), images=(ImageReference("registry.local/digits:2", DIGEST),))
    assert holders(V2, frozenset(), [], names) == (
        Holder("digits@champion", "stands for it"),
        Holder("registry.local/digits:2", "holds it (sha256:222222222222)"),
    )


SELECTORS = {
    "digits:3": Selector("digits", version=3),
    "digits@champion": Selector("digits", alias="champion"),
    "digits@latest": Selector("digits"),
    "digits": Selector("digits"),
}


@pytest.mark.parametrize("text", SELECTORS)
def test_a_version_is_meant_by_its_number_its_alias_or_as_the_latest(text: str):
    assert parse_selector(text) == SELECTORS[text]


@pytest.mark.parametrize("text", ["digits@", "@champion", "digits@3", "digits@Champion", "digits@a@b", "digits:3@a"])
def test_what_means_no_version_is_refused(text: str):
    with pytest.raises((UsageError, ManifestError)):
        parse_selector(text)


def test_a_property_is_written_once_and_may_be_said_again():
    assert grown_properties({"a": "1"}, {"a": "1", "b": "2"}, "digits:2") == {"a": "1", "b": "2"}
    with pytest.raises(ConflictError, match="'a' of digits:2 is '1' and is written once"):
        grown_properties({"a": "1"}, {"a": "2"}, "digits:2")
    with pytest.raises(UsageError, match="at most 64 properties"):
        grown_properties({}, {f"k{number}": "" for number in range(65)}, "digits:2")


def test_a_reference_is_a_version_or_a_name_for_its_latest():
    assert parse_reference("digits:3") == ("digits", 3)
    assert parse_reference("digits") == ("digits", None)


@pytest.mark.parametrize(
    "text", ["", "Digits", "digits:", "digits:0", "digits:x", "digits:-1", "a/b", "x" * 64, "digits:²"]
)
def test_what_is_no_reference_is_refused(text: str):
    with pytest.raises(ManifestError):
        parse_reference(text)


def test_tags_and_metrics_are_read_with_whatever_their_values_hold():
    assert parse_tag("url=https://x/?a=b") == ("url", "https://x/?a=b")
    assert parse_tag("empty=") == ("empty", "")
    assert parse_tag("stad=Malmö") == ("stad", "Malmö")
    assert parse_tag_query("stage") == ("stage", None)
    assert parse_tag_query("stage=production") == ("stage", "production")
    assert parse_metric("accuracy=0.97") == ("accuracy", 0.97)


@pytest.mark.parametrize("text", ["stage", "=x", " stage=x", "a\x00=b", "a=b\x07", "k" * 200 + "=v", "k=" + "v" * 2000])
def test_what_is_no_tag_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_tag(text)


@pytest.mark.parametrize("text", ["accuracy", "accuracy=high", "=1", "accuracy=nan", "accuracy=inf"])
def test_what_is_no_metric_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_metric(text)


def test_an_edit_of_tags_sets_and_removes_and_may_be_repeated():
    tags = edited_tags({"stage": "test", "team": "x"}, {"stage": "production"}, ["team", "never-there"])
    assert tags == {"stage": "production"}
    assert edited_tags(tags, {"stage": "production"}, ["team"]) == tags


def test_there_is_an_end_to_tags():
    with pytest.raises(UsageError, match="at most 64 tags"):
        edited_tags({}, {f"k{number}": "" for number in range(65)}, [])


HOSTILE_TEXTS = {
    "a key that moves the cursor": {"\x1b[2J": "x"},
    "a value of two lines": {"stage": "x\nstage=production"},
    "a zero byte": {"stage": "\0"},
    "a value without end": {"stage": "x" * 2000},
    "no key": {"": "x"},
}


@pytest.mark.parametrize("story", HOSTILE_TEXTS)
def test_whoever_gives_them_tags_and_properties_are_short_and_can_be_shown(story: str):
    texts = HOSTILE_TEXTS[story]
    with pytest.raises(UsageError):
        edited_tags({}, texts, [])
    with pytest.raises(UsageError):
        grown_properties({}, texts, "digits:1")
    with pytest.raises(UsageError):
        ModelFacts(tags=texts).checked()
    with pytest.raises(UsageError):
        ModelFacts(properties=texts).checked()


@pytest.mark.parametrize(
    "facts",
    [
        ModelFacts(metrics={"\x1b[2J": 1.0}),
        ModelFacts(metrics={f"m{number}": 1.0 for number in range(1001)}),
        ModelFacts(lineage=Lineage(machine="a\0b")),
        ModelFacts(lineage=Lineage(datasets=(Dataset(name="x\ny", digest=DIGEST),))),
    ],
    ids=["metric name", "metrics without end", "machine", "data set"],
)
def test_what_is_said_of_a_version_can_be_shown(facts: ModelFacts):
    with pytest.raises(UsageError):
        facts.checked()


NAMES = {
    "digits": True,
    "dig*": True,
    "*its": True,
    "*": True,
    "d*g*s": True,
    "dig": False,
    "*dig": False,
    "d*x*s": False,
    "digits*digits": False,
    "di_its": False,
}


@pytest.mark.parametrize(("pattern", "is_match"), NAMES.items())
def test_a_name_is_met_in_full_or_by_stars(pattern: str, is_match: bool):
    manifest = ModelManifest(name="digits", version=1, artifacts=(), created_at="")
    assert matches(manifest, ModelQuery(name=pattern)) is is_match
