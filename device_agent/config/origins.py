"""Which setting has which value, and who said so. Secrets are named, never shown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from device_agent.config.settings import SECRET_NAMES, Settings, variable_of

SHOWN_SECRET = "(set, not shown)"  # noqa: S105  the very opposite of a password
DEFAULT = "default"
_SIGNATURE = re.compile(r"([?&]sig=)[^&]*")
_USER_INFO = re.compile(r"://[^/\s@]*@")


@dataclass(frozen=True, slots=True)
class Setting:
    """`key` is ``table.key`` for those of a table; `origin` is a flag, a variable, a file or ``default``."""

    key: str
    value: str
    origin: str

    def to_json(self) -> dict[str, str]:
        return {"key": self.key, "value": self.value, "origin": self.origin}


def origins_of(
    said: Mapping[str, Any],
    defaults: Mapping[str, Any],
    settings: Settings,
    file: tuple[Path | None, Mapping[str, Any]],
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
) -> list[Setting]:
    """Every setting in the order in which the documentation lists them.

    `said` are the keys outside tables as merged, `defaults` what holds where nothing was said, `file` the file with
    what it holds, `variables` the environment's names for keys outside tables.
    """
    path, in_file = file
    found = []
    for key, variable in variables.items():
        if flags.get(key) is not None:
            origin = "command line"
        elif environment.get(variable):
            origin = f"environment {variable}"
        else:
            origin = str(path) if key in in_file else DEFAULT
        found.append(Setting(key, _shown(key, said.get(key, defaults.get(key))), origin))
    for table in msgspec.structs.fields(Settings):
        values, written = getattr(settings, table.name), in_file.get(table.name, {})
        for entry in msgspec.structs.fields(type(values)):
            variable = variable_of(table.name, entry.name)
            origin = f"environment {variable}" if environment.get(variable) else DEFAULT
            if origin == DEFAULT and entry.name in written:
                origin = str(path)
            value = _shown(entry.name, getattr(values, entry.name))
            found.append(Setting(f"{table.name}.{entry.name}", value, origin))
    return found


def _shown(key: str, value: Any) -> str:
    if value is None or value in ("", ()):
        return "(not set)"
    if SECRET_NAMES.search(key):
        return SHOWN_SECRET
    if isinstance(value, tuple | list):
        value = ",".join(str(part) for part in value)
    return _SIGNATURE.sub(r"\1…", _USER_INFO.sub("://…@", str(value)))
