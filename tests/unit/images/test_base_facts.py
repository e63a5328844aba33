"""What is read from a base's layers: its Python, C library and packages, and what a later layer deleted."""

import gzip

import pytest

from cloud_registry.adapters.oci_archives import entries
from cloud_registry.core.images import base_facts
from cloud_registry.core.images.base_facts import ArchiveEntry, BaseFacts, SystemPackage, facts_of
from cloud_registry.core.images.platforms import PythonTarget
from cloud_registry.errors import UsageError
from tests.unit.images.tiny_images import BASE_FILES, DPKG, GLIBC, tar_of

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def files(contents) -> list[ArchiveEntry]:
    return [ArchiveEntry(path, content=content) for path, content in contents.items()]


def test_debian():
    facts = facts_of([files(BASE_FILES)], ENVIRONMENT)
    assert facts == BaseFacts(
        PythonTarget((3, 11), "/usr/bin/python3.11", "glibc", (2, 36), "3.11.2"),
        {"numpy": "1.24.2"},
        # What was removed and left its settings behind is not there.
        (
            SystemPackage("libc6", "2.36-9+deb12u10", "amd64"),
            SystemPackage("python3.11-minimal", "3.11.2-6+deb12u5", "amd64"),
        ),
        "deb",
        {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12"},
    )  # fmt: skip
    assert BaseFacts.from_wire(facts.to_wire()) == facts


def test_a_python_of_its_own_goes_before_debians():
    """As in the images that are called python: theirs is in /usr/local, and is first on the path."""
    own = {
        "usr/local/bin/python3.12": b"",
        "usr/local/lib/python3.12/site-packages/Foo_Bar-1.0.dist-info/METADATA": b"",
    }
    facts = facts_of([files(BASE_FILES), files(own)], {**ENVIRONMENT, "PYTHON_VERSION": "3.12.4"})
    assert facts.python == PythonTarget((3, 12), "/usr/local/bin/python3.12", "glibc", (2, 36), "3.12.4")
    assert facts.distributions == {"foo-bar": "1.0", "numpy": "1.24.2"}


def test_alpine():
    alpine = {
        "usr/bin/python3.12": b"",
        "lib/ld-musl-x86_64.so.1": b"",
        "lib/apk/db/installed": b"C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\n\nP:python3\nV:3.12.3-r1\nA:x86_64\n",
    }
    facts = facts_of([files(alpine)], ENVIRONMENT)
    assert facts.python == PythonTarget((3, 12), "/usr/bin/python3.12", "musl", (1, 2))
    assert facts.packages[0] == SystemPackage("musl", "1.2.5-r0", "x86_64")


@pytest.mark.parametrize(
    "whiteout",
    ["usr/bin/.wh.python3.11", "usr/.wh.bin", "usr/bin/.wh..wh..opq"],
)
def test_what_a_layer_deletes_is_gone(whiteout):
    assert facts_of([files(BASE_FILES), [ArchiveEntry(whiteout)]], ENVIRONMENT).python is None


def test_a_whiteout_deletes_what_is_below_and_not_what_comes_with_it():
    again = {"usr/bin/.wh..wh..opq": b"", "usr/bin/python3.13": b""}
    facts = facts_of([files(BASE_FILES), files(again)], ENVIRONMENT)
    assert facts.python is not None
    assert facts.python.version == (3, 13)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("usr/bin/python3.11", "holds no Python"), ("usr/lib/x86_64-linux-gnu/libc.so.6", "no Python")],
)
def test_a_base_without_python_or_libc_is_refused_in_words(missing, said):
    contents = {path: content for path, content in BASE_FILES.items() if path != missing}
    with pytest.raises(UsageError, match=said):
        facts_of([files(contents)], ENVIRONMENT).checked_python("base:1")


def test_a_python_that_is_too_old_is_refused():
    old = {"usr/bin/python3.9": b"", "lib/x86_64-linux-gnu/libc-2.31.so": GLIBC.replace(b"2.36", b"2.31")}
    with pytest.raises(UsageError, match=r"holds Python 3\.9; the agent needs 3\.11"):
        facts_of([files(old)], ENVIRONMENT).checked_python("base:1")


def test_a_layer_is_read_whatever_its_compression(tmp_path):
    layer = tar_of({"./usr/bin/python3.11": b"", "/var/lib/dpkg/status": DPKG})
    for name, content in (("bare", layer), ("packed", gzip.compress(layer))):
        (tmp_path / name).write_bytes(content)
        found = list(entries(tmp_path / name, "a layer"))
        assert [entry.path for entry in found] == ["usr/bin/python3.11", "var/lib/dpkg/status"]
        assert found[1].content == DPKG


@pytest.mark.parametrize(
    "content", [b"no tar", gzip.compress(b"no tar", mtime=0)[:-4], b"\x28\xb5\x2f\xfdnonsense", b"\x1f\x8b"]
)
def test_a_torn_layer_is_refused_in_words(tmp_path, content):
    (tmp_path / "layer").write_bytes(content)
    with pytest.raises(UsageError, match="no layer that can be read"):
        list(entries(tmp_path / "layer", "a layer"))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    from cloud_registry.adapters import oci_archives

    bomb = tmp_path / "bomb"
    bomb.write_bytes(gzip.compress(tar_of({"usr/share/zeros": bytes(4_000_000)})))
    assert bomb.stat().st_size < 10_000
    monkeypatch.setattr(oci_archives, "LAYER_BYTES_MAX", 1_000_000)
    with pytest.raises(UsageError, match="unpacks to more than 1,000,000 bytes"):
        list(entries(bomb, "a layer"))
    monkeypatch.setattr(oci_archives, "ENTRIES_MAX", 3)
    (tmp_path / "many").write_bytes(tar_of({f"f{number}": b"" for number in range(5)}))
    with pytest.raises(UsageError, match="more than 3 entries"):
        list(entries(tmp_path / "many", "a layer"))


def test_a_list_of_packages_that_is_too_long_is_not_held_in_memory(tmp_path, monkeypatch):
    from cloud_registry.adapters import oci_archives

    monkeypatch.setattr(oci_archives, "CONTENT_BYTES_MAX", 10)
    (tmp_path / "layer").write_bytes(tar_of({"var/lib/dpkg/status": DPKG}))
    with pytest.raises(UsageError, match="are looked into"):
        list(entries(tmp_path / "layer", "a layer"))
    assert len(DPKG) < base_facts.CONTENT_BYTES_MAX
