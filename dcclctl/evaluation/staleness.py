"""What patches gain when they are some blocks old, while the devices' memories go on.

The test period is cut into blocks. Patches are new in the first one and grow a block older with each; in every block
they are compared with the cloud model under them, which grows old too. So the gain is that of the patches and the
memories alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from dcclctl.metrics.groups import metric_columns, paired_differences
from dcclctl.metrics.metric import MEAN_NAMES
from dcclctl.metrics.significance import compare

#: age in blocks → the block of the test period in which patches have it
BLOCKS = {age: f"test:{age + 1}/5" for age in (0, 1, 2, 4)}
#: beginnings of the names of the metrics that are shown
_SHOWN = ("gauc", "ndcg@10")
_GROUP = ("all",)


def gains(tables: Mapping[int, pl.DataFrame], subject: str, against: str, seed: int) -> Iterator[dict[str, Any]]:
    """The gain at each age, and its change against new patches over the users that have events at both ages.

    Args:
        tables: age → PER_USER table of its block. subject: the patches. against: the cloud model under them.
        seed: of the bootstrap.

    Yields:
        For each age and metric blocks_old, on, metric, users, gain, low and high; from the second age on also change,
        change_low and change_high. Intervals are over users, None for few of them.
    """
    new: pl.DataFrame | None = None
    for age, table in tables.items():
        table = table.rename(MEAN_NAMES)
        table = table.drop(name for name in metric_columns(table) if not name.startswith(_SHOWN))
        own = paired_differences(table, subject, against)
        new = own if new is None else new
        changes = compare(_minus(own, new), _GROUP, seed)
        for found, change in zip(compare(own, _GROUP, seed).to_dicts(), changes.to_dicts(), strict=True):
            row = {"blocks_old": age, "on": BLOCKS[age], "metric": found["metric"], "users": found["users"]}
            row |= {"gain": found["difference"], "low": found["low"], "high": found["high"]}
            if own is not new:
                row |= {"change": change["difference"], "change_low": change["low"], "change_high": change["high"]}
            yield row


def _minus(own: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Differences of the users that both tables have."""
    joined = own.join(new, on="user_index", suffix=".new", maintain_order="left")
    return joined.select(
        "user_index",
        "user_id",
        "group",
        "activity_group",
        *(pl.col(name) - pl.col(f"{name}.new") for name in metric_columns(own)),
    )
