"""Deployment manifests: what is written, in the schema's eyes and in the runtime's."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloud_registry import wiring
from cloud_registry.core.deployment.model_module import (
    ModulePlan,
    check_deployment,
    check_image,
    configuration_for,
    deployment_for,
    device_condition,
    former_pieces,
)
from cloud_registry.errors import RegistryError, UsageError
from manifests.deployment import (
    CREATE_OPTIONS_PIECE_LENGTH,
    DeploymentManifest,
    EdgeModule,
    Route,
    join_create_options,
    split_create_options,
)
from manifests.errors import ManifestError
from manifests.model import ModelManifest
from manifests.release import Release

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
SCHEMAS = wiring.open_deployment_schemas()


def example(name: str) -> Any:
    return json.loads((EXAMPLES / name).read_bytes())


MODEL = ModelManifest.from_wire(example("model-manifest.json"))


def release() -> Release:
    return Release.from_wire(example("release.json"))


def test_the_manifest_of_a_module_is_the_published_example():
    assert deployment_for(MODEL, ModulePlan()).to_wire() == example("deployment.json")


def test_with_a_release_the_module_is_told_what_to_run():
    plan = ModulePlan(release=release())
    assert deployment_for(MODEL, plan).to_wire() == example("deployment-with-release.json")


def test_for_named_devices_it_is_a_configuration_of_the_hub():
    written = configuration_for(
        MODEL, deployment_for(MODEL, ModulePlan()).to_wire(), device_condition(["dev-01", "dev-02"])
    )
    assert written == {
        "id": "slipway-digits-3",
        "schemaVersion": "1.0",
        "labels": {"slipwayModel": "digits", "slipwayVersion": "3"},
        "content": example("deployment.json"),
        "targetCondition": "deviceId IN ['dev-01', 'dev-02']",
        "priority": 10,
    }


def test_a_condition_names_devices_whatever_their_ids_hold():
    assert device_condition(["dev-01"]) == "deviceId = 'dev-01'"
    assert device_condition(["o'hara"]) == "deviceId = 'o''hara'"
    with pytest.raises(UsageError):
        device_condition(["dev 01"])


@pytest.mark.parametrize("name", ["deployment.json", "deployment-with-release.json"])
def test_both_validators_accept_what_we_write(name: str):
    check_deployment(example(name), SCHEMAS)


IMAGES = {
    "slipway-digits:3": True,
    "registry.example.com:5000/edge/slipway:3": True,
    "registry.example.com/slipway@sha256:" + "0" * 64: True,
    "$upstream:443/slipway:3": True,
    "slipway:latest": False,
    "": False,
    " ": False,
    "slipway": False,
    "registry.example.com/slipway": False,
    "registry.example.com/slipway:3@sha256:" + "0" * 64: False,
    "$upstream/slipway:3": False,
    "slip way:3": False,
}


@pytest.mark.parametrize(("image", "is_taken"), IMAGES.items())
def test_an_image_is_taken_as_the_runtime_would_take_it(image: str, is_taken: bool):
    if is_taken:
        assert check_image(image) == image
    else:
        with pytest.raises(UsageError):
            check_image(image)


def test_blanks_around_an_image_are_cut_as_the_runtime_cuts_them():
    assert check_image(" slipway:3\n") == "slipway:3"


WRONG_PLANS = {
    "a module id with a dot": ModulePlan(module_id="a.b"),
    "a variable with a dollar": ModulePlan(environment={"A$": "1"}),
    "an image without a tag": ModulePlan(image="slipway"),
}


@pytest.mark.parametrize("story", WRONG_PLANS)
def test_a_wrong_plan_is_refused(story: str):
    with pytest.raises(UsageError):
        deployment_for(MODEL, WRONG_PLANS[story])


def test_options_are_cut_into_pieces_and_come_back_whole():
    options = {"HostConfig": {"Binds": [f'/a/"quoted"/{number}:/ö/{number}' for number in range(60)]}}
    settings = split_create_options(options)
    assert list(settings)[:3] == ["createOptions", "createOptions01", "createOptions02"]
    assert {len(piece) for piece in list(settings.values())[:-1]} == {CREATE_OPTIONS_PIECE_LENGTH}
    assert join_create_options({"image": "x:1", **settings}) == options


def test_options_that_are_none_are_one_empty_piece():
    assert split_create_options({}) == {"createOptions": ""}
    assert join_create_options({"image": "x:1"}) == {}
    assert join_create_options({"createOptions": "null"}) == {}


def test_options_beyond_a_hundred_pieces_are_refused():
    with pytest.raises(ManifestError, match="do not fit into 100 pieces"):
        split_create_options({"x": "y" * 60_000})


BROKEN_OPTIONS = {
    "a gap in the numbers": {"createOptions": "{", "createOptions02": "}"},
    "text that is no JSON": {"createOptions": "{"},
    "a list": {"createOptions": "[]"},
}


@pytest.mark.parametrize("story", BROKEN_OPTIONS)
def test_broken_options_are_told(story: str):
    with pytest.raises(ManifestError):
        join_create_options(BROKEN_OPTIONS[story])


def changed(**changes: Any) -> dict[str, Any]:
    """The example with one part of it spoilt, told by its path."""
    manifest = example("deployment.json")
    for path, value in changes.items():
        spelt = {"agent": "$edgeAgent", "hub": "$edgeHub", "desired": "properties.desired"}
        *parents, last = (spelt.get(name, name) for name in path.split("__"))
        place = manifest["modulesContent"]
        for name in parents:
            place = place[name]
        place[last] = value
    return manifest


SPOILT = {
    "a policy that is none": ({"agent__desired__modules__slipway__restartPolicy": "sometimes"}, "restartPolicy"),
    "settings that nobody knows": ({"agent__desired__modules__slipway__settings__tag": "x"}, "tag"),
    "options that are no JSON, which the schema takes": (
        {"agent__desired__modules__slipway__settings__createOptions": "{"},
        "createOptions are not JSON",
    ),
    "no routes": ({"hub__desired": {"schemaVersion": "1.1"}}, "'routes' is missing"),
    "more than a twin holds": (
        {"agent__desired__modules__slipway__env": {"A": {"value": "x" * 40_000}}},
        "a twin holds 32,768",
    ),
}


@pytest.mark.parametrize("story", SPOILT)
def test_what_either_validator_would_refuse_is_refused_before_it_is_written(story: str):
    changes, words = SPOILT[story]
    with pytest.raises(RegistryError) as refused:
        check_deployment(changed(**changes), SCHEMAS)
    assert words in refused.value.message


def test_routes_are_strings_where_they_say_no_more():
    assert Route(route="FROM /* INTO $upstream").to_wire() == "FROM /* INTO $upstream"
    assert Route(route="FROM /* INTO $upstream", priority=0, time_to_live_s=60).to_wire() == {
        "route": "FROM /* INTO $upstream",
        "priority": 0,
        "timeToLiveSecs": 60,
    }


def test_a_deployment_of_many_modules_names_each():
    manifest = DeploymentManifest(
        edge_agent=EdgeModule(image="a:1"),
        edge_hub=EdgeModule(image="h:1"),
        modules={
            "one": EdgeModule(image="o:1", status="stopped"),
            "two": EdgeModule(image="t:1", environment={"N": 2}),
        },
        routes={"up": Route(route="FROM /* INTO $upstream")},
    ).to_wire()
    check_deployment(manifest, SCHEMAS)
    modules = manifest["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    assert (modules["one"]["status"], modules["two"]["env"]) == ("stopped", {"N": {"value": 2}})
    assert list(manifest["modulesContent"]) == ["$edgeAgent", "$edgeHub"]


def test_a_layer_sets_the_module_and_its_route_and_nothing_of_the_base():
    plan = ModulePlan(release=release())
    layer = deployment_for(MODEL, plan).to_layer()
    base = deployment_for(MODEL, plan).to_wire()["modulesContent"]
    agent, hub = (base[name]["properties.desired"] for name in ("$edgeAgent", "$edgeHub"))
    assert layer == {
        "modulesContent": {
            "$edgeAgent": {"properties.desired.modules.slipway": agent["modules"]["slipway"]},
            "$edgeHub": {"properties.desired.routes.slipwayToCloud": hub["routes"]["slipwayToCloud"]},
            "slipway": {"properties.desired.models.digits": release().to_wire()},
        }
    }
    check_deployment(layer, SCHEMAS)


def test_a_layer_ranks_above_the_base_unless_somebody_says_otherwise():
    deployment = deployment_for(MODEL, ModulePlan())
    layer, base = (configuration_for(MODEL, form, "*") for form in (deployment.to_layer(), deployment.to_wire()))
    assert (layer["id"], layer["priority"] > base["priority"]) == ("slipway-digits-3-layer", True)
    assert configuration_for(MODEL, deployment.to_layer(), "*", priority=7)["priority"] == 7


def test_a_patch_tells_a_running_module_which_model_it_is_to_run():
    deployment = deployment_for(MODEL, ModulePlan(release=release()))
    assert deployment.to_twin_patch("slipway") == {
        "properties": {"desired": {"models": {"digits": release().to_wire()}}}
    }


def test_pieces_that_are_not_needed_any_more_are_deleted_by_name():
    long = {"Env": [f"NAME{number}={'x' * 40}" for number in range(40)]}
    before = deployment_for(MODEL, ModulePlan(create_options=long)).to_wire()
    assert former_pieces(before) == {"edgeAgent": 1, "edgeHub": 1, "slipway": 4}
    shorter = deployment_for(MODEL, ModulePlan(create_options={"Env": ["A=1"]}))
    after = shorter.to_wire(former_pieces=former_pieces(before))
    settings = after["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"]["settings"]
    # What the twin merges: the former pieces, and over them the new ones, null deleting.
    former = before["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"]["settings"]
    merged = {name: value for name, value in {**former, **settings}.items() if value is not None}
    assert join_create_options(merged) == {"Env": ["A=1"]}
    assert [name for name, value in settings.items() if value is None] == [
        f"createOptions{number:02d}" for number in range(1, 4)
    ]
    with pytest.raises(ManifestError):
        join_create_options({**former, "createOptions": settings["createOptions"]})
    check_deployment(after, SCHEMAS)


def test_options_of_more_pieces_than_other_tools_read_are_asked_for():
    plan = ModulePlan(create_options={"Env": ["x" * 5000]})
    document = deployment_for(MODEL, plan).to_wire()
    with pytest.raises(RegistryError, match="need 10 pieces; iotedgedev reads 8"):
        check_deployment(document, SCHEMAS)
    sizes = check_deployment(document, SCHEMAS, has_many_pieces=True)
    assert [size.module for size in sizes] == ["$edgeAgent", "$edgeHub"]
