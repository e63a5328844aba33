"""MQTT topics: patterns of a sensor, the templates of a mirror, and which model wants which reading. Pure."""

import string
from collections.abc import Mapping
from fnmatch import fnmatchcase

from device_agent.errors import ConfigurationError

TOPIC_BYTES_MAX = 65_535
TEMPLATE_FIELDS = ("device", "module", "model")
# What no level of a topic may hold: they mean something in a pattern, or begin a new level.
_NOT_IN_A_LEVEL = str.maketrans("/+#\0", "____")


def check_pattern(pattern: str) -> str:
    """A topic filter of MQTT 3.1.1 §4.7; raises ConfigurationError that says which level is wrong."""
    hint = "Write levels with / between: + stands for any one level, # at the end for all that follow."
    if not pattern or "\0" in pattern or len(pattern.encode()) > TOPIC_BYTES_MAX:
        raise ConfigurationError("The topic pattern is empty, too long or holds a NUL character.", hint=hint)
    levels = pattern.split("/")
    for number, level in enumerate(levels, 1):
        if "#" in level and (level != "#" or number < len(levels)):
            raise ConfigurationError(f"The topic pattern {pattern!r} has a # that is not its last level.", hint=hint)
        if "+" in level and level != "+":
            raise ConfigurationError(f"The topic pattern {pattern!r} has a + beside other characters.", hint=hint)
    return pattern


def topic_filter(pattern: str) -> str:
    """What of a pattern topics are compared with: all but the head of a shared subscription, ``$share/GROUP/…``."""
    check_pattern(pattern)
    if not pattern.startswith("$share/"):
        return pattern
    return check_pattern(pattern.split("/", 2)[2] if pattern.count("/") > 1 else "")


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is meant by a pattern (MQTT 3.1.1 §4.7)."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, want in enumerate(wanted):
        if want == "#":
            return True
        if position >= len(levels) or want not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def check_template(template: str) -> str:
    """The topic template of a mirror; raises ConfigurationError."""
    hint = f"It may hold {', '.join('{' + name + '}' for name in TEMPLATE_FIELDS)}, as in slipway/{{device}}/{{model}}."
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as err:
        raise ConfigurationError(f"The mirror's topic {template!r} is no template: {err}.", hint=hint) from err
    unknown = [field for field in fields if field not in TEMPLATE_FIELDS]
    if unknown:
        raise ConfigurationError(f"The mirror's topic {template!r} holds the unknown {{{unknown[0]}}}.", hint=hint)
    if not template or set(template) & set("+#\0"):
        raise ConfigurationError(f"The mirror's topic {template!r} is empty or holds a wildcard.", hint=hint)
    return template


def topic_of(template: str, names: Mapping[str, str]) -> str:
    """The topic for these names; what a level may not hold becomes an underscore."""
    return template.format(**{key: names.get(key, "").translate(_NOT_IN_A_LEVEL) for key in TEMPLATE_FIELDS})


def wants(pattern: str, origin: str, *, is_topic: bool) -> bool:
    """Whether a model with that pattern wants a reading of that origin: a topic, or a file's name with * and ?."""
    return matches(pattern, origin) if is_topic else fnmatchcase(origin, pattern)
