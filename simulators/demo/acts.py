"""The story, act by act. Everything is done through the three command lines, their files and their JSON."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from simulators.demo import plan as claims
from simulators.demo.books import Received, Sent
from simulators.demo.fleet import PHASES_UNDER_WAY, Device, DeviceState
from simulators.demo.hub_view import HubView
from simulators.demo.materials import Materials, ModelFiles
from simulators.demo.picture import figures_table
from simulators.demo.place import HUB_HTTPS_PORT, MQTT_PORT
from simulators.demo.plan import MODEL, MODULE
from simulators.demo.rollouts import RolloutView, read_rollout
from simulators.demo.stage import HubFacts, RolloutWatch, Stage, StageError

# Command lines that run side by side while the devices are made: more would only wait for the same two cores.
COMMANDS_AT_ONCE = 3
GATE_REFUSED = 3
IN_USE = 5
WATCHER_S_MAX = 10.0
# A trial lasts a second or two: whoever wants to be in time for it looks often.
KILL_LOOK_S = 0.15


# Act 1: the place


def start_hub(stage: Stage) -> None:
    """Start the simulated hub; it is ready when it has written its ``hub.json``."""
    state = stage.directory / "hub"
    stage.company.start(
        "hub",
        [stage.tools.sim, "hub", "--state", str(state), "--address", stage.address,
         "--mqtt-port", str(MQTT_PORT), "--https-port", str(HUB_HTTPS_PORT)],
    )  # fmt: skip


def meet_hub(stage: Stage) -> None:
    """Wait for the hub, and point every later command at it."""
    stage.wait_until("the hub is ready", lambda: _read_hub(stage) is not None, 30.0, every_s=0.2)
    hub = _read_hub(stage)
    if hub is None:
        raise StageError("The hub's hub.json vanished again.")
    stage.hub = hub
    stage.view = HubView(hub.connection_string, hub.ca_file)
    stage.company.set_environment(
        {
            "IOTHUB_CONNECTION_STRING": hub.connection_string,
            "SLIPWAY_CA_FILE": hub.ca_file,
            "REQUESTS_CA_BUNDLE": hub.ca_file,
            "SSL_CERT_FILE": hub.ca_file,
            "SLIPWAY_TELEMETRY_URL": hub.telemetry_url,
        }
    )
    stage.screen.say(
        f"The hub listens on {stage.address}: MQTT {MQTT_PORT}, HTTPS {HUB_HTTPS_PORT}, with a CA of its own."
    )


def _read_hub(stage: Stage) -> HubFacts | None:
    return HubFacts.read(stage.directory / "hub" / "hub.json")


def start_registry(stage: Stage) -> None:
    """Start the artifact server, which runs the rollout controller too, and the reader of telemetry."""
    start_controller(stage)
    stage.company.start("collect", [stage.tools.slipway, "telemetry", "collect", "--follow"])


def start_controller(stage: Stage) -> None:
    hub = stage.the_hub()
    stage.company.start(
        "serve",
        [stage.tools.slipway, "serve", "--address", stage.address, "--port", hub.artifacts_origin().rpartition(":")[2],
         "--certificate", hub.certificate_file, "--key", hub.key_file],
    )  # fmt: skip


def meet_registry(stage: Stage) -> None:
    stage.wait_until("the artifact server answers", lambda: _is_serving(stage), 30.0, every_s=0.2)
    stage.screen.say(f"The registry serves artifacts on {stage.the_hub().artifacts_origin()}.")


def _is_serving(stage: Stage) -> bool:
    hub = stage.the_hub()
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(f"{hub.artifacts_origin()}/healthz", verify=hub.ca_file, timeout=2).ok
        except requests.RequestException:
            return False


def show_materials(stage: Stage, materials: Materials) -> None:
    stage.screen.say("Trained three networks on scikit-learn's handwritten digits, each written as ONNX and as TFLite:")
    stage.screen.print(figures_table([files.figures for files in materials.models]))


# Act 2: the fleet


def create_devices(stage: Stage, materials: Materials) -> None:
    """Make each device's identity, and the agent's configuration with its key."""

    def create(device: Device) -> None:
        identity = stage.sim_json(
            "device", "create", device.device_id, "--module", MODULE, "--tag", f"site={device.site}",
            "--tag", f"engine={device.engine}",
        )  # fmt: skip
        write_configuration(stage, device, identity["connectionString"], materials)

    with ThreadPoolExecutor(COMMANDS_AT_ONCE) as pool:
        list(pool.map(create, stage.devices))


def write_configuration(stage: Stage, device: Device, connection_string: str, materials: Materials) -> None:
    """Write ``agent.toml``. It holds a key, so only its owner may read it."""
    home = stage.directory / "devices" / device.device_id
    home.mkdir(parents=True, exist_ok=True)
    path = home / "agent.toml"
    path.touch(mode=0o600)
    path.write_text(
        f"connection_string = '{connection_string}'\n"
        f"ca_file = '{stage.the_hub().ca_file}'\n"
        f"artifacts_url = '{stage.the_hub().artifacts_origin()}/artifacts/'\n"
        f"state_directory = '{home / 'state'}'\n"
        f"source = 'replay:{materials.live_files[device.device_id]}'\n"
        f"interval_s = {stage.plan.interval_s}\n"
        f"formats = ['{device.engine}']\n"
    )


def start_agent(stage: Stage, device_id: str) -> None:
    path = stage.directory / "devices" / device_id / "agent.toml"
    stage.company.start(device_id, [stage.tools.agent, "run", "--config", str(path)])


def meet_fleet(stage: Stage) -> None:
    for device in stage.devices:
        start_agent(stage, device.device_id)
    stage.is_fleet_started = True
    came_up = stage.becomes_so(
        lambda: all(state.is_connected and state.boot for state in stage.states), stage.plan.act_s_max
    )
    connected = sum(state.is_connected for state in stage.states)
    stage.checks.expect(claims.FLEET_CAME_UP, came_up, f"{connected} of {len(stage.devices)} connected")
    if not connected:
        raise StageError("No device ever connected.", stage.company[stage.devices[0].device_id].log_tail())


# Act 3 and later: models and rollouts


def register(stage: Stage, files: ModelFiles) -> dict[str, str]:
    """Register one version; the digests of its files by format."""
    labels = [argument for digit in range(10) for argument in ("--label", str(digit))]
    manifest = stage.slipway_json(
        "model", "register", MODEL, str(files.onnx), str(files.tflite), "--golden", str(files.golden),
        "--description", files.description, "--tag", "task=digits",
        "--metric", f"accuracy={files.figures.accuracy_own_scale:.4f}", *labels,
    )  # fmt: skip
    digests = {str(artifact["format"]): str(artifact["digest"]) for artifact in manifest["artifacts"]}
    if manifest["version"] != files.version or set(digests) != {"onnx", "tflite"}:
        raise StageError(
            f"Registered {MODEL}:{manifest['version']} with {sorted(digests)}, not {MODEL}:{files.version}."
        )
    stage.screen.say(
        f"Registered {MODEL}:{files.version} ({files.description}). The registry has loaded both files, and they give "
        "their golden answers."
    )
    return digests


def start_rollout(stage: Stage, version: int, waves: str) -> RolloutView:
    """Start a rollout of a version to the whole fleet; the controller in `slipway serve` drives it."""
    terms = stage.plan
    status = stage.slipway_json(
        "rollout", "start", f"{MODEL}:{version}", "--target", "*", "--waves", waves, "--soak", f"{terms.soak_s:g}s",
        "--timeout", f"{terms.rollout_s_max:g}s", "--trial-seconds", f"{terms.trial_s:g}",
        "--trial-inferences", str(terms.trial_inferences), "--trial-min-confidence", str(terms.trial_confidence_min),
        "--trial-max-disagreement", str(terms.trial_disagreement_max), "--detach",
    )  # fmt: skip
    return read_rollout(status)


def start_rollback(stage: Stage, rollout_id: str, reason: str) -> RolloutView:
    """Take a completed rollout back; that is a rollout of its own, with older content."""
    return read_rollout(stage.slipway_json("rollout", "rollback", rollout_id, "--reason", reason, "--detach"))


def follow(stage: Stage, rollout_id: str) -> None:
    """Watch a rollout from now on, with one process for as long as it lasts."""
    stage.watch = RolloutWatch()
    stage.company.start(
        f"watch-{rollout_id}",
        [stage.tools.slipway, "rollout", "watch", rollout_id, "--json"],
        on_line=stage.watch.on_line,
    )
    # Its exit code is the rollout's outcome, not the watcher's health.
    stage.absent.add(f"watch-{rollout_id}")


def ending_of(stage: Stage, rollout_id: str) -> RolloutView:
    """Wait for the end of a rollout, and return how it ended."""
    watcher = stage.company[f"watch-{rollout_id}"]

    def has_ended() -> bool:
        latest = stage.watch.latest if stage.watch else None
        return watcher.exit_code is not None or (latest is not None and latest.has_ended)

    stage.wait_until(f"rollout {rollout_id} has ended", has_ended, stage.plan.rollout_s_max)
    # The watcher ends by itself now; its last word must be heard before the story goes on.
    watcher.wait(WATCHER_S_MAX)
    stage.look()
    view = status_of(stage, rollout_id)
    if not view.has_ended:
        raise StageError(
            f"`slipway rollout watch {rollout_id}` ended while the rollout is {view.state}.", watcher.log_tail()
        )
    return view


def status_of(stage: Stage, rollout_id: str) -> RolloutView:
    return read_rollout(stage.slipway_json("rollout", "status", rollout_id))


def all_run(stage: Stage, version: int, digests: dict[str, str]) -> Callable[[], bool]:
    return lambda: all(_runs(state, version, digests) for state in stage.states)


def _runs(state: DeviceState, version: int, digests: dict[str, str]) -> bool:
    # The digest must be that of the file in the format of the device's own engine.
    return state.runs(version, [digests[state.device.engine]]) and state.loaded_format == state.device.engine


def expect_everywhere(stage: Stage, claim: str, version: int, digests: dict[str, str]) -> bool:
    """Check, on the devices' own twins, that the whole fleet runs one version."""
    held = stage.becomes_so(all_run(stage, version, digests), 15.0)
    count = sum(_runs(state, version, digests) for state in stage.states)
    return stage.checks.expect(claim, held, f"{count} of {len(stage.devices)}")


def kill_agent_on_trial(stage: Stage, generation: int) -> DeviceState:
    """Kill the agent of a later wave's device while the new model is on trial there, and start it again.

    Returns how the device stood when it was killed.

    Raises:
        StageError: no device was seen in the middle of its update.
    """
    victims: list[DeviceState] = []

    def found() -> bool:
        latest = stage.watch.latest if stage.watch else None
        if latest is None:
            return False
        victims[:] = [state for state in stage.states if _is_caught(state, generation, latest)]
        return bool(victims) or latest.has_ended

    stage.wait_until("a device of a later wave has v2 on trial", found, stage.plan.rollout_s_max, KILL_LOOK_S)
    if not victims:
        raise StageError("The rollout ended before a device could be caught in the middle of its update.")
    victim = victims[0]
    name = victim.device.device_id
    stage.absent.add(name)
    stage.company.kill(name)
    stage.screen.say(f"kill -9: the agent of {name} dies in phase {victim.phase}. It is started again.", "bold yellow")
    start_agent(stage, name)
    stage.absent.discard(name)
    return victim


def _is_caught(state: DeviceState, generation: int, rollout: RolloutView) -> bool:
    """True for a later wave's device with the new model on trial; in the last wave any step of the update will do."""
    wave = next((device.wave for device in rollout.devices if device.device_id == state.device.device_id), 0)
    wanted = PHASES_UNDER_WAY if wave == len(rollout.waves) else ("trial",)
    return wave > 1 and state.generation == generation and state.phase in wanted


def kill_controller_in_rollout(stage: Stage, begun: RolloutView) -> RolloutView:
    """Kill the registry's server and controller when the last wave has begun, and start it again.

    Returns how the rollout stood when there was no controller.
    """
    last = {device.device_id for device in begun.in_wave(len(begun.waves))}

    def last_wave_has_begun() -> bool:
        offered = [state for state in stage.states if state.desired_generation == begun.generation]
        return any(state.device.device_id in last for state in offered)

    stage.wait_until("the last wave has begun", last_wave_has_begun, stage.plan.rollout_s_max, KILL_LOOK_S)
    stage.absent.add("serve")
    stage.company.kill("serve")
    stage.screen.say("kill -9: the registry's server dies, and with it the controller of the rollout.", "bold yellow")
    orphaned = status_of(stage, begun.rollout_id)
    start_controller(stage)
    stage.absent.discard("serve")
    stage.screen.say("They are started again; the new controller takes over once the dead one's lease has run out.")
    return orphaned


# The closing accounts


def outbox_of(stage: Stage, device_id: str) -> Sent:
    status = stage.agent_json("status", "--state", str(stage.directory / "devices" / device_id / "state"))
    telemetry = status["telemetry"]
    return Sent(
        enqueued=telemetry["enqueued"],
        acknowledged=telemetry["acknowledged"],
        waiting=telemetry["waiting"],
        dropped=telemetry["dropped"],
        last_sequence=telemetry["lastSequence"],
    )


def outboxes(stage: Stage) -> dict[str, Sent]:
    with ThreadPoolExecutor(COMMANDS_AT_ONCE) as pool:
        found = pool.map(lambda device: outbox_of(stage, device.device_id), stage.devices)
        return dict(zip((device.device_id for device in stage.devices), found, strict=True))


def received(stage: Stage) -> dict[str, Received]:
    """What the cloud side has by device.

    Raises:
        StageError: it was sent something that it could not read.
    """
    summary = stage.slipway_json("telemetry", "summary")
    if summary["unreadable"]:
        raise StageError(
            f"The cloud side could not read {summary['unreadable']} messages.", [str(summary["unreadableBy"])]
        )
    return {
        str(entry["device"]): Received(
            distinct=entry["received"],
            last_sequence=entry["lastSeq"],
            gaps=entry["missing"],
            duplicates=entry["duplicates"],
        )
        for entry in summary["devices"]
    }


def wait_for_the_cloud(stage: Stage, sent: dict[str, Sent], timeout_s: float) -> dict[str, Received]:
    """Read what the cloud has, until it has as much as was sent or time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = received(stage)
        if all(seen.get(name, Received()).distinct >= counts.enqueued for name, counts in sent.items()):
            return seen
        if time.monotonic() > deadline:
            return seen
        time.sleep(0.5)


def envelopes(stage: Stage) -> list[dict[str, Any]]:
    """Every envelope that the cloud side has stored: one JSON document a line."""
    ended = stage.slipway("telemetry", "list", "--json")
    return [json.loads(line) for line in ended.stdout.splitlines() if line.strip()]
