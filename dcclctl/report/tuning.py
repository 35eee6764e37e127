"""Trials of a tuning as tables and as a picture for the terminal."""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from dcclctl.report.comparison import add_heading, metric_name, new_table
from dcclctl.report.terminal import bars

#: trials of a model that the table shows, the best ones
SHOWN = 10


def best_table(trials: pl.DataFrame, metric: str, choice: str, refs: Mapping[str, str]) -> Table:
    """The best trial of every variant beside its first one, which has the defaults.

    Args:
        trials: TRIALS table. metric: e.g. 'all.ndcg@10'. choice: 'model' or 'method'. refs: variant → reference of the best.
    """
    right = ("trials", "pruned", "first", "best")
    table = new_table(f"{heading(metric)} on valid", choice, (*right, "artifact"), "settings")
    for (variant,), rows in trials.group_by("variant", maintain_order=True):
        done = rows.filter(state="done")
        best = _best_first(done, metric)[0]
        first = rows["value"][0]
        table.add_row(
            Text(str(variant)),
            f"{rows.height:,}",
            f"{rows.filter(state='pruned').height:,}",
            "–" if first is None else f"{first:.4f}",
            f"{best['value']:.4f}",
            refs[str(variant)],
            Text(settings_in_words(best["settings"])),
        )
    return table


def trials_table(trials: pl.DataFrame, metric: str, choice: str) -> Table:
    """The best trials of every variant, and how many were stopped early or diverged."""
    right = ("trial", heading(metric), "epochs")
    table = new_table(f"The best {SHOWN} trials of each {choice}", choice, right, "settings")
    for (variant,), rows in trials.group_by("variant", maintain_order=True):
        add_heading(table, str(variant))
        for row in _best_first(rows.filter(state="done"), metric)[:SHOWN]:
            epochs = "–" if row["epochs"] is None else f"{row['epochs']:,}"
            table.add_row(
                "", str(row["trial"]), f"{row['value']:.4f}", epochs, Text(settings_in_words(row["settings"]))
            )
    return table


def picture(trials: pl.DataFrame, metric: str, choice: str) -> Table:
    """A bar for each trial, in the order they were made, all variants on one scale; a dot for one that was stopped."""
    values = trials["value"].drop_nulls()
    low, high = float(values.min() or 0.0), float(values.max() or 0.0)  # type: ignore[arg-type]
    shown = f"{heading(metric)}, first to last trial; · stopped early"
    table = new_table(None, choice, (shown, "lowest", "highest"))
    for (variant,), rows in trials.group_by("variant", maintain_order=True):
        own = rows["value"].drop_nulls().to_list()
        table.add_row(
            Text(str(variant)), bars(rows["value"].to_list(), low, high), f"{min(own):.4f}", f"{max(own):.4f}"
        )
    return table


def heading(metric: str) -> str:
    """'tail.ndcg@10/1000' → 'tail NDCG@10 sampled'."""
    group, _, name = metric.partition(".")
    return f"{group} {metric_name(name)}"


def settings_in_words(text: str) -> str:
    """'{"din.x": 1}' → 'x=1', from the JSON of a TRIALS table."""
    found: dict[str, Any] = json.loads(text)
    return ", ".join(f"{key.lstrip('.')}={value}" for key, value in found.items()) or "defaults"


def _best_first(done: pl.DataFrame, metric: str) -> list[dict[str, Any]]:
    from dcclctl.metrics.metric import lower_is_better

    return done.sort("value", descending=not lower_is_better(metric.partition(".")[2]), maintain_order=True).to_dicts()
