"""What the public JSON schemas say of a manifest. Pure; the schemas are given.

A part is judged by the schema of its own ``schemaVersion``, as ``az iot edge`` does it, and the whole by the combined
schema, as iotedgedev does it. A layer is outside both.
"""

import re
from collections.abc import Mapping
from typing import Any

import jsonschema

from cloud_registry.core.deployment.findings import Problem, Verdict
from cloud_registry.core.deployment.json_text import Path
from cloud_registry.core.deployment.manifest_shape import EDGE_AGENT, EDGE_HUB, Deployment
from manifests.deployment import DESIRED

COMBINED = "azure-iot-edge-deployment-2.0.json"
# Newest first. https://github.com/SchemaStore/schemastore has no schema of edgeHub 1.3.
PARTS = {
    EDGE_AGENT: ("azure-iot-edgeagent-deployment-1.1.json", "azure-iot-edgeagent-deployment-1.0.json"),
    EDGE_HUB: (
        "azure-iot-edgehub-deployment-1.2.json",
        "azure-iot-edgehub-deployment-1.1.json",
        "azure-iot-edgehub-deployment-1.0.json",
    ),
}
# By which a part is read that names no version at all.
_SCHEMA_WITHOUT_VERSION = {EDGE_AGENT: PARTS[EDGE_AGENT][0], EDGE_HUB: PARTS[EDGE_HUB][1]}
PROBLEMS_MAX = 200

Schemas = Mapping[str, Mapping[str, Any]]


def judge_parts(deployment: Deployment, schemas: Schemas) -> Verdict:
    """The verdict on $edgeAgent and $edgeHub; without a say on a layer."""
    parts = [name for name in PARTS if name in deployment.modules]
    if deployment.kind == "layered" or not parts:
        return Verdict(None)
    problems: list[Problem] = []
    for part in parts:
        name = _schema_for(part, deployment.section(part), schemas)
        if name is None:
            version = deployment.section(part)["schemaVersion"]
            place = (*deployment.path, part, DESIRED, "schemaVersion")
            problems.append(Problem(place, f"there is no public schema of {part} {version}", 'Write "1.1".'))
        else:
            problems += _problems({part: deployment.modules[part]}, schemas[name], deployment.path)
    return Verdict.of(problems[:PROBLEMS_MAX])


def judge_combined(deployment: Deployment, schemas: Schemas) -> Verdict:
    """The verdict on the whole by the combined schema, which looks at no version."""
    if deployment.kind == "layered":
        return Verdict(None)
    found = _problems(deployment.plain(), schemas[COMBINED], deployment.path[:-1])
    return Verdict.of(found[:PROBLEMS_MAX])


def _schema_for(part: str, section: Any, schemas: Schemas) -> str | None:
    """The schema whose own pattern takes the version. The patterns are loose: 1.1 takes ``91x15`` too."""
    version = section.get("schemaVersion") if isinstance(section, Mapping) else None
    if not isinstance(version, str):
        return _SCHEMA_WITHOUT_VERSION[part]
    exact = [name for name in PARTS[part] if name.endswith(f"-{version}.json")]
    loose = [name for name in PARTS[part] if re.search(_pattern(schemas[name], part), version)]
    return next(iter(exact + loose), None)


def _pattern(schema: Mapping[str, Any], part: str) -> str:
    section = schema["properties"][part]["properties"][DESIRED]
    return str(section["properties"]["schemaVersion"]["pattern"])


def _problems(instance: Any, schema: Mapping[str, Any], place: Path) -> list[Problem]:
    validator = jsonschema.validators.validator_for(schema)(schema)
    errors = sorted(validator.iter_errors(instance), key=lambda error: [str(part) for part in error.absolute_path])
    return [problem for error in errors for problem in _told(_deepest(error), place)]


def _deepest(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Of alternatives, the one that was meant: the branch that got furthest."""
    while error.context:
        error = max(error.context, key=lambda inner: (len(inner.absolute_path), inner.validator != "type"))
    return error


def _told(error: jsonschema.ValidationError, place: Path) -> list[Problem]:
    path = (*place, *error.absolute_path)
    value = error.validator_value
    if error.validator == "required":
        missing = re.match(r"'(.*)' is a required property", error.message)
        name = missing[1] if missing else "a property"
        return [Problem(path, f"{name!r} is missing", _MENDS_OF_MISSING.get(name, f"Add {name!r}."))]
    if error.validator == "additionalProperties":
        return [
            Problem((*path, name), f"{name!r} is not allowed here", _mend_of_unknown(name, path))
            for name in _unexpected(error)
        ]
    if error.validator == "enum":
        return [Problem(path, f"{error.instance!r} is none of the words for this", f"Write {_listed(value)}.")]
    if error.validator == "type":
        kind = value if isinstance(value, str) else _listed(value)
        mend = "Write the options as one string of JSON." if _is_options(path) else f"Write it as {kind}."
        return [Problem(path, f"{_short(error.instance)} is not of type {kind}", mend)]
    if error.validator == "pattern":
        return [Problem(path, f"{_short(error.instance)} does not match {value!r}", "Change the text.")]
    return [Problem(path, error.message[:300], "See the schema of this part.")]


def _unexpected(error: jsonschema.ValidationError) -> list[str]:
    schema = error.schema if isinstance(error.schema, Mapping) else {}
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    names = error.instance if isinstance(error.instance, Mapping) else {}
    return [name for name in names if name not in known and not any(re.search(each, name) for each in patterns)]


def _mend_of_unknown(name: str, path: Path) -> str:
    if name == "imagePullPolicy" and path and path[-1] == "settings":
        return "Put it on the module; in settings it does nothing."
    if path and path[-1] in ("env", "modules", "routes", "registryCredentials"):
        return "Use a name without '.', '$', '#' or blanks."
    return "Remove it."


_MENDS_OF_MISSING = {
    "restartPolicy": 'Add "restartPolicy": "always".',
    "status": 'Add "status": "running".',
    "type": 'Add "type": "docker".',
    "edgeHub": "Add systemModules.edgeHub with its image.",
    "edgeAgent": "Add systemModules.edgeAgent with its image.",
    "modules": 'Add "modules": {}.',
    "routes": 'Add "routes": {}.',
    "value": 'Write {"value": "…"}.',
    "runtime": 'Add "runtime": {"type": "docker", "settings": {}}.',
    "schemaVersion": 'Add "schemaVersion": "1.1".',
}


def _is_options(path: Path) -> bool:
    return bool(path) and str(path[-1]).lower().startswith("createoptions")


def _listed(words: Any) -> str:
    return " or ".join(str(word) for word in words)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
