"""URLs of places where files are kept. Pure."""

from collections.abc import Iterable
from urllib.parse import quote, urlsplit


def shown_url(url: str) -> str:
    """A URL as it may be told: without the password that some kinds of stores take in it."""
    scheme, separator, rest = url.rpartition("://")
    place, at, _host = rest.partition("/")[0].rpartition("@")
    return f"{scheme}{separator}…@{rest[len(place) + 1 :]}" if at and ":" in place else url


def is_one_of(url: str, places: Iterable[str]) -> bool:
    """Whether a URL is one of these, letter by letter: a path that leads to the same place by a detour is none."""
    return url.rstrip("/") in {place.rstrip("/") for place in places}


def server_folder_name(url: str) -> str:
    """What a folder about a server is called, one for each server: its host, port and path, without who asks it."""
    parts = urlsplit(url)
    return quote(parts.netloc.rpartition("@")[2] + parts.path.rstrip("/"), safe="")
