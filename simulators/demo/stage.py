"""The stage of the demo: where things stand, how commands are given, and how one waits for something to become true."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from simulators.demo.checks import Checks
from simulators.demo.fleet import Device, DeviceState, read_fleet
from simulators.demo.hub_view import HubView
from simulators.demo.picture import decision_words
from simulators.demo.place import ARTIFACTS_PORT
from simulators.demo.plan import MODEL, MODULE, Plan
from simulators.demo.processes import Company, Ended
from simulators.demo.rollouts import RolloutView, WaveView, read_rollout
from simulators.demo.screen import Screen

LOOK_EVERY_S = 0.7
# Variables of the user's shell that would send our processes to another hub or home.
FOREIGN_VARIABLES = (
    "IOTHUB_CONNECTION_STRING", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
)  # fmt: skip


class StageError(RuntimeError):
    """The story cannot go on. `details` are lines worth reading, such as the end of a log."""

    def __init__(self, message: str, details: list[str] | None = None) -> None:
        super().__init__(message)
        self.details = details or []


@dataclass(frozen=True, slots=True)
class Tools:
    """The three command lines, as installed beside the interpreter that runs the demo."""

    slipway: str
    agent: str
    sim: str

    @classmethod
    def find(cls) -> "Tools":
        """Raises StageError where one is not installed."""
        return cls(*(_tool(name) for name in ("slipway", "slipway-agent", "slipway-sim")))


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StageError(f"The command {name} is not installed here: run `make setup`, then `make demo`.")
    return found


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment for our processes: the user's, without what points elsewhere."""
    kept = {
        name: value
        for name, value in variables.items()
        if name not in FOREIGN_VARIABLES and not name.startswith("SLIPWAY_")
    }
    # Ten engines share two cores: none of them gains by threads of its own.
    return kept | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "*", "COLUMNS": "120"}


@dataclass(slots=True)
class HubFacts:
    """What the hub wrote into its ``hub.json``."""

    host_name: str
    connection_string: str
    ca_file: str
    certificate_file: str
    key_file: str
    telemetry_url: str

    @classmethod
    def read(cls, path: Path) -> "HubFacts | None":
        """None while the hub is not ready."""
        try:
            facts = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return cls(
            host_name=facts["hostName"],
            connection_string=facts["serviceConnectionString"],
            ca_file=facts["caFile"],
            certificate_file=facts["certificateFile"],
            key_file=facts["keyFile"],
            telemetry_url=facts["telemetryUrl"],
        )

    def artifacts_origin(self) -> str:
        return f"https://{self.host_name.partition(':')[0]}:{ARTIFACTS_PORT}"


class RolloutWatch:
    """Follows one rollout through ``slipway rollout watch --json``: one JSON document a line."""

    def __init__(self) -> None:
        self.views: list[RolloutView] = []
        self._told: set[int] = set()

    def news(self) -> list[WaveView]:
        """The waves whose gate has decided since this was asked last."""
        decided = [wave for wave in self.latest.waves if wave.is_decided] if self.latest else []
        fresh = [wave for wave in decided if wave.number not in self._told]
        self._told.update(wave.number for wave in fresh)
        return fresh

    def on_line(self, line: str) -> None:
        try:
            view = read_rollout(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # a word for people between two documents
        self.views.append(view)

    @property
    def latest(self) -> RolloutView | None:
        return self.views[-1] if self.views else None


@dataclass(slots=True)
class Stage:
    """Everything a scene needs."""

    plan: Plan
    directory: Path
    address: str
    tools: Tools
    company: Company
    screen: Screen
    checks: Checks
    devices: tuple[Device, ...]
    hub: HubFacts | None = None
    view: HubView | None = None
    is_fleet_started: bool = False
    states: list[DeviceState] = field(default_factory=list)
    watch: RolloutWatch | None = None
    absent: set[str] = field(default_factory=set)
    """Processes that are down on purpose just now."""
    durations_s: dict[str, float] = field(default_factory=dict)

    def the_hub(self) -> HubFacts:
        if self.hub is None:
            raise StageError("The hub has not been started.")
        return self.hub

    # Commands

    def slipway(self, *arguments: str, expect: tuple[int, ...] = (0,), timeout_s: float = 60.0) -> Ended:
        """Run one `slipway` command; raises StageError for an exit code that is not expected."""
        return self._run((self.tools.slipway, *arguments), expect, timeout_s)

    def slipway_json(self, *arguments: str, timeout_s: float = 60.0) -> Any:
        return _json_of(self.slipway(*arguments, "--json", timeout_s=timeout_s).stdout, ("slipway", *arguments))

    def sim(self, *arguments: str) -> Ended:
        return self._run((self.tools.sim, *arguments), (0,), 30.0)

    def sim_json(self, *arguments: str) -> Any:
        return _json_of(self.sim(*arguments, "--json").stdout, ("slipway-sim", *arguments))

    def agent_json(self, *arguments: str) -> Any:
        ended = self._run((self.tools.agent, *arguments, "--json"), (0,), 30.0)
        return _json_of(ended.stdout, ("slipway-agent", *arguments))

    def _run(self, command: tuple[str, ...], expect: tuple[int, ...], timeout_s: float) -> Ended:
        ended = self.company.run(command, timeout_s=timeout_s)
        words = " ".join((Path(command[0]).name, *command[1:]))
        with (self.directory / "logs" / "commands.log").open("a") as log:
            log.write(f"$ {words}\n{ended.stdout}{ended.stderr}[exit {ended.exit_code}, {ended.duration_s:.1f} s]\n\n")
        if ended.exit_code not in expect:
            raise StageError(
                f"`{words}` ended with exit code {ended.exit_code}, expected {' or '.join(map(str, expect))}.",
                (ended.stderr or ended.stdout).splitlines()[-12:],
            )
        return ended

    # Looking and waiting

    def look(self) -> list[DeviceState]:
        """Read the fleet from the hub, show it, and return it."""
        if self.view is not None:
            try:
                self.states = read_fleet(self.devices, self.view.module_twins(MODULE), MODEL)
            except requests.RequestException as err:
                raise StageError(f"The hub does not answer: {type(err).__name__}.", self._tail("hub")) from err
            if self.is_fleet_started:
                self._tell()
        return self.states

    def _tell(self) -> None:
        latest = self.watch.latest if self.watch else None
        self.screen.show(self.states, latest)
        if self.watch is None or latest is None:
            return
        for wave in self.watch.news():
            style = "green" if wave.verdict == "advance" else "bold red"
            self.screen.say(f"Gate of wave {wave.number}: {wave.verdict}. {decision_words(wave, latest)}.", style)

    def state_of(self, device_id: str) -> DeviceState:
        return next(state for state in self.states if state.device.device_id == device_id)

    def wait_until(
        self, claim: str, is_so: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S
    ) -> None:
        """Look at the fleet until something is so.

        Raises:
            StageError: it did not become so in time, or a process ended that should not have.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.look()
            if is_so():
                return
            self._check_on_processes()
            if time.monotonic() > deadline:
                raise StageError(f"Waited {timeout_s:.0f} s until {claim}; it did not come true.", self._standing())
            time.sleep(every_s)

    def becomes_so(self, is_so: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
        """Like `wait_until`, but a disappointment is an answer: for what a check will record."""
        try:
            self.wait_until("", is_so, timeout_s, every_s)
        except StageError:
            self._check_on_processes()
            return False
        return True

    def _check_on_processes(self) -> None:
        for running in self.company.died(frozenset(self.absent)):
            raise StageError(
                f"{running.name} ended by itself with exit code {running.exit_code}.",
                [*running.log_tail(), f"Its log: {running.log_file}"],
            )

    def _standing(self) -> list[str]:
        """Where everything stands, for whoever asks why nothing came of it."""
        lines = [
            f"{state.device.device_id}: connected={state.is_connected} phase={state.phase or '-'} "
            f"generation={state.generation}/{state.desired_generation} loaded={state.loaded_version} "
            f"error={state.error_code or '-'}"
            for state in self.states
        ]
        latest = self.watch.latest if self.watch else None
        if latest is not None:
            lines.append(f"rollout {latest.rollout_id}: {latest.state} {latest.reason}")
        return lines

    def _tail(self, name: str) -> list[str]:
        try:
            return self.company[name].log_tail()
        except KeyError:
            return []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.durations_s[name] = time.monotonic() - began


def _json_of(text: str, command: tuple[str, ...]) -> Any:
    try:
        return json.loads(text)
    except ValueError as err:
        words = " ".join(command)
        raise StageError(f"`{words} --json` did not print JSON: {err}.", text.splitlines()[:5]) from err


def own_environment() -> dict[str, str]:
    return clean_environment(os.environ)
