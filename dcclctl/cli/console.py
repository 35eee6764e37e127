"""What a command prints: results on stdout, progress and remarks on stderr, errors in two plain lines.

Text that comes from a log (ids, names, file names) goes through `plain`, which makes control characters visible,
and is given to rich as `Text`, never as markup.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from dcclctl.errors import DcclError
from dcclctl.report.text import plain as plain

if TYPE_CHECKING:
    from rich.table import Table


def print_error(error: DcclError) -> None:
    """Write 'error: what' and the remedy to stderr."""
    print(f"error: {plain(error.what)}", file=sys.stderr)
    for line in error.remedy.splitlines():
        print(f"  {plain(line)}", file=sys.stderr)


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
        quiet: no progress, no remarks, no tables.
    """

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.started = time.monotonic()
        self._collected: list[dict[str, Any]] | None = None

    def part(self, collected: list[dict[str, Any]]) -> "Reporter":
        """A reporter for one of several runs of a command, which adds its JSON object to a list."""
        own = Reporter(self.as_json, self.quiet)
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
        if self.as_json:
            print_json({"ref": ref, "seeds": [{"seed": seed, **each} for seed, each in zip(seeds, made, strict=True)]})
        elif self.quiet:
            print(ref)
        else:
            self.line(f"{ref} is {', '.join(each['ref'] for each in made)}")

    def progress(self) -> "closing[Progress]":
        """A progress display on stderr; silent with --quiet or when stderr is no terminal."""
        return closing(Progress(live=not self.quiet and sys.stderr.isatty()))


class Progress:
    """Callable handed to stages: `on_progress(what, done, total, note)`.

    On a terminal one line is redrawn with a bar, the note and the time left; otherwise nothing is drawn.
    """

    def __init__(self, live: bool) -> None:
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        if live:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._live = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._live.start()

    def __call__(self, what: str, done: float, total: float, note: str = "") -> None:
        if self._live is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._live.add_task(what, total=total, note=note)
        self._live.update(self._tasks[what], completed=done, total=total, note=note)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def kept_epoch(facts: Mapping[str, Any]) -> str:
    """Which epoch of a fit was kept.

    Args:
        facts: of the cloud model's manifest.
    """
    best, epochs = facts["best_epoch"], len(facts["epochs"])
    none = "" if best else "  (no epoch was better than the start)"
    return f"best valid AUC {facts['best_valid_auc']:.4f} after epoch {best} of {epochs}{none}"
