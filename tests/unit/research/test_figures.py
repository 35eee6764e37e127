"""The statistics behind the tables of docs/results.md: known answers, plain loops, identities."""

import math
from itertools import product
from statistics import NormalDist, mean

import figures
import numpy as np
import polars as pl
import pytest
from study import DISTILLED, LONGER, ONCE, STRONG, TWICE

USERS = 60


def per_user(values: dict[str, np.ndarray], group: str = "", activity: np.ndarray | None = None) -> pl.DataFrame:
    """What an evaluation gives: one row per model and user; the three metrics are x, x / 2 and −x.

    The first half of the users is the less active one.
    """
    frames = []
    for subject, gauc in values.items():
        users = len(gauc)
        levels = np.arange(users) * 20 // users if activity is None else activity
        frames.append(
            pl.DataFrame(
                {
                    "subject": [subject] * users,
                    "user_index": np.arange(users, dtype=np.int32),
                    "user_id": [f"u{number:04d}" for number in range(users)],
                    "group": [group or ("head" if level >= 16 else "tail") for level in levels],
                    "activity_group": levels.astype(np.int32),
                    "gauc": pl.Series(gauc, dtype=pl.Float64, nan_to_null=True),
                    "hr@10": pl.Series(gauc / 2, dtype=pl.Float64, nan_to_null=True),
                    "ndcg@10": pl.Series(-gauc, dtype=pl.Float64, nan_to_null=True),
                }
            )
        )
    return pl.concat(frames)


def seeds_of(subjects: tuple[str, ...], seeds: int = 3, users: int = USERS, group: str = "") -> list[pl.DataFrame]:
    rng = np.random.default_rng(7)
    gain = np.where(np.arange(users) < users // 2, 0.02, -0.01)
    return [
        per_user(
            {name: 0.7 + number * gain + rng.normal(0, 0.03, users) for number, name in enumerate(subjects)}, group
        )
        for _ in range(seeds)
    ]


def rows(table: pl.DataFrame, subject: str) -> list[dict]:
    return table.filter(pl.col("subject") == subject).sort("user_index").to_dicts()


def find(records: figures.Records, **wanted: object) -> dict:
    (only,) = [record for record in records if all(record[key] == value for key, value in wanted.items())]
    return only


# -- mean over seeds


def test_mean_over_seeds_is_a_mean_per_user_without_the_seeds_that_have_no_value() -> None:
    tables = [per_user({"a": np.array([0.2, math.nan])}), per_user({"a": np.array([0.4, 0.9])})]
    assert figures.mean_over_seeds(tables)["gauc"].to_list() == pytest.approx([0.3, 0.9])


def test_tail_is_the_less_active_half_and_new_users_stay_new() -> None:
    levels = np.array([0, 9, 10, 19])
    known = per_user({"a": np.zeros(4)}, activity=levels)  # here head is the most active fifth
    assert figures.mean_over_seeds([known])["group"].to_list() == ["tail", "tail", "head", "head"]
    new = per_user({"a": np.zeros(4)}, "new", activity=levels)
    assert figures.mean_over_seeds([new])["group"].to_list() == ["new"] * 4


def test_users_of_other_data_sets_get_one_number_each() -> None:
    one = per_user({"a": np.array([0.1, 0.2, 0.3])}).head(3)
    other = one.filter(pl.col("user_id") != "u0000").with_columns(pl.col("user_index") - 1)
    found = figures.numbered_together([other, one])
    assert [table["user_index"].to_list() for table in found] == [[1, 2], [0, 1, 2]]
    assert [table.columns for table in found] == [one.columns] * 2
    assert found[0].schema == one.schema


# -- figures


def test_figures_against_a_plain_loop() -> None:
    tables = seeds_of(("control", "patch"))
    records = figures.figures_of(tables)
    wanted_groups = {"all": range(USERS), "tail": range(USERS // 2), "head": range(USERS // 2, USERS)}
    for (group, users), metric in product(wanted_groups.items(), figures.METRICS):
        found = find(records, model="patch", group=group, metric=metric)
        of_seeds = [mean(rows(table, "patch")[user][metric] for user in users) for table in tables]
        differences = [
            mean(rows(table, "patch")[user][metric] - rows(table, "control")[user][metric] for table in tables)
            for user in users
        ]
        assert found["value"] == pytest.approx(mean(of_seeds))
        assert found["spread"] == pytest.approx((max(of_seeds) - min(of_seeds)) / 2)
        assert found["difference"] == pytest.approx(mean(differences))
        assert found["low"] < found["difference"] < found["high"]
        assert (found["users"], found["seeds"]) == (len(users), 3)
    assert not [record for record in records if record["group"] == "new"]


def test_the_reference_has_no_difference() -> None:
    records = figures.figures_of(seeds_of(("control", "patch")))
    assert all("difference" not in record for record in records if record["model"] == "control")


def test_a_difference_turns_with_its_reference() -> None:
    tables = seeds_of(("control", "patch"))
    forth, back = figures.figures_of(tables), figures.figures_of(tables, "patch")
    assert [record["model"] for record in back[:1]] == ["patch"]
    for group, metric in product(("all", "tail", "head"), figures.METRICS):
        one = find(forth, model="patch", group=group, metric=metric)
        other = find(back, model="control", group=group, metric=metric)
        assert other["difference"] == pytest.approx(-one["difference"])
        # the two more users of an interval are drawn without regard to the sign
        width = one["high"] - one["low"]
        assert (other["low"], other["high"]) == pytest.approx((-one["high"], -one["low"]), abs=0.1 * width)


def test_spread_counts_only_seeds_that_have_users_in_the_group() -> None:
    first = per_user({"a": np.full(4, 0.5)})
    second = per_user({"a": np.full(4, 0.6)}).with_columns(pl.lit("new").alias("group"))
    assert find(figures.figures_of([first, second]), group="new", metric="gauc")["spread"] == 0


def by_hand(p_values: list[float]) -> list[float]:
    """Holm, step by step: the smallest p times m, the next times m − 1, never below the one before, at most 1."""
    corrected, before = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    for rank, at in enumerate(order):
        before = max(before, p_values[at] * (len(p_values) - rank))
        corrected[at] = min(1.0, before)
    return corrected


def test_all_comparisons_of_a_table_are_one_family() -> None:
    records = figures.figures_of(seeds_of(("control", "patch", "other"), users=200))
    compared = [record for record in records if record["model"] != "control"]
    assert len(compared) == 2 * 3 * len(figures.METRICS)
    corrected = by_hand([record["p_value"] for record in compared])
    assert [record["p_holm"] for record in compared] == pytest.approx(corrected)
    assert all(record["p_holm"] is None for record in records if record["model"] == "control")
    assert min(corrected) > min(record["p_value"] for record in compared)


def test_where_everybody_is_new_a_comparison_counts_once() -> None:
    records = figures.figures_of(seeds_of(("control", "patch"), group="new"))
    assert all(record["p_holm"] is None for record in records if record["group"] == "all")
    new = [record for record in records if record["group"] == "new" and record["model"] == "patch"]
    assert [record["p_holm"] for record in new] == pytest.approx(by_hand([record["p_value"] for record in new]))
    assert all(record["harmed"] is None for record in new)


def test_harmed_are_those_who_are_worse_off_under_every_seed() -> None:
    zero = np.zeros(4)
    tables = [
        per_user({"control": zero, "patch": np.array([-1.0, -1.0, 1.0, -1.0])}),
        per_user({"control": zero, "patch": np.array([-1.0, 1.0, 1.0, 0.0])}),
    ]
    assert figures.harmed(tables, "patch", "control") == {"all": 0.25, "tail": 0.5, "head": 0.0, "new": 0.0}
    assert figures.harmed(tables[:1], "patch", "control") == {"all": 0.75, "tail": 1.0, "head": 0.5, "new": 0.0}
    record = find(figures.figures_of(tables), model="patch", group="tail", metric="gauc")
    assert record["harmed"] == 0.5


# -- tail minus head


def test_tail_minus_head_against_a_plain_loop() -> None:
    tables = seeds_of(("control", "patch"))
    found = figures.tail_minus_head(tables)
    for metric in figures.METRICS:
        gains = [
            mean(rows(table, "patch")[user][metric] - rows(table, "control")[user][metric] for table in tables)
            for user in range(USERS)
        ]
        wanted = mean(gains[: USERS // 2]) - mean(gains[USERS // 2 :])
        record = find(found, model="patch", metric=metric)
        assert record["difference"] == pytest.approx(wanted)
        assert record["low"] < wanted < record["high"]


def test_tail_minus_head_is_zero_where_everybody_gains_the_same_and_turns_with_the_halves() -> None:
    base = np.linspace(0.5, 0.9, USERS)
    gain = np.where(np.arange(USERS) < USERS // 2, 0.04, 0.01)
    same, more, less = (
        figures.tail_minus_head([per_user({"control": base, "patch": base + extra})])
        for extra in (np.full(USERS, 0.03), gain, gain[::-1])
    )
    assert find(same, metric="gauc")["difference"] == pytest.approx(0, abs=1e-12)
    assert find(more, metric="gauc")["difference"] == pytest.approx(0.03)
    assert find(less, metric="gauc")["difference"] == pytest.approx(-0.03)


# -- by activity


def test_groups_by_activity_are_numbered_from_the_least_active_and_in_points() -> None:
    users = 20 * 30
    gain = (1 + np.arange(users) // 30) / 100
    found = figures.activity_of([per_user({"not drawn": gain, STRONG: np.zeros(users), "memory patch": gain})])
    assert [(record["model"], record["group"]) for record in found] == [("memory patch", at) for at in range(1, 21)]
    assert [record["difference"] for record in found] == pytest.approx(list(range(1, 21)))
    assert {record["users"] for record in found} == {30}


# -- the better of several controls


def test_the_best_control_is_the_one_that_the_patch_gains_least_over() -> None:
    base = np.zeros(USERS)
    half = np.where(np.arange(USERS) < USERS // 2, 0.02, 0.0)
    table = per_user({"one": base, "two": base + half, "three": base - half + 0.01, "memory patch": base + 0.05})
    found = figures.against_the_best([table], ["one", "two", "three"])
    tail, head = (find(found, group=group, metric="gauc") for group in ("tail", "head"))
    assert (tail["control"], head["control"]) == ("two", "three")
    assert tail["difference"] == pytest.approx(0.03)
    assert tail["control_value"] == pytest.approx(0.02)
    assert head["difference"] == pytest.approx(0.04)


# -- lasting harm


@pytest.mark.parametrize(("center", "width"), [(1.0, 2.0), (-0.5, 1.0), (0.0, 3.0)])
def test_two_blocks_without_noise_give_the_normal_share_below_zero(center: float, width: float) -> None:
    both = np.random.default_rng(0).normal(size=1000)
    both = center + width * (both - both.mean()) / both.std()
    assert figures.spread_of(both, both) == pytest.approx(width)
    assert figures.below_zero(both, both) == pytest.approx(NormalDist(center, width).cdf(0))


def test_what_two_blocks_do_not_share_is_no_lasting_spread() -> None:
    first, second = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])
    assert figures.spread_of(first, second) == 0
    assert figures.spread_of(first, -first) == 0  # a negative covariance is no spread
    assert figures.below_zero(first + 0.1, second) == 0
    assert figures.below_zero(first - 0.1, second) == 1


def two_blocks(lasting: np.ndarray, noise: float, seeds: int = 2) -> list[dict[str, pl.DataFrame]]:
    """Models that differ from their controls by `lasting`, and by noise that is another one in each block."""
    rng = np.random.default_rng(3)
    zero = np.zeros(len(lasting))
    drawn = {period: rng.normal(0, noise, len(lasting)) for period in ("valid", "test")}
    return [
        {
            period: per_user({TWICE: zero, ONCE: lasting + drawn[period], LONGER: zero + 1, DISTILLED: 2 + zero})
            for period in drawn
        }
        for _ in range(seeds)
    ]


def test_lasting_harm_takes_the_noise_off() -> None:
    users = 4000
    lasting = np.random.default_rng(1).normal(0.5, 1.0, users)
    record = find(figures.lasting_harm(two_blocks(lasting, 3.0), resamples=100), model=ONCE, group="all")
    truth = NormalDist(0.5, 1.0).cdf(0)
    assert record["low"] < truth < record["high"]
    assert record["estimate"] == pytest.approx(truth, abs=0.06)
    assert record["spread"] == pytest.approx(100, rel=0.2)
    assert record["mean"] == pytest.approx(50, rel=0.2)
    assert record["valid"] > truth + 0.1  # one block alone shows far more users worse off


def test_lasting_harm_counts_like_a_plain_loop() -> None:
    blocks = two_blocks(np.random.default_rng(1).normal(0.1, 0.3, USERS), 0.3)
    # a user is worse off on a block only if every seed says so
    shifted = pl.when(pl.col("subject") == ONCE).then(pl.col("gauc") + 0.2).otherwise(pl.col("gauc")).alias("gauc")
    blocks[1]["test"] = blocks[1]["test"].with_columns(shifted)
    records = figures.lasting_harm(blocks, resamples=20)
    for group, users in {"all": range(USERS), "tail": range(USERS // 2), "head": range(USERS // 2, USERS)}.items():
        worse = {
            period: [
                all(rows(b[period], ONCE)[user]["gauc"] < rows(b[period], TWICE)[user]["gauc"] for b in blocks)
                for user in users
            ]
            for period in ("valid", "test")
        }
        record = find(records, model=ONCE, group=group)
        assert record["users"] == len(users)
        assert record["valid"] == pytest.approx(mean(worse["valid"]))
        assert record["test"] == pytest.approx(mean(worse["test"]))
        assert record["both"] == pytest.approx(mean(a and b for a, b in zip(*worse.values(), strict=True)))
        assert record["by chance"] == pytest.approx(mean(worse["valid"]) * mean(worse["test"]))
        gains = [
            [
                100 * mean(rows(b[period], ONCE)[user]["gauc"] - rows(b[period], TWICE)[user]["gauc"] for b in blocks)
                for user in users
            ]
            for period in ("valid", "test")
        ]
        first, second = map(mean, gains)
        spread = math.sqrt(mean((x - first) * (y - second) for x, y in zip(*gains, strict=True)))
        assert record["mean"] == pytest.approx((first + second) / 2)
        assert record["spread"] == pytest.approx(spread)
        assert record["estimate"] == pytest.approx(NormalDist((first + second) / 2, spread).cdf(0))
        assert record["low"] <= record["estimate"] <= record["high"]


def test_lasting_harm_depends_on_neither_the_unit_nor_the_order_of_blocks() -> None:
    lasting = np.random.default_rng(2).normal(0.1, 0.3, USERS)
    blocks = two_blocks(lasting, 0.2)
    turned = [{"valid": block["test"], "test": block["valid"]} for block in blocks]
    scaled = [{period: table.with_columns(pl.col("gauc") * 10) for period, table in b.items()} for b in blocks]
    wanted, *others = (
        find(figures.lasting_harm(each, resamples=20), model=ONCE, group="all") for each in (blocks, turned, scaled)
    )
    for other in others:
        assert other["estimate"] == pytest.approx(wanted["estimate"])
        assert (other["low"], other["high"]) == pytest.approx((wanted["low"], wanted["high"]))


def test_the_taught_model_is_compared_with_the_control_that_was_trained_as_long() -> None:
    records = figures.lasting_harm(two_blocks(np.zeros(USERS), 1.0), resamples=5)
    assert {record["model"]: record["control"] for record in records} == {ONCE: TWICE, DISTILLED: LONGER}
    taught = find(records, model=DISTILLED, group="tail")
    assert (taught["mean"], taught["spread"], taught["estimate"]) == (100.0, 0.0, 0.0)


def test_users_without_a_value_in_a_block_are_left_out_of_it() -> None:
    blocks = two_blocks(np.full(USERS, -1.0), 0.1)
    none_for_the_first = pl.when(pl.col("user_index") > 0).then(pl.col("gauc")).alias("gauc")
    for block in blocks:
        block["test"] = block["test"].with_columns(none_for_the_first)
    record = find(figures.lasting_harm(blocks, resamples=5), model=ONCE, group="all")
    assert record["users"] == USERS - 1
    assert record["both"] == 1


# -- how figures look


def test_an_interval_without_zero_is_bold() -> None:
    assert figures.cell({"difference": 0.0123, "low": 0.009, "high": 0.015}) == "**+1.23** [+0.90, +1.50]"
    assert figures.cell({"difference": 0.0123, "low": -0.009, "high": 0.015}) == "+1.23 [-0.90, +1.50]"
    assert figures.cell({"difference": -0.0123, "low": -0.02, "high": -0.01}) == "**-1.23** [-2.00, -1.00]"
    assert figures.cell({"difference": 0.5, "low": None}) == "+50.00"
    assert figures.cell({"value": 0.7}) == ""


def test_markdown_has_a_row_a_model_and_columns_for_the_groups_that_there_are() -> None:
    lines = figures.markdown(figures.figures_of(seeds_of(("control", "patch")))).splitlines()
    titles = [title.strip() for title in lines[0].strip("|").split("|")]
    assert titles[:4] == ["model", "GAUC", "HR@10", "NDCG@10"]
    assert [title.partition(",")[0] for title in titles[4:]] == ["all", "all", "tail", "tail", "head", "head"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["control", "patch"]
    assert {line.count("|") for line in lines} == {len(titles) + 1}
