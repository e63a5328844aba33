"""The API's description by OpenAPI 3.1, from the table of verbs and their types."""

import collections.abc
from pathlib import Path
from typing import Any

import msgspec

from cloud_registry.core.wire_problems import Problem
from cloud_registry.service.verbs import GROUPS, VERBS, Verb
from cloud_registry.service.wire_form import Parameter, Shape, shape_of
from cloud_registry.web.upload_routes import API_ROOT, UploadBegun
from manifests.identity import ModelReference

_REFERENCE = "#/components/schemas/{name}"
# Paths that differ in the name of a parameter only are one path to OpenAPI, so that they share one name.
_PATH_NAMES = {"text": "reference"}
_FILE = {
    "description": "A file that was uploaded before, or a folder of such files.",
    "oneOf": [
        {
            "type": "object",
            "properties": {"upload": {"type": "string"}, "name": {"type": "string"}},
            "required": ["upload", "name"],
        },
        {
            "type": "object",
            "properties": {"folder": {"type": "string"}, "files": {"type": "array", "items": {"type": "object"}}},
            "required": ["folder", "files"],
        },
    ],
}
_UPLOAD = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "digest": {"type": "string"},
        "size": {"type": "integer"},
        "offset": {"type": "integer"},
        "isWhole": {"type": "boolean"},
    },
}


def openapi_document(version: str) -> dict[str, Any]:
    """The document of ``GET /openapi.json``."""
    types = [each for verb in VERBS for each in _types_of(shape_of(verb))]
    schemas, components = msgspec.json.schema_components(
        [*types, Problem, UploadBegun], schema_hook=_schema_of, ref_template=_REFERENCE
    )
    by_type = iter(schemas)
    paths: dict[str, Any] = {}
    for verb in VERBS:
        shape = shape_of(verb)
        parameter_schemas = {parameter.name: next(by_type) for parameter in shape.parameters}
        operation = _operation(verb, shape, parameter_schemas, next(by_type))
        paths.setdefault(API_ROOT + _spelled(verb.path), {})[verb.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Slipway registry",
            "version": version,
            "description": "Models, rollouts, telemetry and devices, as the command line `slipway` has them.",
        },
        "paths": paths | _upload_paths() | _file_paths(),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, or a token of the issuer."},
                "device": {"type": "http", "scheme": "basic", "description": "A device's key as password."},
            },
        },
        "security": [{"key": []}],
    }


def _spelled(path: str) -> str:
    for name, known_as in _PATH_NAMES.items():
        path = path.replace("{" + name + "}", "{" + known_as + "}")
    return path


def _types_of(shape: Shape) -> list[Any]:
    return [*(parameter.type for parameter in shape.parameters), shape.result]


def _schema_of(type_: type) -> dict[str, Any]:
    if isinstance(type_, type) and issubclass(type_, Path):
        return _FILE
    raise TypeError(f"{type_!r} has no schema")


def _operation(verb: Verb, shape: Shape, schemas: dict[str, Any], result: Any) -> dict[str, Any]:
    said = (getattr(verb.protocol, verb.name).__doc__ or "").strip()
    operation: dict[str, Any] = {
        "operationId": verb.id,
        "tags": [GROUPS[verb.protocol]],
        "summary": said,
        "description": f"Takes the role {verb.role}.",
        "parameters": [_parameter(each, schemas[each.name]) for each in shape.parameters if each.place != "body"],
        "responses": {"200": _success(verb, shape, result), "default": _problem()},
    }
    body = [each for each in shape.parameters if each.place == "body"]
    if body:
        operation["requestBody"] = {"required": True, "content": _json(_body(body, schemas))}
    return operation


def _body(parameters: list[Parameter], schemas: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {each.wire_name: schemas[each.name] for each in parameters},
        "required": [each.wire_name for each in parameters if each.is_required],
    }


def _parameter(parameter: Parameter, schema: Any) -> dict[str, Any]:
    is_reference = parameter.type is ModelReference
    return {
        "name": _PATH_NAMES.get(parameter.name, parameter.name) if parameter.place == "path" else parameter.wire_name,
        "in": parameter.place,
        "required": parameter.is_required or parameter.place == "path",
        "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}:[1-9][0-9]*$"} if is_reference else schema,
    }


def _success(verb: Verb, shape: Shape, result: Any) -> dict[str, Any]:
    if shape.is_streamed:
        return {"description": "One JSON value a line.", "content": {"application/x-ndjson": {"schema": result}}}
    if verb.view is not None:
        # What the command prints with --json; docs/reference names the fields.
        result = {"type": "array"} if _is_list(shape.result) else {"type": "object"}
    content = _json(result)
    if shape.listeners:
        content["application/x-ndjson"] = {
            "schema": {"type": "object", "description": "Events while it goes on, then `result` or `problem`."}
        }
    return {"description": "Done.", "content": content}


def _is_list(type_: Any) -> bool:
    origin = getattr(type_, "__origin__", None)
    return isinstance(origin, type) and issubclass(origin, collections.abc.Sequence)


def _problem() -> dict[str, Any]:
    return {"description": "Not done, and why.", "content": _json({"$ref": _REFERENCE.format(name="Problem")})}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _plain(summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": content}, "default": _problem()},
        **more,
    }


def _upload_paths() -> dict[str, Any]:
    upload_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    offset = {"name": "Upload-Offset", "in": "header", "required": True, "schema": {"type": "integer"}}
    begun = {"required": True, "content": _json({"$ref": _REFERENCE.format(name="UploadBegun")})}
    piece = {"required": True, "content": {"application/offset+octet-stream": {}}}
    begin = _plain("Begin an upload, or find the one that was begun.", _json(_UPLOAD), requestBody=begun)
    begin["responses"]["201"] = begin["responses"].pop("200")
    return {
        f"{API_ROOT}/uploads": {"post": begin},
        f"{API_ROOT}/uploads/{{id}}": {
            "parameters": [upload_id],
            "get": _plain("How far an upload is.", _json(_UPLOAD)),
            "patch": _plain("Send the next piece.", _json(_UPLOAD), parameters=[offset], requestBody=piece),
        },
    }


def _file_paths() -> dict[str, Any]:
    either: list[dict[str, list[str]]] = [{"key": []}, {"device": []}]
    target = {"name": "target", "in": "path", "required": True, "schema": {"type": "string"}}
    file = {"name": "file", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/artifacts/{target}": {
            "get": _plain(
                "A model's file, whole or in part (Range, If-Range, If-None-Match).",
                {"application/octet-stream": {}},
                parameters=[target],
                security=either,
            )
        },
        "/metadata/{file}": {
            "get": _plain("Signed metadata (TUF).", {"application/json": {}}, parameters=[file], security=either)
        },
        "/metrics": {"get": _plain("Counters for Prometheus.", {"text/plain": {}})},
        "/healthz": {"get": _plain("Whether it serves.", {"application/json": {}}, security=[])},
    }
