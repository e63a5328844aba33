"""Topics and property bags, as the device SDK spells them."""

import pytest

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.topics import (
    Feature,
    Login,
    MethodAnswer,
    Telemetry,
    TwinGet,
    TwinPatch,
    desired_patch_topic,
    feature_of,
    format_properties,
    method_topic,
    parse_login,
    parse_properties,
    parse_request,
    twin_response_topic,
)

LOGINS = {
    "hub/d1/?api-version=2019-10-01&DeviceClientType=py%2F2.14": Login(
        "hub", "d1", "", {"api-version": "2019-10-01", "DeviceClientType": "py/2.14"}
    ),
    "hub/d1/m1/?api-version=2020-09-30&model-id=dtmi%3Aa%3B1": Login(
        "hub", "d1", "m1", {"api-version": "2020-09-30", "model-id": "dtmi:a;1"}
    ),
    "hub/d1/api-version=2016-11-14": Login("hub", "d1", "", {"api-version": "2016-11-14"}),
    "hub/d1": Login("hub", "d1", ""),
}


@pytest.mark.parametrize(("username", "login"), LOGINS.items())
def test_a_user_name_is_taken_apart(username: str, login: Login) -> None:
    assert parse_login(username) == login


@pytest.mark.parametrize("username", ["", "hub", "hub/", "/d1", "hub/a/b/c/?api-version=1"])
def test_what_is_no_user_name(username: str) -> None:
    with pytest.raises(ProtocolError, match="user name"):
        parse_login(username)


REQUESTS = {
    "devices/d1/messages/events/": Telemetry("d1", "", {}, {}),
    "devices/d1/messages/events": Telemetry("d1", "", {}, {}),
    "devices/d1/modules/m1/messages/events/": Telemetry("d1", "m1", {}, {}),
    "devices/d1/messages/events/%24.mid=a%2Fb%20c&%24.ct=text%2Fplain&%24.ce=utf-8&k%20y=v%26%3D1%2F%C3%A9": Telemetry(
        "d1",
        "",
        {"messageId": "a/b c", "contentType": "text/plain", "contentEncoding": "utf-8"},
        {"k y": "v&=1/é"},
    ),
    "devices/d1/messages/events/$.mid=1&path=a/b/c": Telemetry("d1", "", {"messageId": "1"}, {"path": "a/b/c"}),
    "devices/d1/messages/events/flag&empty=": Telemetry("d1", "", {}, {"flag": "", "empty": ""}),
    "$iothub/twin/GET/?$rid=7b9d": TwinGet("7b9d"),
    "$iothub/twin/PATCH/properties/reported/?$rid=a%2Fb": TwinPatch("a/b"),
    "$iothub/methods/res/200/?$rid=1": MethodAnswer(200, "1"),
    "$iothub/methods/res/-5/?$rid=1": MethodAnswer(-5, "1"),
}


@pytest.mark.parametrize(("topic", "request_"), REQUESTS.items())
def test_a_topic_is_understood(topic: str, request_: object) -> None:
    assert parse_request(topic) == request_


@pytest.mark.parametrize(
    "topic",
    [
        "a",
        "devices/d1/messages/other/",
        "devices/d1/modules/m1/messages",
        "$iothub/twin/GET/",
        "$iothub/twin/GET/?rid=1",
        "$iothub/twin/DELETE/?$rid=1",
        "$iothub/methods/res/ok/?$rid=1",
        "$iothub/methods/res/²/?$rid=1",
        "$iothub/methods/POST/x/?$rid=1",
    ],
)
def test_a_topic_that_is_none_of_the_hubs_is_refused(topic: str) -> None:
    with pytest.raises(ProtocolError):
        parse_request(topic)


@pytest.mark.parametrize(
    ("topic_filter", "device", "module"),
    [
        ("$iothub/methods/POST/#", Feature.METHODS, Feature.METHODS),
        ("$iothub/twin/res/#", Feature.TWIN_RESPONSES, Feature.TWIN_RESPONSES),
        ("$iothub/twin/PATCH/properties/desired/#", Feature.DESIRED_PATCHES, Feature.DESIRED_PATCHES),
        ("devices/d1/messages/devicebound/#", Feature.CLOUD_TO_DEVICE, None),
        ("devices/d1/modules/m1/inputs/#", None, Feature.MODULE_INPUTS),
        ("devices/d2/messages/devicebound/#", None, None),
        ("#", None, None),
        ("$iothub/#", None, None),
    ],
)
def test_which_filters_a_device_and_a_module_may_subscribe_to(
    topic_filter: str, device: Feature | None, module: Feature | None
) -> None:
    assert (feature_of(topic_filter, "d1", ""), feature_of(topic_filter, "d1", "m1")) == (device, module)


def test_topics_to_the_device() -> None:
    assert method_topic("do it/now", "id 1") == "$iothub/methods/POST/do%20it%2Fnow/?$rid=id%201"
    assert twin_response_topic(204, "7", 3) == "$iothub/twin/res/204/?$rid=7&$version=3"
    assert twin_response_topic(200, "7") == "$iothub/twin/res/200/?$rid=7"
    assert desired_patch_topic(9) == "$iothub/twin/PATCH/properties/desired/?$version=9"


def test_a_property_bag_survives_whatever_its_keys_and_values_hold() -> None:
    properties = {"a/b": "c=d&e", "$.x": "%24 +", "é": "", "": "x"}
    assert parse_properties(format_properties(properties)) == properties
