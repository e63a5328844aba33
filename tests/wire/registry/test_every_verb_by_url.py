"""Every command of `slipway`, at a registry of one's own and at a server by URL: the same results, words and codes.

`STEPS` are run in order on two registries that begin alike. What a server has no part in is a list in
docs/registry/server.md.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_registry import telemetry_wiring, wiring
from cloud_registry.cli import main
from cloud_registry.config import read_config
from cloud_registry.errors import UsageError
from cloud_registry.service.verbs import GROUPS, VERBS
from tests.unit.images.tiny_images import save_base
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, save_arrays
from tests.wire.images.registries import FaultyRegistry, faulty_registry
from tests.wire.registry.served import Served, serving

pytestmark = pytest.mark.wire

BUILD = "image build digits:1 --base tar:base.tar --platform linux/amd64"
# A command line, and what about its output may differ: "" for nothing but instants and the ids of keys, "numbers" for
# what is measured, "words" where the server refuses for a reason of its own.
STEPS: tuple[tuple[str, str], ...] = (
    ("model register digits digits.onnx --sample sample.npz --tag team=sound", ""),
    ("model register digits digits.onnx --dry-run", ""),
    ("model register other none.onnx", ""),
    ("model list", ""),
    ("model show digits:1 --json", ""),
    ("model show digits:9", ""),
    ("model search --tag team=vision --json", ""),
    ("model tag digits:1 stage=production", ""),
    ("model property digits:1 line=3", ""),
    ("model alias digits:1 champion", ""),
    ("model alias digits --json", ""),
    ("model alias digits --moves", ""),
    ("model lineage digits:1", ""),
    ("model history digits --json", ""),
    ("model diff digits:1 digits:1", ""),
    ("model diff digits:1 digits:9", ""),
    ("model download digits:1 out", ""),
    ("model benchmark digits:1 --duration 0.1", "numbers"),
    ("model archive digits:2", ""),
    ("model restore digits:2", ""),
    ("model manifest show digits:1 --json", ""),
    ("model manifest edit digits:1 --unrequire nothing", ""),
    ("model manifest edit digits:1 --script score.py --env A=1 --dry-run", ""),
    ("model manifest edit digits:1 --script score.py --env A=1 --json", ""),
    ("model manifest edit digits:1 --file stale.json", ""),
    ("model manifest edit digits:1 --file bare.json", ""),
    ("model manifest show digits:1 --history", ""),
    (f"{BUILD} --dry-run", ""),
    (f"{BUILD} --push {{registry}}/line/digits:1", "numbers"),
    (f"{BUILD} --output tar:image.tar", ""),
    (f"{BUILD} --name Capital", ""),
    ("image list --json", ""),
    ("image inspect slipway-digits:1", ""),
    ("image inspect nothing:1", ""),
    ("image sbom slipway-digits:1", ""),
    ("manifest create digits:1 -o deployment.json", ""),
    ("manifest pin tagged.json", ""),
    ("image push slipway-digits:1 {registry}/line/other:1", "numbers"),
    ("image context digits:1 context", ""),
    ("image test slipway-none:1 --model digits:1", ""),
    ("model delete digits:1 --offline", ""),
    ("model delete digits:1 --offline --dry-run --json", ""),
    ("image delete slipway-digits:1", ""),
    ("image delete slipway-digits:1 --force --dry-run", ""),
    ("image delete slipway-digits:1 --force --json", ""),
    ("image prune --json", ""),
    ("manifest create digits:1", ""),
    ("manifest create digits:9", ""),
    ("model alias digits --remove champion", ""),
    ("model delete digits:1 --offline", ""),
    ("model delete digits:1 --offline", ""),
    ("model prune --json", ""),
    ("registry gc --dry-run", ""),
    ("registry gc --older-than 0s --json", ""),
    ("registry verify --quick", ""),
    ("registry verify --json", ""),
    ("registry backup {backups} --json", "numbers"),
    ("registry backups {backups}", "numbers"),
    ("registry verify --repair-from {backups}", ""),
    ("registry restore {backups}", "words"),
    ("key create line-3 --role device --device line-3-*", ""),
    ("key create ci --role operator --role publisher --valid-for 90d --json", ""),
    ("key create nobody --role device", ""),
    ("key list", ""),
    ("key revoke none", ""),
    ("key revoke {old_key}", ""),
    ("telemetry collect", ""),
    ("telemetry list --json", ""),
    ("telemetry summary", ""),
    ("device list", ""),
    ("rollout plan digits:2 --device a", ""),
    ("rollout start digits:2 --device a", ""),
    ("rollout list --json", ""),
    *((f"rollout {command} r-0001", "") for command in ("status", "history", "watch", "pause", "resume", "abort")),
    ("rollout rollback r-0001", ""),
)
# Commands and verbs that have a story of their own, with the test that tells it.
ELSEWHERE = {
    "slipway trust": "test_remote_trust.py",
}
# While a rollout is under way: tests/wire/rollouts/test_remote_rollout.py.
VERBS_ELSEWHERE = {"rollouts.conflicts", "rollouts.controller"}


@dataclass
class Side:
    """One of the two: where its commands are run, and what they are told by the environment."""

    folder: Path
    environment: dict[str, str | None]
    words: dict[str, str] = field(default_factory=dict)

    def run(self, line: str) -> tuple[int, str, str]:
        os.chdir(self.folder)
        arguments = [word.format(**self.words) for word in line.split()]
        result = CliRunner().invoke(main, arguments, env=self.environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
        return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def container_registry() -> Iterator[FaultyRegistry]:
    with faulty_registry() as server:
        yield server


@pytest.fixture
def sides(tmp_path: Path, container_registry: FaultyRegistry, monkeypatch) -> Iterator[tuple[Side, Side, Served]]:
    """A registry at home and one by URL with the same model version, the same keys and the same files beside them."""
    for name in ("SLIPWAY_REGISTRY", "SLIPWAY_API_KEY", "IOTHUB_CONNECTION_STRING", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    _write_files(files)
    home, config = tmp_path / "home", read_config(tmp_path / "home", {})
    first = Side(files, {"SLIPWAY_HOME": str(home)})
    first.run("model register digits digits.onnx --sample sample.npz --tag team=vision")
    key = wiring.open_keys(config).create("admin", ["publisher", "operator"])[1]
    old_key = wiring.open_keys(config).create("old", ["reader"])[0].id
    with serving(home, config, backup_urls=(f"file://{tmp_path}/server-backups",)) as served:
        shutil.copytree(home, tmp_path / "twin")
        for name in ("here", "there"):
            shutil.copytree(files, tmp_path / name)
        environment = {"SLIPWAY_REGISTRY": served.url, "SLIPWAY_API_KEY": key, "SLIPWAY_HOME": str(tmp_path / "client")}
        words = {"registry": container_registry.host, "old_key": old_key}
        here = Side(tmp_path / "here", {"SLIPWAY_HOME": str(tmp_path / "twin")})
        there = Side(tmp_path / "there", {**environment})
        here.words = {**words, "backups": f"file://{tmp_path}/own-backups"}
        there.words = {**words, "backups": f"file://{tmp_path}/server-backups"}
        yield here, there, served
        os.chdir(tmp_path)


def _write_files(folder: Path) -> None:
    linear_onnx(folder / "digits.onnx", IDENTITY)
    save_arrays(folder / "sample.npz", input_x=ROWS)
    save_base(folder / "base.tar")
    (folder / "score.py").write_text("def init():\n    pass\n\n\ndef run(data):\n    return data\n")


def _say_tag(side: Side) -> None:
    """The manifest that was made, with the image by its tag again."""
    made = (side.folder / "deployment.json").read_text()
    (side.folder / "tagged.json").write_text(re.sub(r"/digits@sha256:[0-9a-f]{64}", "/digits:1", made))


def _say_recipes(side: Side) -> None:
    """Recipes as a person would write them: of the newest revision without packages, and of one that is long gone."""
    shown = json.loads(side.run("model manifest show digits:1 --json")[1])
    (side.folder / "bare.json").write_text(json.dumps({**shown, "requirements": []}))
    (side.folder / "stale.json").write_text(json.dumps({**shown, "revision": 1, "base": "other:1"}))


MASKS = (
    (r"\d{4}-\d\d-\d\dT[\d:.+Z]+", "INSTANT"),
    (r"\d{8}T\d+Z", "BACKUP"),
    (r"slipway_[0-9a-f]{4}(…|[0-9a-f]{8}(_[\w-]+)?)", "KEY"),
    (r"\b[0-9a-f]{12}\b", "ID"),
)


def _masked(said: tuple[int, str, str], differs: str) -> tuple[int, str]:
    code, text = said[0], said[1] + "\0" + said[2]
    if differs == "words":
        return code, ""
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    if differs == "numbers":
        # A column is as wide as its widest number.
        text = re.sub(r"[ ─━-]+", " ", re.sub(r"sha256:[0-9a-f]{64}|\d[\d.,e+-]*", "N", text))
    return code, text


def test_every_command_is_the_same_by_url(sides: tuple[Side, Side, Served]):
    here, there, served = sides
    unlike = []
    for line, differs in STEPS:
        for side in (here, there):
            if "stale.json" in line:
                _say_recipes(side)
            if "tagged.json" in line:
                _say_tag(side)
        at_home, asked_before = here.run(line), len(served.audit())
        by_url = there.run(line)
        if _masked(by_url, differs) != _masked(at_home, differs):
            unlike.append((line, by_url, at_home))
        # What is wrong with a file of this machine, or a name, is told before anybody is asked.
        assert len(served.audit()) > asked_before or by_url[0] in (2, 6), line
    assert unlike == []
    # Key and secret are nowhere but in the answer.
    assert re.search(r"slipway_[0-9a-f]{12}_", "".join(served.audit())) is None
    with pytest.raises(UsageError, match="no telemetry stream is configured"):
        telemetry_wiring.open_telemetry_verbs(served.as_role("reader")).source_name()
    asked = {json.loads(line)["what"] for line in served.audit()}
    trust = {verb.id for verb in VERBS if GROUPS[verb.protocol] == "trust"}
    assert sorted({verb.id for verb in VERBS} - asked - trust) == sorted(VERBS_ELSEWHERE)
