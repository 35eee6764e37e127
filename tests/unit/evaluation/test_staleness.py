"""The staleness curve: gains of known tables, and changes over the users that have events at both ages."""

import numpy as np
import polars as pl
import pytest

from dcclctl.evaluation.staleness import gains


def table(users: range, gauc: float, hr: float) -> pl.DataFrame:
    """A cloud model with GAUC 0.5, and patches that have `gauc` more, 0.001 more for each user number."""
    rows = [
        (subject, user, f"u{user}", "tail", 0, 0.5 + (gauc + 0.001 * user if subject == "patches" else 0), hr)
        for subject in ("cloud", "patches")
        for user in users
    ]
    names = ["subject", "user_index", "user_id", "group", "activity_group", "auc", "hr@10"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_gains_and_changes() -> None:
    tables = {0: table(range(100), 0.1, 0.2), 2: table(range(50, 150), 0.07, 0.3)}
    new, old = gains(tables, "patches", "cloud", seed=0)
    assert (new["blocks_old"], new["on"], new["metric"], new["users"]) == (0, "test:1/5", "gauc", 100)
    assert new["gain"] == pytest.approx(0.1 + 0.001 * np.arange(100).mean())
    assert new["low"] < new["gain"] < new["high"] and "change" not in new
    assert old["blocks_old"] == 2 and old["on"] == "test:3/5"
    assert old["gain"] == pytest.approx(0.07 + 0.001 * np.arange(50, 150).mean())
    # fifty users have events at both ages; each of them loses 0.03
    assert old["change"] == pytest.approx(-0.03)
    assert old["change_low"] == pytest.approx(-0.03, abs=0.005) and old["change_high"] == pytest.approx(
        -0.03, abs=0.005
    )


def test_too_few_users_have_no_interval() -> None:
    new, old = gains({0: table(range(5), 0.1, 0.2), 1: table(range(5), 0.1, 0.2)}, "patches", "cloud", seed=0)
    assert new["low"] is None and old["change_low"] is None and old["change"] == pytest.approx(0)
