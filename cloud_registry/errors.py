"""Errors of the registry. Each says what we did, what we saw and, in its hint, what to do next."""

from manifests.exit_codes import ExitCode


class RegistryError(Exception):
    """The root: a failure that a person can act on, so the command line prints it without a stack trace."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RefusedModelError(RegistryError):
    """A model file that cannot be registered: it does not load, or does not fit its sample."""


class GateRefusedError(RegistryError):
    exit_code = ExitCode.GATE_REFUSED


class HubError(RegistryError):
    """The hub answered, with a refusal. `status` is its HTTP status code."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class HubUnreachableError(RegistryError):
    exit_code = ExitCode.HUB_UNREACHABLE


class ConflictError(RegistryError):
    exit_code = ExitCode.CONFLICT


class NotFoundError(RegistryError):
    exit_code = ExitCode.NOT_FOUND


class TrustError(RegistryError):
    exit_code = ExitCode.TRUST


class UsageError(RegistryError):
    exit_code = ExitCode.USAGE


class AccessDeniedError(TrustError):
    """Somebody who was recognised asks for what his role does not include."""


class MetadataRefusedError(TrustError):
    """Signed metadata that somebody sent is not what may be published."""


class ServerUnreachableError(RegistryError):
    """The registry is a server somewhere else, and it does not answer."""

    exit_code = ExitCode.HUB_UNREACHABLE


class BodyTooLargeError(UsageError):
    """A request's body, or a file, is larger than the server takes."""


class DamagedUploadError(RegistryError):
    """What came is not what was announced: another digest."""


class NoRoomError(RegistryError):
    """The server's disk has no room for what is to be sent."""
