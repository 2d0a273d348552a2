"""What a run looks like while it runs: one state, three faces (terminal, notebook, plain text).

It owns the progress and how it is drawn; it decides nothing about the run. The lab's thread changes
the progress, the waiting thread draws it on its ticks: a notebook takes output only from the thread
that runs the cell, and drawing in the measured loop would be measured too.

The notebook's face is one HTML output updated under one id: it needs no widgets, and a notebook
that is saved keeps its last state. Without a terminal (a pipe, a file), each turn that ends is
one line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from kode_lab.lab import is_notebook

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Card", "Pace", "Progress", "Row", "card_for"]

_BAR_CHARS = 16
# Between two pictures. Drawing holds the interpreter that the measured loop needs too: at ten a
# second, a terminal added 2 to 36 ms to a turn of 1.7 s (four pairs of runs, with and without).
_PAUSE_S = 0.5
# Before this share is done, an estimate would jump.
_ESTIMATE_FROM = 0.02
# A terminal this narrow has no room for a test's name and a long bar.
_NARROW_CHARS = 76


@dataclass(slots=True)
class Row:
    """One turn in progress.

    Attributes:
        expected_s: how long it should take, for the bar; 0 where that is not known.
        part: how much of it is done, where that is counted and not guessed from the time.
        is_broken: it was interrupted or failed, so that its bar stays where it was.
    """

    test: str
    name: str
    session: str
    expected_s: float = 0.0
    began_ns: int = 0
    ended_ns: int = 0
    doing: str = "not yet asked"
    tool_calls: int = 0
    part: float = 0.0
    is_broken: bool = False

    def elapsed_s(self, now_ns: int) -> float:
        """Seconds since it was sent, or until it ended."""
        return ((self.ended_ns or now_ns) - self.began_ns) / 1e9 if self.began_ns else 0.0

    def share(self, now_ns: int) -> float:
        """How much of it is done; 1 only when it ended by itself."""
        if self.ended_ns and not self.is_broken:
            return 1.0
        if self.part:
            return min(self.part, 0.99)
        return min(self.elapsed_s(now_ns) / self.expected_s, 0.99) if self.expected_s else 0.0

    def left_s(self, now_ns: int) -> float:
        """Return an estimate of the seconds until its end; 0 where there is none."""
        if self.ended_ns or not self.began_ns:
            return 0.0
        elapsed_s = self.elapsed_s(now_ns)
        if self.part > _ESTIMATE_FROM:
            return elapsed_s / self.part * (1 - self.part)
        return max(0.0, self.expected_s - elapsed_s)


@dataclass(slots=True)
class Progress:
    """The state of a run, for its display.

    Attributes:
        where: the run's directory, as the user named it.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    where: str = ""
    status: str = "starting"
    clock_ns: Callable[[], int] = time.monotonic_ns


class Card(Protocol):
    """Whatever shows a progress."""

    def draw(self, progress: Progress) -> None:
        """Show it as it is now."""
        ...

    def close(self) -> None:
        """Leave the last state, or nothing, behind."""
        ...


class Pace:
    """Draws a progress on a card, but not at every tick."""

    def __init__(self, card: Card, progress: Progress) -> None:
        self._card = card
        self._progress = progress
        self._due_ns = 0

    def tick(self) -> None:
        """Draw, if the last picture is old enough."""
        now_ns = self._progress.clock_ns()
        if now_ns >= self._due_ns:
            self._due_ns = now_ns + int(_PAUSE_S * 1e9)
            self._card.draw(self._progress)

    def end(self) -> None:
        """Draw the last picture, and leave."""
        self._card.draw(self._progress)
        self._card.close()


def card_for(stream: TextIO | None = None) -> Card:
    """Return the card that suits where we are: a notebook, a terminal, or neither."""
    if stream is None and is_notebook():
        return _NotebookCard()
    stream = stream or sys.stdout
    return _TerminalCard(stream) if stream.isatty() else _PlainCard(stream)


class _PlainCard:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told: set[tuple[str, str]] = set()

    def draw(self, progress: Progress) -> None:
        for row in progress.rows:
            if row.ended_ns and (row.test, row.name) not in self._told:
                self._told.add((row.test, row.name))
                # A reader that left (`| head`) is no reason to break off what it no longer watches.
                with suppress(BrokenPipeError):
                    self._stream.write(f"{row.test}  {row.name}  {_state(row, row.ended_ns)}\n")
                    self._stream.flush()

    def close(self) -> None:
        pass


class _TerminalCard:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415 - only who has a terminal pays for it
        from rich.live import Live  # noqa: PLC0415

        console = Console(file=stream)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        # Loads all that drawing needs, while nothing is measured yet.
        self._width = console.width
        console.measure(_terminal_table(Progress("", [Row("", "", "")]), self._width))

    def draw(self, progress: Progress) -> None:
        # Begun with the first look: a run that is not waited for leaves the terminal alone.
        self._live.start()
        self._live.update(_terminal_table(progress, self._width), refresh=True)

    def close(self) -> None:
        self._live.stop()


def _terminal_table(progress: Progress, width: int) -> Table:
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - as above
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    now_ns = progress.clock_ns()
    is_narrow = width < _NARROW_CHARS
    table = Table.grid(padding=(0, 1 if is_narrow else 2))
    for row in progress.rows:
        name = row.name if is_narrow else f"{row.name}  {row.session}".rstrip()
        cells: list[Any] = [
            Text(name, overflow="ellipsis", no_wrap=True),
            ProgressBar(
                total=1.0,
                completed=row.share(now_ns),
                width=_BAR_CHARS // 2 if is_narrow else _BAR_CHARS,
            ),
            Text(_state(row, now_ns), overflow="ellipsis", no_wrap=True),
        ]
        table.add_row(*([] if is_narrow else [Text(row.test, style="bold")]), *cells)
    return table


class _NotebookCard:
    def __init__(self) -> None:
        self._display: Any = None
        self._last = ""

    def draw(self, progress: Progress) -> None:
        from IPython.display import HTML, display  # noqa: PLC0415 - only inside a notebook

        page = _html(progress)
        if self._display is None:
            self._display = display(HTML(page), display_id=True)  # type: ignore[no-untyped-call]
        elif page != self._last:
            self._display.update(HTML(page))  # type: ignore[no-untyped-call]
        self._last = page

    def close(self) -> None:
        pass


def _html(progress: Progress) -> str:
    now_ns = progress.clock_ns()
    cells = "".join(
        f"<tr><td>{escape(row.test)}</td><td>{escape(row.name)}</td>"
        f"<td>{escape(row.session)}</td>"
        f'<td><progress max="1" value="{row.share(now_ns):.2f}" style="width:12em"></progress></td>'
        f"<td>{escape(_state(row, now_ns))}</td></tr>"
        for row in progress.rows
    )
    where = f": <code>{escape(progress.where)}</code>" if progress.where else ""
    return (
        '<div style="border-left:3px solid var(--jp-border-color1,#999);padding:2px 10px">'
        f"<b>{escape(progress.title)}</b>, {escape(progress.status)}{where}"
        f'<table style="margin:0">{cells}</table></div>'
    )


def _state(row: Row, now_ns: int) -> str:
    if not row.began_ns:
        return row.doing
    tools = f", {row.tool_calls} tool call{'s' * (row.tool_calls != 1)}" if row.tool_calls else ""
    left_s = row.left_s(now_ns)
    left = f", about {_shown(left_s)} left" if left_s >= 1 else ""
    took = _shown(row.elapsed_s(now_ns), places=2 if row.ended_ns else 1)
    return f"{row.doing}, {took}{left}{tools}"


def _shown(seconds: float, places: int = 0) -> str:
    if seconds < 60:
        return f"{seconds:.{places}f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s"
