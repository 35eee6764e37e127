"""`dcclctl ingest`: read logs into a dataset, and show what was kept, rejected and cut where."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter, plain
from dcclctl.cli.options import Call, command
from dcclctl.errors import UsageError
from dcclctl.logs.format import FORMATS

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, rich_markup_mode=None)

#: Facts that --json shows beside ref, id and reused.
KEY_FACTS = (
    *("users", "items", "events", "rows", "periods", "cuts", "groups", "split", "time_kind", "cut_times_us"),
    *("repeats", "labels", "label_expression", "positives", "categories", "profiles", "id_map", "sources", "remarks"),
)


@command(app, "ingest")
def ingest(
    call: Call,
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...", help="Files (also .gz, .zst), quoted globs, or a MovieLens or RecBole folder."
        ),
    ],
    users: Annotated[
        Path | None, typer.Option("--users", metavar="FILE", help="Side table of users: its columns become profiles.")
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            "--items", metavar="FILE", help="Side table of items: a name, and columns that become categories."
        ),
    ] = None,
    implicit: Annotated[bool, typer.Option("--implicit", help="Every event is positive, whatever its rating.")] = False,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(("auto", *FORMATS)),
            help="Layout of the log; auto looks at names and headers. [default: auto]",
        ),
    ] = None,
) -> None:
    """Read recommendation logs into a dataset.

    Columns are found by their names (user_id, item_id, timestamp, …), or as --map says. Broken rows are quarantined and
    counted; a log with too many of them is refused. Events are cut into the periods cloud, device, valid and test.

    \b
    Examples:
      dcclctl ingest ml-100k/ --split per-user
      dcclctl ingest 'clicks-*.csv.gz' --map user=uid,item=sku,time=ts --items products.csv --label 'rating>=4'
      dcclctl ingest UserBehavior.csv --behaviours buy,cart --periods 2017-11-30,2017-12-02,2017-12-03
    """
    from dcclctl.stages.ingest import Sides
    from dcclctl.stages.ingest import ingest as run

    if implicit and "label" in call.settings:
        raise UsageError("--implicit and --label contradict each other", "Give one of them.")
    with call.run() as options:
        dataset = run(logs, call.store, call.settings, options, Sides(users, items, implicit))
    facts = dict(dataset.facts)
    _remark(call.reporter, facts)
    _show(call.reporter, facts)
    call.finish(dataset, **{name: facts[name] for name in KEY_FACTS})


def _remark(reporter: Reporter, facts: dict[str, Any]) -> None:
    """Rejects, warnings and remarks on stderr."""
    from dcclctl.logs.rules import REASONS, WARNINGS

    for reason, count in facts["rows"]["rejected_by_reason"].items():
        reporter.remark(f"rejected {count:,} × {reason}: {REASONS[reason]}")
    for name, count in facts["rows"]["warnings"].items():
        reporter.remark(f"warning: {count:,} × {WARNINGS[name]}")
    for remark in facts["remarks"]:
        reporter.remark(f"note: {remark}")


def _show(reporter: Reporter, facts: dict[str, Any]) -> None:
    """What a person wants to know first: rows in and out, the periods, the groups."""
    from dcclctl.logs.rules import NORMALISED

    rows = facts["rows"]
    table = _table("Rows", ["", "rows"])
    _add(table, "read", rows["read"])
    for reason, count in rows["rejected_by_reason"].items():
        _add(table, f"rejected: {reason}", -count)
    _add(table, "kept", rows["kept"])
    for rule, count in rows["dropped"].items():
        _add(table, f"left out: {rule}", -count)
    _add(table, "events", facts["events"])
    reporter.table(table)
    for name, count in rows["normalised_by_reason"].items():
        reporter.line(f"  normalised: {count:,} × {NORMALISED[name]}")

    table = _table(f"Periods ({facts['split']} split)", ["period", "from", "to", "events", "users", "new users"])
    for period in facts["periods"]:
        start, end = ("–" if period[name] is None else str(period[name]) for name in ("start", "end"))
        _add(table, period["name"], start, end, period["events"], period["users"], period["new_users"])
    reporter.table(table)
    for cut in facts["cuts"]:
        at = "" if cut["at"] is None else f" ({cut['at']})"
        reporter.line(
            f"  a model that learns up to {cut['before']}{at} never sees "
            f"{cut['events_left_out']:,} events and {cut['users_left_out']:,} users"
        )

    groups = facts["groups"]
    reporter.line(
        f"{facts['users']:,} users: {groups['head']:,} head, {groups['tail']:,} tail, {groups['new']:,} new; "
        f"{facts['items']:,} items with {facts['categories']:,} categories"
    )
    if facts["profiles"]:
        profiles = ", ".join(f"{name} ({codes})" for name, codes in facts["profiles"].items())
        reporter.line(f"profiles (codes, missing included): {profiles}")
    if facts["labels"] == "observed":
        reporter.line(f"positive where {facts['label_expression']}: {facts['positives']:,} of {facts['events']:,}")


def _table(title: str, columns: list[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "period", "from", "to") else "right")
    return table


def _add(table: "Table", *cells: str | int) -> None:
    from rich.text import Text

    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else plain(cell)) for cell in cells))
