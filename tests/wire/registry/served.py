"""A registry's server in this process, on real sockets, and people with keys of every role."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
import uvicorn

from cloud_registry import server_wiring, wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.web.bounded_head import BoundedHead


@dataclass
class Served:
    """`config` is the server's own; `as_role` gives the settings of a person somewhere else."""

    config: RegistryConfig
    url: str
    keys: dict[str, str]
    home: Path

    def as_role(self, role: str) -> RegistryConfig:
        elsewhere = read_config(self.home.with_name("elsewhere"), {})
        return replace(elsewhere, registry_url=self.url, api_key=self.keys[role])

    def ask(self, method: str, path: str, role: str | None = None, **more: Any) -> requests.Response:
        headers = {**({"Authorization": f"Bearer {self.keys[role]}"} if role else {}), **more.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=20, **more)

    def audit(self) -> list[str]:
        return (self.home / "audit.jsonl").read_text().splitlines()


def make_keys(config: RegistryConfig) -> dict[str, str]:
    keys = wiring.open_keys(config)
    made = {role: keys.create(f"a {role}", [role])[1] for role in ("reader", "publisher", "operator")}
    return made | {"device": keys.create("dev-01", ["device"], ["dev-01"])[1]}


@contextmanager
def listening(config: RegistryConfig, **limits: Any) -> Iterator[str]:
    """The server on a free port; its URL."""
    app = server_wiring.open_server(config, server_wiring.ServerLimits(**limits))
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(app, log_level="warning", lifespan="off", http=BoundedHead, timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server never came up"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@contextmanager
def serving(home: Path, config: RegistryConfig | None = None, **limits: Any) -> Iterator[Served]:
    own = config or read_config(home, {})
    keys = make_keys(own)
    with listening(own, **limits) as url:
        yield Served(own, url, keys, home)
