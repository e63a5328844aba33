"""Direct methods: what the cloud, or a person at the device, may ask of a running agent. A table of name -> method.

Handles: unknown names, malformed payloads, how long and how many at once, how large an answer may be.
Leaves to the caller: how a call comes in and how its answer goes out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from device_agent.core.json_reading import reading_of
from device_agent.errors import AgentError, InferenceError
from device_agent.ports import Reading
from device_agent.runtime.serving import Scored, Serving, View, score

# The hub waits 30 s for an answer unless its caller says otherwise.
METHOD_TIMEOUT_S = 25.0
# A fleet-wide script that calls in a loop must not keep the device from its work.
CALLS_AT_ONCE_MAX = 4
# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-direct-methods: payloads of either direction.
PAYLOAD_BYTES_MAX = 128 * 1024
LOG_LINES_MAX = 500
_LOG_LINES_ASKED = 100
_COUNT_ASKED, _COLLECT_ASKED_S = 100, 600.0
_COLLECT_WANTS = '{"count": how many readings, "seconds": within what time}'

_log = logging.getLogger(__name__)


class RefusedCallError(AgentError):
    """A call that is answered with another status than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Method:
    """`wants` says in words what payload it takes."""

    handler: Callable[[dict[str, Any]], Awaitable[Any]]
    wants: str


class Collector(Protocol):
    def request(self, count: int, duration_s: float) -> None:
        """Keep the next `count` readings that come within `duration_s`; raises ValueError for what cannot be asked."""
        ...


class RecentLines(Protocol):
    def recent(self, count: int, level: str) -> list[str]:
        """The newest lines, oldest first, of that level or a graver one."""
        ...


class Methods:
    """Answers calls. Used on the event loop only."""

    def __init__(self, table: Mapping[str, Method]) -> None:
        self._table = dict(table)
        self._calls = 0

    async def answer(self, name: str, payload: Any) -> tuple[int, Any]:
        """(status, payload) of one call, within METHOD_TIMEOUT_S; never raises but for a cancellation."""
        try:
            method = self._method(name)
            arguments = _arguments(name, method, payload)
            return 200, _bounded(name, await self._call(method, arguments))
        except RefusedCallError as err:
            return err.status, {"error": err.message}
        except AgentError as err:
            return 400, {"error": err.message, **({"hint": err.hint} if err.hint else {})}
        except TimeoutError:
            return 504, {"error": f"{name} gave no answer in {METHOD_TIMEOUT_S:.0f} s."}
        except Exception as err:  # noqa: BLE001  a call from far away must never take the agent down
            _log.exception("the method %s failed unexpectedly", name)
            return 500, {"error": f"{name} failed unexpectedly: {type(err).__name__}; its log says more."}

    def _method(self, name: str) -> Method:
        if name not in self._table:
            raise RefusedCallError(404, f"There is no method {name}; there are {', '.join(sorted(self._table))}.")
        return self._table[name]

    async def _call(self, method: Method, arguments: dict[str, Any]) -> Any:
        if self._calls >= CALLS_AT_ONCE_MAX:
            raise RefusedCallError(503, f"{self._calls} calls are being answered already; try again later.")
        self._calls += 1
        try:
            async with asyncio.timeout(METHOD_TIMEOUT_S):
                return await method.handler(arguments)
        finally:
            self._calls -= 1


def _arguments(name: str, method: Method, payload: Any) -> dict[str, Any]:
    if payload is None or payload == "":
        return {}
    if not isinstance(payload, dict):
        raise RefusedCallError(400, f"{name} takes {method.wants}; this payload is no JSON object.")
    return payload


def _bounded(name: str, answer: Any) -> Any:
    size_bytes = len(msgspec.json.encode(answer))
    if size_bytes > PAYLOAD_BYTES_MAX:
        raise RefusedCallError(
            413, f"The answer of {name} has {size_bytes:,} bytes; a hub takes at most {PAYLOAD_BYTES_MAX:,}."
        )
    return answer


def _whole_number(arguments: Mapping[str, Any], key: str, default: int, highest: int) -> int:
    value = arguments.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= highest:
        raise RefusedCallError(400, f"{key} is {value!r}; it is a whole number from 1 to {highest}.")
    return value


# Methods with rules of their own --------------------------------------------------------------------------------------


def score_method(serving: Serving) -> Method:
    """Score inputs by the model that serves. It is no reading of the sensor: neither trial nor telemetry hear of it."""

    async def handler(arguments: dict[str, Any]) -> Any:
        view = _asked_view(serving, arguments.get("model"))
        processing = view.served.release.processing
        is_raw = processing is not None and bool(processing.inputs)
        inputs = reading_of(arguments.get("inputs"), view.served.model.signature, is_raw=is_raw)
        alone = replace(view, reference=None, tally=None)
        scored: Scored = await asyncio.to_thread(score, alone, Reading("asked", inputs))
        if scored.answer is None:
            raise InferenceError(scored.error or "the model gave no answer")
        return {
            "model": view.name,
            "version": view.served.release.version,
            "digest": view.served.model.digest,
            "prediction": scored.answer.prediction,
            "confidence": scored.answer.confidence,
            "values": dict(scored.answer.values),
            "latencyMs": round(scored.latency_ms, 4),
        }

    return Method(handler, '{"inputs": {tensor: numbers, without a batch axis}, "model": its name where several serve}')


def _asked_view(serving: Serving, name: Any) -> View:
    views = serving.views()
    if not views:
        raise RefusedCallError(503, "No model serves on this device yet.")
    if name is None and len(views) == 1:
        return next(iter(views.values()))
    if name not in views:
        known = ", ".join(sorted(views))
        asked = "Which model?" if name is None else f"No model {name!r} serves here."
        raise RefusedCallError(400 if name is None else 404, f"{asked} There are {known}.")
    return views[name]


def logs_method(lines: RecentLines) -> Method:
    """The newest lines of the agent's log, as many of them as an answer holds."""

    async def handler(arguments: dict[str, Any]) -> Any:
        count = _whole_number(arguments, "lines", _LOG_LINES_ASKED, LOG_LINES_MAX)
        level = str(arguments.get("level", "debug")).lower()
        if level not in ("debug", "info", "warning", "error"):
            raise RefusedCallError(400, f"level is {level!r}; it is debug, info, warning or error.")
        found = lines.recent(count, level)
        # Half of it is room for what JSON escapes.
        while found and sum(len(line) + 4 for line in found) > PAYLOAD_BYTES_MAX // 2:
            found = found[len(found) // 4 + 1 :]
        return {"lines": found}

    return Method(handler, f'{{"lines": 1 to {LOG_LINES_MAX}, "level": "debug|info|warning|error"}}')


def collect_method(collector: Collector | None) -> Method:
    """Keep the next readings with their answers and send them; the answer only says that it began."""

    async def handler(arguments: dict[str, Any]) -> Any:
        if collector is None:
            raise RefusedCallError(501, "This device collects nothing: enabled is not set in [collection].")
        count, duration_s = arguments.get("count", _COUNT_ASKED), arguments.get("seconds", _COLLECT_ASKED_S)
        for name, value, kinds in (("count", count, int), ("seconds", duration_s, int | float)):
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise RefusedCallError(400, f"{name} is {value!r}; collect takes {_COLLECT_WANTS}.")
        try:
            collector.request(count, float(duration_s))
        except ValueError as err:
            raise RefusedCallError(400, f"{err}.") from err
        return {"collecting": count, "seconds": duration_s}

    return Method(handler, _COLLECT_WANTS)


def restart_method(restart: Callable[[], None], delay_s: float) -> Method:
    """Answer first; the agent ends when the answer has had `delay_s` to leave."""

    async def handler(arguments: dict[str, Any]) -> Any:  # noqa: ARG001
        _log.warning("A restart was asked for by direct method.")
        asyncio.get_running_loop().call_later(delay_s, restart)
        return {"restarting": True}

    return Method(handler, "nothing")


def plain_method(answer: Callable[[], Any]) -> Method:
    """A method without a payload whose answer is at hand."""

    async def handler(arguments: dict[str, Any]) -> Any:  # noqa: ARG001
        return answer()

    return Method(handler, "nothing")
