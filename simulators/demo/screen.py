"""The screen: a live picture below a story that scrolls by, or plain lines where nobody can draw."""

import sys
import time
from collections.abc import Sequence
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from simulators.demo.checks import Check
from simulators.demo.fleet import DeviceState
from simulators.demo.picture import MARKS, digest_line, scene
from simulators.demo.rollouts import RolloutView

REFRESH_PER_SECOND = 4
WIDTH_PLAIN = 80
# Columns left of the words, for the time or a mark.
MARGIN = 9


class Screen:
    """Tells the story. Use as a context, so that the live part is taken down whatever happens."""

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        if hasattr(stream, "reconfigure"):
            # A tick that the terminal's encoding lacks must not end the run.
            stream.reconfigure(errors="replace")
        width = None if stream.isatty() else WIDTH_PLAIN
        self.console = Console(file=stream, highlight=False, width=width)
        self._began = time.monotonic()
        self._live: Live | None = None
        self._last_digest = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.take_down()

    @property
    def can_draw(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def act(self, title: str) -> None:
        """Begin a part of the story."""
        self._print(Text())
        self._print(Text(title, style="bold"))

    def say(self, words: str | Text, style: str = "") -> None:
        """One line of the story, with the time since it began."""
        self._line(Text(f"{self.elapsed_s():5.1f} s", style="dim"), words, style)

    def check(self, check: Check) -> None:
        """An expectation that was just looked at."""
        self._line(Text("      ") + MARKS[check.held], f"{check.claim} ({check.seen})", "" if check.held else "red")

    def quote(self, lines: Sequence[str], style: str = "dim") -> None:
        """Lines that are to be copied or searched for, such as commands and the end of a log: never wrapped."""
        for line in lines:
            self.console.print(Text(line, style=style), soft_wrap=True)

    def show(self, states: Sequence[DeviceState], rollout: RolloutView | None) -> None:
        """The fleet as it is now."""
        if self.can_draw:
            if self._live is None:
                self._live = Live(console=self.console, refresh_per_second=REFRESH_PER_SECOND, transient=True)
                self._live.start()
            self._live.update(Group(Text(), scene(states, rollout)))
            return
        digest = digest_line(states, rollout)
        if digest != self._last_digest:
            self._last_digest = digest
            self.say(digest, "dim")

    def print(self, picture: RenderableType, indent: int = MARGIN) -> None:
        """Something to keep on the screen, such as a table; by default under the words of the story."""
        self._print(Padding(picture, (0, 0, 0, indent)))

    def take_down(self) -> None:
        """End the live part, and leave what was said."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, margin: Text, words: str | Text, style: str) -> None:
        text = Text(words, style=style) if isinstance(words, str) else words
        for number, line in enumerate(text.wrap(self.console, self.console.width - MARGIN)):
            line.rstrip()
            self._print((margin if number == 0 else Text(" " * (MARGIN - 2))) + Text("  ") + line)

    def _print(self, picture: RenderableType) -> None:
        if self.console.is_terminal:
            self.console.print(picture)
            return
        # In a file or a pipe, the blanks that fill up a table's lines are only in the way.
        with self.console.capture() as capture:
            self.console.print(picture)
        self.console.file.write("\n".join(line.rstrip() for line in capture.get().split("\n")))
        self.console.file.flush()
