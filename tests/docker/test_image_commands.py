"""What `slipway image` does with an engine and a registry: other builders, outputs, places, and refusals."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.docker.conftest import Workshop
from tests.wire.images.registries import debian_registry

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def build(workshop: Workshop, tag: str, *options: str) -> Any:
    return workshop.slipway(
        *("image", "build", "mix:1", "--name", tag, "--platform", "linux/amd64"),
        *("--wheelhouse", str(workshop.wheelhouse("linux/amd64")), *options),
    )


def base(workshop: Workshop) -> tuple[str, str]:
    return "--base", f"engine:{workshop.base('linux/amd64')}"


def test_a_base_and_the_image_are_the_engines(workshop: Workshop, engine: Any) -> None:
    built = build(workshop, "slipway-test-engine:1", *base(workshop), "--output", "engine", "--json")
    assert built.code == 0, built.err
    [platform] = built.json["platforms"]
    assert engine.images.get("slipway-test-engine:1").id == platform["config"]
    assert workshop.slipway("image", "test", "slipway-test-engine:1").code == 0


def test_a_dockerfile_of_ones_own_through_the_command(workshop: Workshop, image: str, engine: Any) -> None:
    own = workshop.folder / "Dockerfile.mine"
    own.write_text(f"FROM {image}\nLABEL com.example.mine=yes\nCOPY model /opt/slipway/model\n")
    built = build(workshop, "slipway-test-mine:1", "--builder", "docker", "--dockerfile", str(own))
    assert built.code == 0, built.err
    assert engine.images.get("slipway-test-mine:1").labels["com.example.mine"] == "yes"
    assert workshop.slipway("image", "test", "slipway-test-mine:1").code == 0
    held = workshop.slipway("image", "list", "--json").json
    assert {"slipway-test-mine:1": "mix:1"}.items() <= {one["name"]: one["model"] for one in held}.items()


def test_layers_of_zstd_are_not_for_every_engine(workshop: Workshop) -> None:
    built = build(workshop, "slipway-test-zstd:1", *base(workshop), "--compression", "zstd", "--output", "engine")
    assert (built.code, "has layers of zstd, which not every engine loads" in built.err) == (1, True)
    assert "--compression gzip" in built.err


def manifest(host: str, digest: str) -> dict[str, Any]:
    headers = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
    answer = requests.get(f"http://{host}/v2/line/mix/manifests/{digest}", headers=headers, timeout=20)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_real_registry_keeps_the_image_and_what_is_attached(
    workshop: Workshop, engine: Any, tmp_path: Path, compression: str
) -> None:
    with debian_registry(tmp_path / "registry") as host:
        name = f"{host}/line/mix:1"
        local = f"slipway-test-pushed-{compression}:1"
        built = build(workshop, local, *base(workshop), "--compression", compression, "--push", name, "--json")
        assert built.code == 0, built.err
        [platform] = built.json["platforms"]
        stored = manifest(host, platform["digest"])
        assert {layer["mediaType"].rpartition("+")[2] for layer in stored["layers"][1:]} == {compression}
        # This registry has no API of referrers: the tag of the specification stands for it.
        attached = {
            one["artifactType"]: manifest(host, one["digest"])
            for one in manifest(host, platform["digest"].replace(":", "-"))["manifests"]
        }
        assert len(attached) == 2
        assert all(one["subject"]["digest"] == platform["digest"] for one in attached.values())
        for kind, arguments in (("application/vnd.cyclonedx+json", ()), ("in-toto", ("--provenance",))):
            [document] = [one for type_, one in attached.items() if kind in type_]
            [blob] = document["layers"]
            content = requests.get(f"http://{host}/v2/line/mix/blobs/{blob['digest']}", timeout=20).content
            assert "sha256:" + hashlib.sha256(content).hexdigest() == blob["digest"]
            printed = workshop.slipway("image", "sbom", local, *arguments)
            assert (printed.code, printed.json) == (0, json.loads(content))
        if compression == "gzip":
            engine.images.pull(f"{host}/line/mix", tag="1")
            said = workshop.slipway("image", "test", name, "--model", "mix:1")
            assert said.code == 0, said.err
            engine.images.remove(name, force=True)


def test_without_an_engine_it_says_so(workshop: Workshop, tmp_path: Path) -> None:
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    for said in (
        workshop.slipway("image", "test", "slipway-test-mix:1", **nowhere),
        workshop.slipway("image", "build", "mix:1", "--platform", "linux/amd64", "--base", "engine:any", **nowhere),
        workshop.slipway("image", "build", "mix:1", "--platform", "linux/amd64", "--builder", "docker", **nowhere),
    ):
        assert said.code == 1
        assert said.err.startswith("Error: the container engine cannot be reached: ")
        assert "set DOCKER_HOST" in said.err
        assert "Traceback" not in said.err
