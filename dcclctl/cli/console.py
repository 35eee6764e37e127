"""What a command prints: results on stdout, progress and remarks on stderr, errors in two plain lines.

Text that comes from a log (ids, names, file names) goes through `plain`, which makes control characters visible,
and is given to rich as `Text`, never as markup.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcclctl.cli.timeline import Span, Timeline
from dcclctl.errors import DcclError
from dcclctl.report.text import plain as plain

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.table import Table


#: characters of a line of an error
_LONGEST_LINE = 2000


def print_error(error: DcclError) -> None:
    """Write 'error: what', the remedy and the error's notes to stderr."""
    print(f"error: {_short(plain(error.what))}", file=sys.stderr)
    for line in [*error.remedy.splitlines(), *getattr(error, "__notes__", ())]:
        print(f"  {_short(plain(line))}", file=sys.stderr)


def _short(line: str) -> str:
    """A line that may quote a whole header of a log, cut to what a person reads."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… ({len(line):,} characters)"


def print_json(document: Any) -> None:
    """Print one line of JSON on stdout, in ASCII, so that no character of an id can act on a terminal."""
    print(json.dumps(document, allow_nan=False))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str | int]], title: str = "") -> "Table":
    """A table without lines between its cells; columns of numbers stand at the right.

    Args:
        columns: headings. rows: cells, which may hold text from a log.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [*rows]
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for at, column in enumerate(columns):
        numbers = any(isinstance(row[at], int) for row in cells)
        fixed = column in ("reference", "id", "size")
        table.add_column(Text(column), justify="right" if numbers else "left", overflow="fold", no_wrap=fixed)
    for row in cells:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else plain(cell)) for cell in row))
    return table


class Reporter:
    """Where one command's output goes.

    Args:
        as_json: print one JSON object on stdout at the end and no tables.
        quiet: no progress, no remarks, no tables. silent: also no reference at the end.
    """

    def __init__(self, as_json: bool, quiet: bool, silent: bool = False) -> None:
        self.as_json = as_json and not silent
        self.quiet = quiet or silent
        self.silent = silent
        self.started = time.monotonic()
        self._collected: list[dict[str, Any]] | None = None

    def part(self, collected: list[dict[str, Any]]) -> "Reporter":
        """A reporter for one of several runs of a command, which adds its JSON object to a list."""
        own = Reporter(self.as_json, self.quiet, self.silent)
        own._collected = collected
        return own

    def remark(self, text: str) -> None:
        """Print one line on stderr, unless --quiet."""
        if not self.quiet:
            print(plain(text), file=sys.stderr, flush=True)

    def table(self, renderable: Any) -> None:
        """Print a rich renderable on stdout, unless --quiet or --json."""
        if not (self.quiet or self.as_json):
            from rich.console import Console

            # a pipe gets plain text, 120 columns wide
            width = None if sys.stdout.isatty() else 120
            Console(width=width, highlight=False, markup=False, emoji=False).print(renderable)

    def line(self, text: str) -> None:
        """Print one plain line on stdout, unless --quiet or --json."""
        if not (self.quiet or self.as_json):
            print(plain(text))

    def finish(self, ref: str, id: str, reused: bool, **facts: Any) -> None:
        """Close the command: the JSON object, or the reference on the last line of stdout.

        With --quiet the bare reference is still printed, so that a script can catch it.
        """
        if self.silent:
            return
        if self._collected is not None:
            self._collected.append({"ref": ref, "id": id, "reused": reused, **facts})
            if self.as_json or self.quiet:
                return
        if self.as_json:
            print_json({"ref": ref, "id": id, "reused": reused, **facts})
        elif self.quiet:
            print(ref)
        else:
            seconds = time.monotonic() - self.started
            print(f"{ref}  {id[:12]}  ({'reused' if reused else f'{seconds:.1f} s'})")

    def finish_group(self, ref: str, seeds: Sequence[int], made: Sequence[Mapping[str, Any]]) -> None:
        """Close a command that ran once for each seed; `ref` means the artifacts of all of them."""
        if self.silent:
            return
        if self.as_json:
            print_json({"ref": ref, "seeds": [{"seed": seed, **each} for seed, each in zip(seeds, made, strict=True)]})
        elif self.quiet:
            print(ref)
        else:
            self.line(f"{ref} is {', '.join(each['ref'] for each in made)}")

    def progress(self, timeline: Timeline | None = None) -> "Progress":
        """A progress display on stderr: a bar on a terminal, else a line every 30 seconds; nothing with --quiet."""
        live = not self.quiet and sys.stderr.isatty()
        return Progress(live, None if live or self.quiet else self.remark, timeline)


#: seconds between two lines where stderr is no terminal, and between two looks at the clock
LINE_EVERY, LOOK_EVERY = 30.0, 1.0


class Progress:
    """Callable handed to stages: `on_progress(what, done, total, note)`. A context manager that shows it meanwhile.

    Args:
        live: redraw a bar on the terminal. say: else, called with a line every 30 seconds; None: nothing is shown.
        timeline: keeps the phases and the clock.
    """

    def __init__(self, live: bool, say: Callable[[str], None] | None = None, timeline: Timeline | None = None) -> None:
        self._say, self.timeline = say, timeline or Timeline()
        self._said = self.timeline.clock()
        self._live = live
        self._bars: RichProgress | None = None
        self._tasks: dict[str, Any] = {}
        self._entered, self._ended, self._drawing = False, threading.Event(), threading.Lock()

    def __enter__(self) -> "Progress":
        if not self._entered and (self._live or self._say is not None):
            threading.Thread(target=self._watch, daemon=True).start()
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        """End the display, for good."""
        with self._drawing:
            self._ended.set()
            if self._bars is not None:
                self._bars.stop()

    def __call__(self, what: str, done: float, total: float, note: str = "") -> None:
        self._draw(self.timeline.at(what, done, total, note))
        self.look()

    def look(self) -> None:
        """Say how far the work is, if the last line is 30 seconds old."""
        now, span = self.timeline.clock(), self.timeline.current()
        if self._say is not None and now - self._said >= LINE_EVERY:
            self._said = now
            self._say(f"{span.what}: {span.text(now)}")

    def _draw(self, span: Span) -> None:
        """Show a phase on the terminal; one of unknown size only as long as it lasts."""
        with self._drawing:
            if not self._live or self._ended.is_set() or self.timeline.passed() < LOOK_EVERY:
                return
            bars = self._bars = self._bars or _bars()
            known = {span.what, *(each.what for each in self.timeline.under_way)}
            for task in bars.tasks:
                if task.total is None and task.description not in known:
                    bars.remove_task(self._tasks.pop(task.description))
            if span.what not in self._tasks:
                self._tasks[span.what] = bars.add_task(span.what, shown="")
            shown = span.text(self.timeline.clock())
            bars.update(self._tasks[span.what], completed=span.done, total=span.total or None, shown=shown)

    def _watch(self) -> None:
        """Show once a second that the time goes on, also where a phase says nothing."""
        while not self._ended.wait(LOOK_EVERY):
            self.look()
            self._draw(self.timeline.current())


def _bars() -> "RichProgress":
    """One bar a phase, on stderr; rich is imported only for a command that takes its time."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    bars = RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[shown]}", markup=False),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
    )
    bars.start()
    return bars


def kept_epoch(facts: Mapping[str, Any]) -> str:
    """Which epoch of a fit was kept.

    Args:
        facts: of the cloud model's manifest.
    """
    best, epochs = facts["best_epoch"], len(facts["epochs"])
    none = "" if best else "  (no epoch was better than the start: the cloud model's weights are those of the start)"
    ndcg = facts.get("best_valid_ndcg")
    figure = f"AUC {facts['best_valid_auc']:.4f}" if ndcg is None else f"NDCG@10 {ndcg:.4f}"
    return f"best valid {figure} after epoch {best} of {epochs}{none}"


def size(size_bytes: int) -> str:
    """A number of bytes for people."""
    number, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"
