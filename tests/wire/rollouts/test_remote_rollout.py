"""`slipway rollout` and `slipway device` against a server: nobody but the server has the hub's key or the catalog."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from scripted_devices import Stage, until

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.service.registration import Registration
from tests.unit.registry.registry_models import IDENTITY, linear_onnx

pytestmark = pytest.mark.wire

QUICK = ("--soak", "0s", "--timeout", "20s", "--trial-seconds", "1")


class Office:
    """A place with nothing but the server's URL and a key of each role."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        config = read_config(stage.home, {})
        self.model = wiring.open_models(config).register(
            Registration("digits", (linear_onnx(folder / "digits.onnx", IDENTITY),))
        )
        keys = wiring.open_keys(config)
        self.keys = {role: keys.create(role, [role])[1] for role in ("reader", "operator")}
        self.keys |= {device: keys.create(device, ["device"], [device])[1] for device in ("dev-01", "dev-02")}
        self.server = stage.begin("serve", "--port", "0", "--tick", "0.1")
        assert self.server.stdout is not None
        match = re.fullmatch(r"Serving artifacts on (http://\S+)/artifacts/\n", self.server.stdout.readline())
        assert match is not None
        self.url = match[1]
        self._elsewhere = str(folder / "elsewhere")

    def slipway(self, *words: str, role: str = "operator", expect: int = 0) -> tuple[str, str]:
        return self.stage.slipway_here(
            *words,
            expect=expect,
            SLIPWAY_HOME=self._elsewhere,
            SLIPWAY_REGISTRY=self.url,
            SLIPWAY_API_KEY=self.keys[role],
            IOTHUB_CONNECTION_STRING="",
        )

    def same_as_at_home(self, *words: str) -> bool:
        return self.slipway(*words, role="reader") == self.stage.slipway_here(*words)

    def fetch(self, device: str, target: str) -> int:
        answer = requests.get(f"{self.url}/artifacts/{target}", auth=("device", self.keys[device]), timeout=20)
        return answer.status_code


@pytest.fixture
def office(stage: Stage, tmp_path: Path) -> Office:
    return Office(stage, tmp_path)


def test_a_rollout_is_begun_watched_and_taken_back_from_afar(office: Office, stage: Stage):
    assert office.fetch("dev-01", "digits/4/model.onnx") == 403
    planned = json.loads(
        office.slipway("rollout", "plan", "digits:4", "--device", "dev-01", *QUICK, "--json", role="reader")[0]
    )
    assert (planned["version"], [wave["devices"] for wave in planned["waves"]]) == (4, [["dev-01"]])
    _, err = office.slipway("rollout", "start", "digits:4", "--device", "dev-01", *QUICK, role="reader", expect=7)
    assert "'reader' is reader, and this takes the role operator" in err
    out, err = office.slipway("rollout", "start", "digits:4", "--device", "dev-01", "--waves", "100%", *QUICK, "--json")
    assert (json.loads(out)["id"], json.loads(out)["state"]) == ("r-0001", "completed")
    assert "wave 1 opened for 1 device" in err
    assert stage.running() == {"dev-01": 4, "dev-02": None, "dev-03": None}
    # What its fleet is offered, and nothing else.
    assert [office.fetch("dev-01", f"digits/{version}/model.onnx") for version in (1, 4)] == [403, 200]
    assert office.fetch("dev-02", "digits/4/model.onnx") == 403
    for words in (
        ("rollout", "list", "--json"),
        ("rollout", "status", "r-0001"),
        ("rollout", "history", "r-0001", "--json"),
        ("device", "list", "--json"),
        ("telemetry", "summary", "--json"),
    ):
        assert office.same_as_at_home(*words), words
    out, _ = office.slipway("rollout", "start", "digits:4", "--device", "dev-01", *QUICK, "--json")
    assert json.loads(out)["skipped"] == [{"device": "dev-01", "reason": "already runs digits:4"}]
    out, _ = office.slipway("rollout", "rollback", "r-0001", "--reason", "accuracy fell", "--json")
    assert (json.loads(out)["kind"], json.loads(out)["state"]) == ("rollback", "completed")
    assert stage.running()["dev-01"] is None


def test_the_gates_word_and_its_exit_code_come_from_afar(office: Office, stage: Stage):
    for device in stage.devices.values():
        device.scripts = {2: "reverts"}
    out, err = office.slipway("rollout", "start", "digits:2", "--waves", "1,100%", *QUICK, "--json", expect=3)
    assert json.loads(out)["reason"] == "1 of 1 device failed (1 reverted); tolerated: 0"
    assert "was rolled back: 1 of 1 device failed" in err


def test_a_rollout_is_paused_resumed_and_aborted_from_afar(office: Office, stage: Stage):
    for device in stage.devices.values():
        device.scripts = {3: "is silent"}
    office.slipway("rollout", "start", "digits:3", "--waves", "1,100%", *QUICK, "--detach")
    until(lambda: sum(stage.desired(d) is not None for d in stage.devices) == 1, "the first offer")
    out, _ = office.slipway("rollout", "pause", "r-0001", "--reason", "lunch")
    assert out == "Rollout r-0001 digits:3 is paused.\n"
    assert stage.status("r-0001")["reason"] == "lunch"
    conflict = office.slipway("rollout", "start", "digits:2", "--waves", "1,100%", *QUICK, expect=5)[1]
    assert "r-0001" in conflict
    office.slipway("rollout", "resume", "r-0001", "--detach")
    out, _ = office.slipway("rollout", "abort", "r-0001", "--reason", "enough", "--detach", "--json")
    assert json.loads(out)["state"] in ("aborting", "aborted")
    office.slipway("rollout", "status", "r-0009", role="reader", expect=6)


def test_without_a_controller_the_person_is_told(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begin: Callable[..., Any] = stage.begin
    monkeypatch.setattr(stage, "begin", lambda *words: begin(*words, "--no-controller"))
    office = Office(stage, tmp_path)
    office.slipway("rollout", "start", "digits:1", "--detach", *QUICK)
    process = begin("rollout", "watch", "r-0001", SLIPWAY_REGISTRY=office.url, SLIPWAY_API_KEY=office.keys["reader"])
    assert process.stderr is not None
    said = ""
    while "Nobody drives r-0001" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
