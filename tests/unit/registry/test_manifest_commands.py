"""`slipway manifest` as a person calls it: results, words, exit codes, and files that are whole or not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud_registry.cli import main

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
DEPLOYMENT = json.loads((EXAMPLES / "deployment.json").read_bytes())
DIGEST = "sha256:" + "0" * 64
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **options: CliRunner().invoke(main, ["manifest", *arguments], **options)


def write(name: str, document: Any) -> str:
    Path(name).write_text(document if isinstance(document, str) else json.dumps(document, indent=2))
    return name


def template() -> dict[str, Any]:
    document = json.loads(json.dumps(DEPLOYMENT))
    module = document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"]
    module["settings"] = {"image": "${MODULES.slipway}", "createOptions": {"HostConfig": {}}}
    module["env"] = {"KEY": {"value": "${KEY}"}}
    return {"$schema-template": "4.0.0", **document}


def test_validate_answers_with_both_verdicts(run: Run):
    result = run("validate", "--json", write("deployment.json", DEPLOYMENT))
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert told["schema"] == {"ok": True, "problems": []}
    assert told["runtime"] == {"ok": True, "problems": []}
    assert (told["ok"], told["kind"], told["template"], told["warnings"]) == (True, "base", False, [])
    assert [size["module"] for size in told["twins"]] == ["$edgeAgent", "$edgeHub"]


def test_validate_refuses_with_exit_code_one_and_says_where(run: Run):
    text = json.dumps(DEPLOYMENT, indent=2).replace("FROM /messages", "FORM /messages")
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "FORM" in each)
    result = run("validate", write("deployment.json", text))
    assert result.exit_code == 1
    assert "schema   takes it" in result.stdout
    assert f"line {line}: the route is not understood at column 1" in result.stdout
    assert "Begin with FROM" in result.stdout


def test_validate_reads_stdin_and_says_what_is_not_there(run: Run):
    assert run("validate", "-", input=json.dumps(DEPLOYMENT)).exit_code == 0
    assert run("validate", "--json", "-", input="{").exit_code == 1
    assert run("validate", "ghost.json").exit_code == 6
    assert run("validate", ".").exit_code == 2


def test_half_a_character_is_told_as_json_writes_it(run: Run):
    text = r'{"modulesContent": {"$edgeAgent": {"properties.desired": {"schemaVersion": "\ud800"}}}}'
    result = run("validate", "--json", write("deployment.json", text))
    assert result.exit_code == 1
    assert any("ud800" in problem["reason"] for problem in json.loads(result.stdout)["runtime"]["problems"])
    assert run("validate", "deployment.json").exit_code == 1


def test_validate_tells_so_many_problems_and_no_more(run: Run):
    modules = {f"m{number}": {} for number in range(3000)}
    document = {"modulesContent": {"$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": modules}}}}
    told = json.loads(run("validate", "--json", write("deployment.json", document)).stdout)
    assert [len(told[judge]["problems"]) for judge in ("schema", "runtime", "combined")] == [200, 200, 200]


def test_render_fills_a_template_in_or_writes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch):
    file = write("deployment.template.json", template())
    refused = run("render", file, "-o", "out.json")
    assert (refused.exit_code, Path("out.json").exists()) == (2, False)
    assert "KEY, MODULES.slipway" in refused.stderr
    write(".env", "KEY=from the file\n")
    module = {"image": {"repository": "example.azurecr.io/slipway", "tag": {"version": "3"}}}
    Path("modules/slipway").mkdir(parents=True)
    write("modules/slipway/module.json", module)
    run("render", file, "--platform", "arm64v8", "-o", "out.json")
    written = json.loads(Path("out.json").read_bytes())
    entry = written["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["slipway"]
    assert entry["settings"] == {"image": "example.azurecr.io/slipway:3-arm64v8", "createOptions": '{"HostConfig":{}}'}
    assert entry["env"] == {"KEY": {"value": "from the file"}}
    assert "$schema-template" not in written
    monkeypatch.setenv("KEY", "from the environment")
    assert "from the environment" in run("render", file).stdout
    assert "from the line" in run("render", file, "--set", "KEY=from the line").stdout


def test_a_template_is_written_from_a_manifest_and_renders_back(run: Run):
    file = write("deployment.json", DEPLOYMENT)
    assert run("template", file, "--module", "slipway", "-o", "deployment.template.json").exit_code == 0
    assert "${MODULES.slipway}" in Path("deployment.template.json").read_text()
    result = run("render", "deployment.template.json", "--set", "MODULES.slipway=slipway-digits:3")
    assert json.loads(result.stdout) == DEPLOYMENT


def test_pin_puts_a_digest_in_the_place_of_a_tag(run: Run):
    file = write("deployment.json", DEPLOYMENT)
    result = run("pin", file, "--digest", f"slipway-digits:3={DIGEST}", "-o", "pinned.json")
    assert (result.exit_code, f"slipway-digits@{DIGEST}" in Path("pinned.json").read_text()) == (0, True)
    assert run("validate", "pinned.json").exit_code == 0
    for wrong in ("slipway-digits:3", "slipway-digits:3=sha256:1", f"ghost:1={DIGEST}"):
        assert run("pin", file, "--digest", wrong).exit_code == 2


def layer(image: str, **around: Any) -> dict[str, Any]:
    entry = {"type": "docker", "status": "running", "settings": {"image": image}}
    content = {"modulesContent": {"$edgeAgent": {"properties.desired.modules.scorer": entry}}}
    return {"content": content, **around}


def test_preview_says_what_a_device_would_run_and_who_lost(run: Run):
    files = [
        write("base.json", DEPLOYMENT),
        write("one.json", layer("scorer:1", id="one", priority=5, targetCondition="*")),
        write("two.json", layer("scorer:2", id="two", priority=6, targetCondition="tags.site = 'a'")),
    ]
    told = json.loads(run("preview", *files, "--json").stdout)
    assert told["applied"] == ["base.json", "one", "two"]
    path = "properties.desired.modules.scorer"
    assert told["lost"] == [{"deployment": "one", "module": "$edgeAgent", "path": path, "by": "two"}]
    modules = told["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    assert {name: entry["settings"]["image"] for name, entry in modules.items()} == {
        "slipway": "slipway-digits:3",
        "scorer": "scorer:2",
    }
    devices = write("devices.json", [{"deviceId": "gw-1", "tags": {"site": "b"}}])
    words = run("preview", *files, "--devices", devices, "--device", "gw-1").stdout
    assert "Applied, low to high: base.json, one" in words
    assert "Left out: two: its target condition does not hold" in words
    assert run("preview", *files, "--devices", devices, "--device", "gw-9").exit_code == 6
    assert run("preview", *files, "--device", "gw-1").exit_code == 2
    assert run("preview", files[0], files[0]).exit_code == 2


def test_targets_lists_the_devices_that_meet_a_condition(run: Run):
    twins = [
        {"deviceId": "gw-1", "tags": {"site": "a"}, "capabilities": {"iotEdge": True}},
        {"deviceId": "leaf-1", "tags": {"site": "a"}},
        {"deviceId": "gw-2", "tags": {"site": "b"}, "capabilities": {"iotEdge": True}},
    ]
    devices = write("devices.json", twins)
    condition = "tags.site = 'a'"
    assert run("targets", condition, "--devices", devices).stdout.split() == ["gw-1", "leaf-1"]
    assert run("targets", condition, "--devices", devices, "--edge-only").stdout.split() == ["gw-1"]
    configuration = write("layer.json", layer("scorer:1", targetCondition="tags.site = 'b'"))
    told = json.loads(run("targets", configuration, "--devices", devices, "--json").stdout)
    assert told == {"condition": "tags.site = 'b'", "devices": ["gw-2"], "of": 3}
    refused = run("targets", "tags.site == 'a'", "--devices", devices)
    assert (refused.exit_code, "compare with =" in refused.stderr) == (2, True)
    assert run("targets", condition, "--devices", write("devices.json", {"a": 1})).exit_code == 2


WRONG_FILES = {"no JSON": "{", "no manifest": '{"a": 1}'}


@pytest.mark.parametrize("story", WRONG_FILES)
@pytest.mark.parametrize("command", [["template"], ["preview"], ["pin", "--digest", f"a:1={DIGEST}"], ["render"]])
def test_a_file_that_is_no_manifest_is_told_in_a_sentence(run: Run, story: str, command: list[str]):
    result = run(*command, write("deployment.json", WRONG_FILES[story]))
    assert (result.exit_code, "Error: deployment.json" in result.stderr) == (2, True), result.output
    assert "Traceback" not in result.output
