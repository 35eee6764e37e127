"""`dcclctl ingest`: read logs into a dataset, and show what was kept, rejected and cut where."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter, plain
from dcclctl.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    ForceOption,
    JsonOption,
    QuietOption,
    StoreOption,
    setting,
    split_commas,
)
from dcclctl.config import IngestConfig, resolve
from dcclctl.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, rich_markup_mode=None)

#: Facts that --json shows beside ref, id and reused.
KEY_FACTS = (
    *("users", "items", "events", "rows", "periods", "cuts", "groups", "split", "time_kind", "cut_times_us"),
    *("repeats", "labels", "label_expression", "positives", "categories", "profiles", "id_map", "sources", "remarks"),
)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(IngestConfig, name, *flags, metavar=metavar)


@app.command()
def ingest(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...", help="Files (also .gz, .zst), quoted globs, or a MovieLens or RecBole folder."
        ),
    ],
    format: Annotated[str | None, _option("format", metavar="FORMAT")] = None,
    map: Annotated[str | None, _option("map", metavar="user=…,item=…,time=…")] = None,
    time_unit: Annotated[str | None, _option("time_unit", metavar="UNIT")] = None,
    timezone: Annotated[str | None, _option("timezone", metavar="ZONE")] = None,
    now: Annotated[str | None, _option("now", metavar="TIME")] = None,
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
    label: Annotated[str | None, _option("label", metavar="'rating>=4'")] = None,
    label_conflicts: Annotated[str | None, _option("label_conflicts", metavar="last|first|max")] = None,
    behaviours: Annotated[str | None, _option("behaviours", metavar="NAME,NAME")] = None,
    ids: Annotated[str | None, _option("ids", metavar="text|int")] = None,
    encoding: Annotated[str | None, _option("encoding", metavar="ENCODING")] = None,
    allow_empty: Annotated[
        bool | None,
        typer.Option("--allow-empty", help=IngestConfig.model_fields["allow_empty"].description, show_default=False),
    ] = None,
    min_user_events: Annotated[int | None, _option("min_user_events", metavar="N")] = None,
    min_item_events: Annotated[int | None, _option("min_item_events", metavar="N")] = None,
    max_user_events: Annotated[int | None, _option("max_user_events", metavar="N")] = None,
    repeats: Annotated[str | None, _option("repeats", metavar="keep|first")] = None,
    split: Annotated[str | None, _option("split", metavar="global|per-user|leave-one-out")] = None,
    periods: Annotated[str | None, _option("periods", metavar="60,20,10,10")] = None,
    new_users: Annotated[float | None, _option("new_users", metavar="FRACTION")] = None,
    head_fraction: Annotated[float | None, _option("head_fraction", metavar="FRACTION")] = None,
    max_reject: Annotated[float | None, _option("max_reject", metavar="FRACTION")] = None,
    seed: Annotated[int | None, _option("seed", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
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
    if implicit and label is not None:
        raise UsageError("--implicit and --label contradict each other", "Give one of them.")
    flags = {
        "format": format,
        "map": _parse_map(map),
        "time_unit": time_unit,
        "timezone": timezone,
        "now": now,
        "label": "" if implicit else label,
        "label_conflicts": label_conflicts,
        "behaviours": split_commas(behaviours),
        "ids": ids,
        "encoding": encoding,
        "allow_empty": allow_empty,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "max_user_events": max_user_events,
        "repeats": repeats,
        "split": split,
        "periods": split_commas(periods),
        "new_users": new_users,
        "head_fraction": head_fraction,
        "max_reject": max_reject,
        "seed": seed,
    }
    settings = resolve(IngestConfig, config, **flags)
    if implicit and "label" in settings.map:
        settings = settings.model_copy(update={"map": {k: v for k, v in settings.map.items() if k != "label"}})

    from dcclctl.stages.ingest import ingest as run
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    with reporter.progress() as progress:
        dataset, reused = run(logs, users, items, settings, Store(store, remark=reporter.remark), progress, force)
    facts = dataset.facts
    _remark(reporter, facts)
    _show(reporter, facts)
    reporter.finish(dataset.ref, dataset.id, reused, **{name: facts[name] for name in KEY_FACTS})


def _parse_map(text: str | None) -> dict[str, str] | None:
    """'user=uid,item=sku' → {'user': 'uid', 'item': 'sku'}."""
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or any(not sign or not role.strip() or not column for role, sign, column in pairs):
        raise UsageError(
            f"--map: cannot read {text!r}", "Write pairs OURS=YOURS with commas: --map user=uid,item=sku,time=ts"
        )
    return {role.strip(): column for role, _, column in pairs}


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
