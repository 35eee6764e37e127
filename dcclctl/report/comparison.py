"""Comparisons, losses and gates as words and as tables for the terminal."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dcclctl.evaluation.comparison import CHANCE
from dcclctl.tables import GROUPS

#: Differences are shown in points: so many points are one unit of the metric.
POINTS = 100
_CORRECTED = "after Holm's correction"
_COLOURS = {"better": "green", "worse": "red", "fail": "bold red", "pass": "green"}


def metric_name(metric: str) -> str:
    """A metric's name for people: 'ndcg@10/1000' → 'NDCG@10 sampled'."""
    name, _, sampled = metric.partition("/")
    shown = {"gauc": "GAUC", "log_loss": "log loss"}.get(name, name.upper())
    return f"{shown} sampled" if sampled else shown


def points(value: float | None) -> str:
    """A signed difference in points: 0.0123 → '+1.23'."""
    return "–" if value is None else f"{POINTS * value:+.2f}"


def interval(low: float | None, high: float | None) -> str:
    """'[-0.12, +2.34]' in points; empty without an interval."""
    return "" if low is None else f"[{points(low)}, {points(high)}]"


def new_table(title: str | None, first: str, figures: Iterable[str], last: str = "") -> Table:
    """A table without lines that is legible in 80 columns: names wrap, figures stand at the right and do not.

    Args:
        first: heading of the names. figures: headings of the figures. last: heading of a column of words that wrap.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, min_width=12, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    if last:
        table.add_column(last, min_width=14, overflow="fold")
    return table


def add_heading(table: Table, text: str, *cells: str) -> None:
    """Start a section of a table with a bold line; there is a blank line before it unless it is the first."""
    if table.row_count:
        table.add_row()
    table.add_row(Text(text), *cells, style="bold")


def indented(text: str, by: int = 2) -> Padding:
    """The name of a row below a heading; all its lines are indented where it wraps."""
    return Padding(Text(text), (0, 0, 0, by))


def groups_in_words(head_fraction: float) -> str:
    """What the groups are. They are groups of users, not of items."""
    head = 100 * head_fraction
    return (
        f"head: the {head:g} % of users with most events before test; tail: the other {100 - head:g} %; "
        "new: users without an event before test"
    )


def chance_in_words(low: float, high: float) -> str:
    """That a model's GAUC is at chance level or below, with the interval of its GAUC."""
    level = "at" if high >= CHANCE else "below"
    return (
        f"GAUC is {level} chance level, {CHANCE} (95 % interval {low:.4f} to {high:.4f}): on average it does not rank what a "
        "user chose above the rest"
    )


def words(row: Mapping[str, Any]) -> str:
    """The verdict on one row of a COMPARISON table."""
    if row["verdict"] != "inconclusive":
        return str(row["verdict"])
    return "inconclusive" + (" " + _CORRECTED if _real_alone(row) else "") + _unsettled(row, row["difference"])


def _real_alone(row: Mapping[str, Any]) -> bool:
    """Whether the interval excludes zero. It is for this comparison alone, the verdict for all metrics together."""
    return row["low"] is not None and not row["low"] <= 0 <= row["high"]


def gate_words(row: Mapping[str, Any]) -> str:
    """The verdict on one row of a GATE table."""
    if row["verdict"] == "fail":
        return "FAIL"
    return "pass" if row["verdict"] == "pass" else "inconclusive" + _unsettled(row, row["drop"])


def _unsettled(row: Mapping[str, Any], difference: float | None) -> str:
    if not row["users"]:
        return ": no such users"
    if row["low"] is None:
        return ": too few users to tell"
    if unchanged(row):
        return ": no difference at all"
    if row["users_to_settle"] is None:
        return ": no number of users would settle it" if difference else ""
    return f": {row['users_to_settle']:,} users would settle it"


def unchanged(row: Mapping[str, Any]) -> bool:
    """Whether no user has another value than with the baseline, so that nothing needs a verdict."""
    return row.get("difference", row.get("drop")) == 0 and row["low"] in (None, 0) and row["high"] in (None, 0)


def _groups(table: pl.DataFrame) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Of head, tail, new and all, the groups that have users, with their rows."""
    for group in (*GROUPS, "all"):
        rows = [row for row in table.filter(group=group).to_dicts() if row["users"]]
        if rows:
            yield group, rows


def comparison_table(
    comparison: pl.DataFrame, names: Mapping[str, str], against: str, metrics: list[str], over: str
) -> Table:
    """The difference to the baseline and its verdict: a section for each group, a line for each model and metric.

    Models without any difference are one line at the end, and so is a group that is too small.

    Args:
        comparison: COMPARISON table. names: subject → name to show. against: name of the baseline.
        metrics: those to show, in their order. over: what the intervals cover, see Evaluation.intervals_over.
    """
    table = new_table(
        f"Difference to {names[against]} in points (1/{POINTS}), 95 % interval over {over}",
        "group, model, metric",
        ("users", "difference", "interval"),
        "verdict",
    )
    shown = comparison.filter(pl.col("metric").is_in(metrics))
    same = [
        subject
        for subject in names
        if (rows := shown.filter(pl.col("subject") == subject, pl.col("users") > 0).to_dicts())
        and all(map(unchanged, rows))
    ]
    for group, rows in _groups(shown.filter(~pl.col("subject").is_in(same))):
        if all(row["low"] is None for row in rows):
            users = max(row["users"] for row in rows)
            add_heading(table, group, f"{users:,}", "", "", "too few users to tell")
            continue
        add_heading(table, group)
        for subject in names:
            own = {row["metric"]: row for row in rows if row["subject"] == subject}
            if own:
                table.add_row(indented(names[subject]))
            for metric in metrics if own else []:
                row = own[metric]
                table.add_row(
                    indented(metric_name(metric), 4),
                    f"{row['users']:,}",
                    points(row["difference"]),
                    Text(interval(row["low"], row["high"])),
                    Text(words(row), style=_COLOURS.get(row["verdict"], "")),
                )
    for subject in same:
        add_heading(table, names[subject], "", "", "", "no difference at all, for any user")
    return table


def favoured(row: Mapping[str, Any]) -> str:
    """The verdict on one row of a TAIL_MINUS_HEAD table, e.g. 'favours the tail', also where both groups lose."""
    return f"favours the {row['verdict']}" if row["verdict"] in ("tail", "head") else str(row["verdict"])


def why_open(row: Mapping[str, Any]) -> str:
    """Why a row of a TAIL_MINUS_HEAD table is inconclusive; '' where the interval already shows it."""
    if row["verdict"] != "inconclusive" or row["difference"] is None:
        return ""
    if row["low"] is None:
        return "too few users to tell"
    return _CORRECTED if _real_alone(row) else ""


def tail_minus_head_line(rows: Iterable[Mapping[str, Any]], ref: str, metrics: list[str]) -> str:
    """One line that says whether tail users gain more than head users; '' if either group has no users.

    Args:
        rows: TAIL_MINUS_HEAD rows of one model. ref: reference of the model. metrics: those to show.
    """
    rows = [row for row in rows if row["metric"] in metrics and row["difference"] is not None]
    if not rows:
        return ""
    measured: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["verdict"] == "inconclusive"):
        figure = (
            f"{metric_name(row['metric'])} {points(row['difference'])} {interval(row['low'], row['high'])}".rstrip()
        )
        why = why_open(row)
        verdict = why if row["low"] is None else f"{favoured(row)} {why}".rstrip()
        measured.setdefault(verdict, []).append(figure)
    said = [f"{verdict} ({', '.join(figures)})" for verdict, figures in measured.items()]
    return f"{ref}, gain of tail users minus gain of head users: " + "; ".join(said)


def first_events_table(table: pl.DataFrame, names: Mapping[str, str], against: str, metrics: list[str]) -> Table:
    """New users after K events: a section for each metric, a row for each K, a column for each model.

    With a baseline, its column holds its value, and the other columns hold their difference to it at the same K.

    Args:
        table: see targets.by_first_events. names: subject → reference to show. against: name of the baseline, or empty.
        metrics: those to show, in their order.
    """
    said = f": difference to {names[against]} at the same K in points (1/{POINTS}), 95 % interval" if against else ""
    shown = new_table(f"New users served with their first K events{said}", "metric", ("K", "users"))
    for subject, ref in names.items():
        shown.add_column(Text(f"{ref}, value" if subject == against else ref), justify="right", min_width=10)
    cells = {(row["metric"], row["first_events"], row["subject"]): row for row in table.to_dicts()}
    for metric in metrics:
        if shown.row_count:
            shown.add_row()
        for place, first in enumerate(sorted(set(table["first_events"]))):
            of_models = [cells[metric, first, subject] for subject in names]
            users = f"{max(each['users'] for each in of_models):,}"
            row = [_first_events_cell(each, against) for each in of_models]
            shown.add_row(metric_name(metric) if place == 0 else "", str(first), users, *row)
    return shown


def _first_events_cell(row: Mapping[str, Any], against: str) -> Text:
    if not against or row["subject"] == against:
        return Text("–" if row["value"] is None else f"{row['value']:.4f}")
    text = f"{points(row['difference'])} {interval(row['low'], row['high'])}"
    return Text(text, style=_COLOURS.get(row["verdict"], ""))


def harm_table(
    harm: pl.DataFrame, comparison: pl.DataFrame, names: Mapping[str, str], against: str, metric: str
) -> Table:
    """How many users gain and lose by one metric, and how much: a section for each group, a line for each model.

    Args:
        harm: HARM table. comparison: COMPARISON table of the same evaluation. names: subject → reference to show.
        against: name of the baseline. metric: one of the table's metrics.
    """
    figures = ("users", "mean\ndifference", "better", "worse", "same")
    sizes = ("worse off:\nhalf lose\nmore than", "a tenth\nlose more\nthan")
    title = f"Users better and worse off than with {names[against]} by {metric_name(metric)}"
    table = new_table(title, "group, model", (*figures, *sizes))
    lifts = {(row["subject"], row["group"]): row for row in comparison.filter(metric=metric).to_dicts()}
    for group, rows in _groups(harm.filter(metric=metric)):
        add_heading(table, group)
        for row in rows:
            table.add_row(
                indented(names[row["subject"]]),
                f"{row['users']:,}",
                points(lifts[row["subject"], group]["difference"]),
                *(f"{row[share]:.1%}" for share in ("better", "worse", "unchanged")),
                *(points(row[size] and abs(row[size])).lstrip("+") for size in ("harm_50", "harm_10")),
            )
    return table


def gate_table(gate: pl.DataFrame, names: Mapping[str, str], against: str, over: str) -> Table:
    """Every rule of a gate with the measured drop and the verdict: a section for each model.

    Args:
        gate: GATE table. names: subject → name to show. against: name of the baseline.
        over: what the intervals cover, see Evaluation.intervals_over.
    """
    title = f"Gate: drop against {names[against]} in points (1/{POINTS}), 95 % interval over {over}"
    table = new_table(title, "model, rule", ("users", "allowed", "drop", "interval"), "verdict")
    for (subject,), rules in gate.group_by("subject", maintain_order=True):
        add_heading(table, names[str(subject)])
        for row in rules.to_dicts():
            table.add_row(
                indented(f"{row['group']} {metric_name(row['metric'])}"),
                f"{row['users']:,}",
                Text(allowed(row)),
                points(row["drop"]),
                Text(interval(row["low"], row["high"])),
                Text(gate_words(row), style=_COLOURS.get(row["verdict"], "")),
            )
    return table


def allowed(row: Mapping[str, Any]) -> str:
    """The allowed drop in one row of a GATE table, as written and in points: '1% = 0.12'."""
    return str(row["max_drop"]) + ("" if row["allowed"] is None else f" = {POINTS * row['allowed']:.2f}")
