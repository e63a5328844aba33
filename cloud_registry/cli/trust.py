"""`slipway trust`: decide, with keys that no server holds, what devices may install."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import fields, table
from cloud_registry.core.trust_answers import outcome_as_json, state_as_json
from cloud_registry.errors import UsageError
from manifests.exit_codes import ExitCode
from manifests.identity import ModelReference

if TYPE_CHECKING:
    from cloud_registry.core.trust_answers import Outcome, RoleState, TrustState
    from cloud_registry.service.trust import TrustService

_ROLE_WORDS = "root, targets, snapshot, timestamp or model:NAME"
yes_option = click.option(
    "--yes", "is_agreed", is_flag=True, help="Sign what a server proposes without being asked at the terminal."
)
keys_option = click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="A key to sign with: a PEM file or a pkcs11: URI. Repeatable."
)


@click.group()
def trust() -> None:
    """Decide, with keys that no server holds, what devices may install."""


@trust.command()
@click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the keys of root and targets.",
)
@click.option("--root-key", "root_keys", multiple=True, metavar="KEY", help="A key of root. Repeatable.")
@click.option("--targets-key", "targets_keys", multiple=True, metavar="KEY", help="A key of targets. Repeatable.")
@click.option("--root-threshold", type=click.IntRange(1), help="Keys that must sign a root.  [default: 2, or all of 1]")
@click.option("--targets-threshold", default=1, show_default=True, type=click.IntRange(1), help="And targets.")
@click.option(
    "--lifetime",
    "lifetimes",
    multiple=True,
    metavar="ROLE=DAYS",
    help="How long a signature holds.  [default: root=365 targets=180 snapshot=30 timestamp=7]",
)
@json_option
@pass_context
def init(
    context: CommandContext,
    folder: Path | None,
    root_keys: tuple[str, ...],
    targets_keys: tuple[str, ...],
    root_threshold: int | None,
    targets_threshold: int,
    lifetimes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a trust repository: its keys, and the metadata that devices follow.

    The keys of root (three, of which two must sign) and of targets (one) belong on a stick in a safe or on tokens; keys
    that are not there are made. The registry itself keeps and uses those of snapshot and timestamp.

    \b
    Example:
      slipway trust init --keys /media/safe
    """
    from cloud_registry.service.trust import NewRepository

    if folder is None and not (root_keys and targets_keys):
        raise UsageError(
            "nobody said where the keys of root and targets go",
            hint="Name a folder outside of this machine's disk, such as --keys /media/safe, or each key by itself.",
        )
    of_root = root_keys or tuple(str(folder / f"root-{number}.pem") for number in (1, 2, 3) if folder)
    of_targets = targets_keys or ((str(folder / "targets-1.pem"),) if folder else ())
    threshold = root_threshold or min(2, len(of_root))
    request = NewRepository(of_root, of_targets, threshold, targets_threshold, dict(map(_lifetime, lifetimes)))
    outcome = _service(context).init(request)
    pinned, metadata = _places(context)
    value = {**outcome_as_json(outcome), "root": pinned, "metadata": metadata}
    facts = [
        ("root to pin on devices", pinned),
        ("metadata to serve", metadata),
        *(("key", place) for place in outcome.key_places.values()),
    ]
    context.result(value, as_json=as_json, text=lambda: fields(facts))
    context.say("Take the keys of root and targets away from this machine, and keep two copies of each.")
    context.say("Next: sign what devices run and may run: slipway trust sign NAME:VERSION …")


@trust.command()
@click.argument("references", metavar="[REF]...", nargs=-1)
@click.option("--withdraw", "withdrawn", multiple=True, metavar="REF", help="Take a version back. Repeatable.")
@keys_option
@click.option(
    "--staged",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add signatures to the staged.json of another machine, and do nothing else.",
)
@click.option(
    "--root",
    "trusted_root",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The root that devices have pinned: nothing is signed for a repository that does not begin with it.",
)
@click.option("--no-deltas", is_flag=True, help="Make no deltas from what devices run.")
@click.option("--dry-run", is_flag=True, help="Say which files are not signed yet, and sign nothing.")
@click.option("--discard", is_flag=True, help="Throw away what waits for more signatures.")
@yes_option
@json_option
@pass_context
def sign(
    context: CommandContext,
    references: tuple[str, ...],
    withdrawn: tuple[str, ...],
    keys: tuple[str, ...],
    staged: Path | None,
    trusted_root: Path | None,
    no_deltas: bool,
    dry_run: bool,
    discard: bool,
    is_agreed: bool,
    as_json: bool,
) -> None:
    """Allow model versions: sign the digest of each of their files. REF is name:version, or a name for its latest.

    Deltas from the versions that devices run are made first and signed as well, so that rollouts may offer them.
    Without REF it adds signatures to what waits for them. Keys are looked for where they were last; --key names others.
    What is signed by enough keys is published at once.

    \b
    Example:
      slipway trust sign digits:3 --key /media/safe/targets-1.pem
    """
    service = _service(context, is_agreed=is_agreed)
    if staged is not None:
        _sign_elsewhere(context, service, staged, trusted_root, keys, as_json=as_json)
        return
    if trusted_root is not None:
        service.check_root(_root(trusted_root))
    elif context.config.registry_url is not None and service.has_seen_nothing:
        context.say("Note: this server's root was never seen here and is believed as it comes; --root names yours.")
    if discard:
        gone = service.discard()
        context.result({"discarded": gone}, as_json=as_json, text=lambda: f"Discarded: {', '.join(gone) or 'nothing'}")
        return
    if dry_run:
        _print_unsigned(context, service, references, as_json=as_json)
        return
    with progress() as on_progress:
        proposal = service.propose(references, deltas=not no_deltas, on_progress=on_progress)
    for note in proposal.notes:
        context.say(f"Note: {note}")
    outcome = service.sign(proposal.files, [ModelReference.parse(text) for text in withdrawn], keys)
    _print_outcome(context, service, outcome, as_json=as_json)


def _print_unsigned(
    context: CommandContext, service: "TrustService", references: tuple[str, ...], *, as_json: bool
) -> None:
    from cloud_registry.core.trust_files import files_of

    models = wiring.open_models(context.config)
    missing = service.unsigned([file for text in references for file in files_of(models.resolve(text))])
    value = {"unsigned": [{"target": file.target, "digest": file.digest, "size": file.size_bytes} for file in missing]}
    words = "\n".join(f"{file.target}  {file.digest}" for file in missing) or "All of it is signed."
    context.result(value, as_json=as_json, text=lambda: words)


def _sign_elsewhere(
    context: CommandContext,
    service: "TrustService",
    path: Path,
    trusted_root: Path | None,
    keys: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    from cloud_registry.adapters.tuf_repository import Stage, read_staged, write_staged
    from cloud_registry.service.trust import check_pinned

    if not keys:
        raise UsageError("no key was named", hint="Name each with --key, such as --key /media/safe/root-1.pem")
    stage = read_staged(path)
    if trusted_root is None:
        context.say("Note: without --root nobody checks whose repository this is.")
    else:
        check_pinned(_root(trusted_root), stage.chain)
    signed, outcome = service.sign_elsewhere(stage.chain, stage.published, stage.staged, keys)
    write_staged(path, Stage(stage.chain, stage.published, signed))
    _print_outcome(context, None, outcome, as_json=as_json)


def _root(path: Path) -> Any:
    from cloud_registry.adapters.tuf_repository import read_metadata

    try:
        return read_metadata(path.read_bytes(), str(path))
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}") from err


@trust.command()
@click.argument("role", metavar="ROLE")
@click.option("--new-key", "new_keys", multiple=True, metavar="KEY", help="A key of the role from now on. Repeatable.")
@click.option("--threshold", type=click.IntRange(1), help="How many must sign.  [default: as before]")
@keys_option
@yes_option
@json_option
@pass_context
def rotate(
    context: CommandContext,
    role: str,
    new_keys: tuple[str, ...],
    threshold: int | None,
    keys: tuple[str, ...],
    is_agreed: bool,
    as_json: bool,
) -> None:
    """Give ROLE new keys in place of those it has: root, targets, snapshot, timestamp or model:NAME.

    The keys that are named are made where they are not there. A model that is given keys of its own is in the hands of
    whoever holds them: the keys of targets sign for it no longer.

    \b
    Example:
      slipway trust rotate model:digits --new-key /media/vision-team/digits.pem --key /media/safe/targets-1.pem
    """
    if new_keys and role in ("snapshot", "timestamp") and context.config.registry_url is not None:
        raise UsageError(f"the key of {role} is made at the server, and stays there", hint="Leave --new-key out.")
    service = _service(context, is_agreed=is_agreed)
    outcome = service.rotate(_role(role), new_keys, threshold=threshold, keys=keys)
    _print_outcome(context, service, outcome, as_json=as_json)


@trust.command()
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Sign this one again as well. Repeatable.")
@click.option("--force", is_flag=True, help="Sign snapshot and timestamp again though they are young.")
@keys_option
@yes_option
@json_option
@pass_context
def refresh(
    context: CommandContext,
    roles: tuple[str, ...],
    force: bool,
    keys: tuple[str, ...],
    is_agreed: bool,
    as_json: bool,
) -> None:
    """Sign snapshot and timestamp again once half of their life is over. Run it every day, for example by cron.

    Root, targets and roles of models live on when they are named and their keys are at hand.

    \b
    Example:
      slipway trust refresh --role root --key /media/safe/root-1.pem --key /media/safe/root-2.pem
    """
    service = _service(context, is_agreed=is_agreed)
    outcome = service.refresh(map(_role, roles), keys, force=force)
    _print_outcome(context, service, outcome, as_json=as_json)


@trust.command()
@json_option
@pass_context
def status(context: CommandContext, as_json: bool) -> None:
    """Show the roles, their versions and expiry, what waits for signatures, and what is due. Exit code 7: devices
    refuse it now.

    \b
    Example:
      slipway trust status
    """
    state = _service(context).state()
    value = {"metadata": _places(context)[1], **state_as_json(state)}
    context.result(value, as_json=as_json, text=lambda: _state_words(state))
    _announce(context, state)
    if state.problems:
        raise SystemExit(int(ExitCode.TRUST))


def _state_words(state: "TrustState") -> str:
    rows = [
        (role.role, str(role.version), f"{role.expires_at:%Y-%m-%d %H:%M}Z", _keys_words(role), _versions_words(role))
        for role in state.roles
    ]
    return table(("ROLE", "VERSION", "EXPIRES", "KEYS", "SIGNED"), rows, numbers=("VERSION",))


def _keys_words(role: "RoleState") -> str:
    return f"{role.threshold} of {len(role.key_ids)}: " + " ".join(key_id[:8] for key_id in role.key_ids)


def _versions_words(role: "RoleState") -> str:
    shown = [str(reference.version) for reference in role.versions[-8:]]
    return ("… " if len(role.versions) > len(shown) else "") + " ".join(shown)


def _announce(context: CommandContext, state: "TrustState") -> None:
    for problem in state.problems:
        context.say(f"Devices refuse every update: {problem}.")
    for sentence in state.announcements:
        context.say(f"Note: {sentence}")
    for waiting in state.waiting:
        context.say(_waiting_words(waiting, state.key_places))


def _print_outcome(
    context: CommandContext, service: "TrustService | None", outcome: "Outcome", *, as_json: bool
) -> None:
    """What was done; what is due is said too, whichever command it is: weeks before devices would notice."""
    for reason in outcome.unavailable:
        context.say(f"Note: {reason}")
    announcements = () if service is None else service.state().announcements
    published = ", ".join(f"{role} {version}" for role, version in outcome.published.items())
    words = f"Published {published}" if published else "Nothing was published."
    context.result(outcome_as_json(outcome), as_json=as_json, text=lambda: words)
    for waiting in outcome.waiting:
        context.say(_waiting_words(waiting, outcome.key_places))
    for sentence in announcements:
        context.say(f"Note: {sentence}")


def _waiting_words(waiting: Any, key_places: Mapping[str, str]) -> str:
    keys = " or ".join(key_places.get(key_id, f"key {key_id[:8]}") for key_id in waiting.missing)
    waits = f"{waiting.role} {waiting.version} waits for {waiting.needed} more of: {keys}"
    return f"{waits}\nSign with: slipway trust sign --key …"


def _service(context: CommandContext, *, is_agreed: bool = False) -> "TrustService":
    """Signing that says what it would sign first. What a server proposed a person agrees to, if there is one."""

    def approve(changes: Sequence[str]) -> None:
        for line in changes:
            context.say(line)
        is_asked = changes and context.config.registry_url is not None and not is_agreed and _is_terminal()
        if is_asked and not click.confirm("Sign this?", err=True):
            raise UsageError("nothing was signed", hint="Nothing was changed either.")

    return wiring.open_trust(context.config, _secret, context.say, approve)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _places(context: CommandContext) -> tuple[str, str]:
    """Where the first root is, and where the metadata for devices."""
    if context.config.registry_url is not None:
        return str(wiring.pinned_root(context.config)), f"{context.config.registry_url.rstrip('/')}/metadata/"
    metadata = context.config.trust_directory / "metadata"
    return str(metadata / "1.root.json"), str(metadata)


def _secret(what: str, is_new: bool) -> str | None:
    """A passphrase or PIN from the environment, or from a terminal; an empty one stands for none."""
    variable = "SLIPWAY_PKCS11_PIN" if what.startswith("PIN") else "SLIPWAY_TRUST_PASSPHRASE"
    given = os.environ.get(variable)
    if given is not None or not _is_terminal():
        return given
    words = f"{what[0].upper()}{what[1:]}{' (empty for none)' if is_new else ''}"
    answer: str = click.prompt(
        words, hide_input=True, default="", show_default=False, confirmation_prompt=is_new, err=True
    )
    return answer


def _role(text: str) -> str:
    from cloud_registry.core.trust import LIFETIMES_D, role_of
    from manifests.identity import check_model_name

    kind, colon, name = text.partition(":")
    if colon and kind == "model":
        return role_of(check_model_name(name))
    if text not in LIFETIMES_D:
        raise UsageError(f"{text!r} is no role", hint=f"Roles are {_ROLE_WORDS}.")
    return text


def _lifetime(text: str) -> tuple[str, float]:
    from cloud_registry.core.trust import LIFETIMES_D

    role, _, days = text.partition("=")
    try:
        value = float(days)
    except ValueError:
        value = 0
    if role not in LIFETIMES_D or not 0 < value < 36500:
        raise UsageError(f"{text!r} is no lifetime", hint="For example: --lifetime timestamp=3")
    return role, value
