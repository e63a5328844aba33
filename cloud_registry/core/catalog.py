"""The rules of the catalog: names, tags, what a version consists of, and who stands in the way of a deletion. Pure.

Handles: reading references and tags, paths of files, the manifest of a new version, search, holders of a version.
Leaves to the caller: counting versions (a transaction's work) and asking the fleet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloud_registry.core.search import facts_of, fields_of, meets, parse_condition, pattern_matches
from cloud_registry.errors import ConflictError, UsageError
from cloud_registry.ports import (
    ModelQuery,
    ModuleTwin,
    Proof,
    ProvenArtifact,
    SampleKind,
    StoredBlob,
    VersionNames,
)
from manifests.identity import ModelReference, check_model_name, is_model_name
from manifests.model import (
    FORMAT_SUFFIXES,
    Artifact,
    DataSchema,
    GoldenSet,
    Lineage,
    ModelFormat,
    ModelManifest,
    SourceFile,
    StoredSample,
)
from manifests.processing import LabelFile, Processing

TAG_KEY_LENGTH_MAX = 128
TAG_VALUE_LENGTH_MAX = 1024
TAGS_MAX = 64
METRICS_MAX = 1000
REASON_LENGTH_MAX = 1000
LABELS_MAX = 10_000
DESCRIPTION_LENGTH_MAX = 10_000


# --- names and words ---------------------------------------------------------


def parse_reference(text: str) -> tuple[str, int | None]:
    """Read ``name:version``, or ``name`` alone, which means its latest version.

    Raises:
        ManifestError: it is neither.
    """
    if ":" in text:
        reference = ModelReference.parse(text)
        return reference.name, reference.version
    return check_model_name(text), None


# The alias that needs no pointing: it means the same as the name alone.
LATEST_ALIAS = "latest"


@dataclass(frozen=True, slots=True)
class Selector:
    """What a person wrote for a version: a number, an alias, or neither, which means the latest version."""

    name: str
    version: int | None = None
    alias: str | None = None

    @property
    def is_exact(self) -> bool:
        return self.version is not None


def parse_selector(text: str) -> Selector:
    """Read ``name:version``, ``name@alias``, or ``name`` alone, which is ``name@latest``.

    Raises:
        ManifestError, UsageError: it is none of these.
    """
    name, at, alias = text.partition("@")
    if not at:
        return Selector(*parse_reference(text))
    return Selector(check_model_name(name), alias=None if alias == LATEST_ALIAS else check_alias(alias))


def check_alias(alias: str) -> str:
    """Return the alias; raises UsageError where it may not be one."""
    hint = "An alias is a word such as champion: 1 to 63 of a-z, 0-9, '_' and '-', not digits alone."
    if alias == LATEST_ALIAS:
        raise UsageError("'latest' always means the highest version and cannot be pointed elsewhere", hint=hint)
    if not is_model_name(alias) or alias.isdigit():
        raise UsageError(f"{alias!r} is not an alias", hint=hint)
    return alias


def check_text(text: str, what: str, length_max: int, *, lines: bool = False) -> str:
    """Return the text; raises UsageError where it is too long or holds characters that no screen shows."""
    if len(text) > length_max:
        raise UsageError(f"{what} has {len(text):,} characters; at most {length_max:,} are kept")
    allowed = "\n\t" if lines else ""
    if any(not character.isprintable() and character not in allowed for character in text):
        raise UsageError(f"{what} holds a character that cannot be printed: {text[:80]!r}")
    return text


def parse_tag(text: str) -> tuple[str, str]:
    """Read ``key=value``; raises UsageError for anything else."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not a tag", hint="Write key=value, for example: stage=production")
    return check_tag_key(key), check_text(value, f"the value of tag {key!r}", TAG_VALUE_LENGTH_MAX)


def check_tag_key(key: str) -> str:
    if not key or key != key.strip():
        raise UsageError(f"{key!r} is not a tag key", hint="Write key=value, for example: stage=production")
    return check_text(key, "a tag key", TAG_KEY_LENGTH_MAX)


def parse_tag_query(text: str) -> tuple[str, str | None]:
    """Read ``key=value``, or ``key`` alone, which asks for the key whatever its value."""
    return parse_tag(text) if "=" in text else (check_tag_key(text), None)


def parse_metric(text: str) -> tuple[str, float]:
    """Read ``name=number``; raises UsageError for anything else."""
    key, equals, value = text.partition("=")
    hint = "Write name=number, for example: accuracy=0.97"
    if not equals or not key.strip():
        raise UsageError(f"{text!r} is not a metric", hint=hint)
    try:
        number = float(value)
    except ValueError as err:
        raise UsageError(f"metric {key!r} is {value!r}, which is no number", hint=hint) from err
    if number != number or number in (float("inf"), float("-inf")):
        raise UsageError(f"metric {key!r} is {value}, which JSON cannot carry", hint=hint)
    return check_text(key, "a metric's name", TAG_KEY_LENGTH_MAX), number


def edited_tags(tags: Mapping[str, str], changes: Mapping[str, str], removed: Iterable[str]) -> dict[str, str]:
    """The tags after an edit; removing a key that is not there is no error, so that an edit may be repeated."""
    gone = set(removed)
    _check_texts(changes, "tag")
    kept = {key: value for key, value in {**tags, **changes}.items() if key not in gone}
    if len(kept) > TAGS_MAX:
        raise UsageError(f"a model version carries at most {TAGS_MAX} tags; this would make {len(kept)}")
    return dict(sorted(kept.items()))


def _check_texts(texts: Mapping[str, str], what: str) -> None:
    for key, value in texts.items():
        check_tag_key(key)
        check_text(value, f"the value of {what} {key!r}", TAG_VALUE_LENGTH_MAX)


def grown_properties(properties: Mapping[str, str], new: Mapping[str, str], what: str) -> dict[str, str]:
    """The properties with the new ones; to say the same again is no error.

    Raises:
        ConflictError: one of them is there with another value.
        UsageError: there are too many, or one is too long or cannot be shown.
    """
    _check_texts(new, "property")
    for key, value in new.items():
        if properties.get(key, value) != value:
            raise ConflictError(
                f"property {key!r} of {what} is {properties[key]!r} and is written once",
                hint="A tag may change: slipway model tag. Or register another version.",
            )
    grown = {**properties, **new}
    if len(grown) > TAGS_MAX:
        raise UsageError(f"a model version carries at most {TAGS_MAX} properties; this would make {len(grown)}")
    return dict(sorted(grown.items()))


def matches(manifest: ModelManifest, query: ModelQuery) -> bool:
    """Whether a version meets the whole of a query. A store may search by other means, with the same outcome."""
    if query.archived is not None and manifest.archived is not query.archived:
        return False
    if query.name is not None and not pattern_matches(manifest.name, query.name):
        return False
    if query.where:
        condition = parse_condition(query.where)
        if not meets(facts_of(manifest, fields_of(condition)), condition):
            return False
    return all(key in manifest.tags and value in (None, manifest.tags[key]) for key, value in query.tags)


# --- a new version -----------------------------------------------------------


def model_target(reference: ModelReference, format_: ModelFormat) -> str:
    """The path of a model file below the artifact server's root."""
    file = "score.py" if format_ == "python" else f"model{FORMAT_SUFFIXES[format_]}"
    return f"{reference.name}/{reference.version}/{file}"


def source_target(reference: ModelReference, path: str) -> str:
    """The path of a file of a registered directory, below the artifact server's root."""
    return f"{reference.name}/{reference.version}/source/{path}"


def stored_files(manifest: ModelManifest) -> list[tuple[str, str, int]]:
    """Target, digest and size in bytes of every file that a version consists of."""
    sample = (manifest.sample,) if manifest.sample is not None else ()
    files = [(file.target, file.digest, file.size_bytes) for file in (*manifest.artifacts, *manifest.attachments)]
    files += [(file.target, file.digest, file.size_bytes) for file in sample]
    return files + [(source_target(manifest.reference, f.path), f.digest, f.size_bytes) for f in manifest.source]


def golden_target(reference: ModelReference) -> str:
    return f"{reference.name}/{reference.version}/golden.npz"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What its owner says of a model version; the rest is read from its files."""

    description: str = ""
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, float] | None = None
    tags: Mapping[str, str] | None = None
    processing: Processing | None = None
    properties: Mapping[str, str] | None = None
    lineage: Lineage | None = None
    schema: DataSchema | None = None

    def checked(self) -> "ModelFacts":
        """Itself; raises UsageError where something is too long or cannot be shown."""
        check_text(self.description, "the description", DESCRIPTION_LENGTH_MAX, lines=True)
        if len(self.labels) > LABELS_MAX:
            raise UsageError(f"{len(self.labels):,} labels were given; at most {LABELS_MAX:,} are kept")
        for label in self.labels:
            check_text(label, "a label", TAG_VALUE_LENGTH_MAX)
        edited_tags({}, self.tags or {}, ())
        grown_properties({}, self.properties or {}, "the version")
        metrics = {**(self.metrics or {}), **(self.lineage.metrics if self.lineage else {})}
        if len(metrics) > METRICS_MAX:
            raise UsageError(f"{len(metrics):,} metrics were given; at most {METRICS_MAX:,} are kept")
        for key in metrics:
            check_text(key, "a metric's name", TAG_KEY_LENGTH_MAX)
        for text in _texts_of(self.lineage) if self.lineage else ():
            check_text(text, "what is said of its origin", TAG_VALUE_LENGTH_MAX)
        return self


def _texts_of(lineage: Lineage) -> list[str]:
    texts = [lineage.git_commit, lineage.parent, lineage.framework, lineage.author, lineage.machine]
    return texts + [text for dataset in lineage.datasets for text in (dataset.name, dataset.digest)]


def labels_target(reference: ModelReference) -> str:
    return f"{reference.name}/{reference.version}/labels.txt"


@dataclass(frozen=True, slots=True)
class GoldenFile:
    digest: str
    size_bytes: int
    tolerance_absolute: float


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The files of a version beside its artifacts; `labels` are those of its processing, where they are a file."""

    golden: GoldenFile | None = None
    labels: StoredBlob | None = None
    sample: tuple[StoredBlob, SampleKind, str] | None = None
    source: tuple[SourceFile, ...] = ()


def new_manifest(
    reference: ModelReference,
    proof: Proof,
    stored: StoredParts,
    facts: ModelFacts,
    now: datetime,
) -> ModelManifest:
    """The manifest of a version that was just given its number."""
    golden, labels = stored.golden, stored.labels
    return ModelManifest(
        name=reference.name,
        version=reference.version,
        artifacts=tuple(
            _artifact(reference, proven, is_first=number == 0) for number, proven in enumerate(proof.artifacts)
        ),
        created_at=now.isoformat(timespec="milliseconds"),
        golden=None
        if golden is None
        else GoldenSet(
            digest=golden.digest,
            size_bytes=golden.size_bytes,
            target=golden_target(reference),
            samples=proof.samples,
            tolerance_absolute=golden.tolerance_absolute,
        ),
        description=facts.description,
        labels=facts.labels,
        processing=_processing(reference, facts.processing, labels),
        metrics=dict(sorted((facts.metrics or {}).items())),
        tags=dict(sorted((facts.tags or {}).items())),
        properties=dict(sorted((facts.properties or {}).items())),
        lineage=facts.lineage if facts.lineage != Lineage() else None,
        sample=_sample(reference, stored),
        schema=proof.schema,
        source=stored.source,
        verdict=proof.verdict,
    )


def _sample(reference: ModelReference, stored: StoredParts) -> StoredSample | None:
    if stored.sample is None:
        return None
    blob, kind, suffix = stored.sample
    target = f"{reference.name}/{reference.version}/sample{suffix}"
    return StoredSample(digest=blob.digest, size_bytes=blob.size_bytes, target=target, kind=kind)


def _processing(
    reference: ModelReference, processing: Processing | None, labels: StoredBlob | None
) -> Processing | None:
    if processing is None or labels is None:
        return processing
    file = LabelFile(digest=labels.digest, size_bytes=labels.size_bytes, target=labels_target(reference))
    return Processing(inputs=processing.inputs, outputs=processing.outputs, label_file=file)


def _artifact(reference: ModelReference, proven: ProvenArtifact, *, is_first: bool) -> Artifact:
    return Artifact(
        format=proven.format,
        digest=proven.digest,
        size_bytes=proven.size_bytes,
        target=model_target(reference, proven.format),
        signature=proven.signature,
        latency_median_ms=proven.latency_median_ms,
        verdict=None if is_first else proven.verdict,
    )


# --- who holds a version -----------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """Somebody who needs a version: a device's module, a rollout, an image or an alias. `why` is a clause in words."""

    where: str
    why: str


def holders(
    reference: ModelReference,
    digests: frozenset[str],
    module_twins: Sequence[ModuleTwin],
    names: VersionNames,
) -> tuple[Holder, ...]:
    """Everyone who is asked to run the version, runs it, keeps it to go back to, carries it, holds it or means it.

    The twins are read as raw JSON: a report that is too new or too broken to be understood whole still holds what it
    names. Where an entry names a version, the version counts; a digest alone counts where no version is told, since two
    versions may have the same bytes.
    """
    found = [
        Holder(f"{twin.device_id}/{twin.module_id}", why)
        for twin in module_twins
        for why in _held_by_module(reference, digests, twin)
    ]
    found += [
        Holder(rollout.rollout_id, "carries it to devices" if rollout.is_carried else "would go back to it")
        for rollout in names.rollouts
    ]
    found += [Holder(image.image, f"holds it ({image.digest[:19]})") for image in names.images]
    found += [Holder(f"{reference.name}@{alias}", "stands for it") for alias in names.aliases]
    return tuple(sorted(set(found)))


def _held_by_module(reference: ModelReference, digests: frozenset[str], twin: ModuleTwin) -> list[str]:
    desired = _entry(twin.desired, reference.name)
    reported = _entry(twin.reported, reference.name)

    def names_it(entry: Mapping[str, Any], version_key: str, digest_key: str) -> bool:
        version = entry.get(version_key)
        return version == reference.version if version is not None else entry.get(digest_key) in digests

    why = []
    if names_it(desired, "version", "digest"):
        why.append("is asked to run it")
    if names_it(reported, "loadedVersion", "loadedDigest"):
        why.append("runs it")
    elif names_it(reported, "version", "digest") and reported.get("phase") not in _GIVEN_UP:
        why.append(f"is being updated to it (phase {reported.get('phase')})")
    previous = reported.get("previous")
    if isinstance(previous, dict) and names_it(previous, "version", "digest"):
        why.append("keeps it to go back to")
    return why


# A device that has given a version up names it in its report as a record only.
_GIVEN_UP = frozenset({"failed", "rejected", "revertedQuarantined"})


def _entry(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    models = section.get("models")
    entry = models.get(name) if isinstance(models, dict) else None
    return entry if isinstance(entry, dict) else {}
