import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dcclctl.metrics import significance
from dcclctl.metrics.significance import (
    MIN_UNCHANGED,
    MIN_USERS,
    bootstrap_means,
    compare,
    contrast,
    holm,
    users_to_settle,
    with_two_more_users,
)


def differences(**metrics):
    users = len(next(iter(metrics.values())))
    return pl.DataFrame(
        {
            "user_index": pl.Series(range(users), dtype=pl.Int32),
            "user_id": [f"u{u}" for u in range(users)],
            "group": ["head" if u % 5 == 0 else "tail" for u in range(users)],
            "activity_group": pl.Series([u % 20 for u in range(users)], dtype=pl.Int8),
            **{name: pl.Series(values, dtype=pl.Float64) for name, values in metrics.items()},
        }
    )


def everyone(users):
    return np.ones((1, users), dtype=bool)


@pytest.mark.parametrize("block_cells", [1, 100, 10**6])
def test_resamples_agree_with_a_plain_loop_for_any_block_size(monkeypatch, block_cells):
    monkeypatch.setattr(significance, "_BLOCK_CELLS", block_cells)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 3))
    values[rng.random((30, 3)) < 0.2] = math.nan
    masks = np.stack([np.ones(30, bool), np.arange(30) < 12])
    ours = bootstrap_means(values, masks, seed=7, resamples=50)

    draw = np.random.default_rng(7)
    for resample in ours:
        drawn = draw.integers(30, size=30)
        for group, mask in enumerate(masks):
            for metric in range(3):
                own = [values[u, metric] for u in drawn if mask[u] and not math.isnan(values[u, metric])]
                assert resample[group, metric] == pytest.approx(np.mean(own), abs=1e-12)


def test_many_users_are_drawn_in_blocks_with_the_same_spread(monkeypatch):
    """Means of groups of any size, and of values that are missing; the standard errors are those of the textbook."""
    draw = np.random.default_rng(5)
    values = draw.normal(0.3, 1, (6000, 2))
    values[draw.random(6000) < 0.3, 1] = np.nan
    masks = np.stack([np.ones(6000, dtype=bool), draw.random(6000) < 0.1])
    monkeypatch.setattr(significance, "MOST_UNITS", 1500)
    blocks = significance.bootstrap_means(values, masks)
    assert blocks.shape == (2000, 2, 2)
    for group, mask in enumerate(masks):
        for metric in range(2):
            own = values[mask, metric]
            own = own[~np.isnan(own)]
            error = own.std(ddof=1) / math.sqrt(len(own))
            assert blocks[:, group, metric].std() == pytest.approx(error, rel=0.12)
            assert blocks[:, group, metric].mean() == pytest.approx(own.mean(), abs=error / 5)
    monkeypatch.setattr(significance, "MOST_UNITS", 6000)
    assert not np.array_equal(significance.bootstrap_means(values, masks, resamples=3), blocks[:3])


def test_interval_agrees_with_scipy():
    gains = np.random.default_rng(1).exponential(size=400) - 0.9
    row = compare(differences(ndcg=gains), groups=("all",), resamples=10_000).row(0, named=True)
    largest = np.abs(gains).max()
    reference = stats.bootstrap(
        (np.append(gains, [largest, -largest]),),
        np.mean,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(2),
    )
    # Two independent sets of draws: their bounds differ by about a hundredth of the standard error.
    error = gains.std(ddof=1) / math.sqrt(400)
    assert row["low"] == pytest.approx(reference.confidence_interval.low, abs=0.1 * error)
    assert row["high"] == pytest.approx(reference.confidence_interval.high, abs=0.1 * error)
    assert row["difference"] == pytest.approx(gains.mean(), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
def test_p_value_agrees_with_the_t_test(shift):
    gains = np.random.default_rng(3).normal(size=500)
    gains += shift - gains.mean()
    row = compare(differences(ndcg=gains), groups=("all",), resamples=10_000).row(0, named=True)
    assert row["p_value"] == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, abs=0.02)


def test_equal_models_differ_rarely():
    """A/A: two models of the same quality. The 95 % interval must hold 0 in 95 % of the comparisons, give or take chance."""
    holds = 0
    for number in range(400):
        rng = np.random.default_rng([11, number])
        # Like HR@k: most users hit nothing, and the two models share part of their hits.
        shared = rng.random(400) < 0.1
        new, old = (np.where(shared, 1.0, rng.random(400) < 0.15) for _ in range(2))
        means = bootstrap_means((new - old)[:, None], everyone(400), seed=number)[:, 0, 0]
        low, high = np.quantile(means, [0.025, 0.975])
        holds += low <= 0 <= high
    assert 0.93 <= holds / 400 <= 0.97


def test_a_group_is_compared_on_its_own_users():
    gains = np.where(np.arange(500) % 5 == 0, 1.0, -1.0) + np.random.default_rng(4).normal(size=500)
    table = compare(differences(ndcg=gains), groups=("head", "tail", "new"))
    head, tail, new = table.iter_rows(named=True)
    assert (head["users"], tail["users"], new["users"]) == (100, 400, 0)
    assert head["low"] > 0 > tail["high"]
    assert new["difference"] is None and new["low"] is None and new["p_holm"] is None


def test_contrast_agrees_with_welch():
    """The two groups share no user, so their difference is that of two independent means (scipy, Welch's t-test)."""
    gains = np.random.default_rng(9).normal(size=1000)
    head = np.arange(1000) % 5 == 0
    gains[~head] += 0.2
    row = contrast(differences(ndcg=gains), resamples=10_000).row(0, named=True)
    tails, heads = (np.append(own, np.abs(own).max() * np.array([1, -1])) for own in (gains[~head], gains[head]))
    reference = stats.ttest_ind(tails, heads, equal_var=False)
    bounds = reference.confidence_interval(0.95)
    error = float((tails.mean() - heads.mean()) / reference.statistic)
    assert row["users"] == 1000
    assert row["difference"] == pytest.approx(gains[~head].mean() - gains[head].mean(), abs=1e-12)
    assert (row["low"], row["high"]) == pytest.approx((bounds.low, bounds.high), abs=0.1 * error)
    assert row["p_value"] == pytest.approx(reference.pvalue, abs=0.02)


def test_groups_that_gain_alike_differ_rarely():
    """A/A: head and tail gain the same in the mean, the tail with more noise. 0 is in 95 % of the intervals, give or take chance."""
    holds = 0
    for number in range(400):
        rng = np.random.default_rng([13, number])
        gains = 0.1 + rng.normal(size=300) * np.where(np.arange(300) % 5 == 0, 0.5, 2.0)
        row = contrast(differences(ndcg=gains), seed=number, resamples=500).row(0, named=True)
        holds += row["low"] <= 0 <= row["high"]
    assert 0.93 <= holds / 400 <= 0.97


def test_contrast_of_a_group_without_users_or_with_too_few():
    gains = np.random.default_rng(14).normal(size=60)
    table = differences(ndcg=gains, auc=[None if u % 5 == 0 else 1.0 for u in range(60)])
    ndcg, auc = contrast(table).iter_rows(named=True)  # 12 head users
    assert ndcg["difference"] is not None and ndcg["users"] == 60
    assert ndcg["low"] is None and ndcg["high"] is None and ndcg["p_value"] is None and ndcg["p_holm"] is None
    assert auc["difference"] is None and auc["users"] == 48
    assert contrast(table, "tail", "new")["difference"].to_list() == [None, None]


def test_users_without_a_value_are_left_out():
    gains = np.random.default_rng(5).normal(1, 1, 200)
    with_gaps = [None if u % 2 else float(gain) for u, gain in enumerate(gains)]
    row = compare(differences(auc=with_gaps), groups=("all",)).row(0, named=True)
    assert row["users"] == 100
    assert row["difference"] == pytest.approx(gains[::2].mean(), abs=1e-12)
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * gains[::2].std() / 10, rel=0.15)


def test_too_few_users_give_no_interval():
    gains = [1.0] * (MIN_USERS - 1)
    row = compare(differences(ndcg=gains), groups=("all",)).row(0, named=True)
    assert row["difference"] == 1.0
    assert row["low"] is None and row["high"] is None and row["p_value"] is None


def test_no_difference_at_all_is_not_significant():
    row = compare(differences(ndcg=[0.0] * MIN_UNCHANGED), groups=("all",)).row(0, named=True)
    assert (row["low"], row["high"], row["p_value"]) == (0.0, 0.0, 1.0)
    few = compare(differences(ndcg=[0.0] * (MIN_UNCHANGED - 1)), groups=("all",)).row(0, named=True)
    assert (few["difference"], few["low"], few["p_value"]) == (0.0, None, None)


def skewed_populations() -> dict[str, np.ndarray]:
    """Differences of a million users each, like those in the table of docs/metrics.md."""
    rng = np.random.default_rng(20)
    users = 1_000_000

    def hits(up: float, down: float) -> np.ndarray:
        drawn = rng.random(users)
        return np.where(drawn < up, 1.0, np.where(drawn < up + down, -1.0, 0.0))

    events, chance = 1 + rng.poisson(2, users), rng.beta(0.3, 4, users)
    new, old = (rng.binomial(events, np.minimum(1, chance * lift)) / events for lift in (1.6, 1))
    rank = np.floor(np.exp(rng.normal(3, 1.8, users))) + 1
    next_rank = np.floor(rank * np.exp(rng.normal(-0.15, 0.6, users))) + 1
    return {
        "4 % gain a hit, 1 % lose one": hits(0.04, 0.01),
        "10 % gain a hit, 2 % lose one": hits(0.10, 0.02),
        "2 % gain a hit, 2 % lose one": hits(0.02, 0.02),
        "5 % gain a hit, nobody loses one": hits(0.05, 0),
        "hit ratio of few events": new - old,
        "1 / rank": 1 / next_rank - 1 / rank,
        "log loss, log-normal": rng.lognormal(-1.02, 1, users) - rng.lognormal(-1, 1, users),
    }


def coverage(population: np.ndarray, users: int, samples: int) -> tuple[float, float]:
    """Share of samples whose 95 % interval holds the truth: of the plain bootstrap, and of `compare` where it has one."""
    drawn = np.random.default_rng(users).integers(len(population), size=(users, samples))
    values = population[drawn]
    plain = bootstrap_means(values, everyone(users), seed=1, resamples=500)
    means = with_two_more_users(plain, values, everyone(users), seed=1)[:, 0]
    given = ~np.isnan(means).all(0)
    found = []
    for own in (plain[:, 0], means[:, given]):
        low, high = np.quantile(own, [0.025, 0.975], axis=0)
        found.append(float(((low <= population.mean()) & (population.mean() <= high)).mean()))
    return found[0], found[1]


def test_intervals_cover_the_truth_from_the_smallest_group_on():
    """At least 93 % of the 95 % intervals hold the truth, also where few users differ; a plain bootstrap does not do that."""
    found = {
        (name, users): coverage(population, users, samples=500)
        for name, population in skewed_populations().items()
        for users in (MIN_USERS, 50, 100)
    }
    assert {key: ours for key, (_, ours) in found.items() if ours < 0.93} == {}
    assert min(plain for (_, users), (plain, _) in found.items() if users == MIN_USERS) < 0.5
    assert min(plain for (_, users), (plain, _) in found.items() if users == 100) < 0.9


def test_two_more_users_known_answer():
    """Each group is widened by its own largest difference; one without any change is left alone from 100 users on."""
    values = np.zeros((150, 1))
    values[:2, 0] = 0.5, -1.0
    masks = np.stack([np.arange(150) < 1, np.arange(150) < 40, np.arange(150) >= 40, np.arange(150) >= 60])
    means = np.zeros((20_000, 4, 1))
    wider = with_two_more_users(means, values, masks, seed=0)[:, :, 0]
    # mean 0 of n users and ±d, each drawn about once: variance 2 d² / (n + 2)²
    assert wider[:, 1].std() == pytest.approx(math.sqrt(2) * 1.0 / 42, rel=0.03)
    assert wider[:, 0].std() < 0.5
    assert (wider[:, 2] == 0).all()
    assert np.isnan(wider[:, 3]).all()
    # the two users of one group are drawn apart from those of another
    assert abs(np.corrcoef(wider[:, 0], wider[:, 1])[0, 1]) < 0.05


def test_same_seed_same_table_whatever_the_order_of_rows():
    rng = np.random.default_rng(6)
    table = differences(ndcg=rng.normal(size=100), auc=rng.normal(size=100))
    assert compare(table, seed=1).equals(compare(table.reverse(), seed=1))
    assert not compare(table, seed=1).equals(compare(table, seed=2))


def test_p_values_are_corrected_over_the_metrics_of_a_group():
    rng = np.random.default_rng(8)
    table = compare(differences(**{f"m{m}": rng.normal(0.15, 1, 300) for m in range(6)}), groups=("all", "tail"))
    for (_,), own in table.group_by("group", maintain_order=True):
        assert own["p_holm"].to_list() == pytest.approx(holm(own["p_value"].to_numpy()).tolist())
        assert (own["p_holm"] >= own["p_value"]).all()


def test_holm_known_answer():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.02, math.nan, 0.5])) == pytest.approx([0.04, math.nan, 0.5], nan_ok=True)
    assert holm(np.empty(0)).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_stepwise_procedure_rejects(p_values):
    # Holm as it is told: go up from the smallest, stop at the first p > level / (comparisons left).
    level = 0.05
    rejected = set()
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for step, index in enumerate(order):
        if (len(p_values) - step) * p_values[index] > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(np.array(p_values))) if p <= level} == rejected


def test_so_many_users_do_settle_it():
    users = users_to_settle(difference=0.1, deviation=1.0)
    assert users == 785
    rng = np.random.default_rng(9)
    means, deviations = zip(*((x.mean(), x.std(ddof=1)) for x in rng.normal(0.1, 1.0, (2000, users))), strict=True)
    conclusive = np.abs(means) > 1.96 * np.array(deviations) / math.sqrt(users)
    assert conclusive.mean() == pytest.approx(0.8, abs=0.03)


def test_users_to_settle_against_a_threshold():
    assert users_to_settle(-0.05, 1.0, threshold=-0.15) == users_to_settle(0.1, 1.0)
    assert users_to_settle(0.2, 1.0) == pytest.approx(users_to_settle(0.1, 1.0) / 4, rel=0.01)
    assert users_to_settle(0.1, 1.0, threshold=0.1) is None
    assert users_to_settle(0.1, 0.0, threshold=0.1) is None
    assert users_to_settle(1e-18, 1.0) is None
    assert users_to_settle(0.1, 0.0) == 2
