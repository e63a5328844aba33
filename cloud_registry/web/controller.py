"""Drives rollouts in the background of a server: one look at all of them every few seconds."""

import logging
import threading
from collections.abc import Callable

from cloud_registry.errors import RegistryError

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0


class ControllerThread:
    """Calls `tick` every `interval_s` seconds until it is stopped, and then `let_go`.

    A tick that fails is told once and tried again.
    """

    def __init__(self, tick: Callable[[], None], let_go: Callable[[], None], interval_s: float) -> None:
        self._tick = tick
        self._let_go = let_go
        self._interval_s = interval_s
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout-controller", daemon=True)
        self._last_words = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Ask it to end after the tick that it is in; False where that tick did not end in time."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self._tick()
                self._last_words = ""
            except RegistryError as err:
                self._tell_once(f"the rollouts cannot be driven at the moment: {err.message}")
            except Exception as err:
                # Whatever it is, the rollouts must be driven again later.
                self._tell_once(f"the rollout controller failed and will try again: {type(err).__name__}: {err}")
                logger.debug("the failure of the rollout controller", exc_info=True)
            self._is_stopping.wait(self._interval_s)
        try:
            self._let_go()
        except RegistryError as err:
            # Nothing is lost: what was not let go of expires.
            self._tell_once(f"the rollouts could not be handed over at once: {err.message}")

    def _tell_once(self, words: str) -> None:
        if words != self._last_words:
            logger.error(words)
        self._last_words = words
