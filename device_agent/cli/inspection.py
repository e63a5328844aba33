"""An agent looked at from outside: asked where it runs, read from its state directory where it does not."""

from pathlib import Path
from typing import Any

from device_agent.adapters.disk_contents import contents_of
from device_agent.adapters.local_door import SOCKET_NAME, NobodyListensError, ask
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.adapters.state_lock import is_running
from device_agent.config import AgentConfig
from device_agent.core import agent as core
from device_agent.core.explain import Live, explanation
from device_agent.core.history import Transition
from device_agent.wiring import (
    agent_version,
    engine_names,
    installed_formats,
    pace_in_words,
    read_states,
    trust_in_words,
)


def read_status(directory: Path) -> dict[str, Any]:
    """The status of an agent: what a running one answers, else what is in its state; raises StateNotFoundError."""
    state = SqliteState.open_to_read(directory)
    live = _asked(directory, "status")
    if live is not None:
        state.close()
        return live
    try:
        device, module = state.identity()
        return core.status(
            read_states(state.models()),
            device=device,
            module=module,
            boot=state.boot(),
            is_running=is_running(directory),
            counts=state.counts(),
        )
    finally:
        state.close()


def read_explanation(directory: Path) -> dict[str, Any]:
    """Why each model stands where it stands, from the running agent or from its state; raises StateNotFoundError."""
    state = SqliteState.open_to_read(directory)
    try:
        live = _asked(directory, "explain")
        if live is not None:
            return live
        return explanation(
            read_states(state.models()),
            [Transition.from_json(line) for line in state.transitions()],
            contents_of(directory),
            Live(),
            is_running=is_running(directory),
        )
    finally:
        state.close()


def _asked(directory: Path, method: str) -> dict[str, Any] | None:
    """A running agent's own answer; None where none runs, or none answers."""
    if not (directory / SOCKET_NAME).exists() or not is_running(directory):
        return None
    try:
        status, answer = ask(directory, method)
    except NobodyListensError:
        return None
    return answer if status == 200 and isinstance(answer, dict) else None


def introduction(config: AgentConfig, state: SqliteState) -> list[str]:
    """What the agent says of itself at its start: what it is, what it runs, what it waits for."""
    identity, directory = config.identity, config.state_directory
    formats = engine_names(installed_formats(config.formats))
    engines_said = ", ".join(f"{format_} by {name}" for format_, name in formats.items())
    models = read_states(state.models())
    committed = [f"{name}:{known.current.version}" for name, known in models.items() if known.current is not None]
    counts = state.counts()
    waiting = counts.waiting
    trusted = str(config.ca_file) if config.ca_file else "the system's authorities"
    return [
        f"slipway-agent {agent_version()} for {identity} at {identity.host_name}, by {config.credentials.kind}.",
        f"Runs {engines_said or 'no format, as no engine is installed'}; "
        f"models on disk: {', '.join(committed) or 'none yet'}; {waiting:,} readings wait for the hub.",
        f"Reads {config.source} {pace_in_words(config)}; state in {directory}; trusts {trusted}.",
        f"Trust: {trust_in_words(config)}.",
    ]
