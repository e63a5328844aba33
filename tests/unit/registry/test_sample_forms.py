"""Samples, schemas, scripts and a network's facts: the rules, without an engine."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_registry.core.data_schema import check_schema, read_schema, schema_of
from cloud_registry.core.dependencies import conda_requirements, requirements_in
from cloud_registry.core.model_bytes import MalformedModelError
from cloud_registry.core.network_facts import onnx_facts, tflite_operators
from cloud_registry.core.sample_forms import GivenSample, inputs_of_json, inputs_of_table, read_table
from cloud_registry.core.scoring_script import check_script
from cloud_registry.errors import RefusedModelError, UsageError
from manifests.model import DataSchema, Field, Signature, TensorSpec
from tests.unit.registry.registry_models import (
    IDENTITY,
    SHARED_MODELS,
    endless_onnx,
    linear_onnx,
    linear_tflite,
    two_outputs_onnx,
)


def spec(name: str = "x", shape: tuple[int, ...] = (-1, 2), dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


ONE, TWO = (spec(),), (spec("age", (-1, 1)), spec("town", (-1, 1), "str"))
EXPECTED = np.asarray([[1, 2], [3, 4]], np.float32)


@pytest.mark.parametrize("text", ["a,b\n1,2\n3,4\n", "a;b\r\n1;2\r\n3;4\r\n", "\ufeffa\tb\n1\t2\n\n3\t4"])
def test_a_table_is_read_with_commas_semicolons_or_tabs(text: str):
    given_sample = inputs_of_table(read_table(text.encode(), "s.csv"), ONE, "s.csv")
    assert given_sample.columns == ("a", "b")
    np.testing.assert_array_equal(given_sample.inputs["x"], EXPECTED)


def test_columns_that_are_tensors_are_told_apart_by_name():
    table = read_table(b"town,age\nUmea,30\nKiruna,40\n", "s.csv")
    inputs = inputs_of_table(table, TWO, "s.csv").inputs
    assert inputs["age"].tolist() == [[30.0], [40.0]]
    assert inputs["town"].tolist() == [["Umea"], ["Kiruna"]]


JSON_FORMS = {
    "Azure ML": {"data": [[1, 2], [3, 4]]},
    "MLflow's tensors": {"inputs": [[1, 2], [3, 4]]},
    "MLflow's table": {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}},
    "pandas": {"columns": ["a", "b"], "index": [0, 1], "data": [[1, 2], [3, 4]]},
    "records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}],
    "a plain list": [[1, 2], [3, 4]],
    "an entry for each tensor": {"x": [[1, 2], [3, 4]]},
    "entries inside of data": {"data": {"x": [[1, 2], [3, 4]]}},
}


@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_is_taken_in_every_form_that_scoring_services_take(form: str):
    given_sample = inputs_of_json(json.dumps(JSON_FORMS[form]).encode(), ONE, "s.json")
    np.testing.assert_array_equal(given_sample.inputs["x"], EXPECTED)


def test_a_flat_row_becomes_the_shape_that_its_tensor_has():
    picture = (spec("x", (-1, 2, 3, 1)),)
    row = inputs_of_json(json.dumps([list(range(6))]).encode(), picture, "s.json").inputs["x"]
    assert row.shape == (1, 2, 3, 1)
    alone = inputs_of_json(json.dumps([[[0], [1], [2]], [[3], [4], [5]]]).encode(), picture, "s.json").inputs["x"]
    np.testing.assert_array_equal(alone, row)


BAD_SAMPLES = {
    "text among numbers": (b"a,b\n1,zwei\n", "s.csv does not fit tensor 'x' .float32\\[., 2\\].: could not convert"),
    "a row too short": (b"a,b\n1,2\n3\n", "s.csv has 1 values in row 2 and 2 columns"),
    "a header alone": (b"a,b\n", "s.csv holds no samples"),
    "another encoding": ("a,b\nå,1\n".encode("latin-1"), "s.csv is no UTF-8 text"),
    "two columns of a name": (b"a,a\n1,2\n", "s.csv has two columns named 'a'"),
}


@pytest.mark.parametrize("story", BAD_SAMPLES)
def test_a_table_that_does_not_fit_is_refused(story: str):
    content, words = BAD_SAMPLES[story]
    with pytest.raises(RefusedModelError, match=words):
        inputs_of_table(read_table(content, "s.csv"), ONE, "s.csv")


BAD_JSON = {
    "no JSON": (b"{", "s.json is no JSON"),
    "a number that JSON has not": (b'{"data": [[NaN, 1]]}', "NaN is no number in JSON"),
    "nesting without end": (b"[" * 100_000, "s.json nests values too deeply"),
    "entries that nobody knows": (b'{"rows": 1, "x2": 2}', "s.json has the entries rows, x2, in which no inputs"),
    "rows of unlike length": (b"[[1, 2], [3]]", "s.json does not fit tensor 'x'"),
    "records of unlike entries": (b'[{"a": 1, "b": 2}, {"a": 1}]', "s.json has other entries in record 2"),
    "a number alone": (b'{"data": 3}', "one list a sample was expected"),
}


@pytest.mark.parametrize("story", BAD_JSON)
def test_json_that_does_not_fit_is_refused(story: str):
    content, words = BAD_JSON[story]
    with pytest.raises(RefusedModelError, match=words):
        inputs_of_json(content, ONE, "s.json")


# --- schemas ---------------------------------------------------------------------------------------------------------

SIGNATURE = Signature(inputs=ONE, outputs=(spec("y", (-1, 1)),))
ARRAY = Field(name="y", kind="numpy", dtype="float32", shape=(-1, 1))


def test_a_schema_is_made_from_what_the_sample_was():
    def inputs(sample: GivenSample | None) -> tuple[Field, ...]:
        schema = schema_of(SIGNATURE, sample)
        assert schema.outputs == (ARRAY,)
        return schema.inputs

    assert inputs(None) == (Field(name="x", kind="numpy", dtype="float32", shape=(-1, 2)),)
    assert inputs(GivenSample("csv", {}, columns=("a", "b"))) == (
        Field(name="data", kind="pandas", dtype="float32", columns=("a", "b")),
    )
    assert inputs(GivenSample("json", {})) == (Field(name="x", kind="json", dtype="float32", shape=(-1, 2)),)
    assert inputs(GivenSample("image", {}, size=(28, 28))) == (Field(name="x", kind="image", size=(28, 28)),)


def test_a_schema_that_agrees_is_taken():
    for declared in (
        Field(name="x", kind="numpy", dtype="float32", shape=(-1, 2)),
        Field(name="x", kind="numpy"),
        Field(name="readings", kind="json", shape=(8, 2)),
        Field(name="data", kind="pandas", columns=("a", "b")),
    ):
        check_schema(DataSchema(inputs=(declared,), outputs=(ARRAY,)), SIGNATURE, None, "m.onnx")


DISAGREEMENTS = {
    "another type": (
        Field(name="x", kind="numpy", dtype="float64", shape=(-1, 2)),
        r"the schema says that the input 'x' is float64\[\?, 2\], and in m.onnx it is float32\[\?, 2\]",
    ),
    "another shape": (Field(name="x", kind="numpy", shape=(-1, 3)), r"is float32\[\?, 3\], and in m.onnx it is"),
    "more columns": (
        Field(name="data", kind="pandas", columns=("a", "b", "c")),
        "the schema names 3 columns for the input 'data', and m.onnx has 2",
    ),
    "other columns than the sample": (
        Field(name="data", kind="pandas", columns=("a", "c")),
        "the schema names the columns a, c, and the sample has a, b",
    ),
    "a picture that is none": (Field(name="x", kind="image"), "is a picture, and in m.onnx it is float32"),
    "a table without columns": (Field(name="x", kind="pandas"), "is a table, and names no columns"),
}


@pytest.mark.parametrize("story", DISAGREEMENTS)
def test_a_schema_that_disagrees_is_refused(story: str):
    field, words = DISAGREEMENTS[story]
    sample = GivenSample("csv", {}, columns=("a", "b")) if "sample" in story else None
    with pytest.raises(RefusedModelError, match=words):
        check_schema(DataSchema(inputs=(field,)), SIGNATURE, sample, "m.onnx")


def test_a_schema_that_names_another_tensor_is_refused():
    schema = DataSchema(inputs=(Field(name="age", kind="numpy"), Field(name="city", kind="numpy")))
    with pytest.raises(RefusedModelError, match=r"the schema names the input 'city', and m\.onnx has age, town"):
        check_schema(schema, Signature(inputs=TWO, outputs=ONE), None, "m.onnx")
    with pytest.raises(UsageError, match=r"s\.json names an input twice: x, x"):
        read_schema(b'{"inputs": [{"name": "x", "kind": "json"}, {"name": "x", "kind": "json"}]}', "s.json")


# --- scripts and dependencies ----------------------------------------------------------------------------------------

SCRIPTS = {
    "as Azure ML writes it": "model = None\ndef init():\n    global model\ndef run(raw_data):\n    return 1\n",
    "asynchronous": "def init(): pass\nasync def run(data): return data\n",
    "with several named inputs": "def init(): pass\n@takes('a')\n@takes('b')\ndef run(a, b): pass\n",
    "chosen by what is installed": "def init(): pass\ntry:\n    import a\n    def run(d): pass\nexcept OSError: pass\n",
    "from another file": "from app.scoring import init, run\n",
    "with defaults": "def init(path='m'): pass\ndef run(data, *, top=3): pass\n",
}  # fmt: skip


@pytest.mark.parametrize("story", SCRIPTS)
def test_a_script_is_taken(story: str):
    check_script(SCRIPTS[story].encode(), "score.py")


BAD_SCRIPTS = {
    "no init": ("def run(data): pass", "score.py has no function init()"),
    "no run": ("def init(): pass\nclass A:\n    def run(self, data): pass", "score.py has no function run()"),
    "init that asks for something": (
        "def init(path): pass\ndef run(data): pass",
        "init.. with 1 required arguments; it is called with none",
    ),
    "run that takes nothing": ("def init(): pass\ndef run(): pass", "run.. with 0 required arguments"),
    "run that asks for two": ("def init(): pass\ndef run(a, b): pass", "run.. with 2 required arguments"),
    "no Python": ("def init(:", "score.py is no Python that can be read: .* in line 1"),
    "a zero byte": ("def init(): pass\0", "score.py is no Python that can be read"),
    "brackets without end": ("(" * 5000, "score.py is no Python that can be read"),
    "signs without end": ("x = " + "-" * 200_000 + "1", "score.py is no Python that can be read"),
    "a script of megabytes": ("#" * 2_000_000, "a script has at most 1,048,576"),
}


@pytest.mark.parametrize("story", BAD_SCRIPTS)
def test_a_script_is_refused(story: str):
    text, words = BAD_SCRIPTS[story]
    with pytest.raises(RefusedModelError, match=words):
        check_script(text.encode(), "score.py")


def test_requirements_are_read_as_pip_reads_them():
    text = (
        "# what it needs\nnumpy>=1.26,<3  # arrays\n--extra-index-url https://example.com/simple\n"
        "onnxruntime==1.20.0 ; python_version < '3.13'\nscikit-learn \\\n    ==1.5.0 --hash=sha256:abc\n\n"
    )
    assert requirements_in(text, "requirements.txt") == (
        "numpy>=1.26,<3",
        "onnxruntime==1.20.0 ; python_version < '3.13'",
        "scikit-learn      ==1.5.0",
    )


@pytest.mark.parametrize("line", ["-e .", "./local", "/abs/path.whl", "git+https://example.com/x.git", "-r more.txt"])
def test_requirements_that_lead_outside_are_refused(line: str):
    with pytest.raises(RefusedModelError, match=r"requirements.txt, line 1 leads outside the model"):
        requirements_in(line + "\n", "requirements.txt")


def test_a_conda_file_tells_what_pip_installs():
    text = "name: env\nchannels: [conda-forge]\ndependencies:\n- python=3.11\n- pip\n- pip:\n  - mlflow==2.14\n"
    assert conda_requirements(text, "conda.yaml") == ("mlflow==2.14",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dependencies: 3", "conda.yaml has no list of dependencies"),
        ("a: &a [1]\ndependencies: [*a, *a]", r"conda.yaml is no YAML: it uses an alias"),
        ("!!python/object/apply:os.system ['true']", "conda.yaml is no YAML: could not determine a constructor"),
        ("[" * 5000, "conda.yaml is no YAML"),
        ("dependencies: [{pip: [../evil]}]", "conda.yaml, pip leads outside the model"),
    ],
)
def test_a_conda_file_is_refused(text: str, words: str):
    with pytest.raises(RefusedModelError, match=words):
        conda_requirements(text, "conda.yaml")


# --- facts of a network ----------------------------------------------------------------------------------------------


def counted_by_onnx(path: Path) -> tuple[int, dict[str, int]]:
    model = onnx.load(str(path), load_external_data=False)
    counts: Counter[str] = Counter()

    def walk(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            counts[node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"] += 1
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    walk(inner)

    walk(model.graph)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return opset, dict(counts)


def test_opset_and_operators_are_what_the_library_of_the_format_says(tmp_path: Path):
    paths = [make(tmp_path / f"{make.__name__}.onnx") for make in (endless_onnx, two_outputs_onnx)]
    paths.append(linear_onnx(tmp_path / "linear.onnx", IDENTITY))
    if SHARED_MODELS.is_dir():
        paths += sorted(SHARED_MODELS.rglob("*.onnx"))
    for path in paths:
        facts = onnx_facts(memoryview(path.read_bytes()))
        assert (facts.opset, facts.operators) == counted_by_onnx(path), path.name
    assert onnx_facts(memoryview(paths[0].read_bytes())).operators == {"Loop": 1, "Identity": 1, "Add": 1}


def test_operators_of_a_tflite_file_are_counted(tmp_path: Path):
    assert tflite_operators(memoryview(linear_tflite(tmp_path / "m.tflite", IDENTITY).read_bytes())) == {9: 1}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_does_more_than_be_malformed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["m.onnx", "m.tflite"]))
    path = folder / name
    if not path.exists():
        (endless_onnx if name == "m.onnx" else lambda target: linear_tflite(target, IDENTITY))(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    read = onnx_facts if name == "m.onnx" else tflite_operators
    try:
        read(memoryview(bytes(content)))
    except MalformedModelError:
        return
