"""What stands beside a deployment template: variables in ``.env``, and the ``module.json`` of each module."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import dotenv

from cloud_registry.core.deployment.templates import ModuleImage, module_image
from cloud_registry.errors import NotFoundError, UsageError

MODULE_FILE_BYTES_MAX = 1024 * 1024


def read_variables(file: Path | None, template: Path) -> dict[str, str]:
    """The variables of an ``.env`` file: the one given, else the one beside the template where there is one.

    Raises:
        NotFoundError: the file that was given is not there.
    """
    path = file or template.parent / ".env"
    if not path.is_file():
        if file is not None:
            raise NotFoundError(f"there is no file {file}", hint="Name the file of variables with --env-file.")
        return {}
    values = dotenv.dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    return {name: value for name, value in values.items() if value is not None}


def read_module_images(
    names: Iterable[str], template: Path, platform: str, variables: Mapping[str, str]
) -> dict[str, str]:
    """The image of each placeholder such as ``MODULES.scorer.amd64``, where the module's ``module.json`` tells it.

    The image is ``<repository>:<version>-<platform>``, as iotedgedev builds it.

    Raises:
        UsageError: a ``module.json`` is there and says no repository or version.
    """
    found = {}
    for name in names:
        wanted = module_image(name)
        if wanted is None:
            continue
        folder = wanted.folder if wanted.folder is not None else os.path.join("modules", wanted.name)  # noqa: PTH118
        path = template.parent / folder / "module.json"
        if path.is_file():
            found[name] = _image_of(path, wanted, platform, variables)
    return found


def _image_of(path: Path, wanted: ModuleImage, platform: str, variables: Mapping[str, str]) -> str:
    if path.stat().st_size > MODULE_FILE_BYTES_MAX:
        raise UsageError(f"{path} is larger than {MODULE_FILE_BYTES_MAX:,} bytes, so it is no module.json")
    try:
        image = json.loads(path.read_bytes().decode("utf-8-sig"))["image"]
        repository, version = image["repository"], image["tag"]["version"]
    except (ValueError, KeyError, TypeError) as err:
        raise UsageError(
            f"{path} names no image: {err!r}", hint='It holds {"image": {"repository": …, "tag": {"version": …}}}.'
        ) from err
    tag = f"{version}-{wanted.platform or platform}{'.debug' if wanted.is_debug else ''}"
    text = f"{repository}:{tag}"
    for name in sorted(variables, key=len, reverse=True):
        text = text.replace(f"${{{name}}}", variables[name]).replace(f"${name}", variables[name])
    return text
