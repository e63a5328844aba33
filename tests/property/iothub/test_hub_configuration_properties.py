"""Configurations under any history come to what the configurations of the end would have come to at once."""

import json
from typing import Any

from hub_worlds import World
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.iothub.core.configurations import Configurations
from simulators.iothub.core.registry import IdentityId

SITES = ("north", "south")
PATHS = ("a", "a.x", "a.y", "b", "b.x.z")
DEVICES = ("d1", "d2", "e1")
NAMES = ("c1", "c2", "c3")
CONDITIONS = ("*", "", "tags.site = 'north'", "NOT tags.site = 'north'", "deviceId = 'd1'")
CONTENTS = st.dictionaries(st.sampled_from(PATHS), st.sampled_from((1, 2, {"x": 3}, {"y": {"q": 4}})), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NAMES), CONTENTS, st.sampled_from(CONDITIONS), st.integers(0, 3)),
        st.tuples(st.just("change"), st.sampled_from(NAMES), st.sampled_from(CONDITIONS), st.integers(0, 3)),
        st.tuples(st.just("delete"), st.sampled_from(NAMES)),
        st.tuples(st.just("tag"), st.sampled_from(DEVICES), st.sampled_from(SITES)),
        st.tuples(st.just("again"), st.sampled_from(DEVICES)),
        st.tuples(st.just("work"), st.integers(1, 2)),
        st.tuples(st.just("restart")),
    ),
    max_size=15,
)


class History:
    """A hub, and beside it what a person would remember of its configurations."""

    def __init__(self) -> None:
        self.world = World()
        self.hub = self.world.hub
        self.remembered: dict[str, tuple[int, float, dict[str, Any], str]] = {}
        for name in DEVICES:
            self.register(name)

    def register(self, name: str) -> None:
        self.world.register(name)
        mine = {"properties": {"desired": {"mine": name}}, "tags": {"site": "north"}}
        self.hub.patch_twin(IdentityId(name), mine, None, self.world.clock.now)

    def apply(self, step: tuple[Any, ...]) -> None:
        self.world.clock.now += 1
        now = self.world.clock.now
        match step:
            case "put", name, settings_, condition, priority if name not in self.remembered:
                content = {"deviceContent": {f"properties.desired.{path}": value for path, value in settings_.items()}}
                body = {"id": name, "content": content, "targetCondition": condition, "priority": priority}
                self.hub.configurations.put(name, body, None, now)
                self.remembered[name] = (priority, now, settings_, condition)
            case "change", name, condition, priority if name in self.remembered:
                body = {"id": name, "targetCondition": condition, "priority": priority}
                self.hub.configurations.put(name, body, "*", now)
                _, created_at, settings_, _ = self.remembered[name]
                self.remembered[name] = (priority, created_at, settings_, condition)
            case "delete", name if name in self.remembered:
                self.hub.configurations.delete(name, None)
                del self.remembered[name]
            case "tag", name, site:
                self.hub.patch_twin(IdentityId(name), {"tags": {"site": site}}, None, now)
            case "again", name:
                self.hub.delete_identity(IdentityId(name), None, now)
                self.register(name)
            case "work", count:
                self.hub.configurations.step(now, count)
            case ("restart",):
                self.restart()

    def restart(self) -> None:
        old = self.hub.configurations
        keys = [f"configuration/{name}" for name in NAMES] + [f"standing/device/{name}" for name in DEVICES]
        kept = [(key, json.loads(json.dumps(old.record(key)))) for key in keys]
        self.hub.configurations = Configurations(self.hub.fleet)
        for key, record in reversed(kept):
            if record is not None:
                self.hub.configurations.restore(key, record)

    def finish(self) -> None:
        for _ in range(100):
            if not self.hub.advance(self.world.clock.now):
                return
        raise AssertionError("the work does not end")

    def expected(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Desired properties and statuses of a device, by the rules alone."""
        site = self.hub.twin(IdentityId(name)).tags["site"]
        holds = {
            "*": True,
            "": False,
            "tags.site = 'north'": site == "north",
            "NOT tags.site = 'north'": site != "north",
            "deviceId = 'd1'": name == "d1",
        }
        ranked = sorted((*rest, key) for key, rest in self.remembered.items() if holds[rest[3]])
        values: dict[str, Any] = {"mine": name}
        statuses = {}
        settings_of = [
            sorted(settings_.items(), key=lambda item: item[0].count(".")) for _, _, settings_, _, _ in ranked
        ]
        for number, (_, _, own, _, key) in enumerate(ranked):
            above = [path for later in settings_of[number + 1 :] for path, _ in later]
            wins = [path for path in own if not any(path == other or path.startswith(other + ".") for other in above)]
            statuses[key] = "Applied" if wins or not own else "Targeted"
            for path, value in settings_of[number]:
                *parents, last = path.split(".")
                node = values
                for parent in parents:
                    if not isinstance(node.get(parent), dict):
                        node[parent] = {}
                    node = node[parent]
                node[last] = json.loads(json.dumps(value))
        return values, statuses


def without_empty(values: Any) -> Any:
    """A tree without empty objects: whether a parent that lost its last child stays is nobody's concern."""
    if not isinstance(values, dict):
        return values
    shrunk = {key: without_empty(value) for key, value in values.items()}
    return {key: value for key, value in shrunk.items() if value != {}}


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_any_history_comes_to_what_the_rules_say(steps: list[tuple[Any, ...]]) -> None:
    history = History()
    for step in steps:
        history.apply(step)
    history.finish()
    for name in DEVICES:
        values, statuses = history.expected(name)
        twin = history.hub.twin(IdentityId(name))
        assert without_empty(twin.desired.values) == without_empty(values)
        shown = history.hub.twin_document(IdentityId(name)).get("configurations", {})
        assert {key: entry["status"] for key, entry in shown.items()} == statuses
    for key in history.remembered:
        metrics = history.hub.configurations.document(key)["systemMetrics"]
        counted = {
            metric: len(history.hub.query(text, None, 100).rows)
            for metric, text in metrics["queries"].items()
            if metric != "targetedCount" or history.remembered[key][3]
        }
        assert {metric: metrics["results"][metric] for metric in counted} == counted
