"""What edgeAgent refuses of its desired properties, and what it quietly ignores. Pure.

Source: Azure/iotedge at 55353a649e (DockerConfig, DockerModule, DeploymentConfig, EdgeAgentConnection). A refusal
refuses the whole document: status 400, or 412 for a schema version that this runtime does not know and 417 for an empty
one.
"""

import re
from collections.abc import Mapping
from typing import Any

from cloud_registry.core.deployment.container_options import HOST_OPTIONS, misshapen, read_container_options
from cloud_registry.core.deployment.findings import Findings
from cloud_registry.core.deployment.image_reference import has_moving_tag, refusal_of_image
from cloud_registry.core.deployment.json_text import Path
from manifests.deployment import CREATE_OPTIONS_PIECES_TOOLS_MAX
from manifests.errors import ManifestError

STARTUP_ORDER_MAX = 2**32 - 1
# The runtime's own list has one word more than the schema's.
RESTART_POLICIES = ("never", "on-failure", "on-unhealthy", "always", "unknown")
STATUSES = ("running", "stopped")
PULL_POLICIES = ("on-create", "never")
SYSTEM_MODULES = ("edgeAgent", "edgeHub")

_VERSION = re.compile(r"\d+(\.\d+){1,3}")
_MODULE_KEYS = (
    *("type", "status", "restartPolicy", "version", "imagePullPolicy", "startupOrder", "env", "settings"),
    "configuration",
)


def read_version(text: Any) -> tuple[int, ...] | None:
    """A version as .NET reads one: two to four numbers, also of a JSON number such as 1.1. None for what is none."""
    if isinstance(text, float):
        text = f"{text:g}"
    if not isinstance(text, str) or _VERSION.fullmatch(text.strip()) is None:
        return None
    return tuple(map(int, text.strip().split(".")))


def field_of(entry: Mapping[str, Any], name: str) -> Any:
    """A member as the runtime finds it: by its name, else without regard to case."""
    if name in entry:
        return entry[name]
    return next((value for key, value in entry.items() if key.lower() == name.lower()), None)


def whole_number(value: Any) -> int | None:
    """A number as Json.NET reads one into a whole type: also from text. None for what is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,20}\s*", value, re.ASCII):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def check_agent(section: Any, place: Path, found: Findings) -> None:
    """Look at the whole desired section of edgeAgent."""
    if not isinstance(section, Mapping):
        found.refuse(place, "the desired properties of $edgeAgent are not an object")
        return
    if not section:
        found.refuse(
            place, "the desired properties of $edgeAgent are empty", "Name the runtime and its modules.", code=417
        )
        return
    _check_version(section, place, found)
    _check_runtime(field_of(section, "runtime"), (*place, "runtime"), found)
    for group in ("systemModules", "modules"):
        entries = field_of(section, group)
        if entries is None:
            if group == "systemModules":
                found.refuse(place, "there is no systemModules", 'Add "systemModules" with edgeAgent and edgeHub.')
            continue
        if not isinstance(entries, Mapping):
            found.refuse((*place, group), f"{group} is not an object")
            continue
        for name, entry in entries.items():
            if entry is not None:
                check_module(entry, name, (*place, group, name), found, is_system=group == "systemModules")


def _check_version(section: Mapping[str, Any], place: Path, found: Findings) -> None:
    # The one name that the runtime looks up by the letter.
    given = section.get("schemaVersion")
    version = read_version(given)
    here = (*place, "schemaVersion") if "schemaVersion" in section else place
    if version is None:
        reason = "there is no schemaVersion" if given is None else f"schemaVersion {given!r} is not a version"
        found.refuse(here, reason, 'Write "1.1".', code=412)
    elif version[0] != 1 or version > (1, 1, 0):
        found.refuse(here, f"edgeAgent knows schema versions 1.0 and 1.1, not {given}",
                     'Write "1.1".', code=412)  # fmt: skip


def _check_runtime(runtime: Any, place: Path, found: Findings) -> None:
    if not isinstance(runtime, Mapping):
        found.refuse(
            place[:-1] if runtime is None else place, "there is no runtime", 'Write "runtime": {"type": "docker"}.'
        )
        return
    if field_of(runtime, "type") != "docker":
        found.refuse((*place, "type"), "the runtime's type is not docker", 'Write "type": "docker".')
    settings = field_of(runtime, "settings")
    if isinstance(settings, Mapping) and field_of(settings, "minDockerVersion") is None:
        found.warn((*place, "settings"), "without minDockerVersion some releases of edgeAgent refuse the settings",
                   'Add "minDockerVersion": "v1.25".')  # fmt: skip
    credentials = field_of(settings, "registryCredentials") if isinstance(settings, Mapping) else None
    if credentials is None:
        return
    here = (*place, "settings", "registryCredentials")
    if not isinstance(credentials, Mapping):
        found.refuse(here, "registryCredentials is not an object")
        return
    for name, entry in credentials.items():
        if entry is not None:
            check_credentials(entry, (*here, name), found)


def check_credentials(entry: Any, place: Path, found: Findings) -> None:
    """Look at the credentials of one registry."""
    if not isinstance(entry, Mapping):
        found.refuse(place, "the credentials are not an object", "Give username, password and address.")
        return
    for key in ("username", "password", "address"):
        value = field_of(entry, key)
        if isinstance(value, Mapping | list) or not str("" if value is None else value).strip():
            where = (*place, key) if key in entry else place
            found.refuse(where, f"the {key} is missing or empty", "Give all of username, password and address.")


def check_module(entry: Any, name: str, place: Path, found: Findings, *, is_system: bool = False) -> None:
    """Look at one module that edgeAgent is to run."""
    if not isinstance(entry, Mapping):
        found.refuse(place, "the module is not an object")
        return
    if field_of(entry, "type") != "docker":
        found.refuse(
            (*place, "type") if "type" in entry else place, "the type is not docker", 'Write "type": "docker".'
        )
    is_agent = is_system and name == "edgeAgent"
    _check_word(entry, "status", STATUSES, place, found, is_needed=not is_agent)
    _check_word(entry, "restartPolicy", RESTART_POLICIES, place, found)
    _check_word(entry, "imagePullPolicy", PULL_POLICIES, place, found)
    _check_startup_order(field_of(entry, "startupOrder"), (*place, "startupOrder"), found)
    _check_environment(field_of(entry, "env"), (*place, "env"), found)
    for key in entry:
        if key.lower() not in {known.lower() for known in _MODULE_KEYS}:
            found.warn((*place, key), f"edgeAgent ignores {key!r}", "Remove it.")
    settings = field_of(entry, "settings")
    if not isinstance(settings, Mapping):
        found.refuse(
            place if settings is None else (*place, "settings"), "there are no settings", "Name the image there."
        )
        return
    _check_settings(settings, (*place, "settings"), found)


def _check_word(
    entry: Mapping[str, Any],
    name: str,
    words: tuple[str, ...],
    place: Path,
    found: Findings,
    *,
    is_needed: bool = False,
) -> None:
    value = field_of(entry, name)
    if value is None:
        if is_needed:
            found.refuse(place, f"there is no {name}", f"Write one of {', '.join(words)}.")
        return
    if not isinstance(value, str) or value.lower() not in words:
        nearest = [word for word in words if isinstance(value, str) and value.lower().startswith(word)]
        offered = nearest[0] if nearest else f"one of {', '.join(word for word in words if word != 'unknown')}"
        found.refuse((*place, name), f"{name} is {value!r}", f"Write {offered}.")


def _check_startup_order(order: Any, place: Path, found: Findings) -> None:
    if order is None:
        return
    number = whole_number(order)
    if number is None or not 0 <= number <= STARTUP_ORDER_MAX:
        found.refuse(place, f"startupOrder is {order!r}", f"Write a whole number from 0 to {STARTUP_ORDER_MAX}.")


def _check_environment(environment: Any, place: Path, found: Findings) -> None:
    if environment is None:
        return
    if not isinstance(environment, Mapping):
        found.refuse(place, "env is not an object", 'Write {"NAME": {"value": "…"}}.')
        return
    for name, entry in environment.items():
        if entry is None:
            continue
        if not isinstance(entry, Mapping):
            found.refuse((*place, name), f"{name} is not an object", 'Write {"value": "…"}.')
        elif isinstance(field_of(entry, "value"), Mapping | list):
            found.refuse((*place, name, "value"), "the value is neither text, number nor boolean", "Write it as text.")
        elif field_of(entry, "value") is None:
            found.warn((*place, name), f"{name} has no value and will be empty", 'Write {"value": "…"}.')


def _check_settings(settings: Mapping[str, Any], place: Path, found: Findings) -> None:
    image = field_of(settings, "image")
    if not isinstance(image, str):
        found.refuse(place if image is None else (*place, "image"), "there is no image", "Write [registry/]name:tag.")
    else:
        refusal = refusal_of_image(image)
        if refusal is not None:
            found.refuse((*place, "image"), refusal.reason, refusal.mend)
        elif has_moving_tag(image):
            found.warn((*place, "image"), f"{image!r} moves: a device that has it never looks again",
                       "Name a version or a digest.")  # fmt: skip
    for key in settings:
        if key == "imagePullPolicy":
            found.warn((*place, key), "imagePullPolicy in settings does nothing", "Put it on the module.")
        elif key.lower() not in ("image", "digest") and "createoptions" not in key.lower():
            found.warn((*place, key), f"edgeAgent ignores {key!r}", "Remove it.")
    check_create_options(settings, place, found)


def check_create_options(settings: Mapping[str, Any], place: Path, found: Findings) -> None:
    """Join the pieces as the runtime does, and look at what Docker will be asked."""
    pieces = {key: value for key, value in settings.items() if "createoptions" in key.lower()}
    here = (*place, next(iter(pieces), "createOptions"))
    try:
        read = read_container_options(settings)
    except ManifestError as err:
        found.refuse(here, str(err), "Write the options anew, cut into pieces of 512 characters without a gap.")
        return
    for reason in misshapen(read.options):
        found.refuse(here, reason, "Write the options as Docker's API has them.")
    for key, value in pieces.items():
        if isinstance(value, Mapping):
            found.warn((*place, key), f"{key} is an object, which the runtime takes and deployment tools refuse",
                       "Write the options as one string of JSON.")  # fmt: skip
    if not read.is_strict:
        found.warn(here, "the options are JSON only to the runtime's lenient reader", "Write them in double quotes.")
    if read.piece_count > CREATE_OPTIONS_PIECES_TOOLS_MAX:
        told = f"createOptions has {read.piece_count} pieces; some tools stop at {CREATE_OPTIONS_PIECES_TOOLS_MAX}"
        found.warn(here, told)
    for key in HOST_OPTIONS:
        if key in read.options:
            found.warn(
                here, f"{key} stands outside HostConfig, where Docker does not look", f"Move {key} into HostConfig."
            )
