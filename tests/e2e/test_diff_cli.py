"""`dcclctl artifacts diff` on artifacts as the stages make them: what changed, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from world import EVALUATE, TRAIN, dcclctl, done, ingest

from dcclctl.store.store import Store


def diff(store: Path, a: str, b: str) -> dict[str, Any]:
    found = done("artifacts", "diff", a, b, store=store)
    assert (found.pop("a"), found.pop("b")) == (a, b)
    assert found.pop("same") is False
    return found


def test_clouds_that_differ_in_one_setting(shop: Path) -> None:
    other = done("train", *TRAIN, "--negatives=3", store=shop)["ref"]
    found = diff(shop, "cloud@1", other)
    assert found["config"] == {"din.negatives": [4, 3]}
    assert set(found) == {"config", "facts"}
    # the loss of every epoch, and what follows from it; the sizes of model and data are the same
    assert {key.partition(".")[0] for key in found["facts"]} <= {
        *("negatives", "epochs", "best_epoch", "best_valid_loss", "best_valid_auc")
    }
    one = Store(shop).resolve("cloud@1").facts["epochs"][0]
    assert found["facts"]["epochs.1.train_loss"][0] == one["train_loss"]


def test_datasets_of_two_splits(shop: Path, tmp_path: Path) -> None:
    other = ingest(tmp_path, shop, "--split", "per-user")["ref"]
    found = diff(shop, "dataset@1", other)
    assert found["config"] == {"split": ["global", "per-user"]}
    assert "inputs" not in found
    facts = found["facts"]
    assert facts["split"] == ["global", "per-user"]
    kept = [Store(shop).resolve(ref).facts["periods"][3]["events"] for ref in ("dataset@1", other)]
    assert facts["periods.test.events"] == kept
    assert not {"users", "items", "events", "id_map", "labels"} & set(facts)


def test_evaluations_of_two_models_stand_side_by_side(shop: Path) -> None:
    store = Store(shop)
    one = done("evaluate", "cloud@1", "patches@1", *EVALUATE, store=shop)["ref"]
    other = done("evaluate", "cloud@2", "cloud@1", *EVALUATE, store=shop)["ref"]
    found = diff(shop, one, other)
    old, new = (f"{ref.partition('@')[0]}@{store.resolve(ref).id[:8]}" for ref in ("patches@1", "cloud@2"))
    assert "config" not in found
    assert list(found["inputs"]) == [f"subject {old} → {new}"]
    metrics = found["metrics"]
    # cloud@1 is in both, only in another place, and is no change
    assert all(key.startswith(f"{old} → {new}.") for key in metrics)
    values = {
        name: store.resolve(ref)
        .read_table("aggregate.parquet")
        .filter(subject=name, group="all", metric="gauc")["value"]
        .item()
        for ref, name in ((one, old), (other, new))
    }
    assert metrics[f"{old} → {new}.all.gauc"] == [values[old], values[new]]
    assert all(value_a != value_b for value_a, value_b in metrics.values())
    assert all(key.startswith(f"subjects.{old} → {new}.") for key in found["facts"])


def test_evaluations_that_differ_in_a_setting(shop: Path) -> None:
    one = done("evaluate", "cloud@1", *EVALUATE, "--k=3", store=shop)["ref"]
    other = done("evaluate", "cloud@1", *EVALUATE, "--k=3", "--set=evaluate.batch_events=7", store=shop)["ref"]
    found = diff(shop, one, other)
    assert found["config"] == {"batch_events": [256, 7]}
    # another batch size changes no figure by more than rounding
    for value_a, value_b in found.get("metrics", {}).values():
        assert value_a == pytest.approx(value_b, abs=1e-6)


def test_the_same_artifact_has_no_difference(shop: Path) -> None:
    assert "the same artifact" in dcclctl("artifacts", "diff", "cloud@1", "cloud@1", store=shop).stdout
