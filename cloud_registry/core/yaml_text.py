"""YAML from strangers: plain values, and no aliases, which multiply a few lines of text into gigabytes. Pure."""

from typing import Any

import yaml


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses an alias (*), which is not taken")
        return super().compose_node(parent, index)


def read_yaml(text: str) -> Any:
    """The values of one YAML document; raises yaml.YAMLError."""
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506  (a SafeLoader with less)
    except (RecursionError, ValueError) as err:
        raise yaml.YAMLError(str(err) or "it is nested too deeply") from err
