"""JSON schemas of our documents, derived from their types, for readers in other languages."""

from typing import Any

import msgspec

from manifests.document import Document
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe
from manifests.release import Release
from manifests.telemetry import Envelope
from manifests.twin import ReportedSection

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# File name below manifests/schemas -> the document that it describes.
DOCUMENTS: dict[str, type[Document]] = {
    "slipway-model-manifest-1.0.json": ModelManifest,
    "slipway-image-recipe-1.0.json": ImageRecipe,
    "slipway-release-1.0.json": Release,
    "slipway-reported-1.0.json": ReportedSection,
    "slipway-envelope-1.0.json": Envelope,
}


def schema_of(document: type[Document]) -> dict[str, Any]:
    """The document's schema. It allows unknown fields, as readers of ours do."""
    return {"$schema": DIALECT, "title": document.__name__, **msgspec.json.schema(document)}
