"""Identities."""

import datetime
import json
from pathlib import Path

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, module_option, print_json, state_option
from simulators.hub_client import HubClient, SimulatorError

# The name under which the hub knows the authority of its state directory.
DEVICE_AUTHORITY = "slipway-sim-devices"


@click.group()
def device() -> None:
    """Create, show, list, disable and delete devices and modules."""


@device.command("create")
@click.argument("device_id")
@module_option
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag on the device's twin; repeatable.")
@click.option(
    "--x509",
    "certificate_directory",
    type=click.Path(path_type=Path, file_okay=False),
    is_flag=False,
    flag_value=".",
    help="Make a certificate and a key in DIR (default: here) instead of symmetric keys.",
)
@click.option("--ca", "is_issued", is_flag=True, help="With --x509: issued by an authority, not self-signed.")
@json_option
@state_option
def device_create(
    device_id: str,
    module_id: str,
    tags: tuple[str, ...],
    certificate_directory: Path | None,
    is_issued: bool,
    as_json: bool,
    directory: Path,
) -> None:
    """Register a device, with --module a module on it too, and print the connection string.

    With --x509 it prints the files with which the device proves itself.

    \b
    Example:
      slipway-sim device create camera-1 --module slipway --tag site=north
      slipway-sim device create camera-2 --x509 ./certs
    """
    values = _read_tags(tags)
    if is_issued and certificate_directory is None:
        raise SimulatorError("--ca says who issues a certificate: it needs --x509", exit_code=ExitCode.USAGE)
    client = HubClient(directory)
    if certificate_directory is not None:
        made = _create_with_certificate(client, directory, device_id, module_id, certificate_directory, is_issued)
    else:
        if not module_id or not client.exists(device_id):
            client.create(device_id)
        if module_id:
            client.create(device_id, module_id)
    if values:
        client.patch_twin(device_id, "", {"tags": values})
    if certificate_directory is not None:
        _show_certificate(made, as_json=as_json)
        return
    connection_string = client.connection_string(device_id, module_id)
    if as_json:
        print_json({"deviceId": device_id, "moduleId": module_id, "connectionString": connection_string})
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
        print_json(devices)
        return
    for entry in devices:
        modules = ", ".join(f"{module['moduleId']} ({module['connectionState']})" for module in entry["modules"])
        tags = " ".join(f"{key}={json.dumps(value)}" for key, value in entry["tags"].items())
        line = (entry["deviceId"], entry["status"], entry["connectionState"], modules or "no modules", tags)
        click.echo("  ".join(text for text in line if text))
    if not devices:
        click.echo("No devices. Make one with: slipway-sim device create ID", err=True)


@device.command("show")
@click.argument("device_id")
@module_option
@json_option
@state_option
def device_show(device_id: str, module_id: str, as_json: bool, directory: Path) -> None:
    """Show a device, or with --module that module; with --json the whole identity, keys too.

    \b
    Example:
      slipway-sim device show camera-1
    """
    client = HubClient(directory)
    identity = client.device(device_id, module_id)
    if as_json:
        print_json(identity)
        return
    lines = {
        "device": device_id,
        "module": module_id,
        "status": " ".join(filter(None, (identity.get("status"), identity.get("statusReason")))),
        "connection": f"{identity['connectionState']} since {_when(identity['connectionStateUpdatedTime'], 'ever')}",
        "last activity": _when(identity["lastActivityTime"], "never"),
        "authentication": identity["authentication"]["type"],
        "messages": f"{identity['cloudToDeviceMessageCount']} waiting",
        "modules": "" if module_id else ", ".join(found["moduleId"] for found in client.modules(device_id)) or "none",
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:15} {value}")


def _when(timestamp: str, otherwise: str) -> str:
    """The service writes the first day of all for what never was."""
    return otherwise if timestamp.startswith("0001-01-01") else timestamp


def _set_status(device_id: str, status: str, reason: str, directory: Path, *, as_json: bool) -> None:
    identity = HubClient(directory).set_status(device_id, status, reason)
    if as_json:
        print_json(identity)
        return
    click.echo(f"{device_id} is {identity['status']}.", err=True)


@device.command("disable")
@click.argument("device_id")
@click.option("--reason", default="", help="Kept with the device, for whoever wonders.")
@json_option
@state_option
def device_disable(device_id: str, reason: str, as_json: bool, directory: Path) -> None:
    """Keep a device out: it and its modules are cut off and refused until `device enable`.

    \b
    Example:
      slipway-sim device disable camera-1 --reason 'stolen'
    """
    _set_status(device_id, "disabled", reason, directory, as_json=as_json)


@device.command("enable")
@click.argument("device_id")
@json_option
@state_option
def device_enable(device_id: str, as_json: bool, directory: Path) -> None:
    """Let a device in again.

    \b
    Example:
      slipway-sim device enable camera-1
    """
    _set_status(device_id, "enabled", "", directory, as_json=as_json)


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


def _create_with_certificate(
    client: HubClient, directory: Path, device_id: str, module_id: str, certificate_directory: Path, is_issued: bool
) -> dict[str, str]:
    """Make key and certificate, and register the identity that they belong to; returns what to tell of it."""
    from simulators.iothub.server.device_certificates import (
        ensure_device_authority,
        make_device_certificate,
        sha256_thumbprint,
    )

    now = datetime.datetime.now(datetime.UTC)
    client_id = f"{device_id}/{module_id}" if module_id else device_id
    authority = ensure_device_authority(directory, now) if is_issued else None
    pair = make_device_certificate(client_id, now, authority)
    if module_id and not client.exists(device_id):
        client.create(device_id)
    if authority:
        client.trust_authority(DEVICE_AUTHORITY, authority.pem)
        client.create(device_id, module_id, {"type": "certificateAuthority"})
    else:
        thumbprint = sha256_thumbprint(pair)
        client.create(device_id, module_id, {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint}})
    certificate, key = pair.write(certificate_directory, client_id.replace("/", "-"))
    return {
        "deviceId": device_id,
        "moduleId": module_id,
        "hostName": client.note.host_name,
        "certificateFile": str(certificate.absolute()),
        "keyFile": str(key.absolute()),
        "thumbprint": sha256_thumbprint(pair),
    }


def _show_certificate(made: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    module = f"/{made['moduleId']}" if made["moduleId"] else ""
    click.echo(f"Created {made['deviceId']}{module}, which proves itself with a certificate.", err=True)
    click.echo(f"Host name: {made['hostName']}")
    click.echo(f"Certificate: {made['certificateFile']}")
    click.echo(f"Key: {made['keyFile']}")


def _read_tags(tags: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not equals or not key:
            raise SimulatorError(f"--tag {tag!r} is not KEY=VALUE", exit_code=ExitCode.USAGE)
        values[key] = value
    return values
