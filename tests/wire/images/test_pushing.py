"""Pushing and pulling over real sockets: what travels, and what a registry that fails in some way is answered with."""

import base64
import json
from pathlib import Path

import pytest

from cloud_registry.adapters import oci_registry
from cloud_registry.adapters.oci_registry import OciRegistry
from cloud_registry.core.images.bases import BaseSource
from cloud_registry.core.images.documents import PROVENANCE, SBOM
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.retrying import ATTEMPTS_MAX
from cloud_registry.errors import NotFoundError, RegistryError, TrustError, UsageError
from tests.unit.images.conftest import AMD64, Yard, open_yard
from tests.unit.images.tiny_images import registry_base
from tests.wire.images.registries import FaultyRegistry, debian_registry

pytestmark = pytest.mark.wire


@pytest.fixture(autouse=True)
def _no_logins(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """What would have been waited for, in place of waiting."""
    waited: list[float] = []
    monkeypatch.setattr("cloud_registry.adapters.system_clock.SystemClock.sleep", lambda _self, s: waited.append(s))
    return waited


def push(yard: Yard, registry: FaultyRegistry, record=None):
    record = record or yard.build()
    return yard.images().push(record, ImageName.parse(f"{registry.host}/line/digits:1"))


def test_a_push_sends_every_blob_once_and_the_tag_last(yard, registry):
    record = yard.build()
    pushed = push(yard, registry, record)
    layers = len(record.platforms[0].layers)
    assert (pushed.blobs_sent, pushed.blobs_there) == (layers + 1, 0)
    assert registry.manifests["1"][1] == yard.images().blobs.document(record.digest)
    assert registry.requests[-1] == ("PUT", "/v2/line/digits/manifests/1")
    assert yard.images().find(record.name).pushed == (f"{registry.host}/line/digits:1",)


def test_the_next_model_sends_its_own_layer_and_little_else(yard, registry):
    push(yard, registry)
    before = registry.received_bytes
    second = yard.images().build(yard.request(manifest=yard.with_model(bytes(range(256)) * 2000)))
    pushed = push(yard, registry, second)
    assert pushed.blobs_sent == 2  # the model and the configuration
    model = second.platforms[0].layers[-1].size_bytes
    documents = sum(one.content_size_bytes for one in second.platforms[0].attachments)
    assert registry.received_bytes - before == model + second.platforms[0].config_size_bytes + documents


def test_a_second_push_sends_no_blob(yard, registry):
    push(yard, registry)
    before = registry.received_bytes
    assert push(yard, registry).blobs_sent == 0
    assert registry.received_bytes == before


@pytest.mark.parametrize("lists_referrers", [False, True])
def test_attached_documents_are_found_by_their_image(yard, registry, lists_referrers):
    """By the registry's own list, or by the tag that stands for it where there is none (Debian's has none)."""
    registry.lists_referrers = lists_referrers
    record = yard.build()
    push(yard, registry, record)
    push(yard, registry, record)
    name = ImageName.parse(f"{registry.host}/line/digits:1")
    client = OciRegistry(registry.host, sleep=lambda _s: None, plain_http=True)
    found = client.referrers(name, record.platforms[0].digest)
    assert sorted(one.artifact_type for one in found) == [SBOM, PROVENANCE]
    assert any(tag.startswith("sha256-") for tag in registry.manifests) is not lists_referrers


def test_a_base_from_the_same_registry_is_taken_over_and_not_sent(yard, registry):
    """Its layers are mounted from the repository that has them."""
    blobs = registry_base()
    manifest = blobs.pop("manifest")
    registry.blobs.update(blobs)
    registry.manifests["1"] = ("application/vnd.docker.distribution.manifest.v2+json", manifest)
    source = BaseSource.parse(f"{registry.host}/bases/python:1")
    record = yard.build(bases={AMD64: source})
    assert record.platforms[0].base == str(source)
    (layer,) = [one for one in record.platforms[0].layers if one.created_by == "base"]
    registry.fail("HEAD", layer.digest, 404)
    push(yard, registry, record)
    mounts = [path for method, path in registry.requests if method == "POST" and "mount=" in path]
    assert len(mounts) == 1
    assert "from=bases%2Fpython" in mounts[0]


def test_a_base_that_comes_in_pieces_comes_whole(yard, registry, waits):
    blobs = registry_base()
    registry.manifests["1"] = ("application/vnd.docker.distribution.manifest.v2+json", blobs.pop("manifest"))
    registry.blobs.update(blobs)
    registry.fail("GET", "/blobs/", -100, -200, 503)
    record = yard.build(bases={AMD64: BaseSource.parse(f"{registry.host}/bases/python:1")})
    assert record.platforms[0].python == "3.11.2"
    assert len(waits) == 3


def test_a_base_of_another_digest_than_was_asked_for_is_refused(yard, registry, waits):
    blobs = registry_base()
    manifest = blobs.pop("manifest")
    registry.blobs.update(blobs)
    wrong = "sha256:" + "1" * 64
    registry.manifests[wrong] = ("application/vnd.docker.distribution.manifest.v2+json", manifest)
    with pytest.raises(TrustError, match=r"answered .* with a manifest of digest"):
        yard.build(bases={AMD64: BaseSource.parse(f"{registry.host}/bases/python@{wrong}")})


def test_a_layer_of_other_bytes_than_its_digest_is_not_kept(yard, registry, waits):
    blobs = registry_base()
    registry.manifests["1"] = ("application/vnd.docker.distribution.manifest.v2+json", blobs.pop("manifest"))
    registry.blobs.update({digest: content[:-1] + b"?" for digest, content in blobs.items()})
    with pytest.raises((RegistryError, UsageError)):
        yard.build(bases={AMD64: BaseSource.parse(f"{registry.host}/bases/python:1")})
    assert yard.images().list() == []


def test_an_upload_that_is_cut_goes_on_where_it_stopped(yard, registry, waits, monkeypatch):
    monkeypatch.setattr(oci_registry, "CHUNK_BYTES", 4000)
    record = yard.build(manifest=yard.with_model(bytes(range(256)) * 200 + b"".join(
        n.to_bytes(4, "big") for n in range(8000)
    )))  # fmt: skip
    registry.fail("PATCH", "state=2", "cut upload")
    pushed = push(yard, registry, record)
    sent = sum(len(content) for content in registry.blobs.values())
    # Not a byte twice.
    assert registry.received_bytes == sent
    assert pushed.digest == record.digest
    assert waits == [0.5]


def test_an_upload_that_the_registry_forgot_begins_anew(yard, registry, waits):
    record = yard.build()
    registry.fail("PATCH", "/uploads/", "cut upload")
    registry.fail("GET", "/uploads/", 404)
    push(yard, registry, record)
    assert set(registry.blobs) >= {layer.digest for layer in record.platforms[0].layers}


EXCUSES = {
    "too many requests": ((429, {"Retry-After": "3"}), [3.0]),
    "it is broken": (500, [0.5]),
    "it is overloaded": (503, [0.5]),
}


@pytest.mark.parametrize("excuse", EXCUSES)
@pytest.mark.parametrize(
    ("method", "path"),
    [("HEAD", "/blobs/"), ("POST", "/uploads/"), ("PATCH", "/uploads/"), ("PUT", "/manifests/")],
)
def test_a_registry_with_an_excuse_is_asked_again(yard, registry, waits, excuse, method, path):
    answer, expected = EXCUSES[excuse]
    record = yard.build()
    registry.fail(method, path, answer)
    assert push(yard, registry, record).digest == record.digest
    assert waits == expected


def test_a_registry_that_stays_broken_is_told_of_and_the_tag_stays_where_it_was(yard, registry, waits):
    record = yard.build()
    registry.fail("PUT", "/manifests/1", *([500] * ATTEMPTS_MAX))
    with pytest.raises(RegistryError, match=r"answered 500 told to fail \(after 5 attempts\)"):
        push(yard, registry, record)
    assert "1" not in registry.manifests
    assert yard.images().find(record.name).pushed == ()
    # And what was sent is not sent again.
    assert push(yard, registry, record).blobs_sent == 0


def test_a_registry_that_wants_a_login_is_answered_with_how_to_give_one(yard, registry):
    registry.token, registry.login = "secret-token", base64.b64encode(b"user:pass").decode()
    yard.build()
    with pytest.raises(TrustError, match="does not let us at") as caught:
        push(yard, registry)
    assert f"docker login {registry.host}" in caught.value.hint
    assert registry.blobs == {}


def test_the_login_of_docker_is_ours_as_well(yard, registry, tmp_path):
    registry.token, registry.login = "secret-token", base64.b64encode(b"user:pass").decode()
    (tmp_path / "docker").mkdir()
    logins = {"auths": {registry.host: {"auth": registry.login}}}
    (tmp_path / "docker" / "config.json").write_text(json.dumps(logins))
    record = yard.build()
    assert push(yard, registry, record).digest == record.digest


def test_a_token_that_ran_out_is_asked_for_again(yard, registry):
    registry.token = "first"
    record = yard.build()
    client = OciRegistry(registry.host, sleep=lambda _s: None, plain_http=True)
    name = ImageName.parse(f"{registry.host}/line/digits:1")
    assert not client.has(name, record.digest)
    registry.token = "second"
    assert not client.has(name, record.digest)


def test_a_refusal_for_good_is_not_tried_again(yard, registry, waits):
    registry.fail("POST", "/uploads/", 405)
    with pytest.raises(RegistryError, match=r"refused .* it answered 405 told to fail"):
        push(yard, registry)
    assert waits == []


def test_a_registry_that_nobody_answers_for(yard, waits):
    record = yard.build()
    with pytest.raises(RegistryError, match="could not be asked"):
        yard.images().push(record, ImageName.parse("127.0.0.1:1/digits:1"))
    assert len(waits) == ATTEMPTS_MAX - 1


def test_a_web_server_is_no_registry(yard, registry):
    registry.manifests["1"] = ("text/html", b"<html>")
    with pytest.raises(RegistryError, match="something that is no manifest"):
        yard.build(bases={AMD64: BaseSource.parse(f"{registry.host}/bases/python:1")})


def test_a_base_that_the_registry_does_not_have(yard, registry):
    with pytest.raises(NotFoundError, match=r"has no 127.*/bases/python:1"):
        yard.build(bases={AMD64: BaseSource.parse(f"{registry.host}/bases/python:1")})


def test_a_name_without_a_registry_cannot_be_pushed(yard):
    with pytest.raises(UsageError, match="names no registry"):
        yard.images().push(yard.build(), ImageName.parse("digits:1"))


def test_debians_registry_takes_an_image_and_gives_it_back_as_a_base(yard, tmp_path):
    with debian_registry(tmp_path / "registry") as host:
        record = yard.build()
        name = ImageName.parse(f"{host}/line/digits:1")
        first = yard.images().push(record, name)
        second = yard.images().push(record, name)
        assert (first.blobs_there, second.blobs_sent) == (0, 0)
        client = OciRegistry(host, sleep=lambda _s: None, plain_http=True)
        assert client.manifest(name)[0].digest == record.digest
        found = client.referrers(name, record.platforms[0].digest)
        assert sorted(one.artifact_type for one in found) == [SBOM, PROVENANCE]
        other = open_yard(tmp_path / "other")
        upon = other.build(bases={AMD64: BaseSource.parse(str(name))})
        assert upon.platforms[0].base_digest == record.digest
        # In the same registry nothing of the base has to travel.
        pushed = other.images().push(upon, ImageName.parse(f"{host}/line/upon:1"))
        assert pushed.blobs_there >= len(record.platforms[0].layers)
