"""What Linux and the operator's hooks tell of the machine, and the models that a device was provisioned with."""

import mmap
import sys
import time
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from device_agent import wiring
from device_agent.adapters.factory_models import read_factory_models
from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.linux_machine import Hooks, LinuxMachine, read_hook, read_timezone, run_hook
from device_agent.config import AgentConfig, Identity
from device_agent.config.identities import ByEdgeEnvironment
from device_agent.config.settings import Settings, UpdateSettings, read_settings
from device_agent.core.deferral import Window
from device_agent.errors import ConfigurationError, StepError
from manifests.canonical import digest_of
from manifests.model import Artifact, ModelManifest, Signature, TensorSpec

KIB = 1024


def machine(root: Path, files: dict[str, str], **hooks) -> LinuxMachine:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return LinuxMachine(Hooks(**hooks), root=root)


MEMINFO = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     600 kB\n"
# A sentence -> (files, free bytes).
MEMORIES = {
    "a machine without limits": ({"proc/meminfo": MEMINFO}, 600 * KIB),
    "a container with a limit": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": str(500 * KIB),
            "sys/fs/cgroup/memory.current": str(400 * KIB),
            "sys/fs/cgroup/memory.stat": f"anon 7\ninactive_file {50 * KIB}\n",
        },
        150 * KIB,
    ),
    "a container whose limit is its parent's": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/edge/agent\n",
            "sys/fs/cgroup/edge/memory.max": str(300 * KIB),
            "sys/fs/cgroup/edge/memory.current": str(200 * KIB),
            "sys/fs/cgroup/edge/agent/memory.max": "max",
            "sys/fs/cgroup/edge/agent/memory.current": str(10 * KIB),
        },
        100 * KIB,
    ),
    "an older kernel": (
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:cpu:/docker/1\n5:memory:/docker/1\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(9 * KIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(2 * KIB),
        },
        7 * KIB,
    ),
    "over its limit": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1",
            "sys/fs/cgroup/memory.current": "5",
        },
        0,
    ),
    "nothing to read": ({}, None),
}


@pytest.mark.parametrize("case", MEMORIES)
def test_free_memory_is_the_least_of_machine_and_limits(case, tmp_path):
    files, free_bytes = MEMORIES[case]
    assert machine(tmp_path, files).memory_free_bytes() == free_bytes


def test_this_machine_tells_its_memory():
    here = LinuxMachine(Hooks())
    assert here.memory_free_bytes() > 0
    used_bytes = here.memory_used_bytes()
    # Pages of its own: memory that earlier tests gave back may still count as used, and would be used again.
    with mmap.mmap(-1, 64 * 1024 * KIB) as ballast:
        for place in range(0, len(ballast), mmap.PAGESIZE):
            ballast[place] = 1
        assert here.memory_used_bytes() - used_bytes > len(ballast) // 2


def supply(name: str, **values) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{key}": f"{value}\n" for key, value in values.items()}


BATTERY = supply("BAT0", type="Battery", capacity=17, status="Discharging", scope="System")
# A sentence -> (files, charge, on mains).
POWERS = {
    "no power supply that is known": ({}, None, True),
    "a battery alone": (BATTERY, 17.0, False),
    "a battery and mains": ({**BATTERY, **supply("AC", type="Mains", online=1)}, 17.0, True),
    "a battery and mains that are off": ({**BATTERY, **supply("AC", type="Mains", online=0)}, 17.0, False),
    "a battery that is being charged": (supply("b", type="Battery", capacity=3, status="Charging"), 3.0, True),
    "a mouse": (supply("m", type="Battery", capacity=2, status="Discharging", scope="Device"), None, True),
    "two batteries": ({**BATTERY, **supply("BAT1", type="Battery", capacity=90, status="Discharging")}, 17.0, False),
    "a battery of unknown charge": (supply("b", type="Battery", status="Unknown"), None, True),
}


@pytest.mark.parametrize("case", POWERS)
def test_the_battery_that_runs_lowest_counts(case, tmp_path):
    files, percent, is_on_mains = POWERS[case]
    seen = machine(tmp_path, files).surroundings("download")
    assert (seen.battery_percent, seen.is_on_mains) == (percent, is_on_mains)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_hook_says_by_its_exit_code_whether_the_device_is_busy(tmp_path):
    assert run_hook(python("raise SystemExit(0)"), 20) is None
    assert run_hook(python("raise SystemExit(3)"), 20) == "ended with 3"
    assert run_hook((str(tmp_path / "none"),), 20) == "cannot be run: No such file or directory"


def test_a_hook_that_does_not_answer_is_killed_with_its_children(tmp_path):
    mark = tmp_path / "child"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {mark}\nwait\n")
    hook.chmod(0o755)
    began_s = time.monotonic()
    assert run_hook((str(hook),), 0.5) == "did not answer in 0.5 s"
    assert time.monotonic() - began_s < 20
    child = int(mark.read_text())
    deadline_s = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline_s:
        pass
    assert not is_alive(child)


def is_alive(process: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_each_hook_is_asked_before_its_own_step(tmp_path):
    no = python("raise SystemExit(1)")
    seen = {step: machine(tmp_path, {}, busy=no, metered=no).surroundings(step) for step in ("download", "activation")}
    assert (seen["download"].busy, seen["download"].is_metered) == (None, True)
    assert (seen["activation"].busy, seen["activation"].is_metered) == ("The busy hook ended with 1.", False)
    assert machine(tmp_path, {}, is_metered=True).surroundings("download").is_metered
    free = machine(tmp_path, {}, is_metered=True, metered=python("pass"))
    assert not free.surroundings("download").is_metered


def test_local_time_is_of_the_zone_that_was_asked_for(tmp_path):
    kiritimati = LinuxMachine(Hooks(), ZoneInfo("Pacific/Kiritimati"), tmp_path).surroundings("download").local
    assert kiritimati.utcoffset() == timedelta(hours=14)
    own = LinuxMachine(Hooks(), None, tmp_path).surroundings("download").local
    assert own.utcoffset() is not None
    assert abs(kiritimati - own) < timedelta(minutes=1)


def test_settings_that_cannot_be_meant_are_told_by_name():
    with pytest.raises(ConfigurationError, match=r"timezone in \[update\] is 'Mars/Olympus'"):
        read_timezone("Mars/Olympus")
    with pytest.raises(ConfigurationError, match=r"busy_command in \[update\] is no command: No closing quotation"):
        read_hook("busy_command", "is-idle 'now")
    with pytest.raises(ConfigurationError, match="'noon', which is no window"):
        wiring.rules_of(configured(UpdateSettings(window="02:00-05:00, noon")), ("onnx",))


def configured(update: UpdateSettings) -> AgentConfig:
    return AgentConfig(
        identity=Identity("hub", "device"),
        credentials=ByEdgeEnvironment(),
        artifacts_url="https://artifacts/",
        state_directory=Path("state"),
        source="replay:x.npz",
        settings=Settings(update=update),
    )


def test_every_update_setting_reaches_the_rules():
    written = {
        "update": {
            "window": "22:00-04:00, 12:00-13:00",
            "days": ["sat", "sun"],
            "download_ahead": False,
            "metered_bytes_max": 7,
            "battery_percent_min": 40,
            "battery_percent_floor": 10,
            "look_again_s": 3,
            "keep_releases": 5,
            "keep_bytes_max": 99,
        }
    }
    settings = read_settings(written, {"SLIPWAY_AGENT_UPDATE_KEEP_RELEASES": "4"})
    rules = wiring.rules_of(configured(settings.update), ("onnx",))
    assert (rules.keep_releases, rules.keep_bytes_max, rules.look_again_s) == (4, 99, 3.0)
    policy = rules.deferral
    assert [(window.begins.hour, window.ends.hour, sorted(window.days)) for window in policy.windows] == [
        (22, 4, [5, 6]),
        (12, 13, [5, 6]),
    ]
    assert all(isinstance(window, Window) for window in policy.windows)
    assert (policy.is_downloaded_ahead, policy.metered_bytes_max) == (False, 7)
    assert (policy.battery_percent_min, policy.battery_percent_floor) == (40.0, 10.0)


# Factory models -------------------------------------------------------------------------------------------------------

CONTENT = b"the model of the factory"


@pytest.fixture
def factory(tmp_path) -> Path:
    """A folder with a manifest and its model file."""
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),), outputs=())
    artifact = Artifact(
        format="onnx",
        digest=digest_of(CONTENT),
        size_bytes=len(CONTENT),
        target="digits/1/network.onnx",
        signature=signature,
    )
    manifest = ModelManifest(name="digits", version=1, artifacts=(artifact,), created_at="2025-01-01T00:00:00Z")
    folder = tmp_path / "factory"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest.to_json())
    (folder / "network.onnx").write_bytes(CONTENT)
    return folder


def test_a_factory_model_is_its_manifest_and_the_file_beside_it(factory):
    releases, files = read_factory_models([str(factory / "manifest.json")], ("onnx",))
    assert files == {digest_of(CONTENT): factory / "network.onnx"}
    release = releases["digits"]
    assert (release.version, release.digest, release.size_bytes) == (1, digest_of(CONTENT), len(CONTENT))


@pytest.mark.parametrize("missing", ["manifest", "file", "format", "meaning"])
def test_a_factory_model_that_cannot_be_read_keeps_no_agent_from_starting(factory, missing, caplog):
    manifest = factory / "manifest.json"
    if missing == "manifest":
        manifest.unlink()
    elif missing == "file":
        (factory / "network.onnx").unlink()
    elif missing == "meaning":
        manifest.write_text("{}")
    found = read_factory_models([str(manifest)], ("tflite",) if missing == "format" else ("onnx",))
    assert found == ({}, {})
    assert "will not stand in" in caplog.text


def test_provisioned_bytes_serve_where_the_disk_has_none_and_are_never_swept(factory, tmp_path):
    digest, file = digest_of(CONTENT), factory / "network.onnx"
    slots = FileSlots(tmp_path / "state", {digest: file})
    slots.seal(digest, len(CONTENT))
    assert (slots.has(digest), slots.read(digest), slots.path(digest)) == (True, CONTENT, file)
    assert slots.sweep(()) == 0
    assert file.is_file()


def test_a_blob_that_rotted_is_read_from_the_factory(factory, tmp_path):
    digest = digest_of(CONTENT)
    slots = FileSlots(tmp_path / "state", {digest: factory / "network.onnx"})
    (tmp_path / "state" / "blobs" / "sha256" / digest[7:]).write_bytes(b"rotten")
    assert slots.read(digest) == CONTENT


def test_a_factory_file_that_rotted_counts_as_absent_so_that_it_can_be_fetched(factory, tmp_path):
    digest, file = digest_of(CONTENT), factory / "network.onnx"
    file.write_bytes(b"rotten")
    slots = FileSlots(tmp_path / "state", {digest: file})
    with pytest.raises(StepError):
        slots.seal(digest, len(CONTENT))
    assert not slots.has(digest)
    assert file.is_file()
    slots.part(digest).write_bytes(CONTENT)
    slots.seal(digest, len(CONTENT))
    assert slots.read(digest) == CONTENT
