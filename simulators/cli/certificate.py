"""Certificate authorities whose devices the hub lets in."""

from pathlib import Path

import click

from simulators.cli.options import json_option, print_json, state_option
from simulators.hub_client import HubClient


@click.group()
def certificate() -> None:
    """Certificate authorities: devices come with a certificate that one of them has issued."""


@certificate.command("add")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@json_option
@state_option
def certificate_add(name: str, file: Path, as_json: bool, directory: Path) -> None:
    """Register the authority in FILE (PEM or DER), or replace it.

    \b
    Example:
      slipway-sim certificate add factory ./root-ca.pem
    """
    document = HubClient(directory).trust_authority(name, _text_of(file))
    if as_json:
        print_json(document)
        return
    properties = document["properties"]
    click.echo(
        f"Devices with a certificate of {properties['subject']!r} may come until {properties['expiry']}.", err=True
    )


@certificate.command("list")
@json_option
@state_option
def certificate_list(as_json: bool, directory: Path) -> None:
    """List the authorities that are registered.

    \b
    Example:
      slipway-sim certificate list --json
    """
    documents = HubClient(directory).authorities()
    if as_json:
        print_json(documents)
        return
    for document in documents:
        properties = document["properties"]
        click.echo(f"{document['name']}  {properties['subject']}  {properties['thumbprint']}  {properties['expiry']}")
    if not documents:
        click.echo("None. Register one with: slipway-sim certificate add NAME FILE", err=True)


@certificate.command("delete")
@click.argument("name")
@state_option
def certificate_delete(name: str, directory: Path) -> None:
    """Forget an authority; connections that it let in stay.

    \b
    Example:
      slipway-sim certificate delete factory
    """
    HubClient(directory).forget_authority(name)
    click.echo(f"Deleted {name}.", err=True)


def _text_of(file: Path) -> str:
    """A file as the hub takes it: PEM as it is, DER in base64."""
    import base64

    content = file.read_bytes()
    return content.decode() if b"-----BEGIN" in content else base64.b64encode(content).decode()
