"""Paired comparison and harm from a per-user table, and from real evaluations."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from dcclctl.errors import UsageError
from dcclctl.evaluation.comparison import LEVEL, Comparison, at_chance, main_metrics, with_what_is_worse
from dcclctl.metrics.significance import RESAMPLES, users_to_settle
from dcclctl.tables import COMPARISON, HARM, MAIN_GROUPS, TAIL_MINUS_HEAD, WORST_USERS


def per_user(**subjects: dict[str, list[float | None]]) -> pl.DataFrame:
    """One table of all subjects; every fifth user is a head user, the last ten are new."""
    tables = []
    for subject, metrics in subjects.items():
        users = len(next(iter(metrics.values())))
        group = ["new" if u >= users - 10 else "head" if u % 5 == 0 else "tail" for u in range(users)]
        tables.append(
            pl.DataFrame(
                {
                    "subject": [subject] * users,
                    "user_index": pl.Series(range(users), dtype=pl.Int32),
                    "user_id": [f"u{u}" for u in range(users)],
                    "group": group,
                    "activity_group": pl.Series(
                        [None if g == "new" else u % 20 for u, g in enumerate(group)], dtype=pl.Int8
                    ),
                    **{name: pl.Series(values, dtype=pl.Float64) for name, values in metrics.items()},
                }
            )
        )
    return pl.concat(tables)


def comparison(
    table: pl.DataFrame, against: str, seed: int, groups: tuple[str, ...] = MAIN_GROUPS, resamples: int = RESAMPLES
) -> pl.DataFrame:
    return Comparison(table, against, seed, resamples).table(groups)


def tail_minus_head(table: pl.DataFrame, against: str, seed: int) -> pl.DataFrame:
    return Comparison(table, against, seed).tail_minus_head()


def harms(table: pl.DataFrame, against: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    compared = Comparison(table, against, 0)
    return compared.harm(), compared.worst_users()


def row(table: pl.DataFrame, **where: str) -> dict:
    found = table.filter(**{name: value for name, value in where.items()})
    assert found.height == 1
    return found.row(0, named=True)


def noisy(seed: int = 0, users: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(users), rng.normal(0, 0.1, users)


def test_tables_have_the_columns_that_are_described():
    base, noise = noisy()
    table = per_user(a={"ndcg@10": base, "auc": base}, b={"ndcg@10": base + noise, "auc": base})
    COMPARISON.check("comparison", comparison(table, "a", 0))
    shares, worst = harms(table, "a")
    HARM.check("harm", shares)
    WORST_USERS.check("worst", worst)
    TAIL_MINUS_HEAD.check("who", tail_minus_head(table, "a", 0))


def test_who_gains_more_is_named_whichever_way_the_metric_points():
    base, noise = noisy()
    head = np.arange(300) % 5 == 0
    towards_head = base + noise * 0.1 + np.where(head, 0.2, 0.0)
    table = per_user(
        a={"ndcg@10": base, "log_loss": base, "auc": base},
        b={"ndcg@10": towards_head, "log_loss": towards_head, "auc": base + noise},
    )
    found = tail_minus_head(table, "a", 0)
    assert row(found, metric="ndcg@10")["verdict"] == "head"
    assert row(found, metric="ndcg@10")["difference"] == pytest.approx(-0.2, abs=0.01)
    # The head's loss rises more: the tail is better off, though nobody gains.
    assert row(found, metric="log_loss")["verdict"] == "tail"
    assert row(found, metric="gauc")["verdict"] == "inconclusive"
    # New users belong to neither group.
    assert row(found, metric="ndcg@10")["users"] == 290


def test_more_metrics_take_more_resamples_to_tell_who_gains_more():
    base, noise = noisy()
    gains = np.where(np.arange(300) % 5 == 0, 0.0, 0.1)
    metrics = {f"hr@{k}": base + noise + gains for k in range(1, 31)}
    found = tail_minus_head(per_user(a=dict.fromkeys(metrics, base), b=metrics), "a", 0)
    assert found["verdict"].unique().to_list() == ["tail"]


def test_verdicts_follow_the_direction_of_the_metric():
    base, noise = noisy()
    table = per_user(
        old={"ndcg@10": base, "log_loss": base},
        up={"ndcg@10": base + 0.1 + noise, "log_loss": base + 0.1 + noise},
        down={"ndcg@10": base - 0.1 + noise, "log_loss": base - 0.1 + noise},
        same={"ndcg@10": base + noise - noise.mean(), "log_loss": base},
    )
    found = comparison(table, "old", 0)
    verdicts = {(r["subject"], r["metric"]): r["verdict"] for r in found.filter(group="all").to_dicts()}
    assert verdicts == {
        ("up", "ndcg@10"): "better",
        ("up", "log_loss"): "worse",
        ("down", "ndcg@10"): "worse",
        ("down", "log_loss"): "better",
        ("same", "ndcg@10"): "inconclusive",
        ("same", "log_loss"): "inconclusive",
    }
    assert found["subject"].unique(maintain_order=True).to_list() == ["up", "down", "same"]


def test_interval_and_p_value_agree_with_scipy_on_the_group():
    base, noise = noisy(1, 600)
    table = per_user(a={"mrr": base}, b={"mrr": base + noise + 0.004})
    gains = (noise + 0.004)[[u for u in range(590) if u % 5]]
    found = row(comparison(table, "a", 0, resamples=10_000), group="tail")
    reference = stats.bootstrap(
        (gains,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    )
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    assert found["users"] == len(gains)
    assert found["difference"] == pytest.approx(gains.mean(), abs=1e-12)
    assert found["low"] == pytest.approx(reference.confidence_interval.low, abs=0.1 * error)
    assert found["high"] == pytest.approx(reference.confidence_interval.high, abs=0.1 * error)
    assert found["p_value"] == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, abs=0.03)


def test_both_sides_are_means_over_the_users_with_a_value_on_both():
    base, noise = noisy()
    gaps = [None if u % 3 == 0 else float(value) for u, value in enumerate(base)]
    found = comparison(per_user(a={"auc": gaps}, b={"auc": base + noise}), "a", 0)
    everyone = row(found, group="all")
    kept = [u for u in range(300) if u % 3]
    assert (everyone["metric"], everyone["users"]) == ("gauc", 200)
    assert everyone["baseline"] == pytest.approx(base[kept].mean(), abs=1e-12)
    assert everyone["value"] - everyone["baseline"] == pytest.approx(everyone["difference"], abs=1e-12)


def test_a_verdict_holds_for_all_metrics_together():
    """Of twenty metrics of noise one looks real alone (p ≈ 0.02), as one in twenty will; no verdict is made of it."""
    rng = np.random.default_rng(3)
    base = {f"m{m}": np.zeros(300) for m in range(20)}
    noise = {name: rng.normal(size=300) for name in base}
    noise["m0"] += 2.3 * noise["m0"].std() / np.sqrt(300) - noise["m0"].mean()
    found = comparison(per_user(a=base, b=noise), "a", 0).filter(group="all")
    assert found["p_value"][0] <= LEVEL
    assert found["low"][0] > 0
    assert set(found["verdict"]) == {"inconclusive"}
    assert found["users_to_settle"].null_count() == 0


def test_a_clear_difference_is_called_one_among_any_number_of_metrics():
    base, noise = noisy()
    names = [f"ndcg@{k}" for k in range(1, 61)]
    found = comparison(
        per_user(a=dict.fromkeys(names, base), b=dict.fromkeys(names, base + 1 + noise)), "a", 0, ("all",)
    )
    assert set(found["verdict"]) == {"better"}


def test_equal_models_are_rarely_called_different():
    """A/A over four metrics that share the users: in at most 5 % of the comparisons is any of them called real."""
    called = 0
    for number in range(200):
        rng = np.random.default_rng([5, number])
        shared = rng.random((150, 1)) < 0.1
        new, old = (np.where(shared, 1.0, rng.random((150, 4)) < 0.15) for _ in range(2))
        sides = [{f"m{m}": side[:, m] for m in range(4)} for side in (old, new)]
        found = comparison(per_user(a=sides[0], b=sides[1]), "a", number, ("all",), resamples=400)
        called += bool((found["verdict"] != "inconclusive").any())
    # 5 % of 200 is 10; three standard deviations of chance above it
    assert called <= 10 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_only_the_inconclusive_say_how_many_users_it_takes():
    base, noise = noisy()
    found = comparison(
        per_user(a={"x": base, "y": base}, b={"x": base + noise + 1, "y": base + noise - noise.mean() + 0.005}), "a", 0
    )
    clear, unclear = found.filter(group="all").iter_rows(named=True)
    assert (clear["verdict"], clear["users_to_settle"]) == ("better", None)
    # two metrics: the harder of Holm's steps asks for 97.5 %
    assert unclear["users_to_settle"] == users_to_settle(0.005, noise.std(ddof=1), confidence=0.975)
    assert unclear["users_to_settle"] > 300


def test_a_group_that_is_too_small_is_inconclusive():
    base, _ = noisy()
    found = row(comparison(per_user(a={"x": base}, b={"x": base + 1}), "a", 0), group="new")
    assert (found["users"], found["difference"], found["verdict"]) == (10, pytest.approx(1.0), "inconclusive")
    assert (found["low"], found["p_holm"], found["users_to_settle"]) == (None, None, None)


def test_harm_names_the_users_who_lose_most():
    old = [0.5] * 30
    new = [0.5] * 30
    new[3], new[7], new[9] = 0.1, 0.3, 0.9
    table = per_user(a={"x": old, "log_loss": old}, b={"x": new, "log_loss": new})
    shares, worst = harms(table, "a")
    everyone = row(shares, group="all", metric="x")
    assert [everyone[name] for name in ("better", "worse", "unchanged")] == pytest.approx([1 / 30, 2 / 30, 27 / 30])
    assert worst.filter(metric="x").select("user_id", "difference").rows() == [
        ("u3", pytest.approx(-0.4)),
        ("u7", pytest.approx(-0.2)),
    ]
    assert worst.filter(metric="log_loss")["user_id"].to_list() == ["u9"]


def test_a_baseline_that_was_not_scored():
    base, _ = noisy()
    with pytest.raises(UsageError, match="was not scored"):
        comparison(per_user(a={"x": base}, b={"x": base}), "c", 0)


def test_a_baseline_that_stands_alone_is_compared_with_itself():
    base, _ = noisy()
    found = comparison(per_user(a={"x": base}), "a", 0)
    assert found["subject"].unique().to_list() == ["a"]
    assert row(found, group="all")["low"] == row(found, group="all")["high"] == 0.0
    assert harms(per_user(a={"x": base}), "a")[0]["unchanged"].to_list() == [1.0] * 4


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        (
            ["hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "gauc", "log_loss"],
            ["gauc", "hr@10", "ndcg@10", "mrr"],
        ),
        (["hr@7/1000", "ndcg@7/1000", "mrr/1000", "gauc"], ["gauc", "hr@7/1000", "ndcg@7/1000", "mrr/1000"]),
        (["gauc"], ["gauc"]),
    ],
)
def test_main_metrics(metrics, shown):
    assert main_metrics(metrics) == shown


def test_chance_level_is_told_by_the_interval_of_the_gauc():
    draw = np.random.default_rng(1).normal(0, 0.1, 300)
    aucs = {"guesses": 0.5, "knows": 0.6, "errs": 0.4}
    table = per_user(**{name: {"auc": (level + draw - draw.mean()).tolist()} for name, level in aucs.items()})
    found = {name: (low, high) for name, low, high in at_chance(table, seed=0)}
    assert found.keys() == {"guesses", "errs"}
    assert found["guesses"][0] <= 0.5 <= found["guesses"][1] and found["errs"][1] < 0.5
    means = table.group_by("subject").agg(pl.col("auc").mean())
    for name, mean in means.iter_rows():
        assert name not in found or found[name][0] < mean < found[name][1]
    # too few users to tell: nothing is said
    assert at_chance(per_user(guesses={"auc": [0.5] * 15}), seed=0) == []


def test_a_metric_by_which_a_model_is_worse_is_shown_too():
    """But no other cut-off of a metric that is shown, and nothing of the groups by activity."""
    rows = [
        ("all", "ndcg@10", "better"),
        ("all", "hr@5", "worse"),
        ("activity-03", "brier", "worse"),
        ("tail", "log_loss", "worse"),
        ("head", "mrr", "inconclusive"),
    ]
    comparison = pl.DataFrame(rows, schema=["group", "metric", "verdict"], orient="row")
    assert with_what_is_worse(["hr@10", "ndcg@10"], comparison) == ["hr@10", "ndcg@10", "log_loss"]
    assert with_what_is_worse(["hr@10"], comparison.head(1)) == ["hr@10"]
