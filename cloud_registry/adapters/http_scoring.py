"""A scoring endpoint over HTTP: golden sets go in as .npz, and arrays come back."""

import io
import time
import zipfile
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
import requests

from cloud_registry.errors import RegistryError
from cloud_registry.ports import EndpointAnswer

NPZ = "application/x-npz"
# Under emulation a large model takes its time.
TIMEOUT_S = 120.0
_OUTPUT_PREFIX = "output."


class HttpScoring:
    """A ScoringEndpoint. Speaks to this machine, so never through a proxy."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False

    def is_ready(self) -> bool:
        try:
            return self._session.get(f"{self._url}/readyz", timeout=5).status_code == HTTPStatus.OK
        except requests.RequestException:
            # It starts: the port is published before anybody listens behind it.
            return False

    def metadata(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = self._checked(self._session.get(f"{self._url}/metadata", timeout=TIMEOUT_S)).json()
        except (requests.RequestException, ValueError) as err:
            raise RegistryError(f"the endpoint's metadata cannot be read: {err}") from err
        return told

    def score(self, inputs: Mapping[str, Any]) -> EndpointAnswer:
        file = io.BytesIO()
        np.savez(file, **{f"input.{name}": array for name, array in inputs.items()})
        response, latency_ms = self._post(file.getvalue(), {"accept": NPZ, "content-type": NPZ})
        try:
            with np.load(io.BytesIO(response.content), allow_pickle=False) as arrays:
                outputs = {name.removeprefix(_OUTPUT_PREFIX): arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as err:
            raise RegistryError(f"the endpoint's answer is no .npz file: {err}") from err
        return EndpointAnswer(outputs, latency_ms, _inside_ms(response.headers.get("server-timing", "")))

    def score_body(self, body: bytes) -> float:
        return self._post(body, {})[1]

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[requests.Response, float]:
        began_s = time.perf_counter()
        try:
            response = self._session.post(f"{self._url}/score", body, headers=dict(headers), timeout=TIMEOUT_S)
        except requests.RequestException as err:
            raise RegistryError(f"the endpoint did not answer a request: {err}") from err
        return self._checked(response), (time.perf_counter() - began_s) * 1000

    def _checked(self, response: requests.Response) -> requests.Response:
        if response.status_code != HTTPStatus.OK:
            try:
                said = str(response.json()["error"])
            except (ValueError, KeyError, TypeError):
                said = response.text[:200]
            raise RegistryError(f"the endpoint refused a request with {response.status_code}: {said}")
        return response


def _inside_ms(timing: str) -> float | None:
    """The time that the endpoint says its model took; https://www.w3.org/TR/server-timing/."""
    _, found, duration = timing.partition("run;dur=")
    try:
        return float(duration) if found else None
    except ValueError:
        return None
