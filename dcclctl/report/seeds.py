"""The spread of several seeds, as a table for the terminal."""

from collections.abc import Mapping

import polars as pl
from rich.table import Table

from dcclctl.report.comparison import POINTS, add_heading, indented, metric_name, new_table
from dcclctl.tables import GROUPS


def seeds_table(per_seed: pl.DataFrame, names: Mapping[str, str], metrics: list[str]) -> Table:
    """Mean and standard deviation over the seeds: a section for each group, a line for each model.

    Args:
        per_seed: PER_SEED table. names: subject → reference to show. metrics: those to show, in their order.
    """
    seeds = per_seed["seed"].unique(maintain_order=True).to_list()
    shown = [metric_name(metric) for metric in metrics]
    title = f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}, in points (1/{POINTS})"
    table = new_table(title, "group, model", shown)
    figures = (
        per_seed.group_by("subject", "group", "metric", maintain_order=True)
        .agg(pl.col("value").mean().alias("mean"), pl.col("value").std().alias("deviation"))
        .to_dicts()
    )
    cells = {(row["group"], row["subject"], row["metric"]): row for row in figures}
    for group in (*GROUPS, "all"):
        if all(cells[group, subject, metric]["mean"] is None for subject in names for metric in metrics):
            continue
        add_heading(table, group)
        for subject, name in names.items():
            table.add_row(indented(name), *(_figure(cells[group, subject, metric]) for metric in metrics))
    return table


def _figure(row: Mapping[str, float | None]) -> str:
    mean, deviation = row["mean"], row["deviation"]
    return "–" if mean is None or deviation is None else f"{POINTS * mean:.2f} ± {POINTS * deviation:.2f}"
