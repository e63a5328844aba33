"""Names of images and platforms, as people and registries write them."""

import pytest
from packaging.tags import Tag, parse_tag

from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform, PythonTarget, marker_environment, wheel_tags
from cloud_registry.errors import UsageError

DIGEST = "sha256:" + "a" * 64
NAMES = {
    "digits": ImageName("", "digits"),
    "digits:3": ImageName("", "digits", "3"),
    "line-3/digits:3": ImageName("", "line-3/digits", "3"),
    "registry.example.com/line-3/digits:3": ImageName("registry.example.com", "line-3/digits", "3"),
    "localhost/digits": ImageName("localhost", "digits"),
    "127.0.0.1:5000/a__b/c.d:v1_2.3-x": ImageName("127.0.0.1:5000", "a__b/c.d", "v1_2.3-x"),
    "[::1]:5000/digits": ImageName("[::1]:5000", "digits"),
    f"r.example.com/digits:3@{DIGEST}": ImageName("r.example.com", "digits", "3", DIGEST),
}


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_a_name_is_read_and_written_as_it_was(text, name):
    assert ImageName.parse(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "Digits", "digits:", "digits:-x", "a//b", "../digits", "r.example.com/../x", "digits@sha256:12"),
        *("-x.com/a", "r.example.com:port/a", "数字", "a b", "digits:" + "x" * 129, "x" * 256, "a/.b"),
        "r.example.com/a:1:2",
    ],
)
def test_what_no_registry_takes_is_refused_in_words(text):
    with pytest.raises(UsageError, match="is not an image name"):
        ImageName.parse(text)


def test_a_registry_on_this_machine_is_known_as_one():
    there = {text: ImageName.parse(f"{text}/x").is_loopback for text in ("localhost:5000", "127.0.0.1:1", "[::1]:5000")}
    assert all(there.values()), there
    assert not ImageName.parse("127x.example.com/x").is_loopback
    assert not ImageName.parse("digits").is_loopback


def test_a_name_by_digest_is_asked_for_by_digest():
    assert ImageName.parse(f"digits:3@{DIGEST}").reference == DIGEST
    assert ImageName.parse("digits").reference == "latest"


@pytest.mark.parametrize(
    ("text", "platform", "machine"),
    [
        ("linux/amd64", Platform("amd64"), "x86_64"),
        ("linux/arm64/v8", Platform("arm64"), "aarch64"),
        ("linux/arm/v7", Platform("arm", "v7"), "armv7l"),
    ],
)
def test_a_platform_and_its_machine(text, platform, machine):
    assert Platform.parse(text) == platform
    assert platform.machine == machine


def test_another_platform_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="windows/amd64") as caught:
        Platform.parse("windows/amd64")
    assert "linux/arm/v7" in caught.value.hint


TARGET = PythonTarget((3, 11), "/usr/bin/python3.11", "glibc", (2, 36), "3.11.2")
FITTING = {
    "linux/amd64": ["cp311-cp311-manylinux_2_28_x86_64", "cp38-abi3-manylinux1_x86_64", "py3-none-any"],
    "linux/arm64": ["cp311-cp311-manylinux2014_aarch64", "cp311-none-manylinux_2_36_aarch64"],
    "linux/arm/v7": ["cp311-cp311-manylinux_2_34_armv7l", "cp37-abi3-linux_armv7l"],
}
UNFIT = {
    "linux/amd64": ["cp312-cp312-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_38_x86_64"],
    "linux/arm64": ["cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-manylinux1_aarch64"],
    "linux/arm/v7": ["cp311-cp311-musllinux_1_2_armv7l", "cp311-cp311-manylinux_2_17_aarch64"],
}


@pytest.mark.parametrize("platform", FITTING)
def test_wheels_that_run_in_the_image_are_taken_and_no_others(platform):
    tags = wheel_tags(Platform.parse(platform), TARGET)
    assert [text for text in FITTING[platform] if not parse_tag(text) & set(tags)] == []
    assert [text for text in UNFIT[platform] if parse_tag(text) & set(tags)] == []
    # The best comes first: the newest C library that the image has.
    assert tags[0] == Tag("cp311", "cp311", f"manylinux_2_36_{Platform.parse(platform).machine}")


def test_musl_has_wheels_of_its_own():
    target = PythonTarget((3, 12), "/usr/local/bin/python3.12", "musl", (1, 2))
    tags = wheel_tags(Platform.parse("linux/amd64"), target)
    assert parse_tag("cp312-cp312-musllinux_1_1_x86_64") & set(tags)
    assert not parse_tag("cp312-cp312-manylinux_2_17_x86_64") & set(tags)


def test_markers_see_the_image_and_not_this_machine():
    from packaging.markers import Marker

    seen = marker_environment(Platform.parse("linux/arm/v7"), TARGET)
    assert Marker("platform_machine == 'armv7l' and python_full_version == '3.11.2'").evaluate(seen)
    assert Marker("sys_platform == 'linux' and python_version < '3.12'").evaluate(seen)
