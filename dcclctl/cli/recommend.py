"""`dcclctl recommend`: the lists of many users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import table_of
from dcclctl.cli.options import Call, command

if TYPE_CHECKING:
    from dcclctl.artifacts import Recommendations

#: users and items that are shown
_USERS, _ITEMS = 3, 3

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "recommend")
def recommend(
    call: Call,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="Patches (patches: the newest), a cloud model, a bundle, cloud@N+encoder, or patches@N+mean.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Also write the lists to FILE.parquet, FILE.csv or FILE.jsonl."
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="New events of known and new users, in the form of the dataset's own log; may be repeated. "
            "No model is trained.",
        ),
    ] = None,
) -> None:
    """Recommend items to many users, and write a file.

    All items are ranked for each user, after the user's last event (--as-of end) or as of the start of the test period
    (--as-of test). dcclctl score shows the same list of one user. An interrupted run continues with the missing shards of
    users.

    With --log the histories and device memories advance with the new events before the lists are made; new users are
    served by what serves users without a patch.

    \b
    Examples:
      dcclctl recommend patches -o top.parquet
      dcclctl recommend cloud@release --users tail --top 20 --candidates @in-stock.txt -o top.csv
      dcclctl recommend patches@release --log today.csv -o top.jsonl
    """
    from dcclctl.artifacts.recommendations import check_output
    from dcclctl.devices.serving import Subject
    from dcclctl.stages.recommend import recommend as run

    if output is not None:
        check_output(output)
    subject = Subject.of(reference, call.store)
    with call.run() as options:
        made = run(subject, call.settings, options, [Path(path) for path in log or []])
        if output is not None:
            made.write(output)
    _show(call, made, output)
    call.finish(
        made,
        model=subject.ref,
        **{name: value for name, value in made.facts.items() if name not in ("id_map", "shards")},
        users_per_second=made.artifact.run.get("users_per_second"),
        output=None if output is None else str(output),
    )


def _show(call: Call, made: "Recommendations", output: Path | None) -> None:
    facts, line = made.facts, call.reporter.line
    _show_log(call, facts["log"])
    served = ", ".join(f"{count:,} by {by}" for by, count in facts["served_by"].items())
    moment = {
        "end": f"after each user's last event (the newest: {facts['newest_event']})",
        "test": "as of the start of the test period",
    }
    line(
        f"top {made.config['top']} of {facts['lists']:,} users, {moment[made.config['as_of']]}; served {served or 'none'}; "
        f"{facts['items_shown']:,} of {facts['candidates']:,} candidate items are in a list"
    )
    if facts["unknown_candidates"]:
        line(f"{facts['unknown_candidates']:,} candidates are left out: the model does not know these items")
    if facts["short_lists"]:
        few = facts["candidates"] < made.config["top"]
        why = f"there are {facts['candidates']:,} candidates" if few else "the user has seen all other candidates"
        line(f"{facts['short_lists']:,} lists are shorter: {why}")
    if facts["users_without_list"]:
        line(f"{facts['users_without_list']:,} users get no list: they have seen all candidates")
    _show_first(call, made)
    if output is not None:
        rows = facts["rows"]
        line(f"{output}: {rows:,} rows of {facts['lists']:,} users")


def _show_log(call: Call, log: dict[str, Any]) -> None:
    """What the new log held."""
    if not log:
        return
    line = call.reporter.line
    line(
        f"new log: {log['rows']:,} rows of {log['known_users']:,} known users and {log['new_users']:,} new ones; "
        f"{log['added']:,} events are new"
    )
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in log["rejected_by_reason"].items())
    for count, text in (
        (log["rejected"], f"rows rejected: {reasons} (the artifact's rejects.parquet)"),
        (log["other_behaviours"], "rows left out: of behaviours that the dataset left out too"),
        (log["unknown_item_rows"], f"rows left out: of {log['unknown_items']:,} items that the model does not know"),
        (log["known_events"], "rows left out: events that the dataset has already"),
        *((count, f"events left out: {rule}") for rule, count in log["dropped"].items()),
    ):
        if count:
            line(f"  {count:,} {text}")


def _show_first(call: Call, made: "Recommendations") -> None:
    """The first items of the first users."""
    import polars as pl

    first = next(made.shards())
    users = first["user_id"].unique(maintain_order=True)[:_USERS]
    rows = first.filter(pl.col("user_id").is_in(users.implode()) & (pl.col("rank") <= _ITEMS))
    cells = (
        (
            row["user_id"],
            row["rank"],
            row["item_id"] if row["name"] is None else f"{row['name']} ({row['item_id']})",
            f"{row['score']:.3f}",
            row["served_by"],
        )
        for row in rows.iter_rows(named=True)
    )
    call.reporter.table(table_of(("user", "rank", "item", "score", "served by"), cells))
