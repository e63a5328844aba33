"""Scheduled jobs: when they run, what they do to each device, and how they end."""

import json
from typing import Any

import pytest
from hub_worlds import NOON, Client, World

from simulators.iothub.core.job_targets import JobTargets
from simulators.iothub.core.jobs import CALLS_MAX, HISTORY_S, TRANSITIONS, Jobs
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError
from simulators.iothub.wire.client import Received


@pytest.fixture
def world() -> World:
    world = World()
    for name, site in (("n1", "north"), ("n2", "north"), ("s1", "south")):
        world.hub.patch_twin(world.register(name), {"tags": {"site": site}}, None, NOON)
    return world


def twin_job(**fields: Any) -> dict[str, Any]:
    update = {"tags": {"done": True}, "properties": {"desired": {"a": 1}}}
    return {
        "jobId": "j1",
        "type": "scheduleUpdateTwin",
        "updateTwin": update,
        "queryCondition": "tags.site = 'north'",
        **fields,
    }


def method_job(**fields: Any) -> dict[str, Any]:
    call = {"methodName": "ping", "payload": {"a": 1}, "responseTimeoutInSeconds": 5}
    return {
        "jobId": "j1",
        "type": "scheduleDeviceMethod",
        "cloudToDeviceMethod": call,
        "queryCondition": "tags.site = 'north'",
        **fields,
    }


def run(world: World, later_s: float = 0.0) -> None:
    world.clock.now += later_s
    for _ in range(1000):
        is_more = world.hub.advance(world.clock.now)
        world.hub.expire_methods(world.clock.now)
        world.switchboard.settle()
        if not is_more:
            return
    raise AssertionError("the work does not end")


def ended(world: World, job_id: str = "j1") -> tuple[str, dict[str, int]]:
    document = world.hub.jobs.get(job_id).document()
    return document["status"], {key: value for key, value in document["deviceJobStatistics"].items() if value}


def rows(world: World, job_id: str = "j1") -> list[dict[str, Any]]:
    text = f"SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{job_id}'"
    page = world.hub.query(text, None, 100, world.clock.now)
    assert page.item_type == "DeviceJob"
    return page.rows


def test_a_twin_update_reaches_whom_the_condition_selects(world: World) -> None:
    created = world.hub.jobs.create("j1", twin_job(), NOON)
    assert created == {
        "jobId": "j1",
        "queryCondition": "tags.site = 'north'",
        "createdTime": "2023-11-14T22:13:20.0000000Z",
        "startTime": "2023-11-14T22:13:20.0000000Z",
        "endTime": None,
        "maxExecutionTimeInSeconds": 3600,
        "type": "scheduleUpdateTwin",
        "updateTwin": {"tags": {"done": True}, "properties": {"desired": {"a": 1}}, "etag": "*"},
        "cloudToDeviceMethod": None,
        "status": "queued",
        "failureReason": None,
        "statusMessage": None,
        "deviceJobStatistics": dict.fromkeys(
            ("deviceCount", "failedCount", "succeededCount", "runningCount", "pendingCount"), 0
        ),
    }
    run(world, 1.0)
    assert ended(world) == ("completed", {"deviceCount": 2, "succeededCount": 2})
    assert world.hub.jobs.get("j1").document()["endTime"] == "2023-11-14T22:13:21.0000000Z"
    twins = [world.hub.twin_document(IdentityId(name)) for name in ("n1", "n2", "s1")]
    assert [twin["tags"].get("done") for twin in twins] == [True, True, None]
    assert [twin["properties"]["desired"].get("a") for twin in twins] == [1, 1, None]
    assert rows(world)[0] == {
        "deviceId": "n1",
        "jobId": "j1",
        "jobType": "scheduleUpdateTwin",
        "status": "completed",
        "startTimeUtc": "2023-11-14T22:13:21.0000000Z",
        "endTimeUtc": "2023-11-14T22:13:21.0000000Z",
        "createdDateTimeUtc": "2023-11-14T22:13:20.0000000Z",
        "lastUpdatedDateTimeUtc": "2023-11-14T22:13:21.0000000Z",
        "outcome": {"deviceMethodResponse": None},
    }


def test_a_job_waits_for_its_time_and_selects_then(world: World) -> None:
    world.hub.jobs.create("j1", twin_job(startTime="2023-11-14T22:14:20.0000000Z"), NOON)
    run(world, 59.0)
    assert ended(world) == ("scheduled", {})
    world.hub.patch_twin(IdentityId("s1"), {"tags": {"site": "north"}}, None, world.clock.now)
    run(world, 1.0)
    assert ended(world) == ("completed", {"deviceCount": 3, "succeededCount": 3})


def test_a_refused_update_fails_its_device_only(world: World) -> None:
    big = {str(number): "x" * 4000 for number in range(2)}
    world.hub.patch_twin(IdentityId("n1"), {"tags": {"big": big["0"]}}, None, NOON)
    world.hub.jobs.create("j1", twin_job(updateTwin={"tags": {"more": big["1"], "most": "y" * 1000}}), NOON)
    run(world)
    assert ended(world) == ("completed", {"deviceCount": 2, "failedCount": 1, "succeededCount": 1})
    assert [(row["deviceId"], row["status"], row.get("error", {}).get("code")) for row in rows(world)] == [
        ("n1", "failed", "ArgumentInvalid"),
        ("n2", "completed", None),
    ]


def answering(world: World, name: str) -> Client:
    client = Client(world, IdentityId(name))
    client.connect()
    client.session.subscribe(("$iothub/methods/POST/#", 0))
    client.exchange()
    return client


def test_a_method_reaches_devices_and_its_answers_are_kept(world: World) -> None:
    client = answering(world, "n1")
    world.hub.jobs.create("j1", method_job(), NOON)
    run(world)
    assert ended(world) == ("running", {"deviceCount": 2, "failedCount": 1, "runningCount": 1})
    (call,) = [event for event in client.exchange() if isinstance(event, Received)]
    request_id = call.topic.partition("$rid=")[2]
    client.session.publish(f"$iothub/methods/res/201/?$rid={request_id}", b'{"pong": 1}', 0)
    client.exchange()
    run(world)
    assert ended(world) == ("completed", {"deviceCount": 2, "failedCount": 1, "succeededCount": 1})
    assert [(row["deviceId"], row["outcome"]["deviceMethodResponse"]) for row in rows(world)] == [
        ("n1", {"status": 201, "payload": {"pong": 1}}),
        ("n2", None),
    ]
    assert rows(world)[1]["error"]["code"] == "DeviceNotOnline"


def test_a_method_that_nobody_answers_fails_the_job(world: World) -> None:
    answering(world, "n1")
    world.hub.jobs.create("j1", method_job(), NOON)
    run(world)
    run(world, 5.0)
    run(world)
    assert ended(world) == ("failed", {"deviceCount": 2, "failedCount": 2})
    assert {row["error"]["code"] for row in rows(world)} == {"GatewayTimeout", "DeviceNotOnline"}


def test_a_job_that_takes_too_long_is_given_up(world: World) -> None:
    answering(world, "n1")
    call = {"methodName": "ping", "responseTimeoutInSeconds": 300, "connectTimeoutInSeconds": 300}
    world.hub.jobs.create("j1", method_job(cloudToDeviceMethod=call, maxExecutionTimeInSeconds=60), NOON)
    run(world)
    assert ended(world) == ("running", {"deviceCount": 2, "runningCount": 2})
    run(world, 60.0)
    assert ended(world) == ("failed", {"deviceCount": 2, "failedCount": 2})


def test_a_job_is_cancelled_before_and_while_it_runs(world: World) -> None:
    world.hub.jobs.create("later", twin_job(jobId="later", startTime="2024-01-01T00:00:00Z"), NOON)
    assert world.hub.jobs.cancel("later", NOON)["status"] == "cancelled"
    answering(world, "n1")
    world.hub.jobs.create("j1", method_job(), NOON)
    run(world)
    world.hub.jobs.cancel("j1", NOON)
    assert ended(world) == ("cancelled", {"deviceCount": 2, "failedCount": 2})
    run(world, 10_000_000.0 - HISTORY_S)
    with pytest.raises(ServiceError):
        world.hub.jobs.get("later")
    assert world.hub.query("SELECT * FROM devices.jobs", None, 10, world.clock.now).rows == []


def test_a_job_over_modules(world: World) -> None:
    world.register("n1", "m1")
    world.hub.jobs.create("j1", twin_job(queryCondition="FROM devices.modules WHERE moduleId = 'm1'"), NOON)
    run(world)
    assert [(row["deviceId"], row["moduleId"]) for row in rows(world)] == [("n1", "m1")]
    assert world.hub.twin_document(IdentityId("n1", "m1"))["tags"] == {"done": True}


def test_calls_go_out_a_hundred_at_a_time(world: World) -> None:
    clients = []
    for number in range(CALLS_MAX + 20):
        world.register(f"d{number:03}")
        clients.append(answering(world, f"d{number:03}"))
    world.hub.jobs.create("j1", method_job(queryCondition="STARTSWITH(deviceId, 'd')"), NOON)
    run(world)
    assert ended(world)[1] == {"deviceCount": 120, "runningCount": 100, "pendingCount": 20}
    run(world, 5.0)
    run(world)
    assert ended(world)[1] == {"deviceCount": 120, "failedCount": 100, "runningCount": 20}


REFUSALS: dict[str, tuple[str, Any]] = {
    "a bad id": ("j_1", twin_job(jobId=None)),
    "another id": ("j2", twin_job()),
    "no body": ("j1", None),
    "no type": ("j1", twin_job(type=None)),
    "a type of another time": ("j1", twin_job(type="rebootDevice")),
    "no update": ("j1", twin_job(updateTwin=None)),
    "no method": ("j1", method_job(cloudToDeviceMethod={})),
    "no condition": ("j1", twin_job(queryCondition=None)),
    "a bad condition": ("j1", twin_job(queryCondition="tags.a == 1")),
    "a bad time": ("j1", twin_job(startTime="soon")),
    "a time that is no text": ("j1", twin_job(startTime=5)),
    "a bad limit": ("j1", twin_job(maxExecutionTimeInSeconds=-1)),
}


@pytest.mark.parametrize(("job_id", "body"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_job_is_refused(world: World, job_id: str, body: Any) -> None:
    with pytest.raises(ServiceError) as refused:
        world.hub.jobs.create(job_id, body, NOON)
    assert refused.value.fault.name == "ArgumentInvalid"
    assert world.hub.jobs.documents(None, None) == []


def test_ids_are_used_once_and_active_jobs_are_limited_by_the_tier(world: World) -> None:
    world.hub.jobs.active_max = 1
    world.hub.jobs.create("j1", twin_job(), NOON)
    for job_id, fault in (("j1", "JobAlreadyExists"), ("j2", "ThrottlingMaxActiveJobCountExceeded")):
        with pytest.raises(ServiceError) as refused:
            world.hub.jobs.create(job_id, twin_job(jobId=job_id), NOON)
        assert refused.value.fault.name == fault
    run(world)
    world.hub.jobs.create("j2", method_job(jobId="j2"), NOON)
    assert [job["jobId"] for job in world.hub.jobs.documents(None, None)] == ["j2", "j1"]
    assert [job["jobId"] for job in world.hub.jobs.documents("scheduleUpdateTwin", "completed")] == ["j1"]
    assert world.hub.jobs.documents("scheduleUpdateTwin", "running") == []
    with pytest.raises(ServiceError) as missing:
        world.hub.jobs.cancel("j3", NOON)
    assert (missing.value.fault.name, missing.value.status) == ("JobNotFound", 404)


def test_every_status_is_reached_and_left_by_the_table() -> None:
    reached = set(TRANSITIONS.values())
    assert reached == {"queued", "running", "completed", "failed", "cancelled"}
    assert {status for status, _ in TRANSITIONS} == {"scheduled", "queued", "running"}


def test_what_was_recorded_goes_on_where_it_ended(world: World) -> None:
    journal: dict[str, Any] = {}
    jobs = world.hub.jobs
    jobs._touch = lambda key: journal.__setitem__(key, json.loads(json.dumps(jobs.record(key))))
    for number in range(250):
        world.register(f"d{number:03}")
    jobs.create("j1", twin_job(queryCondition="*"), NOON)
    jobs.create("j2", twin_job(jobId="j2", startTime="2024-01-01T00:00:00Z"), NOON)
    jobs.advance(NOON, 100)
    before = jobs.documents(None, None)
    assert before[1]["deviceJobStatistics"]["pendingCount"] == 153
    restored = world.hub.jobs = Jobs(JobTargets(world.hub))
    for key in sorted(journal, reverse=True):
        restored.restore(key, journal[key])
    assert restored.documents(None, None) == before
    run(world)
    assert ended(world) == ("completed", {"deviceCount": 253, "succeededCount": 253})
    assert all(world.hub.twin(IdentityId(f"d{number:03}")).version == 3 for number in range(250))


def test_a_call_that_was_under_way_has_failed_after_a_restart(world: World) -> None:
    answering(world, "n1")
    answering(world, "n2")
    world.hub.jobs.create("j1", method_job(), NOON)
    run(world)
    assert ended(world) == ("running", {"deviceCount": 2, "runningCount": 2})
    keys = ["job/j1", "row/j1/n1", "row/j1/n2"]
    records = [(key, world.hub.jobs.record(key)) for key in keys]
    world.hub.jobs = Jobs(JobTargets(world.hub))
    for key, record in records:
        world.hub.jobs.restore(key, record)
    run(world)
    assert ended(world) == ("failed", {"deviceCount": 2, "failedCount": 2})
    assert {row["error"]["code"] for row in rows(world)} == {"JobCancelled"}
