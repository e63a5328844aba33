"""The unmodified azure-iot-hub: bulk, configurations, jobs and digital twins against the hub over real sockets."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.hub import DigitalTwinClient, IoTHubConfigurationManager, IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    CloudToDeviceMethod,
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    ExportImportDevice,
    JobProperties,
    JobRequest,
    QuerySpecification,
    Twin,
    TwinProperties,
)
from msrest.exceptions import DeserializationError, HttpOperationError

from simulators.iothub.core.access import make_token
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
KEYS = ("MDEyMzQ1Njc4OWFiY2RlZg==", "ZmVkY2JhOTg3NjU0MzIxMA==")
DEADLINE_S = 20.0
PRINTS = ("A" * 40, "B" * 40)


@pytest.fixture
def registry(hub: BackgroundHub) -> IoTHubRegistryManager:
    return IoTHubRegistryManager.from_connection_string(hub.service_connection_string)


@pytest.fixture
def configurations(hub: BackgroundHub) -> IoTHubConfigurationManager:
    return IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(HttpOperationError) as refused:
        call()
    return refused.value.response.status_code, refused.value.response.headers["iothub-errorcode"]


def test_every_sort_of_device_and_module_is_made_changed_and_removed(registry: IoTHubRegistryManager) -> None:
    made = [
        registry.create_device_with_sas("sas", *KEYS, "enabled", iot_edge=True),
        registry.create_device_with_x509("x509", *PRINTS, "enabled"),
        registry.create_device_with_certificate_authority("ca", "enabled"),
    ]
    assert [device.authentication.type for device in made] == ["sas", "selfSigned", "certificateAuthority"]
    updated = [
        registry.update_device_with_sas("sas", made[0].etag, *KEYS, "disabled"),
        registry.update_device_with_x509("x509", made[1].etag, *reversed(PRINTS), "disabled"),
        registry.update_device_with_certificate_authority("ca", made[2].etag, "disabled"),
    ]
    assert [device.status for device in updated] == ["disabled"] * 3
    assert updated[1].authentication.x509_thumbprint.primary_thumbprint == PRINTS[1]
    modules = [
        registry.create_module_with_sas("x509", "m-sas", "me", *KEYS),
        registry.create_module_with_x509("x509", "m-x509", "me", *PRINTS),
        registry.create_module_with_certificate_authority("x509", "m-ca", "me"),
    ]
    assert [module.module_id for module in registry.get_modules("x509")] == ["m-sas", "m-x509", "m-ca"]
    assert {module.module_id for module in registry.get_modules("sas")} == {"$edgeAgent", "$edgeHub"}
    changed = [
        registry.update_module_with_sas("x509", "m-sas", "you", modules[0].etag, *KEYS),
        registry.update_module_with_x509("x509", "m-x509", "you", modules[1].etag, *PRINTS),
        registry.update_module_with_certificate_authority("x509", "m-ca", "you", modules[2].etag),
    ]
    assert [module.managed_by for module in changed] == ["you"] * 3
    assert refusal(lambda: registry.delete_module("x509", "m-sas", modules[0].etag)) == (412, "PreconditionFailed")
    registry.delete_module("x509", "m-sas", changed[0].etag)
    registry.delete_device("sas")
    assert [device.device_id for device in registry.get_devices()] == ["x509", "ca"]
    assert [device.device_id for device in registry.get_devices(1)] == ["x509"]
    statistics = registry.get_device_registry_statistics()
    assert (statistics.total_device_count, statistics.disabled_device_count) == (2, 2)


def test_a_bulk_request_does_what_it_can_and_says_what_it_cannot(registry: IoTHubRegistryManager) -> None:
    devices = [ExportImportDevice(id=f"d{number}", import_mode="create", status="enabled") for number in range(3)]
    result = registry.bulk_create_or_update_devices(devices)
    assert (result.is_successful, result.errors) == (True, [])
    result = registry.bulk_create_or_update_devices(
        [devices[0], ExportImportDevice(id="d1", import_mode="updateTwin", tags={"a": 1}), devices[2]]
    )
    assert result.is_successful is False
    assert [(error.device_id, error.error_code, error.operation) for error in result.errors] == [
        ("d0", "DeviceAlreadyExists", "create"),
        ("d2", "DeviceAlreadyExists", "create"),
    ]
    assert registry.get_twin("d1").tags == {"a": 1}
    assert len(registry.get_devices()) == 3


def test_a_configuration_lives_and_reaches_its_devices(
    registry: IoTHubRegistryManager, configurations: IoTHubConfigurationManager
) -> None:
    for number in range(2):
        registry.create_device_with_sas(f"d{number}", *KEYS, "enabled")
        registry.update_twin(f"d{number}", Twin(tags={"n": number}))
    made = configurations.create_configuration(
        Configuration(
            id="c1",
            content=ConfigurationContent(device_content={"properties.desired.level": "info"}),
            target_condition="tags.n = 1",
            priority=3,
            labels={"by": "test"},
            metrics=ConfigurationMetrics(
                queries={"set": "SELECT deviceId FROM devices WHERE properties.desired.level = 'info'"}
            ),
        )
    )
    assert (made.id, made.priority, made.labels, made.etag) == ("c1", 3, {"by": "test"}, "MQ==")
    twin = registry.get_twin("d1")
    assert twin.properties.desired["level"] == "info"
    assert twin.additional_properties["configurations"] == {"c1": {"status": "Applied"}}
    read = configurations.get_configuration("c1")
    assert read.system_metrics.results == {"targetedCount": 1, "appliedCount": 1}
    assert read.metrics.results == {"set": 1}
    assert refusal(lambda: configurations.create_configuration(read)) == (409, "ConfigurationAlreadyExists")
    read.target_condition = "*"
    updated = configurations.update_configuration(read, read.etag)
    assert updated.system_metrics.results == {"targetedCount": 2, "appliedCount": 2}
    assert refusal(lambda: configurations.update_configuration(read, read.etag)) == (412, "PreconditionFailed")
    assert [item.id for item in configurations.get_configurations(5)] == ["c1"]
    assert refusal(lambda: configurations.delete_configuration("c1", read.etag)) == (412, "PreconditionFailed")
    configurations.delete_configuration("c1")
    assert configurations.get_configurations() == []
    assert refusal(lambda: configurations.get_configuration("c1")) == (404, "ConfigurationNotFound")
    assert "level" not in registry.get_twin("d0").properties.desired


def test_queries_of_a_configuration_are_tested_before(configurations: IoTHubConfigurationManager) -> None:
    verdict = configurations.test_configuration_queries(
        ConfigurationQueriesTestInput(
            target_condition="tags.a = ",
            custom_metric_queries={"good": "SELECT * FROM devices", "bad": "SELECT * FROM nowhere"},
        )
    )
    assert verdict.target_condition_error == "the condition ends too early"
    assert list(verdict.custom_metric_query_errors) == ["bad"]


def test_a_manifest_reaches_one_edge_device(
    registry: IoTHubRegistryManager, configurations: IoTHubConfigurationManager
) -> None:
    registry.create_device_with_sas("edge", *KEYS, "enabled", iot_edge=True)
    agent = {"schemaVersion": "1.1", "runtime": {"type": "docker"}, "modules": {"scorer": {"version": "1"}}}
    content = ConfigurationContent(
        modules_content={
            "$edgeAgent": {"properties.desired": agent},
            "$edgeHub": {"properties.desired": {"routes": {}}},
            "scorer": {"properties.desired": {"model": 7}},
        }
    )
    configurations.apply_configuration_on_edge_device("edge", content)
    assert registry.get_module("edge", "scorer").managed_by == "IotEdge"
    assert registry.get_module_twin("edge", "scorer").properties.desired["model"] == 7
    desired = registry.get_module_twin("edge", "$edgeAgent").properties.desired
    assert {key: desired[key] for key in agent} == agent
    found = registry.query_iot_hub(
        QuerySpecification(query="SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'")
    )
    assert [twin.device_id for twin in found.items] == ["edge"]


@pytest.fixture
def jobs(hub: BackgroundHub) -> IoTHubJobManager:
    return IoTHubJobManager.from_connection_string(hub.service_connection_string)


def finished(jobs: IoTHubJobManager, job_id: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        job = jobs.get_scheduled_job(job_id)
        if job.status in ("completed", "failed", "cancelled"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job {job_id} is {job.status} after {DEADLINE_S} s")


def test_a_scheduled_twin_update_runs(registry: IoTHubRegistryManager, jobs: IoTHubJobManager) -> None:
    for number in range(3):
        registry.create_device_with_sas(f"d{number}", *KEYS, "enabled")
    request = JobRequest(
        job_id="update",
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", tags={"wave": 1}, properties=TwinProperties(desired={"level": "debug"})),
        query_condition="deviceId IN ['d0', 'd2']",
        start_time=datetime.now(UTC),
        max_execution_time_in_seconds=60,
    )
    created = jobs.create_scheduled_job("update", request)
    assert (created.job_id, created.type, created.update_twin.etag) == ("update", "scheduleUpdateTwin", "*")
    job = finished(jobs, "update")
    counts = job.device_job_statistics
    assert (job.status, counts.device_count, counts.succeeded_count, counts.failed_count) == ("completed", 2, 2, 0)
    assert [registry.get_twin(f"d{number}").tags for number in range(3)] == [{"wave": 1}, None, {"wave": 1}]
    rows = registry.query_iot_hub(
        QuerySpecification(query="SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'update'")
    )
    assert [(row.device_id, row.status) for row in rows.items] == [("d0", "completed"), ("d2", "completed")]
    assert refusal(lambda: jobs.create_scheduled_job("update", request)) == (409, "JobAlreadyExists")


def test_a_scheduled_method_fails_where_nobody_listens_and_a_later_job_is_cancelled(
    registry: IoTHubRegistryManager, jobs: IoTHubJobManager
) -> None:
    registry.create_device_with_sas("d0", *KEYS, "enabled")
    call = CloudToDeviceMethod(method_name="ping", payload={}, response_timeout_in_seconds=5)
    method = {"type": "scheduleDeviceMethod", "cloud_to_device_method": call, "query_condition": "*"}
    jobs.create_scheduled_job("now", JobRequest(job_id="now", **method))
    assert finished(jobs, "now").status == "failed"
    later = datetime.now(UTC) + timedelta(days=1)
    assert (
        jobs.create_scheduled_job("later", JobRequest(job_id="later", start_time=later, **method)).status == "scheduled"
    )
    assert jobs.cancel_scheduled_job("later").status == "cancelled"
    assert refusal(lambda: jobs.get_scheduled_job("never")) == (404, "JobNotFound")


def test_a_query_of_jobs_is_an_array_as_the_service_gives_it_and_as_the_sdk_cannot_read(
    hub: BackgroundHub, registry: IoTHubRegistryManager, jobs: IoTHubJobManager
) -> None:
    registry.create_device_with_sas("d0", *KEYS, "enabled")
    update = {"type": "scheduleUpdateTwin", "update_twin": Twin(tags={"a": 1}), "query_condition": "*"}
    for name in ("a", "b", "c"):
        jobs.create_scheduled_job(name, JobRequest(job_id=name, **update))
        finished(jobs, name)
    with pytest.raises(DeserializationError):
        jobs.query_scheduled_jobs("scheduleUpdateTwin", "completed")
    first = call(hub, "GET", "/jobs/v2/query?jobStatus=completed", headers={"x-ms-max-item-count": "2"})
    assert [job["jobId"] for job in first.json()] == ["c", "b"]
    assert first.headers["x-ms-item-type"] == "JobResponse"
    token = {"x-ms-max-item-count": "2", "x-ms-continuation": first.headers["x-ms-continuation"]}
    last = call(hub, "GET", "/jobs/v2/query?jobStatus=completed", headers=token)
    assert ([job["jobId"] for job in last.json()], "x-ms-continuation" in last.headers) == (["a"], False)


def call(hub: BackgroundHub, method: str, path: str, **settings: Any) -> requests.Response:
    key = hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy("iothubowner").keys[0])
    token = make_token(key, hub.authority, int(time.time()) + 60, "iothubowner")
    headers = {"Authorization": token, **settings.pop("headers", {})}
    return requests.request(
        method, f"https://{hub.authority}{path}", headers=headers, verify=str(hub.ca_file), timeout=20, **settings
    )


def test_a_digital_twin_is_read_written_and_commanded(hub: BackgroundHub, registry: IoTHubRegistryManager) -> None:
    twins = DigitalTwinClient.from_connection_string(hub.service_connection_string)
    device = IoTHubDeviceClient.create_from_connection_string(
        hub.create_device("d1"),
        server_verification_cert=hub.ca_file.read_text(),
        product_info="dtmi:com:example:TemperatureController;1",
    )
    heard: list[Any] = []
    arrived = threading.Event()

    def on_patch(patch: dict[str, Any]) -> None:
        heard.append(patch)
        arrived.set()

    def on_method(request: Any) -> None:
        device.send_method_response(
            MethodResponse(request.request_id, 207, {"name": request.name, "of": request.payload})
        )

    try:
        device.connect()
        device.on_method_request_received = on_method
        device.on_twin_desired_properties_patch_received = on_patch
        twins.update_digital_twin("d1", [{"op": "add", "path": "/thermostat1/targetTemperature", "value": 21.4}])
        assert arrived.wait(DEADLINE_S)
        assert heard == [{"thermostat1": {"__t": "c", "targetTemperature": 21.4}, "$version": 2}]
        acknowledged = {"value": 21.4, "ac": 200, "av": 2, "ad": "set"}
        device.patch_twin_reported_properties({"thermostat1": {"__t": "c", "targetTemperature": acknowledged}})
        shown = twins.get_digital_twin("d1")
        assert (shown["$dtId"], shown["$metadata"]) == ("d1", {"$model": "dtmi:com:example:TemperatureController;1"})
        assert shown["thermostat1"]["targetTemperature"] == 21.4
        assert shown["thermostat1"]["$metadata"]["targetTemperature"]["ackCode"] == 200
        patch = [{"op": "replace", "path": "/level", "value": 1}]
        assert refusal(lambda: twins.update_digital_twin("d1", patch, '"stale"')) == (412, "PreconditionFailed")
        twins.update_digital_twin("d1", patch, f'"{registry.get_twin("d1").etag}"')
        assert twins.invoke_command("d1", "reboot", {"in": 5}) == {"name": "reboot", "of": {"in": 5}}
        answer = twins.invoke_component_command("d1", "thermostat1", "report", "now", 0, 10)
        assert answer == {"name": "thermostat1*report", "of": "now"}
        raw = call(hub, "POST", "/digitaltwins/d1/commands/reboot?responseTimeoutInSeconds=5", data=b"")
        assert (raw.status_code, raw.headers["x-ms-command-statuscode"]) == (200, "207")
        assert raw.headers["x-ms-request-id"]
    finally:
        device.shutdown()
    assert refusal(lambda: twins.invoke_command("d1", "reboot", {})) == (404, "DeviceNotOnline")
    assert refusal(lambda: twins.get_digital_twin("nobody")) == (404, "DeviceNotFound")


EDGE_CONTENT = {
    "modulesContent": {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": {}}},
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
    }
}
TWIN_JOB = {"type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {"a": 1}}, "queryCondition": "*"}
# What the Azure CLI's IoT extension asks for: method, path, status, and what it sends.
CLI_REQUESTS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("PUT", "/devices/e1", 200, {"json": {"deviceId": "e1", "capabilities": {"iotEdge": True}, "status": "enabled"}}),
    ("GET", "/devices?top=10", 200, {}),
    ("GET", "/statistics/devices", 200, {}),
    ("GET", "/statistics/service", 200, {}),
    (
        "POST",
        "/devices/query",
        200,
        {"json": {"query": "select * from devices"}, "headers": {"x-ms-max-item-count": "9"}},
    ),
    ("PATCH", "/twins/e1", 200, {"json": {"tags": {"a": 1}, "etag": "*"}, "headers": {"If-Match": '"*"'}}),
    (
        "PUT",
        "/configurations/deployment",
        201,
        {
            "json": {
                "id": "deployment",
                "schemaVersion": "2.0",
                "labels": None,
                "content": EDGE_CONTENT,
                "contentType": "assignment",
                "targetCondition": "tags.a = 1",
                "etag": "*",
                "priority": 0,
                "metrics": {"queries": {}},
            }
        },
    ),
    ("GET", "/configurations/deployment", 200, {}),
    ("GET", "/configurations?top=20", 200, {}),
    ("POST", "/configurations/testQueries", 200, {"json": {"targetCondition": "tags.a = 1"}}),
    ("POST", "/devices/e1/applyConfigurationContent", 204, {"json": EDGE_CONTENT}),
    ("DELETE", "/configurations/deployment", 204, {"headers": {"If-Match": '"*"'}}),
    ("PUT", "/jobs/v2/j1", 200, {"json": {"jobId": "j1", **TWIN_JOB, "maxExecutionTimeInSeconds": 3600}}),
    ("GET", "/jobs/v2/j1", 200, {}),
    ("GET", "/jobs/v2/query?jobType=scheduleUpdateTwin", 200, {}),
    ("GET", "/jobs", 200, {}),
    ("POST", "/jobs/v2/j1/cancel", 200, {}),
    ("GET", "/digitaltwins/e1", 200, {}),
    ("PATCH", "/digitaltwins/e1", 202, {"json": [{"op": "add", "path": "/level", "value": 1}]}),
    ("DELETE", "/devices/e1", 204, {"headers": {"If-Match": '"*"'}}),
)


@pytest.mark.parametrize("version", ["2021-04-12", "2024-03-31"])
def test_the_requests_of_the_command_line_extension_are_answered(hub: BackgroundHub, version: str) -> None:
    for method, path, status, settings in CLI_REQUESTS:
        answer = call(hub, method, f"{path}{'&' if '?' in path else '?'}api-version={version}", **dict(settings))
        assert (method, path, answer.status_code, answer.text[:200] if answer.status_code >= 400 else "") == (
            method,
            path,
            status,
            "",
        )


class Container(BaseHTTPRequestHandler):
    """As much of a blob container as put and get of a blob: real HTTP on a loopback port, a token in the query."""

    blobs: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_allowed = self.path.endswith("?sig=a%2Fb%3D") and self.headers["x-ms-blob-type"] == "BlockBlob"
        if is_allowed:
            self.blobs[self.path.partition("?")[0]] = body
        self._answer(201 if is_allowed else 403)

    def do_GET(self) -> None:
        blob = self.blobs.get(self.path.partition("?")[0])
        self._answer(404 if blob is None else 200, blob or b"")

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def container() -> Iterator[str]:
    Container.blobs.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Container)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/registry?sig=a%2Fb%3D"
    server.shutdown()
    server.server_close()


def exchanged(jobs: IoTHubJobManager, **fields: Any) -> Any:
    job = jobs.create_import_export_job(JobProperties(**fields))
    end = time.monotonic() + DEADLINE_S
    while job.status in ("enqueued", "running") and time.monotonic() < end:
        time.sleep(0.02)
        job = jobs.get_import_export_job(job.job_id)
    return job


def test_the_registry_is_exported_and_imported(
    registry: IoTHubRegistryManager, jobs: IoTHubJobManager, container: str
) -> None:
    for number in range(3):
        registry.create_device_with_sas(f"d{number}", *KEYS, "enabled")
    registry.update_twin("d1", Twin(tags={"a": 1}))
    job = exchanged(jobs, type="export", output_blob_container_uri=container)
    assert (job.status, job.progress, job.failure_reason) == ("completed", 100, None)
    lines = [json.loads(line) for line in Container.blobs["/registry/devices.txt"].splitlines()]
    assert [(line["id"], line["tags"]) for line in lines] == [("d0", {}), ("d1", {"a": 1}), ("d2", {})]
    for number in range(3):
        registry.delete_device(f"d{number}")
    Container.blobs["/registry/in.txt"] = Container.blobs["/registry/devices.txt"] + b"nonsense\n"
    job = exchanged(
        jobs,
        type="import",
        input_blob_container_uri=container,
        input_blob_name="in.txt",
        output_blob_container_uri=container,
    )
    assert job.status == "completed"
    (error,) = [json.loads(line) for line in Container.blobs["/registry/importErrors.log"].splitlines()]
    assert error["errorCode"] == "ArgumentInvalid"
    assert [device.device_id for device in registry.get_devices()] == ["d0", "d1", "d2"]
    assert registry.get_device("d2").authentication.symmetric_key.primary_key == KEYS[0]
    assert registry.get_twin("d1").tags == {"a": 1}
    missing = container.replace("/registry", "/nowhere")
    job = exchanged(jobs, type="import", input_blob_container_uri=missing, output_blob_container_uri=container)
    assert (job.status, "404" in job.failure_reason) == ("failed", True)
    assert [job.status for job in jobs.get_import_export_jobs()] == ["completed", "completed", "failed"]
    jobs.cancel_import_export_job(job.job_id)


def test_configurations_and_jobs_outlive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    hub = BackgroundHub(tmp_path, address, is_kept=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(hub.ca_file))
    try:
        registry = IoTHubRegistryManager.from_connection_string(hub.service_connection_string)
        registry.create_device_with_sas("d0", *KEYS, "enabled")
        registry.update_twin("d0", Twin(tags={"n": 0}))
        configurations = IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)
        content = ConfigurationContent(device_content={"properties.desired.level": "info"})
        configurations.create_configuration(Configuration(id="c1", content=content, target_condition="tags.n = 0"))
        jobs = IoTHubJobManager.from_connection_string(hub.service_connection_string)
        update = {"type": "scheduleUpdateTwin", "query_condition": "*"}
        jobs.create_scheduled_job("past", JobRequest(job_id="past", update_twin=Twin(tags={"a": 1}), **update))
        finished(jobs, "past")
        soon = datetime.now(UTC) + timedelta(seconds=2)
        later = JobRequest(job_id="next", update_twin=Twin(tags={"b": 2}), start_time=soon, **update)
        jobs.create_scheduled_job("next", later)
        before = configurations.get_configuration("c1").as_dict()
        hub.stop()
        hub = BackgroundHub(tmp_path, address, is_kept=True)
        registry = IoTHubRegistryManager.from_connection_string(hub.service_connection_string)
        configurations = IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)
        jobs = IoTHubJobManager.from_connection_string(hub.service_connection_string)
        assert configurations.get_configuration("c1").as_dict() == before
        assert registry.get_twin("d0").additional_properties["configurations"] == {"c1": {"status": "Applied"}}
        assert finished(jobs, "past").device_job_statistics.succeeded_count == 1
        assert finished(jobs, "next").device_job_statistics.succeeded_count == 1
        assert registry.get_twin("d0").tags == {"n": 0, "a": 1, "b": 2}
        configurations.delete_configuration("c1")
        assert "level" not in registry.get_twin("d0").properties.desired
    finally:
        hub.stop()
