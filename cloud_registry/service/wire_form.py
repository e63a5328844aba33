"""How a verb's arguments and result are spelled on the wire, from the types of its protocol.

Values are JSON by msgspec: documents in their wire form, dataclasses by their fields. A path stands for bytes that were
uploaded before: ``{"upload": id, "name": name}``, or ``{"folder": name, "files": [...]}``.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from cloud_registry.errors import UsageError
from cloud_registry.service.verbs import Verb
from manifests.identity import ModelReference

LISTENER_PREFIX = "on_"


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: Any
    place: str  # "path", "query" or "body"
    is_required: bool

    @property
    def wire_name(self) -> str:
        first, *rest = self.name.split("_")
        return first + "".join(word.capitalize() for word in rest)


@dataclass(frozen=True, slots=True)
class Shape:
    """A verb's parameters, listeners and result as types. A streamed result comes as one JSON value a line."""

    parameters: tuple[Parameter, ...]
    listeners: Mapping[str, tuple[Any, ...]]
    result: Any
    is_streamed: bool


@lru_cache(maxsize=256)
def shape_of(verb: Verb) -> Shape:
    method = getattr(verb.protocol, verb.name)
    hints = typing.get_type_hints(method)
    parameters, listeners = [], {}
    for name, parameter in list(inspect.signature(method).parameters.items())[1:]:
        if name.startswith(LISTENER_PREFIX):
            listeners[name] = _arguments_of(hints[name])
            continue
        in_path = "{" + name + "}" in verb.path
        place = "path" if in_path else "query" if verb.method in ("GET", "DELETE") else "body"
        is_required = parameter.default is inspect.Parameter.empty
        parameters.append(Parameter(name, _concrete(hints[name]), place, is_required))
    result = hints["return"]
    is_streamed = typing.get_origin(result) is collections.abc.Iterator
    if is_streamed:
        (result,) = typing.get_args(result)
    return Shape(tuple(parameters), listeners, result, is_streamed)


def _concrete(type_: Any) -> Any:
    """What can be read for a type that is only good for taking: any iterable is a list on the wire."""
    if typing.get_origin(type_) is collections.abc.Iterable:
        return list[typing.get_args(type_)[0]]  # type: ignore[misc]
    return type_


def _arguments_of(listener: Any) -> tuple[Any, ...]:
    """The types that a listener, ``Callable[[…], None] | None``, is called with."""
    if typing.get_origin(listener) in (typing.Union, types.UnionType):
        listener = next(each for each in typing.get_args(listener) if each is not type(None))
    return tuple(typing.get_args(listener)[0])


def bound_arguments(verb: Verb, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by parameter name, listeners among them; those at their default are left out."""
    signature = inspect.signature(getattr(verb.protocol, verb.name))
    bound = signature.bind(None, *arguments, **named).arguments
    return dict(list(bound.items())[1:])


def encode(value: Any, path_form: Callable[[Path], Any] | None = None) -> bytes:
    """JSON; `path_form` says what stands for a path."""

    def hook(each: Any) -> Any:
        if isinstance(each, Path) and path_form is not None:
            return path_form(each)
        if isinstance(each, collections.abc.Mapping):
            return dict(each)
        if isinstance(each, collections.abc.Iterable):
            return list(each)
        raise TypeError(f"{type(each).__name__} has no wire form")

    return msgspec.json.encode(value, enc_hook=hook)


def decode(
    text: bytes, type_: Any, path_of: Callable[[Any], Path] | None = None, *, what: str = "the request's body"
) -> Any:
    """The value; raises UsageError for what is no JSON or of another shape."""
    try:
        return convert(msgspec.json.decode(text), type_, path_of, what=what)
    except (msgspec.DecodeError, RecursionError) as err:
        raise UsageError(f"{what} cannot be read: {err}") from err


def convert(
    value: Any,
    type_: Any,
    path_of: Callable[[Any], Path] | None = None,
    *,
    what: str = "the request's body",
    strict: bool = True,
) -> Any:
    def hook(wanted: type, given: Any) -> Any:
        if isinstance(wanted, type) and issubclass(wanted, Path) and path_of is not None:
            return path_of(given)
        raise TypeError(f"{wanted!r} has no wire form")

    if type_ is None or type_ is type(None):
        type_ = type(None)
    try:
        return msgspec.convert(value, type_, strict=strict, dec_hook=hook)
    except (msgspec.ValidationError, TypeError) as err:
        raise UsageError(f"{what} cannot be read: {err}", hint="The server's /openapi.json describes it.") from err


def path_text(value: Any) -> str:
    """A value as a segment of a path."""
    return str(value)


def path_value(text: str, type_: Any) -> Any:
    """A segment of a path as its parameter's value; raises ManifestError or UsageError."""
    if type_ is ModelReference:
        return ModelReference.parse(text)
    return convert(text, type_, what=f"{text[:80]!r} in the path", strict=False)
