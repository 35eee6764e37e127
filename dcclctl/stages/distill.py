"""`distill`: cloud model + patches → better cloud model with a distilled basis Θ and the encoder U (MoMoDistill)."""

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from dcclctl.algorithm import training
from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import VALID, Block, EventLog
from dcclctl.algorithm.memorypatch import prior_shift
from dcclctl.algorithm.momodistill import (
    BasisSettings,
    distill_basis,
    new_encoder,
    teacher_of,
    trust_in,
    unlabelled_candidates,
)
from dcclctl.algorithm.sampling import log_uniform, uniforms
from dcclctl.config import DistillConfig, EvaluateConfig
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.stages.compute import OnProgress, settle, torch_device
from dcclctl.stages.handles import CloudModel, PatchSet, write_basis
from dcclctl.stages.models.din import fit_facts, fit_model, fit_settings
from dcclctl.stages.serve import SHUFFLED_SUFFIX, Subject, serve
from dcclctl.store.store import Artifact, Store, Work


def distill(
    patches: PatchSet,
    config: DistillConfig,
    store: Store,
    on_progress: OnProgress,
    force: bool = False,
    student: CloudModel | None = None,
) -> tuple[Artifact, bool]:
    """Both steps of MoMoDistill. Step 2 is for patches that are ϑ₀ + Θ·θ̂ (family metapatch); others leave it out.

    Args:
        patches: the teachers, of any family and on any kind of cloud model: a user is taught by what the user is served
            with, so a user without a patch by the cloud model under the patches (see `DistillConfig.teachers`).
        config: settings. β = 0 leaves the labels alone.
        store: where the model goes.
        on_progress: see compute.OnProgress.
        force: compute even if the same model exists.
        student: where step 1 starts, a DIN; None: the cloud model that the patches belong to.

    Returns:
        The new cloud artifact (W_f, and after step 2 Θ and U), and whether it existed already.

    Raises:
        UsageError: the student is no DIN; too few patches to shuffle; a memory that has counted the events to be taught.
        ArtifactError: a student of another dataset.
        DataError: the block has no events. DivergedError: NaN loss.
    """
    cloud, dataset, log = student or patches.cloud, patches.cloud.dataset, patches.cloud.dataset.log
    config = settle(config).model_copy(update={"negatives": config.negatives or cloud.negatives})
    block = Block.parse(config.on)
    _check(patches, cloud, block, config)
    inputs = {
        "cloud": cloud.artifact.as_input(),
        "dataset": dataset.artifact.as_input(),
        "patches": patches.artifact.as_input(),
    }
    with store.begin("distill", "cloud", config.recorded(), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        model = cloud.module(config)
        taught = _histories(patches, block, cloud.history, config)
        teacher, trust = _teacher(patches, config, taught), _trust(patches, config)
        fit = fit_settings(config, cloud.history, f"distill/{config.on}", config.beta)
        # what an old user did next says nothing about what somebody with so short a history does
        everything = np.arange(len(log.user))
        cut = taught.history_lengths(everything, cloud.history) < log.history_lengths(everything, cloud.history)
        unlabelled = _unlabelled(patches, cloud, block, config, taught)
        state = fit_model(
            model, dataset, [block], fit, work, on_progress, "distill W", teacher, trust, unlabelled, taught, cut
        )
        work.write_tensors("model.safetensors", state.best)
        work.write_json("model.json", cloud.settings)
        skipped = _why_no_basis(patches, cloud, config)
        losses = [] if skipped else _second_step(patches, cloud, model, teacher, trust, config, work, on_progress)
        facts = {
            "id_map": dataset.id_map,
            "parameters": sum(weight.numel() for weight in state.best.values()),
            "teachers": _patched_teachers(patches, config, trust),
            "mean_trust": float(trust[torch.from_numpy(log.user[log.events_in(block)])].double().mean()),
            "basis_losses": losses,
            "no_basis": skipped,
            "round": max(_rounds(cloud), _rounds(patches.cloud)) + 1,
        }
        return work.commit(facts | fit_facts(dataset, [block], state)), False


def _check(patches: PatchSet, student: CloudModel, block: Block, config: DistillConfig) -> None:
    """Refuse what cannot be taught, or would be taught by someone who knows the answers.

    Raises:
        UsageError, ArtifactError: see `distill`.
    """
    dataset = patches.cloud.dataset
    if student.dataset.artifact.id != dataset.artifact.id:
        raise ArtifactError(
            f"{student.artifact.ref} is of {student.dataset.artifact.ref}, but {patches.artifact.ref} of {dataset.artifact.ref}",
            "Give patches and a cloud model of one dataset.",
        )
    if student.settings["model"] != "din":
        raise UsageError(
            f"{student.artifact.ref} is a {student.settings['model']} model; only a DIN can be taught",
            "Name the student: --cloud REF. The teachers may stay as they are.",
        )
    if patches.memory is not None and config.teachers != "unpatched" and config.lesson == "events":
        until = patches.memory.artifact.facts["until"]
        if dataset.log.up_to(Block.parse(until))[dataset.log.events_in(block)].any():
            raise UsageError(
                f"{patches.artifact.ref} remembers with {patches.memory.artifact.ref}, whose counts go on to the end of {until}: "
                "they hold the very events that would be taught",
                "Ask them about other items: --lesson unlabelled. Or teach with a memory that ends before: dcclctl memory --until cloud.",
            )


def _rounds(cloud: CloudModel) -> int:
    """Distillations that a cloud model has behind it."""
    return int(cloud.artifact.facts.get("round", 0))


def _histories(patches: PatchSet, block: Block, limit: int, config: DistillConfig) -> EventLog:
    """The log that is taught from: some of the events with a short history, or none, for student and memories alike.

    Without them a student forgets what its start made of users whom it knows nothing of: none is among the events of a
    period that everybody has a past before. A device without a memory is served by the cloud model, and teaches that.
    Their labels are not taught: what old users do next is not what new ones begin with. (A placebo's memory is lent, and stays as it is.) Events of valid judge the epochs, so they keep what they have; so do all where nobody teaches (β = 0).
    """
    log = patches.cloud.dataset.log
    if config.lesson != "unlabelled" or config.beta == 0 or patches.memory is None or block.period == VALID:
        return log
    events = log.events_in(block)
    some = events[uniforms(config.seed, "distill/short", events) < config.lesson_short]
    lengths = log_uniform(config.seed, "distill/length", some, 0, log.history_lengths(some, limit))
    return log.shortened(some, lengths)


def _teacher(patches: PatchSet, config: DistillConfig, log: EventLog) -> training.Teacher:
    """What teaches each user, without regard to how much it counts."""
    backbone = patches.cloud.backbone(config, log)
    # unlabelled items have no labels that would tell the student how frequent clicks are: the teachers do, in its terms
    shift = prior_shift(patches.cloud.negatives, config.negatives) if config.lesson == "unlabelled" else 0.0
    if config.teachers == "unpatched":
        return teacher_of(backbone, backbone.head, shift)
    suffix = SHUFFLED_SUFFIX if config.teachers == "shuffled" else ""
    subject = Subject(patches.artifact, patches.cloud, patches, suffix)
    head, _ = serve(subject, EvaluateConfig.model_validate({"seed": config.seed}), backbone)
    return teacher_of(backbone, head, shift)


def _unlabelled(
    patches: PatchSet, student: CloudModel, block: Block, config: DistillConfig, log: EventLog
) -> training.Unlabelled | None:
    """The items that only the teachers label; None if there are none."""
    if config.lesson != "unlabelled":
        return None
    return unlabelled_candidates(
        log,
        student.history,
        config.unlabelled,
        block,
        config.seed,
        f"distill/{config.on}/unlabelled",
        patches.memory.statistics if patches.memory is not None else None,
    )


def _trust(patches: PatchSet, config: DistillConfig) -> Float[Tensor, "U"]:
    """How much each user's teacher counts."""
    users = patches.users
    passed = None
    if config.teachers == "guarded":
        won = (pl.col("loss_after") < pl.col("loss_before")).fill_null(False)  # null: nothing held back, nothing proven
        passed = users.select(won & pl.col("kept")).to_series().to_numpy()
    return trust_in(
        patches.cloud.dataset.log.n_users,
        users["user_index"].to_numpy().astype(np.int64),
        users["events"].to_numpy().astype(np.int64),
        passed,
        config.evidence,
    )


def _patched_teachers(patches: PatchSet, config: DistillConfig, trust: Float[Tensor, "U"]) -> int:
    """Patches that taught."""
    if config.teachers == "unpatched":
        return 0
    kept = patches.users.filter("kept")["user_index"].to_numpy().astype(np.int64)
    return int((trust[torch.from_numpy(kept)] > 0).sum())


def _why_no_basis(patches: PatchSet, cloud: CloudModel, config: DistillConfig) -> str:
    """Why step 2 is left out; empty if it is not."""
    if patches.family != "metapatch":
        return f"{patches.family} patches have no basis Θ"
    if config.lesson != "events":
        return "step 2 is about labelled events, which this lesson is not"
    sizes = patches.cloud.settings["hidden_sizes"]
    if sizes != cloud.settings["hidden_sizes"]:
        return f"Θ is for hidden layers of {sizes[0]} and {sizes[1]} units, which the student does not have"
    return ""


def _second_step(
    patches: PatchSet,
    cloud: CloudModel,
    model: Din,
    teacher: training.Teacher,
    trust: Float[Tensor, "U"],
    config: DistillConfig,
    work: Work,
    on_progress: OnProgress,
) -> list[float]:
    """Θ and U on top of the new weights, written into the artifact; returns the mean loss of each epoch."""
    log, block = cloud.dataset.log, Block.parse(config.on)
    events, catalogue, excluded = log.events_in(block), log.catalogue(block), log.never_negative(block)

    def draw(epoch: int) -> training.Samples:
        return training.sample(
            log, events, config.negatives, catalogue, excluded, config.seed, "distill/basis-negatives", epoch
        )

    def on_epoch(epoch: int, loss: float) -> None:
        work.record({"stage": "distill basis", "epoch": epoch, "loss": loss})
        on_progress("distill Θ, U", epoch, config.basis_epochs, f"loss {loss:.4f}")

    basis, (codes, _) = patches.basis(), patches.codes()
    # an encoder makes codes for its own cloud model's Θ only
    given = None if patches.own_basis else patches.cloud.encoder()
    encoder = given or new_encoder(basis.size, config.encoder_size, log.profile_sizes, config.seed)
    encoder.to(torch_device(config))
    settings = BasisSettings(
        config.basis_epochs, config.basis_learning_rate, config.beta, config.batch_size, config.seed
    )
    basis, losses = distill_basis(
        model, basis, codes, log, cloud.history, draw, teacher, encoder, settings, on_epoch, trust
    )
    write_basis(work, basis)
    work.write_tensors("encoder.safetensors", {name: weight.cpu() for name, weight in encoder.state_dict().items()})
    return losses
