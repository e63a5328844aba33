"""Errors on the wire: what a server raises is raised again by its client, with its words and exit code. Pure."""

import msgspec

from cloud_registry import errors
from cloud_registry.errors import RegistryError
from manifests.errors import ManifestError
from manifests.exit_codes import ExitCode

# The nearest of these is what an error travels as. HTTP's own meanings come first, then our exit codes tell more.
_STATUS: dict[type[Exception], int] = {
    errors.AccessDeniedError: 403,
    errors.MetadataRefusedError: 422,
    errors.TrustError: 401,
    errors.UsageError: 400,
    ManifestError: 400,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.GateRefusedError: 409,
    errors.RefusedModelError: 422,
    errors.DamagedUploadError: 422,
    errors.BodyTooLargeError: 413,
    errors.NoRoomError: 507,
    errors.HubUnreachableError: 502,
    errors.HubError: 502,
    errors.ServerUnreachableError: 503,
    RegistryError: 500,
}
_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in _STATUS}


class Problem(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The JSON of every answer that is none of success. Fields are only ever added."""

    error: str
    hint: str = ""
    kind: str = "RegistryError"
    exit_code: int = 1
    # Of a hub's refusal alone.
    hub_status: int | msgspec.UnsetType = msgspec.UNSET


def problem_of(err: Exception) -> tuple[int, Problem]:
    """The HTTP status and the JSON of an error of ours."""
    kind = next(each for each in type(err).__mro__ if each in _STATUS)
    if isinstance(err, ManifestError):
        return _STATUS[kind], Problem(error=str(err), kind=kind.__name__, exit_code=int(errors.UsageError.exit_code))
    assert isinstance(err, RegistryError)
    problem = Problem(
        error=err.message,
        hint=err.hint,
        kind=kind.__name__,
        exit_code=int(err.exit_code),
        hub_status=err.status if isinstance(err, errors.HubError) else msgspec.UNSET,
    )
    return _STATUS[kind], problem


def error_of(problem: Problem) -> Exception:
    """The error that a problem tells of. A kind that a newer server knows keeps its words and its exit code."""
    kind = _KINDS.get(problem.kind)
    if kind is ManifestError:
        return ManifestError(problem.error)
    if kind is not None and issubclass(kind, errors.HubError):
        return kind(problem.error, hint=problem.hint, status=problem.hub_status or 0)
    if kind is not None and issubclass(kind, RegistryError):
        return kind(problem.error, hint=problem.hint)
    unknown = RegistryError(problem.error, hint=problem.hint)
    # A failure is none of success, whatever it says of itself.
    if problem.exit_code in set(ExitCode) - {ExitCode.DONE}:
        unknown.exit_code = ExitCode(problem.exit_code)
    return unknown
