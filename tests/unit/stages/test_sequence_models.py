"""train, patch and evaluate with SASRec and GRU4Rec: the same commands, the same artifacts."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from world import PATCH, World, dcclctl, done, replaced

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.devices import learner, metapatch
from dcclctl.devices.basis_files import read_basis
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.log import VALID
from dcclctl.events.sampler import valid_sampler
from dcclctl.events.sampling import Ints
from dcclctl.models.kind import open_backbone
from dcclctl.models.training import SharedLogits, softmax_losses
from dcclctl.store.store import Store

TRAIN = (
    "--set=item_size=8",
    "--set=category_size=4",
    "--set=history=6",
    "--epochs=3",
    "--batch-size=128",
    "--threads=1",
)
both = pytest.mark.parametrize("model", ["sasrec", "gru4rec"])


@pytest.fixture(scope="module")
def sequences(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world with a SASRec (tag s) and its patches (tag p), and a GRU4Rec (tag g)."""
    store = world.copy(tmp_path_factory.mktemp("sequences") / "store")
    for model, tag in (("gru4rec", "g"), ("sasrec", "s")):
        ref = done("train", f"--model={model}", "--dataset=dataset@1", *TRAIN, store=store)["ref"]
        dcclctl("artifacts", "tag", ref, tag, store=store)
    ref = done("patch", "--cloud=cloud@s", *PATCH, store=store)["ref"]
    dcclctl("artifacts", "tag", ref, "p", store=store)
    return store


@pytest.fixture
def own(sequences: Path, tmp_path: Path) -> Path:
    """A store of this test's own."""
    return World(sequences, sequences, {}).copy(tmp_path / "own")


@both
def test_a_run_makes_the_same_model_again(world: World, own: Path, model: str) -> None:
    again = done("train", f"--model={model}", "--dataset=dataset@1", *TRAIN, "--force", store=own)
    assert again["id"] == Store(own).resolve(f"cloud@{model[0]}").id
    assert again["epochs"] == 3 and again["best_epoch"] > 0
    other = done("train", f"--model={model}", "--dataset=dataset@1", *TRAIN, "--seed=1", store=own)
    assert other["id"] != again["id"]


@both
def test_the_incremental_control_starts_where_its_parent_ended(own: Path, model: str) -> None:
    parent = Store(own).resolve(f"cloud@{model[0]}")
    flags = ("--on=device", "--epochs=1", "--patience=0", "--threads=1")
    made = done("train", f"--continue=cloud@{model[0]}", *flags, "--learning-rate=1e-12", store=own)
    child = Store(own).resolve(made["ref"])
    assert child.read_json("model.json") == parent.read_json("model.json")
    before, after = (each.read_tensors("model.safetensors") for each in (parent, child))
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    # its own settings, not din's, where none are given
    settings = child.config[model]
    assert (settings["negatives"], settings["dropout"]) == ((32, 0.5) if model == "sasrec" else (32, 0.4))
    assert settings["history"] == 6  # a size: the parent's
    moved = done("train", f"--continue=cloud@{model[0]}", *flags, "--learning-rate=0.01", store=own)
    better = Store(own).resolve(moved["ref"])
    assert better.facts["best_valid_auc"] >= parent.facts["best_valid_auc"]
    assert better.inputs["cloud"].id == parent.id


@both
def test_the_backbone_scores_what_was_trained(own: Path, model: str) -> None:
    """The valid loss that training reports is that of the served model's scores."""
    cloud = CloudModel(Store(own).resolve(f"cloud@{model[0]}"))
    log, facts = cloud.dataset.log, cloud.facts
    backbone = open_backbone(cloud, torch.device("cpu"))
    events = log.events_in(VALID)
    assert log.label[events].all()
    with torch.no_grad():
        logits = backbone.head(events, None, backbone.activations(events, None))
    # the log has fewer items than the default of shared negatives, so all of them are compared
    negatives = valid_sampler(log, 0, 0).shared(events, cloud.shared_negatives, cloud.negatives, 0)
    own_item, others = logits.gather(1, torch.from_numpy(log.item[events])[:, None]), logits[:, negatives.items]
    losses, _ = softmax_losses(own_item[:, 0], torch.ones(len(events)), SharedLogits(negatives, others))
    assert float(losses.mean()) == pytest.approx(facts["best_valid_loss"], rel=1e-5)
    wins = (own_item > others).double() + 0.5 * (own_item == others)
    counted = negatives.allowed.double()
    assert float((wins * counted).sum() / counted.sum()) == pytest.approx(facts["best_valid_auc"], abs=1e-9)


def test_all_three_stand_in_one_evaluation(own: Path) -> None:
    subjects = ("cloud@1", "cloud@s", "cloud@g", "patches@p", "patches@p+mean", "patches@p+shuffled")
    made = done("evaluate", *subjects, "--on=valid", "--candidates=all", "--threads=1", store=own)
    table = Store(own).resolve(made["ref"]).read_table("per_user.parquet")
    names = table["subject"].unique(maintain_order=True).to_list()
    assert len(names) == len(subjects)
    values = {name: table.filter(pl.col("subject") == name)["log_loss"].to_numpy() for name in names}
    assert all(np.isfinite(each).all() for each in values.values())
    assert len({each.tobytes() for each in values.values()}) == len(subjects)
    served = table.filter(pl.col("subject") == names[3])["served_by"].value_counts(sort=True)
    assert set(served["served_by"]) == {"patch"}
    assert dcclctl("audit", made["ref"], store=own).exit_code == 0


@pytest.mark.parametrize("cut", ["shard_users=7", "batch_rows=1", "batch_rows=300"])
def test_codes_do_not_depend_on_how_the_work_is_cut(own: Path, cut: str) -> None:
    made = done("patch", "--cloud=cloud@s", *replaced(PATCH, f"--set=patch.metapatch.{cut}"), store=own)
    place = Store(own)
    usual, other = (PatchSet(place.resolve(ref)).codes()[0] for ref in ("patches@p", made["ref"]))
    assert not made["reused"] and usual.abs().max() > 0.1
    torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-4)


def test_a_zero_code_is_the_cloud_model_to_the_last_bit(own: Path) -> None:
    place = Store(own)
    patches = PatchSet(place.resolve("patches@p"))
    backbone = open_backbone(patches.cloud, torch.device("cpu"))
    events = patches.cloud.dataset.log.events_in(3)
    states = backbone.activations(events, None)
    cloud = backbone.head(events, None, states)
    served = serve(Subject(patches.cloud, patches), backbone)
    patched = served.head(events, None, states)
    owners = served.by[patches.cloud.dataset.log.user[events]]
    assert set(owners) == {"patch", "cloud"}  # new users have no event in device
    assert torch.equal(patched[torch.from_numpy(owners == "cloud")], cloud[torch.from_numpy(owners == "cloud")])
    assert not torch.equal(patched, cloud)


def test_what_the_artifact_says_and_holds(own: Path) -> None:
    artifact = Store(own).resolve("patches@p")
    basis = read_basis(artifact)
    assert basis.shape.size == 12 * (2 * 2 + 1)
    assert artifact.facts["bytes_per_user"] == 16 and basis.size == 4
    table = artifact.read_table("users.parquet")
    tested = table.filter(pl.col("events") >= 3)
    assert tested["loss_after"].is_not_null().all() and (tested["loss_after"] != tested["loss_before"]).all()
    assert table.filter(pl.col("events") < 3)["loss_after"].is_null().all()


def test_the_guard_keeps_what_won(own: Path) -> None:
    made = done("patch", "--cloud=cloud@s", *PATCH, "--guard", store=own)
    table = Store(own).resolve(made["ref"]).read_table("users.parquet")
    free = Store(own).resolve("patches@p").read_table("users.parquet")
    wins = (free["loss_after"] < free["loss_before"]).fill_null(False)
    assert table["kept"].to_list() == wins.to_list() and 0 < wins.sum() < len(wins)
    place = Store(own)
    codes, patched = PatchSet(place.resolve(made["ref"])).codes()
    assert int(patched.sum()) == wins.sum() and not codes[~patched].any()


def test_score_explains_a_user(own: Path) -> None:
    shown = dcclctl("score", "patches@p", "--user=u1", "--threads=1", store=own)
    assert shown.exit_code == 0, shown.stderr
    assert "patch" in shown.stdout


def test_a_killed_patch_run_learns_no_second_basis(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = learner.fit_shard, []

    def stop_at_second(devices: Any, members: Ints, *rest: Any) -> dict[str, torch.Tensor]:
        calls.append(int(members[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(devices, members, *rest)

    monkeypatch.setattr(learner, "fit_shard", stop_at_second)
    flags = ("--cloud=cloud@s", *replaced(PATCH, "--set=patch.metapatch.shard_users=21"))
    assert dcclctl("patch", *flags, store=own).exit_code == 130
    monkeypatch.setattr(metapatch, "learn_basis", None)  # a call would fail
    made = done("patch", *flags, store=own)
    assert calls[0] < calls[1] == calls[2]
    bases = [Store(own).resolve(ref).read_tensors("basis.safetensors")["theta"] for ref in (made["ref"], "patches@p")]
    assert torch.equal(*bases)
