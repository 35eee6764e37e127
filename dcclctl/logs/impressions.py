"""Impressions: lists of the items that a user was shown, some of which were clicked. Each shown item becomes a record.

Two forms are read: one column of 'N1-1 N2-0 N3-0', where 1 is clicked (MIND); or a column of the shown items and one of
the clicked ones, each a list (EB-NeRD) or text with spaces, commas or bars between the items.
"""

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl

from dcclctl.logs.batch import Batch
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.labels import LabelRule
from dcclctl.logs.layout import Layout

#: the column of labels that `one_by_one` adds
CLICKED = "clicked"
RULE = LabelRule(CLICKED, ">", 0)
_SHOWN = re.compile(r"(\S+-[01])( \S+-[01])*")


def one_by_one(batch: Batch, roles: dict[str, str]) -> Batch:
    """A batch with one record for each shown item: its id in the column of the impressions, and `clicked`, 1 or 0.

    An empty list stays one record, without an item. A shown item without a label has no `clicked`; the row rules refuse
    both.
    """
    column, clicked = roles["impressions"], roles.get("clicked")
    shown = [_items(text) for text in batch.frame[column]]
    labels: list[str | None] = []
    ids: list[str | None] = []
    chosen = [_items(text) for text in batch.frame[clicked]] if clicked else [[]] * len(shown)
    for items, of_them in zip(shown, chosen, strict=True):
        if clicked:
            ids += items or [None]
            labels += ["1" if item in of_them else "0" for item in items] or ["0"]
            continue
        for item in items or [""]:
            name, dash, label = item.rpartition("-")
            ids.append(name if dash else item or None)
            labels.append(label if dash else None)
    rows = np.repeat(np.arange(len(shown)), [len(items) or 1 for items in shown])
    frame = batch.frame[rows].with_columns(
        pl.Series(column, ids, dtype=pl.String), pl.Series(CLICKED, labels, dtype=pl.String)
    )
    return replace(
        batch,
        frame=frame,
        records=batch.records[rows],
        raw=lambda row: batch.raw(int(rows[row])),
        read=batch.read + len(rows) - len(shown),
    )


def _items(text: str | None) -> list[str]:
    if text is None:
        return []
    if text.lstrip().startswith("["):
        try:
            return [str(each) for each in json.loads(text) if each is not None]
        except ValueError:
            pass  # ids of the form [a] [b]
    return [item for item in re.split(r"[\s,|]+", text) if item]


class MindFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By five fields between tabs, the last one a list like 'N1-1 N2-0'."""
        fields = head.lines[0].rstrip("\r").split("\t")
        if len(fields) != 5 or not _SHOWN.fullmatch(fields[4]):
            if head.named:
                raise head.unlike("mind")
            return None
        by_position = bool(head.mapped) and all(place.isdigit() for place in head.mapped)
        names = ("1", "2", "3", "4", "5") if by_position else ("impression_id", "user_id", "time", "history", "shown")
        return Layout(
            *("mind", "text", names),
            roles={"user": names[1], "time": names[2], "impressions": names[4]},
            delimiter="\t",
            has_header=False,
            quoting=False,
            timezone="UTC",
            remarks=("MIND's times name no zone and are read as UTC; --timezone names another",),
        )
