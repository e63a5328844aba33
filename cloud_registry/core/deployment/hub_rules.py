"""What edgeHub refuses of its desired properties. Pure.

Source: Azure/iotedge at 55353a649e, EdgeHubConfigParser. One bad route refuses the whole new configuration: status 400,
and the former routes stay in force.
"""

from collections.abc import Collection, Mapping
from typing import Any

from cloud_registry.core.deployment.agent_rules import field_of, read_version, whole_number
from cloud_registry.core.deployment.findings import Findings
from cloud_registry.core.deployment.json_text import Path
from cloud_registry.core.deployment.routes import RouteError, read_route
from manifests.deployment import ROUTE_PRIORITY_MAX

TIME_TO_LIVE_MAX = 2**32 - 1
STORE_TIME_TO_LIVE_MAX = 2**31 - 1


def check_hub(section: Any, place: Path, modules: Collection[str], found: Findings) -> None:
    """Look at the whole desired section of edgeHub; `modules` are those that the deployment runs."""
    if not isinstance(section, Mapping):
        found.refuse(place, "the desired properties of $edgeHub are not an object")
        return
    given = section.get("schemaVersion")
    version = read_version(given)
    here = (*place, "schemaVersion") if "schemaVersion" in section else place
    if version is None or version[0] != 1 or version[1] > 3:
        reason = "there is no schemaVersion" if given is None else f"edgeHub knows versions 1.0 to 1.3, not {given!r}"
        found.refuse(here, reason, 'Write "1.1".')
        version = (1, 1)
    routes = field_of(section, "routes")
    if routes is None and version < (1, 1):
        found.warn(place, "there are no routes, so no message goes anywhere", 'Write "routes": {…}.')
    elif not isinstance(routes, Mapping):
        found.refuse(place if routes is None else (*place, "routes"), "there are no routes", 'Write "routes": {}.')
    else:
        for name, route in routes.items():
            if version < (1, 1) and isinstance(route, str) and not route.strip():
                found.warn((*place, "routes", name), "an empty route is skipped in 1.0 and refused from 1.1 on",
                           "Remove it.")  # fmt: skip
            elif route is not None:
                check_route(route, (*place, "routes", name), modules, found, has_objects=version >= (1, 1))
    _check_storage(field_of(section, "storeAndForwardConfiguration"), place, found, is_needed=version >= (1, 1))
    if field_of(section, "mqttBroker") is not None:
        found.warn((*place, "mqttBroker"), "the MQTT broker was taken out of edgeHub in 1.3", "Remove mqttBroker.")


def _check_storage(storage: Any, place: Path, found: Findings, *, is_needed: bool) -> None:
    name = "storeAndForwardConfiguration"
    if storage is None:
        if is_needed:
            found.refuse(place, f"there is no {name}, which edgeHub needs from 1.1 on",
                         f'Write "{name}": {{"timeToLiveSecs": 7200}}.')  # fmt: skip
        return
    if not isinstance(storage, Mapping):
        found.refuse((*place, name), f"{name} is not an object")
        return
    seconds = field_of(storage, "timeToLiveSecs")
    number = whole_number(seconds)
    if seconds is not None and (number is None or abs(number) > STORE_TIME_TO_LIVE_MAX):
        found.refuse(
            (*place, name, "timeToLiveSecs"),
            f"timeToLiveSecs is {seconds!r}",
            f"Write a whole number of seconds up to {STORE_TIME_TO_LIVE_MAX}; -1 keeps for ever.",
        )


def check_route(
    route: Any, place: Path, modules: Collection[str], found: Findings, *, has_objects: bool = True
) -> None:
    """Look at one route, a string or an object."""
    if isinstance(route, Mapping):
        if not has_objects:
            found.refuse(place, "schema version 1.0 has routes as strings only", 'Write "schemaVersion": "1.1".')
            return
        _check_number(field_of(route, "priority"), ROUTE_PRIORITY_MAX, (*place, "priority"), found)
        _check_number(field_of(route, "timeToLiveSecs"), TIME_TO_LIVE_MAX, (*place, "timeToLiveSecs"), found)
        text, here = field_of(route, "route"), (*place, "route") if "route" in route else place
    else:
        text, here = route, place
    if not isinstance(text, str):
        found.refuse(here, "the route is not text", "Write FROM … INTO ….")
        return
    try:
        plan = read_route(text)
    except RouteError as err:
        found.refuse(here, err.reason, err.mend)
        return
    if plan.has_star_inside:
        found.warn(here, "a * in the middle is taken by the letter and matches nothing", "Keep * for the end.")
    for module in (plan.source_module, plan.module):
        if module is not None and modules and module.lower() not in {name.lower() for name in modules}:
            found.warn(here, f"the deployment runs no module {module!r}")


def _check_number(value: Any, most: int, place: Path, found: Findings) -> None:
    if value is None:
        return
    number = whole_number(value)
    if number is None or not 0 <= number <= most:
        found.refuse(place, f"{place[-1]} is {value!r}", f"Write a whole number from 0 to {most}.")
