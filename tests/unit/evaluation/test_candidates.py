"""What stands in a ranking: never more than is left, and nothing where nothing is left."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from world import World, dcclctl, done

from dcclctl.artifacts import Dataset
from dcclctl.config import EvaluateConfig
from dcclctl.evaluation.candidates import Candidates
from dcclctl.events.log import TEST, Block
from dcclctl.store.store import Store

USERS, ITEMS = 12, 25
ALL = ("--candidates=all", "--k=5,10", "--threads=1")


def everybody_has_everything(folder: Path, *left_out: tuple[int, int]) -> Path:
    """A store whose users have interacted with every item once, but for some (user, item); with two models.

    cloud@1 counts, cloud@2 is a DIN that has learned nothing.
    """
    pairs = np.random.default_rng(0).permutation(USERS * ITEMS)
    rows = [(pair // ITEMS, pair % ITEMS, 1_600_000_000 + 400 * at) for at, pair in enumerate(pairs.tolist())]
    kept = [f"{user},v{item},{time}" for user, item, time in rows if (user, item) not in left_out]
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text("user_id,video_id,timestamp\n" + "\n".join(kept) + "\n")
    done("ingest", folder / "log.csv", store=folder / "store")
    done("train", "--model=popularity", "--threads=1", store=folder / "store")
    done("train", "--epochs=1", "--learning-rate=1e-9", "--threads=1", store=folder / "store")
    return folder / "store"


def figures(found: dict[str, Any], subject: str) -> dict[str, tuple[float | None, int]]:
    rows = [row for row in found["metrics"] if (row["subject"], row["group"]) == (subject, "all")]
    return {row["metric"]: (row["value"], row["users"]) for row in rows}


@pytest.mark.parametrize("candidates", ["all", "10"])
def test_an_event_without_another_candidate_has_no_rank_and_no_auc(tmp_path: Path, candidates: str) -> None:
    store = everybody_has_everything(tmp_path)
    command = ("evaluate", "cloud@1", "cloud@2", *ALL, f"--candidates={candidates}")
    found = done(*command, store=store)
    made = Store(store).resolve(found["ref"])
    assert found["events_without_candidates"] == found["events_with_few_candidates"] == found["events"] == 30
    for name in ("events_without_candidates", "events_with_few_candidates"):
        assert made.facts[name] == 30
    table = made.read_table("per_user.parquet")
    for subject in ("cloud@1", "cloud@2"):
        own = figures(found, subject)
        assert all(value == (None, 0) for metric, value in own.items() if metric != "log_loss"), own
        assert own["log_loss"][1] == table["user_index"].n_unique()
    assert made.facts["users_without_auc"] == table["user_index"].n_unique() and table["auc"].null_count() == len(table)
    assert table["events"].sum() == 2 * 30  # they are scored, and counted
    shown = " ".join(dcclctl(*command, store=store).stdout.split())
    assert "30 events have no other candidate, therefore no rank and no AUC" in shown
    # nothing can be said of a difference either
    compared = done(*command, "--against=cloud@1", store=store)["comparison"]
    ranked = [row for row in compared if row["metric"] != "log_loss"]
    assert ranked and all((row["users"], row["verdict"]) == (0, "inconclusive") for row in ranked)


def test_a_few_candidates_are_counted_and_ranked_among(tmp_path: Path) -> None:
    """User 4 lacks three items and user 7 one: their events alone have ranks, of at most 4 and 2."""
    store = everybody_has_everything(tmp_path, (4, 3), (4, 7), (4, 11), (7, 5))
    command = ("evaluate", "cloud@1", "cloud@2", *ALL)
    found = done(*command, store=store)
    table = Store(store).resolve(found["ref"]).read_table("per_user.parquet").filter(pl.col("mrr").is_not_null())
    assert set(table["user_id"]) == {"4", "7"}
    lucky = int(table["events"].sum()) // 2
    assert lucky > 1 and found["events_without_candidates"] == found["events"] - lucky
    assert found["events_with_few_candidates"] == found["events"]
    lowest = dict(table.group_by("user_id").agg(pl.col("mrr").min()).iter_rows())
    assert lowest["4"] >= 1 / 4 and lowest["7"] >= 1 / 2
    assert table["auc"].null_count() == 0
    shown = " ".join(dcclctl(*command, store=store).stdout.split())
    assert f"{found['events'] - lucky} events have no other candidate" in shown
    assert f"{lucky} events are ranked among fewer items than the largest k, 10" in shown
    # sampling ten of three gives three: the same ranks
    sampled = done("evaluate", "cloud@1", "cloud@2", "--candidates=10", "--k=5,10", "--threads=1", store=store)
    assert sampled["events_without_candidates"] == found["events_without_candidates"]
    for subject in ("cloud@1", "cloud@2"):
        whole, part = figures(found, subject), figures(sampled, subject)
        same = {metric.partition("/")[0]: value for metric, value in part.items()}
        assert same.keys() == whole.keys()
        for metric, (value, users) in whole.items():
            # a DIN computes the logits of few and of all items in another order
            assert same[metric] == (pytest.approx(value, rel=1e-6), users)


@pytest.mark.parametrize("count", ["7", "40", "79"])
def test_sampled_candidates_are_distinct_and_never_more_than_are_left(world: World, count: str) -> None:
    dataset = Dataset(world.artifact("dataset@1"))
    config = EvaluateConfig(candidates=count, auc_negatives=60)
    candidates, whole = (
        Candidates(dataset, Block(TEST), config.model_copy(update={"candidates": each})) for each in (count, "all")
    )
    batch, everything = candidates.batch(candidates.events), whole.batch(candidates.events)
    assert candidates.sampled == int(count) and batch.items is not None and everything.items is None
    places = np.broadcast_to(np.arange(dataset.log.n_items, dtype=np.float32), (len(batch.events), dataset.log.n_items))
    allowed = np.isfinite(everything.rival_logits(places.copy()))
    left = allowed.sum(1)
    assert everything.rivals.tolist() == left.tolist()
    assert batch.rivals.tolist() == np.minimum(int(count), left).tolist()
    short = int((left < int(count)).sum())
    assert (short > 0) == (count == "79")
    logits = batch.items.numpy().astype(np.float32)
    assert np.array_equal(batch.own_logits(logits), dataset.log.item[batch.events])
    assert np.array_equal(everything.own_logits(places), dataset.log.item[batch.events])
    assert np.array_equal(everything.negative_logits(places), np.maximum(batch.negatives, 0))
    for event, items, rivals, ok in zip(batch.events, batch.rival_logits(logits), batch.rivals, allowed, strict=True):
        drawn = items[np.isfinite(items)].astype(np.int64)
        assert len(set(drawn.tolist())) == len(drawn) == rivals
        assert ok[drawn].all() and dataset.log.item[event] not in drawn


def test_candidates_do_not_depend_on_the_batch_they_are_drawn_in(world: World) -> None:
    candidates = Candidates(Dataset(world.artifact("dataset@1")), Block(TEST), EvaluateConfig(candidates="12"))
    whole = candidates.batch(candidates.events)
    assert whole.items is not None
    for at in range(0, len(candidates.events), 7):
        part = candidates.batch(candidates.events[at : at + 7])
        assert part.items is not None and part.items.equal(whole.items[at : at + 7])
        assert np.array_equal(part.negatives, whole.negatives[at : at + 7])
