"""distill: who teaches, how much, and whom."""

from pathlib import Path

import polars as pl
import pytest
import torch
from world import DISTILL, PATCH, TRAIN, World, dcclctl, done, ingest

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.stages.distill import distill
from dcclctl.stages.run import RunOptions
from dcclctl.store.store import Artifact, Store

#: so much of the teachers that they are seen in the first epoch's loss
HEAVY = ("--patches=patches@1", *DISTILL, "--beta=5")
#: the same for teachers of any method
BOTH = ("--epochs=1", "--set=batch_size=128", "--beta=5", "--threads=1")


def made(shop: Path, *flags: str) -> Artifact:
    return Store(shop).resolve(done("distill", *flags, store=shop)["ref"])


def first_loss(artifact: Artifact) -> float:
    return float(artifact.facts["epochs"][0]["train_loss"])


def test_the_cloud_model_teaches_what_patches_of_zero_would(world: World, shop: Path) -> None:
    zero = done("patch", "--cloud=cloud@1", *PATCH, "--guard", "--held-back=0", store=shop)["ref"]
    unpatched, nothing = made(shop, *HEAVY, "--teachers=unpatched"), made(shop, *HEAVY, f"--patches={zero}")
    assert first_loss(unpatched) == first_loss(nothing)
    assert unpatched.facts["teachers"] == nothing.facts["teachers"] == 0
    assert first_loss(unpatched) != first_loss(made(shop, *HEAVY))


def test_shuffled_teachers_are_neither_ones_own_nor_the_cloud_model(world: World, shop: Path) -> None:
    losses = {first_loss(made(shop, *HEAVY, f"--teachers={name}")) for name in ("patched", "unpatched", "shuffled")}
    assert len(losses) == 3
    assert made(shop, *HEAVY, "--teachers=shuffled").facts["teachers"] == world.artifact("patches@1").facts["kept"]


def test_only_patches_that_won_teach_if_guarded(world: World, shop: Path) -> None:
    table = world.patches().users
    won = table.filter(pl.col("loss_after") < pl.col("loss_before"))["user_index"]
    assert 0 < len(won) < table.height
    artifact = made(shop, *HEAVY, "--teachers=guarded")
    assert artifact.facts["teachers"] == len(won)
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 1)
    share = events["user_index"].is_in(won.implode()).mean()
    assert artifact.facts["mean_teacher_weight"] == pytest.approx(share)
    shown = dcclctl("distill", *HEAVY, "--teachers=guarded", store=shop).stdout
    assert f"{len(won)} patched models of patches@1 that passed the guard taught cloud@1" in shown
    assert "(momodistill, β = 5, round 1)" in shown


def test_where_nothing_was_proven_labels_alone_count(world: World, shop: Path) -> None:
    unproven = done("patch", "--cloud=cloud@1", *PATCH, "--held-back=0", store=shop)["ref"]
    guarded = made(shop, *HEAVY, f"--patches={unproven}", "--teachers=guarded")
    assert guarded.facts["teachers"] == guarded.facts["mean_teacher_weight"] == 0
    assert first_loss(guarded) == first_loss(made(shop, *HEAVY, "--beta=0"))


def test_the_student_may_start_elsewhere(world: World, shop: Path) -> None:
    """cloud@2 is taught by patches on cloud@1; no epoch is better than its start, so its weights stay."""
    flags = (*HEAVY, "--cloud=cloud@2", "--learning-rate=1e-12", "--beta=0")
    artifact = made(shop, *flags)
    assert artifact.inputs["cloud"].id == world.ids["distill"]
    assert artifact.inputs["patches"].id == world.ids["patch"]
    assert artifact.facts["round"] == 2
    assert artifact.facts["best_epoch"] == 0
    start = world.artifact("cloud@2").read_tensors("model.safetensors")
    for name, weight in artifact.read_tensors("model.safetensors").items():
        assert torch.equal(weight, start[name])
    shown = dcclctl("distill", *flags, store=shop).stdout
    assert "taught cloud@2" in shown
    assert dcclctl("audit", artifact.ref, store=shop).exit_code == 0


def test_a_student_of_other_layers_gets_no_basis(shop: Path) -> None:
    small = done("train", "--set=hidden_sizes=8,8", "--epochs=1", "--threads=1", store=shop)["ref"]
    flags = (*HEAVY, f"--cloud={small}")
    artifact = made(shop, *flags)
    assert "basis.safetensors" not in artifact.manifest["files"]
    assert (
        "Θ and encoder U were not trained: Θ is for hidden layers of 16 and 8 units"
        in dcclctl("distill", *flags, store=shop).stdout
    )


def test_a_student_of_another_dataset_is_refused(shop: Path, tmp_path: Path) -> None:
    other = ingest(tmp_path / "log", shop, "--split=per-user")["ref"]
    student = done("train", *TRAIN, "--epochs=1", f"--dataset={other}", store=shop)["ref"]
    result = dcclctl("distill", *HEAVY, f"--cloud={student}", store=shop)
    assert result.exit_code == 3
    assert other in result.stderr and "dataset@1" in result.stderr


def test_patches_without_a_basis_teach_and_leave_none(shop: Path) -> None:
    """With a heavy β the student comes close to what its teachers say: fine-tuned models, which have no Θ."""
    ref = done("patch", "--method=fine-tune", "--cloud=cloud@1", "--prior=0.05", "--threads=1", store=shop)["ref"]
    flags = (f"--patches={ref}", "--beta=1000", "--epochs=10", "--learning-rate=0.01", "--set=dropout=0", "--threads=1")
    artifact = made(shop, *flags)
    assert not {"basis.safetensors", "encoder.safetensors"} & set(artifact.manifest["files"])
    assert artifact.facts["basis_losses"] == []
    shown = dcclctl("distill", *flags, store=shop).stdout
    assert "Θ and encoder U were not trained: fine-tune patches have no basis Θ" in shown
    losses = [epoch["train_loss"] for epoch in artifact.facts["epochs"]]
    assert losses[-1] < 0.8 * losses[0]
    cloud = CloudModel(artifact)
    assert not cloud.basis_id and not cloud.has_encoder
    assert done("patch", f"--cloud={artifact.ref}", *PATCH, store=shop)["users"] > 0


def test_unknown_teachers(shop: Path) -> None:
    result = dcclctl("distill", "--teachers=parents", store=shop)
    assert result.exit_code == 2
    assert "--teachers" in result.stderr and "guarded" in result.stderr


# Teachers of other kinds


def memory_patches(shop: Path, counted_through: str = "device") -> str:
    memory = done("memory", f"--counted-through={counted_through}", "--neighbours=5", store=shop)["ref"]
    return str(done("patch", "--cloud=cloud@1", f"--memory={memory}", "--threads=1", store=shop)["ref"])


def test_devices_with_a_memory_teach_what_they_remember(shop: Path) -> None:
    """The student has no memory, so its teachers say something else than the cloud model and than others' memories."""
    flags = (*BOTH, f"--patches={memory_patches(shop, 'cloud')}", "--method=momodistill")
    artifacts = [made(shop, *flags, f"--teachers={name}") for name in ("patched", "unpatched", "shuffled", "guarded")]
    assert len({first_loss(artifact) for artifact in artifacts}) == 4
    assert artifacts[0].facts["teachers"] > 0
    assert artifacts[0].facts["no_basis"] == "memory patches have no basis Θ"
    assert dcclctl("audit", artifacts[0].ref, store=shop).exit_code == 0


def test_a_memory_that_has_counted_the_answers_does_not_teach(shop: Path) -> None:
    flags = (*BOTH, f"--patches={memory_patches(shop)}", "--method=momodistill")
    result = dcclctl("distill", *flags, store=shop)
    assert result.exit_code == 2
    assert "memory@1" in result.stderr and "dcclctl memory --counted-through cloud" in result.stderr
    assert "--method from-memory" in result.stderr
    assert made(shop, *flags, "--teachers=unpatched").facts["teachers"] == 0


def test_another_kind_of_model_teaches_a_din_and_is_taught_its_weights(world: World, shop: Path) -> None:
    sequence = done("train", "--model=sasrec", "--set=item_size=8", "--epochs=1", "--threads=1", store=shop)["ref"]
    command = ("patch", "--method=metapatch", f"--cloud={sequence}", "--set=basis_epochs=1", "--threads=1")
    flags = (f"--patches={done(*command, store=shop)['ref']}", *DISTILL, "--beta=5")
    artifact = made(shop, *flags, "--cloud=cloud@1")
    assert artifact.inputs["cloud"].id == world.ids["train"]
    assert "Θ is for the states of a sequence model" in artifact.facts["no_basis"]
    assert first_loss(artifact) != first_loss(made(shop, *flags, "--cloud=cloud@1", "--teachers=unpatched"))
    own = made(shop, *flags)
    assert own.inputs["cloud"].id == Store(shop).resolve(sequence).id
    assert "Θ is for the states of a sequence model" in own.facts["no_basis"]
    assert first_loss(own) != first_loss(made(shop, *flags, "--teachers=unpatched"))


def test_a_model_without_layers_to_train_is_not_taught(shop: Path) -> None:
    counted = done("train", "--model=popularity", store=shop)["ref"]
    refused = dcclctl("distill", f"--patches={memory_patches(shop)}", f"--cloud={counted}", store=shop)
    assert refused.exit_code == 2
    assert f"{counted} is a popularity model" in refused.stderr and "--cloud REF" in refused.stderr


# What they are asked about


@pytest.fixture
def remembering(shop: Path) -> str:
    """Patches with a memory that has counted the device period."""
    return memory_patches(shop)


def test_the_default_method_depends_on_the_teachers(shop: Path, remembering: str, tmp_path: Path) -> None:
    """From Python as from the shell; a file wins over it, and what is given wins over the file."""
    store, once = Store(shop), {"epochs": 1, "threads": 1}
    without, with_memory = (PatchSet(store.resolve(reference)) for reference in ("patches@1", remembering))
    assert distill(without, once).config["method"] == "momodistill"
    artifact = distill(with_memory, once)
    assert artifact.config["method"] == "from-memory"
    own = {"highest": 20, "others": 20, "beta": 10.0, "learning_rate": 0.001, "patience": 5, "epochs": 1}
    assert {name: artifact.config["from-memory"][name] for name in own} == own
    assert made(shop, f"--patches={remembering}", "--threads=1", "--epochs=1").id == artifact.id
    assert dcclctl("audit", artifact.ref, store=shop).exit_code == 0
    file = tmp_path / "dccl.toml"
    file.write_text('[distill]\nmethod = "momodistill"\nteachers = "unpatched"\n[distill.from-memory]\nbeta = 3.0\n')
    chosen = distill(with_memory, once, RunOptions(config=file))
    assert (chosen.config["method"], chosen.config["momodistill"]["beta"]) == ("momodistill", 0.1)
    given = distill(with_memory, once | {"method": "from-memory"}, RunOptions(config=file))
    assert (given.config["from-memory"]["beta"], given.config["teachers"]) == (3.0, "unpatched")


def test_who_has_counted_the_answers_is_asked_about_other_items(shop: Path, remembering: str) -> None:
    flags = (*BOTH, f"--patches={remembering}")
    losses = {first_loss(made(shop, *flags, f"--teachers={name}")) for name in ("patched", "unpatched", "shuffled")}
    assert len(losses) == 3
    assert first_loss(made(shop, *flags, "--set=highest=3")) not in losses
    shown = dcclctl("distill", *flags, "--set=distill.from-memory.highest=3", store=shop).stdout
    assert "and 43 unlabelled items per event" in shown


def test_patches_without_a_memory_are_asked_about_the_events(shop: Path) -> None:
    flags = ("--patches=patches@1", *BOTH)
    artifact = made(shop, *flags)
    assert artifact.config["method"] == "momodistill"
    assert "unlabelled" not in dcclctl("distill", *flags, store=shop).stdout
    other = made(shop, *flags, "--method=from-memory")
    assert first_loss(other) != first_loss(artifact)
    # step 2 is about labelled events
    assert "basis.safetensors" not in other.manifest["files"]
    assert other.facts["no_basis"] == "this method learns no basis Θ and no encoder U"


def test_a_student_sees_as_many_negatives_as_it_was_trained_with(world: World, shop: Path) -> None:
    many = done("train", *TRAIN, "--set=negatives=9", "--epochs=1", store=shop)["ref"]
    usual = world.cloud(1).negatives
    assert made(shop, *HEAVY, f"--cloud={many}").config["momodistill"]["negatives"] == 9
    assert made(shop, *HEAVY).config["momodistill"]["negatives"] == usual != 9
    assert made(shop, *HEAVY, "--set=negatives=2").config["momodistill"]["negatives"] == 2


def test_teaching_ends_when_the_student_ranks_no_better(shop: Path, remembering: str) -> None:
    """At a rate of nothing no epoch is better than the start; five are waited for, or as many as are asked for."""
    flags = (f"--patches={remembering}", "--learning-rate=1e-12", "--threads=1")
    assert len(made(shop, *flags).facts["epochs"]) == 5
    assert len(made(shop, *flags, "--patience=3", "--epochs=9").facts["epochs"]) == 3
    assert len(made(shop, *flags, "--patience=0", "--epochs=4").facts["epochs"]) == 4
