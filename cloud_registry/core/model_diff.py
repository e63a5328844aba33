"""What differs between two versions, field by field. Pure."""

from dataclasses import dataclass
from typing import Any

from cloud_registry.core.golden import words
from manifests.model import ModelManifest, TensorSpec

Value = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of two versions; None where one of them does not have it."""

    field: str
    before: Value
    after: Value


def differences(before: ModelManifest, after: ModelManifest) -> tuple[Difference, ...]:
    """The fields in which two versions differ, in the order in which they are shown; names and times are no fields."""
    old, new = _fields(before), _fields(after)
    names = list(dict.fromkeys([*old, *new]))
    order = {prefix: place for place, prefix in enumerate(dict.fromkeys(name.split(".")[0] for name in names))}
    names.sort(key=lambda name: order[name.split(".")[0]])
    return tuple(Difference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))


def _fields(manifest: ModelManifest) -> dict[str, Value]:
    found: dict[str, Value] = {"description": manifest.description or None}
    for artifact in manifest.artifacts:
        kind = artifact.format
        found |= {f"{kind}.digest": artifact.digest, f"{kind}.size": artifact.size_bytes}
        found |= _tensors(f"{kind}.input", artifact.signature.inputs)
        found |= _tensors(f"{kind}.output", artifact.signature.outputs)
        found[f"{kind}.latency_ms"] = artifact.latency_median_ms
        if artifact.verdict is not None:
            found |= _flat(f"{kind}.verdict", artifact.verdict.to_wire())
    found["labels"] = ", ".join(manifest.labels) or None
    if manifest.golden is not None:
        found |= {"golden.digest": manifest.golden.digest, "golden.samples": manifest.golden.samples}
        found["golden.tolerance"] = manifest.golden.tolerance_absolute
    found["sample.digest"] = manifest.sample.digest if manifest.sample else None
    found |= {f"metric.{key}": value for key, value in manifest.metrics.items()}
    found |= {f"tag.{key}": value for key, value in manifest.tags.items()}
    found |= {f"property.{key}": value for key, value in manifest.properties.items()}
    found |= {f"source.{file.path}": file.digest for file in manifest.source}
    for name in ("processing", "schema", "verdict", "lineage"):
        part = getattr(manifest, name)
        if part is not None:
            found |= _flat(name, part.to_wire())
    found["archived"] = manifest.archived
    return {name: value for name, value in found.items() if value is not None}


def _tensors(prefix: str, specs: tuple[TensorSpec, ...]) -> dict[str, Value]:
    return {f"{prefix}.{spec.name}": words(spec) for spec in specs}


def _flat(prefix: str, value: Any) -> dict[str, Value]:
    if isinstance(value, dict):
        return {name: leaf for key, each in value.items() for name, leaf in _flat(f"{prefix}.{key}", each).items()}
    if isinstance(value, list):
        if all(isinstance(each, str | int | float) for each in value):
            return {prefix: ", ".join(map(str, value))}
        return {name: leaf for at, each in enumerate(value) for name, leaf in _flat(f"{prefix}.{at}", each).items()}
    return {prefix: value}
