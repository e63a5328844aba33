"""Images of models: recipes, the engine that runs them, and the endpoint inside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manifests.identity import ModelReference
from manifests.recipe import ImageRecipe


class RecipeStore(Protocol):
    """Recipes of images. Each method is one transaction."""

    def history(self, reference: ModelReference) -> Sequence[ImageRecipe]:
        """Every revision, oldest first; the newest one counts."""
        ...

    def append(self, reference: ModelReference, recipes: Sequence[ImageRecipe]) -> None:
        """Store revisions; raises ConflictError where one of that number is there, or the version is not."""
        ...


class ModelFiles(Protocol):
    """Files of model versions, wherever the registry keeps them."""

    def read(self, digest: str) -> Iterator[bytes]:
        """A file's bytes, which the caller checks; raises NotFoundError where no version has it."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as an engine knows it. `health_check` is the command that Docker runs, empty where there is none."""

    identifier: str
    platform: str
    size_bytes: int
    labels: Mapping[str, str]
    user: str
    environment: Mapping[str, str]
    health_check: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """A container at this moment. `exit_code` is None while it runs; the peak of memory is what the engine tells."""

    is_running: bool
    exit_code: int | None = None
    was_out_of_memory: bool = False
    memory_peak_bytes: int | None = None


class RunningImage(Protocol):
    def url(self) -> str | None:
        """Where its port can be reached from this machine, without a path; None before it starts and once it ended."""
        ...

    def facts(self) -> ContainerFacts: ...

    def log(self) -> str:
        """Its last lines."""
        ...

    def execute(self, command: tuple[str, ...]) -> tuple[int, str]:
        """Run a command inside; its exit code and what it said."""
        ...


class ContainerEngine(Protocol):
    """A container engine. Methods raise RegistryError where it cannot be reached or refuses."""

    def build(
        self,
        context: Path,
        tag: str,
        platform: str,
        dockerfile: str,
        say: Callable[[str], None],
        *,
        is_cache_used: bool,
    ) -> str:
        """Build an image from a folder with a Dockerfile and give its id; `say` hears each line."""
        ...

    def image(self, name: str) -> ImageFacts:
        """What the engine knows of an image; raises NotFoundError."""
        ...

    def running(
        self, image: str, *, port: int, environment: Mapping[str, str], lifetime_s: float
    ) -> AbstractContextManager[RunningImage]:
        """A container that is removed when the context is left; `lifetime_s` bounds one whose owner was killed."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """What a scoring endpoint answered to arrays: arrays by tensor, and how long it took by either clock."""

    outputs: Mapping[str, Any]
    latency_ms: float
    inside_ms: float | None


class ScoringEndpoint(Protocol):
    """The scoring endpoint of an image. Methods raise RegistryError where it refuses or is not reached."""

    def is_ready(self) -> bool:
        """Whether the model is loaded; False as well where nobody answers yet."""
        ...

    def metadata(self) -> dict[str, Any]: ...

    def score(self, inputs: Mapping[str, Any]) -> EndpointAnswer:
        """Answers for arrays by tensor, whose first axis counts the samples."""
        ...

    def score_body(self, body: bytes) -> float:
        """Have a request of any form answered; the milliseconds that it took."""
        ...


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image that holds a model version: its name with tag, and the digest of its manifest."""

    image: str
    digest: str
