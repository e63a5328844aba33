"""An image that is pushed while it is built: the model's layer travels while it is compressed, whatever goes wrong."""

import hashlib
import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGKILL

import pytest

from cloud_registry.adapters import oci_layers, oci_registry
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.retrying import ATTEMPTS_MAX
from cloud_registry.errors import RegistryError, TrustError
from tests.unit.images.conftest import Yard, open_yard
from tests.wire.images.registries import FaultyRegistry, debian_registry

pytestmark = pytest.mark.wire

DEADLINE_S = 20.0
PIECE_BYTES = 4000
# Bytes that do not compress, of a dozen pieces.
MODEL = random.Random(5).randbytes(50_000)
# The first address of an upload is without it: a growing layer's second request.
SECOND_PATCH = "/uploads/.*state=2"


@pytest.fixture(autouse=True)
def _small_pieces(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(oci_layers, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(oci_registry, "CHUNK_BYTES_MIN", 6000)
    monkeypatch.setattr(oci_registry, "CHUNK_BYTES", 10_000)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    yard = open_yard(tmp_path / "yard")
    yard.manifest = yard.with_model(MODEL)
    return yard


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """What would have been waited for, in place of waiting."""
    waited: list[float] = []
    monkeypatch.setattr("cloud_registry.adapters.system_clock.SystemClock.sleep", lambda _self, s: waited.append(s))
    return waited


def name_at(host: str, tag: str = "1") -> ImageName:
    return ImageName.parse(f"{host}/line/digits:{tag}")


def build_and_push(yard: Yard, host: str, tag: str = "1"):
    """As `slipway image build --push`: the record and what was pushed."""
    images = yard.images()
    with images.pushing(name_at(host, tag)) as push:
        record = images.build(yard.request(), push=push)
        return record, images.pushed(record, push)


def push_lower_layers(yard: Yard, registry: FaultyRegistry) -> None:
    """An image of another model is there: of the next one only the model's layer is large."""
    wanted, yard.manifest = yard.manifest, yard.with_model(b"another")
    build_and_push(yard, registry.host, "0")
    yard.manifest = wanted
    registry.requests.clear()


def model_of(record) -> str:
    return record.platforms[0].layers[-1].digest


def test_a_layer_is_on_its_way_before_it_is_whole(yard, registry, monkeypatch):
    """The last of the model's bytes are not read before the registry has some of the first."""
    push_lower_layers(yard, registry)
    arrived = threading.Event()
    registry.fail("PATCH", "/uploads/", arrived.set)
    read_on = oci_layers._checked

    def reluctant(blob, read_blob):
        chunks = b"".join(read_on(blob, read_blob))
        yield chunks[:30_000]
        assert arrived.wait(DEADLINE_S / 2), "nothing of the layer was sent"
        yield chunks[30_000:]

    monkeypatch.setattr(oci_layers, "_checked", reluctant)
    record, pushed = build_and_push(yard, registry.host)
    assert pushed.digest == record.digest
    assert registry.blobs[model_of(record)] == yard.images().blobs.path(model_of(record)).read_bytes()


def test_an_image_is_the_same_however_it_was_pushed(yard, registry, tmp_path):
    record, pushed = build_and_push(yard, registry.host)
    assert yard.images().find(record.name).pushed == (str(name_at(registry.host)),)
    assert registry.requests[-1] == ("PUT", "/v2/line/digits/manifests/1")
    assert (pushed.blobs_sent, pushed.blobs_there) == (len(record.platforms[0].layers) + 1, 0)
    first = dict(registry.blobs)
    sent_bytes = registry.received_bytes
    other = open_yard(tmp_path / "other")
    other.manifest = other.with_model(MODEL)
    registry.blobs.clear()
    registry.manifests.clear()
    later = other.build()
    other.images().push(later, name_at(registry.host))
    assert later.digest == record.digest
    assert registry.blobs == first
    assert registry.received_bytes == 2 * sent_bytes


def refresh(registry: FaultyRegistry):
    """The token that was given runs out."""

    def run() -> None:
        registry.token = "second"

    return run


TROUBLE = {
    "the line is cut": ("PATCH", ["cut upload"], [0.5]),
    "it is broken for a moment": ("PATCH", [500], [0.5]),
    "it is broken for a while": ("PATCH", [503, 502, (429, {"Retry-After": "7"})], [0.5, 1.0, 7.0]),
    "it has other bytes than we think": ("PATCH", [416], [0.5]),
    "it forgot the upload": ("PATCH", [404], [0.5]),
    "its answer to the end is lost": ("PUT", [500], [0.5]),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_growing_layer_arrives_whole_in_spite_of(yard, registry, waits, trouble):
    method, answers, expected = TROUBLE[trouble]
    push_lower_layers(yard, registry)
    registry.fail(method, SECOND_PATCH, *answers)
    record, pushed = build_and_push(yard, registry.host)
    assert waits == expected
    assert pushed.digest == record.digest
    assert registry.manifests["1"][1] == yard.images().blobs.document(record.digest)
    stored = yard.images().blobs.path(model_of(record)).read_bytes()
    assert registry.blobs[model_of(record)] == stored
    if "forgot" not in trouble:
        # Not a byte twice, nor one too few.
        assert registry.received_bytes == sum(map(len, registry.blobs.values()))


def test_an_upload_that_was_closed_already_is_not_sent_again(yard, registry, waits):
    """The registry took it over, its answer was lost, and now it does not know the upload any more."""

    def take() -> int:
        (upload,) = [one for one, content in registry.uploads.items() if len(content) > 20_000]
        content = registry.uploads.pop(upload)
        registry.blobs["sha256:" + hashlib.sha256(content).hexdigest()] = content
        return 500

    push_lower_layers(yard, registry)
    registry.fail("PUT", SECOND_PATCH, take)
    record, _ = build_and_push(yard, registry.host)
    assert registry.received_bytes == sum(map(len, registry.blobs.values()))
    assert model_of(record) in registry.blobs


def test_a_token_that_runs_out_midway_is_asked_for_again(yard, registry):
    registry.token = "first"
    registry.fail("PATCH", SECOND_PATCH, refresh(registry))
    record, pushed = build_and_push(yard, registry.host)
    assert registry.token == "second"
    assert pushed.digest == record.digest
    assert registry.blobs[model_of(record)] == yard.images().blobs.path(model_of(record)).read_bytes()


def test_a_registry_that_stays_broken_leaves_an_image_that_can_be_pushed_later(yard, registry, waits):
    push_lower_layers(yard, registry)
    registry.fail("PATCH", SECOND_PATCH, *([500] * ATTEMPTS_MAX))
    with pytest.raises(RegistryError, match=r"broke at byte .* answered 500 told to fail \(after 5 attempts\)"):
        build_and_push(yard, registry.host)
    assert "1" not in registry.manifests
    record = yard.images().list()[0]
    assert (record.name, record.pushed) == ("slipway-digits:1", ())
    layers_before = set(registry.blobs) & {layer.digest for one in record.platforms for layer in one.layers}
    pushed = yard.images().push(record, name_at(registry.host))
    assert pushed.blobs_there >= len(layers_before) > 0
    assert registry.manifests["1"][1] == yard.images().blobs.document(record.digest)


def test_a_registry_that_wants_a_login_is_asked_for_one_and_the_image_is_kept(yard, registry):
    registry.token, registry.login = "secret", "dXNlcjpwYXNz"
    with pytest.raises(TrustError, match="does not let us at"):
        build_and_push(yard, registry.host)
    assert yard.images().find("slipway-digits:1").pushed == ()
    assert registry.blobs == {}


def test_a_damaged_model_is_not_left_in_the_registry(yard, registry):
    """What was sent of it before that was seen is taken back: without its last request an upload is nothing."""
    blobs = yard.home / "artifacts" / "blobs"
    (path,) = [path for path in blobs.rglob("*") if path.is_file() and path.read_bytes() == MODEL]
    path.chmod(0o644)
    path.write_bytes(MODEL[:-1] + b"?")
    with pytest.raises(RegistryError, match="are not the registered ones"):
        build_and_push(yard, registry.host)
    assert yard.images().list() == []
    assert registry.manifests == {}
    assert all(len(content) < 20_000 for content in registry.blobs.values())


def test_a_layer_that_the_tag_has_already_is_not_sent_by_another_machine(yard, registry, tmp_path):
    build_and_push(yard, registry.host)
    before = registry.received_bytes
    other = open_yard(tmp_path / "other")
    other.manifest = other.with_model(MODEL)
    _, pushed = build_and_push(other, registry.host)
    assert (pushed.blobs_sent, registry.received_bytes) == (0, before)


BUILDER = """
import sys
from pathlib import Path
from cloud_registry.adapters import oci_layers, oci_registry
from manifests.model import ModelManifest
from tests.unit.images.conftest import Yard
from tests.wire.images.test_pushing_while_building import build_and_push

oci_layers.PIECE_BYTES, oci_registry.CHUNK_BYTES_MIN, oci_registry.CHUNK_BYTES = 4000, 6000, 10_000
home, base, wheels, manifest, host = sys.argv[1:]
build_and_push(Yard(Path(home), Path(base), Path(wheels), ModelManifest.from_json(manifest)), host)
"""


def test_a_push_that_is_killed_shows_nothing_and_the_next_one_goes_on(yard, registry):
    reached, killed = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        killed.wait(DEADLINE_S)

    registry.fail("PATCH", SECOND_PATCH, hold)
    command = [sys.executable, "-c", BUILDER, yard.home, yard.base, yard.wheelhouse, yard.manifest.to_json()]
    process = subprocess.Popen([*command, registry.host], cwd=Path(__file__).parents[3])
    try:
        assert reached.wait(DEADLINE_S)
    finally:
        process.send_signal(SIGKILL)
        process.wait()
        killed.set()
    assert registry.manifests == {}
    there = set(registry.blobs)
    record, pushed = build_and_push(yard, registry.host)
    assert registry.manifests["1"][1] == yard.images().blobs.document(record.digest)
    # The layers below had arrived, or were on their way.
    assert pushed.blobs_there >= len(there & record.blobs())


def test_debians_registry_takes_a_layer_while_it_is_made(yard, tmp_path):
    with debian_registry(tmp_path / "registry") as host:
        record, pushed = build_and_push(yard, host)
        assert (pushed.blobs_there, pushed.digest) == (0, record.digest)
        client = oci_registry.OciRegistry(host, sleep=lambda _s: None, plain_http=True)
        assert client.manifest(name_at(host))[0].digest == record.digest
        layer = record.platforms[0].layers[-1]
        found = client.blob(name_at(host), oci_registry.Descriptor("", layer.digest, layer.size_bytes))
        assert b"".join(found) == yard.images().blobs.path(layer.digest).read_bytes()


CLI = """
import sys
from cloud_registry.cli import main
try:
    main()
finally:
    heavy = {"numpy", "yaml", "lark", "jsonschema", "onnx", "rich", "docker", "alembic"} & set(sys.modules)
    print("loaded", sorted(heavy), file=sys.stderr)
"""


def test_the_command_builds_and_pushes_and_loads_nothing_that_it_does_not_use(registry, tmp_path):
    """To load NumPy or a grammar may not take as long as to send the model."""
    from tests.unit.images.tiny_images import save_base
    from tests.unit.registry.registry_models import IDENTITY, linear_onnx

    def slipway(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CLI, "--home", str(tmp_path / "home"), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
        assert run.returncode == 0, run.stderr
        return run

    slipway("model", "register", "digits", str(linear_onnx(tmp_path / "digits.onnx", IDENTITY)))
    build = ("image", "build", "digits:1", "--platform", "linux/amd64", "--json")
    recipe = json.loads(slipway(*build, "--dry-run").stdout)["recipe"]
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "requirements": []}))
    given = ("--base", f"tar:{save_base(tmp_path / 'base.tar')}", "--recipe", str(tmp_path / "recipe.json"))
    run = slipway(*build, *given, "--push", str(name_at(registry.host)))
    value = json.loads(run.stdout)
    digest = hashlib.sha256(registry.manifests["1"][1]).hexdigest()
    assert value["pushed"]["digest"] == value["digest"] == f"sha256:{digest}"
    assert "loaded []" in run.stderr
