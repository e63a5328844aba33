"""Queries against a naive reading of the same expressions, and against text that is none."""

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.iothub.core.query import run_query
from simulators.iothub.core.query.grammar import parse_query, parse_target
from simulators.iothub.errors import ServiceError

ABSENT = object()
Tree = tuple[Any, ...]
NAMES = ("a", "b", "c")
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(("", "x", "y'", 'z"\\')))
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), SCALARS, max_size=3), max_size=6)

VALUES = st.one_of(
    SCALARS.map(lambda value: ("constant", value)),
    st.sampled_from(NAMES).map(lambda name: ("path", name)),
)
SUMS = st.recursive(
    VALUES,
    lambda inner: st.tuples(st.sampled_from(("+", "-", "*")), inner, inner),
    max_leaves=4,
)
COMPARISONS = st.one_of(
    st.tuples(st.sampled_from(("=", "!=", "<", "<=", ">", ">=")), SUMS, SUMS),
    st.tuples(st.just("in"), SUMS, st.lists(SCALARS, max_size=3)),
    st.tuples(st.just("nin"), SUMS, st.lists(SCALARS, max_size=3)),
    st.tuples(st.just("is_defined"), st.sampled_from(NAMES)),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(st.tuples(st.just("not"), inner), st.tuples(st.sampled_from(("and", "or")), inner, inner)),
    max_leaves=6,
)


def literal(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "FALSE", None: "null"}[value]
    return str(value) if value >= 0 else f"({value})"


def written(tree: Tree) -> str:
    match tree:
        case ("constant", value):
            return literal(value)
        case ("path", name):
            return f"tags.{name}"
        case ("is_defined", name):
            return f"IS_DEFINED(tags.{name})"
        case ("not", inner):
            return f"NOT ({written(inner)})"
        case (("in" | "nin") as word, operand, values):
            return f"{written(operand)} {word} [{', '.join(map(literal, values))}]"
        case (sign, left, right):
            return f"({written(left)} {sign} {written(right)})"
    raise AssertionError(tree)


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int) else type(value).__name__


def meant(tree: Tree, row: dict[str, Any]) -> Any:
    match tree:
        case ("constant", value):
            return value
        case ("path", name):
            return row.get(name, ABSENT)
        case ("is_defined", name):
            return name in row
        case ("not", inner):
            value = meant(inner, row)
            return ABSENT if value is ABSENT else not value
        case ("and" | "or") as word, left, right:
            values = [meant(left, row), meant(right, row)]
            decisive = word == "or"
            if decisive in values:
                return decisive
            return ABSENT if ABSENT in values else not decisive
        case ("in" | "nin") as word, operand, values:
            value = meant(operand, row)
            if value is ABSENT:
                return ABSENT
            return any(kind(value) == kind(other) and value == other for other in values) == (word == "in")
        case sign, left, right:
            return combined(sign, meant(left, row), meant(right, row))
    raise AssertionError(tree)


def combined(sign: str, left: Any, right: Any) -> Any:
    if left is ABSENT or right is ABSENT:
        return ABSENT
    is_alike = kind(left) == kind(right)
    if sign in ("+", "-", "*"):
        if not is_alike or kind(left) != "number":
            return ABSENT
        return {"+": left + right, "-": left - right, "*": left * right}[sign]
    if sign in ("=", "!="):
        return (is_alike and left == right) == (sign == "=")
    if not is_alike or kind(left) not in ("number", "str"):
        return ABSENT
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]


@settings(max_examples=300, deadline=None)
@given(CONDITIONS, ROWS)
def test_a_condition_selects_what_it_means(tree: Tree, rows: list[dict[str, Any]]) -> None:
    documents = [(number, {"n": number, "tags": row}) for number, row in enumerate(rows, start=1)]
    page = run_query(
        f"SELECT n FROM devices WHERE {written(tree)}",
        lambda _collection, after: [entry for entry in documents if entry[0] > after],
        None,
        100,
    )
    assert [row["n"] for row in page.rows] == [number for number, row in enumerate(rows, 1) if meant(tree, row) is True]


@given(ROWS, st.integers(1, 4), st.one_of(st.none(), st.integers(0, 7)))
def test_pages_of_any_size_hold_the_same_rows(rows: list[dict[str, Any]], size: int, top: int | None) -> None:
    documents = [(number, {"n": number}) for number in range(1, len(rows) + 1)]
    text = f"SELECT {f'TOP {top}' if top is not None else ''} * FROM devices"
    seen: list[Any] = []
    continuation = None
    for _ in range(20):
        page = run_query(text, lambda _c, after: [entry for entry in documents if entry[0] > after], continuation, size)
        assert len(page.rows) <= size
        seen += page.rows
        continuation = page.continuation
        if continuation is None:
            break
    assert seen == [document for _, document in documents][:top]


WORDS = st.sampled_from(
    [
        *(
            "SELECT",
            "TOP 1",
            "*",
            "FROM",
            "devices",
            "devices.jobs",
            "WHERE",
            "GROUP BY",
            "AS",
            "AND",
            "OR",
            "NOT",
            "IN",
        ),
        *("(", ")", "[", "]", "[[x-y]]", ",", ".", "=", "!=", "<>", "+", "-", "/", "%", "'a'", '"', "'", "\\", "1e999"),
        *(
            "0x",
            "COUNT(",
            "STARTSWITH(",
            "IS_DEFINED(",
            "tags.a",
            "$version",
            "null",
            "undefined",
            "é",
            "\x00",
            "\ud800",
        ),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60), st.lists(WORDS, max_size=60).map(" ".join), st.lists(WORDS, max_size=40).map("".join)
    )
)
def test_any_text_is_a_query_or_refused(text: str) -> None:
    for read in (parse_query, parse_target):
        # Whatever else is raised fails the test.
        with contextlib.suppress(ServiceError):
            read(text)


@given(st.text(alphabet="(-[+NOT ", max_size=3000))
@settings(max_examples=50, deadline=None)
def test_nesting_is_refused_before_it_hurts(text: str) -> None:
    try:
        target = parse_target(f"{text}1")
    except ServiceError:
        return
    target.holds({})
