"""The query language: what selects, what is refused, and pages."""

import re
from pathlib import Path
from typing import Any

import pytest

from simulators.iothub.core.query import run_query
from simulators.iothub.core.query.expressions import UNDEFINED, compare
from simulators.iothub.core.query.grammar import GRAMMAR
from simulators.iothub.errors import ServiceError

FLEET: list[dict[str, Any]] = [
    {"deviceId": "n1", "tags": {"site": "north", "floor": 1}, "properties": {"reported": {"$version": 3, "up": True}}},
    {"deviceId": "n2", "tags": {"site": "north", "floor": 2}, "properties": {"reported": {"$version": 7, "up": False}}},
    {"deviceId": "s1", "tags": {"site": "south", "floor": 1.5, "owner": None}, "properties": {"reported": {}}},
    {
        "deviceId": "o'x",
        "properties": {"reported": {"models": {"a-b": {"phase": "trial"}}}},
        "capabilities": {"e": True},
    },
]


def source(collection: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
    modules = [(9, {"deviceId": "n1", "moduleId": "m1"})]
    rows = list(enumerate(FLEET, start=10)) if collection == "devices" else modules
    return [entry for entry in rows if entry[0] > after]


def selected(condition: str) -> list[str]:
    rows = run_query(f"SELECT deviceId FROM devices WHERE {condition}", source, None, 100).rows
    return [row["deviceId"] for row in rows]


CONDITIONS = {
    "tags.site = 'north'": ["n1", "n2"],
    'tags.site = "north"': ["n1", "n2"],
    "tags.site != 'north'": ["s1"],
    "tags.site <> 'north'": ["s1"],
    "NOT tags.site = 'north'": ["s1"],
    "NOT NOT tags.site = 'north'": ["n1", "n2"],
    "tags.floor > 1": ["n2", "s1"],
    "tags.floor >= 1.5 and tags.floor < 2": ["s1"],
    "tags.floor <= 0x1": ["n1"],
    "tags.floor = 1.0": ["n1"],
    "tags.floor < 1e1 AND tags.floor > -3": ["n1", "n2", "s1"],
    "tags.floor = '1'": [],
    "tags.floor != '1'": ["n1", "n2", "s1"],
    "tags.site > 'n'": ["n1", "n2", "s1"],
    "tags.site > 1": [],
    "tags.owner = null": ["s1"],
    "tags.owner != 'x'": ["s1"],
    "tags.nothing = undefined": [],
    "tags.site = 'south' OR tags.floor = 2": ["n2", "s1"],
    "tags.nothing = 1 OR tags.floor = 2": ["n2"],
    "tags.site = 'south' OR tags.site = 'north' AND tags.floor = 1": ["n1", "s1"],
    "(tags.site = 'south' OR tags.site = 'north') AND tags.floor = 1": ["n1"],
    "tags.site IN ['south', 'east']": ["s1"],
    "tags.site NIN ['south', 'east']": ["n1", "n2"],
    "tags.floor in [1, 2, null]": ["n1", "n2"],
    "tags.site in []": [],
    "is_defined(tags.site)": ["n1", "n2", "s1"],
    "NOT IS_DEFINED(tags.site)": ["o'x"],
    "is_defined(tags.owner)": ["s1"],
    "properties.reported.up": ["n1"],
    "properties.reported.up = true": ["n1"],
    "NOT properties.reported.up": ["n2"],
    "properties.reported.up = FALSE": ["n2"],
    "properties.reported.$version >= 7": ["n2"],
    "properties.reported.models.[[a-b]].phase = 'trial'": ["o'x"],
    "capabilities.e": ["o'x"],
    "tags = 1": [],
    "deviceId = 'o''x'": ["o'x"],
    r"deviceId = 'o\'x'": ["o'x"],
    r"deviceId = '\u006e1'": ["n1"],
    'deviceId = "o\'x"': ["o'x"],
    "'n1' = deviceId": ["n1"],
    "deviceId = 'n1' AND 1 = 1": ["n1"],
}


@pytest.mark.parametrize(("condition", "expected"), CONDITIONS.items())
def test_a_condition_selects(condition: str, expected: list[str]) -> None:
    assert selected(condition) == expected


SELECTIONS: dict[str, list[dict[str, Any]]] = {
    "SELECT * FROM devices.modules": [{"deviceId": "n1", "moduleId": "m1"}],
    "select top 1 * from devices": FLEET[:1],
    "SELECT deviceId, tags.site AS place FROM devices WHERE tags.floor > 1": [
        {"deviceId": "n2", "place": "north"},
        {"deviceId": "s1", "place": "south"},
    ],
    "SELECT tags.owner FROM devices WHERE deviceId = 's1' OR deviceId = 'n1'": [{}, {"owner": None}],
    "SELECT COUNT() AS total FROM devices": [{"total": 4}],
    "SELECT count() FROM devices WHERE tags.site = 'nowhere'": [{"count": 0}],
    "SELECT COUNT(tags.site) AS placed, SUM(tags.floor) AS s, AVG(tags.floor) AS a, MIN(tags.floor) AS least, "
    "MAX(tags.floor) AS most FROM devices": [{"placed": 3, "s": 4.5, "a": 1.5, "least": 1, "most": 2}],
    "SELECT AVG(tags.nothing) AS a, SUM(tags.nothing) AS s FROM devices": [{"s": 0}],
    "SELECT tags.site AS site, COUNT() AS n FROM devices WHERE IS_DEFINED(tags.site) GROUP BY tags.site": [
        {"site": "north", "n": 2},
        {"site": "south", "n": 1},
    ],
    "SELECT tags.site, tags.floor FROM devices WHERE tags.floor = 2 GROUP BY tags.site, tags.floor": [
        {"site": "north", "floor": 2}
    ],
    "SELECT top, devices, fromage FROM devices WHERE deviceId = 'n1'": [{}],
}


@pytest.mark.parametrize(("text", "rows"), SELECTIONS.items())
def test_a_selection_gives(text: str, rows: list[dict[str, Any]]) -> None:
    assert run_query(text, source, None, 100).rows == rows


@pytest.mark.parametrize(
    ("text", "item_type"),
    [
        ("SELECT * FROM devices", "Twin"),
        ("SELECT deviceId FROM devices", "raw"),
        ("SELECT COUNT() FROM devices", "raw"),
    ],
)
def test_item_types(text: str, item_type: str) -> None:
    assert run_query(text, source, None, 100).item_type == item_type


REFUSED: dict[Any, str] = {
    "": "no query",
    None: "no query",
    5: "no query",
    "SELECT": "ends too early",
    "SELECT * FROM jobs": "not understood at column 15",
    "SELECT * FROM devices.nodes": "cannot query devices.nodes",
    "SELECT * FROM devices WHERE": "ends too early",
    "SELECT * FROM devices WHERE tags.site == 'x'": "not understood at column 40",
    "SELECT * FROM devices WHERE tags.site = 'x": "not understood at column 41",
    "SELECT * FROM devices ORDER BY deviceId": "not understood at column 23",
    "SELECT deviceId FROM devices; DROP TABLE": "not understood",
    "SELECT * FROM devices GROUP BY tags.site": "GROUP BY needs columns",
    "SELECT deviceId, COUNT() AS n FROM devices": "deviceId is neither grouped by nor aggregated",
    "SELECT SUM() AS s FROM devices": "needs a property",
    "SELECT tags.a, properties.a FROM devices": "same name",
    "SELECT * FROM devices WHERE " + "(" * 200 + "a" + ")" * 200: "nests deeper",
    "SELECT * FROM devices WHERE " + "NOT " * 2000 + "a = 1": "nests deeper",
    "SELECT * FROM devices WHERE a = '" + "x" * 9000 + "'": "longer than 8192",
}


@pytest.mark.parametrize(("text", "refusal"), REFUSED.items(), ids=[str(text)[:50] for text in REFUSED])
def test_what_is_not_a_query_is_refused(text: Any, refusal: str) -> None:
    with pytest.raises(ServiceError, match=re.escape(refusal)) as refused:
        run_query(text, source, None, 100)
    assert (refused.value.status, refused.value.fault.name) == (400, "ArgumentInvalid")


def pages(text: str, size: int) -> list[list[str]]:
    result, continuation = [], None
    while True:
        page = run_query(text, source, continuation, size)
        result.append([row["deviceId"] for row in page.rows])
        continuation = page.continuation
        if continuation is None:
            return result


def test_pages_hold_every_row_once() -> None:
    assert pages("SELECT * FROM devices", 3) == [["n1", "n2", "s1"], ["o'x"]]
    assert pages("SELECT * FROM devices", 2) == [["n1", "n2"], ["s1", "o'x"]]
    assert pages("SELECT * FROM devices", 4) == [["n1", "n2", "s1", "o'x"]]


def test_top_counts_over_pages() -> None:
    assert pages("SELECT TOP 3 * FROM devices", 2) == [["n1", "n2"], ["s1"]]
    assert pages("SELECT TOP 2 * FROM devices", 2) == [["n1", "n2"]]
    assert pages("SELECT TOP 0 * FROM devices", 2) == [[]]


def test_a_page_goes_on_after_the_last_row_although_rows_came_and_went() -> None:
    first = run_query("SELECT * FROM devices", source, None, 2)

    def later(_collection: str, after: int) -> list[tuple[int, dict[str, Any]]]:
        return [entry for entry in source("devices", after) if entry[0] != 10] + [(99, {"deviceId": "new"})]

    second = run_query("SELECT * FROM devices", later, first.continuation, 100)
    assert [row["deviceId"] for row in second.rows] == ["s1", "o'x", "new"]


@pytest.mark.parametrize("token", ["x", "e30=", "W10=", "bnVsbA=="])
def test_a_foreign_continuation_is_refused(token: str) -> None:
    with pytest.raises(ServiceError, match="continuation token"):
        run_query("SELECT * FROM devices", source, token, 2)


def test_a_continuation_of_another_query_is_refused() -> None:
    token = run_query("SELECT * FROM devices", source, None, 1).continuation
    with pytest.raises(ServiceError, match="belongs to another query"):
        run_query("SELECT deviceId FROM devices", source, token, 1)


@pytest.mark.parametrize("sign", ["=", "!=", "<", ">="])
@pytest.mark.parametrize("value", [UNDEFINED, {}, []])
def test_only_primitives_compare(sign: str, value: Any) -> None:
    assert compare(value, sign, value) is UNDEFINED
    assert compare(1, sign, value) is UNDEFINED


CALCULATIONS: dict[str, list[str]] = {
    "tags.floor + 1 = 2": ["n1"],
    "tags.floor+1=3": ["n2"],
    "tags.floor -1 = 0.5": ["s1"],
    "1 + 2 * 3 = 7 AND deviceId = 'n1'": ["n1"],
    "(1 + 2) * 3 = 9 AND deviceId = 'n1'": ["n1"],
    "10 - 4 - 3 = 3 AND deviceId = 'n1'": ["n1"],
    "7 % 4 = 3 AND -7 % 4 = -3 AND deviceId = 'n1'": ["n1"],
    "5 / 2 = tags.floor + 0.5": ["n2"],
    "tags.floor / 0 > 0": [],
    "NOT tags.floor / 0 > 0": [],
    "tags.site + 1 != 0": [],
    "- - tags.floor = 2": ["n2"],
    "-tags.floor < -1.5": ["n2"],
    "+tags.floor = 2": ["n2"],
    "tags.floor * 1e308 * 10 > 0": [],
    "tags.floor IN [3 - 1, 7]": ["n2"],
    "tags.nothing IN [undefined]": [],
    "DEVICEID = 'n1'": ["n1"],
    "Tags.site = 'south'": ["s1"],
    "tags.Site = 'south'": [],
    "STARTSWITH(deviceId, 'n')": ["n1", "n2"],
    "starts_with(deviceId, 's') OR ENDSWITH(deviceId, '2')": ["n2", "s1"],
    "ends_with(tags.site, 'th') AND CONTAINS(tags.site, 'ou')": ["s1"],
    "NOT STARTSWITH(tags.floor, '1')": [],
    "UPPER(tags.site) = 'NORTH' AND LOWER('N1') = deviceId": ["n1"],
    "LENGTH(deviceId) = 3 AND LENGTH(CONCAT(deviceId, '-', deviceId)) = 7": ["o'x"],
    "LENGTH(tags) > 0": [],
    "SUBSTRING(tags.site, 1, 2) = 'or' AND SUBSTRING(tags.site, 3) = 'th'": ["n1", "n2"],
    "SUBSTRING(tags.site, -1) = 'h'": [],
    "INDEX_OF(tags.site, 'u') = 2": ["s1"],
    "INDEX_OF(tags.site, 'z') = -1": ["n1", "n2", "s1"],
    "ABS(-2) = 2 AND SIGN(-3) = -1 AND deviceId = 'n1'": ["n1"],
    "POWER(2, 10) = 1024 AND SQUARE(3) = 9 AND SQRT(16) = 4 AND EXP(0) = 1 AND deviceId = 'n1'": ["n1"],
    "CEILING(tags.floor) = 2 AND FLOOR(tags.floor) = 1": ["s1"],
    "SQRT(-1) = 0 OR EXP(100000) > 0 OR POWER(0, -1) > 0": [],
    "AS_NUMBER('1.5') = tags.floor": ["s1"],
    "AS_NUMBER('x') = 1 OR AS_NUMBER('1e999') > 1 OR AS_NUMBER(true) = 1": [],
    "IS_BOOL(properties.reported.up)": ["n1", "n2"],
    "IS_NUMBER(properties.reported.up)": [],
    "IS_NUMBER(tags.floor) AND IS_STRING(tags.site) AND NOT IS_STRING(tags.floor)": ["n1", "n2", "s1"],
    "IS_NULL(tags.owner)": ["s1"],
    "IS_OBJECT(tags) AND NOT IS_OBJECT(deviceId)": ["n1", "n2", "s1"],
    "IS_ARRAY([1, 2]) AND IS_PRIMITIVE(tags.owner)": ["s1"],
    "NOT IS_DEFINED(tags)": ["o'x"],
    "IS_DEFINED(tags.floor + 1)": ["n1", "n2", "s1"],
}


@pytest.mark.parametrize(("condition", "expected"), CALCULATIONS.items())
def test_a_condition_calculates(condition: str, expected: list[str]) -> None:
    assert selected(condition) == expected


REFUSED_CONDITIONS: dict[str, str] = {
    "ROUND(tags.floor) = 1": "not understood",
    "STARTSWITH(deviceId) = true": "STARTSWITH takes 2 arguments, not 1",
    "SUBSTRING(a, 1, 2, 3) = ''": "SUBSTRING takes 2 to 3 arguments, not 4",
    "deviceId IN ('a', 'b')": "not understood",
    "deviceId LIKE 'a%'": "not understood",
    "COUNT(tags.a) = 1": "not understood",
    "a = " + "9" * 400: "beyond what a double holds",
    "a = 0x" + "F" * 400: "beyond what a double holds",
    "a = " + "-" * 200 + "1": "nests deeper",
    "a IN " + "[ " * 101 + "]" * 101: "nests deeper",
}


@pytest.mark.parametrize(
    ("condition", "refusal"), REFUSED_CONDITIONS.items(), ids=[text[:30] for text in REFUSED_CONDITIONS]
)
def test_a_condition_is_refused(condition: str, refusal: str) -> None:
    with pytest.raises(ServiceError, match=re.escape(refusal)) as refused:
        selected(condition)
    assert refused.value.fault.name == "ArgumentInvalid"


def test_the_documented_grammar_is_the_one_that_runs() -> None:
    page = (Path(__file__).parents[3] / "docs/query-grammar.md").read_text()
    assert page.split("```lark\n")[1].split("\n```")[0] == GRAMMAR.strip()


def test_conditions_on_jobs_may_name_the_collection() -> None:
    def jobs(collection: str, after: int) -> list[tuple[int, dict[str, Any]]]:
        assert collection == "devices.jobs"
        return [(number, {"jobId": f"j{number}", "status": "completed"}) for number in (1, 2) if number > after]

    page = run_query("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j2'", jobs, None, 10)
    assert (page.rows, page.item_type) == ([{"jobId": "j2", "status": "completed"}], "DeviceJob")
    assert run_query("SELECT * FROM devices.jobs WHERE jobId = 'j2'", jobs, None, 10) == page
    with pytest.raises(ServiceError, match=r"SELECT \* only"):
        run_query("SELECT COUNT() AS n FROM devices.jobs", jobs, None, 10)
