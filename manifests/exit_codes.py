"""What the exit code of every command line of ours means."""

import enum


class ExitCode(enum.IntEnum):
    """Stable: scripts branch on these numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    GATE_REFUSED = 3
    HUB_UNREACHABLE = 4
    CONFLICT = 5  # in use, exists already, or changed meanwhile
    NOT_FOUND = 6
    TRUST = 7  # a key, token, certificate or digest was not accepted
    RESTART = 8  # start it again: it was asked to, or runs under a new name
