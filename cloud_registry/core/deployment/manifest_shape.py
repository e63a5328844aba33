"""The shapes in which a deployment comes, and what is in it. Pure.

Three are in use: ``{"modulesContent": …}`` as tools write it, the same under ``content`` as a hub exports a
configuration, and ``moduleContent`` as older tools spelled it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cloud_registry.core.deployment.findings import Problem
from cloud_registry.core.deployment.json_text import Path
from manifests.deployment import DESIRED

EDGE_AGENT, EDGE_HUB = "$edgeAgent", "$edgeHub"
Kind = Literal["base", "layered"]


class ShapeError(ValueError):
    """The document is no deployment manifest."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.place}: {problem.reason}")
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment manifest: what each module's desired properties are to be.

    `modules` maps a module to its settings, whose names are ``properties.desired`` or ``properties.desired.<path>``.
    """

    modules: Mapping[str, Any]
    path: Path
    # The hub configuration around it, with its condition and priority; empty where there is none.
    configuration: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Problem, ...] = ()

    @property
    def kind(self) -> Kind:
        """A base sets the whole of edgeAgent; a layer only sets parts, and lies upon a base."""
        agent = self.modules.get(EDGE_AGENT)
        if isinstance(agent, Mapping):
            return "base" if DESIRED in agent else "layered"
        others = [name for settings in self.modules.values() if isinstance(settings, Mapping) for name in settings]
        return "layered" if others and DESIRED not in others else "base"

    def section(self, module: str) -> Any:
        """The whole desired section of a module, None where only parts of it are set."""
        settings = self.modules.get(module)
        return settings.get(DESIRED) if isinstance(settings, Mapping) else None

    def settings(self, module: str) -> Iterator[tuple[Path, tuple[str, ...], Any]]:
        """Each setting of a module: where it stands in the document, its path in the twin, and the value."""
        settings = self.modules.get(module)
        if not isinstance(settings, Mapping):
            return
        for name, value in settings.items():
            if name == DESIRED:
                yield (*self.path, module, name), (), value
            elif name.startswith(DESIRED + "."):
                yield (*self.path, module, name), tuple(name[len(DESIRED) + 1 :].split(".")), value

    def agent_modules(self) -> Iterator[tuple[Path, str, Any]]:
        """Every module that edgeAgent is told to run, system modules included: where it stands, its name, its entry."""
        for place, path, value in self.settings(EDGE_AGENT):
            if not path and isinstance(value, Mapping):
                for group in ("systemModules", "modules"):
                    entries = value.get(group)
                    if isinstance(entries, Mapping):
                        yield from (((*place, group, name), name, entry) for name, entry in entries.items())
            elif len(path) == 2 and path[0] in ("modules", "systemModules"):
                yield place, path[1], value

    @property
    def module_count(self) -> int:
        return sum("systemModules" not in place[-2:] for place, _, _ in self.agent_modules())

    def plain(self) -> dict[str, Any]:
        """The shape that every tool takes."""
        return {"modulesContent": dict(self.modules)}


def read_deployment(document: Any) -> Deployment:
    """Find the deployment in a document; raises ShapeError with what is there instead."""
    if not isinstance(document, dict):
        raise ShapeError(Problem((), "the manifest is not a JSON object", 'Write {"modulesContent": {…}}.', 400))
    notes: list[Problem] = []
    around: dict[str, Any] = document
    path: Path = ()
    inner = document.get("content")
    if "modulesContent" not in document and "moduleContent" not in document and isinstance(inner, dict):
        around, path = inner, ("content",)
    name = "modulesContent" if "modulesContent" in around else "moduleContent"
    if name not in around:
        raise ShapeError(_nothing_there(document, around, path))
    modules = around[name]
    place = (*path, name)
    if not isinstance(modules, dict) or not modules:
        raise ShapeError(Problem(place, f"{name} names no module", "It maps a module to its desired properties.", 400))
    if all(key == DESIRED or key.startswith(DESIRED + ".") for key in modules):
        raise ShapeError(
            Problem(place, "this configures the twins of modules, not an edge device", "Use modulesContent.", 400)
        )
    if name == "moduleContent":
        notes.append(Problem(place, "moduleContent is the old spelling", "Write modulesContent."))
    has_target = bool(path) or any(key in document for key in ("targetCondition", "priority"))
    return Deployment(modules, place, document if has_target else {}, tuple(notes))


def read_twin_patch(document: Any) -> Any | None:
    """The desired section of a patch of a twin, ``{"properties": {"desired": …}}``; None where the document is none."""
    if not isinstance(document, dict) or not {"content", "modulesContent", "moduleContent"}.isdisjoint(document):
        return None
    properties = document.get("properties")
    return properties.get("desired") if isinstance(properties, dict) else None


def _nothing_there(document: Mapping[str, Any], around: Mapping[str, Any], path: Path) -> Problem:
    if "deviceContent" in around:
        return Problem(path, "this configures device twins, not an edge device", "Use modulesContent.", 400)
    if EDGE_AGENT in document or EDGE_HUB in document:
        return Problem((), "the modules stand at the top", 'Put them under "modulesContent".', 400)
    return Problem(
        path, "there is no modulesContent", 'Write {"modulesContent": {"$edgeAgent": …, "$edgeHub": …}}.', 400
    )
