"""distill: what it hands on, and what it leaves as it was."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from world import DISTILL, PATCH, World, dcclctl, done, replaced

from dcclctl.distillation.momodistill import SecondStep
from dcclctl.store.store import Store

NO_STEP_2 = replaced(DISTILL, "--set=distill.momodistill.basis_epochs=0")


def test_lineage_and_facts(world: World) -> None:
    made, patches = world.artifact("cloud@2"), world.artifact("patches@1")
    assert {role: given.id for role, given in made.inputs.items()} == {
        "cloud": world.ids["train"],
        "dataset": world.ids["ingest"],
        "patches": world.ids["patch"],
    }
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 1)
    facts = made.facts
    assert facts["teachers"] == patches.facts["kept"] == 44
    assert facts["trained_on_events"] == events.height
    assert facts["round"] == 1
    assert facts["id_map"] == world.dataset().id_map
    assert len(facts["basis_losses"]) == 1 and math.isfinite(facts["basis_losses"][0])
    shown = dcclctl("artifacts", "lineage", "cloud@2", store=world.root).stdout
    assert all(name in shown for name in ("patches@1", "cloud@1", "dataset@1", "events.csv"))


def test_the_origin_is_frozen_and_the_rest_learns(world: World, shop: Path) -> None:
    made = done(
        "distill", "--patches=patches@1", *DISTILL, "--epochs=4", "--set=dropout=0", "--learning-rate=0.003", store=shop
    )
    after, before = Store(shop).resolve(made["ref"]), world.artifact("patches@1")
    assert after.facts["best_epoch"] > 0  # else the weights of step 1 are those of the start
    basis, old = after.read_tensors("basis.safetensors"), before.read_tensors("basis.safetensors")
    assert torch.equal(basis["origin"], old["origin"])
    assert not torch.equal(basis["theta"], old["theta"])
    weights, start = (a.read_tensors("model.safetensors") for a in (after, world.artifact("cloud@1")))
    for name, weight in weights.items():
        assert not torch.equal(weight, start[name]), name
    assert all(weight.abs().sum() > 0 for weight in after.read_tensors("encoder.safetensors").values())


def test_no_epoch_for_the_basis_leaves_it_alone(world: World, shop: Path) -> None:
    made = done("distill", "--patches=patches@1", *NO_STEP_2, store=shop)
    files = Store(shop).resolve(made["ref"]).manifest["files"]
    assert files["basis.safetensors"] == world.artifact("patches@1").manifest["files"]["basis.safetensors"]


def test_an_epoch_that_is_worse_than_the_start_is_not_kept(world: World, shop: Path) -> None:
    """With steps of next to nothing the AUC is that of the start, which is not higher."""
    flags = ("--patches=patches@1", *DISTILL, "--learning-rate=1e-12")
    artifact = Store(shop).resolve(done("distill", *flags, store=shop)["ref"])
    assert artifact.facts["best_epoch"] == 0
    start = world.artifact("cloud@1").read_tensors("model.safetensors")
    for name, weight in artifact.read_tensors("model.safetensors").items():
        assert torch.equal(weight, start[name])
    assert (
        "(no epoch was better than the start: the cloud model's weights are those of the start)"
        in dcclctl("distill", *flags, store=shop).stdout
    )


def test_teachers_matter_only_with_beta(world: World, shop: Path) -> None:
    done("patch", "--cloud=cloud@1", *PATCH, "--guard", "--held-back=0", store=shop)  # all patches zero
    losses = {}
    for beta in (0, 5):
        for patches in ("patches@1", "patches@2"):
            made = done("distill", f"--patches={patches}", f"--beta={beta}", *DISTILL, store=shop)
            losses[beta, patches] = Store(shop).resolve(made["ref"]).facts["epochs"][0]["train_loss"]
    assert losses[0, "patches@1"] == losses[0, "patches@2"]
    assert losses[5, "patches@1"] != losses[5, "patches@2"]
    assert losses[5, "patches@1"] > losses[0, "patches@1"]


def test_a_second_round_takes_the_encoder_over(world: World, shop: Path) -> None:
    done("patch", "--method=metapatch", "--cloud=cloud@2", "--threads=1", store=shop)
    made = done("distill", *NO_STEP_2, store=shop)
    artifact = Store(shop).resolve(made["ref"])
    assert artifact.facts["round"] == 2
    files = (artifact.manifest["files"], world.artifact("cloud@2").manifest["files"])
    assert files[0]["encoder.safetensors"] == files[1]["encoder.safetensors"]


def test_stopped_in_the_middle_continues(shop: Path) -> None:
    """Step 1 is taken over from its last epoch."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(SecondStep, "distill", _fail)
        with pytest.raises(RuntimeError):
            dcclctl("distill", "--patches=patches@1", *DISTILL, "--epochs=2", store=shop)
    resumed = done("distill", "--patches=patches@1", *DISTILL, "--epochs=2", store=shop)
    assert Store(shop).resolve(resumed["ref"]).run["resumed"]
    other = done("distill", "--patches=patches@1", *DISTILL, "--epochs=2", "--force", store=shop)
    assert resumed["id"] == other["id"]


def _fail(*_: object) -> None:
    raise RuntimeError("pulled the plug")


def test_only_learning_periods(world: World) -> None:
    result = dcclctl("distill", "--on=test", store=world.root)
    assert result.exit_code == 2
    assert "--on" in result.stderr and "test, to evaluate only" in result.stderr
