"""The published schemas are current, and the published examples meet them."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from manifests.json_schema import DOCUMENTS, schema_of

MANIFESTS = Path(__file__).parents[3] / "manifests"
EXAMPLES = {
    "slipway-model-manifest-1.0.json": "model-manifest.json",
    "slipway-image-recipe-1.0.json": "image-recipe.json",
    "slipway-release-1.0.json": "release.json",
    "slipway-reported-1.0.json": "reported.json",
    "slipway-envelope-1.0.json": "envelope.json",
}


def example(schema: str) -> Any:
    return json.loads((MANIFESTS / "examples" / EXAMPLES[schema]).read_bytes())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_says_what_its_document_is(name: str):
    path = MANIFESTS / "schemas" / name
    text = json.dumps(schema_of(DOCUMENTS[name]), indent=2) + "\n"
    if os.environ.get("SLIPWAY_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, "run this test with SLIPWAY_UPDATE_GOLDEN=1 to write the schema anew"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_example_meets_its_schema_and_its_document(name: str):
    jsonschema.Draft202012Validator(schema_of(DOCUMENTS[name])).validate(example(name))
    assert json.loads(DOCUMENTS[name].from_wire(example(name)).to_json()) == example(name)


# What an example is without, or has wrong; the schema must notice as well as the document does.
SPOILT = {
    "a manifest without a name": ("slipway-model-manifest-1.0.json", {"name": None}),
    "a manifest with a name in capitals": ("slipway-model-manifest-1.0.json", {"name": "Digits"}),
    "a release of generation zero": ("slipway-release-1.0.json", {"generation": 0}),
    "a release with half a digest": ("slipway-release-1.0.json", {"digest": "sha256:abc"}),
    "an envelope that counts from zero": ("slipway-envelope-1.0.json", {"seq": 0}),
    "a report of an unknown phase": ("slipway-reported-1.0.json", {"models": {"digits": {"phase": "happy"}}}),
}


@pytest.mark.parametrize("story", SPOILT)
def test_a_spoilt_document_is_refused_by_schema_and_type_alike(story: str):
    name, changes = SPOILT[story]
    spoilt = {**example(name), **changes}
    assert not jsonschema.Draft202012Validator(schema_of(DOCUMENTS[name])).is_valid(spoilt)
    with pytest.raises(ValueError):
        DOCUMENTS[name].from_wire(spoilt)


def test_every_schema_file_is_accounted_for():
    listed = (MANIFESTS / "schemas" / "README.md").read_text()
    assert [path.name for path in (MANIFESTS / "schemas").glob("*.json") if f"`{path.name}`" not in listed] == []
