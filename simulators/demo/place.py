"""Where a demo takes place: a folder of its own, and a loopback address whose ports are free."""

import contextlib
import fcntl
import itertools
import os
import random
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

MQTT_PORT = 8883
HUB_HTTPS_PORT = 8443
ARTIFACTS_PORT = 8444
PORTS = (MQTT_PORT, HUB_HTTPS_PORT, ARTIFACTS_PORT)
ADDRESS_ATTEMPTS_MAX = 50
LOCK_NAME = "demo.lock"
# What a run makes in its folder, so that an old run can be cleared away without touching a stranger's files.
FOLDERS = ("hub", "registry", "devices", "materials", "logs")


class PlaceError(RuntimeError):
    """There is no place to run; the message says why and what to do."""


def are_free(address: str, ports: Sequence[int] = PORTS) -> bool:
    """True if each port can be bound on that address now."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do, so that a port in TIME_WAIT from an earlier run counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def choose_address(wanted: str | None, chance: random.Random) -> str:
    """127.0.0.1 where its ports are free, else another loopback address; the vendor's SDK knows port 8883 only.

    Raises:
        PlaceError: the wanted address is taken, or no free one was found.
    """
    if wanted is not None:
        if not are_free(wanted):
            raise PlaceError(f"One of the ports {_listed(PORTS)} on {wanted} is taken: free it or leave out --address.")
        return wanted
    others = (f"127.0.{chance.randint(0, 255)}.{chance.randint(2, 254)}" for _ in range(ADDRESS_ATTEMPTS_MAX))
    for address in itertools.chain(["127.0.0.1"], others):
        if are_free(address):
            return address
    raise PlaceError(
        f"No loopback address has the ports {_listed(PORTS)} free: another demo may be up; "
        "stop it with: python -m simulators.demo --stop"
    )


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(str(port) for port in ports)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the folder for one demo at a time.

    Raises:
        PlaceError: another demo runs in it now, or it holds somebody's files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK_NAME
    if not path.exists() and any(directory.iterdir()):
        raise PlaceError(f"{directory} holds files that are not a demo's: choose an empty folder with --directory.")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise PlaceError(
                f"A demo is running in {directory} already (process {owner}): "
                "let it end, or choose another folder with --directory."
            ) from err
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def clear(directory: Path) -> None:
    """Remove what an earlier run left in its folder, and nothing else."""
    for name in FOLDERS:
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir(parents=True)
