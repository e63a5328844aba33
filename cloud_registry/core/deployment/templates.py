"""Deployment templates: ``deployment.template.json`` with placeholders, as iotedgedev and VS Code write it. Pure.

A template has the content of a manifest, ``${NAME}`` and ``$NAME`` in its strings, and `createOptions` as an object.
``${MODULES.<name>}``, ``${MODULES.<name>.<platform>}``, ``….debug`` and ``${MODULEDIR<path>}`` stand for images.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.deployment.container_options import read_container_options
from cloud_registry.core.deployment.json_text import JsonText, Path, decoded, read_json
from cloud_registry.core.deployment.manifest_shape import EDGE_HUB, read_deployment
from manifests.deployment import split_create_options

# The version of a template goes with that of edgeHub: 4.0 is for 1.2, which added the MQTT broker.
SCHEMA_TEMPLATES = {"1.0": "2.0.0", "1.1": "3.0.0", "1.2": "4.0.0"}
SCHEMA_TEMPLATE_OF_OTHERS = "3.0.0"
# What iotedgedev knows by itself, at the versions that we write.
BUILT_IN = {
    "EDGE_RUNTIME_VERSION": "1.5",
    "EDGEAGENT_SCHEMA_VERSION": "1.1",
    "EDGEHUB_SCHEMA_VERSION": "1.1",
}
STAND_IN = "stand-in"

_PLACEHOLDER = re.compile(r"\$\{(?P<braced>[^{}]*)\}|\$(?P<bare>[A-Za-z_][A-Za-z0-9_]*)")
# A string of JSON, or a placeholder outside one.
_OUTSIDE = re.compile(r'"(?:\\.|[^"\\])*"|\$\{(?P<name>[A-Za-z_]\w*)\}', re.DOTALL)
# Words of routes and manifests that begin with a dollar and are no placeholder.
_RESERVED = {"upstream", "edgeAgent", "edgeHub", "schema", "body", "iothub", "twin"}
# How people spell variables that stand without braces; what is spelled otherwise may be a word of a route.
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{2,}\w*")
_IMAGE_VARIABLE = re.compile(r"\s*\$[A-Z][A-Z0-9_]{2,}\w*")
_MODULE = re.compile(r"^MODULES\.(?P<name>[^.{}]+)(?:\.(?P<platform>[^.{}]+?))??(?P<debug>\.debug)?$")
_MODULE_FOLDER = re.compile(r"^MODULEDIR<(?P<folder>[^<>]+)>(?:\.(?P<platform>[^.{}]+?))??(?P<debug>\.debug)?$")


@dataclass(frozen=True, slots=True)
class ModuleImage:
    """What a placeholder for a module's image asks for. `folder` is None for one below ``modules/``."""

    name: str
    platform: str | None = None
    is_debug: bool = False
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """A template with its placeholders filled in.

    `unfilled` names the placeholders without a value, and `unknown` the strings that hold one: what stands there cannot
    be judged.
    """

    value: Any
    unfilled: tuple[str, ...] = ()
    unknown: frozenset[Path] = field(default_factory=frozenset)


def is_template(content: JsonText, name: str) -> bool:
    """Whether a document is a template: it says so, is named as one, or has placeholders in braces or before an image.

    No image of a manifest begins with a variable, which the runtime would refuse.
    """
    value = content.value
    if isinstance(value, dict) and ("$schema-template" in value or "$schema-version" in value):
        return True
    return ".template." in name.lower() or _has_placeholder(value)


def _has_placeholder(value: Any) -> bool:
    if isinstance(value, str):
        return re.search(r"\$\{[^{}]+\}", value) is not None
    if isinstance(value, dict):
        image = value.get("image")
        if isinstance(image, str) and _IMAGE_VARIABLE.match(image):
            return True
        return any(_has_placeholder(item) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(map(_has_placeholder, value))


def left_variables(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every string that is nothing but a variable, such as ``$CONTAINER_REGISTRY_PASSWORD``: where, and which."""
    if isinstance(value, str):
        if _IMAGE_VARIABLE.fullmatch(value):
            yield path, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from left_variables(inner, (*path, name))


def module_image(name: str) -> ModuleImage | None:
    """Read the inside of a placeholder for a module's image; None for any other."""
    match = _MODULE.match(name)
    if match is not None:
        return ModuleImage(match["name"], match["platform"], match["debug"] is not None)
    match = _MODULE_FOLDER.match(name)
    if match is None:
        return None
    # Solutions that were made on Windows have backslashes.
    folder = match["folder"].strip().replace("\\", "/")
    return ModuleImage(folder.rstrip("/").rpartition("/")[2], match["platform"], match["debug"] is not None, folder)


def placeholder_names(text: str) -> set[str]:
    """The inside of every placeholder in a text, in braces or without."""
    return {match["bare"] if match["braced"] is None else match["braced"] for match in _PLACEHOLDER.finditer(text)}


def fill_numbers(text: str, values: Mapping[str, str]) -> str:
    """Replace placeholders outside quotes, such as ``"priority": ${P}``, which make the text JSON only afterwards."""

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        return values[name] if name is not None and name in values else match[0]

    return _OUTSIDE.sub(replaced, text)


def read_template(content: bytes | str, values: Mapping[str, str]) -> JsonText:
    """Read a template's text; raises JsonTextError where even known values do not make it JSON."""
    text = decoded(content) if isinstance(content, bytes) else content
    return read_json(fill_numbers(text, values))


def fill(value: Any, values: Mapping[str, str]) -> Filled:
    """Fill in the placeholders of names and strings. `values` has names, and the insides of image placeholders.

    A value goes in as text: quotes within it cannot end the string. What has no value keeps a stand-in, so that the
    rest can be judged.
    """
    work = _Filling({**BUILT_IN, **values})
    filled = work.fill(value, ())
    return Filled(filled, tuple(sorted(work.unfilled)), frozenset(work.unknown))


class _Filling:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.unfilled: set[str] = set()
        self.unknown: set[Path] = set()

    def fill(self, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            members = {}
            for name, inner in value.items():
                written = self._text(name, None)
                members[written] = self.fill(inner, (*path, written))
            return members
        if isinstance(value, list):
            return [self.fill(inner, (*path, number)) for number, inner in enumerate(value)]
        return self._text(value, path) if isinstance(value, str) and "$" in value else value

    def _text(self, text: str, path: Path | None) -> str:
        def replaced(match: re.Match[str]) -> str:
            braced, bare = match["braced"], match["bare"]
            name = bare if braced is None else braced
            if name in self._values and bare not in _RESERVED:
                return self._values[name]
            if braced is None and not _VARIABLE.fullmatch(name):
                return match[0]
            self.unfilled.add(name)
            if path is not None:
                self.unknown.add(path)
            return _stand_in(name)

        return _PLACEHOLDER.sub(replaced, text) if "$" in text else text


def _stand_in(name: str) -> str:
    """Text that any place for a name takes; names differ, so that two of them stay two."""
    told = f"{STAND_IN}-{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}"
    return f"{told.lower()}:0" if module_image(name) is not None else told


def with_text_options(document: Any) -> Any:
    """The document with every `createOptions` that is an object written as text, in pieces: what tools deploy."""
    if isinstance(document, list):
        return [with_text_options(inner) for inner in document]
    if not isinstance(document, dict):
        return document
    return {name: _with_options(inner) if name == "settings" else with_text_options(inner)
            for name, inner in document.items()}  # fmt: skip


def _with_options(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    written: dict[str, Any] = {}
    for name, value in settings.items():
        is_options = name.lower() == "createoptions" and isinstance(value, dict)
        written.update(split_create_options(value) if is_options else {name: value})
    return written


def as_template(document: Mapping[str, Any], images: Mapping[str, str]) -> dict[str, Any]:
    """A final manifest as a template: options as objects, and the image of each named module as its placeholder.

    `images` maps a module to the inside of its placeholder, such as ``MODULES.scorer``.
    """
    deployment = read_deployment(document)
    modules = json.loads(json.dumps(dict(deployment.modules)))
    for place, name, _ in read_deployment({"modulesContent": modules}).agent_modules():
        entry = modules
        for part in place[1:]:
            entry = entry[part]
        settings = entry.get("settings") if isinstance(entry, dict) else None
        if isinstance(settings, dict):
            entry["settings"] = _with_object_options(settings, images.get(name))
    hub = deployment.section(EDGE_HUB)
    version = str(hub.get("schemaVersion", "")) if isinstance(hub, dict) else ""
    return {
        "$schema-template": SCHEMA_TEMPLATES.get(version, SCHEMA_TEMPLATE_OF_OTHERS),
        "modulesContent": modules,
    }


def _with_object_options(settings: Mapping[str, Any], placeholder: str | None) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if "createoptions" not in name.lower()}
    if placeholder is not None:
        kept["image"] = f"${{{placeholder}}}"
    return {**kept, "createOptions": dict(read_container_options(settings).options)}


def final_document(filled: Any) -> dict[str, Any]:
    """The manifest that a filled template stands for: options as text, and no key that deployment tools refuse."""
    written = with_text_options(filled)
    deployment = read_deployment(written)
    if not deployment.configuration:
        return deployment.plain()
    document = {key: value for key, value in written.items() if not key.startswith(("$", "_"))}
    if "content" not in document:
        return {**{key: value for key, value in document.items() if key not in ("modulesContent", "moduleContent")},
                "content": deployment.plain()}  # fmt: skip
    return {**document, "content": deployment.plain()}
