"""distill: who teaches, how much, and whom."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from dcclctl.algorithm.momodistill import teacher_of
from dcclctl.stages.models.din import fit_model
from world import DISTILL, PATCH, TRAIN, World, dcclctl, done, ingest

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.devices.serving import FAMILIES
from dcclctl.events.log import DEVICE
from dcclctl.store.store import Artifact, Store

#: so much of the teachers that they are seen in the first epoch's loss
HEAVY = ("--patches=patches@1", *DISTILL, "--beta=5")


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
    assert artifact.facts["mean_trust"] == pytest.approx(share)
    shown = dcclctl("distill", *HEAVY, "--teachers=guarded", store=shop).stdout
    assert f"{len(won)} patched models of patches@1, those that passed the guard, taught cloud@1" in shown
    assert f"(β = 5, mean weight {share:.2f}, round 1)" in shown


def test_where_nothing_was_proven_labels_alone_count(world: World, shop: Path) -> None:
    unproven = done("patch", "--cloud=cloud@1", *PATCH, "--held-back=0", store=shop)["ref"]
    guarded = made(shop, *HEAVY, f"--patches={unproven}", "--teachers=guarded")
    assert guarded.facts["teachers"] == guarded.facts["mean_trust"] == 0
    assert first_loss(guarded) == first_loss(made(shop, *HEAVY, "--beta=0"))


def test_evidence_weighs_by_the_events_a_patch_learned_from(world: World, shop: Path) -> None:
    artifact = made(shop, *HEAVY, "--evidence")
    table = world.patches().users
    learned_from = dict(zip(table["user_index"], table["events"], strict=True))
    events = world.dataset().artifact.read_table("events.parquet").filter(pl.col("period") == 1)
    counts = np.array([learned_from.get(user, 0) for user in events["user_index"]])
    assert artifact.facts["mean_trust"] == pytest.approx(float(np.mean(counts / (counts + 10))), rel=1e-5)
    plain = first_loss(made(shop, *HEAVY))
    assert first_loss(made(shop, *HEAVY, "--beta=0")) < first_loss(artifact) < plain
    assert first_loss(made(shop, *HEAVY, "--no-evidence")) == plain


def test_the_student_may_start_elsewhere(world: World, shop: Path) -> None:
    """cloud@2 is taught by patches on cloud@1; no epoch is better than its start, so its weights stay."""
    flags = (*HEAVY, "--cloud=cloud@2", "--learning-rate=3.0", "--beta=0")
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
    small = done("train", *TRAIN, "--hidden-sizes=8,8", "--epochs=1", store=shop)["ref"]
    flags = (*HEAVY, f"--cloud={small}")
    artifact = made(shop, *flags)
    assert "basis.safetensors" not in artifact.manifest["files"]
    assert (
        "no Θ and no encoder U: Θ is for hidden layers of 16 and 8 units"
        in dcclctl("distill", *flags, store=shop).stdout
    )


def test_a_student_of_another_dataset_is_refused(shop: Path, tmp_path: Path) -> None:
    other = ingest(tmp_path / "log", shop, "--split=per-user")["ref"]
    student = done("train", *TRAIN, "--epochs=1", f"--dataset={other}", store=shop)["ref"]
    result = dcclctl("distill", *HEAVY, f"--cloud={student}", store=shop)
    assert result.exit_code == 3
    assert other in result.stderr and "dataset@1" in result.stderr


def test_patches_without_a_basis_teach_and_leave_none(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any family: what is served is what teaches. Here every candidate gets its user's number as its logit."""

    def head_of(patches: PatchSet, backbone: Any, codes: torch.Tensor) -> Any:
        return lambda events, candidates, below: (
            0.01 * torch.from_numpy(backbone.log.user[events])[:, None].expand(-1, candidates.shape[1])
        )

    monkeypatch.setitem(FAMILIES, "numbers", head_of)
    monkeypatch.setattr(PatchSet, "family", "numbers")
    flags = (*HEAVY, "--beta=1000", "--epochs=30", "--learning-rate=0.05", "--dropout=0")
    artifact = made(shop, *flags)
    assert not {"basis.safetensors", "encoder.safetensors"} & set(artifact.manifest["files"])
    assert artifact.facts["basis_losses"] == []
    shown = dcclctl("distill", *flags, store=shop).stdout
    assert "no Θ and no encoder U: numbers patches have no basis Θ" in shown
    assert artifact.facts["epochs"][-1]["train_loss"] < 0.2 * first_loss(artifact)
    cloud = CloudModel(artifact)
    assert cloud.basis() is None and cloud.encoder() is None
    monkeypatch.undo()
    assert done("patch", f"--cloud={artifact.ref}", *PATCH, store=shop)["ref"] == "patches@2"


def test_unknown_teachers(shop: Path) -> None:
    result = dcclctl("distill", "--teachers=parents", store=shop)
    assert result.exit_code == 2
    assert "--teachers" in result.stderr and "guarded" in result.stderr


# Teachers of other kinds


def test_devices_with_a_memory_teach_what_they_remember(shop: Path) -> None:
    """The student has no memory, so its teachers say something else than the cloud model and than strangers' memories."""
    done("memory", "--until=cloud", "--neighbours=5", store=shop)
    taught_by = done("patch", "--cloud=cloud@1", "--method=memory", "--memory=memory@1", "--threads=1", store=shop)[
        "ref"
    ]
    flags = (*HEAVY, f"--patches={taught_by}", "--lesson=events")
    artifacts = [made(shop, *flags, f"--teachers={name}") for name in ("patched", "unpatched", "shuffled", "guarded")]
    assert len({first_loss(artifact) for artifact in artifacts}) == 4
    assert artifacts[0].facts["teachers"] > 0
    assert artifacts[0].facts["no_basis"] == "memory patches have no basis Θ"
    assert dcclctl("audit", artifacts[0].ref, store=shop).exit_code == 0


def test_a_memory_that_has_counted_the_answers_does_not_teach(shop: Path) -> None:
    done("memory", "--until=device", "--neighbours=5", store=shop)
    patches = done("patch", "--cloud=cloud@1", "--method=memory", "--memory=memory@1", "--threads=1", store=shop)["ref"]
    flags = (*HEAVY, f"--patches={patches}", "--lesson=events")
    result = dcclctl("distill", *flags, store=shop)
    assert result.exit_code == 2
    assert "memory@1" in result.stderr and "dcclctl memory --until cloud" in result.stderr
    assert "--lesson unlabelled" in result.stderr
    assert made(shop, *flags, "--teachers=unpatched").facts["teachers"] == 0
    made(shop, *flags, "--on=valid")


def test_another_kind_of_model_teaches_a_din_and_is_not_taught(world: World, shop: Path) -> None:
    sequence = done("train", "--model=sasrec", "--item-size=8", "--epochs=1", "--threads=1", store=shop)["ref"]
    patches = done("patch", "--method=metapatch", f"--cloud={sequence}", "--basis-epochs=1", "--threads=1", store=shop)[
        "ref"
    ]
    flags = (f"--patches={patches}", *DISTILL, "--beta=5")
    refused = dcclctl("distill", *flags, store=shop)
    assert refused.exit_code == 2
    assert f"{sequence} is a sasrec model" in refused.stderr and "--cloud REF" in refused.stderr
    artifact = made(shop, *flags, "--cloud=cloud@1")
    assert artifact.inputs["cloud"].id == world.ids["train"]
    assert "state patches have no basis" in artifact.facts["no_basis"]
    assert first_loss(artifact) != first_loss(made(shop, *flags, "--cloud=cloud@1", "--teachers=unpatched"))


# What they are asked about


@pytest.fixture
def remembering(shop: Path) -> str:
    """Patches with a memory that has counted the device period."""
    done("memory", "--until=device", "--neighbours=5", store=shop)
    return str(done("patch", "--cloud=cloud@1", "--method=memory", "--memory=memory@1", store=shop)["ref"])


def test_who_has_counted_the_answers_is_asked_about_other_items(shop: Path, remembering: str) -> None:
    """By default, with the settings of that lesson; a file and a flag win over it."""
    artifact = made(shop, f"--patches={remembering}", "--threads=1", "--epochs=1")
    assert artifact.config["lesson"] == "unlabelled"
    own = {"unlabelled": 12, "lesson_short": 0.25, "beta": 10.0, "learning_rate": 0.001, "patience": 5, "epochs": 1}
    assert {name: artifact.config[name] for name in own} == own
    flags = (*HEAVY, f"--patches={remembering}")
    losses = {first_loss(made(shop, *flags, f"--teachers={name}")) for name in ("patched", "unpatched", "shuffled")}
    assert len(losses) == 3
    assert first_loss(made(shop, *flags, "--unlabelled=3")) not in losses
    assert dcclctl("audit", artifact.ref, store=shop).exit_code == 0
    shown = dcclctl("distill", *flags, "--unlabelled=3", store=shop).stdout
    assert "about 3 unlabelled items an event" in shown


def test_a_file_may_choose_the_lesson(shop: Path, remembering: str, tmp_path: Path) -> None:
    settings = tmp_path / "dccl.toml"
    settings.write_text('[distill]\nlesson = "events"\nteachers = "unpatched"\n')
    flags = (f"--patches={remembering}", "--epochs=1", f"--config={settings}")
    artifact = made(shop, *flags)
    assert (artifact.config["lesson"], artifact.config["beta"]) == ("events", 0.1)
    assert made(shop, *flags, "--lesson=unlabelled").config["beta"] == 10.0


def test_patches_without_a_memory_are_asked_about_the_events(shop: Path) -> None:
    artifact = made(shop, *HEAVY)
    assert artifact.config["lesson"] == "events"
    assert "unlabelled" not in dcclctl("distill", *HEAVY, store=shop).stdout
    assert first_loss(made(shop, *HEAVY, "--lesson=unlabelled")) != first_loss(artifact)


def test_a_student_sees_as_many_negatives_as_it_was_trained_with(world: World, shop: Path) -> None:
    many = done("train", *TRAIN, "--negatives=9", "--epochs=1", store=shop)["ref"]
    assert made(shop, *HEAVY, f"--cloud={many}").config["negatives"] == 9
    assert made(shop, *HEAVY).config["negatives"] == world.artifact("cloud@1").config["negatives"]
    assert made(shop, *HEAVY, "--negatives=2").config["negatives"] == 2


def test_what_is_said_of_unlabelled_items_is_said_at_the_students_frequency_of_clicks(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cloud@1 was trained with n negatives an event: to a student that sees 2n, a click is half as likely."""
    asked = []

    def looked_at(backbone: Any, head: Any, shift: float = 0.0) -> Any:
        asked.append(shift)
        return teacher_of(backbone, head, shift)

    monkeypatch.setattr("dcclctl.stages.distill.teacher_of", looked_at)
    usual = int(Store(shop).resolve("cloud@1").config["negatives"])
    made(shop, *HEAVY, "--lesson=unlabelled")
    made(shop, *HEAVY, "--lesson=unlabelled", f"--negatives={2 * usual}")
    made(shop, *HEAVY, f"--negatives={2 * usual}")
    assert asked == pytest.approx([0.0, -np.log(2), 0.0])


def test_teaching_ends_when_the_student_ranks_no_better(shop: Path, remembering: str) -> None:
    """At a rate of nothing no epoch is better than the start; five are waited for, or as many as are asked for."""
    flags = (f"--patches={remembering}", "--learning-rate=1e-12", "--threads=1")
    assert len(made(shop, *flags).facts["epochs"]) == 5
    assert len(made(shop, *flags, "--patience=3", "--epochs=9").facts["epochs"]) == 3
    assert len(made(shop, *flags, "--patience=0", "--epochs=4").facts["epochs"]) == 4


def test_some_events_are_taught_with_a_short_history_to_student_and_teacher_alike(
    world: World, shop: Path, remembering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them, here; the others and what valid judges by keep theirs."""
    logs, untold = [], []

    def looked_at(backbone: Any, head: Any, shift: float = 0.0) -> Any:
        logs.append(backbone.log)
        return teacher_of(backbone, head, shift)

    def fitted(model: Any, *rest: Any) -> Any:
        logs.append(rest[-2])
        untold.append(rest[-1])
        return fit_model(model, *rest)

    monkeypatch.setattr("dcclctl.stages.distill.teacher_of", looked_at)
    monkeypatch.setattr("dcclctl.stages.distill.fit_model", fitted)
    flags = (*HEAVY, f"--patches={remembering}", "--force")
    made(shop, *flags, "--lesson-short=0.5")
    made(shop, *flags, "--lesson-short=0")
    made(shop, *flags, "--lesson=events", "--teachers=unpatched")
    whole, limit = world.dataset().log, world.cloud().history
    taught = whole.events_in(DEVICE)
    others = np.setdiff1d(np.arange(len(whole.user)), taught)
    before = whole.history_lengths(taught, limit)
    for name, log in zip(("teacher", "student"), logs[:2], strict=True):
        after = log.history_lengths(taught, limit)
        assert 0.3 < (after < before).mean() < 0.65, name
        assert ((after == 0) & (before > 0)).any()
        assert np.array_equal(log.history_lengths(others, 99), whole.history_lengths(others, 99))
    assert np.array_equal(logs[0].history_start, logs[1].history_start)
    # what an old user did next is not taught as what a new one does
    assert np.array_equal(np.flatnonzero(untold[0]), taught[logs[1].history_lengths(taught, limit) < before])
    assert not untold[1].any() and not untold[2].any()
    for log in logs[2:]:
        assert np.array_equal(log.history_start, whole.history_start)


def test_step_2_is_left_out_where_the_lesson_is_not_about_labelled_events(shop: Path) -> None:
    artifact = made(shop, *HEAVY, "--lesson=unlabelled")
    assert "basis.safetensors" not in artifact.manifest["files"]
    assert artifact.facts["no_basis"] == "step 2 is about labelled events, which this lesson is not"


def test_what_valid_judges_by_is_not_shortened(shop: Path, remembering: str) -> None:
    """Taught on valid itself, an epoch is judged by whole histories: at a rate of nothing, as the start was."""
    flags = (f"--patches={remembering}", "--on=valid", "--learning-rate=1e-12", "--epochs=1", "--threads=1")
    short, whole = (made(shop, *flags, f"--lesson-short={share}").facts["epochs"][0] for share in (1.0, 0.0))
    assert short["valid_loss"] == whole["valid_loss"]


def test_where_nobody_teaches_every_label_counts(shop: Path, remembering: str) -> None:
    flags = (*HEAVY, f"--patches={remembering}", "--beta=0")
    short, whole = (made(shop, *flags, f"--lesson-short={share}").facts["epochs"] for share in (1.0, 0.0))
    assert short == whole
