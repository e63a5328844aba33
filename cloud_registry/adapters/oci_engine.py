"""The container engine of this machine, by Docker's SDK: a base may come from it, and an image may go to it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

from cloud_registry.core.images.platforms import Platform
from cloud_registry.errors import NotFoundError, RegistryError

# Loading a large image takes its time; silence for longer means that the engine hangs.
TIMEOUT_S = 600


@contextmanager
def engine_words() -> Iterator[None]:
    """The engine's refusals in our words."""
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.APIError as err:
        raise RegistryError(f"the container engine refused: {err.explanation or err}") from err
    except (docker.errors.DockerException, requests.RequestException, OSError) as err:
        raise RegistryError(
            f"the container engine cannot be reached: {err}",
            hint="Start it, or set DOCKER_HOST. To do without it, write the image with --output oci: or tar:.",
        ) from err


@lru_cache(maxsize=1)
def engine() -> Any:
    import docker

    with engine_words():
        return docker.from_env(timeout=TIMEOUT_S)


def find_image(name: str) -> Any:
    """The engine's record of an image; raises NotFoundError."""
    import docker.errors

    with engine_words():
        try:
            return engine().images.get(name)
        except docker.errors.ImageNotFound as err:
            raise NotFoundError(f"the container engine has no image {name}", hint="See docker image ls.") from err


def engine_platform() -> Platform:
    """What the engine runs containers for."""
    with engine_words():
        facts = engine().version()
    return Platform.of_config({"os": facts.get("Os"), "architecture": facts.get("Arch")})


def load_image(archive: Iterable[bytes]) -> str:
    """Give the engine a saved image; returns the id by which it knows it."""
    with engine_words():
        # The engine reads a stream; the SDK says bytes and hands on whatever requests sends.
        images = engine().images.load(cast("bytes", archive))
    if not images:
        raise RegistryError("the container engine took the image and knows none by its name")
    return str(images[0].id)
