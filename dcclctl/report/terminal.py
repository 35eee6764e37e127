"""Tables of metrics for the terminal."""

from collections.abc import Mapping

import polars as pl
from rich.table import Table
from rich.text import Text

from dcclctl.metrics.metric import lower_is_better
from dcclctl.report.comparison import add_heading, indented, metric_name, new_table, unchanged
from dcclctl.tables import GROUPS

_BLOCKS = "▁▂▃▄▅▆▇█"


def heading(metric: str) -> str:
    """A metric's name for people, a word a line: 'ndcg@10/1000' → 'NDCG@10' over 'sampled'."""
    return metric_name(metric).replace(" ", "\n")


def shown_metrics(metrics: list[str]) -> list[str]:
    """The metrics that fit into a terminal: of NDCG only the middle cut-off."""
    ndcg = [metric for metric in metrics if metric.startswith("ndcg@")]
    return [metric for metric in metrics if metric not in ndcg or metric == ndcg[len(ndcg) // 2]]


def group_table(aggregate: pl.DataFrame, names: Mapping[str, str]) -> Table:
    """Metrics of head, tail, new and all users, a line for each model; the best value of a column and group is bold.

    The first line of a group has the number of users that each mean is over.

    Args:
        aggregate: AGGREGATE table. names: subject → name to show.
    """
    metrics = shown_metrics(aggregate["metric"].unique(maintain_order=True).to_list())
    table = new_table(None, "group, model", map(heading, metrics))
    values = {(row["group"], row["subject"], row["metric"]): row for row in aggregate.to_dicts()}
    for group in (*GROUPS, "all"):
        users = [max(values[group, subject, metric]["users"] for subject in names) for metric in metrics]
        if not any(users):
            continue
        add_heading(table, f"{group}, users", *(f"{number:,}" for number in users))
        for place, name in enumerate(names.values()):
            cells = []
            for metric in metrics:
                column = [values[group, other, metric]["value"] for other in names]
                known = [value for value in column if value is not None]
                value = column[place]
                best = (min if lower_is_better(metric) else max)(known, default=None)
                # equal when rounded as shown is equally good
                bold = value is not None and best is not None and f"{value:.4f}" == f"{best:.4f}" and len(names) > 1
                cells.append(Text("–" if value is None else f"{value:.4f}", style="bold" if bold else ""))
            table.add_row(indented(name), *cells)
    return table


def plain_sentence(
    aggregate: pl.DataFrame, comparison: pl.DataFrame | None, names: Mapping[str, str], against: str
) -> str:
    """One sentence on the best model's hit ratio for tail users; '' without a baseline, tail users or a hit ratio.

    Args:
        aggregate: AGGREGATE table. comparison: COMPARISON table; None without a baseline. names: subject → reference to
            show. against: the baseline.
    """
    ratios = [metric for metric in aggregate["metric"].unique(maintain_order=True) if metric.startswith("hr@")]
    if comparison is None or not ratios or len(names) < 2:
        return ""
    metric = ratios[len(ratios) // 2]
    tail = aggregate.filter(group="tail", metric=metric)
    values = {row["subject"]: row["value"] for row in tail.to_dicts() if row["value"] is not None}
    others = {subject: value for subject, value in values.items() if subject != against}
    if against not in values or not others:
        return ""
    best = max(others, key=lambda subject: others[subject])
    row = comparison.filter(group="tail", metric=metric, subject=best).row(0, named=True)
    verdict = "no difference" if unchanged(row) else row["verdict"]
    return (
        f"With {names[best]}, less active users (tail) find the item that they choose next among the top "
        f"{metric.partition('@')[2].partition('/')[0]} in {others[best]:.0%} of cases, as a mean over users "
        f"({verdict}); with {names[against]}, in {values[against]:.0%}."
    )


def activity_sparklines(aggregate: pl.DataFrame, names: Mapping[str, str]) -> Table:
    """Small bars over the activity groups, least active users first: a line for each model, all on one scale.

    The metric is NDCG@k of the middle k, or else the first metric. A group without a value is a dot.

    Args:
        aggregate: AGGREGATE table. names: subject → reference to show.
    """
    metrics = aggregate["metric"].unique(maintain_order=True).to_list()
    ranked = [metric for metric in metrics if metric.startswith("ndcg@")]
    metric = ranked[len(ranked) // 2] if ranked else metrics[0]
    groups = aggregate.filter(pl.col("group").str.starts_with("activity-"), metric=metric).sort("group")
    values = {subject: groups.filter(subject=subject)["value"].to_list() for subject in names}
    known = [value for row in values.values() for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    columns = (f"{metric_name(metric)}, least to most active users", "lowest", "highest")
    table = new_table(None, "model", columns)
    table.columns[1].justify = "left"
    for subject, row in values.items():
        own = [value for value in row if value is not None]
        shown = [f"{end:.4f}" if own else "–" for end in (min(own, default=0.0), max(own, default=0.0))]
        table.add_row(Text(names[subject]), bars(row, low, high), *shown)
    return table


def bars(values: "list[float | None]", low: float, high: float) -> str:
    """One block character for each value, its height between low and high."""
    top = len(_BLOCKS) - 1
    span = high - low
    return "".join(
        "·" if value is None else _BLOCKS[round(top * (value - low) / span) if span else 0] for value in values
    )
