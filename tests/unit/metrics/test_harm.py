import numpy as np
import polars as pl
import pytest

from dcclctl.metrics.harm import harm, worst_users


def differences(**metrics):
    users = len(next(iter(metrics.values())))
    return pl.DataFrame(
        {
            "user_index": pl.Series(range(users), dtype=pl.Int32),
            "user_id": [f"u{u}" for u in range(users)],
            "group": ["head" if u < 2 else "tail" for u in range(users)],
            "activity_group": pl.Series([0] * users, dtype=pl.Int8),
            **{name: pl.Series(values, dtype=pl.Float64) for name, values in metrics.items()},
        }
    )


def test_known_shares_and_sizes():
    table = harm(differences(ndcg=[0.5, -0.2, 0.0, -0.4, None, 1e-12]), groups=("all", "head", "new"))
    everyone, head, new = table.iter_rows(named=True)
    assert everyone["users"] == 5
    assert (everyone["better"], everyone["worse"], everyone["unchanged"]) == (0.2, 0.4, 0.4)
    assert everyone["harm_50"] == pytest.approx(-0.3)
    assert everyone["harm_10"] == pytest.approx(-0.38)
    assert (head["better"], head["worse"]) == (0.5, 0.5)
    assert (new["users"], new["better"], new["harm_50"]) == (0, None, None)


def test_shares_add_up_and_agree_with_a_plain_loop():
    gains = np.random.default_rng(0).choice([-0.2, -0.1, 0.0, 0.1], 500)
    row = harm(differences(ndcg=gains), groups=("all",)).row(0, named=True)
    assert row["better"] + row["worse"] + row["unchanged"] == pytest.approx(1.0)
    assert row["worse"] == sum(gain < 0 for gain in gains) / 500


def test_of_a_loss_less_is_better():
    table = differences(log_loss=[0.3, -0.1, -0.1], ndcg=[0.3, -0.1, -0.1])
    loss, gain = harm(table, groups=("all",)).iter_rows(named=True)
    assert loss["worse"] == pytest.approx(gain["better"])
    assert loss["harm_50"] == pytest.approx(-0.3)
    assert worst_users(table, "log_loss")["user_id"].to_list() == ["u0"]
    assert worst_users(table, "ndcg")["user_id"].to_list() == ["u1", "u2"]


def test_nobody_made_worse_has_no_size_of_harm():
    row = harm(differences(ndcg=[0.1, 0.0]), groups=("all",)).row(0, named=True)
    assert (row["worse"], row["harm_10"], row["harm_50"]) == (0.0, None, None)


def test_worst_users_are_sorted_and_cut():
    table = differences(ndcg=[-0.1, -0.5, 0.2, None, -0.5, -0.3])
    worst = worst_users(table, "ndcg", count=3)
    assert worst["user_id"].to_list() == ["u1", "u4", "u5"]
    assert worst.columns == ["user_index", "user_id", "group", "activity_group", "ndcg"]
