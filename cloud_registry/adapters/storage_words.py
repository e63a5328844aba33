"""Failures of an object store in words: unreachable, refused, not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from cloud_registry.errors import RegistryError

# What the clients of object stores are made of; they share no root exception.
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "azure", "botocore", "s3fs", "adlfs"})
REASON_LENGTH_MAX = 300


@contextmanager
def storage_words(url: str) -> Iterator[None]:
    """Turn what an object store's client raises into our errors. A file that may be absent is asked for inside."""
    try:
        yield
    except RegistryError:
        raise
    except FileNotFoundError as err:
        raise RegistryError(
            f"the artifact store at {url} is not there: {_reason(err)}",
            hint="Create the bucket or container, or check SLIPWAY_ARTIFACTS.",
        ) from err
    except PermissionError as err:
        raise RegistryError(
            f"the artifact store at {url} refused access: {_reason(err)}",
            hint="Check its credentials (AWS_… or AZURE_STORAGE_…) and what they may do there.",
        ) from err
    except Exception as err:
        if not isinstance(err, OSError) and type(err).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise RegistryError(
            f"the artifact store at {url} failed: {_reason(err)}",
            hint="Run the command again: what arrived so far is kept. Check SLIPWAY_ARTIFACTS and the store's health.",
        ) from err


def _reason(err: BaseException) -> str:
    """The first line of what was said, and of what caused it where that tells more."""
    said = str(err) or type(err).__name__
    return said.splitlines()[0][:REASON_LENGTH_MAX]
