"""The next-basket protocol: which purchases it keeps, and its metrics against a plain loop."""

import math
from datetime import datetime, timedelta
from pathlib import Path

import next_basket
import polars as pl
import pytest
from next_basket import SPACES, drawn, measured, purchases

import dcclctl
from dcclctl.devices.serving import Subject
from dcclctl.events.log import TEST, VALID


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """Eight households buy on twelve days; 'busy' buys all in one day, 'rare' on two, and nine buy product 99."""
    start, found = datetime(2017, 3, 1), []
    for household in range(8):
        for day in range(12):
            time = start + timedelta(days=25 * day, hours=household)
            items = {household % 3, day % 5, 20 + day % (1 + household % 2)}
            found += [(household, item, time) for item in items]
    found += [(100, item, start + timedelta(minutes=at)) for at in range(8) for item in (0, 1)]
    found += [(101, 0, start), (101, 1, start + timedelta(days=40))]
    found += [(household, 99, start) for household in range(8)]
    found.append(found[0])  # a product twice in a basket
    columns = ["household_id", "product_id", "transaction_timestamp"]
    log = pl.DataFrame(found, schema=columns, orient="row")
    monkeypatch.setattr(next_basket, "read_source", lambda folder: (log, None, None))
    return log


def test_purchases_are_those_of_the_protocol_and_the_last_two_baskets_stand_in_later_years(rows: pl.DataFrame) -> None:
    kept = purchases(Path())
    assert set(kept["household_id"]) == set(range(8))  # not those of one day, nor with two baskets
    assert 99 not in kept["product_id"]  # bought nine times with the others of its kind
    assert kept.unique().height == kept.height
    years = pl.from_epoch(kept["time"]).dt.year()
    for own in kept.with_columns(years.alias("year")).partition_by("household_id", as_dict=True).values():
        order = own.group_by("time").agg(pl.col("year").first()).sort("time")["year"].to_list()
        assert order == [2017] * 10 + [2019, 2021]


@pytest.mark.parametrize("period", [VALID, TEST])
def test_recall_and_ndcg_of_whole_baskets(
    rows: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, period: int
) -> None:
    monkeypatch.setattr(next_basket, "K", 2)
    kept = purchases(Path())
    kept.write_parquet(tmp_path / "log.parquet")
    columns = {"user": "household_id", "item": "product_id", "time": "time"}
    least = {"min_user_events": 1, "min_item_events": 1, "repeats": "keep", "periods": next_basket.PERIODS}
    data = dcclctl.ingest(tmp_path / "log.parquet", store=dcclctl.Store(tmp_path / "store"), map=columns, **least)
    found = measured(Subject(dcclctl.train(data, model="gp-topfreq", on="cloud,device", threads=1)), period)
    totals, counted = [0.0, 0.0, 0.0], kept.filter(pl.from_epoch("time").dt.year() == 2017)["product_id"].to_list()
    for own in kept.partition_by("household_id", as_dict=True).values():
        target = sorted(own["time"].unique())[-1 if period == TEST else -2]
        past = own.filter(pl.col("time") < target)["product_id"].to_list()
        basket = own.filter(pl.col("time") == target)["product_id"].to_list()
        top = sorted(set(counted), key=lambda item: (-past.count(item), -counted.count(item)))[:2]
        gains = [(item in basket) / math.log2(place + 2) for place, item in enumerate(top)]
        totals[0] += sum(item in basket for item in top) / len(basket)
        totals[1] += sum(gains) / sum(1 / math.log2(place + 2) for place in range(len(basket)))
        totals[2] += sum(gains) / sum(1 / math.log2(place + 2) for place in range(min(2, len(basket))))
    assert found["households"] == 8 and totals[0] > 0
    expected = [total / 8 for total in totals]
    assert [found["recall"], found["ndcg"], found["capped"]] == pytest.approx(expected, abs=1e-4)


def test_trials_begin_with_the_defaults_and_are_settings_of_their_model() -> None:
    from dcclctl.models.kind import kind_of

    for model, space in SPACES.items():
        assert drawn(model, 0) == {}
        trials = [drawn(model, trial) for trial in range(1, 9)]
        assert all(kind_of(model).Settings(**trial) for trial in trials)
        assert len({str(trial) for trial in trials}) > 4 or not space
