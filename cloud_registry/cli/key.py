"""`slipway key`: who may ask the server what."""

from collections.abc import Sequence
from datetime import timedelta

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.rollout_options import Duration
from cloud_registry.cli.tables import table
from cloud_registry.core.access import ListedKey
from cloud_registry.ports import Role


@click.group()
def key() -> None:
    """Make, list and revoke the API keys of `slipway serve`. They are kept in the catalog's database, as digests.

    The first key is made at the server's machine; from elsewhere it takes the role operator, and nobody hands out a
    role that he does not hold or a key that is good for longer than his own.
    """


@key.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="What its holder may do. Publishers and operators may read as well. Repeatable.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ID",
    help="With --role device: whose offers it fetches; * stands for anything. Repeatable.",
)
@click.option("--valid-for", type=Duration(), help="After it the key is no longer good.  [default: no end]")
@json_option
@pass_context
def create(
    context: CommandContext,
    name: str,
    roles: tuple[str, ...],
    devices: tuple[str, ...],
    valid_for: float | None,
    as_json: bool,
) -> None:
    """Make a key for NAME, and print it: it is shown this once and kept nowhere.

    \b
    Example:
      slipway key create ci --role publisher --valid-for 90d
      slipway key create line-3 --role device --device 'line-3-*'
    """
    lifetime = None if valid_for is None else timedelta(seconds=valid_for)
    granted = [Role(role) for role in roles]
    made = wiring.open_key_verbs(context.config).create(name, granted, devices, lifetime)
    context.result(made.as_json(), as_json=as_json, text=lambda: made.text)
    if Role.DEVICE in made.key.roles:
        context.say(f"In a device's URLs it is the password: https://device:{made.text[:12]}…@HOST:8444/artifacts/")
    else:
        context.say(f"Set SLIPWAY_REGISTRY to the server's URL and SLIPWAY_API_KEY to this. Its id is {made.key.id}.")


@key.command("list")
@json_option
@pass_context
def list_keys(context: CommandContext, as_json: bool) -> None:
    """List keys, oldest first. What they open with is not kept, so it cannot be shown.

    \b
    Example:
      slipway key list
    """
    found = wiring.open_key_verbs(context.config).keys()
    if not found and not as_json:
        context.say("Nobody has a key. Make one with: slipway key create NAME --role reader")
        return
    context.result([each.as_json() for each in found], as_json=as_json, text=lambda: _table(found))


@key.command()
@click.argument("key_id", metavar="ID")
@json_option
@pass_context
def revoke(context: CommandContext, key_id: str, as_json: bool) -> None:
    """Revoke the key of that ID. It is refused from the next request on, for ever.

    \b
    Example:
      slipway key revoke 3f9c2a7d51e0
    """
    revoked = wiring.open_key_verbs(context.config).revoke(key_id)
    context.result(revoked.as_json(), as_json=as_json, text=lambda: f"Revoked {revoked.id} ({revoked.name})")


def _table(found: Sequence[ListedKey]) -> str:
    rows = [
        (
            each.id,
            each.name,
            ",".join(sorted(each.roles)),
            " ".join(each.devices) or "-",
            f"{each.created_at:%Y-%m-%d}",
            f"revoked {each.revoked_at:%Y-%m-%d}" if each.revoked_at else _end(each),
        )
        for each in found
    ]
    return table(("ID", "NAME", "ROLES", "DEVICES", "CREATED", "ENDS"), rows)


def _end(each: ListedKey) -> str:
    return f"{each.expires_at:%Y-%m-%d}" if each.expires_at else "-"
