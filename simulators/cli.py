"""The command line `slipway-sim`: a hub in the foreground, and commands for people who work with it."""

import base64
import json
import logging
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.hub_client import HubClient, HubNote, SimulatorError

STATE_DEFAULT = Path.home() / ".local" / "share" / "slipway-sim"
EVENT_TEXT_MAX = 160
# The figures of the example models are taken over trials of this length.
TRIAL_WINDOW_READINGS = 20


class SimulatorGroup(click.Group):
    """Turns our errors into a sentence, a hint and an exit code by meaning."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except SimulatorError as err:
            if "--debug" in sys.argv:
                traceback.print_exc()
            click.echo(f"Error: {err.message}", err=True)
            if err.hint:
                click.echo(err.hint, err=True)
            raise SystemExit(int(err.exit_code)) from err


def state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SLIPWAY_SIM_STATE",
        default=STATE_DEFAULT,
        show_default="~/.local/share/slipway-sim",
        help="Directory of the hub.  [env: SLIPWAY_SIM_STATE]",
    )(command)


module_option = click.option("--module", "module_id", default="", help="A module on the device.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable fields.")


@click.group(cls=SimulatorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Print the stack trace of an error.")
@click.version_option(package_name="slipway", message="%(prog)s %(version)s")
def main(debug: bool) -> None:
    """An Azure IoT Hub on this machine: the vendor's SDKs connect to it unchanged."""


@main.command()
@state_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Loopback address to serve on.")
@click.option("--mqtt-port", type=click.IntRange(1, 65535), default=8883, help="The device SDK knows 8883 only.")
@click.option("--https-port", type=click.IntRange(1, 65535), help="Default: 443 where it may be bound, else 8443.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def hub(directory: Path, address: str, mqtt_port: int, https_port: int | None, log_level: str) -> None:
    """Serve a hub until Ctrl-C.

    \b
    Example:
      slipway-sim hub --state ./hub
    """
    from simulators.hub_process import serve

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    serve(directory, address, mqtt_port, https_port)


@main.command()
@state_option
def env(directory: Path) -> None:
    """Print the exports that make SDKs and Slipway use the running hub.

    \b
    Example:
      eval "$(slipway-sim env)"
    """
    note = HubNote.read(directory)
    values = {
        "IOTHUB_CONNECTION_STRING": note.service_connection_string,
        "SLIPWAY_CA_FILE": note.ca_file,
        "REQUESTS_CA_BUNDLE": note.ca_file,
        "SSL_CERT_FILE": note.ca_file,
        "SLIPWAY_TELEMETRY_URL": note.telemetry_url,
        "SLIPWAY_SIM_STATE": str(directory.absolute()),
    }
    for name, value in values.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.group()
def device() -> None:
    """Create, list and delete devices and modules."""


@device.command("create")
@click.argument("device_id")
@module_option
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag on the device's twin; repeatable.")
@json_option
@state_option
def device_create(device_id: str, module_id: str, tags: tuple[str, ...], as_json: bool, directory: Path) -> None:
    """Register a device, with --module a module on it too, and print the connection string.

    \b
    Example:
      slipway-sim device create camera-1 --module slipway --tag site=north
    """
    values = _read_tags(tags)
    client = HubClient(directory)
    if not module_id or not client.exists(device_id):
        client.create(device_id)
    if module_id:
        client.create(device_id, module_id)
    if values:
        client.patch_twin(device_id, "", {"tags": values})
    connection_string = client.connection_string(device_id, module_id)
    if as_json:
        _print_json({"deviceId": device_id, "moduleId": module_id, "connectionString": connection_string})
        return
    click.echo(f"Created {device_id}{'/' + module_id if module_id else ''}.", err=True)
    click.echo(connection_string)


@device.command("list")
@json_option
@state_option
def device_list(as_json: bool, directory: Path) -> None:
    """List devices with their modules, tags and connections.

    \b
    Example:
      slipway-sim device list --json
    """
    client = HubClient(directory)
    devices = [
        {
            "deviceId": twin["deviceId"],
            "status": twin["status"],
            "connectionState": twin["connectionState"],
            "tags": twin.get("tags", {}),
            "modules": [],
        }
        for twin in client.query("SELECT * FROM devices")
    ]
    by_id = {entry["deviceId"]: entry["modules"] for entry in devices}
    for twin in client.query("SELECT * FROM devices.modules"):
        by_id[twin["deviceId"]].append({"moduleId": twin["moduleId"], "connectionState": twin["connectionState"]})
    if as_json:
        _print_json(devices)
        return
    for entry in devices:
        modules = ", ".join(f"{module['moduleId']} ({module['connectionState']})" for module in entry["modules"])
        tags = " ".join(f"{key}={json.dumps(value)}" for key, value in entry["tags"].items())
        line = (entry["deviceId"], entry["status"], entry["connectionState"], modules or "no modules", tags)
        click.echo("  ".join(text for text in line if text))
    if not devices:
        click.echo("No devices. Make one with: slipway-sim device create ID", err=True)


@device.command("delete")
@click.argument("device_id")
@module_option
@state_option
def device_delete(device_id: str, module_id: str, directory: Path) -> None:
    """Delete a device and its modules, or with --module that module only.

    \b
    Example:
      slipway-sim device delete camera-1
    """
    HubClient(directory).delete(device_id, module_id)
    click.echo(f"Deleted {device_id}{'/' + module_id if module_id else ''}.", err=True)


@device.command("connection-string")
@click.argument("device_id")
@module_option
@state_option
def device_connection_string(device_id: str, module_id: str, directory: Path) -> None:
    """Print the connection string of a device or module.

    \b
    Example:
      slipway-sim device connection-string camera-1 --module slipway
    """
    click.echo(HubClient(directory).connection_string(device_id, module_id))


@main.group()
def twin() -> None:
    """Show and change twins."""


@twin.command("show")
@click.argument("device_id")
@module_option
@json_option
@state_option
def twin_show(device_id: str, module_id: str, as_json: bool, directory: Path) -> None:  # noqa: ARG001
    """Print a twin as JSON.

    \b
    Example:
      slipway-sim twin show camera-1 --module slipway --json
    """
    _print_json(HubClient(directory).twin(device_id, module_id))


@twin.command("set")
@click.argument("device_id")
@click.argument("patch")
@module_option
@json_option
@state_option
def twin_set(device_id: str, patch: str, module_id: str, as_json: bool, directory: Path) -> None:  # noqa: ARG001
    """Merge a JSON patch into a twin and print the twin that results; null deletes.

    \b
    Example:
      slipway-sim twin set camera-1 '{"tags": {"site": "north"}}'
    """
    change = _read_json(patch, "the patch")
    if not isinstance(change, dict) or not {"tags", "properties"} & change.keys():
        raise SimulatorError(
            "the patch has neither tags nor properties",
            hint="""Write for example '{"tags": {...}}' or '{"properties": {"desired": {...}}}'.""",
            exit_code=ExitCode.USAGE,
        )
    _print_json(HubClient(directory).patch_twin(device_id, module_id, change))


@main.command()
@click.argument("device_id")
@click.argument("name")
@module_option
@click.option("--payload", default="null", help="JSON for the device.")
@click.option("--timeout", "timeout_s", type=click.IntRange(5, 300), default=30, help="Seconds to wait for an answer.")
@state_option
def method(device_id: str, name: str, module_id: str, payload: str, timeout_s: int, directory: Path) -> None:
    """Call a direct method and print the device's answer as JSON.

    \b
    Example:
      slipway-sim method camera-1 ping --module slipway
    """
    value = _read_json(payload, "the payload")
    _print_json(HubClient(directory).invoke(device_id, module_id, name, value, timeout_s))


@main.command()
@click.argument("text", metavar="QUERY")
@json_option
@state_option
def query(text: str, as_json: bool, directory: Path) -> None:
    """Run a query over twins; with --json as one array, else a row a line.

    \b
    Example:
      slipway-sim query "SELECT deviceId FROM devices WHERE tags.site = 'north'"
    """
    rows = HubClient(directory).query(text)
    if as_json:
        _print_json(list(rows))
        return
    for row in rows:
        click.echo(json.dumps(row, ensure_ascii=False))


@main.command()
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--from", "after", type=click.IntRange(min=0), default=0, help="Only events after this sequence number.")
@json_option
@state_option
def events(follow: bool, after: int, as_json: bool, directory: Path) -> None:
    """Print what devices sent, oldest first.

    \b
    Example:
      slipway-sim events --follow
    """
    client = HubClient(directory)
    try:
        for event in client.events(after, is_following=follow):
            click.echo(json.dumps(event) if as_json else _event_line(event))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return
    if follow:
        raise SimulatorError("the hub stopped", exit_code=ExitCode.HUB_UNREACHABLE)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--device", "device_ids", multiple=True, metavar="ID", help="A device to deal digits to; repeatable.")
def digits(directory: Path, device_ids: tuple[str, ...]) -> None:
    """Write example models to DIRECTORY: three digit classifiers, and what each device's camera sees.

    Version 2 is better than version 1; version 3 was trained on other pixel values and fails on live input. Trained
    here on scikit-learn's handwritten digits.

    \b
    Example:
      slipway-sim digits ./digits --device camera-1 --device camera-2
    """
    from simulators.demo.materials import write_materials

    devices = device_ids or ("camera-1",)
    made = write_materials(directory, devices, TRIAL_WINDOW_READINGS)
    for files in made.models:
        click.echo(files.onnx.parent)
    for path in made.live_files.values():
        click.echo(path)


def _event_line(event: dict[str, Any]) -> str:
    source = "/".join(filter(None, (event["deviceId"], event["moduleId"])))
    body = base64.b64decode(event["body"])
    text = body.decode(errors="backslashreplace")
    if len(text) > EVENT_TEXT_MAX:
        text = f"{text[:EVENT_TEXT_MAX]}… ({len(body)} bytes)"
    properties = f"  {event['properties']}" if event["properties"] else ""
    return f"{event['sequence']}  {event['enqueuedTime']}  {source}  {text}{properties}"


def _read_tags(tags: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not equals or not key:
            raise SimulatorError(f"--tag {tag!r} is not KEY=VALUE", exit_code=ExitCode.USAGE)
        values[key] = value
    return values


def _read_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as err:
        raise SimulatorError(
            f"{what} is not JSON: {err}", hint="Put it in single quotes for the shell.", exit_code=ExitCode.USAGE
        ) from err


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
