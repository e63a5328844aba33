"""Two validators over deployment manifests: where schema and runtime disagree, and what real manifests are."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cloud_registry import wiring
from cloud_registry.core.deployment.json_text import JsonTextError, read_json
from cloud_registry.core.deployment.validation import Report, validate

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
SCHEMAS = wiring.open_deployment_schemas()
SHARED = Path(__file__).parents[4] / "shared" / "data" / "manifests"
BASE = json.loads((EXAMPLES / "deployment.json").read_bytes())
AGENT = ("modulesContent", "$edgeAgent", "properties.desired")
HUB = ("modulesContent", "$edgeHub", "properties.desired")
MODULE = (*AGENT, "modules", "slipway")
GONE = object()

Change = tuple[tuple[str, ...], Any]


def changed(*changes: Change) -> dict[str, Any]:
    document = copy.deepcopy(BASE)
    for path, value in changes:
        place = document
        for name in path[:-1]:
            place = place[name]
        if value is GONE:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return document


def judged(document: Any, **options: Any) -> Report:
    return validate(json.dumps(document, indent=1), SCHEMAS, **options)


def agent_version(version: Any) -> Change:
    return ((*AGENT, "schemaVersion"), version)


def hub_version(version: Any) -> Change:
    return ((*HUB, "schemaVersion"), version)


ROUTE = (*HUB, "routes", "slipwayToCloud")
OBJECT_ROUTE = {"route": "FROM /messages/* INTO $upstream", "priority": 3}

# What changes in a good manifest, and whether the schemas of the parts and the runtime still take it.
DISAGREEMENTS: dict[str, tuple[list[Change], bool, bool]] = {
    "nothing": ([], True, True),
    "a module without restartPolicy": ([((*MODULE, "restartPolicy"), GONE)], False, True),
    "no edgeHub among the system modules": ([((*AGENT, "systemModules", "edgeHub"), GONE)], False, True),
    "no system modules": ([((*AGENT, "systemModules"), GONE)], False, False),
    "no modules at all": ([((*AGENT, "modules"), GONE)], False, True),
    "a variable without a value": ([((*MODULE, "env"), {"A": {}})], False, True),
    "an unknown name on a module": ([((*MODULE, "_comment"), "why")], False, True),
    "imagePullPolicy in settings": ([((*MODULE, "settings", "imagePullPolicy"), "never")], False, True),
    "a variable that is a string": ([((*MODULE, "env"), {"A": "1"})], False, False),
    "edgeHub 1.1 without storage": ([((*HUB, "storeAndForwardConfiguration"), GONE)], True, False),
    "edgeHub 1.0 without storage": (
        [((*HUB, "storeAndForwardConfiguration"), GONE), hub_version("1.0")],
        True,
        True,
    ),
    "a route of wrong grammar": ([(ROUTE, "FORM /messages/* INTO $upstream")], True, False),
    "options that are no JSON": ([((*MODULE, "settings", "createOptions"), "{")], True, False),
    "a gap in the numbers of the options": ([((*MODULE, "settings", "createOptions02"), "")], True, False),
    "a first piece with a number": (
        [((*MODULE, "settings"), {"image": "a:1", "createOptions00": "{}"})],
        True,
        False,
    ),
    "options deleted by null": ([((*MODULE, "settings", "createOptions01"), None)], False, True),
    "options as an object": ([((*MODULE, "settings", "createOptions"), {"HostConfig": {}})], False, True),
    "options as a list": ([((*MODULE, "settings", "createOptions"), [])], False, False),
    "options that say null": ([((*MODULE, "settings", "createOptions"), "NULL")], True, True),
    "options in single quotes": (
        [((*MODULE, "settings", "createOptions"), "{'Env': ['A=\"1\"',], /* b */ c: 1}")],
        True,
        True,
    ),
    "options kept beside the ones that count": ([((*MODULE, "settings", "_createOptions"), "{}")], False, False),
    "the number of a piece in one digit": (
        [((*MODULE, "settings"), {"image": "a:1", "createOptions": "{", "createOptions1": "}"})],
        True,
        True,
    ),
    "ten pieces numbered without zeros": (
        [((*MODULE, "settings"), {"image": "a:1", "createOptions": "{",
                                  **{f"createOptions{n}": " " for n in range(1, 10)},
                                  "createOptions10": "}"})],
        True,
        False,
    ),
    "a port that is bound to no list": (
        [((*MODULE, "settings", "createOptions"), '{"HostConfig": {"PortBindings": {"80/tcp": {"HostPort": "80"}}}}')],
        True,
        False,
    ),
    "variables of the container as an object": (
        [((*MODULE, "settings", "createOptions"), '{"Env": {"A": "1"}}')],
        True,
        False,
    ),
    "an empty text where options are no text": (
        [((*MODULE, "settings", "createOptions"), '{"Env": "", "Entrypoint": "", "HostConfig": {"Binds": null}}')],
        True,
        True,
    ),
    "tag and digest": ([((*MODULE, "settings", "image"), f"a/b:1@sha256:{'0' * 64}")], True, False),
    "a digest": ([((*MODULE, "settings", "image"), f"a/b@sha256:{'0' * 64}")], True, True),
    "an empty image": ([((*MODULE, "settings", "image"), " ")], True, False),
    "$upstream with a port": ([((*MODULE, "settings", "image"), "$upstream:443/a:1")], True, True),
    "a variable that nobody fills in": ([((*MODULE, "settings", "image"), "$registry/a:1")], True, False),
    "$upstream without a port": ([((*MODULE, "settings", "image"), "$upstream/a:1")], True, False),
    "agent 91x15, which the loose pattern takes": ([agent_version("91x15")], True, False),
    "agent 1": ([agent_version("1")], False, False),
    "agent 1.1.0": ([agent_version("1.1.0")], True, True),
    "agent 1.2": ([agent_version("1.2")], False, False),
    "agent 9.0": ([agent_version("9.0")], False, False),
    "agent 1.1 as a number": ([agent_version(1.1)], False, True),
    "agent 1.0 as a number, which JSON makes 1": ([agent_version(1.0)], False, False),
    "a version under another case": ([agent_version(GONE), ((*AGENT, "SchemaVersion"), "1.1")], False, False),
    "agent without a version": ([agent_version(GONE)], False, False),
    "hub 1.0 without routes": ([hub_version("1.0"), ((*HUB, "routes"), GONE)], False, True),
    "hub 1.1 without routes": ([((*HUB, "routes"), GONE)], False, False),
    "hub 1.0 with an empty route": ([hub_version("1.0"), (ROUTE, " ")], True, True),
    "hub 1.1 with an empty route": ([(ROUTE, " ")], True, False),
    "a time to live as text": ([((*HUB, "storeAndForwardConfiguration"), {"timeToLiveSecs": "7200"})], False, True),
    "a time to live for ever": ([((*HUB, "storeAndForwardConfiguration"), {"timeToLiveSecs": -1})], True, True),
    "a time to live beyond 2^31": (
        [((*HUB, "storeAndForwardConfiguration"), {"timeToLiveSecs": 2**31})],
        True,
        False,
    ),
    "hub 1.3": ([hub_version("1.3")], False, True),
    "hub 1.4": ([hub_version("1.4")], False, False),
    "hub 1.2 with a broker": ([hub_version("1.2"), ((*HUB, "mqttBroker"), {})], True, True),
    "a limit of the store": (
        [((*HUB, "storeAndForwardConfiguration"), {"timeToLiveSecs": 1, "storeLimits": {"maxSizeBytes": 9}})],
        False,
        True,
    ),
    "agent 1.0 with startupOrder": ([agent_version("1.0")], True, True),
    "agent 1.0 with an unknown name": ([agent_version("1.0"), ((*MODULE, "note"), "x")], True, True),
    "hub 1.0 with an object route": ([hub_version("1.0"), (ROUTE, OBJECT_ROUTE)], False, False),
    "hub 1.1 with an object route": ([(ROUTE, OBJECT_ROUTE)], True, True),
    "a priority of ten": ([(ROUTE, {**OBJECT_ROUTE, "priority": 10})], False, False),
    "a policy that is none": ([((*MODULE, "restartPolicy"), "on-failured")], False, False),
    "a policy that only the runtime knows": ([((*MODULE, "restartPolicy"), "unknown")], False, True),
    "no status": ([((*MODULE, "status"), GONE)], False, False),
    "a type that is not docker": ([((*MODULE, "type"), "podman")], False, False),
    "a startupOrder below zero": ([((*MODULE, "startupOrder"), -1)], False, False),
    "no runtime": ([((*AGENT, "runtime"), GONE)], False, False),
    "credentials without an address": (
        [((*AGENT, "runtime", "settings", "registryCredentials"), {"a": {"username": "u", "password": "p"}})],
        False,
        False,
    ),
    "credentials named as a host": (
        [
            (
                (*AGENT, "runtime", "settings", "registryCredentials"),
                {"a.example.com": {"username": "u", "password": "p", "address": "a"}},
            )
        ],
        False,
        False,
    ),
    "an empty agent section": ([(AGENT, {})], False, False),
    "an endpoint of three parts": (
        [(ROUTE, 'FROM /messages/* INTO BrokeredEndpoint("/modules/a/inputs")')],
        True,
        False,
    ),
    "a twin that is full": ([((*MODULE, "env"), {f"N{n}": {"value": "x" * 900} for n in range(40)})], True, False),
    "a string beyond 4 KB": ([((*MODULE, "env"), {"A": {"value": "x" * 4097}})], True, False),
    "a number beyond 2^52 in a module's twin": (
        [(("modulesContent", "slipway"), {"properties.desired": {"n": 2**53}})],
        True,
        False,
    ),
    "a null inside an array": (
        [(("modulesContent", "slipway"), {"properties.desired": {"n": [None]}})],
        True,
        False,
    ),
    "eleven levels": (
        [(("modulesContent", "slipway"), {"properties.desired": json.loads('{"a":' * 12 + "1" + "}" * 12)})],
        True,
        False,
    ),
    "fifty-one modules": (
        [((*AGENT, "modules"), {f"m{n}": dict(BASE[AGENT[0]][AGENT[1]][AGENT[2]]["modules"]["slipway"], env={})
                                for n in range(51)})],
        True,
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", DISAGREEMENTS)
def test_each_validator_answers_for_itself(story: str):
    changes, schema_ok, runtime_ok = DISAGREEMENTS[story]
    report = judged(changed(*changes))
    assert (report.schema.is_ok, report.runtime.is_ok) == (schema_ok, runtime_ok), report.to_wire()
    assert report.is_ok == (schema_ok and runtime_ok)


CODES = {
    "agent 1.2": 412,
    "agent 1": 412,
    "an empty agent section": 417,
    "a route of wrong grammar": 400,
    "an empty image": 400,
}


@pytest.mark.parametrize("story", CODES)
def test_a_refusal_has_the_status_that_the_device_would_report(story: str):
    report = judged(changed(*DISAGREEMENTS[story][0]))
    assert {problem.code for problem in report.runtime.problems} == {CODES[story]}


@pytest.mark.parametrize("story", [story for story, (_, _, is_ok) in DISAGREEMENTS.items() if not is_ok])
def test_a_problem_has_a_place_and_a_line_within_the_text(story: str):
    document = changed(*DISAGREEMENTS[story][0])
    count = json.dumps(document, indent=1).count("\n") + 1
    for problem in judged(document).to_wire()["runtime"]["problems"]:
        assert 1 <= problem["line"] <= count
        assert problem["path"].startswith("modulesContent")
        assert problem["reason"]


def test_a_problem_names_its_line_its_reason_and_its_mend():
    text = json.dumps(changed(((*MODULE, "restartPolicy"), "on-failured")), indent=2)
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "on-failured" in each)
    report = validate(text, SCHEMAS).to_wire()
    assert report["runtime"]["problems"] == [
        {
            "path": "modulesContent/$edgeAgent/properties.desired/modules/slipway/restartPolicy",
            "line": line,
            "reason": "restartPolicy is 'on-failured'",
            "mend": "Write on-failure.",
            "code": 400,
        }
    ]
    assert [problem["line"] for problem in report["schema"]["problems"]] == [line]


UNREADABLE = {
    "nothing": (b"", "ends too early"),
    "a comment": (b'{\n // why\n "a": 1}', "a comment is no JSON (column 2)"),
    "a comma too much": (b'{"a": 1,}', "a comma before '}'"),
    "a placeholder outside quotes": (b'{"modulesContent": {"a": ${TTL}}}', "the placeholder ${TTL} stands outside"),
    "single quotes": (b"{'a': 1}", "a name in double quotes is missing"),
    "a number beyond every reader": (b'{"a": 1e999}', "larger than any that JSON readers keep"),
    "more after the end": (b"{} {}", "more after the end"),
    "half a string": (b'{"a', "a string is broken"),
    "no UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "too deep": (b"[" * 500, "nests deeper than 64 levels"),
    "a list": (b"[]", "not a JSON object"),
    "no modulesContent": (b'{"modules": {}}', "there is no modulesContent"),
    "modules at the top": (b'{"$edgeAgent": {}}', "the modules stand at the top"),
    "a device configuration": (b'{"content": {"deviceContent": {}}}', "configures device twins"),
    "a module configuration": (
        b'{"content": {"moduleContent": {"properties.desired.a": 1}}}',
        "configures the twins of modules",
    ),
    "no module": (b'{"modulesContent": {}}', "names no module"),
}


@pytest.mark.parametrize("story", UNREADABLE)
def test_what_is_no_manifest_is_refused_with_its_reason(story: str):
    text, words = UNREADABLE[story]
    report = validate(text, SCHEMAS)
    assert (report.schema.is_ok, report.runtime.is_ok, report.is_ok) == (None, False, False)
    assert words in report.runtime.problems[0].reason


SHAPES = {
    "plain": lambda modules: {"modulesContent": modules},
    "exported by a hub": lambda modules: {"id": "a", "priority": 3, "content": {"modulesContent": modules}},
    "old": lambda modules: {"moduleContent": modules},
    "old, under content": lambda modules: {"content": {"moduleContent": modules}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_manifest_is_found_in_every_shape_in_use(shape: str):
    report = judged(SHAPES[shape](BASE["modulesContent"]))
    assert (report.kind, report.schema.is_ok, report.runtime.is_ok) == ("base", True, True)
    assert bool(report.warnings) == shape.startswith("old")


def test_a_byte_order_mark_does_no_harm():
    assert validate(b"\xef\xbb\xbf" + json.dumps(BASE).encode(), SCHEMAS).is_ok


LAYER: dict[str, Any] = {
    "$edgeAgent": {"properties.desired.modules.scorer": {"type": "docker", "status": "running",
                                                         "settings": {"image": "a:1"}}},
    "$edgeHub": {"properties.desired.routes.up": "FROM /messages/* INTO $upstream"},
    "scorer": {"properties.desired.model": {"version": "7"}},
}  # fmt: skip
LAYERS = {
    "as it should be": ({}, True),
    "with an empty agent": ({"$edgeAgent": {}}, True),
    "without an agent": ({"$edgeAgent": GONE}, False),
    "with a runtime": ({"$edgeAgent": {"properties.desired.runtime": {}}}, False),
    "with credentials of one more registry": (
        {
            "$edgeAgent": {
                "properties.desired.runtime.settings.registryCredentials.b": {
                    "username": "u",
                    "password": "p",
                    "address": "b.azurecr.io",
                }
            }
        },
        True,
    ),
    "with half of them": ({"$edgeAgent": {"properties.desired.runtime.settings.registryCredentials.b": {}}}, False),
    "with a system module": ({"$edgeAgent": {"properties.desired.systemModules.edgeHub": {}}}, False),
    "with a schema version": ({"$edgeHub": {"properties.desired.schemaVersion": "1.1"}}, False),
    "with a bad module": ({"$edgeAgent": {"properties.desired.modules.a": {"type": "docker"}}}, False),
    "with a bad route": ({"$edgeHub": {"properties.desired.routes.a": "FROM a INTO b"}}, False),
    "with the whole section of edgeHub": (
        {"$edgeHub": {"properties.desired": BASE["modulesContent"]["$edgeHub"]["properties.desired"]}},
        True,
    ),
    "with a bad route in the whole section of edgeHub": (
        {"$edgeHub": {"properties.desired": {"schemaVersion": "1.0", "routes": {"a": "FROM a INTO b"}}}},
        False,
    ),
    "with a setting beside the desired ones": ({"scorer": {"properties.reported.a": 1}}, False),
}


@pytest.mark.parametrize("story", LAYERS)
def test_a_layer_is_judged_by_the_runtime_alone(story: str):
    changes, runtime_ok = LAYERS[story]
    modules = {name: value for name, value in {**LAYER, **changes}.items() if value is not GONE}
    report = judged({"content": {"modulesContent": modules}})
    assert (report.kind, report.schema.is_ok, report.combined.is_ok) == ("layered", None, None)
    assert report.runtime.is_ok == runtime_ok, report.to_wire()


PATCHES: dict[str, tuple[Any, bool]] = {
    "of a release": ({"models": {"digits": {"version": 3}}}, True),
    "that deletes": ({"models": None}, True),
    "with a name that no twin takes": ({"a.b": 1}, False),
    "that is too much": ({f"k{n}": "x" * 1000 for n in range(40)}, False),
    "that is none": ([], False),
}


@pytest.mark.parametrize("story", PATCHES)
def test_a_patch_of_a_twin_is_judged_by_the_runtime_alone(story: str):
    desired, runtime_ok = PATCHES[story]
    report = judged({"properties": {"desired": desired}})
    assert (report.kind, report.schema.is_ok, report.combined.is_ok) == ("twin", None, None)
    assert report.runtime.is_ok == runtime_ok, report.to_wire()


WARNED = {
    "a tag that moves": ([((*MODULE, "settings", "image"), "a:latest")], "moves"),
    "a name without a tag": ([((*MODULE, "settings", "image"), "a")], "moves"),
    "ports outside HostConfig": (
        [((*MODULE, "settings", "createOptions"), '{"PortBindings": {}}')],
        "PortBindings stands outside HostConfig",
    ),
    "options as an object": ([((*MODULE, "settings", "createOptions"), {})], "the runtime takes and deployment tools"),
    "options in single quotes": ([((*MODULE, "settings", "createOptions"), "{'Env': []}")], "lenient reader"),
    "a name without quotes": (
        [((*MODULE, "settings", "createOptions"), '{"Env": [], HostConfig: {"Privileged": "true"}}')],
        "lenient reader",
    ),
    "mounts outside HostConfig": (
        [((*MODULE, "settings", "createOptions"), '{"Mounts": []}')],
        "Mounts stands outside HostConfig",
    ),
    "a password that is the name of a variable": (
        [((*MODULE, "env"), {"A": {"value": "$REGISTRY_PASSWORD_acr"}})],
        "a variable that nobody filled in",
    ),
    "settings of the runtime without a Docker version": (
        [((*AGENT, "runtime", "settings", "minDockerVersion"), GONE)],
        "without minDockerVersion",
    ),
    "a star in the middle": ([(ROUTE, "FROM /messages/*/outputs/x INTO $upstream")], "taken by the letter"),
    "a route from nobody": ([(ROUTE, "FROM /messages/modules/ghost/* INTO $upstream")], "runs no module 'ghost'"),
    "a broker": ([hub_version("1.2"), ((*HUB, "mqttBroker"), {})], "taken out of edgeHub"),
    "nine pieces": (
        [((*MODULE, "settings"), {"image": "a:1", "createOptions": "{", "createOptions01": "}",
                                  **{f"createOptions{n:02d}": " " for n in range(2, 9)}})],
        "9 pieces",
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", WARNED)
def test_what_is_taken_and_yet_a_mistake_is_said(story: str):
    changes, words = WARNED[story]
    report = judged(changed(*changes))
    assert report.runtime.is_ok, report.to_wire()
    assert any(words in warning.reason for warning in report.warnings)


def test_a_name_that_comes_twice_is_said():
    text = json.dumps(BASE).replace('"status":', '"status": "stopped", "status":', 1)
    assert [warning.reason for warning in validate(text, SCHEMAS).warnings] == [
        "'status' is there twice; the last one counts"
    ]


def test_the_size_of_each_twin_is_told_and_a_tight_one_warned_of():
    twin = {"properties.desired": {f"k{n}": "x" * 1000 for n in range(27)}}
    report = judged(changed((("modulesContent", "slipway"), twin)))
    sizes = {size.module: size.size_bytes for size in report.twins}
    assert sizes["slipway"] == len(json.dumps(twin["properties.desired"], separators=(",", ":")))
    assert report.runtime.is_ok
    assert any(f"{sizes['slipway']:,} bytes" in warning.reason for warning in report.warnings)


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, -0, 1e3, true, null, "\\u00e9\\n"]}', "0", '"x"', " [ ] ", '{"a":{"b":{}}}']
)
def test_json_is_read_as_the_library_reads_it(text: str):
    assert read_json(text).value == json.loads(text)


@pytest.mark.parametrize("text", ["01", "+1", "[1,]", '{"a" 1}', '{"a": }', '"\t"', "tru", "--1", '{"a": 1 "b"}', ""])
def test_what_the_library_refuses_is_refused(text: str):
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(JsonTextError):
        read_json(text)


def test_words_that_are_no_json_are_refused_where_the_library_takes_them():
    with pytest.raises(JsonTextError):
        read_json("[NaN]")


def shared_cases() -> list[dict[str, Any]]:
    index = SHARED / "index.json"
    return json.loads(index.read_bytes()) if index.is_file() else []


def test_every_collected_manifest_is_judged_as_its_index_says():
    cases = shared_cases()
    if not cases:
        pytest.skip("the collected manifests are kept beside the repository, in shared/data/manifests")
    differences = []
    for case in cases:
        path = SHARED / case["file"]
        report = validate(path.read_bytes(), SCHEMAS, name=path.name)
        told = (report.schema.is_ok, report.combined.is_ok, report.runtime.is_ok, report.is_ok)
        if told != (case["schema_ok"], case["combined_2_0_ok"], case["runtime_ok"], case["verdict"] == "valid"):
            differences.append((case["file"], told, report.to_wire()))
    assert differences == []
    assert len(cases) > 60


def test_the_schemas_are_the_published_ones():
    published = SHARED.parent / "schemas"
    if not published.is_dir():
        pytest.skip("the published schemas are kept beside the repository, in shared/data/schemas")
    for name, schema in SCHEMAS.items():
        assert schema == json.loads((published / name).read_bytes())
