"""The provisioning service of the hub: enrollments, groups and what came of them."""

import json
from pathlib import Path
from typing import Any

import click

from manifests.exit_codes import ExitCode
from simulators.cli.options import json_option, print_json, read_json, state_option
from simulators.hub_client import ProvisioningClient, SimulatorError


@click.group()
def dps() -> None:
    """Provisioning: let devices find their hub by enrollment."""


@dps.command("show")
@json_option
@state_option
def dps_show(as_json: bool, directory: Path) -> None:
    """Print the host, the id scope and the service connection string.

    \b
    Example:
      slipway-sim dps show
    """
    note = ProvisioningClient(directory).note
    shown = {
        "host": note.host_name,
        "idScope": note.id_scope,
        "connectionString": note.provisioning_connection_string,
    }
    if as_json:
        print_json(shown)
        return
    for name, value in (("Host", "host"), ("Id scope", "idScope"), ("Connection string", "connectionString")):
        click.echo(f"{name}: {shown[value]}")


@dps.group("enrollment")
def enrollment() -> None:
    """Enrollments of single devices."""


@dps.group("group")
def group() -> None:
    """Enrollment groups: many devices by one key or one authority."""


@dps.group("registration")
def registration() -> None:
    """What came of devices that registered."""


def enrollment_options(command: Any) -> Any:
    """The options that an enrollment and a group share."""
    for option in (
        click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag of the first twin; repeatable."),
        click.option("--desired", metavar="JSON", help="Desired properties of the first twin."),
        click.option("--edge", "is_edge", is_flag=True, help="The devices are IoT Edge devices."),
        click.option("--disabled", "is_disabled", is_flag=True, help="Let nobody in by it."),
        click.option(
            "--reprovision",
            type=click.Choice(["migrate", "reset", "never"]),
            default="migrate",
            show_default=True,
            help="What becomes of the twin of a device that registers again.",
        ),
        click.option(
            "--certificate",
            "certificate_file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="PEM: the device's certificate, or for a group that of the authority.  [default: symmetric keys]",
        ),
    ):
        command = option(command)
    return command


@enrollment.command("create")
@click.argument("registration_id")
@click.option("--device-id", help="The device id on the hub.  [default: the registration id]")
@enrollment_options
@json_option
@state_option
def enrollment_create(
    registration_id: str, device_id: str | None, as_json: bool, directory: Path, **settings: Any
) -> None:
    """Enroll one device.

    \b
    Example:
      slipway-sim dps enrollment create press-1 --tag site=north
    """
    body = {"registrationId": registration_id, **_body("clientCertificates", **settings)}
    if device_id:
        body["deviceId"] = device_id
    _tell_enrollment(ProvisioningClient(directory).put("enrollments", registration_id, body), as_json=as_json)


@group.command("create")
@click.argument("group_id")
@enrollment_options
@json_option
@state_option
def group_create(group_id: str, as_json: bool, directory: Path, **settings: Any) -> None:
    """Enroll every device that has a key derived from the group's, or a certificate of its authority.

    \b
    Example:
      slipway-sim dps group create line-3 --edge
    """
    body = {"enrollmentGroupId": group_id, **_body("signingCertificates", **settings)}
    _tell_enrollment(ProvisioningClient(directory).put("enrollmentGroups", group_id, body), as_json=as_json)


@group.command("key")
@click.argument("group_id")
@click.argument("registration_id")
@json_option
@state_option
def group_key(group_id: str, registration_id: str, as_json: bool, directory: Path) -> None:
    """Print the key of one device of a group.

    \b
    Example:
      slipway-sim dps group key line-3 camera-7
    """
    from simulators.iothub.core.provisioning import derived_key

    attestation = ProvisioningClient(directory).attestation("enrollmentGroups", group_id)
    keys = attestation.get("symmetricKey")
    if not keys:
        raise SimulatorError(f"group {group_id} has no key: its devices come with a certificate")
    key = derived_key(keys["primaryKey"], registration_id)
    if as_json:
        print_json({"registrationId": registration_id, "key": key})
        return
    click.echo(key)


def _listing(kind: str, collection: str, named: str) -> click.Command:
    @click.command("list")
    @json_option
    @state_option
    def listing(as_json: bool, directory: Path) -> None:
        documents = ProvisioningClient(directory).every(collection)
        if as_json:
            print_json(documents)
            return
        for document in documents:
            kind_of_proof = document["attestation"]["type"]
            click.echo(f"{document[named]}  {document['provisioningStatus']}  {kind_of_proof}")
        if not documents:
            click.echo(f"None. Make one with: slipway-sim dps {kind} create ID", err=True)

    listing.help = f"List them.\n\n\b\nExample:\n  slipway-sim dps {kind} list --json"
    return listing


def _showing(kind: str, collection: str) -> click.Command:
    @click.command("show")
    @click.argument("name")
    @json_option
    @state_option
    def showing(name: str, as_json: bool, directory: Path) -> None:
        del as_json
        print_json(ProvisioningClient(directory).get(collection, name))

    showing.help = f"Print one as JSON.\n\n\b\nExample:\n  slipway-sim dps {kind} show ID"
    return showing


def _deleting(kind: str, collection: str) -> click.Command:
    @click.command("delete")
    @click.argument("name")
    @state_option
    def deleting(name: str, directory: Path) -> None:
        ProvisioningClient(directory).remove(collection, name)
        click.echo(f"Deleted {name}.", err=True)

    what = "Delete one; devices that it brought stay on the hub."
    deleting.help = f"{what}\n\n\b\nExample:\n  slipway-sim dps {kind} delete ID"
    return deleting


enrollment.add_command(_listing("enrollment", "enrollments", "registrationId"))
group.add_command(_listing("group", "enrollmentGroups", "enrollmentGroupId"))
for _group, _kind, _collection in (
    (enrollment, "enrollment", "enrollments"),
    (group, "group", "enrollmentGroups"),
    (registration, "registration", "registrations"),
):
    _group.add_command(_showing(_kind, _collection))
    _group.add_command(_deleting(_kind, _collection))


def _body(
    certificates: str,
    tags: tuple[str, ...],
    desired: str | None,
    is_edge: bool,
    is_disabled: bool,
    reprovision: str,
    certificate_file: Path | None,
) -> dict[str, Any]:
    attestation: dict[str, Any] = {"type": "symmetricKey"}
    if certificate_file:
        entries = {certificates: {"primary": {"certificate": certificate_file.read_text()}}}
        attestation = {"type": "x509", "x509": entries}
    return {
        "attestation": attestation,
        "provisioningStatus": "disabled" if is_disabled else "enabled",
        "capabilities": {"iotEdge": is_edge},
        "reprovisionPolicy": {
            "updateHubAssignment": reprovision != "never",
            "migrateDeviceData": reprovision == "migrate",
        },
        "initialTwin": {
            "tags": _read_tags(tags),
            "properties": {"desired": read_json(desired, "--desired") if desired else {}},
        },
    }


def _tell_enrollment(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    click.echo(f"Enrolled {document.get('registrationId') or document['enrollmentGroupId']}.", err=True)
    keys = document["attestation"].get("symmetricKey")
    click.echo(keys["primaryKey"] if keys else json.dumps(document["attestation"]))


def _read_tags(tags: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for tag in tags:
        key, equals, value = tag.partition("=")
        if not equals or not key:
            raise SimulatorError(f"--tag {tag!r} is not KEY=VALUE", exit_code=ExitCode.USAGE)
        values[key] = value
    return values
