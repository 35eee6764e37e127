"""`distill`: cloud model + patches → better cloud model, by a distillation method (see distillation/method.py)."""

from dataclasses import replace
from typing import Any

import torch

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.compute import compute_settings, torch_device
from dcclctl.config import DistillConfig
from dcclctl.devices.bound import BoundedPatches
from dcclctl.distillation.method import DistillTask, default_method, method_of
from dcclctl.distillation.teachers import teacher_weight
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.events.log import VALID, Block
from dcclctl.models.kind import MODELS, kind_of
from dcclctl.models.settings import FitSettings
from dcclctl.models.trained import TrainedKind
from dcclctl.models.training import Trainer
from dcclctl.stages.plan import events_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve

#: users that a remark names at most
_SHOWN = 5


def distill(
    patches: PatchSet,
    settings: Settings = NO_SETTINGS,
    run: RunOptions = DEFAULT_RUN,
    student: CloudModel | None = None,
) -> CloudModel:
    """Teach the cloud model with the patched models.

    Args:
        patches: the teachers, of any method and on any kind of cloud model; θ̂ of one device cannot be longer than a bound
            that is learned from all (see devices/bound.py). The teacher on a user's events is the model
            that serves the user: without a patch the cloud model under the patches.
        settings: see DistillConfig and the method's own section. The default method depends on the teachers. With β = 0
            only the labels teach. run: how to run.
        student: the cloud model to train further; None: the one under the patches.

    Raises:
        UsageError: valid or test in `on`; a student that cannot be taught; too few patches to shuffle; teachers that have
            counted the events.
        ArtifactError: a student of another dataset.
        DataError: the block has no events. DivergedError: NaN loss.
    """
    cloud, dataset = student or patches.cloud, patches.cloud.dataset
    config = resolve(DistillConfig, settings, run.config, default_method(patches))
    own: Any = config.settings
    own = own.model_copy(update={"negatives": own.negatives or cloud.negatives})
    config = config.model_copy(update={"settings": own})
    block, method, kind = Block.parse(config.on), method_of(config.method), kind_of(cloud.model)
    if block.period >= VALID:
        raise UsageError(
            f"--on {config.on}: the cloud model is taught on cloud or device", "valid decides when to stop."
        )
    _check_student(cloud, patches)
    method.check(patches, block, config)
    inputs = {
        "cloud": cloud.artifact.as_input(),
        "dataset": dataset.artifact.as_input(),
        "patches": patches.artifact.as_input(),
    }
    amount = events_of(dataset, [block]) * own.epochs
    teachers = patches
    if config.teachers != "unpatched" and patches.facts["patch_size"]:
        teachers = BoundedPatches(patches)
    with (
        compute_settings(config, run.remark) as config,
        cloud.store.begin("distill", "cloud", config.recorded(), config.seed, inputs, run.force, amount) as work,
    ):
        if work.reused is not None:
            return named(CloudModel(work.reused), run)
        device = torch_device(config)
        task: DistillTask[Any] = DistillTask(teachers, cloud, block, config, own, device, work, run.on_progress)
        bound = _said_bound(teachers, run) if isinstance(teachers, BoundedPatches) else {}
        assert isinstance(kind, TrainedKind)
        fit = replace(FitSettings.of(own, config.seed, f"distill/{config.on}"), shared_negatives=cloud.shared_negatives)
        trainer = Trainer(
            kind.module(cloud, device), dataset.groups, [block], fit, lambda log: method.objective(task, log)
        )
        state = trainer.fit(work, run.on_progress, "teach the cloud model")
        work.write_tensors("model.safetensors", state.best)
        work.write_json("model.json", {"model": cloud.model, **cloud.sizes})
        facts = {
            "id_map": dataset.id_map,
            **method.after(task, trainer),
            **_teachers(task),
            **bound,
            "round": max(cloud.round, patches.cloud.round) + 1,
            **trainer.facts(state),
        }
        return named(CloudModel(work.commit(facts)), run)


def _check_student(student: CloudModel, patches: PatchSet) -> None:
    """Refuse a student that cannot be taught."""
    dataset = patches.cloud.dataset
    if student.dataset.id != dataset.id:
        raise ArtifactError(
            f"{student.ref} is of {student.dataset.ref}, but {patches.ref} of {dataset.ref}",
            "Give patches and a cloud model of one dataset.",
        )
    if not kind_of(student.model).can_be_taught:
        taught = [name for name in MODELS if kind_of(name).can_be_taught]
        raise UsageError(
            f"{student.ref} is a {student.model} model, which cannot be taught (it can be patched and evaluated)",
            f"Name another model as the student: --cloud REF, of kind {' or '.join(taught)}. The teachers may stay.",
        )


def _said_bound(teachers: BoundedPatches, run: RunOptions) -> dict[str, Any]:
    """Say what is not used of the patches as it is, and return it as facts."""
    facts, rejected = dict(teachers.facts_of_bound()), teachers.rejected_ids()
    if rejected:
        shown = ", ".join(rejected[:_SHOWN]) + (" …" if len(rejected) > _SHOWN else "")
        run.remark(
            f"{len(rejected):,} patches of {teachers.ref} are absurdly far from all others and do not teach: {shown}"
        )
    if facts["patches_clipped"]:
        run.remark(
            f"{facts['patches_clipped']:,} patches of {teachers.ref} are clipped to a distance of {facts['patch_bound']:.3g}"
        )
    return facts


def _teachers(task: DistillTask[Any]) -> dict[str, Any]:
    """How many patches taught, and the mean weight of a teacher over the events."""
    weight = teacher_weight(task.patches, task.config.teachers)
    events = torch.from_numpy(task.student.dataset.count_events(task.block)).double()
    mean = float((weight * events).sum() / events.sum())
    _, kept = task.patches.codes()
    silent = task.config.teachers == "unpatched" or not task.settings.beta
    taught = 0 if silent else int((weight[kept] > 0).sum())
    return {"teachers": taught, "mean_teacher_weight": mean}
