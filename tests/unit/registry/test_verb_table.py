"""The table of verbs: each is a method, a route and a part of the description; values cross the wire unchanged."""

import inspect
import json
from pathlib import Path

import msgspec
import pytest
from openapi_spec_validator import validate

from cloud_registry.core.catalog import ModelFacts
from cloud_registry.core.rollout.documents import RolloutTerms
from cloud_registry.errors import UsageError
from cloud_registry.ports import ModelQuery, ProofTerms
from cloud_registry.service.image_records import ImageRecords
from cloud_registry.service.keys import KeyDesk
from cloud_registry.service.local import LocalDevices, LocalModels, LocalTelemetry, LocalUpkeep
from cloud_registry.service.recipes import RecipeService
from cloud_registry.service.registration import Registration
from cloud_registry.service.remote import RemoteModels
from cloud_registry.service.rollouts import RolloutRequest, RolloutService
from cloud_registry.service.trust_desk import TrustDesk
from cloud_registry.service.verbs import (
    GROUPS,
    VERBS,
    DeviceVerbs,
    ImageVerbs,
    KeyVerbs,
    ModelVerbs,
    RecipeVerbs,
    RolloutVerbs,
    TelemetryVerbs,
    TrustVerbs,
    UpkeepVerbs,
    Verb,
)
from cloud_registry.service.wire_form import decode, encode, path_value, shape_of
from cloud_registry.web.openapi import openapi_document
from manifests.errors import ManifestError
from manifests.identity import ModelReference

LOCAL = {
    ModelVerbs: LocalModels,
    RolloutVerbs: RolloutService,
    TelemetryVerbs: LocalTelemetry,
    DeviceVerbs: LocalDevices,
    TrustVerbs: TrustDesk,
    RecipeVerbs: RecipeService,
    ImageVerbs: ImageRecords,
    KeyVerbs: KeyDesk,
    UpkeepVerbs: LocalUpkeep,
}
# What is no request: driving is done where the catalog is, and a download is many requests.
NOT_ASKED = {"can_drive", "tick", "release", "download"}


def test_every_method_of_a_protocol_has_a_row_and_every_row_a_method():
    methods = {(protocol, name) for protocol in GROUPS for name in vars(protocol) if not name.startswith("_")}
    rows = {(verb.protocol, verb.name) for verb in VERBS}
    assert rows <= methods
    assert {name for _, name in methods - rows} == NOT_ASKED
    assert len(rows) == len(VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.id)
def test_the_service_here_takes_what_the_protocol_says(verb: Verb):
    """The server calls by name, so names must agree, which a type checker does not ask for."""
    asked = inspect.signature(getattr(verb.protocol, verb.name)).parameters
    given = inspect.signature(getattr(LOCAL[verb.protocol], verb.name)).parameters
    assert list(given)[: len(asked)] == list(asked)
    shape = shape_of(verb)
    in_path = {each.name for each in shape.parameters if each.place == "path"}
    assert in_path == {part.strip("{}") for part in verb.path.split("/") if part.startswith("{")}


def test_no_two_verbs_share_a_route():
    routes = [(verb.method, "/".join("{}" if "{" in part else part for part in verb.path.split("/"))) for verb in VERBS]
    assert len(set(routes)) == len(routes)


def test_the_description_is_one_by_openapi_and_names_every_verb():
    document = openapi_document("0.1.0")
    validate(json.loads(json.dumps(document)))
    operations = {
        each.get("operationId") for path in document["paths"].values() for each in path.values() if "summary" in each
    }
    assert operations - {None} == {verb.id for verb in VERBS}
    assert all(each["summary"] for path in document["paths"].values() for each in path.values() if "summary" in each)


@pytest.mark.parametrize(
    "value",
    [
        ModelQuery("dig*", (("team", "vision"), ("stage", None))),
        RolloutRequest("digits:2", devices=("a", "b"), waves="1,100%", terms=RolloutTerms(timeout_s=7.5, urgent=True)),
        ModelFacts("words", ("0", "1"), {"accuracy": 0.5}, {"a": "b"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_request_reads_back_as_it_was(value):
    assert decode(encode(value), type(value)) == value


def test_a_path_travels_as_what_stands_for_it():
    registration = Registration("digits", (Path("a.onnx"),), ProofTerms(sample=Path("s.npz")))
    text = encode(registration, lambda path: {"upload": path.name})
    assert decode(text, Registration, lambda given: Path(given["upload"])) == registration
    with pytest.raises(TypeError):
        encode(registration)
    with pytest.raises(UsageError, match="cannot be read"):
        decode(text, Registration)


def test_a_reference_in_a_path_is_read_as_everywhere():
    assert path_value("digits:3", ModelReference) == ModelReference("digits", 3)
    with pytest.raises(ManifestError, match="write name:version"):
        path_value("digits", ModelReference)
    assert path_value("r-0001", str) == "r-0001"


def test_a_client_has_no_verbs_beside_the_table():
    with pytest.raises(AttributeError):
        _ = RemoteModels(None).remove_everything  # type: ignore[arg-type]
    assert msgspec.json.decode(encode([ModelReference("a", 1)])) == [{"name": "a", "version": 1}]
