"""`slipway-agent score`: a bare model file asked by the engines that serve on a device."""

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from device_agent.config import FORMATS, read_engine_settings
from device_agent.config.settings import EngineSettings
from device_agent.errors import AgentError, ConfigurationError, InferenceError
from manifests.errors import ManifestError
from manifests.processing import Processing

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# What a line for people shows of one output; --json has them all.
_NUMBERS_SHOWN_MAX = 8


def read_inputs(given: tuple[str, ...]) -> "dict[str, Array] | Array":
    """Arrays by tensor name of ``name=FILE.npy`` and ``FILE.npz``, or the one array of a lone ``FILE.npy``.

    Raises:
        ConfigurationError: naming the file that cannot be read, or the tensor that is given twice.
    """
    arrays: dict[str, Array] = {}
    for text in given:
        name, equals, file = text.rpartition("=")
        # A path may hold an equals sign; a tensor is given one only where the whole is no file.
        if not equals or Path(text).is_file():
            name, file = "", text
        found = _read(Path(file))
        if isinstance(found, dict):
            if name:
                raise ConfigurationError(f"{file} holds several tensors, so it takes no name.", hint="Give it alone.")
            named = found
        elif not name and len(given) == 1:
            return found
        elif not name:
            raise ConfigurationError(
                f"{file} has no tensor's name.", hint="Of several inputs each is given as --input NAME=FILE.npy."
            )
        else:
            named = {name: found}
        twice = sorted(set(named) & set(arrays))
        if twice:
            raise ConfigurationError(f"The tensor '{twice[0]}' is given twice.", hint="Give each input once.")
        arrays |= named
    return arrays


def _read(path: Path) -> "dict[str, Array] | Array":
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as file:
            # Files of `slipway model register --sample` and of the replay source spell inputs so.
            keys = [key for key in file.files if key.startswith("input.")] or list(file.files)
            return {key.removeprefix("input."): file[key] for key in keys}
    except OSError as err:
        raise ConfigurationError(f"The input {path} cannot be read: {err.strerror or err}.") from err
    except (ValueError, EOFError, zipfile.BadZipFile) as err:
        raise ConfigurationError(
            f"The input {path} is no NumPy file of numbers.",
            hint="Save it by numpy.save or numpy.savez, without objects.",
        ) from err


def scored(
    model: Path, given: tuple[str, ...], settings: EngineSettings, processing: Path | None = None
) -> dict[str, Any]:
    """Every reading of the inputs with the model's answer; raises AgentError."""
    from device_agent.runtime.bare_scoring import score_file
    from device_agent.wiring import engines_of

    if not model.is_file():
        raise ConfigurationError(f"There is no model file {model}.", hint="Give an .onnx or .tflite file as --model.")
    steps = _processing(processing) if processing is not None else None
    inputs = read_inputs(given)
    try:
        return score_file(model, inputs, engines_of(FORMATS, settings), steps)
    except InferenceError as err:
        raise AgentError(f"{model.name} cannot answer: {err.message.rstrip('.')}.") from err


def _processing(path: Path) -> Processing:
    try:
        return Processing.from_json(path.read_bytes())
    except OSError as err:
        raise ConfigurationError(f"The processing {path} cannot be read: {err.strerror}.") from err
    except ManifestError as err:
        raise ConfigurationError(f"The processing {path} cannot be used: {err}.") from err


def scored_text(found: dict[str, Any]) -> str:
    model, engine = found["model"], found["engine"]
    lines = [
        f"{model['file']}: {model['format']}, {model['size']:,} bytes, {model['digest'][:15]}, "
        f"by {engine['name']} {engine['version']}",
        f"takes {', '.join(map(_tensor, found['inputs']))}; gives {', '.join(map(_tensor, found['outputs']))}",
    ]
    for number, answer in enumerate(found["answers"], 1):
        said = []
        if answer["prediction"] is not None:
            said.append(f"prediction {answer['prediction']}")
        if answer["confidence"] is not None:
            said.append(f"confidence {answer['confidence']:.4f}")
        said += [f"{name} {_numbers(value)}" for name, value in answer["outputs"].items()]
        lines.append(
            f"{number:>4}  {'; '.join(said) or 'an answer too large to print'}  ({answer['latencyMs']:.3f} ms)"
        )
    return "\n".join(lines)


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['dtype']} [{', '.join('any' if n == -1 else str(n) for n in spec['shape'])}]"


def _numbers(value: Any) -> str:
    flat = _flat(value)
    shown = " ".join(f"{number:.6g}" if isinstance(number, float) else str(number) for number in flat)
    return shown if len(flat) <= _NUMBERS_SHOWN_MAX else f"of {len(flat)} numbers"


def _flat(value: Any) -> list[Any]:
    return [number for part in value for number in _flat(part)] if isinstance(value, list) else [value]


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), metavar="FILE", help="ONNX or TFLite file.")
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="[NAME=]FILE",
    help="One reading, or several along the first axis, as .npy; .npz for several tensors. May be repeated.",
)
@click.option(
    "--processing", type=click.Path(path_type=Path), metavar="FILE", help="Steps around the model, as its manifest has."
)
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with [engine].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON with stable fields.")
def score(model: Path, inputs: tuple[str, ...], processing: Path | None, file: Path | None, as_json: bool) -> None:
    """Score readings by a bare model file.

    By the engine and the settings that would serve it here; needs no hub and no state.

    \b
    slipway-agent score --model digits.onnx --input reading.npy --json
    """
    found = scored(model, inputs, read_engine_settings(file, os.environ), processing)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else scored_text(found))
