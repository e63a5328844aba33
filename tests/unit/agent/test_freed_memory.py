"""When memory of models that are gone goes back to the system."""

from device_agent.adapters.freed_memory import FREED_BYTES_MIN, FreedMemory, trim


def test_small_models_wait_until_they_are_worth_the_pause() -> None:
    asked: list[str] = []
    memory = FreedMemory(lambda: asked.append("trim"))
    memory.freed(FREED_BYTES_MIN // 2)
    assert not asked
    memory.freed(FREED_BYTES_MIN // 2)
    assert asked == ["trim"]
    memory.freed(FREED_BYTES_MIN // 2)
    assert asked == ["trim"]


def test_a_large_model_is_given_back_at_once() -> None:
    asked: list[str] = []
    FreedMemory(lambda: asked.append("trim")).freed(FREED_BYTES_MIN)
    assert asked == ["trim"]


def test_the_system_is_asked_without_harm() -> None:
    trim()
