"""The two validators over one document: what the schemas say, and what device and hub would do. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.deployment import agent_rules, hub_rules, schema_rules, templates, twin_rules
from cloud_registry.core.deployment.findings import Findings, Problem, Verdict
from cloud_registry.core.deployment.json_text import JsonText, JsonTextError, Path
from cloud_registry.core.deployment.manifest_shape import (
    EDGE_AGENT,
    EDGE_HUB,
    Deployment,
    ShapeError,
    read_deployment,
    read_twin_patch,
)
from cloud_registry.core.deployment.twin_rules import TwinSize

# The schemas and what they do not know: a text that is no JSON has no path in it.
_UNREADABLE: Path = ()
PROBLEMS_MAX = schema_rules.PROBLEMS_MAX


@dataclass(frozen=True, slots=True)
class Report:
    """What both validators say of a document. `kind` is base, layered, twin (a patch of one) or unreadable."""

    schema: Verdict
    runtime: Verdict
    combined: Verdict = field(default_factory=lambda: Verdict(None))
    kind: str = "unreadable"
    is_template: bool = False
    unfilled: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    twins: tuple[TwinSize, ...] = ()
    line: Callable[[Path], int] = field(default=lambda _path: 1)

    @property
    def is_ok(self) -> bool:
        """Whether neither validator refuses it."""
        return self.schema.is_ok is not False and self.runtime.is_ok is not False

    def to_wire(self) -> dict[str, Any]:
        return {
            "ok": self.is_ok,
            "kind": self.kind,
            "template": self.is_template,
            "schema": self.schema.to_wire(self.line),
            "runtime": self.runtime.to_wire(self.line),
            "combined": self.combined.to_wire(self.line),
            "warnings": [warning.to_wire(self.line) for warning in self.warnings],
            "unfilled": list(self.unfilled),
            "twins": [size.to_wire() for size in self.twins],
        }


def validate(
    text: bytes | str, schemas: schema_rules.Schemas, *, name: str = "", values: Mapping[str, str] | None = None
) -> Report:
    """Judge a manifest or a template. `name` is its file's, `values` are for its placeholders."""
    try:
        content = templates.read_template(text, values or {})
    except JsonTextError as err:
        problem = Problem(_UNREADABLE, f"not JSON: {err.reason} (column {err.column})", err.mend, 400)
        at = err.line
        return Report(Verdict(None), Verdict.of([problem]), line=lambda _path: at)
    return validate_content(content, schemas, is_template=templates.is_template(content, name), values=values or {})


def validate_content(
    content: JsonText, schemas: schema_rules.Schemas, *, is_template: bool, values: Mapping[str, str]
) -> Report:
    """Judge a document that was read."""
    filled = templates.Filled(content.value)
    if is_template:
        expanded = templates.fill(content.value, values)
        filled = templates.Filled(templates.with_text_options(expanded.value), expanded.unfilled, expanded.unknown)
    patch = read_twin_patch(filled.value)
    if patch is not None:
        return _judged_patch(content, patch, filled, is_template=is_template)
    try:
        deployment = read_deployment(filled.value)
    except ShapeError as err:
        return Report(
            Verdict(None),
            Verdict.of([err.problem]),
            is_template=is_template,
            unfilled=filled.unfilled,
            line=content.line,
        )
    found = Findings(warnings=list(deployment.notes))
    check_runtime(deployment, found)
    if not is_template:
        for place, text in templates.left_variables(deployment.modules, deployment.path):
            found.warn(place, f"{text!r} reads as a variable that nobody filled in", "Fill it in with manifest render.")
    found.warnings += [Problem(path, f"{path[-1]!r} is there twice; the last one counts") for path in content.repeated]
    return Report(
        schema=_known(schema_rules.judge_parts(deployment, schemas), filled.unknown),
        runtime=_known(Verdict.of(found.problems[:PROBLEMS_MAX]), filled.unknown),
        combined=_known(schema_rules.judge_combined(deployment, schemas), filled.unknown),
        kind=deployment.kind,
        is_template=is_template,
        unfilled=filled.unfilled,
        warnings=_known(Verdict.of(found.warnings[:PROBLEMS_MAX]), filled.unknown).problems,
        twins=tuple(twin_rules.twin_sizes(deployment)),
        line=content.line,
    )


def _judged_patch(content: JsonText, desired: Any, filled: templates.Filled, *, is_template: bool) -> Report:
    """What the hub says of a patch of one module's twin; the schemas know of none."""
    found = Findings()
    size = twin_rules.check_patch(desired, found)
    return Report(
        schema=Verdict(None),
        runtime=_known(Verdict.of(found.problems[:PROBLEMS_MAX]), filled.unknown),
        kind="twin",
        is_template=is_template,
        unfilled=filled.unfilled,
        warnings=tuple(found.warnings[:PROBLEMS_MAX]),
        twins=() if size is None else (size,),
        line=content.line,
    )


def check_runtime(deployment: Deployment, found: Findings) -> None:
    """What edgeAgent, edgeHub and the hub itself would refuse."""
    twin_rules.check_twins(deployment, found)
    running = {name for _, name, _ in deployment.agent_modules()}
    is_base = deployment.kind == "base"
    for place, path, section in deployment.settings(EDGE_AGENT):
        if not path and is_base:
            agent_rules.check_agent(section, place, found)
    for place, path, section in deployment.settings(EDGE_HUB):
        if not path:
            # What a layer's route names may run in the base.
            hub_rules.check_hub(section, place, running if is_base else (), found)
    for place, path, value in deployment.settings(EDGE_AGENT):
        if len(path) == 2 and path[0] == "modules" and value is not None:
            agent_rules.check_module(value, path[1], place, found)
        elif len(path) == 4 and path[:3] == ("runtime", "settings", "registryCredentials") and value is not None:
            agent_rules.check_credentials(value, place, found)
    for place, path, value in deployment.settings(EDGE_HUB):
        if len(path) == 2 and path[0] == "routes" and value is not None:
            hub_rules.check_route(value, place, (), found)


def _known(verdict: Verdict, unknown: frozenset[Path]) -> Verdict:
    """The verdict without what is said of a string whose placeholder has no value."""
    problems = tuple(problem for problem in verdict.problems if problem.path not in unknown)
    return Verdict(None if verdict.is_ok is None else not problems, problems)
