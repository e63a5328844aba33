"""`slipway trust`: decide, with keys that no server holds, what devices may install."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_registry import wiring
from cloud_registry.cli.context import CommandContext, json_option, pass_context
from cloud_registry.cli.progress import progress
from cloud_registry.cli.tables import fields, table
from cloud_registry.errors import HubError, HubUnreachableError, UsageError
from manifests.exit_codes import ExitCode
from manifests.identity import ModelReference

if TYPE_CHECKING:
    from cloud_registry.service.trust import RoleState, TrustService, TrustState
    from cloud_registry.service.trust_work import Outcome

_ROLE_WORDS = "root, targets, snapshot, timestamp or model:NAME"
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
    directory = context.config.trust_directory
    pinned = directory / "metadata" / "1.root.json"
    value = {**_outcome_json(outcome), "root": str(pinned), "metadata": str(pinned.parent)}
    facts = [
        ("root to pin on devices", str(pinned)),
        ("metadata to serve", str(pinned.parent)),
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
    service = _service(context)
    if staged is not None:
        _sign_elsewhere(context, service, staged, trusted_root, keys, as_json=as_json)
        return
    if trusted_root is not None:
        service.check_root(_root(trusted_root))
    if discard:
        gone = service.discard()
        context.result({"discarded": gone}, as_json=as_json, text=lambda: f"Discarded: {', '.join(gone) or 'nothing'}")
        return
    files = _files(context, references, with_deltas=not (dry_run or no_deltas))
    if dry_run:
        missing = service.unsigned(files)
        value = {
            "unsigned": [{"target": file.target, "digest": file.digest, "size": file.size_bytes} for file in missing]
        }
        words = "\n".join(f"{file.target}  {file.digest}" for file in missing) or "All of it is signed."
        context.result(value, as_json=as_json, text=lambda: words)
        return
    outcome = service.sign(files, [ModelReference.parse(text) for text in withdrawn], keys)
    _print_outcome(context, service, outcome, as_json=as_json)


def _files(context: CommandContext, references: tuple[str, ...], *, with_deltas: bool) -> list[Any]:
    """The files of these versions, with deltas from what devices run; those are made where they are missing."""
    from cloud_registry.core.trust_files import files_of, files_of_deltas

    if not references:
        return []
    models, files = wiring.open_local_models(context.config), []
    for text in references:
        manifest = models.resolve(text)
        files += files_of(manifest)
        if with_deltas:
            with progress() as on_progress:
                deltas = wiring.open_publication(context.config).publish(
                    manifest, _running(context, manifest.name), on_progress
                )
            offers = [offer for delta in deltas if (offer := delta.offer()) is not None]
            files += files_of_deltas(manifest.reference, offers)
    return files


def _running(context: CommandContext, model: str) -> Mapping[str, int] | None:
    """How many devices run each artifact of a model; None where no hub can be asked."""
    from cloud_registry.core.publication import running_digests

    if context.config.hub_connection_string is None:
        return None
    try:
        return running_digests(wiring.open_hub(context.config).module_twins(context.config.module_id), model)
    except (HubUnreachableError, HubError) as err:
        context.say(f"Note: devices could not be asked what they run: {err.message}")
        return None


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
    _print_outcome(context, service, outcome, as_json=as_json)


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
@json_option
@pass_context
def rotate(
    context: CommandContext,
    role: str,
    new_keys: tuple[str, ...],
    threshold: int | None,
    keys: tuple[str, ...],
    as_json: bool,
) -> None:
    """Give ROLE new keys in place of those it has: root, targets, snapshot, timestamp or model:NAME.

    The keys that are named are made where they are not there. A model that is given keys of its own is in the hands of
    whoever holds them: the keys of targets sign for it no longer.

    \b
    Example:
      slipway trust rotate model:digits --new-key /media/vision-team/digits.pem --key /media/safe/targets-1.pem
    """
    service = _service(context)
    outcome = service.rotate(_role(role), new_keys, threshold=threshold, keys=keys)
    _print_outcome(context, service, outcome, as_json=as_json)


@trust.command()
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="Sign this one again as well. Repeatable.")
@click.option("--force", is_flag=True, help="Sign snapshot and timestamp again though they are young.")
@keys_option
@json_option
@pass_context
def refresh(context: CommandContext, roles: tuple[str, ...], force: bool, keys: tuple[str, ...], as_json: bool) -> None:
    """Sign snapshot and timestamp again once half of their life is over. Run it every day, for example by cron.

    Root, targets and roles of models live on when they are named and their keys are at hand.

    \b
    Example:
      slipway trust refresh --role root --key /media/safe/root-1.pem --key /media/safe/root-2.pem
    """
    service = _service(context)
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
    metadata = context.config.trust_directory / "metadata"
    context.result(_state_json(state, metadata), as_json=as_json, text=lambda: _state_words(state))
    _announce(context, state)
    if state.problems:
        raise SystemExit(int(ExitCode.TRUST))


def _state_json(state: "TrustState", metadata: Path) -> dict[str, Any]:
    return {
        "metadata": str(metadata),
        "roles": [
            {
                "role": role.role,
                "version": role.version,
                "expiresAt": role.expires_at.isoformat(),
                "threshold": role.threshold,
                "keys": [{"id": key_id, "place": state.key_places.get(key_id)} for key_id in role.key_ids],
                "versions": [str(reference) for reference in role.versions],
            }
            for role in state.roles
        ],
        "waiting": _waiting_json(state.waiting, state.key_places),
        "announcements": list(state.announcements),
        "problems": list(state.problems),
    }


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


def _print_outcome(context: CommandContext, service: "TrustService", outcome: "Outcome", *, as_json: bool) -> None:
    """What was done; what is due is said too, whichever command it is: weeks before devices would notice."""
    for line in outcome.changes:
        context.say(line)
    for reason in outcome.unavailable:
        context.say(f"Note: {reason}")
    published = ", ".join(f"{role} {version}" for role, version in outcome.published.items())
    words = f"Published {published}" if published else "Nothing was published."
    context.result(_outcome_json(outcome), as_json=as_json, text=lambda: words)
    for waiting in outcome.waiting:
        context.say(_waiting_words(waiting, outcome.key_places))
    if service.exists():
        for sentence in service.state().announcements:
            context.say(f"Note: {sentence}")


def _waiting_words(waiting: Any, key_places: Mapping[str, str]) -> str:
    keys = " or ".join(key_places.get(key_id, f"key {key_id[:8]}") for key_id in waiting.missing)
    waits = f"{waiting.role} {waiting.version} waits for {waiting.needed} more of: {keys}"
    return f"{waits}\nSign with: slipway trust sign --key …"


def _outcome_json(outcome: "Outcome") -> dict[str, Any]:
    return {
        "published": dict(outcome.published),
        "waiting": _waiting_json(outcome.waiting, outcome.key_places),
        "changes": list(outcome.changes),
    }


def _waiting_json(waiting: Any, key_places: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "role": one.role,
            "version": one.version,
            "needed": one.needed,
            "signed": list(one.signed),
            "missing": [{"id": key_id, "place": key_places.get(key_id)} for key_id in one.missing],
        }
        for one in waiting
    ]


def _service(context: CommandContext) -> "TrustService":
    return wiring.open_trust(context.config, _secret)


def _secret(what: str, is_new: bool) -> str | None:
    """A passphrase or PIN from the environment, or from a terminal; an empty one stands for none."""
    variable = "SLIPWAY_PKCS11_PIN" if what.startswith("PIN") else "SLIPWAY_TRUST_PASSPHRASE"
    given = os.environ.get(variable)
    if given is not None or not sys.stdin.isatty():
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
