"""The public JSON schemas of deployment manifests, as they ship with the documents."""

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

SCHEMAS = (
    "azure-iot-edge-deployment-2.0.json",
    "azure-iot-edgeagent-deployment-1.0.json",
    "azure-iot-edgeagent-deployment-1.1.json",
    "azure-iot-edgehub-deployment-1.0.json",
    "azure-iot-edgehub-deployment-1.1.json",
    "azure-iot-edgehub-deployment-1.2.json",
)


@lru_cache(maxsize=1)
def read_deployment_schemas() -> dict[str, dict[str, Any]]:
    """Each schema by the name of its file."""
    folder = files("manifests").joinpath("schemas")
    return {name: json.loads(folder.joinpath(name).read_bytes()) for name in SCHEMAS}
