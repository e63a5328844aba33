"""The documents of an image: what a configuration inherits, what an index offers, why there is no wheel."""

import json

import pytest

from cloud_registry.core.images.bases import BaseSource, chosen_manifest
from cloud_registry.core.images.documents import (
    CONFIG,
    LAYER_TYPES,
    LAYERS_MAX,
    MANIFEST,
    Descriptor,
    ImageSettings,
    Layer,
    image_config,
    image_index,
    image_manifest,
    referrers_tag,
)
from cloud_registry.core.images.platforms import Platform, PythonTarget
from cloud_registry.core.images.retrying import ATTEMPTS_MAX, DELAY_S_MAX, delay_s, resume_offset
from cloud_registry.core.images.wheels import OWN_LAYER_BYTES_MIN, OWN_LAYERS_MAX, Wheel, refusal, shares
from cloud_registry.errors import RegistryError, UsageError

D = "sha256:" + "d" * 64
LAYER = Layer(Descriptor(LAYER_TYPES["gzip"], D, 10), "sha256:" + "e" * 64, "ours")
BASE = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "config": {
        "Env": ["PATH=/bin", "LANG=C"],
        "Cmd": ["python3"],
        "Labels": {"a": "1"},
        "ExposedPorts": {"80/tcp": {}},
        "OnBuild": None,
    },
    "rootfs": {"type": "layers", "diff_ids": [D]},
}


def test_a_configuration_inherits_from_its_base_and_adds():
    settings = ImageSettings(
        environment={"LANG": "C.UTF-8", "X": "1"},
        labels={"b": "2"},
        entrypoint=("python3", "-m", "edge_module"),
        user="10001:10001",
        ports=(5001,),
        volumes=("/var/lib/slipway",),
        health_check=("CMD", "true"),
    )
    config = json.loads(image_config(BASE, Platform("arm64"), (LAYER,), settings, "1970-01-01T00:00:00Z"))
    assert config["config"] == {
        "Env": ["PATH=/bin", "LANG=C.UTF-8", "X=1"],
        "Labels": {"a": "1", "b": "2"},
        "User": "10001:10001",
        "StopSignal": "SIGTERM",
        "Entrypoint": ["python3", "-m", "edge_module"],
        "ExposedPorts": {"80/tcp": {}, "5001/tcp": {}},
        "Volumes": {"/var/lib/slipway": {}},
        "Healthcheck": config["config"]["Healthcheck"],
    }
    assert config["config"]["Healthcheck"]["Test"] == ["CMD", "true"]
    assert config["rootfs"]["diff_ids"] == [D, LAYER.diff_id]
    assert [entry["created_by"] for entry in config["history"]] == ["base", "ours"]
    assert (config["architecture"], config["os"], config["created"]) == ("arm64", "linux", "1970-01-01T00:00:00Z")


def test_a_manifest_speaks_of_layers_in_one_language():
    docker = Descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", D, 10)
    manifest = json.loads(image_manifest(Descriptor(CONFIG, D, 2), [docker, LAYER.descriptor], {}))
    assert {layer["mediaType"] for layer in manifest["layers"]} == {LAYER_TYPES["gzip"]}


def test_more_layers_than_an_engine_mounts_are_refused():
    with pytest.raises(RegistryError, match="126 layers"):
        image_manifest(Descriptor(CONFIG, D, 2), [LAYER.descriptor] * (LAYERS_MAX + 1), {})


def test_the_order_of_the_platforms_is_of_no_account():
    both = [Descriptor(MANIFEST, D, 3, Platform("arm64")), Descriptor(MANIFEST, D, 3, Platform("amd64"))]
    assert image_index(both) == image_index(both[::-1])


INDEX = {
    "manifests": [
        {"digest": D, "size": 1, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {
            "digest": "sha256:" + "a" * 64,
            "size": 1,
            "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
        },
        {"digest": "sha256:" + "b" * 64, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
}


def test_the_image_of_an_index_for_a_platform():
    assert chosen_manifest(INDEX, Platform("arm64"), "base").digest == D
    with pytest.raises(UsageError, match=r"no image for linux/amd64; it has: linux/arm/v7, linux/arm64$"):
        chosen_manifest(INDEX, Platform("amd64"), "base")


@pytest.mark.parametrize("descriptor", [None, {}, {"digest": "md5:1", "size": 1}, {"digest": D, "size": -1}])
def test_a_descriptor_that_is_none_is_refused(descriptor):
    with pytest.raises(RegistryError):
        chosen_manifest({"manifests": [descriptor]}, Platform("arm64"), "base")


@pytest.mark.parametrize(
    ("text", "kind", "place", "public"),
    [
        ("python:3.11", "registry", "python:3.11", "python:3.11"),
        ("registry:r.example.com/a:1", "registry", "r.example.com/a:1", "r.example.com/a:1"),
        ("tar:/srv/bases/base.tar", "tar", "/srv/bases/base.tar", "tar:base.tar"),
        ("oci:layout", "oci", "layout", "oci:layout"),
        ("engine:python:3.11", "engine", "python:3.11", "engine:python:3.11"),
    ],
)
def test_where_a_base_comes_from(text, kind, place, public):
    source = BaseSource.parse(text)
    assert (source.kind, source.place, source.public_name) == (kind, place, public)


def test_a_registry_is_asked_again_later_and_not_for_ever():
    assert [delay_s(attempt) for attempt in range(1, ATTEMPTS_MAX + 1)] == [0.5, 1.0, 2.0, 4.0, None]
    assert delay_s(1, "7") == 7.0
    assert delay_s(1, "86400") == DELAY_S_MAX
    assert delay_s(1, "Wed, 21 Oct 2015 07:28:00 GMT") == 0.5


@pytest.mark.parametrize(
    ("told", "offset"),
    [("0-99", 100), ("bytes=0-99", 100), ("", 0), ("0-0", 0), ("5-99", 0), ("0-x", 0), ("0-1000", 0)],
)
def test_where_an_upload_goes_on(told, offset):
    assert resume_offset(told, 500) == offset


def test_the_tag_of_referrers():
    assert referrers_tag(D) == "sha256-" + "d" * 64


def wheel(name: str, size_bytes: int) -> Wheel:
    return Wheel(name, "1.0", f"{name}-1.0-py3-none-any.whl", D, size_bytes)


def test_a_large_package_is_a_layer_of_its_own_and_the_small_ones_share_the_last():
    large, small = OWN_LAYER_BYTES_MIN, OWN_LAYER_BYTES_MIN - 1
    wheels = [wheel("b", small), wheel("numpy", large), wheel("a", small), wheel("engine", large)]
    assert [[one.name for one in share] for share in shares(wheels)] == [["engine"], ["numpy"], ["a", "b"]]
    many = [wheel(f"p{number:02}", large + number) for number in range(OWN_LAYERS_MAX + 3)]
    found = shares(many)
    assert len(found) == OWN_LAYERS_MAX + 1
    # The smallest of them share.
    assert [one.name for one in found[-1]] == ["p00", "p01", "p02"]


def test_why_there_is_no_wheel_is_told_with_those_that_there_are():
    printed = (
        "  Skipping link: none of the wheel's tags (cp311-cp311-win_amd64) are compatible (run pip debug --verbose to "
        "show compatible tags): https://index.example.com/packages/engine-2.0-cp311-cp311-win_amd64.whl (from x)\n"
        "  Skipping link: none of the wheel's tags (…) are compatible (run …): file:///w/engine-1.0-cp311-cp311-linux_armv6l.whl\n"
        "ERROR: Could not find a version that satisfies the requirement engine>=1 (from versions: none)\n"
        "ERROR: No matching distribution found for engine>=1\n"
    )
    target = PythonTarget((3, 11), "/usr/bin/python3.11", "glibc", (2, 36))
    assert refusal(printed, Platform("arm", "v7"), target) == (
        "there is no wheel of engine>=1 for linux/arm/v7 with Python 3.11 and glibc 2.36; "
        "engine 2.0 has wheels for cp311 win_amd64 only"
    )
    conflict = "\nThe conflict is caused by:\n    a 1.0 depends on c>=2\n    b 1.0 depends on c<2\n\nTo fix this\n"
    assert refusal(conflict, Platform("amd64"), target).endswith(
        "cannot be had together: a 1.0 depends on c>=2; b 1.0 depends on c<2"
    )
    assert "could not be fetched: no network" in refusal("ERROR: no network\n", Platform("amd64"), target)
