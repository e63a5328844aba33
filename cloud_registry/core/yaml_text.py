"""YAML from strangers: plain values, and no aliases, which multiply a few lines of text into gigabytes. Pure."""

from typing import Any


class YamlTextError(ValueError):
    """The text is no YAML that is taken; the message says why."""


def read_yaml(text: str) -> Any:
    """The values of one YAML document; raises YamlTextError."""
    # Loaded when there is some: most commands read none.
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it uses an alias (*), which is not taken")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, PlainLoader)  # noqa: S506  (a SafeLoader with less)
    except yaml.YAMLError as err:
        raise YamlTextError(str(err)) from err
    except (RecursionError, ValueError) as err:
        raise YamlTextError(str(err) or "it is nested too deeply") from err
