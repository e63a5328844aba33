"""The language that versions are searched in: ``accuracy > 0.97 and tag.site = 'line-3'``. Pure.

Handles: what a condition is (`condition_grammar` reads one), the facts of a version that it asks for, and judging one
by the other. Leaves to a store: finding the versions that may meet a condition without looking at each.

A condition is true or false. A comparison with what a version does not have is false, so ``not tag.site = 'x'`` holds
for a version without the tag and ``tag.site != 'x'`` does not. Where a field has several values, such as ``format``,
one that meets the comparison is enough; ``!=`` says that none is equal.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from cloud_registry.errors import UsageError
from manifests.model import ModelManifest, Verdict

CONDITION_LENGTH_MAX = 4096
# Conditions nest as the parser's stack does; no condition of a person comes near.
NESTING_MAX = 50

# Of one word, with what they hold. Any other single word is the name of a metric.
NUMBER_FIELDS = ("version", "size", "golden", "created", "latency", "memory", "opset")
TEXT_FIELDS = (
    "name", "alias", "format", "description", "label", "archived", "author", "framework", "machine", "commit",
    "parent", "dataset", "digest", "engine", "operator", "source",
)  # fmt: skip

_PLAIN_NUMBER = re.compile(r"[-+]?\d{1,30}(\.\d{1,30})?([eE][-+]?\d{1,3})?")


# --- conditions --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compared:
    """`operator` is one of ``= < <= > >=``, or ``like`` with ``*`` for anything; ``ilike`` takes no heed of capitals.

    `field` is as in `facts_of`.
    """

    field: str
    operator: str
    value: str | float


@dataclass(frozen=True, slots=True)
class Present:
    field: str


@dataclass(frozen=True, slots=True)
class Negated:
    condition: "Condition"


@dataclass(frozen=True, slots=True)
class AllOf:
    conditions: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class AnyOf:
    conditions: "tuple[Condition, ...]"


Condition = Compared | Present | Negated | AllOf | AnyOf


@lru_cache(maxsize=64)
def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        UsageError: it cannot be read; the message points at the place.
    """
    if len(text) > CONDITION_LENGTH_MAX:
        raise UsageError(f"the condition has {len(text):,} characters; at most {CONDITION_LENGTH_MAX:,} are read")
    _check_nesting(text)
    from cloud_registry.core.condition_grammar import read_condition

    return read_condition(text)


def _check_nesting(text: str) -> None:
    outside = re.sub(r"""'[^']*'|"[^"]*"|`[^`]*`""", "", text)
    depth = outside.count("(") + len(re.findall(r"\bnot\b", outside, re.IGNORECASE))
    if depth > NESTING_MAX:
        raise UsageError(f"the condition has {depth} brackets and negations; at most {NESTING_MAX} are read")


# --- facts -------------------------------------------------------------------

Facts = Mapping[str, tuple[str | float, ...]]


def facts_of(manifest: ModelManifest, asked: Collection[str] | None = None) -> Facts:
    """What a condition can ask of a version, by field; a field without values is left out, and so is one not asked."""
    lineage, verdict = manifest.lineage, manifest.verdict
    latency = verdict.latency_median_ms if verdict is not None else None
    found: dict[str, tuple[str | float | None, ...]] = {
        "name": (manifest.name,),
        "version": (float(manifest.version),),
        "alias": manifest.aliases,
        "format": tuple(artifact.format for artifact in manifest.artifacts) or (("python",) if manifest.source else ()),
        "size": (float(_size_bytes(manifest)),),
        "golden": (float(manifest.golden.samples) if manifest.golden else None,),
        "created": (_created(manifest.created_at),),
        "description": (manifest.description,),
        "label": manifest.labels,
        "archived": ("true" if manifest.archived else "false",),
        "digest": tuple(sorted(manifest.digests)),
        "source": tuple(file.path for file in manifest.source),
        "latency": (latency,) if latency is not None else tuple(a.latency_median_ms for a in manifest.artifacts),
        **{f"tag.{key}": (value,) for key, value in manifest.tags.items()},
        **{f"property.{key}": (value,) for key, value in manifest.properties.items()},
        **{f"metric.{key}": (value,) for key, value in manifest.metrics.items()},
    }
    if lineage is not None:
        found |= {
            "author": (lineage.author,),
            "framework": (lineage.framework,),
            "machine": (lineage.machine,),
            "commit": (lineage.git_commit,),
            "parent": (lineage.parent,),
            "dataset": tuple(word for data in lineage.datasets for word in (data.name, data.digest)),
        }
        found |= {f"metric.{key}": (value,) for key, value in lineage.metrics.items() if key not in manifest.metrics}
    found |= _facts_of_verdicts(manifest.verdicts)
    # A tag or a property may be empty and is still there.
    said = {
        field: tuple(value for value in values if value is not None and (value != "" or "." in field))
        for field, values in found.items()
        if asked is None or field in asked
    }
    return {field: values for field, values in said.items() if values}


def _facts_of_verdicts(verdicts: Sequence[Verdict]) -> dict[str, tuple[str | float | None, ...]]:
    """What was seen of any of a version's files."""
    engines = [(" ".join(filter(None, (each.engine, each.engine_version))), each.engine) for each in verdicts]
    peaks = [each.memory_peak_bytes for each in verdicts]
    return {
        "engine": tuple(word for pair in engines for word in pair),
        "opset": tuple(float(each.opset) for each in verdicts if each.opset is not None),
        "operator": tuple(dict.fromkeys(name for each in verdicts for name in each.operators)),
        "memory": tuple(float(peak) for peak in peaks if peak is not None),
    }


def _size_bytes(manifest: ModelManifest) -> int:
    return sum(each.size_bytes for each in manifest.artifacts) + sum(each.size_bytes for each in manifest.source)


def number_in(value: str | float) -> float | None:
    """The number that a value is, or that its text spells; None where it is another text."""
    if isinstance(value, str):
        return float(value) if _PLAIN_NUMBER.fullmatch(value) else None
    return float(value)


def _created(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


# --- judging -----------------------------------------------------------------


@lru_cache(maxsize=64)
def fields_of(condition: Condition) -> frozenset[str]:
    """The fields that a condition asks for."""
    match condition:
        case AllOf(conditions) | AnyOf(conditions):
            return frozenset().union(*map(fields_of, conditions))
        case Negated(inner):
            return fields_of(inner)
        case Present(field) | Compared(field):
            return frozenset({field})


def meets(facts: Facts, condition: Condition) -> bool:
    """Whether a version with these facts meets the condition."""
    match condition:
        case AllOf(conditions):
            return all(meets(facts, each) for each in conditions)
        case AnyOf(conditions):
            return any(meets(facts, each) for each in conditions)
        case Negated(inner):
            return not meets(facts, inner)
        case Present(field):
            return field in facts
        case Compared(field, operator, wanted):
            return any(_is_met(value, operator, wanted) for value in facts.get(field, ()))


def _is_met(value: str | float, operator: str, wanted: str | float) -> bool:
    if isinstance(wanted, str):
        return isinstance(value, str) and _in_order(value, operator, wanted)
    number = number_in(value)
    return number is not None and _in_order(number, operator, wanted)


def _in_order(value: Any, operator: str, wanted: Any) -> bool:
    if operator == "like":
        return pattern_matches(value, wanted)
    if operator == "ilike":
        return pattern_matches(value.casefold(), wanted.casefold())
    if operator == "=":
        return bool(value == wanted)
    if operator in ("<", "<="):
        return bool(value < wanted) or (operator == "<=" and bool(value == wanted))
    return bool(value > wanted) or (operator == ">=" and bool(value == wanted))


def pattern_matches(text: str, pattern: str) -> bool:
    """Whether a text is the pattern's, in which ``*`` stands for anything, nothing included."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first):
        return False
    position = len(first)
    for part in rest[:-1]:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - position >= len(rest[-1]) and text.endswith(rest[-1])
