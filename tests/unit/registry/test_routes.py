"""edgeHub's routes: what parses, what it means, and what a slip is told."""

import json
from pathlib import Path

import pytest

from cloud_registry.core.deployment.routes import RouteError, RoutePlan, read_route

SHARED = Path(__file__).parents[4] / "shared" / "data" / "manifests" / "routes.json"


def test_every_route_of_the_runtimes_own_tests_is_judged_alike():
    if not SHARED.is_file():
        pytest.skip("the runtime's routes are kept beside the repository, in shared/data/manifests")
    cases = json.loads(SHARED.read_bytes())
    for text in cases["valid"]:
        read_route(text)
    for text in cases["invalid"]:
        with pytest.raises(RouteError):
            read_route(text)
    assert len(cases["valid"]) + len(cases["invalid"]) > 20


CONDITIONS = {
    "NOT IS_DEFINED($connectionModuleId)": True,
    '$connectionDeviceId = "leaf"': True,
    "{$contentType} = 'a' AND NOT (x <> 2 OR y != -3)": True,
    "$body.weather.readings[0].temperature > 20 ?? \"x\" = 'y'": True,
    "as_number(temperature) * 2 % 3 + 1 >= 0x1F": True,
    "a || 'b' = concat(a, 'b')": True,
    "twin_change_includes(properties.reported.battery)": True,
    "alert = null OR alert = undefined": True,
    "a == 1": False,
    "(a = 1": False,
    "a = 'x": False,
    "nonsense(a) = 1": False,
    "message-type = 'a\\'b' AND größe > .5": True,
    "a = 'x\\n'": False,
    "a =": False,
    "TRUE AND FALSE x": False,
}


@pytest.mark.parametrize(("condition", "is_taken"), CONDITIONS.items())
def test_conditions_are_those_of_the_hubs_routing(condition: str, is_taken: bool):
    text = f"FROM /messages/* WHERE {condition} INTO $upstream"
    if is_taken:
        assert read_route(text).is_conditional
    else:
        with pytest.raises(RouteError):
            read_route(text)


def test_a_route_says_from_where_to_whom():
    text = 'select * from /messages/modules/cam/outputs/* into brokeredendpoint("/modules/scorer/inputs/frames")'
    assert read_route(text) == RoutePlan("/messages/modules/cam/outputs/*", "scorer", "frames")
    assert read_route(text).source_module == "cam"
    assert read_route("FROM /messages/* INTO $upstream").source_module is None


SOURCES = {
    "/messages/modules/cam-1.2/outputs/%o%": True,
    "/messages*": True,
    " / messages / * ": True,
    "/messages/modules/<FROM_MODULE_NAME>/outputs/*": False,
    "/messages/modules/a@b": False,
    "/messages/modules/1/outputs/a": False,
    "/messages/modules/From/outputs/a": False,
    "/messages/modules/fromage/outputs/1a": True,
    "/messages//a": False,
    "messages": False,
}


@pytest.mark.parametrize(("source", "is_taken"), SOURCES.items())
def test_a_source_has_the_names_that_the_runtimes_lexer_knows(source: str, is_taken: bool):
    if is_taken:
        assert read_route(f"FROM {source} INTO $upstream").source == source.replace(" ", "")
    else:
        with pytest.raises(RouteError):
            read_route(f"FROM {source} INTO $upstream")


# A source, a place where a message comes from, and whether the route takes it.
MATCHES = [
    ("/messages/*", "/messages/modules/cam/outputs/a", True),
    ("/messages/modules/cam/*", "/messages/modules/cam/outputs/a", True),
    ("/messages/modules/CAM/*", "/messages/modules/cam/outputs/a", True),
    ("/messages/modules/ca", "/messages/modules/cam/outputs/a", False),
    ("/messages/modules/cam", "/messages/modules/cam/outputs/a", True),
    ("/messages/modules/*/outputs/a", "/messages/modules/cam/outputs/a", False),
    ("/*", "/twinChangeNotifications", True),
]


@pytest.mark.parametrize(("source", "message", "is_taken"), MATCHES)
def test_a_source_is_a_prefix_up_to_a_slash(source: str, message: str, is_taken: bool):
    assert read_route(f"FROM {source} INTO $upstream").takes(message) == is_taken


SLIPS = {
    "FORM /messages/* INTO $upstream": "Begin with FROM",
    "FROM /messages/* INTO upstream": "Write INTO $upstream",
    "FROM /messages/* WHERE a == 1 INTO $upstream": "Compare with =",
    'FROM /messages/* INTO "/modules/a/inputs/b"': "BrokeredEndpoint",
    "  ": "or remove it",
}


@pytest.mark.parametrize("text", SLIPS)
def test_a_usual_slip_is_told_with_its_mend(text: str):
    with pytest.raises(RouteError) as refused:
        read_route(text)
    assert SLIPS[text] in refused.value.mend


@pytest.mark.parametrize("text", ["(" * 5000, "FROM /a WHERE " + "NOT " * 500 + "x INTO $upstream", "x" * 9000])
def test_what_nests_without_end_is_refused_in_time(text: str):
    with pytest.raises(RouteError):
        read_route(text)
