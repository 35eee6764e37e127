"""train, patch and evaluate with SASRec and GRU4Rec: the same commands, the same artifacts."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from dcclctl.algorithm.sequence import SequenceBackbone
from world import PATCH, World, dcclctl, done

from dcclctl.artifacts import CloudModel, PatchSet, read_state_basis
from dcclctl.config import EvaluateConfig
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.sampling import Ints
from dcclctl.stages import patch, patch_state
from dcclctl.store.store import Store

TRAIN = ("--item-size=8", "--category-size=4", "--history=6", "--epochs=3", "--batch-size=128", "--threads=1")
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


def load(store: Path, tag: str) -> CloudModel:
    place = Store(store)
    return CloudModel(place.resolve(f"cloud@{tag}"))


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
    assert (child.config["negatives"], child.config["dropout"]) == ((32, 0.2) if model == "sasrec" else (4, 0.4))
    assert child.config["history"] == 6  # a size: the parent's
    moved = done("train", f"--continue=cloud@{model[0]}", *flags, "--learning-rate=0.01", store=own)
    assert moved["best_valid_loss"] <= parent.facts["best_valid_loss"]
    assert Store(own).resolve(moved["ref"]).inputs["cloud"].id == parent.id


@both
def test_the_backbone_scores_what_was_trained(own: Path, model: str) -> None:
    """The valid loss that training reports is that of the served model's scores."""
    cloud = load(own, model[0])
    log, config = cloud.dataset.log, EvaluateConfig(threads=1, device="cpu")
    backbone = cloud.backbone(config)
    assert isinstance(backbone, SequenceBackbone)
    from dcclctl.algorithm.sequence_training import judge
    from dcclctl.algorithm.training import valid_samples

    samples = valid_samples(log, cloud.artifact.config["negatives"], 0)
    found = judge(backbone.model, backbone.moments, log, samples).loss
    assert found == pytest.approx(cloud.artifact.facts["best_valid_loss"], rel=1e-6)


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


@pytest.mark.parametrize("flag", ["--shard-users=7", "--batch-rows=1", "--batch-rows=300"])
def test_codes_do_not_depend_on_how_the_work_is_cut(own: Path, flag: str) -> None:
    made = done("patch", "--cloud=cloud@s", *PATCH, flag, store=own)
    place = Store(own)
    usual, other = (PatchSet(place.resolve(ref)).codes()[0] for ref in ("patches@p", made["ref"]))
    assert not made["reused"] and usual.abs().max() > 0.1
    torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-4)


def test_a_zero_code_is_the_cloud_model_to_the_last_bit(own: Path) -> None:
    place = Store(own)
    patches = PatchSet(place.resolve("patches@p"))
    config = EvaluateConfig(threads=1, device="cpu")
    backbone = patches.cloud.backbone(config)
    events = patches.cloud.dataset.log.events_in(3)
    states = backbone.activations(events, None)
    cloud = backbone.head(events, None, states)
    head, by = serve(Subject(patches.artifact, patches.cloud, patches), config, backbone)
    patched = head(events, None, states)
    owners = by[patches.cloud.dataset.log.user[events]]
    assert set(owners) == {"patch", "cloud"}  # new users have no event in device
    assert torch.equal(patched[torch.from_numpy(owners == "cloud")], cloud[torch.from_numpy(owners == "cloud")])
    assert not torch.equal(patched, cloud)


def test_what_the_artifact_says_and_holds(own: Path) -> None:
    artifact = Store(own).resolve("patches@p")
    basis = read_state_basis(artifact)
    assert artifact.facts["family"] == "state"
    assert basis.shape.size == 12 * (2 * 2 + 1)
    assert artifact.facts["bytes_per_user"] == 16 and basis.size == 4
    table = artifact.read_table("users.parquet")
    judged = table.filter(pl.col("events") >= 3)
    assert judged["loss_after"].is_not_null().all() and (judged["loss_after"] != judged["loss_before"]).all()
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
    real, calls = patch.fit_shard, []

    def stop_at_second(fleet: Any, members: Ints, *rest: Any) -> dict[str, torch.Tensor]:
        calls.append(int(members[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(fleet, members, *rest)

    monkeypatch.setattr(patch, "fit_shard", stop_at_second)
    flags = ("--cloud=cloud@s", *PATCH, "--shard-users=21")
    assert dcclctl("patch", *flags, store=own).exit_code == 130
    monkeypatch.setattr(patch_state, "learn_basis", None)  # a call would fail
    made = done("patch", *flags, store=own)
    assert calls[0] < calls[1] == calls[2]
    bases = [Store(own).resolve(ref).read_tensors("basis.safetensors")["theta"] for ref in (made["ref"], "patches@p")]
    assert torch.equal(*bases)
