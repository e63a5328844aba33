"""Import and export of the whole registry: lines, jobs, and what is refused."""

import json
from typing import Any

import pytest
from hub_worlds import NOON, World

from simulators.iothub.core.effects import RunExchange
from simulators.iothub.core.registry_exchange import RegistryExchange
from simulators.iothub.errors import ServiceError

EXPORT = {"type": "export", "outputBlobContainerUri": "https://store/container?sig=x"}
IMPORT = {**EXPORT, "type": "import", "inputBlobContainerUri": "https://store/in?sig=y"}


@pytest.fixture
def world() -> World:
    world = World()
    edge = world.register("edge", capabilities={"iotEdge": True})
    world.hub.patch_twin(edge, {"tags": {"a": 1}, "properties": {"desired": {"b": {"c": 2}}}}, None, NOON)
    world.register("off", status="disabled", statusReason="lost")
    world.register("off", "m1")
    return world


def exported(world: World, *, exclude_keys: bool = False) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.hub.exchange.exported(exclude_keys=exclude_keys)]


def test_what_is_exported_can_be_imported_elsewhere(world: World) -> None:
    lines = b"".join(world.hub.exchange.exported(exclude_keys=False))
    other = World()
    assert list(other.hub.exchange.imported(lines, NOON)) == [None] * 5

    def essence(of: World) -> list[dict[str, Any]]:
        varying = ("eTag", "twinETag", "deviceScope", "parentScopes")
        return [
            {
                **{key: value for key, value in line.items() if key not in varying},
                "properties": {
                    section: {key: value for key, value in values.items() if not key.startswith("$")}
                    for section, values in line["properties"].items()
                },
            }
            for line in exported(of)
        ]

    by_id = [sorted(essence(one), key=lambda line: (line["id"], line.get("moduleId", ""))) for one in (world, other)]
    assert by_id[0] == by_id[1]
    assert [line["id"] for line in by_id[0]] == ["edge", "edge", "edge", "off", "off"]
    assert by_id[0][0]["properties"]["desired"] == {"b": {"c": 2}}


def test_keys_stay_out_when_they_are_not_wanted(world: World) -> None:
    keys = [line["authentication"]["symmetricKey"] for line in exported(world, exclude_keys=True)]
    assert keys == [{"primaryKey": None, "secondaryKey": None}] * 5
    assert all(line["authentication"]["symmetricKey"]["primaryKey"] for line in exported(world))


def test_bad_lines_are_named_and_the_others_done(world: World) -> None:
    lines = b'\xef\xbb\xbf{"id": "n1", "importMode": "create"}\n\r\n[1]\nnonsense\n'
    lines += b'{"id": "off", "importMode": "create"}\n{"id": "n2"}'
    errors = [json.loads(error) for error in world.hub.exchange.imported(lines, NOON) if error]
    assert [(error["deviceId"], error["errorCode"]) for error in errors] == [
        (None, "ArgumentInvalid"),
        (None, "ArgumentInvalid"),
        ("off", "DeviceAlreadyExists"),
    ]
    assert [device.id.device_id for device in world.hub.registry.devices()] == ["edge", "off", "n1", "n2"]


def test_a_job_is_launched_runs_and_ends(world: World) -> None:
    made = world.hub.exchange.create(EXPORT, NOON)
    assert [effect for effect in world.hub.take_effects() if isinstance(effect, RunExchange)] == [
        RunExchange(made["jobId"])
    ]
    assert (made["status"], made["type"], made["progress"]) == ("enqueued", "export", 0)
    with pytest.raises(ServiceError) as second:
        world.hub.exchange.create(EXPORT, NOON)
    assert (second.value.fault.name, second.value.status) == ("JobQuotaExceeded", 403)
    job = world.hub.exchange.start(made["jobId"])
    assert job is not None
    assert job.destination == ("https://store/container?sig=x", "devices.txt")
    world.hub.exchange.finish(job.id, NOON + 1)
    world.hub.exchange.cancel(job.id, NOON + 2)
    shown = world.hub.exchange.get(job.id).document()
    assert (shown["status"], shown["progress"], shown["endTimeUtc"]) == (
        "completed",
        100,
        "2023-11-14T22:13:21.0000000Z",
    )
    second_job = world.hub.exchange.create({**IMPORT, "inputBlobName": "in.txt"}, NOON)["jobId"]
    assert world.hub.exchange.get(second_job).source == ("https://store/in?sig=y", "in.txt")
    assert world.hub.exchange.get(second_job).destination[1] == "importErrors.log"
    world.hub.exchange.cancel(second_job, NOON)
    assert world.hub.exchange.start(second_job) is None
    third = world.hub.exchange.create(EXPORT, NOON)["jobId"]
    world.hub.exchange.start(third)
    world.hub.exchange.finish(third, NOON, "no such container")
    assert [(job["status"], job["failureReason"]) for job in world.hub.exchange.documents()] == [
        ("completed", None),
        ("cancelled", None),
        ("failed", "no such container"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {**EXPORT, "type": "backup"},
        {**EXPORT, "outputBlobContainerUri": "ftp://store"},
        {**EXPORT, "type": "import"},
        {**EXPORT, "outputBlobName": 5},
        {**EXPORT, "storageAuthenticationType": "identityBased"},
    ],
)
def test_a_bad_job_is_refused(world: World, body: Any) -> None:
    with pytest.raises(ServiceError) as refused:
        world.hub.exchange.create(body, NOON)
    assert refused.value.fault.name == "ArgumentInvalid"
    assert world.hub.exchange.documents() == []


def test_a_restart_fails_the_job_that_was_under_way(world: World) -> None:
    journal: dict[str, Any] = {}
    exchange = world.hub.exchange
    exchange._touch = lambda key: journal.__setitem__(key, json.loads(json.dumps(exchange.record(key))))
    done = exchange.create(EXPORT, NOON)["jobId"]
    exchange.start(done)
    exchange.finish(done, NOON)
    exchange.start(exchange.create(IMPORT, NOON)["jobId"])
    restored = RegistryExchange(world.hub, None, lambda _job_id: None)  # type: ignore[arg-type]
    for key, record in journal.items():
        restored.restore(key, record)
    assert [(job["status"], job["failureReason"]) for job in restored.documents()] == [
        ("completed", None),
        ("failed", "the hub stopped while the job ran"),
    ]
