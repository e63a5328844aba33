"""What a device's key may fetch, asked by many at once while the hub is slow."""

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from cloud_registry.ports import FleetHub, Principal, Role
from cloud_registry.service import fleet_offers
from cloud_registry.service.fleet_offers import FleetOffers

PRINCIPAL = Principal("key:1", "line 3", frozenset({Role.DEVICE}), ("dev-01",))


class _SlowHub:
    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()

    def module_twin(self, *_: str) -> Any:
        self.asked.set()
        assert self.answers.wait(20)
        return SimpleNamespace(desired={})


def test_a_hub_that_is_slow_holds_up_nobody_whom_a_rollout_offers_the_file(monkeypatch):
    monkeypatch.setattr(fleet_offers, "offered_by_device", lambda _: {"dev-02": frozenset({"digits/1/model.onnx"})})
    hub = _SlowHub()
    offers = FleetOffers(list, lambda: cast("FleetHub", hub), "slipway", lambda: 0.0)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(offers.is_offered(PRINCIPAL, "digits/9/model.onnx")))
    other = threading.Thread(
        target=lambda: answers.append(offers.is_offered(replace(PRINCIPAL, devices=("dev-02",)), "digits/1/model.onnx"))
    )
    waiting.start()
    assert hub.asked.wait(20)
    other.start()
    other.join(10)
    assert answers == [True]
    hub.answers.set()
    waiting.join(20)
    assert answers == [True, False]
