"""`dcclctl ingest`: read logs into a dataset, and show what was kept, rejected and cut where."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dcclctl.cli.console import Reporter, table_of
from dcclctl.cli.options import Call, command
from dcclctl.errors import UsageError
from dcclctl.logs.format import FORMATS

app = typer.Typer(add_completion=False, rich_markup_mode=None)

#: Facts that --json shows beside ref, id and reused.
KEY_FACTS = (
    *("users", "items", "events", "rows", "periods", "cuts", "groups", "split", "time_kind", "cut_times_us"),
    *(
        "columns",
        "unused_columns",
        "behaviours",
        "repeats",
        "labels",
        "label_expression",
        "positives",
        "categories",
        "profiles",
        "id_map",
        "sources",
        "remarks",
    ),
)


@command(app, "ingest")
def ingest(
    call: Call,
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOG", help="Files (also .gz, .zst), quoted globs, or a MovieLens or RecBole folder."),
    ],
    users: Annotated[
        Path | None, typer.Option("--users", metavar="FILE", help="Table of users: its columns become profiles.")
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            "--items", metavar="FILE", help="Table of items: their names, and columns that become categories."
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

    Columns are found by their names (user_id, item_id, timestamp, …), or as --map says. Broken rows are kept apart and
    counted; a log with too many of them is refused. Events are split into the periods cloud, device, valid and test.

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
        reporter.remark(remark if remark.startswith("warning: ") else f"note: {remark}")


def _show(reporter: Reporter, facts: dict[str, Any]) -> None:
    """What a person wants to know first: rows in and out, the periods, the groups."""
    from dcclctl.logs.rules import NORMALISED

    rows = facts["rows"]
    counts = {
        "read": rows["read"],
        **{f"rejected: {reason}": -count for reason, count in rows["rejected_by_reason"].items()},
        "kept": rows["kept"],
        **{f"left out: {rule}": -count for rule, count in rows["dropped"].items()},
        "events": facts["events"],
    }
    reporter.table(table_of(("", "rows"), list(counts.items()), "Rows"))
    for name, count in rows["normalised_by_reason"].items():
        reporter.line(f"  normalised: {count:,} × {NORMALISED[name]}")

    if facts["behaviours"]:
        counted = sorted(facts["behaviours"].items(), key=lambda each: -each[1])
        reporter.table(table_of(("behaviour", "rows"), counted, "Behaviours"))
    if facts["unused_columns"]:
        reporter.line(f"columns of the log that are not used: {', '.join(facts['unused_columns'])}")

    columns = ("period", "from", "to", "events", "users", "new users")
    periods = [
        (
            each["name"],
            *("–" if each[end] is None else str(each[end]) for end in ("start", "end")),
            *(each[count] for count in ("events", "users", "new_users")),
        )
        for each in facts["periods"]
    ]
    reporter.table(table_of(columns, periods, f"Periods ({facts['split']} split)"))
    for cut in facts["cuts"]:
        at = "" if cut["at"] is None else f" ({cut['at']})"
        reporter.line(
            f"  a model trained on what comes before {cut['before']}{at} never sees "
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
