"""Telling systemd how the agent is: datagrams to the socket that it names in the environment.

The protocol is one line (man sd_notify), and the packages for it have not been kept for years, so it is spoken here.
"""

import logging
import socket
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class SystemdNotifier:
    """Satisfies `ports.Supervisor`. Without a NOTIFY_SOCKET it tells nobody."""

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        # systemd writes '@' for the zero byte of an abstract address.
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str], process_id: int) -> "SystemdNotifier":
        """As systemd set it; a watchdog that was meant for another process is none of ours."""
        watched = environment.get("WATCHDOG_PID", str(process_id)) == str(process_id)
        text = environment.get("WATCHDOG_USEC", "")
        watchdog_s = int(text) / 1e6 if watched and text.isascii() and text.isdigit() and int(text) else None
        return cls(environment.get("NOTIFY_SOCKET") or None, watchdog_s)

    def tell(self, **fields: str) -> None:
        """Send ``NAME=value`` lines; a supervisor that does not listen is no reason to stop working."""
        if self._address is None:
            return
        lines = (f"{name}={' '.join(value.splitlines())}" for name, value in fields.items())
        message = "\n".join(lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
                door.setblocking(False)  # a full queue must not hold the event loop
                door.sendto(message, self._address)
        except OSError as err:
            _log.debug("systemd was not told %s: %s", ", ".join(fields), err)


def is_supervised(environment: Mapping[str, str]) -> bool:
    """Whether somebody starts this process again when it ends: systemd, or the IoT Edge runtime."""
    return any(environment.get(name) for name in ("NOTIFY_SOCKET", "INVOCATION_ID", "IOTEDGE_MODULEID"))
