"""Templates: placeholders, their values, and what a template and its manifest have in common."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from cloud_registry import wiring
from cloud_registry.adapters.template_folder import read_module_images, read_variables
from cloud_registry.core.deployment.json_text import JsonTextError
from cloud_registry.core.deployment.manifest_shape import ShapeError
from cloud_registry.core.deployment.templates import (
    ModuleImage,
    as_template,
    fill,
    fill_numbers,
    final_document,
    module_image,
    read_template,
)
from cloud_registry.core.deployment.validation import validate
from cloud_registry.errors import NotFoundError, UsageError

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
SCHEMAS = wiring.open_deployment_schemas()
SHARED = Path(__file__).parents[4] / "shared" / "data" / "manifests" / "valid"
DEPLOYMENT = json.loads((EXAMPLES / "deployment.json").read_bytes())

PLACEHOLDERS = {
    "MODULES.scorer": ModuleImage("scorer"),
    "MODULES.scorer.arm64v8": ModuleImage("scorer", "arm64v8"),
    "MODULES.scorer.debug": ModuleImage("scorer", is_debug=True),
    "MODULES.scorer.windows-amd64.debug": ModuleImage("scorer", "windows-amd64", is_debug=True),
    "MODULEDIR<../shared/scorer>": ModuleImage("scorer", folder="../shared/scorer"),
    "MODULEDIR<./scorer>.amd64.debug": ModuleImage("scorer", "amd64", is_debug=True, folder="./scorer"),
    "MODULEDIR<.\\scorer>": ModuleImage("scorer", folder="./scorer"),
    "EDGE_RUNTIME_VERSION": None,
    "MODULES": None,
}


@pytest.mark.parametrize(("name", "meaning"), PLACEHOLDERS.items())
def test_a_placeholder_of_an_image_says_which_module(name: str, meaning: ModuleImage | None):
    assert module_image(name) == meaning


def test_values_go_in_as_text_and_cannot_end_a_string():
    filled = fill({"route": "FROM /* WHERE a = ${VALUE} INTO $upstream"}, {"VALUE": '"x", "y": "z"'})
    assert filled.value == {"route": 'FROM /* WHERE a = "x", "y": "z" INTO $upstream'}
    assert json.loads(json.dumps(filled.value)) == filled.value


def test_words_of_routes_stay_what_they_are():
    route = "FROM /messages/* WHERE $connectionModuleId = 'a' AND $body.x = 1 INTO $upstream"
    assert fill(route, {"upstream": "no", "body": "no"}).value == route


def test_names_have_placeholders_too_and_stay_apart():
    filled = fill({"$USER_ONE": 1, "$USER_TWO": 2, "${A}": 3}, {"A": "a"})
    assert filled.value == {"stand-in-USER_ONE": 1, "stand-in-USER_TWO": 2, "a": 3}
    assert filled.unfilled == ("USER_ONE", "USER_TWO")


def test_what_has_no_value_is_named_and_not_judged():
    text = json.dumps(DEPLOYMENT).replace('"always"', '"${POLICY}"')
    report = validate(text, SCHEMAS)
    assert (report.is_template, report.is_ok, report.unfilled) == (True, True, ("POLICY",))
    refused = validate(text, SCHEMAS, values={"POLICY": "sometimes"})
    assert (refused.schema.is_ok, refused.runtime.is_ok, refused.unfilled) == (False, False, ())


def test_a_number_makes_the_text_json_only_with_its_value():
    text = '{"a": ${TTL}, "b": "${TTL}"}'
    with pytest.raises(JsonTextError) as refused:
        read_template(text, {})
    assert (refused.value.line, "${TTL}" in refused.value.reason) == (1, True)
    assert "--set TTL=" in refused.value.mend
    assert read_template(text, {"TTL": "60"}).value == {"a": 60, "b": "${TTL}"}
    assert fill_numbers('"${A}" ${A}', {"A": "1"}) == '"${A}" 1'


def test_options_as_objects_become_text_in_pieces():
    template = as_template(DEPLOYMENT, {})
    module = template["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"]
    module["settings"]["createOptions"]["Env"] = ["x" * 600]
    settings = final_document(template)["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"][
        "settings"
    ]
    assert len(settings["createOptions"]) == 512
    assert json.loads(settings["createOptions"] + settings["createOptions01"])["Env"] == ["x" * 600]


def test_a_manifest_comes_back_from_its_template():
    template = as_template(DEPLOYMENT, {"slipway": "MODULES.slipway"})
    assert template["$schema-template"] == "3.0.0"
    image = DEPLOYMENT["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"]["settings"]["image"]
    filled = fill(template, {"MODULES.slipway": image})
    assert (final_document(filled.value), filled.unfilled) == (DEPLOYMENT, ())


def test_a_configuration_keeps_its_target_and_loses_what_tools_refuse():
    template = {"$schema-template": "4.0.0", "_comment": "x", "id": "a", "priority": 3, **DEPLOYMENT}
    assert final_document(template) == {"id": "a", "priority": 3, "content": DEPLOYMENT}
    with pytest.raises(ShapeError):
        final_document({"$schema-template": "4.0.0"})


# What stands for a placeholder of a real template, where not any word would do.
VALUES = {"EDGEHUB_ROUTE": "FROM /messages/* INTO $upstream"}


def test_every_collected_template_renders_to_a_manifest_that_is_judged_as_the_template_was():
    index = SHARED.parent / "index.json"
    if not index.is_file():
        pytest.skip("the collected templates are kept beside the repository, in shared/data/manifests")
    rendered = 0
    for case in json.loads(index.read_bytes()):
        if case["kind"] != "base-template" or case["verdict"] != "valid":
            continue
        content = read_template((SHARED.parent / case["file"]).read_bytes(), {})
        values = {name: VALUES.get(name, "word") for name in fill(content.value, {}).unfilled}
        filled = fill(content.value, {name: "a/b:1" if module_image(name) else value for name, value in values.items()})
        report = validate(json.dumps(final_document(filled.value)), SCHEMAS)
        assert (filled.unfilled, report.is_template) == ((), False), case["file"]
        assert (report.schema.is_ok, report.runtime.is_ok) == (True, True), (case["file"], report.to_wire())
        rendered += 1
    assert rendered > 20


@pytest.mark.parametrize(
    ("agent", "hub", "template"), [("1.0", "1.0", "2.0"), ("1.1", "1.1", "3.0"), ("1.1", "1.2", "4.0")]
)
def test_what_we_write_as_a_template_meets_the_published_schema_of_templates(agent: str, hub: str, template: str):
    folder = SHARED.parent.parent / "schemas"
    if not folder.is_dir():
        pytest.skip("the published schemas are kept beside the repository, in shared/data/schemas")
    published = {path.name: json.loads(path.read_bytes()) for path in folder.glob("azure-iot-*.json")}
    registry = Registry().with_resources(
        (schema.get("id") or schema["$id"], Resource.from_contents(schema, default_specification=DRAFT4))
        for schema in published.values()
    )
    document = json.loads(json.dumps(DEPLOYMENT))
    for part, version in (("$edgeAgent", agent), ("$edgeHub", hub)):
        document["modulesContent"][part]["properties.desired"]["schemaVersion"] = version
    schema = published[f"azure-iot-edge-deployment-template-{template}.json"]
    validator = validator_for(schema)(schema, registry=registry)
    written = as_template(document, {"slipway": "MODULES.slipway"})
    assert written["$schema-template"] == f"{template}.0"
    assert [error.message for error in validator.iter_errors(written)] == []
    assert not validator.is_valid({"modulesContent": {}})


def write(path: Path, text: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_variables_stand_beside_the_template_or_where_we_are_told(tmp_path: Path):
    template = write(tmp_path / "deployment.template.json", "{}")
    assert read_variables(None, template) == {}
    write(tmp_path / ".env", "# a comment\nA=1\nexport B=\"two words\"\nC='$A'\nD\n\nE=\n")
    assert read_variables(None, template) == {"A": "1", "B": "two words", "C": "$A", "E": ""}
    assert read_variables(write(tmp_path / "other.env", "A=2"), template) == {"A": "2"}
    with pytest.raises(NotFoundError):
        read_variables(tmp_path / "none.env", template)


def test_a_modules_image_comes_from_its_module_json(tmp_path: Path):
    template = tmp_path / "solution" / "deployment.template.json"
    image = {"image": {"repository": "${REGISTRY}/scorer", "tag": {"version": "0.0.7"}}}
    write(template.parent / "modules" / "scorer" / "module.json", image)
    write(tmp_path / "shared" / "counter" / "module.json", image)
    names = [
        "MODULES.scorer",
        "MODULES.scorer.arm64v8.debug",
        "MODULEDIR<../shared/counter>",
        "MODULES.none",
        "REGISTRY",
    ]
    assert read_module_images(names, template, "amd64", {"REGISTRY": "example.azurecr.io"}) == {
        "MODULES.scorer": "example.azurecr.io/scorer:0.0.7-amd64",
        "MODULES.scorer.arm64v8.debug": "example.azurecr.io/scorer:0.0.7-arm64v8.debug",
        "MODULEDIR<../shared/counter>": "example.azurecr.io/scorer:0.0.7-amd64",
    }


@pytest.mark.parametrize("text", ["{", "[]", '{"image": {}}', '{"image": {"repository": "a", "tag": "1"}}'])
def test_a_module_json_that_names_no_image_is_told(tmp_path: Path, text: str):
    write(tmp_path / "modules" / "scorer" / "module.json", text)
    with pytest.raises(UsageError, match="names no image"):
        read_module_images(["MODULES.scorer"], tmp_path / "deployment.template.json", "amd64", {})
