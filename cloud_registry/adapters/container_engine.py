"""The container engine of this machine, by Docker's SDK: builds from a Dockerfile, and runs a container for a test."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloud_registry.adapters.oci_engine import engine, engine_words, find_image
from cloud_registry.errors import RegistryError
from cloud_registry.ports import ContainerFacts, ImageFacts

LOG_LINES_MAX = 40
# A container carries the instant after which it is nobody's any more, for the case that its test was killed.
EXPIRY_LABEL = "io.slipway.test.expires"


class DockerEngine:
    """A ContainerEngine."""

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
        """Build an image from a folder with a Dockerfile; returns its id."""
        with engine_words():
            events = engine().api.build(
                path=str(context), tag=tag, platform=platform, dockerfile=dockerfile, nocache=not is_cache_used,
                rm=True, forcerm=True, decode=True,
            )  # fmt: skip
            lines: list[str] = []
            for event in events:
                text = str(event.get("stream", "")).rstrip()
                if text:
                    lines.append(text)
                    say(text)
                if "error" in event:
                    raise RegistryError(
                        f"the engine could not build {tag}: {str(event['error']).strip()}\n" + "\n".join(lines[-12:]),
                        hint="Its output above says at which instruction.",
                    )
        return self.image(tag).identifier

    def image(self, name: str) -> ImageFacts:
        image = find_image(name)
        configuration = image.attrs["Config"]
        variant = image.attrs.get("Variant") or ""
        machine = image.attrs["Architecture"] + (f"/{variant}" if image.attrs["Architecture"] == "arm" else "")
        check = (configuration.get("Healthcheck") or {}).get("Test") or []
        return ImageFacts(
            identifier=image.id,
            platform=f"{image.attrs['Os']}/{machine}",
            size_bytes=int(image.attrs["Size"]),
            labels=dict(configuration.get("Labels") or {}),
            user=configuration.get("User") or "",
            environment=dict(line.partition("=")[::2] for line in configuration.get("Env") or []),
            health_check=tuple(check[1:]) if check[:1] == ["CMD"] else (),
        )

    @contextmanager
    def running(
        self, image: str, *, port: int, environment: Mapping[str, str], lifetime_s: float
    ) -> Iterator["RunningContainer"]:
        """A container of the image, its port on a free one of this machine alone; it is removed at the end."""
        _remove_expired()
        platform = self.image(image).platform
        with engine_words():
            container = engine().containers.create(
                image,
                platform=platform,
                environment=dict(environment),
                ports={f"{port}/tcp": ("127.0.0.1", None)},
                labels={EXPIRY_LABEL: str(int(time.time() + lifetime_s))},
                # What an image of ours writes goes to its volume; nothing else may be.
                read_only=True,
                tmpfs={"/tmp": ""},  # noqa: S108  a place inside the container
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
            )
        try:
            with engine_words():
                container.start()
            yield RunningContainer(container, port)
        finally:
            _remove(container)


class RunningContainer:
    """A RunningImage."""

    def __init__(self, container: Any, port: int) -> None:
        self._container = container
        self._port = port

    def url(self) -> str | None:
        with engine_words():
            self._container.reload()
        bound = self._container.attrs["NetworkSettings"]["Ports"].get(f"{self._port}/tcp")
        return f"http://127.0.0.1:{bound[0]['HostPort']}" if bound else None

    def facts(self) -> ContainerFacts:
        with engine_words():
            self._container.reload()
            state = self._container.attrs["State"]
            peak_bytes: int | None = None
            if state["Running"]:
                memory = self._container.stats(stream=False).get("memory_stats") or {}
                # Control groups of version 2 tell no peak through the engine.
                peak_bytes = memory.get("max_usage") or memory.get("usage")
        return ContainerFacts(
            is_running=bool(state["Running"]),
            exit_code=None if state["Running"] else int(state["ExitCode"]),
            was_out_of_memory=bool(state.get("OOMKilled")),
            memory_peak_bytes=peak_bytes,
        )

    def log(self) -> str:
        with engine_words():
            text: str = self._container.logs(tail=LOG_LINES_MAX).decode(errors="replace")
        return text.strip()

    def execute(self, command: tuple[str, ...]) -> tuple[int, str]:
        """Run a command inside; its exit code and what it said."""
        with engine_words():
            code, output = self._container.exec_run(list(command))
        return int(code), output.decode(errors="replace").strip()


def _remove(container: Any) -> None:
    with engine_words():
        container.remove(force=True, v=True)


def _remove_expired() -> None:
    """Remove what tests left that were killed; one that another removes at this moment is gone as well."""
    import docker.errors

    with engine_words():
        for container in engine().containers.list(all=True, filters={"label": EXPIRY_LABEL}):
            expires = container.labels.get(EXPIRY_LABEL, "")
            if expires.isdecimal() and int(expires) < time.time():
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True, v=True)
