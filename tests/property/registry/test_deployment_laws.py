"""Laws of deployments over generated manifests: merging, conditions, pieces of options, and text that is read back.

The hub simulator has its own merge and its own query language, written apart from ours: where both read the same rules,
they have to agree.
"""

import json
from contextlib import suppress
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloud_registry.core.deployment.conditions import ConditionError, read_condition
from cloud_registry.core.deployment.findings import Findings
from cloud_registry.core.deployment.json_text import JsonTextError, read_json
from cloud_registry.core.deployment.layers import Candidate, preview
from cloud_registry.core.deployment.manifest_shape import read_deployment
from cloud_registry.core.deployment.routes import RouteError, read_route
from cloud_registry.core.deployment.templates import as_template, fill, final_document
from cloud_registry.core.deployment.twin_rules import size_of
from cloud_registry.core.deployment.validation import check_runtime, validate
from manifests.canonical import canonical_json
from manifests.deployment import DeploymentManifest, EdgeModule, Route, join_create_options, split_create_options
from simulators.iothub.core.configuration_documents import new_configuration
from simulators.iothub.core.configurations import plan_of
from simulators.iothub.core.desired_settings import with_node
from simulators.iothub.core.query.grammar import parse_target
from simulators.iothub.errors import ServiceError

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "ö"]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3) | st.lists(st.integers(0, 3), max_size=2),
    max_leaves=6,
)
SECTIONS = st.dictionaries(NAMES, VALUES, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "properties.desired." + ".".join(names))


def module(image: str) -> dict[str, Any]:
    return {"type": "docker", "status": "running", "settings": {"image": image}}


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """The content of a layer: modules and routes by name, and parts of a twin, or the whole of it."""
    content: dict[str, Any] = {
        "$edgeAgent": {
            f"properties.desired.modules.{name}": module(draw(st.sampled_from(["i:1", "i:2"])))
            for name in draw(st.sets(NAMES, max_size=2))
        },
        "$edgeHub": {
            f"properties.desired.routes.{name}": "FROM /messages/* INTO $upstream"
            for name in draw(st.sets(NAMES, max_size=2))
        },
    }
    settings = draw(st.dictionaries(PATHS, VALUES.filter(lambda value: value is not None), max_size=3))
    if draw(st.booleans()):
        settings["properties.desired"] = draw(SECTIONS)
    content["scorer"] = settings
    return {"modulesContent": content}


@st.composite
def bases(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.sets(NAMES, max_size=2))
    content = {
        "$edgeAgent": {
            "properties.desired": {"schemaVersion": "1.1", "modules": {name: module("b:1") for name in names}}
        },
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
    }
    if draw(st.booleans()):
        content["scorer"] = {"properties.desired": draw(SECTIONS)}
    return {"modulesContent": content}


@st.composite
def fleets_of_deployments(draw: st.DrawFn) -> list[tuple[str, int, int, dict[str, Any]]]:
    """Deployments with a name, a priority and a moment of creation."""
    contents = [*draw(st.lists(bases(), min_size=1, max_size=2)), *draw(st.lists(layers(), max_size=4))]
    return [
        (f"d{number}", draw(st.integers(0, 3)), draw(st.integers(0, 3)), content)
        for number, content in enumerate(contents)
    ]


def candidates(deployments: list[tuple[str, int, int, dict[str, Any]]]) -> list[Candidate]:
    return [
        Candidate(name, read_deployment(content), priority, str(created_at))
        for name, priority, created_at, content in deployments
    ]


def told_by_the_hub(deployments: list[tuple[str, int, int, dict[str, Any]]]) -> dict[str, Any]:
    """The twins that the simulated hub would write for the same deployments."""
    configurations = [
        new_configuration({"id": name, "priority": priority, "content": content}, float(created_at), number)
        for number, (name, priority, created_at, content) in enumerate(deployments)
    ]
    twins = {}
    for name, written in (plan_of("edge", configurations).settings or {}).items():
        tree: dict[str, Any] = {}
        for path, value in written:
            tree = with_node(tree, path, value)
        twins[name] = tree
    return twins


@given(fleets_of_deployments())
def test_a_preview_is_what_the_hub_would_write(deployments: list[tuple[str, int, int, dict[str, Any]]]):
    merged = preview(candidates(deployments))
    expected = told_by_the_hub(deployments)
    assert {name: dict(section) for name, section in merged.twins.items()} == expected


@settings(max_examples=40)
@given(fleets_of_deployments(), st.randoms(use_true_random=False))
def test_the_order_of_the_list_changes_nothing(deployments: list[tuple[str, int, int, dict[str, Any]]], chance: Any):
    shuffled = chance.sample(deployments, len(deployments))
    assert preview(candidates(shuffled)).twins == preview(candidates(deployments)).twins


@settings(max_examples=40)
@given(fleets_of_deployments())
def test_every_deployment_is_applied_or_left_out_with_a_reason(
    deployments: list[tuple[str, int, int, dict[str, Any]]],
):
    merged = preview(candidates(deployments))
    told = [*merged.applied, *(name for name, _ in merged.left_out)]
    assert sorted(told) == sorted(name for name, *_ in deployments)
    assert all(reason for _, reason in merged.left_out)
    ranks = {name: (priority, str(created_at), name) for name, priority, created_at, _ in deployments}
    for loss in merged.losses:
        assert ranks[loss.winner] > ranks[loss.candidate]
        assert {loss.winner, loss.candidate} <= set(merged.applied)


@settings(max_examples=40)
@given(bases(), layers())
def test_merging_the_same_layer_again_changes_nothing(base: dict[str, Any], layer: dict[str, Any]):
    once = preview(candidates([("base", 0, 0, base), ("l1", 1, 0, layer)]))
    twice = preview(candidates([("base", 0, 0, base), ("l1", 1, 0, layer), ("l2", 2, 0, layer)]))
    assert once.twins == twice.twins


DEVICES = st.fixed_dictionaries(
    {"deviceId": st.sampled_from(["gw-1", "gw-2"])},
    optional={
        "tags": st.fixed_dictionaries(
            {},
            optional={"site": st.sampled_from(["a", "b", "1"]), "ring": st.none() | st.booleans() | st.integers(0, 2)},
        ),
        "properties": st.just({"reported": {"list": [1, "a", None], "half": 0.5}}),
    },
)
OPERANDS = st.sampled_from(
    [
        *("tags.site", "tags.ring", "tags", "deviceId", "DEVICEID", "properties.reported.list", "nothing.there"),
        *("'a'", "'it''s'", "1", "0x2", "1.5", "2e1", "true", "null", "undefined", "['a', 1, tags.site]", "[]"),
        *("abs(-1)", "lower(deviceId)", "length(tags.site)", "as_number('2')", "is_defined(tags.ring)"),
        *("substring(deviceId, 1)", "concat(tags.site, 'x')", "index_of(deviceId, '-')", "power(2, 3)"),
    ]
)
SIGNS = st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">=", " IN ", " nin ", "+", "-", "*", "/", "%"])
CONDITIONS = st.recursive(
    st.builds(lambda left, sign, right: f"{left} {sign} {right}", OPERANDS, SIGNS, OPERANDS) | OPERANDS,
    lambda inner: (
        st.builds(lambda left, word, right: f"({left} {word} {right})", inner, st.sampled_from(["AND", "or"]), inner)
        | inner.map(lambda text: f"NOT ({text})")
        | inner.map(lambda text: f"-({text}) = 1")
    ),
    max_leaves=6,
)


@given(CONDITIONS, DEVICES)
@example("*", {"deviceId": "gw-1"})
@example("tags.ring = true OR tags.ring IN [true]", {"deviceId": "gw-1", "tags": {"ring": 1}})
def test_a_condition_targets_whom_the_hub_would_target(text: str, device: dict[str, Any]):
    try:
        expected = parse_target(text).holds(device)
    except ServiceError:
        try:
            read_condition(text)
        except ConditionError:
            return
        raise AssertionError(f"the hub refuses {text}") from None
    assert read_condition(text).holds(device) is expected


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused_with_a_sentence(text: str):
    with suppress(ConditionError):
        assert read_condition(text).holds({"deviceId": "a"}) in (True, False)


@settings(max_examples=40)
@given(st.text(max_size=60) | st.builds("FROM {} INTO {}".format, st.text(max_size=20), st.text(max_size=20)))
def test_any_text_is_a_route_or_refused_with_a_sentence(text: str):
    with suppress(RouteError):
        assert read_route(text).source.startswith("/")


OPTIONS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=400) | st.lists(st.text(max_size=90), max_size=9), max_size=5
)


@given(OPTIONS, OPTIONS)
def test_options_written_over_longer_ones_come_back_whole(before: dict[str, Any], after: dict[str, Any]):
    former = split_create_options(before)
    assert join_create_options(former) == before
    patch = split_create_options(after, former_pieces=len(former))
    merged = {name: value for name, value in {**former, **patch}.items() if value is not None}
    assert join_create_options(merged) == after


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_json_is_read_back_with_a_line_for_each_name(value: Any, indent: Any, is_ascii: bool):
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    content = read_json(text.encode("utf-8", "surrogatepass") if is_ascii else text)
    assert content.value == value
    count = text.count("\n") + 1
    assert all(1 <= line <= count for line in content.lines.values())


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_json_or_refused_where_the_library_refuses_them(content: bytes):
    with suppress(JsonTextError):
        value = read_json(content).value
        assert value == json.loads(content.decode(json.detect_encoding(content)).removeprefix("\ufeff"))


@given(JSON)
def test_any_json_is_judged_without_a_crash(value: Any):
    for document in (value, {"modulesContent": value}, {"modulesContent": {"$edgeAgent": value, "$edgeHub": value}}):
        report = validate(json.dumps(document), _SCHEMAS)
        assert report.runtime.is_ok in (True, False)
        json.dumps(report.to_wire())


@settings(max_examples=40)
@given(JSON, JSON, JSON)
def test_any_section_is_judged_without_a_crash(agent: Any, hub: Any, entry: Any):
    sections = {
        "$edgeAgent": {
            "properties.desired": {"schemaVersion": "1.1", "runtime": agent, "modules": {"a": entry, "b": agent}}
        },
        "$edgeHub": {
            "properties.desired": {"schemaVersion": "1.1", "routes": hub, "storeAndForwardConfiguration": entry}
        },
        "a": {"properties.desired": entry},
    }
    found = Findings()
    check_runtime(read_deployment({"modulesContent": sections}), found)
    for problem in found.problems:
        assert problem.reason


# A $ and a name after it are a placeholder to every template tool; none knows how to mark one that is meant.
TEXTS = st.text(st.characters(exclude_characters="$", codec="utf-8"), max_size=200)
MODULES = st.builds(
    EdgeModule,
    image=st.sampled_from(["a:1", "example.azurecr.io/b:2", "c@sha256:" + "0" * 64]),
    status=st.sampled_from(["running", "stopped"]),
    restart_policy=st.sampled_from(["never", "on-failure", "on-unhealthy", "always"]),
    image_pull_policy=st.sampled_from(["on-create", "never"]),
    startup_order=st.none() | st.integers(0, 2**32 - 1),
    environment=st.dictionaries(st.sampled_from(["A", "B_2"]), TEXTS | st.booleans() | st.integers(0, 9)),
    create_options=st.dictionaries(st.sampled_from(["Env", "Cmd"]), st.lists(TEXTS, max_size=9), max_size=2),
)
DEPLOYMENTS = st.builds(
    DeploymentManifest,
    edge_agent=MODULES,
    edge_hub=MODULES,
    modules=st.dictionaries(st.sampled_from(["cam", "scorer", "m-1"]), MODULES, max_size=3),
    routes=st.dictionaries(
        st.sampled_from(["up", "down"]),
        st.builds(
            Route,
            route=st.sampled_from(
                ["FROM /* INTO $upstream", 'FROM /messages/* INTO BrokeredEndpoint("/modules/a/inputs/b")']
            ),
            priority=st.none() | st.integers(0, 9),
            time_to_live_s=st.none() | st.integers(0, 2**32 - 1),
        ),
    ),
    store_and_forward_s=st.integers(0, 10**6),
    desired=st.dictionaries(
        st.sampled_from(["cam", "scorer"]), SECTIONS.map(lambda section: {"models": section}), max_size=2
    ),
)


@settings(max_examples=40)
@given(DEPLOYMENTS)
def test_whatever_we_write_both_validators_take_unless_it_is_too_much(deployment: DeploymentManifest):
    for document in (deployment.to_wire(), deployment.to_layer()):
        report = validate(json.dumps(document), _SCHEMAS)
        assert report.schema.is_ok is not False, report.to_wire()
        for problem in report.runtime.problems:
            assert "a twin holds" in problem.reason, report.to_wire()


@settings(max_examples=40)
@given(DEPLOYMENTS)
def test_a_manifest_is_the_same_after_a_template_of_it(deployment: DeploymentManifest):
    document = deployment.to_wire()
    template = as_template(document, {"cam": "MODULES.cam"})
    assert as_template(final_document(template), {}) == template
    image = deployment.modules["cam"].image if "cam" in deployment.modules else ""
    filled = fill(template, {"MODULES.cam": image})
    assert (final_document(filled.value), filled.unfilled) == (document, ())


@settings(max_examples=40)
@given(DEPLOYMENTS, DEPLOYMENTS)
def test_a_layer_of_a_deployment_upon_its_base_runs_both(below: DeploymentManifest, above: DeploymentManifest):
    merged = preview(
        [
            Candidate("base", read_deployment(below.to_wire()), 0),
            Candidate("layer", read_deployment(above.to_layer()), 1),
        ]
    )
    modules = merged.twins["$edgeAgent"]["modules"]
    assert modules == {
        **{name: module.to_wire() for name, module in below.modules.items()},
        **{name: module.to_wire() for name, module in above.modules.items()},
    }


@given(JSON.filter(lambda value: value is not None))
def test_a_size_is_that_of_the_shortest_json(value: Any):
    kept = read_json(json.dumps(value)).value
    assert size_of({"a": kept}) <= len(canonical_json({"a": kept}))


def _schemas() -> dict[str, dict[str, Any]]:
    from cloud_registry import wiring

    return wiring.open_deployment_schemas()


_SCHEMAS = _schemas()
