"""Errors of the agent. Each says what we did, what we saw and, in its hint, what to do next."""

from manifests.exit_codes import ExitCode


class AgentError(Exception):
    """The root: a failure that a person can act on, so the command line prints it without a stack trace."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigurationError(AgentError):
    """The configuration is missing something or says something that cannot be."""

    exit_code = ExitCode.USAGE


class StateInUseError(AgentError):
    """Another process runs on this state directory."""

    exit_code = ExitCode.CONFLICT


class StateNotFoundError(AgentError):
    exit_code = ExitCode.NOT_FOUND


class ModelNotFoundError(AgentError):
    """This device knows no model of that name."""

    exit_code = ExitCode.NOT_FOUND


class CallRefusedError(AgentError):
    """A running agent answered a call with another status than 200; the exit code follows the status."""

    def __init__(self, message: str, exit_code: ExitCode, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class StateError(AgentError):
    """The state directory could not be read or written; `is_full` where the disk had no room."""

    def __init__(self, message: str, *, hint: str = "", is_full: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_full = is_full


class LinkError(AgentError):
    """The hub could not be reached, dropped the line or did not answer; trying again later makes sense."""

    exit_code = ExitCode.HUB_UNREACHABLE


class ThrottledError(LinkError):
    """The hub is there and asks for patience: too many requests at this moment, or the quota of the day is used up."""


class CredentialsRefusedError(AgentError):
    """The hub answered that the key, token or identity is not accepted; trying again at once makes no sense."""

    exit_code = ExitCode.TRUST


class IdentityChangedError(AgentError):
    """The provisioning service gave the device another name than it runs under; started again it runs under that."""

    exit_code = ExitCode.RESTART


class RefusedMessageError(AgentError):
    """A message that the hub will never take, such as one that is too large."""


class StepError(AgentError):
    """A step of an update did not succeed. `code` is one of core.codes; the message is one sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DownloadError(StepError):
    """A download ended early. `is_retryable` where the same request may succeed later."""

    def __init__(self, code: str, message: str, *, is_retryable: bool) -> None:
        super().__init__(code, message)
        self.is_retryable = is_retryable


class InferenceError(AgentError):
    """A model could not be run on a reading: the reading does not fit it, or its answer is not a number."""


class SensorError(AgentError):
    """The sensor gave no reading; asking again may help."""


class UnreadableReadingError(SensorError):
    """What came from the sensor is no reading; the message says why."""


class SensorEndedError(AgentError):
    """The sensor has no more readings: it was closed, or a replay is over."""
