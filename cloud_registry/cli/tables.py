"""Tables for people: aligned columns, fitted to a terminal, and the same plain text everywhere else."""

import sys
from collections.abc import Iterable, Sequence

# Where nobody looks at a screen, no line is folded: a script may cut columns out of it.
PLAIN_WIDTH = 10_000


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()) -> str:
    """The rows under their column heads; the columns named in `numbers` are set flush right."""
    from rich.console import Console
    from rich.table import Table

    right = set(numbers)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_escaped(cell) for cell in row))
    is_terminal = sys.stdout.isatty()
    console = Console(
        width=None if is_terminal else PLAIN_WIDTH, no_color=not is_terminal, highlight=False, force_terminal=False
    )
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """One thing's facts, a line each; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    indent = " " * (width + 2)
    return "\n".join(f"{name:<{width}}  {value}".replace("\n", "\n" + indent) for name, value in shown)


def size_words(size_bytes: int) -> str:
    """A size as people read it, in powers of 1000: ``1.06 MB``."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{int(size)} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes everything")


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 file``, ``1,200 files``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _escaped(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)
