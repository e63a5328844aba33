"""What every command of `slipway` shares: settings, the form of its output, and how errors end."""

import atexit
import gc
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from cloud_registry.config import RegistryConfig
from cloud_registry.errors import RegistryError
from manifests.errors import ManifestError
from manifests.exit_codes import ExitCode


@dataclass(frozen=True, slots=True)
class CommandContext:
    """Handed to commands by `pass_context`: results go to stdout, words for people to stderr."""

    config: RegistryConfig
    debug: bool = False

    def say(self, text: str) -> None:
        """A word for the person at the terminal; never part of the result."""
        click.echo(text, err=True)

    def result(self, value: Any, *, as_json: bool, text: Callable[[], str]) -> None:
        """Print a result, as stable JSON fields or as words."""
        click.echo(printable(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text()))


def printable(text: str) -> str:
    """The text with half characters, which JSON may hold and no terminal takes, written as JSON writes them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


pass_context = click.make_pass_decorator(CommandContext)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON with stable fields.")


class SlipwayGroup(click.Group):
    """The root group: turns our errors into a sentence, a hint and an exit code by meaning."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Loading modules makes no cycles, and looking for them meanwhile takes a tenth of a command's time.
        gc.set_threshold(50_000, 20, 100)
        # At its end Python looks for cycles among everything that was loaded: 0.15 s, to free what ends anyway.
        atexit.register(gc.freeze)
        debug = "--debug" in sys.argv
        try:
            return super().main(*args, **kwargs)
        except RegistryError as err:
            fail(err.message, err.hint, err.exit_code, debug=debug)
        except ManifestError as err:
            fail(str(err), "", ExitCode.USAGE, debug=debug)
        except OSError as err:
            fail(f"the operating system refused: {err}", _os_hint(err), ExitCode.FAILED, debug=debug)
        except Exception as err:  # noqa: BLE001  (whatever it is, it ends in a sentence)
            # A mistake of ours, told in a sentence all the same.
            words = f"slipway failed in a way that nobody foresaw: {type(err).__name__}: {err}"
            fail(words, "Run it again with --debug to see where, and report that.", ExitCode.FAILED, debug=debug)


def fail(message: str, hint: str, exit_code: ExitCode, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    click.echo(f"Error: {_shown(message)}", err=True)
    if hint:
        click.echo(_shown(hint), err=True)
    raise SystemExit(int(exit_code))


def _shown(text: str) -> str:
    """As it is, but for what would move a terminal's cursor: names in it come from files and from servers."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


def _os_hint(err: OSError) -> str:
    import errno

    if err.errno == errno.ENOSPC:
        return "Free some space and run the command again: nothing was left half done."
    if err.errno in (errno.EACCES, errno.EPERM):
        return "Check who owns the path, or choose another place with --home."
    return ""
