import numpy as np
import polars as pl
import pytest

from dcclctl import tables
from dcclctl.errors import DataError
from dcclctl.metrics.groups import aggregate, members, paired_differences
from dcclctl.tables import AGGREGATE, GROUP_NAMES, PER_USER


def per_user(users=200, subjects=("cloud@2", "cloud@1"), seed=3):
    rng = np.random.default_rng(seed)
    frames = []
    for subject in subjects:
        activity = [None if u % 10 == 0 else u % 20 for u in range(users)]
        frame = pl.DataFrame(
            {
                "subject": [subject] * users,
                "user_index": range(users),
                "user_id": [f"u{u}" for u in range(users)],
                "group": ["new" if a is None else "head" if a > 15 else "tail" for a in activity],
                "activity_group": activity,
                "events": rng.integers(1, 9, users),
                "served_by": ["cloud"] * users,
                "ndcg@10": rng.random(users),
                "auc": [None if u % 3 == 0 else float(v) for u, v in enumerate(rng.random(users))],
            }
        )
        frames.append(frame.cast(PER_USER.schema()))
    return pl.concat(frames)


def test_the_tables_are_those_of_the_package():
    AGGREGATE.check("aggregate", aggregate(per_user()))


def test_means_agree_with_a_plain_loop():
    source = per_user()
    rows = source.to_dicts()
    seen = 0
    for subject, group, metric, value, users in aggregate(source).iter_rows():
        own = [
            row[metric]
            for row in rows
            if row["subject"] == subject
            and row[metric] is not None
            and (
                group in ("all", row["group"])
                or (row["activity_group"] is not None and group == f"activity-{row['activity_group']:02d}")
            )
        ]
        assert users == len(own)
        assert value == (pytest.approx(sum(own) / len(own), abs=1e-12) if own else None)
        seen += bool(own)
    assert seen > 60


def test_order_is_fixed_and_does_not_depend_on_the_rows():
    source = per_user()
    table = aggregate(source)
    assert table["subject"].unique(maintain_order=True).to_list() == ["cloud@2", "cloud@1"]
    assert table["group"].unique(maintain_order=True).to_list() == list(GROUP_NAMES)
    assert table["metric"].to_list()[:2] == ["ndcg@10", "auc"]
    shuffled = pl.concat(
        source.filter(pl.col("subject") == name).sample(fraction=1.0, shuffle=True, seed=4)
        for name in ("cloud@2", "cloud@1")
    )
    assert aggregate(shuffled).equals(table)


def test_a_group_without_values_is_null():
    table = aggregate(per_user().filter(pl.col("group") == "head"))
    tail = table.filter(pl.col("group") == "tail")
    assert tail["value"].to_list() == [None] * 4
    assert tail["users"].to_list() == [0] * 4


def test_every_user_is_in_head_tail_or_new():
    masks = members(per_user(subjects=("a",)))
    assert (masks["head"].astype(int) + masks["tail"] + masks["new"] == 1).all()
    activity = sum(masks[f"activity-{n:02d}"].astype(int) for n in range(tables.ACTIVITY_GROUPS))
    assert (activity + masks["new"] == 1).all()


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN in 'ndcg@10'"):
        aggregate(per_user().with_columns(pl.lit(float("nan")).alias("ndcg@10")))


def test_paired_differences():
    source = per_user().sample(fraction=1.0, shuffle=True, seed=5)
    pairs = paired_differences(source, "cloud@2", "cloud@1")
    new, old = (source.filter(pl.col("subject") == name).sort("user_index") for name in ("cloud@2", "cloud@1"))
    assert pairs["user_id"].to_list() == [f"u{u}" for u in range(200)]
    assert pairs["ndcg@10"].to_list() == (new["ndcg@10"] - old["ndcg@10"]).to_list()
    assert pairs["auc"].null_count() == 67


def test_other_users_cannot_be_paired():
    source = per_user()
    fewer = source.filter((pl.col("subject") != "cloud@1") | (pl.col("user_index") > 0))
    with pytest.raises(DataError, match="not scored on the same users"):
        paired_differences(fewer, "cloud@2", "cloud@1")
    with pytest.raises(DataError, match="not scored on the same users"):
        paired_differences(source, "cloud@2", "cloud@9")
