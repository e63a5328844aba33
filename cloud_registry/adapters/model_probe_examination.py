"""What is done with a model on registration, inside the bounded process: load, run, compare or record, and measure."""

import math
import platform
import re
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cloud_registry.adapters.model_probe_engines import (
    Engine,
    check_memory,
    engine_reason,
    facts_of,
    import_engine,
    load_model,
)
from cloud_registry.core.data_schema import TABLE_NAME, check_schema, completed, fields_of, schema_of, signature_of
from cloud_registry.core.golden import (
    INPUT_PREFIX,
    OUTPUT_PREFIX,
    Array,
    check_answers,
    check_finite,
    check_fit,
    check_golden_set,
    check_same_interface,
    check_tensors,
    named,
    renamed,
)
from cloud_registry.core.sample_forms import GivenSample, inputs_of_json, inputs_of_table, read_table, table_of_json
from cloud_registry.core.scoring_script import check_script, texts_in
from cloud_registry.errors import RefusedModelError
from manifests.model import DataSchema, Field, Signature, TensorSpec
from manifests.processing import Processing

# Samples travel to devices: a set of more than this is a data set.
ARRAYS_BYTES_MAX = 256 * 1024 * 1024
LATENCY_RUNS_MIN = 10
WARM_UP_RUNS = 5
MEASURED_RUNS_MAX = 1_000_000


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Load the model, run what it was given, and compare or record the answers."""
    name: str = request["name"]
    if request["format"] == "python":
        return examine_script(request)
    import_engine(request["format"])
    _forget_peak()
    before_bytes = _status_bytes("VmRSS")
    engine = load_model(request["format"], request["model"], name)
    signature = engine.signature
    check_tensors(signature, name)
    like = Signature.from_wire(request["like"]) if request["like"] else signature
    check_same_interface(like, signature, request["likeName"], name)
    given = _given(request, engine, like)
    if request["schema"]:
        check_schema(DataSchema.from_wire(request["schema"]), signature, given, name)
    seen = _run(request, engine, given, like)
    facts = facts_of(engine, request["model"])
    peak_bytes = _status_bytes("VmHWM")
    return seen | {
        "signature": signature.to_wire(),
        "schema": schema_of(signature, given).to_wire(),
        "engine": engine.name,
        "engineVersion": engine.version,
        "opset": facts.opset,
        "operators": facts.operators,
        "memoryPeakBytes": max(peak_bytes - before_bytes, 0) if peak_bytes and before_bytes else None,
    }


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run the model for a while, one sample after another, and tell how long each took."""
    name: str = request["name"]
    import_engine(request["format"])
    _forget_peak()
    before_bytes = _status_bytes("VmRSS")
    started = time.perf_counter()
    engine = load_model(request["format"], request["model"], name)
    load_ms = (time.perf_counter() - started) * 1000
    check_tensors(engine.signature, name)
    samples = _samples_to_measure(request, engine)
    for sample in samples[:WARM_UP_RUNS]:
        _run_once(engine, sample, name)
    durations_s: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < request["measureS"] and len(durations_s) < MEASURED_RUNS_MAX:
        durations_s.append(_run_once(engine, samples[len(durations_s) % len(samples)], name)[1])
    elapsed_s = time.perf_counter() - started
    peak_bytes = _status_bytes("VmHWM")
    return {
        "engine": engine.name,
        "engineVersion": engine.version,
        "runs": len(durations_s),
        "loadMs": round(load_ms, 3),
        "latencyMs": [round(float(value) * 1000, 4) for value in np.percentile(durations_s, (50, 90, 99))],
        "perSecond": round(len(durations_s) / elapsed_s, 1),
        "memoryPeakBytes": max(peak_bytes - before_bytes, 0) if peak_bytes and before_bytes else None,
    }


def merge_weights(request: dict[str, Any]) -> dict[str, Any]:
    """Write a model whose weights lie beside it as one file."""
    name: str = request["name"]
    try:
        import onnx
    except ImportError as err:
        raise RefusedModelError(
            f"{name} keeps its weights in other files, and the library that brings them together is not installed",
            hint="Save it as one file: onnx.save(model, path, save_as_external_data=False), or pip install onnx.",
        ) from err
    try:
        onnx.save(onnx.load(request["model"]), request["mergeTo"])
    except MemoryError:
        raise
    except Exception as err:
        check_memory(err)
        raise RefusedModelError(
            f"{name} and the files of its weights do not make one model: "
            f"{engine_reason(str(err), str(Path(request['model']).parent) + '/')}",
            hint="Copy all of its files again, or save it as one file.",
        ) from err
    return {}


def _samples_to_measure(request: dict[str, Any], engine: Engine) -> list[dict[str, Array]]:
    specs = engine.signature.inputs
    if not request["golden"]:
        zeros = _zeros(specs)
        if zeros is None:
            raise RefusedModelError(
                f"{request['name']} takes inputs of open size or text, and there is no golden set to run it on",
                hint="Register it with --sample, so that answers are recorded.",
            )
        return [zeros]
    arrays = named(read_arrays(Path(request["golden"]), request["arraysName"]), INPUT_PREFIX)
    # The golden set goes by the names of the version's first file.
    if len(specs) == len(arrays) == 1:
        arrays = {specs[0].name: next(iter(arrays.values()))}
    count = check_fit(specs, arrays, INPUT_PREFIX, request["arraysName"])
    return [
        {key: np.ascontiguousarray(array[index : index + 1]) for key, array in arrays.items()} for index in range(count)
    ]


def examine_script(request: dict[str, Any]) -> dict[str, Any]:
    """Parse a scoring script, and read what comes with it; nothing of it is run."""
    name: str = request["name"]
    tree = check_script(Path(request["model"]).read_bytes(), name)
    texts = texts_in(tree)
    for original, stored in request["renamed"].items():
        if any(text == original or text.endswith("/" + original) for text in texts):
            raise RefusedModelError(
                f"{name} names {original!r}, and the model is stored as {stored}",
                hint=f"Rename the file to {stored}, and open it by that name.",
            )
    schema, samples = _read_along(request)
    declared = completed(DataSchema.from_wire(request["schema"] or {}), schema)
    return {
        "signature": signature_of(declared).to_wire(),
        "schema": schema.to_wire(),
        "samples": samples,
        "latencyMedianMs": None,
        "engine": "python",
        "engineVersion": ".".join(platform.python_version_tuple()[:2]),
        "opset": None,
        "operators": {},
        "memoryPeakBytes": None,
    }


def _read_along(request: dict[str, Any]) -> tuple[DataSchema, int]:
    """The schema that a golden set or a sample tells, and how many golden samples there are."""
    name: str = request["arraysName"]
    if request["golden"]:
        arrays = read_arrays(Path(request["golden"]), name)
        inputs, outputs = named(arrays, INPUT_PREFIX), named(arrays, OUTPUT_PREFIX)
        return DataSchema(inputs=fields_of(inputs), outputs=fields_of(outputs)), check_golden_set(inputs, outputs, name)
    if not request["sample"]:
        return DataSchema(), 0
    path, kind = Path(request["sample"]), request["sampleKind"]
    if kind == "npz":
        return DataSchema(inputs=fields_of(named(read_arrays(path, name), INPUT_PREFIX))), 0
    if kind == "image":
        from cloud_registry.adapters.model_probe_pictures import size_of_picture

        return DataSchema(inputs=(Field(name=TABLE_NAME, kind="image", size=size_of_picture(path, name)),)), 0
    table = read_table(path.read_bytes(), name) if kind == "csv" else table_of_json(path.read_bytes(), name)
    if table is None:
        return DataSchema(inputs=(Field(name=TABLE_NAME, kind="json"),)), 0
    return DataSchema(inputs=(Field(name=TABLE_NAME, kind="pandas", columns=table.columns),)), 0


def _given(request: dict[str, Any], engine: Engine, like: Signature) -> GivenSample | None:
    """What the model is to be run on, under its own tensor names."""
    path = request["golden"] or request["sample"]
    if path is None:
        return None
    file, name = Path(path), request["arraysName"]
    specs = engine.signature.inputs
    kind = "npz" if request["golden"] else request["sampleKind"]
    if kind == "npz":
        arrays = read_arrays(file, name)
        return GivenSample("npz", renamed(named(arrays, INPUT_PREFIX), specs, like.inputs), arrays=arrays)
    if kind == "csv":
        return inputs_of_table(read_table(file.read_bytes(), name), specs, name)
    if kind == "json":
        return inputs_of_json(file.read_bytes(), specs, name)
    from cloud_registry.adapters.model_probe_pictures import inputs_of_picture

    processing = Processing.from_wire(request["processing"]) if request["processing"] else None
    return inputs_of_picture(file, specs, processing, engine.quantisation, name)


def _run(request: dict[str, Any], engine: Engine, given: GivenSample | None, like: Signature) -> dict[str, Any]:
    name: str = request["name"]
    if given is None:
        return {"samples": 0, "latencyMedianMs": _run_on_zeros(engine, name)}
    signature = engine.signature
    samples = check_fit(signature.inputs, given.inputs, INPUT_PREFIX, request["arraysName"])
    answers, latency_ms = _run_samples(engine, given.inputs, samples, name)
    check_finite(answers, name)
    if request["golden"]:
        expected = renamed(named(given.arrays, OUTPUT_PREFIX), signature.outputs, like.outputs)
        _check_golden(signature, expected, samples, request)
        check_answers(expected, answers, request["tolerance"], name, request["against"])
    if request["recorded"]:
        _record(Path(request["recorded"]), given.inputs, answers)
    return {"samples": samples, "latencyMedianMs": latency_ms}


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # The peak then counts what the engine itself took to load: too much, never too little.
        return


def _status_bytes(field: str) -> int | None:
    """A line of /proc/self/status, or None where there is none."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def read_arrays(path: Path, name: str) -> dict[str, Array]:
    """The arrays of an ``.npz`` file; raises RefusedModelError where it is none, pickled or too large."""
    hint = f"Save arrays {INPUT_PREFIX}<tensor> with numpy.savez."
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
        if size_bytes > ARRAYS_BYTES_MAX:
            raise RefusedModelError(
                f"{name} holds {size_bytes:,} bytes of arrays; at most {ARRAYS_BYTES_MAX:,} are taken",
                hint="A few dozen samples are enough: devices run all of them before they trust a model.",
            )
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as err:
        raise RefusedModelError(f"{name} is not an .npz file: {err}", hint=hint) from err
    except MemoryError as err:
        raise RefusedModelError(f"{name} holds an array that claims to be larger than it is", hint=hint) from err
    except (ValueError, SyntaxError) as err:
        if "pickle" in str(err):
            raise RefusedModelError(f"{name} cannot be read without unpickling: {err}", hint=hint) from err
        raise RefusedModelError(f"{name} is damaged: {engine_reason(str(err), '')}", hint=hint) from err


def _run_samples(engine: Engine, inputs: dict[str, Array], samples: int, name: str) -> tuple[dict[str, Array], float]:
    """Answers stacked by sample, and the median latency of one sample."""
    rows: list[dict[str, Array]] = []
    durations_s: list[float] = []
    # A few samples are run over again, so that the median is one.
    for number in range(max(samples, LATENCY_RUNS_MIN)):
        sample = number % samples
        one = {key: np.ascontiguousarray(array[sample : sample + 1]) for key, array in inputs.items()}
        answers, duration_s = _run_once(engine, one, name)
        durations_s.append(duration_s)
        if number < samples:
            rows.append(answers)
    stacked = {spec.name: _stacked(rows, spec, name) for spec in engine.signature.outputs}
    # The first run warms caches and is not what a device sees later.
    return stacked, round(float(np.median(durations_s[1:]) * 1000), 4)


def _run_once(engine: Engine, inputs: dict[str, Array], name: str) -> tuple[dict[str, Array], float]:
    started = time.perf_counter()
    try:
        answers = engine.run(inputs)
    except MemoryError:
        raise
    except Exception as err:
        check_memory(err)
        shapes = ", ".join(f"{key} {array.dtype}{list(array.shape)}" for key, array in inputs.items())
        raise RefusedModelError(
            f"{name} loads and fails when it is run on {shapes}: {engine_reason(str(err), '')}",
            hint="Check the sample's shape, or export the model again.",
        ) from err
    return answers, time.perf_counter() - started


def _stacked(rows: list[dict[str, Array]], spec: TensorSpec, name: str) -> Array:
    arrays = [row[spec.name] for row in rows]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or not arrays[0].ndim or arrays[0].shape[0] != 1:
        raise RefusedModelError(
            f"{name} answers {spec.name!r} in the shape {sorted(shapes)} to one sample; expected a batch axis of 1 and "
            "the same shape for every sample",
            hint="Export the model so that each output has a batch axis in front.",
        )
    stacked = np.concatenate(arrays)
    # Text comes back as objects, which only a pickle could keep.
    return stacked.astype(str) if stacked.dtype.kind == "O" else stacked


def _run_on_zeros(engine: Engine, name: str) -> float | None:
    """The latency on zeros; None where open dimensions or text leave us no honest input to make up."""
    inputs = _zeros(engine.signature.inputs)
    return None if inputs is None else _run_samples(engine, inputs, 1, name)[1]


def _zeros(specs: Sequence[TensorSpec]) -> dict[str, Array] | None:
    if any(spec.dtype == "str" or any(size < 0 for size in spec.shape[1:]) for spec in specs):
        return None
    if sum(math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize for spec in specs) > ARRAYS_BYTES_MAX:
        return None
    return {spec.name: np.zeros((1, *spec.shape[1:]), dtype=spec.dtype) for spec in specs}


def _check_golden(signature: Signature, expected: dict[str, Array], samples: int, request: dict[str, Any]) -> None:
    # What a golden set says of dtypes is not judged: answers are compared as numbers.
    name = request["arraysName"]
    for spec in signature.outputs:
        if spec.name not in expected:
            raise RefusedModelError(
                f"{name} holds no {OUTPUT_PREFIX}{spec.name}: the answers of the model's tensor {spec.name!r}",
                hint=f"Its answers are: {', '.join(OUTPUT_PREFIX + key for key in expected) or 'none'}.",
            )
        if len(expected[spec.name]) != samples:
            raise RefusedModelError(
                f"{name} holds {samples} samples and {len(expected[spec.name])} answers in {OUTPUT_PREFIX}{spec.name}"
            )
    unknown = sorted(set(expected) - {spec.name for spec in signature.outputs})
    if unknown:
        raise RefusedModelError(
            f"{name} holds answers of {unknown[0]!r}, and {request['name']} has no such output",
            hint=f"The model's are: {', '.join(spec.name for spec in signature.outputs)}.",
        )


def _record(path: Path, inputs: dict[str, Array], answers: dict[str, Array]) -> None:
    arrays = {INPUT_PREFIX + key: array for key, array in inputs.items()}
    arrays |= {OUTPUT_PREFIX + key: array for key, array in answers.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
