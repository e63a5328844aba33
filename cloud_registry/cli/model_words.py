"""Model versions as people read them: lists, and one version with all that is known of it."""

from collections.abc import Sequence

from cloud_registry.cli.tables import fields, size_words, table
from cloud_registry.core.golden import words
from manifests.model import DataSchema, Lineage, ModelManifest, TensorSpec, Verdict
from manifests.model import Field as DataField
from manifests.processing import Processing

OPERATORS_NAMED_MAX = 8


def list_words(found: Sequence[ModelManifest]) -> str:
    """A line a version; columns that none of them needs are left out."""
    columns = ["MODEL", "FORMATS", "SIZE", "GOLDEN", "REGISTERED", "TAGS"]
    if any(manifest.aliases for manifest in found):
        columns.insert(1, "ALIASES")
    if any(manifest.archived for manifest in found):
        columns.insert(-1, "STATE")
    rows = [_row(manifest) for manifest in found]
    return table(columns, [[row[column] for column in columns] for row in rows], numbers=("SIZE", "GOLDEN"))


def _row(manifest: ModelManifest) -> dict[str, str]:
    size_bytes = sum(each.size_bytes for each in manifest.artifacts) + sum(each.size_bytes for each in manifest.source)
    return {
        "MODEL": str(manifest.reference),
        "ALIASES": " ".join(f"@{alias}" for alias in manifest.aliases),
        "FORMATS": formats_of(manifest),
        "SIZE": size_words(size_bytes),
        "GOLDEN": str(manifest.golden.samples) if manifest.golden else "-",
        "REGISTERED": manifest.created_at[:19] + "Z",
        "STATE": "archived" if manifest.archived else "",
        "TAGS": _pairs(manifest.tags),
    }


def formats_of(manifest: ModelManifest) -> str:
    return ",".join(artifact.format for artifact in manifest.artifacts) or ("python" if manifest.source else "-")


def show_words(manifest: ModelManifest) -> str:
    """All that is known of a version."""
    facts = [
        ("model", str(manifest.reference) + (" (archived)" if manifest.archived else "")),
        ("aliases", " ".join(f"@{alias}" for alias in manifest.aliases)),
        ("description", manifest.description),
        ("registered", manifest.created_at),
        ("tags", _pairs(manifest.tags)),
        ("properties", _pairs(manifest.properties)),
        ("metrics", " ".join(f"{key}={value:g}" for key, value in manifest.metrics.items())),
        ("labels", ", ".join(manifest.labels)),
    ]
    for artifact in manifest.artifacts:
        latency = artifact.latency_median_ms
        facts += [
            (artifact.format, f"{artifact.target}  {size_words(artifact.size_bytes)}  {artifact.digest}"),
            ("  inputs", _tensor_words(artifact.signature.inputs)),
            ("  outputs", _tensor_words(artifact.signature.outputs)),
            ("  latency", f"{latency:g} ms a sample on the registering machine" if latency is not None else ""),
        ]
    golden, sample = manifest.golden, manifest.sample
    if golden is not None:
        told = f"{golden.target}  {golden.samples} samples  tolerance {golden.tolerance_absolute:g}  {golden.digest}"
        facts.append(("golden", told))
    if sample is not None:
        facts.append(("sample", f"{sample.target}  {sample.kind}  {size_words(sample.size_bytes)}  {sample.digest}"))
    if manifest.processing is not None:
        facts.append(("processing", _processing_words(manifest.processing)))
    if manifest.schema is not None:
        facts += _schema_facts(manifest.schema)
    facts += [("source", f"{file.path}  {size_words(file.size_bytes)}  {file.digest}") for file in manifest.source]
    formats = [artifact.format for artifact in manifest.artifacts if manifest.verdict_of(artifact) is not None]
    for number, verdict in enumerate(manifest.verdicts):
        facts += _verdict_facts(verdict, f" {formats[number]}" if len(formats) > 1 else "")
    return fields(facts + lineage_facts(manifest.lineage))


def lineage_facts(lineage: Lineage | None) -> list[tuple[str, str]]:
    if lineage is None:
        return []
    dirty = " (with changes that the commit does not hold)" if lineage.git_dirty else ""
    return [
        ("parent", lineage.parent),
        ("commit", lineage.git_commit + dirty if lineage.git_commit else ""),
        *(("dataset", f"{data.name}  {data.digest}") for data in lineage.datasets),
        ("training", " ".join(f"{key}={value:g}" for key, value in lineage.metrics.items())),
        ("framework", lineage.framework),
        ("author", lineage.author),
        ("machine", lineage.machine),
    ]


def _verdict_facts(verdict: Verdict, of: str) -> list[tuple[str, str]]:
    engine = " ".join(filter(None, (verdict.engine, verdict.engine_version)))
    memory = verdict.memory_peak_bytes
    parts = [engine, f"opset {verdict.opset}" if verdict.opset is not None else ""]
    parts += [f"{verdict.latency_median_ms:g} ms a sample" if verdict.latency_median_ms is not None else ""]
    parts += [f"{size_words(memory)} at most" if memory is not None else "", f"{verdict.samples} samples"]
    named = [f"{count} {name}" for name, count in sorted(verdict.operators.items(), key=lambda each: -each[1])]
    more = f" and {len(named) - OPERATORS_NAMED_MAX} more" if len(named) > OPERATORS_NAMED_MAX else ""
    return [
        (f"verdict{of}", "  ".join(filter(None, parts))),
        ("  limits", ", ".join(verdict.limits)),
        ("  operators", ", ".join(named[:OPERATORS_NAMED_MAX]) + more),
    ]


def _schema_facts(schema: DataSchema) -> list[tuple[str, str]]:
    takes, gives = (", ".join(map(_field_words, part)) for part in (schema.inputs, schema.outputs))
    return [("takes", takes), ("gives", gives)]


def _field_words(field: DataField) -> str:
    lengths = " by ".join("?" if length < 0 else str(length) for length in field.size or field.shape)
    return " ".join(filter(None, (field.name, field.kind, field.dtype, lengths, ",".join(field.columns))))


def _processing_words(processing: Processing) -> str:
    steps = [str(step.__struct_config__.tag) for entry in processing.inputs for step in entry.steps]
    after = [str(step.__struct_config__.tag) for entry in processing.outputs for step in entry.steps]
    return " → ".join([*steps, "model", *after])


def _tensor_words(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {words(spec)}" for spec in specs)


def _pairs(values: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
