"""Deltas at publication: made for what devices run, proven, kept once, offered and served."""

from pathlib import Path

import numpy as np
import pytest

from cloud_registry import wiring
from cloud_registry.adapters import delta_maker
from cloud_registry.adapters.delta_maker import make_delta, make_proven_delta
from cloud_registry.config import read_config
from cloud_registry.core.delta_reading import result_digest
from cloud_registry.core.publication import DeltaBase, bases_for, running_digests
from cloud_registry.errors import RegistryError
from cloud_registry.ports import ModuleTwin
from manifests.canonical import digest_of
from manifests.model import Artifact, ModelManifest, Signature
from manifests.release import DELTAS_MAX
from tests.delta_models import onnx_file, quantised, tflite_file, trained_on, weights

NOTHING = Signature(inputs=(), outputs=())
SUFFIXES = {"onnx": ".onnx", "tflite": ".tflite"}


class Shelf:
    """A registry's home with versions of one model put straight into it."""

    def __init__(self, home: Path) -> None:
        self.config = read_config(home, {})
        self.folder = home
        home.mkdir(parents=True, exist_ok=True)
        self.models = wiring.open_local_models(self.config)
        self.publication = wiring.open_publication(self.config)

    def add(self, *contents: bytes, formats: tuple[str, ...] = ("onnx",)) -> ModelManifest:
        def build(version: int) -> ModelManifest:
            return ModelManifest(
                name="digits",
                version=version,
                created_at="2026-01-05T08:00:00+00:00",
                artifacts=tuple(
                    Artifact(
                        format=format_,
                        digest=digest_of(content),
                        size_bytes=len(content),
                        target=f"digits/{version}/model{SUFFIXES[format_]}",
                        signature=NOTHING,
                    )
                    for format_, content in zip(formats, contents, strict=True)
                ),
            )

        for content in contents:
            path = self.folder / "incoming"
            path.write_bytes(content)
            self.models.artifacts.put(path)
        return self.models.catalog.add("digits", build)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "home")


OLD = weights(width=64)
FIRST, SECOND, THIRD = (onnx_file(trained_on(OLD, 1e-3 * noise, seed=noise)) for noise in (0, 1, 2))


def digest(manifest: ModelManifest) -> str:
    return manifest.artifacts[0].digest


def test_a_delta_is_made_from_what_devices_run_and_offered_to_them(shelf):
    first, second, third = shelf.add(FIRST), shelf.add(SECOND), shelf.add(THIRD)
    (delta,) = shelf.publication.publish(third, {digest(second): 12})
    assert (delta.base_digest, delta.target) == (digest(second), "digits/3/from-2.onnx.delta")
    assert delta.size_bytes <= 0.6 * len(THIRD)
    offers = shelf.publication.release_for(third.reference, ("onnx",), {digest(second): 12, digest(first): 1})
    assert [(offer.base_digest, offer.digest) for offer in offers[digest(third)]] == [(digest(second), delta.digest)]
    # Once a device of another version turns up, the next publication adds to what is there.
    assert len(shelf.publication.publish(third, {digest(first): 1, digest(second): 12})) == 2
    offers = shelf.publication.release_for(third.reference, ("onnx",), {digest(first): 1, digest(second): 12})
    sizes = [offer.size_bytes for offer in offers[digest(third)]]
    assert len(sizes) == 2
    assert sizes == sorted(sizes), "the smallest first"
    assert shelf.publication.release_for(third.reference, ("onnx",), {})[digest(third)] == ()
    assert shelf.publication.release_for(third.reference, ("tflite",), {digest(first): 1}) == {}


def test_a_delta_is_made_once(shelf, monkeypatch):
    first, second = shelf.add(FIRST), shelf.add(SECOND)
    made = []
    monkeypatch.setattr(
        delta_maker, "make_proven_delta", lambda *paths: made.append(paths) or make_proven_delta(*paths)
    )
    for _ in range(3):
        shelf.publication.publish(second, {digest(first): 1})
    assert len(made) == 1


def test_what_saves_too_little_is_not_offered_and_not_tried_again(shelf, monkeypatch):
    first = shelf.add(np.random.default_rng(1).bytes(50_000))
    second = shelf.add(np.random.default_rng(2).bytes(50_000))
    (delta,) = shelf.publication.publish(second, {digest(first): 1})
    assert (delta.digest, delta.offer()) == (None, None)
    assert shelf.publication.release_for(second.reference, ("onnx",), {digest(first): 1}) == {digest(second): ()}
    monkeypatch.setattr(delta_maker, "make_proven_delta", lambda *_: pytest.fail("it was tried again"))
    shelf.publication.publish(second, {digest(first): 1})


def test_a_delta_is_a_file_of_its_version_served_kept_and_gone_with_it(shelf):
    first, second = shelf.add(FIRST), shelf.add(SECOND)
    (delta,) = shelf.publication.publish(second, {digest(first): 1})
    file = shelf.models.catalog.file(delta.target)
    content = b"".join(shelf.models.artifacts.read(file.digest))
    assert (file.reference, file.digest, file.size_bytes) == (second.reference, delta.digest, len(content))
    assert result_digest(memoryview(content), np.frombuffer(FIRST, np.uint8)) == digest(second)
    assert delta.digest in shelf.models.catalog.digests(), "a clean-up leaves it alone"
    shelf.models.catalog.remove(second.reference)
    assert delta.digest not in shelf.models.catalog.digests()
    assert shelf.publication.deltas.deltas_of(second.reference) == []
    assert shelf.models.catalog.file(delta.target) is None


def test_each_format_has_deltas_of_its_own(shelf):
    formats = ("onnx", "tflite")
    first = shelf.add(FIRST, tflite_file(OLD), formats=formats)
    second = shelf.add(SECOND, tflite_file(trained_on(OLD, 1e-3)), formats=formats)
    running = {artifact.digest: 1 for artifact in first.artifacts}
    deltas = shelf.publication.publish(second, running)
    assert sorted(delta.target for delta in deltas) == ["digits/2/from-1.onnx.delta", "digits/2/from-1.tflite.delta"]
    found = shelf.publication.release_for(second.reference, formats, running)
    assert {key: len(offers) for key, offers in found.items()} == {one.digest: 1 for one in second.artifacts}


def test_where_a_delta_cannot_be_made_the_whole_file_is_offered_and_it_is_told(shelf, monkeypatch, caplog):
    first, second = shelf.add(FIRST), shelf.add(SECOND)
    shelf.models.artifacts.remove(digest(first))
    assert shelf.publication.publish(second, {digest(first): 1}) == []
    assert "no delta from digits:1 to digits:2 was made: the artifact store holds no" in caplog.text
    caplog.clear()
    shelf.add(FIRST)
    monkeypatch.setattr(delta_maker, "make_delta", _damaging)
    assert shelf.publication.publish(second, {digest(first): 1}) == []
    assert "it was thrown away" in caplog.text
    monkeypatch.undo()
    assert len(shelf.publication.publish(second, {digest(first): 1})) == 1, "and it is tried again"


def _damaging(base: Path, target: Path, output: Path):
    """A coder that gets one byte of the payload wrong."""
    made = make_delta(base, target, output)
    content = bytearray(output.read_bytes())
    content[-5] ^= 1
    output.write_bytes(content)
    return made


@pytest.mark.parametrize("offset", [-1, -1000, -3000, 40])
def test_a_delta_that_does_not_give_the_model_is_thrown_away(tmp_path, monkeypatch, offset):
    def damaging(base, target, output):
        made = make_delta(base, target, output)
        content = bytearray(output.read_bytes())
        content[offset] ^= 0x10
        output.write_bytes(content)
        return made

    monkeypatch.setattr(delta_maker, "make_delta", damaging)
    paths = [tmp_path / name for name in ("base", "target", "delta")]
    paths[0].write_bytes(FIRST)
    paths[1].write_bytes(SECOND)
    with pytest.raises(RegistryError, match="it was thrown away"):
        make_proven_delta(*paths)
    assert not paths[2].exists()


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
@pytest.mark.parametrize("noise", [0, 1e-4, 1e-2, 1])
@pytest.mark.parametrize("kind", [dict, quantised])
def test_the_registrys_own_reader_gives_what_the_maker_meant(tmp_path, write, noise, kind):
    paths = [tmp_path / name for name in ("base", "target", "delta")]
    old = weights(width=96)
    paths[0].write_bytes(write(kind(old)))
    paths[1].write_bytes(write(kind(trained_on(old, noise) if noise else {**old, "head": old["layer0.weight"][:3]})))
    make_proven_delta(*paths)
    with pytest.raises(ValueError, match="another base"):
        result_digest(memoryview(paths[2].read_bytes()), np.frombuffer(paths[1].read_bytes(), np.uint8))


# Rules ----------------------------------------------------------------------------------------------------------------


def manifest(version: int, content: str = "", format_: str = "onnx") -> ModelManifest:
    artifact = Artifact(
        format=format_,
        digest=digest_of((content or str(version)).encode()),
        size_bytes=9,
        target=f"digits/{version}/model{SUFFIXES[format_]}",
        signature=NOTHING,
    )
    return ModelManifest(name="digits", version=version, artifacts=(artifact,), created_at="2026")


def versions(bases: list[DeltaBase]) -> list[int]:
    return [base.reference.version for base in bases]


def test_bases_are_what_most_devices_run_the_newer_first_among_equals_and_no_more_than_a_release_carries():
    earlier = [manifest(version) for version in range(1, 20)]
    new = manifest(20).artifacts[0]
    running = {digest(manifest(version)): count for version, count in ((3, 5), (7, 50), (8, 50), (1, 0))}
    assert versions(bases_for(new, earlier, running)) == [8, 7, 3]
    everything = {digest(manifest(version)): 1 for version in range(1, 20)}
    assert versions(bases_for(new, earlier, everything)) == list(range(19, 19 - DELTAS_MAX, -1))
    # Nobody to ask: the two before.
    assert versions(bases_for(new, earlier, None)) == [19, 18]
    assert versions(bases_for(new, earlier, {})) == []


def test_a_base_is_of_the_same_format_and_other_bytes():
    new = manifest(4, "same").artifacts[0]
    earlier = [manifest(1, "a", "tflite"), manifest(2, "same"), manifest(3, "b")]
    assert versions(bases_for(new, earlier, None)) == [3]
    twice = [manifest(1, "a"), manifest(2, "a")]
    assert versions(bases_for(new, twice, None)) == [2], "the same bytes make one delta"


def test_what_devices_run_is_counted_by_digest_and_what_is_unreadable_is_not():
    def twin(reported: object) -> ModuleTwin:
        return ModuleTwin("d", "slipway", True, {}, {"models": {"digits": reported}} if reported else {})

    def report(content: bytes) -> dict:
        loaded = {"loadedVersion": 1, "loadedDigest": digest_of(content)}
        return {"generation": 1, "rollout": "r", "epoch": 1, "phase": "committed", "version": 1, **loaded}

    twins = [twin(report(b"a")), twin(report(b"a")), twin(report(b"b")), twin(None), twin({"phase": "committed"})]
    assert running_digests(twins, "digits") == {digest_of(b"a"): 2, digest_of(b"b"): 1}
