"""The search language: what conditions mean, and what is said of those that cannot be read."""

import json
from pathlib import Path

import msgspec
import pytest

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.core.search import facts_of, meets, parse_condition, pattern_matches
from cloud_registry.errors import UsageError
from cloud_registry.ports import ModelQuery
from manifests.model import ModelManifest

EXAMPLE = Path(__file__).parents[3] / "manifests" / "examples" / "model-manifest.json"
DIGITS = ModelManifest.from_wire(
    {
        **json.loads(EXAMPLE.read_bytes()),
        "tags": {"site": "line-3", "floor": "2", "empty": "", "top 5": "yes", "quote": "it's", "and": "1"},
    }
)

# What holds of the example manifest, and what does not.
TRUE = (
    "accuracy > 0.97 and tag.site = 'line-3'",
    "accuracy>0.97 AND tags.site='line-3'",
    "metric.accuracy >= .972",
    "metrics.loss < 1e-1",
    "accuracy",
    "not precision",
    "version = 3",
    "version in (1, 3)",
    "version not in (1, 2)",
    "name = 'digits'",
    "name like 'dig*'",
    "name like 'dig%'",
    "name not like 'x*'",
    "alias = 'champion'",
    "format = 'onnx' and format = 'tflite'",
    "format in ('python', 'onnx')",
    "tag.floor = 2",
    "tag.floor < 10",
    "tag.floor = '2'",
    "tag.empty = ''",
    "tag.empty",
    "tag.`top 5` = 'yes'",
    "tag.'top 5' = \"yes\"",
    "tag.quote = 'it''s'",
    "tag.and = 1",
    "tag.site != 'line-4'",
    "tag.site <> 'line-4'",
    "tag.site not in ('line-4', 'line-5')",
    "not tag.region = 'north'",
    "property.trainingRun like '2026-11-20*'",
    "author = 'vision team'",
    "commit like '9f2c1e07*'",
    "dataset = 'digits-2026-10'",
    "parent = 'digits:2'",
    "framework like 'scikit-learn*'",
    "engine = 'onnxruntime'",
    "opset >= 17",
    "operator = 'Gemm'",
    "memory < 50e6",
    "latency < 0.1",
    "size > 60000",
    "golden = 32",
    "label = '7'",
    "archived = false",
    "created > '2026-11-21'",
    "created < '2026-11-21T10:00'",
    "created <= '2026-11-21T10:00:00+01:00'",
    "source like '*.md'",
    "description like '*handwritten*'",
    "version = 9 or version = 3 and accuracy > 0.9",
    "(version = 9 or version = 3) and accuracy > 0.9",
    "not (version = 9 or version = 8)",
    "not not version = 3",
    # As MLflow's users write it.
    "name ILIKE 'DIG%' and tags.`site` = 'line-3'",
    "tag.site not ilike 'LINE-4'",
    "attributes.name = 'digits' and attribute.version_number >= 3",
    "params.trainingRun LIKE '2026-11-20%'",
    "metrics.`accuracy` > 0.9 AND tags.\"site\" IN ('line-3')",
    "tag.region IS NULL and tag.site is not null",
    "aliases = 'champion'",
    "run_id is null",
)
FALSE = (
    "accuracy > 0.98",
    "tag.site like 'LINE*'",
    "tag.site ilike 'lane*'",
    "tag.site is null",
    "precision < 1",
    "not accuracy",
    "tag.region != 'north'",
    "tag.region not in ('north')",
    "tag.site = 'Line-3'",
    "tag.site > 3",
    "tag.floor < 2",
    "tag.`top 5` = 5",
    "format != 'onnx'",
    "alias = 'next'",
    "name = 3",
    "archived = true",
    "created >= '2026-12-01'",
    "version = 3 and (accuracy > 2 or tag.floor = 3)",
)


@pytest.mark.parametrize("text", TRUE)
def test_this_holds_of_the_example(text: str):
    assert meets(facts_of(DIGITS), parse_condition(text))


@pytest.mark.parametrize("text", FALSE)
def test_this_does_not(text: str):
    assert not meets(facts_of(DIGITS), parse_condition(text))


def test_a_store_finds_what_holds_and_nothing_else(database_url: str):
    """Each condition on its own and joined with another: none may lose a version by the way it is asked."""
    catalog = SqlCatalog(open_database(database_url))
    for number in (1, 2, 3):
        target = f"digits/{number}/model"
        catalog.add("digits", lambda version, target=target: DIGITS if version == 3 else other(version, target))
    catalog.move_alias("digits", "champion", lambda _: 3)

    def is_found(condition: str) -> bool:
        return DIGITS.version in [each.version for each in catalog.search(ModelQuery(where=condition))]

    for holds, conditions in ((True, TRUE), (False, FALSE)):
        for text in conditions:
            assert is_found(text) is holds, text
            assert is_found(f"({text}) and tag.site = 'line-3' and accuracy > 0.9") is holds, text
            assert is_found(f"({text}) or version = 1") is holds, text


def other(version: int, target: str) -> ModelManifest:
    artifact = msgspec.structs.replace(DIGITS.artifacts[0], target=target)
    return ModelManifest(name="digits", version=version, artifacts=(artifact,), created_at=DIGITS.created_at)


UNREADABLE = {
    "": "ends too early",
    "accuracy >": "ends too early",
    "(accuracy > 1": "ends too early",
    "accuracy > 1)": r"from character 13 on: '\)'",
    "tag.site = line-3": "from character 12 on: 'line-3'",
    "tag.site = 'line-3": "from character 12 on",
    "accuracy = 'high'": "accuracy is a number and cannot be compared with the text 'high'",
    "version = '3'": "version is a number",
    "foo.bar = 1": "'foo' is none of tag, metric, property",
    "created > 'yesterday'": "created is a time, and 'yesterday' is none",
    "accuracy > 1e999": "beyond every number",
    "(" * 60 + "accuracy" + ")" * 60: "60 brackets",
    "a" * 5000: "5,000 characters",
    "accuracy > 0.97; drop table models": "from character 16 on",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_said_with_its_place(text: str):
    with pytest.raises(UsageError, match=UNREADABLE[text]):
        parse_condition(text)


def test_brackets_and_words_in_quotes_count_for_nothing():
    assert parse_condition("tag.note = '" + "(not " * 60 + "'")


@pytest.mark.parametrize(
    ("pattern", "is_match"),
    {"digits": True, "d*g*s": True, "*": True, "*its": True, "dig": False, "d*x*s": False, "d?gits": False}.items(),
)
def test_a_star_stands_for_anything(pattern: str, is_match: bool):
    assert pattern_matches("digits", pattern) is is_match


HINTS = {
    "framwork = 'pytorch'": "Did you mean framework?",
    "tgs.site = 'line-3'": "Did you mean tags?",
    "attributes.nmae = 'digits'": "Did you mean name?",
    "stage = 'live'": "Write it without quotes. If you mean a tag, write tag.stage.",
}


@pytest.mark.parametrize("text", HINTS)
def test_a_field_that_is_nearly_one_is_told(text: str):
    with pytest.raises(UsageError) as refused:
        parse_condition(text)
    assert refused.value.hint == HINTS[text]
