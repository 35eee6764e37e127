"""The two-level bootstrap over seeds and users."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from dcclctl.metrics.seeds import (
    compare_seeds,
    contrast_seeds,
    seeds_error,
    student,
    two_level_means,
    widening,
    without_seeds,
)
from dcclctl.metrics.significance import MIN_UNCHANGED, MIN_USERS, compare, users_to_settle


def tables(values):
    """(seeds, users) → one table of differences for each seed."""
    users = values.shape[1]
    about = pl.DataFrame(
        {
            "user_index": pl.Series(range(users), dtype=pl.Int32),
            "user_id": [f"u{u}" for u in range(users)],
            "group": ["head" if u % 5 == 0 else "tail" for u in range(users)],
            "activity_group": pl.Series([u % 20 for u in range(users)], dtype=pl.Int8),
        }
    )
    return [about.with_columns(pl.Series("mrr", own, dtype=pl.Float64).fill_nan(None)) for own in values]


def simulated(draw, seeds, users, of_seeds, of_users, of_both):
    """True mean 0; standard deviations of the effects of a seed, of a user, and of a user under a seed."""
    return (
        (draw.normal(0, of_seeds, (seeds, 1)) if of_seeds else np.zeros((seeds, 1)))
        + draw.normal(0, of_users, users)
        + draw.normal(0, of_both, (seeds, users))
    )


def interval(values, seed):
    drawn = two_level_means(values[:, :, None], np.ones((1, values.shape[1]), bool), seed, 400)[:, 0, 0]
    return np.quantile(drawn, [0.025, 0.975])


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 10, 15, 40, 99])
def test_students_quantile(degrees):
    assert student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)


def test_every_resample_agrees_with_a_plain_loop():
    draw = np.random.default_rng(1)
    values = draw.normal(size=(3, 40, 2)) + draw.normal(size=(3, 1, 2))
    values[:, draw.random((40, 2)) < 0.2] = math.nan
    masks = np.stack([np.ones(40, bool), np.arange(40) < 15])
    ours = two_level_means(values, masks, seed=7, resamples=30)

    users_drawn = np.random.default_rng(7).integers(40, size=(30, 40))
    seeds_drawn = np.random.default_rng([7, 3]).multinomial(3, [1 / 3] * 3, size=30)
    for r in range(30):
        for g in range(2):
            for m in range(2):
                means = []
                for s in range(3):
                    drawn = [values[s, u, m] for u in users_drawn[r] if masks[g, u] and not np.isnan(values[s, u, m])]
                    means.append(sum(drawn) / len(drawn))
                # the seeds' own share of their spread, from sums of squares of the two-way table
                table = values[:, masks[g] & ~np.isnan(values[0, :, m]), m]
                n = table.shape[1]
                rest = sum(
                    (table[s, u] - table[s].mean() - table[:, u].mean() + table.mean()) ** 2
                    for s in range(3)
                    for u in range(n)
                ) / (2 * (n - 1))
                spread = sum((table[s].mean() - table.mean()) ** 2 for s in range(3)) / 2
                factor = widening(3) * math.sqrt(max(0, 1 - rest / n / spread))
                expected = sum(means) / 3 + factor * sum((seeds_drawn[r, s] / 3 - 1 / 3) * means[s] for s in range(3))
                assert ours[r, g, m] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_users", "of_both"),
    [(5, 0.1, 1, 1), (5, 0.1, 0.1, 0.1), (5, 0, 1, 1), (5, 0.1, 0.1, 1), (3, 0.1, 1, 0.5), (2, 0.1, 1, 0.5)],
)
def test_intervals_cover_a_truth_that_seeds_and_users_hide(seeds, of_seeds, of_users, of_both):
    trials, hits = 300, 0
    for trial in range(trials):
        values = simulated(np.random.default_rng(trial), seeds, 150, of_seeds, of_users, of_both)
        low, high = interval(values, trial)
        hits += low <= 0 <= high
    # 95 % of 300 trials, give or take three standard errors
    assert hits / trials >= 0.91


def test_an_interval_over_users_alone_misses_the_seeds():
    """What the second level is for: the same trials with the mean over seeds taken for one training."""
    hits = 0
    for trial in range(200):
        values = simulated(np.random.default_rng(trial), 5, 150, 0.3, 0.5, 0.5)
        row = compare(tables(values.mean(0, keepdims=True))[0], ("all",), trial, 400).to_dicts()[0]
        hits += row["low"] <= 0 <= row["high"]
    assert hits / 200 < 0.6


def test_without_a_seeds_effect_the_interval_is_hardly_wider_than_users_need():
    ratios = []
    for trial in range(60):
        values = simulated(np.random.default_rng(trial), 5, 150, 0, 1, 1)
        low, high = interval(values, trial)
        ratios.append((high - low) / (2 * 1.96 * math.sqrt((1 + 1 / 5) / 150)))
    assert 0.95 < np.mean(ratios) < 1.15


def test_seeds_that_agree_are_one_seed():
    values = np.random.default_rng(0).normal(0.2, 1, (1, 60))
    one, five = compare(tables(values)[0], seed=3), compare_seeds(tables(np.repeat(values, 5, 0)), seed=3)
    for name in ("difference", "low", "high", "p_value"):
        assert five[name].to_list() == pytest.approx(one[name].to_list(), nan_ok=True)


def test_a_group_that_is_too_small_has_no_interval():
    found = compare_seeds(tables(np.random.default_rng(0).normal(size=(3, 2 * MIN_USERS))))
    rows = {row["group"]: row for row in found.to_dicts()}
    assert rows["head"]["low"] is None and rows["head"]["difference"] is not None
    assert rows["new"]["users"] == 0 and rows["new"]["difference"] is None
    assert rows["all"]["low"] < rows["all"]["difference"] < rows["all"]["high"]


@pytest.mark.filterwarnings("error")
def test_few_users_who_do_not_differ_have_no_interval():
    nothing = np.zeros((3, 5 * MIN_USERS // 2))
    for table in (compare_seeds(tables(nothing), ("all", "tail")), contrast_seeds(tables(nothing), "tail", "head")):
        assert table["difference"].to_list() == [0.0] * len(table)
        assert table["low"].null_count() == table["p_value"].null_count() == table["p_holm"].null_count() == len(table)
    many = compare_seeds(tables(np.zeros((3, MIN_UNCHANGED))), ("all",)).row(0, named=True)
    assert (many["low"], many["high"], many["p_value"]) == (0.0, 0.0, 1.0)


def test_contrast_is_the_difference_of_the_groups():
    values = np.random.default_rng(0).normal(0, 0.1, (4, 40 * MIN_USERS))
    values[:, ::5] += 1.0  # head
    (row,) = contrast_seeds(tables(values), "tail", "head").to_dicts()
    assert row["difference"] == pytest.approx(-1.0, abs=0.02)
    assert row["low"] < row["difference"] < row["high"] < 0 and row["p_value"] < 0.01


def test_users_that_would_settle_it_know_that_users_do_not_lessen_the_seeds_spread():
    seeds = [0.01, 0.03, 0.02]
    spread = stats.sem(seeds) * stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975)
    assert seeds_error(seeds) == pytest.approx(spread, rel=1e-3)
    assert without_seeds(0.02, [], 0.95) == without_seeds(0.02, [0.02], 0.95) == 0.02
    left = without_seeds(0.03, seeds, 0.95)
    assert left == pytest.approx(math.sqrt(0.03**2 - (1.96 * spread) ** 2), rel=1e-3)
    assert users_to_settle(left, 0.1) > users_to_settle(0.03, 0.1)
    # an interval over seeds alone that holds 0 is not settled by users
    assert users_to_settle(without_seeds(0.02, seeds, 0.95), 0.1) is None
    assert users_to_settle(without_seeds(0.001, seeds, 0.95), 0.1) is None
