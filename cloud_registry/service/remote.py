"""The services of a registry that is somewhere else: the same verbs, asked of a server."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cloud_registry.errors import ServerUnreachableError, UsageError
from cloud_registry.ports import ProgressListener, RegistryTransport, StoreCounts
from cloud_registry.service.model_download import write_version
from cloud_registry.service.verbs import VERBS, ModelVerbs, RolloutVerbs, TelemetryVerbs, Verb
from cloud_registry.service.wire_form import (
    LISTENER_PREFIX,
    Parameter,
    bound_arguments,
    convert,
    decode,
    encode,
    path_text,
    shape_of,
)
from manifests.identity import ModelReference

# How often a server is asked to collect, where a person follows the telemetry.
COLLECT_INTERVAL_S = 1.0
_ROWS = {(verb.protocol, verb.name): verb for verb in VERBS}


class RemoteVerbs:
    """The verbs of one protocol: each method is a request to the server, and raises what it raised there."""

    def __init__(self, protocol: type, transport: RegistryTransport) -> None:
        self._protocol = protocol
        self._transport = transport

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verb = _ROWS.get((self._protocol, name))
        if verb is None:
            raise AttributeError(name)
        return functools.partial(self._ask, verb)

    def _ask(self, verb: Verb, /, *arguments: Any, **named: Any) -> Any:
        given = bound_arguments(verb, arguments, named)
        listeners = {name: listener for name, listener in given.items() if name.startswith(LISTENER_PREFIX)}
        shape = shape_of(verb)
        body = {p.wire_name: given[p.name] for p in shape.parameters if p.place == "body" and p.name in given}
        request = (
            verb.method,
            _path(verb, shape.parameters, given),
            {p.wire_name: _query_text(given[p.name]) for p in shape.parameters if _is_in_query(p, given)},
            encode(body, functools.partial(self._uploaded, listeners.get("on_progress"))) if body else None,
        )
        if shape.is_streamed:
            lines = self._transport.lines(*request)
            return (_understood(line, shape.result) for line in lines)

        def tell(name: str, values: Sequence[Any]) -> None:
            listener = listeners.get(name)
            if listener is not None:
                listener(*map(convert, values, shape.listeners[name]))

        answer = self._transport.call(*request, tell if any(listeners.values()) else None)
        return _understood(answer, shape.result)

    def _uploaded(self, on_progress: ProgressListener | None, path: Path) -> dict[str, Any]:
        """What stands for a path in a request: the bytes are brought to the server first."""
        if not path.is_dir():
            return {"upload": self._transport.upload(path, on_progress), "name": path.name}
        files = sorted(each for each in path.rglob("*") if not each.is_dir())
        root = path.resolve()
        for each in files:
            # Here, where the link means something: at the server it would be a file like any other.
            if not each.resolve().is_relative_to(root):
                raise UsageError(
                    f"{each} leads out of {path}", hint="Put the file itself into the folder, or take the link away."
                )
        return {
            "folder": root.name,
            "files": [
                {"upload": self._transport.upload(each, on_progress), "name": each.relative_to(path).as_posix()}
                for each in files
            ],
        }


class RemoteModels(RemoteVerbs):
    """Satisfies ModelVerbs."""

    def __init__(self, transport: RegistryTransport) -> None:
        super().__init__(ModelVerbs, transport)

    def download(
        self, reference: ModelReference, folder: Path, *, force: bool, on_progress: ProgressListener | None = None
    ) -> tuple[Path, ...]:
        manifest = self.resolve(str(reference))
        return write_version(
            manifest,
            lambda file: self._transport.artifact(file.target, file.digest, file.size_bytes),
            folder,
            force=force,
            on_progress=on_progress,
        )


class RemoteRollouts(RemoteVerbs):
    """Satisfies RolloutVerbs. The server's controller drives; nobody does it from afar."""

    can_drive = False

    def __init__(self, transport: RegistryTransport) -> None:
        super().__init__(RolloutVerbs, transport)


class RemoteTelemetry(RemoteVerbs):
    """Satisfies TelemetryVerbs. Whoever follows asks again and again, so that a server holds nothing for him."""

    def __init__(self, transport: RegistryTransport, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(TelemetryVerbs, transport)
        self._sleep = sleep

    def collect(self, *, follow: bool, on_batch: Callable[[StoreCounts], None] | None = None) -> StoreCounts:
        verb = _ROWS[TelemetryVerbs, "collect"]
        for _ in self._looks(follow):
            counts: StoreCounts = self._ask(verb, follow=False, on_batch=on_batch)
        return counts

    def _looks(self, follow: bool) -> Iterator[None]:
        yield
        while follow:
            self._sleep(COLLECT_INTERVAL_S)
            yield


def _understood(answer: bytes, type_: Any) -> Any:
    try:
        return decode(answer, type_, what="the registry's answer")
    except UsageError as err:
        # Not what was asked is at fault, but who answers: a proxy's page, or another edition of the server.
        raise ServerUnreachableError(
            err.message, hint="Check SLIPWAY_REGISTRY, what stands between here and there, and the server's version."
        ) from err


def _path(verb: Verb, parameters: Sequence[Parameter], given: dict[str, Any]) -> str:
    segments = {p.name: quote(path_text(given[p.name]), safe=":@") for p in parameters if p.place == "path"}
    return verb.path.format(**segments)


def _is_in_query(parameter: Parameter, given: dict[str, Any]) -> bool:
    return parameter.place == "query" and given.get(parameter.name) is not None


def _query_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
