"""The Dockerfile that builds an image by its recipe, for people who build with an engine. Pure."""

import json
from collections.abc import Mapping

from manifests.errors import ManifestError
from manifests.recipe import (
    ENTRYPOINT,
    HEALTH_CHECK,
    HEALTH_INTERVAL_S,
    HEALTH_RETRIES,
    HEALTH_START_S,
    HEALTH_TIMEOUT_S,
    MODEL_FOLDER,
    PACKAGES_FOLDER,
    STATE_FOLDER,
    ImageRecipe,
)

# Names inside the build context.
REQUIREMENTS_NAME = "requirements.txt"
WHEELS_NAME = "wheels"
MODULE_NAME = "module"
MODEL_NAME = "model"
STATE_NAME = "state"


def dockerfile_for(recipe: ImageRecipe, *, has_wheels: bool) -> str:
    """The Dockerfile for a build context with the folders named above; pip of the base installs the packages.

    With `has_wheels` pip takes them from the context and asks no index. Raises ManifestError for a recipe whose values
    would be instructions of their own.
    """
    source = "--no-index --find-links /tmp/wheels " if has_wheels else ""
    wheels = [f"COPY {WHEELS_NAME} /tmp/wheels"] if has_wheels else []
    lines = [
        f"# {recipe.model} as a module image. Written by slipway; change it as you like, and build it with",
        f"#   slipway image build {recipe.model} --builder docker --dockerfile Dockerfile",
        f"ARG BASE={recipe.base}",
        "",
        "FROM ${BASE} AS packages",
        f"COPY {REQUIREMENTS_NAME} /tmp/{REQUIREMENTS_NAME}",
        *wheels,
        f"RUN python3 -m pip install --no-cache-dir {source}--target {PACKAGES_FOLDER} "
        f"--requirement /tmp/{REQUIREMENTS_NAME}",
        "",
        "FROM ${BASE}",
        f"COPY --from=packages {PACKAGES_FOLDER} {PACKAGES_FOLDER}",
        f"COPY {MODULE_NAME} {PACKAGES_FOLDER}",
        f"COPY --chown={recipe.user} {STATE_NAME} {STATE_FOLDER}",
        *_assignments("ENV", recipe.image_environment()),
        *_assignments("LABEL", recipe.image_labels()),
        f"EXPOSE {recipe.port}",
        "# Models, journal and outbox of the agent; mount a volume here, or they go with the container.",
        f"VOLUME {STATE_FOLDER}",
        f"USER {recipe.user}",
        "STOPSIGNAL SIGTERM",
        f"HEALTHCHECK --interval={HEALTH_INTERVAL_S}s --timeout={HEALTH_TIMEOUT_S}s "
        f"--start-period={HEALTH_START_S}s --retries={HEALTH_RETRIES} "
        f"{HEALTH_CHECK[0]} {json.dumps(list(HEALTH_CHECK[1:]))}",
        f"ENTRYPOINT {json.dumps(list(ENTRYPOINT))}",
        "# Last, so that a new version of the model is one small layer.",
        f"COPY {MODEL_NAME} {MODEL_FOLDER}",
    ]
    if any(len(line.splitlines()) > 1 for line in lines):
        raise ManifestError(f"the recipe of {recipe.model} holds a line break, which a Dockerfile would obey")
    return "\n".join(lines) + "\n"


def _assignments(instruction: str, values: Mapping[str, str]) -> list[str]:
    """One instruction for all of them, since each is a step of the build."""
    words = [f"{_word(name)}={_quoted(value)}" for name, value in values.items()]
    lines = [f"    {word}" for word in words]
    lines[0] = f"{instruction} {words[0]}"
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _word(name: str) -> str:
    return name if name.replace("_", "").replace(".", "").replace("-", "").isalnum() else _quoted(name)


def _quoted(value: str) -> str:
    """In double quotes, where a backslash keeps quotes, backslashes and variables from meaning anything."""
    for character in '\\"$':
        value = value.replace(character, "\\" + character)
    return f'"{value}"'
