"""The verbs asked of a server: the same results, the same errors, and nothing for whoever may not."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from cloud_registry import wiring
from cloud_registry.adapters.remote_registry import UPLOAD_CHUNK_BYTES, HttpRegistry
from cloud_registry.cli import main
from cloud_registry.core.catalog import ModelFacts
from cloud_registry.errors import (
    AccessDeniedError,
    ConflictError,
    NotFoundError,
    RefusedModelError,
    ServerUnreachableError,
    TrustError,
    UsageError,
)
from cloud_registry.ports import ModelQuery, ProofTerms
from cloud_registry.service.registration import Registration
from cloud_registry.service.verbs import VERBS
from cloud_registry.web.answers import BODY_BYTES_MAX
from manifests.errors import ManifestError
from manifests.identity import ModelReference
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, linear_tflite, save_arrays
from tests.wire.registry.served import Served, serving

pytestmark = pytest.mark.wire


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "home") as running:
        yield running


@pytest.fixture
def digits(tmp_path: Path) -> Registration:
    onnx, tflite = linear_onnx(tmp_path / "digits.onnx", IDENTITY), linear_tflite(tmp_path / "d.tflite", IDENTITY)
    sample = save_arrays(tmp_path / "sample.npz", input_x=ROWS)
    facts = ModelFacts("Reads digits.", ("0", "1"), {"accuracy": 0.97}, {"team": "vision"})
    return Registration("digits", (onnx, tflite), ProofTerms(sample=sample), facts)


def test_what_is_registered_from_afar_is_what_is_registered_at_home(served: Served, digits: Registration):
    said: list[str] = []
    remote = wiring.open_models(served.as_role("publisher"))
    registered = remote.register(digits, lambda stage, *_: said.append(stage))
    local = wiring.open_models(served.config)
    assert registered.manifest == local.resolve("digits:1")
    assert registered.manifest.golden is not None
    assert registered.manifest.golden.samples == len(ROWS)
    # Progress of both places, under the names that the person gave.
    assert {"sending digits.onnx", "running digits.onnx", "running d.tflite"} <= set(said)
    assert remote.register(digits).same_bytes == (ModelReference("digits", 1),)
    assert list(remote.search(ModelQuery("dig*"))) == list(local.search(ModelQuery("dig*")))
    assert list((served.home / "uploads").iterdir()) == []
    assert list((served.home / "uploads-in-use").iterdir()) == []


def test_tags_are_set_and_versions_fetched_and_deleted_from_afar(served: Served, digits: Registration, tmp_path: Path):
    remote, local = wiring.open_models(served.as_role("publisher")), wiring.open_models(served.config)
    reference = local.register(digits).manifest.reference
    assert remote.tag(reference, {"stage": "production"}, iter(["team"])).tags == {"stage": "production"}
    paths = remote.download(reference, tmp_path / "out", force=False)
    assert [path.name for path in paths] == ["model.onnx", "model.tflite", "golden.npz", "sample.npz", "manifest.json"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == digits.files[0].read_bytes()
    with pytest.raises(ConflictError, match="is there already"):
        remote.download(reference, tmp_path / "out", force=False)
    with pytest.raises(UsageError, match="devices cannot be asked"):
        remote.delete_unneeded(reference)
    remote.delete_unneeded(reference, offline=True)
    with pytest.raises(NotFoundError, match="every version of model 'digits' was deleted") as gone:
        remote.resolve("digits")
    assert gone.value.hint == "See what there is with: slipway model list"
    assert remote.remove_orphans() == wiring.open_models(served.config).remove_orphans()


def test_a_directory_is_registered_from_afar_as_it_is_at_home(served: Served, digits: Registration, tmp_path: Path):
    folder = tmp_path / "churn"
    folder.mkdir()
    (folder / "score.py").write_text("def init():\n    pass\n\n\ndef run(data):\n    return data\n")
    (folder / "requirements.txt").write_text("numpy==2.1.0\n")
    deep = folder / "weights" / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    (deep.parent.parent / "größe.bin").write_bytes(b"w" * 1000)
    (deep / "more.bin").write_bytes(b"m" * 1000)
    remote, local = wiring.open_models(served.as_role("publisher")), wiring.open_models(served.config)
    registration = Registration("churn", (folder,))
    from_afar, at_home = remote.register(registration).manifest, local.register(registration).manifest
    assert [(file.path, file.digest) for file in from_afar.source] == [
        (file.path, file.digest) for file in at_home.source
    ]
    assert "weights/größe.bin" in [file.path for file in from_afar.source]
    remote.download(from_afar.reference, tmp_path / "fetched", force=False)
    assert [path.read_bytes() for path in (tmp_path / "fetched").rglob("more.bin")] == [b"m" * 1000]
    dry = remote.register(replace(digits, is_dry_run=True))
    assert (dry.is_dry_run, dry.manifest.version) == (True, 1)
    assert [each.name for each in local.search(ModelQuery())] == ["churn", "churn"]


def test_a_stranger_does_not_lift_the_bounds_that_a_model_runs_in(served: Served, digits: Registration):
    remote = wiring.open_models(served.as_role("publisher"))
    for terms, words in (
        (ProofTerms(is_unconfined=True), "with the network in reach"),
        (ProofTerms(duration_max_s=901), "at most 900 s, and 901 s were asked"),
        (ProofTerms(duration_max_s=float("inf")), "cannot be read|at most 900 s"),
        (ProofTerms(memory_max_bytes=2**50), "bytes of memory"),
    ):
        with pytest.raises(UsageError, match=words):
            remote.register(replace(digits, terms=terms))
    assert wiring.open_models(served.config).search(ModelQuery()) == []


def test_aliases_properties_and_the_archive_work_from_afar(served: Served, digits: Registration):
    remote, local = wiring.open_models(served.as_role("publisher")), wiring.open_models(served.config)
    reference = local.register(digits).manifest.reference
    remote.point_alias(reference, "champion")
    assert remote.resolve("digits@champion").reference == reference
    assert remote.aliases("digits") == local.aliases("digits")
    assert remote.add_properties(reference, {"line": "3"}).properties == {"line": "3"}
    with pytest.raises(ConflictError):
        remote.archive(reference)
    remote.drop_alias("digits", "champion")
    assert remote.archive(reference).archived
    assert remote.archive(reference, archived=False) == local.resolve("digits:1")
    assert list(remote.alias_moves("digits")) == list(local.alias_moves("digits"))
    assert remote.family_of(reference) == local.family_of(reference)
    assert list(remote.holders_of(reference, offline=True)) == list(local.holders_of(reference, offline=True))


def test_an_error_arrives_with_the_words_and_the_code_that_it_had_there(served: Served, tmp_path: Path):
    remote = wiring.open_models(served.as_role("publisher"))
    (tmp_path / "zip.onnx").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(RefusedModelError, match="is a ZIP archive") as refused:
        remote.register(Registration("digits", (tmp_path / "zip.onnx",)))
    assert refused.value.hint == "Export or copy the file again, and compare its size."
    with pytest.raises(ManifestError, match="'No Name' is not a model name"):
        remote.resolve("No Name")
    with pytest.raises(NotFoundError, match="there is no file"):
        remote.register(Registration("digits", (tmp_path / "none.onnx",)))
    assert wiring.open_models(served.config).search(ModelQuery()) == []


def test_the_command_line_is_the_same_against_a_server(
    served: Served, digits: Registration, monkeypatch, tmp_path: Path
):
    def run(*arguments: str, home: Path | None = None) -> tuple[int, str, str]:
        environment = {"SLIPWAY_REGISTRY": served.url, "SLIPWAY_API_KEY": served.keys["publisher"]}
        if home is not None:
            environment = {"SLIPWAY_REGISTRY": None, "SLIPWAY_HOME": str(home)}
        result = CliRunner().invoke(main, list(arguments), env=environment)
        return result.exit_code, result.stdout, result.stderr

    monkeypatch.chdir(tmp_path)
    words = ("model", "register", "digits", "digits.onnx", "--sample", "sample.npz", "--tag", "team=vision")
    assert run(*words) == (0, "Registered digits:1 (onnx 123 bytes, 4 golden samples)\n", "")
    for arguments in (
        ("model", "show", "digits", "--json"),
        ("model", "list"),
        ("model", "search", "--tag", "team=vision", "--json"),
        ("model", "show", "digits:9"),
        ("model", "tag", "digits:1", "team=sound", "--json"),
        ("model", "delete", "digits:1"),
        ("telemetry", "summary"),
        ("telemetry", "list", "--json"),
        ("rollout", "list", "--json"),
        ("rollout", "status", "r-0001"),
        ("device", "list"),
        ("manifest", "create", "digits:1"),
    ):
        assert run(*arguments) == run(*arguments, home=served.home), arguments
    code, _, err = run("serve", "--port", "0")
    assert (code, err.splitlines()[0]) == (
        2,
        "Error: a server runs where the catalog is, and SLIPWAY_REGISTRY names a server",
    )


def test_each_verb_is_refused_to_whoever_lacks_its_role(served: Served):
    roles = ("reader", "publisher", "operator", "device")
    for verb in VERBS:
        words = {
            "text": "a:1",
            "reference": "a:1",
            "rollout_id": "r-1",
            "name": "a",
            "alias": "best",
            "key_id": "none",
            "digest": "sha256:0",
        }
        path = "/api/v1" + verb.path.format(**words)
        assert served.ask(verb.method, path).status_code == 401, verb.id
        allowed = {"reader": {"reader", "publisher", "operator"}}.get(verb.role, {verb.role})
        for role in roles:
            answer = served.ask(verb.method, path, role)
            assert (answer.status_code == 403) == (role not in allowed), (verb.id, role, answer.text)
            assert answer.status_code not in (401, 500) or verb.id == "telemetry.envelopes", (verb.id, answer.text)


def test_a_device_fetches_nothing_that_it_is_not_offered(served: Served, digits: Registration):
    wiring.open_models(served.config).register(digits)
    path = "/artifacts/digits/1/model.onnx"
    assert [served.ask("GET", path, role).status_code for role in ("reader", "publisher", "operator")] == [200] * 3
    refused = served.ask("GET", path, "device")
    assert (refused.status_code, refused.json()["kind"]) == (403, "AccessDeniedError")
    # What there is and what there is not look the same to it.
    assert served.ask("GET", "/artifacts/digits/2/model.onnx", "device").status_code == 403
    assert served.ask("GET", path).status_code == 401
    assert requests.get(served.url + path, auth=("any name", served.keys["reader"]), timeout=20).status_code == 200


SHOWN = [
    "",
    "Bearer",
    "Bearer ",
    "Bearer x",
    "Basic %%%",
    "Basic eA==",
    "Bearer slipway_000000000000_" + "A" * 43,
    "Bearer " + "x" * 20_000,
]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For requests that change nothing."""
    with serving(tmp_path_factory.mktemp("shared") / "home") as running:
        yield running


@pytest.mark.parametrize("shown", SHOWN, ids=lambda text: text[:30] or "nothing")
def test_no_other_credential_opens_anything(shared_server: Served, shown: str):
    answer = shared_server.ask("GET", "/api/v1/rollouts", headers={"Authorization": shown})
    assert (answer.status_code, answer.json()["kind"]) == (401, "TrustError")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_revoked_key_is_refused_at_once(served: Served):
    remote = wiring.open_models(served.as_role("reader"))
    assert remote.search(ModelQuery()) == []
    wiring.open_keys(served.config).revoke(served.keys["reader"].split("_")[1])
    with pytest.raises(TrustError, match="the API key 'a reader' was revoked"):
        remote.search(ModelQuery())
    with pytest.raises(AccessDeniedError, match="'a operator' is operator, and this takes the role publisher"):
        wiring.open_models(served.as_role("operator")).remove_orphans()


HOSTILE = [
    {"upload": "0" * 32, "name": "model.onnx"},
    {"upload": "../../catalog.db", "name": "model.onnx"},
    {"upload": "0" * 32, "name": "../../model.onnx"},
    {"upload": "0" * 32, "name": "x" * 300},
    {"folder": "..", "files": []},
    {"folder": "m", "files": [{"upload": "0" * 32, "name": "/etc/passwd"}]},
    {"folder": "m", "files": [{"upload": "0" * 32, "name": "a/../../b"}]},
    {"folder": "m", "files": [7]},
    "/etc/passwd",
    7,
    None,
    [],
]


@pytest.mark.parametrize("file", HOSTILE, ids=lambda file: str(file)[:60])
def test_a_file_is_an_upload_and_never_a_path_of_the_server(shared_server: Served, file):
    served = shared_server
    body = {"registration": {"name": "digits", "files": [file], "terms": {}, "facts": {}}}
    answer = served.ask("POST", "/api/v1/models", "publisher", json=body)
    assert answer.status_code in (400, 404), answer.text
    in_use = served.home / "uploads-in-use"
    assert not in_use.exists() or list(in_use.iterdir()) == []


def test_a_body_that_is_too_large_or_no_json_is_refused(served: Served):
    too_large = served.ask("POST", "/api/v1/models/search", "reader", data=b" " * (BODY_BYTES_MAX + 1))
    assert (too_large.status_code, too_large.json()["kind"]) == (413, "BodyTooLargeError")
    endless = served.ask("POST", "/api/v1/models/search", "reader", data=iter([b" " * 1024**2] * 17))
    assert endless.status_code == 413
    for body in (b"{", b"[]", b"\xff", b'{"query": 7}', b"{}"):
        assert served.ask("POST", "/api/v1/models/search", "reader", data=body).status_code == 400, body


def test_who_asks_too_often_is_told_to_wait_and_does(tmp_path: Path):
    with serving(tmp_path / "home", requests_per_second=2.0) as served:
        codes = [served.ask("GET", "/api/v1/rollouts", "reader").status_code for _ in range(24)]
        assert codes[:20] == [200] * 20
        assert 429 in codes[20:]
        refused = served.ask("GET", "/api/v1/rollouts", "reader")
        assert refused.status_code == 200 or int(refused.headers["Retry-After"]) >= 1
        # Another key is another caller, and our own client waits for its turn.
        assert served.ask("GET", "/api/v1/rollouts", "operator").status_code == 200
        slept: list[float] = []
        assert served.url
        transport = HttpRegistry(
            served.url, served.keys["reader"], sleep=lambda s: (slept.append(s), threading.Event().wait(s))
        )
        assert json.loads(transport.call("GET", "/rollouts", {}, None)) == []
        assert slept == [] or max(slept) >= 1.0


def test_every_change_and_refusal_is_in_the_audit_log_and_no_key_is(served: Served, digits: Registration):
    remote = wiring.open_models(served.as_role("publisher"))
    reference = remote.register(digits).manifest.reference
    remote.tag(reference, {"a": "b"}, [])
    served.ask("POST", "/api/v1/models/prune", "device")
    entries = [json.loads(line) for line in served.audit()]
    publisher = "key:" + served.keys["publisher"].split("_")[1]
    assert [(each["who"], each["status"]) for each in entries if each["what"] == "models.register"] == [
        (publisher, 200)
    ]
    (tagged,) = (each for each in entries if each["what"] == "models.tag")
    assert (tagged["name"], tagged["on"]["reference"], tagged["from"]) == ("a publisher", "digits:1", "127.0.0.1")
    assert [each["status"] for each in entries if each["what"] == "models.remove_orphans"] == [403]
    text = "\n".join(served.audit())
    assert not any(key.split("_", 2)[2] in text for key in served.keys.values())
    assert (served.home / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_metrics_count_what_was_asked(served: Served, digits: Registration):
    wiring.open_models(served.as_role("publisher")).register(digits)
    served.ask("GET", "/artifacts/digits/1/model.onnx", "reader")
    assert served.ask("GET", "/metrics").status_code == 401
    deadline = time.monotonic() + 20
    # A download is over a moment after its last byte has arrived.
    while "slipway_downloads_under_way 0.0" not in (text := served.ask("GET", "/metrics", "reader").text):
        assert time.monotonic() < deadline, text
    assert 'slipway_requests_total{status="200",what="models.register"} 1.0' in text
    assert "slipway_artifact_sent_bytes_total 123.0" in text
    assert 'slipway_refused_total{why="credential"} 1.0' in text
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert (families["slipway_requests"], families["slipway_request_duration_seconds"]) == ("counter", "histogram")


def test_signed_metadata_is_served_and_nothing_beside_it(served: Served):
    folder = served.home / "trust" / "metadata"
    folder.mkdir(parents=True)
    (folder / "timestamp.json").write_text('{"signed": 1}')
    (folder.parent / "key.json").write_text("secret")
    (folder / "link.json").symlink_to(folder.parent / "key.json")
    answer = served.ask("GET", "/metadata/timestamp.json", "device")
    assert (answer.status_code, answer.json(), answer.headers["Cache-Control"]) == (200, {"signed": 1}, "no-cache")
    assert served.ask("GET", "/metadata/timestamp.json").status_code == 401
    for path in ("link.json", "none.json", "..%2fkey.json", "../key.json", ".hidden.json", "timestamp.json%00"):
        assert served.ask("GET", "/metadata/" + path, "device").status_code == 404, path


# --- uploads ------------------------------------------------------------------


def test_an_upload_that_was_cut_goes_on_where_it_stopped(served: Served, tmp_path: Path):
    content = np.random.default_rng(3).bytes(100_000)
    path = tmp_path / "big.onnx"
    path.write_bytes(content)
    begun = {"digest": "sha256:" + hashlib.sha256(content).hexdigest(), "size": len(content)}
    place = "/api/v1/uploads/" + served.ask("POST", "/api/v1/uploads", "publisher", json=begun).json()["id"]

    def send(data: object, offset: int) -> requests.Response:
        return served.ask("PATCH", place, "publisher", data=data, headers={"Upload-Offset": str(offset)})

    assert send(content[:40_000], 0).json()["offset"] == 40_000

    def cut() -> Iterator[bytes]:
        yield content[40_000:60_000]
        raise OSError("the cable")

    with pytest.raises((OSError, requests.RequestException)):
        send(cut(), 40_000)
    refused = send(content[:5], 7)
    assert (refused.status_code, refused.json()["kind"]) == (409, "ConflictError")
    assert served.ask("GET", place, "operator").status_code == 403
    # Another process of the same person: it finds the upload, and sends only what is missing.
    counted: list[int] = []
    transport = HttpRegistry(served.url, served.keys["publisher"])
    upload_id = transport.upload(
        path, lambda stage, done, _: counted.append(done) if stage.startswith("sending") else None
    )
    assert place.endswith(upload_id)
    assert counted[0] in (40_000, 60_000)
    assert counted[-1] == len(content)
    found = served.ask("GET", place, "publisher").json()
    assert (found["offset"], found["isWhole"]) == (len(content), True)
    assert (served.home / "uploads" / upload_id / "whole").read_bytes() == content


def test_bytes_that_are_not_the_announced_ones_are_thrown_away(served: Served):
    begun = {"digest": "sha256:" + hashlib.sha256(b"good").hexdigest(), "size": 4}
    place = "/api/v1/uploads/" + served.ask("POST", "/api/v1/uploads", "publisher", json=begun).json()["id"]
    more = served.ask("PATCH", place, "publisher", data=b"goods", headers={"Upload-Offset": "0"})
    assert more.status_code == 413
    bad = served.ask("PATCH", place, "publisher", data=b"evil", headers={"Upload-Offset": "0"})
    assert (bad.status_code, bad.json()["exitCode"]) == (422, 1)
    assert "was announced" in bad.json()["error"]
    assert served.ask("GET", place, "publisher").status_code == 404


def test_a_file_larger_than_the_server_takes_is_refused_before_a_byte_of_it(tmp_path: Path):
    with serving(tmp_path / "home", upload_bytes_max=1000) as served:
        (tmp_path / "big.onnx").write_bytes(b"x" * 1001)
        with pytest.raises(UsageError, match="the file has 1,001 bytes; this server takes at most 1,000"):
            wiring.open_models(served.as_role("publisher")).register(Registration("digits", (tmp_path / "big.onnx",)))
        assert not (served.home / "uploads").exists()
        vast = {"digest": "sha256:" + "0" * 64, "size": 2**70}
        assert served.ask("POST", "/api/v1/uploads", "publisher", json=vast).status_code == 413


def test_somebody_elses_upload_is_not_there_for_others(served: Served):
    other = wiring.open_keys(served.config).create("other", ["publisher"])[1]
    begun = {"digest": "sha256:" + hashlib.sha256(b"mine").hexdigest(), "size": 4}
    place = "/api/v1/uploads/" + served.ask("POST", "/api/v1/uploads", "publisher", json=begun).json()["id"]
    seen = requests.get(served.url + place, headers={"Authorization": f"Bearer {other}"}, timeout=20)
    assert seen.status_code == 404


def test_a_folder_with_a_link_that_leads_out_is_not_sent(served: Served, digits: Registration, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "secret.txt").symlink_to(tmp_path / "digits.onnx")
    with pytest.raises(UsageError, match="leads out of"):
        wiring.open_models(served.as_role("publisher")).register(replace(digits, files=(folder,)))


# --- lines that break ---------------------------------------------------------


class _Fickle(BaseHTTPRequestHandler):
    """Passes requests on to a server, and breaks the line as its script says."""

    target = ""
    script: list[str] = []
    protocol_version = "HTTP/1.0"

    def _pass_on(self) -> None:
        mood = self.script.pop(0) if self.script else "well"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if mood == "silent":
            return
        headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
        answer = requests.request(self.command, self.target + self.path, data=body, headers=headers, timeout=20)
        if mood == "forgets":
            # The request was done, and nobody hears of it.
            return
        self.send_response(503 if mood == "busy" else answer.status_code)
        content = answer.content
        for key in ("Content-Type", "Content-Range", "ETag"):
            if key in answer.headers:
                self.send_header(key, answer.headers[key])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if mood == "half" else content)

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fickle(served: Served) -> Iterator[Callable[..., Served]]:
    """The server behind a line that breaks: `fickle("half", "well")` says how it treats the next requests."""
    _Fickle.target, _Fickle.script = served.url, []
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Fickle)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()

    def behind(*moods: str) -> Served:
        _Fickle.script = list(moods)
        return replace(served, url=f"http://127.0.0.1:{proxy.server_address[1]}")

    yield behind
    proxy.shutdown()
    proxy.server_close()


def test_a_download_that_is_cut_goes_on_where_it_was(served: Served, fickle, tmp_path: Path):
    path = linear_onnx(tmp_path / "large.onnx", np.random.default_rng(7).random((500, 500)))
    manifest = wiring.open_models(served.config).register(Registration("large", (path,))).manifest
    models = wiring.open_models(fickle("well", "half", "half", "silent", "well").as_role("reader"))
    models.download(manifest.reference, tmp_path / "out", force=False)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()


def test_an_upload_survives_every_break_of_its_line(served: Served, fickle, tmp_path: Path):
    path = tmp_path / "big.onnx"
    path.write_bytes(np.random.default_rng(3).bytes(UPLOAD_CHUNK_BYTES * 2 + 17))
    behind = fickle("silent", "well", "busy", "silent", "well", "forgets", "half", "well", "forgets", "well")
    transport = HttpRegistry(behind.url, served.keys["publisher"], sleep=lambda _: None)
    upload_id = transport.upload(path)
    assert (served.home / "uploads" / upload_id / "whole").read_bytes() == path.read_bytes()


def test_a_server_that_is_away_is_said_with_the_code_for_it(tmp_path: Path):
    result = CliRunner().invoke(
        main, ["model", "list"], env={"SLIPWAY_REGISTRY": "http://127.0.0.1:9", "SLIPWAY_API_KEY": "slipway_x"}
    )
    assert result.exit_code == 4
    assert "the registry at 127.0.0.1:9 is not reachable: the connection failed" in result.stderr


def test_an_answer_that_ends_before_its_result_is_no_success(served: Served, fickle, digits: Registration):
    models = wiring.open_models(fickle(*["well"] * 6, "half").as_role("publisher"))
    with pytest.raises(ServerUnreachableError, match="cut"):
        models.register(digits, lambda *_: None)


@pytest.mark.parametrize(
    "url", ["ftp://x", "registry.example", "https://me:secret@registry.example", "http://registry.example"]
)
def test_a_url_that_would_show_the_key_is_refused(url: str):
    with pytest.raises(UsageError) as refused:
        HttpRegistry(url, "slipway_1_2")
    assert "secret" not in refused.value.message
