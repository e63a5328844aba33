"""The hub's CA in the certifi bundle of a virtual environment.

uamqp (azure-iot-hub's cloud-to-device sends) and azure-eventhub over TLS trust certifi's bundle and nothing else. A
hub's block in the bundle is marked with its state directory, so that it is replaced and removed alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from manifests.exit_codes import ExitCode
from simulators.hub_client import SimulatorError


@dataclass(frozen=True, slots=True)
class Bundle:
    """One certifi bundle and what was done to it."""

    path: Path
    is_changed: bool


def bundles_in(environment: Path) -> list[Path]:
    """The certifi bundles of a virtual environment; pip's private copy is not among them.

    Raises:
        SimulatorError: it is no virtual environment, or certifi is not installed there.
    """
    if not (environment / "pyvenv.cfg").exists():
        raise SimulatorError(
            f"{environment} is not a virtual environment: it has no pyvenv.cfg",
            hint="Give the directory that `python -m venv` made: slipway-sim trust --venv .venv",
            exit_code=ExitCode.USAGE,
        )
    # Debian's Python has lib and lib64, of which one is a link to the other.
    found = {
        path.parent.resolve() / path.name for path in environment.glob("lib*/python*/site-packages/certifi/cacert.pem")
    }
    if not found:
        raise SimulatorError(
            f"certifi is not installed in {environment}",
            hint="Nothing there needs it yet: install azure-iot-hub or azure-eventhub first.",
            exit_code=ExitCode.NOT_FOUND,
        )
    return sorted(found)


def trust(bundle: Path, authority: str, directory: Path) -> Bundle:
    """Put a CA (PEM) into a bundle, in place of what an earlier call put there for this state directory."""
    text = bundle.read_text()
    begin, end = _marks(directory)
    wanted = f"{_without(text, directory).rstrip()}\n\n{begin}\n{authority.strip()}\n{end}\n"
    return _write(bundle, text, wanted)


def distrust(bundle: Path, directory: Path) -> Bundle:
    """Take this state directory's CA out of a bundle again."""
    text = bundle.read_text()
    return _write(bundle, text, _without(text, directory))


def _marks(directory: Path) -> tuple[str, str]:
    return f"# >>> slipway-sim {directory.absolute()} >>>", f"# <<< slipway-sim {directory.absolute()} <<<"


def _without(text: str, directory: Path) -> str:
    begin, end = map(re.escape, _marks(directory))
    return re.sub(rf"\n?^{begin}\n.*?^{end}\n", "", text, flags=re.MULTILINE | re.DOTALL)


def _write(bundle: Path, before: str, after: str) -> Bundle:
    if after == before:
        return Bundle(bundle, is_changed=False)
    # Installers link files of one cache into many environments; a new file changes this one only.
    temporary = bundle.with_name(bundle.name + ".new")
    try:
        temporary.write_text(after)
        temporary.chmod(bundle.stat().st_mode)
        temporary.replace(bundle)
    except OSError as err:
        raise SimulatorError(
            f"cannot write {bundle}: {err.strerror}", hint="Run this as the owner of the environment."
        ) from err
    return Bundle(bundle, is_changed=True)
