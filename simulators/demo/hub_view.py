"""Reads module twins over the hub's service REST interface, with one connection kept open: no process start a look."""

import base64
import hashlib
import hmac
import time
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

API_VERSION = "2021-04-12"
TOKEN_LIFETIME_S = 3600
TIMEOUT_S = 15.0


def parse_connection_string(text: str) -> dict[str, str]:
    """The parts of an IoT Hub connection string; a value, such as a key, may hold '='."""
    return dict(part.split("=", 1) for part in text.split(";") if "=" in part)


def service_token(host_name: str, policy: str, key: str, expires_at: int) -> str:
    """A shared access signature of a service policy.

    https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas
    """
    resource = quote(host_name, safe="")
    signed = f"{resource}\n{expires_at}".encode()
    signature = base64.b64encode(hmac.new(base64.b64decode(key), signed, hashlib.sha256).digest()).decode()
    return f"SharedAccessSignature sr={resource}&sig={quote(signature, safe='')}&se={expires_at}&skn={policy}"


class HubView:
    """The service side of a hub, as far as the live table needs it."""

    def __init__(self, connection_string: str, ca_file: str) -> None:
        parts = parse_connection_string(connection_string)
        self._host_name = parts["HostName"]
        self._policy, self._key = parts["SharedAccessKeyName"], parts["SharedAccessKey"]
        self._session = requests.Session()
        # Proxies and CA bundles of the user's shell are not meant for a hub on the loopback address.
        self._session.trust_env = False
        self._session.verify = ca_file
        # Asking twice is harmless, and a connection that was idle for long may have been closed just now.
        retry = Retry(total=2, allowed_methods=None, backoff_factor=0.2)
        self._session.mount("https://", HTTPAdapter(max_retries=retry))

    def module_twins(self, module_id: str) -> list[dict[str, Any]]:
        """The twins of every module of that name.

        Raises:
            requests.RequestException: the hub cannot be reached, or refuses.
        """
        token = service_token(self._host_name, self._policy, self._key, int(time.time()) + TOKEN_LIFETIME_S)
        twins: list[dict[str, Any]] = []
        continuation: str | None = None
        while True:
            response = self._session.post(
                f"https://{self._host_name}/devices/query?api-version={API_VERSION}",
                json={"query": f"SELECT * FROM devices.modules WHERE moduleId = '{module_id}'"},  # noqa: S608
                headers={"Authorization": token} | ({"x-ms-continuation": continuation} if continuation else {}),
                timeout=TIMEOUT_S,
            )
            response.raise_for_status()
            twins += response.json()
            continuation = response.headers.get("x-ms-continuation")
            if not continuation:
                return twins
