"""The schema of a model's inputs and outputs in its callers' words: made from what is known, or checked. Pure."""

from collections.abc import Sequence

import msgspec

from cloud_registry.core.golden import Arrays, dtype_name, shape_words, words
from cloud_registry.core.sample_forms import GivenSample
from cloud_registry.errors import RefusedModelError, UsageError
from manifests.errors import ManifestError
from manifests.model import DataSchema, Field, Signature, TensorSpec

# A table goes by this name where nobody gave it another, as in requests of Azure ML.
TABLE_NAME = "data"


def read_schema(content: bytes, name: str) -> DataSchema:
    """The document of a file; raises UsageError."""
    try:
        schema = DataSchema.from_json(content)
    except ManifestError as err:
        raise UsageError(
            f"{name}: {err}", hint="Write inputs and outputs as in docs/registry/registration.md."
        ) from err
    for side, fields in (("input", schema.inputs), ("output", schema.outputs)):
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            raise UsageError(f"{name} names an {side} twice: {', '.join(names)}")
    return schema


def schema_of(signature: Signature, given: GivenSample | None) -> DataSchema:
    """The schema that a signature and a sample tell."""
    return DataSchema(inputs=_inputs(signature.inputs, given), outputs=tuple(map(array_field, signature.outputs)))


def _inputs(specs: Sequence[TensorSpec], given: GivenSample | None) -> tuple[Field, ...]:
    if given is None or given.kind == "npz":
        return tuple(map(array_field, specs))
    if given.columns:
        return (Field(name=TABLE_NAME, kind="pandas", dtype=_one_dtype(specs), columns=given.columns),)
    if given.kind == "image":
        return (Field(name=specs[0].name, kind="image", size=given.size or (-1, -1)),)
    return tuple(Field(name=spec.name, kind="json", dtype=spec.dtype, shape=spec.shape) for spec in specs)


def array_field(spec: TensorSpec) -> Field:
    return Field(name=spec.name, kind="numpy", dtype=spec.dtype, shape=spec.shape)


def completed(declared: DataSchema, measured: DataSchema) -> DataSchema:
    """The declared schema with what it leaves out: a side of it, or the name of the only tensor of a side.

    MLflow names no tensor that stands alone, and its answers may be one of several that the network gives.
    """

    def side(fields: tuple[Field, ...], seen: tuple[Field, ...]) -> tuple[Field, ...]:
        if not fields:
            return seen
        if all(field.name for field in fields):
            return fields
        if seen and len(seen) != len(fields):
            return seen
        names = [field.name for field in seen] if seen else [TABLE_NAME] * len(fields)
        return tuple(
            field if field.name else msgspec.structs.replace(field, name=name)
            for field, name in zip(fields, names, strict=True)
        )

    return DataSchema(inputs=side(declared.inputs, measured.inputs), outputs=side(declared.outputs, measured.outputs))


def fields_of(arrays: Arrays) -> tuple[Field, ...]:
    """Fields for arrays that carry one sample a row."""
    return tuple(
        Field(name=name, kind="numpy", dtype=dtype_name(array), shape=(-1, *array.shape[1:]))
        for name, array in arrays.items()
    )


def signature_of(schema: DataSchema) -> Signature:
    """The tensors among the fields of a schema, for a model that has no file to tell them."""

    def specs(fields: Sequence[Field]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name=field.name, dtype=field.dtype, shape=field.shape)
            for field in fields
            if field.kind == "numpy" and field.dtype
        )

    return Signature(inputs=specs(schema.inputs), outputs=specs(schema.outputs))


def _one_dtype(specs: Sequence[TensorSpec]) -> str:
    dtypes = {spec.dtype for spec in specs}
    return dtypes.pop() if len(dtypes) == 1 else ""


def check_schema(schema: DataSchema, signature: Signature, given: GivenSample | None, file_name: str) -> None:
    """Raise RefusedModelError where a declared schema and the measured signature, or the sample, contradict."""
    for side, fields, specs in (
        ("input", schema.inputs, signature.inputs),
        ("output", schema.outputs, signature.outputs),
    ):
        by_name = {spec.name: spec for spec in specs}
        for field in fields:
            if not field.name and len(specs) != len(fields):
                continue
            spec = by_name.get(field.name) or (specs[0] if len(specs) == len(fields) == 1 else None)
            if field.kind in ("numpy", "json"):
                _check_array(field, spec, side, specs, file_name)
            elif field.kind == "image":
                _check_picture(field, spec, side, specs, file_name)
            else:
                _check_table(field, specs, given if side == "input" else None, side, file_name)


def _check_array(field: Field, spec: TensorSpec | None, side: str, specs: Sequence[TensorSpec], file_name: str) -> None:
    if spec is None:
        raise _unknown(field, side, specs, file_name)
    is_other = field.dtype not in ("", spec.dtype)
    shape = field.shape
    # Any shape does where none is declared; an open length on either side agrees with every length.
    fits = not shape or (
        len(shape) == len(spec.shape) and all(-1 in (a, b) or a == b for a, b in zip(shape, spec.shape, strict=True))
    )
    if is_other or not fits:
        declared = f"{field.dtype or spec.dtype}{shape_words(shape) if shape else ''}"
        raise RefusedModelError(
            f"the schema says that the {side} {field.name or spec.name!r} is {declared}, and in {file_name} it is "
            f"{words(spec)}",
            hint="Correct the schema, or leave it out: it is then made from the model and its sample.",
        )


def _check_picture(
    field: Field, spec: TensorSpec | None, side: str, specs: Sequence[TensorSpec], file_name: str
) -> None:
    if spec is None:
        raise _unknown(field, side, specs, file_name)
    if len(spec.shape) != 4:
        raise RefusedModelError(
            f"the schema says that the {side} {field.name!r} is a picture, and in {file_name} it is {words(spec)}",
            hint="A picture is a tensor of batch, height, width and channels, in one of the two orders.",
        )


def _check_table(
    field: Field, specs: Sequence[TensorSpec], given: GivenSample | None, side: str, file_name: str
) -> None:
    if not field.columns:
        raise RefusedModelError(f"the schema says that the {side} {field.name!r} is a table, and names no columns")
    if given is not None and given.columns and given.columns != field.columns:
        raise RefusedModelError(
            f"the schema names the columns {', '.join(field.columns)}, and the sample has {', '.join(given.columns)}",
            hint="They must be the same, in the same order.",
        )
    width = specs[0].shape[-1] if len(specs) == 1 and len(specs[0].shape) == 2 else -1
    if len(specs) > 1 and len(specs) != len(field.columns):
        width = len(specs)
    if width not in (-1, len(field.columns)):
        raise RefusedModelError(
            f"the schema names {len(field.columns)} columns for the {side} {field.name!r}, and {file_name} has {width}"
        )


def _unknown(field: Field, side: str, specs: Sequence[TensorSpec], file_name: str) -> RefusedModelError:
    return RefusedModelError(
        f"the schema names the {side} {field.name!r}, and {file_name} has {', '.join(spec.name for spec in specs)}",
        hint="Name the tensors as the model does.",
    )
