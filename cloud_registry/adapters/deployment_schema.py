"""The public JSON schema of deployment manifests, as it ships with the documents."""

import json
from importlib.resources import files
from typing import Any

SCHEMA = "azure-iot-edge-deployment-2.0.json"


def read_deployment_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(files("manifests").joinpath("schemas", SCHEMA).read_bytes())
    return schema
