"""Files of `slipway manifest`: read with a sentence for what is wrong, written whole or not at all."""

import json
import sys
from pathlib import Path
from typing import Any

from cloud_registry.cli.context import CommandContext, printable
from cloud_registry.core.deployment.json_text import TEXT_BYTES_MAX, JsonTextError, read_json
from cloud_registry.core.deployment.manifest_shape import Deployment, ShapeError, read_deployment
from cloud_registry.errors import NotFoundError, UsageError


def read_content(path: Path) -> bytes:
    """The bytes of a file, or of stdin where the path is ``-``, as far as a manifest may go."""
    if str(path) == "-":
        return sys.stdin.buffer.read(TEXT_BYTES_MAX + 1)
    if not path.exists():
        raise NotFoundError(f"there is no file {path}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="Name the manifest in it.")
    with path.open("rb") as file:
        return file.read(TEXT_BYTES_MAX + 1)


def read_document(path: Path) -> Any:
    """The JSON in a file; raises UsageError with the line where it is none."""
    try:
        return read_json(read_content(path)).value
    except JsonTextError as err:
        raise UsageError(f"{path} is not JSON: {err}", hint=err.mend) from err


def read_manifest(path: Path) -> Deployment:
    """The deployment in a file; raises UsageError where it holds none."""
    try:
        return read_deployment(read_document(path))
    except ShapeError as err:
        raise UsageError(f"{path} is no deployment manifest: {err}", hint=err.problem.mend) from err


def write_document(context: CommandContext, document: Any, output: Path | None) -> None:
    """Print a document, or write it to a file in one piece."""
    import click

    text = printable(json.dumps(document, indent=2, ensure_ascii=False))
    if output is None:
        click.echo(text)
        return
    unfinished = output.with_name(output.name + ".part")
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    context.say(f"Wrote {output}")
