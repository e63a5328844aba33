"""A module that takes everything from its environment, as IoT Edge sets it up: by connection string or workload API."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import IoTHubModuleClient

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
MODULE = IdentityId("edge-1", "filter")


def bodies(hub: BackgroundHub) -> list[bytes]:
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))
    return [event.body for event in events if event.source == "Telemetry"]


def send(client: IoTHubModuleClient) -> None:
    try:
        client.connect()
        client.send_message("from the edge")
    finally:
        client.shutdown()


def test_a_module_connects_by_the_connection_string_of_its_environment(
    hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection_string = hub.create_module("edge-1", "filter")
    monkeypatch.setenv("EdgeHubConnectionString", f"{connection_string};GatewayHostName={hub.host_name}")
    monkeypatch.setenv("EdgeModuleCACertificateFile", str(hub.ca_file))
    send(IoTHubModuleClient.create_from_edge_environment())
    assert bodies(hub) == [b"from the edge"]


class Workload(BaseHTTPRequestHandler):
    """The workload API of an edge device: it signs with the module's key, which the module never sees."""

    key = ""
    bundle = ""

    def do_GET(self) -> None:
        assert self.path.startswith("/trust-bundle?api-version=")
        self._answer({"certificate": self.bundle})

    def do_POST(self) -> None:
        assert self.path.startswith("/modules/filter/genid/g1/sign?api-version=")
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (request["keyId"], request["algo"]) == ("primary", "HMACSHA256")
        digest = hmac.digest(base64.b64decode(self.key), base64.b64decode(request["data"]), hashlib.sha256)
        self._answer({"digest": base64.b64encode(digest).decode()})

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def workload_url(hub: BackgroundHub) -> Iterator[str]:
    hub.create_module("edge-1", "filter")
    key = str(hub.call(lambda: hub.server.switchboard.hub.registry.get(MODULE).keys[0]))
    handler = type("Signer", (Workload,), {"key": key, "bundle": Path(hub.ca_file).read_text()})
    server = ThreadingHTTPServer((hub.address, 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://{hub.address}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_module_connects_with_tokens_that_its_workload_signs(
    hub: BackgroundHub, workload_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "IOTEDGE_IOTHUBHOSTNAME": hub.host_name,
        "IOTEDGE_DEVICEID": "edge-1",
        "IOTEDGE_MODULEID": "filter",
        "IOTEDGE_GATEWAYHOSTNAME": hub.host_name,
        "IOTEDGE_MODULEGENERATIONID": "g1",
        "IOTEDGE_WORKLOADURI": workload_url,
        "IOTEDGE_APIVERSION": "2019-10-22",
    }.items():
        monkeypatch.setenv(name, value)
    send(IoTHubModuleClient.create_from_edge_environment())
    assert bodies(hub) == [b"from the edge"]
