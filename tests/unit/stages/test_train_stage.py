"""train: what a model keeps, what it learns from, and the incremental control."""

from pathlib import Path

import polars as pl
import pytest
import torch
from world import DISTILL, TRAIN, World, dcclctl, done, ingest

from dcclctl.artifacts import CloudModel, Dataset
from dcclctl.errors import UsageError
from dcclctl.stages.run import RunOptions
from dcclctl.stages.train import train
from dcclctl.store.store import Store

CONTINUE = ("train", "--continue=cloud@1", "--on=device", "--epochs=2", "--batch-size=128", "--threads=1")


def test_facts(world: World) -> None:
    artifact = world.artifact("cloud@1")
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 0)
    facts = artifact.facts
    assert facts["trained_on_events"] == events.height
    assert facts["trained_on_users"] == events["user_index"].n_unique()
    assert facts["id_map"] == world.dataset().id_map
    weights = artifact.read_tensors("model.safetensors")
    assert facts["parameters"] == sum(weight.numel() for weight in weights.values())
    best = facts["epochs"][facts["best_epoch"] - 1]
    assert facts["best_valid_auc"] == best["valid_auc"] == max(epoch["valid_auc"] for epoch in facts["epochs"])
    assert facts["best_valid_loss"] == best["valid_loss"]


def test_every_weight_learns(world: World, shop: Path) -> None:
    first = world.artifact("cloud@1").read_tensors("model.safetensors")
    # one epoch with a step of nothing keeps what the seed gave
    made = done("train", *TRAIN, "--epochs=1", "--learning-rate=1e-30", store=shop)
    start = Store(shop).resolve(made["ref"]).read_tensors("model.safetensors")
    assert first.keys() == start.keys()
    for name, weight in first.items():
        assert not torch.equal(weight, start[name]), name


def test_the_best_epoch_is_kept_and_patience_stops(shop: Path) -> None:
    made = done("train", *TRAIN, "--epochs=30", "--learning-rate=0.05", "--patience=2", store=shop)
    artifact = Store(shop).resolve(made["ref"])
    aucs = [epoch["valid_auc"] for epoch in artifact.facts["epochs"]]
    best = aucs.index(max(aucs)) + 1
    assert made["best_epoch"] == best
    assert made["epochs"] == best + 2 < 30
    short = done("train", *TRAIN, f"--epochs={best}", "--learning-rate=0.05", "--patience=2", store=shop)
    same = Store(shop).resolve(short["ref"]).read_tensors("model.safetensors")
    for name, weight in artifact.read_tensors("model.safetensors").items():
        assert torch.equal(weight, same[name]), name


def test_the_epoch_with_the_highest_auc_is_kept_by_all_that_learn(shop: Path) -> None:
    fm = ("train", "--dataset=dataset@1", "--model=fm", "--epochs=12", "--patience=0", "--threads=1")
    further = (*CONTINUE, "--epochs=12", "--learning-rate=0.03", "--patience=0")
    for command in (fm, further, ("distill", "--patches=patches@1", *DISTILL, "--epochs=3")):
        facts = Store(shop).resolve(done(*command, store=shop)["ref"]).facts
        aucs = [epoch["valid_auc"] for epoch in facts["epochs"]]
        assert all(0 <= auc <= 1 for auc in aucs) and len(set(aucs)) > 1
        if facts["best_epoch"]:  # 0: training further made nothing better
            assert facts["best_valid_auc"] == max(aucs) == aucs[facts["best_epoch"] - 1]
            assert facts["best_valid_loss"] == facts["epochs"][facts["best_epoch"] - 1]["valid_loss"]
        else:
            assert facts["best_valid_auc"] >= max(aucs)


def test_continue_starts_from_the_weights_and_keeps_the_sizes(world: World, shop: Path) -> None:
    made = done(*CONTINUE, store=shop)
    artifact, parent = Store(shop).resolve(made["ref"]), world.artifact("cloud@1")
    assert artifact.read_json("model.json") == parent.read_json("model.json")
    assert artifact.config["din"]["item_size"] == 8 and artifact.config["din"]["hidden_sizes"] == [16, 8]
    assert artifact.inputs["cloud"].id == parent.id
    frozen = done(*CONTINUE, "--learning-rate=1e-30", store=shop)
    weights = Store(shop).resolve(frozen["ref"]).read_tensors("model.safetensors")
    for name, weight in parent.read_tensors("model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 1)
    assert artifact.facts["trained_on_events"] == events.height


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--model=din", "model"),
        ("--set=history=5", "history"),
        ("--set=train.din.item_size=4", "item_size"),
        ("--set=category_size=4", "category_size"),
        ("--set=profile_size=4", "profile_size"),
        ("--set=din.attention_size=4", "attention_size"),
        ("--set=hidden_sizes=4,4", "hidden_sizes"),
        ("--dataset=dataset@1", "--dataset"),
    ],
)
def test_continue_refuses_flags_of_what_it_keeps(world: World, flag: str, named: str) -> None:
    result = dcclctl(*CONTINUE, flag, store=world.root)
    assert result.exit_code == 2
    assert named in result.stderr and "Leave" in result.stderr


def test_start_keeps_kind_and_sizes_from_python_too(world: World, shop: Path, tmp_path: Path) -> None:
    store = Store(shop)
    start = CloudModel(store.resolve("cloud@1"))
    settings = {"on": ["device"], "epochs": 1, "threads": 1}
    made = train(start.dataset, settings, start=start)
    assert (made.model, made.sizes) == (start.model, start.sizes)
    assert made.parent is not None and made.parent.id == start.id
    # what is not a size has its default, not its parent's value
    assert start.config["din"]["batch_size"] == 32 and made.config["din"]["batch_size"] == 1024
    for changed in ({"item_size": 4}, {"train.din.hidden_sizes": [4, 4]}, {"model": "din"}, {"model": "sasrec"}):
        with pytest.raises(UsageError, match="keeps its kind and sizes"):
            train(start.dataset, settings | changed, start=start)
    # a file that made the first model may go on being used
    file = tmp_path / "dccl.toml"
    file.write_text('[train]\nmodel = "sasrec"\n[train.din]\nitem_size = 64\nnegatives = 7\n')
    again = train(start.dataset, settings, RunOptions(config=file), start=start)
    assert (again.model, again.sizes, again.negatives) == ("din", start.sizes, 7)
    assert set(again.config["din"]) == set(start.config["din"])
    other = Dataset(store.resolve(ingest(tmp_path / "log", shop, "--split=per-user")["ref"]))
    with pytest.raises(UsageError, match=r"was trained on dataset@1, not on dataset@2"):
        train(other, settings, start=start)


def test_continuing_leaves_the_patch_basis_behind(shop: Path) -> None:
    made = done("train", "--continue=cloud@2", "--on=device", "--epochs=1", "--threads=1", store=shop)
    assert "basis.safetensors" not in Store(shop).resolve(made["ref"]).manifest["files"]


def test_parts_of_a_period_train_on_those_events_only(world: World, shop: Path) -> None:
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 1)
    counts = []
    for part in (1, 2):
        made = done("train", *TRAIN, "--epochs=1", f"--on=device:{part}/2", store=shop)
        facts = Store(shop).resolve(made["ref"]).facts
        counts.append(facts["trained_on_events"])
        times = events["time_us"].sort()
        half = times[events.height // 2]
        mine = events.filter(pl.col("time_us") < half if part == 1 else pl.col("time_us") >= half)
        # moments at the cut stay together, in one half or the other
        assert abs(facts["trained_on_events"] - mine.height) <= events.filter(pl.col("time_us") == half).height
    assert sum(counts) == events.height
    both = done("train", *TRAIN, "--epochs=1", "--on=cloud,device", store=shop)
    facts = Store(shop).resolve(both["ref"]).facts
    assert facts["trained_on_events"] == world.artifact("cloud@1").facts["trained_on_events"] + events.height


def test_valid_is_for_choosing_only(world: World) -> None:
    for on in ("valid", "cloud,valid:1/2"):
        result = dcclctl("train", f"--on={on}", store=world.root)
        assert result.exit_code == 2
        assert "cloud and device only" in result.stderr


def test_periods_without_events(shop: Path) -> None:
    result = dcclctl("train", *TRAIN, "--on=device:500000/999999", store=shop)
    assert result.exit_code == 3
    assert "there are no events in device:500000/999999" in result.stderr
    assert len(Store(shop).numbers("cloud")) == 2


@pytest.mark.parametrize("model", ["din", "sasrec"])
def test_diverged_training_is_exit_4(shop: Path, model: str) -> None:
    result = dcclctl("train", f"--model={model}", "--threads=1", "--learning-rate=1e30", store=shop)
    assert result.exit_code == 4
    assert "Lower --learning-rate" in result.stderr


def test_a_model_that_is_trained_further_keeps_its_negatives(shop: Path) -> None:
    shared = done("train", "--set=shared_negatives=16", "--negatives=8", "--epochs=1", "--threads=1", store=shop)["ref"]
    further = ("train", f"--continue={shared}", "--on=device", "--epochs=1", "--threads=1")
    made = CloudModel(Store(shop).resolve(done(*further, store=shop)["ref"]))
    assert (made.negatives, made.shared_negatives) == (8, 16)
    other = CloudModel(Store(shop).resolve(done(*further, "--set=shared_negatives=0", store=shop)["ref"]))
    assert (other.negatives, other.shared_negatives) == (8, 0)


def test_another_split_of_the_same_log(tmp_path: Path) -> None:
    for split in ("per-user", "leave-one-out"):
        store = tmp_path / split
        ingest(tmp_path / "log", store, f"--split={split}")
        done("train", *TRAIN, "--epochs=1", store=store)
        done("patch", "--method=metapatch", "--threads=1", "--set=basis_epochs=1", store=store)
        done("distill", *DISTILL, store=store)
        shown = dcclctl("evaluate", "--threads=1", store=store)
        assert shown.exit_code == 0
        assert (
            f"split {split}: users' periods overlap in time, so models can learn trends of the test period"
            in shown.stdout
        )


def test_a_log_without_categories_and_profiles(tmp_path: Path, world: World) -> None:
    done("ingest", world.log, store=tmp_path)
    done("train", *TRAIN, "--epochs=1", store=tmp_path)
    assert "category_table" not in Store(tmp_path).resolve("cloud").read_tensors("model.safetensors")
    done("patch", "--method=metapatch", "--threads=1", "--set=basis_epochs=1", store=tmp_path)
    done("distill", *DISTILL, store=tmp_path)
    assert done("evaluate", "--unpatched=cloud", "--threads=1", store=tmp_path)["users"] > 0


def test_a_model_that_learned_nothing_says_so(shop: Path) -> None:
    still = ("train", *TRAIN, "--epochs=1", "--learning-rate=1e-12")
    first = dcclctl(*still, store=shop)
    assert first.exit_code == 0 and "warning: the model has learned nothing" in first.stderr
    assert "learned nothing" not in dcclctl("train", *TRAIN, store=shop).stderr
    # a model that is trained further starts from what it had learned
    assert "learned nothing" not in dcclctl(*still, "--continue=cloud@1", "--on=device", store=shop).stderr
    figures = done("train", *TRAIN, store=shop)
    assert 0 < figures["best_valid_auc"] < 1 and figures["best_valid_ndcg"] is None
