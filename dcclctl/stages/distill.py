"""`distill`: cloud model + patches → better cloud model with a distilled basis Θ and the encoder U (MoMoDistill)."""

from dcclctl.algorithm import training
from dcclctl.algorithm.eventlog import Block
from dcclctl.algorithm.momodistill import BasisSettings, distill_basis, new_encoder, teacher_of
from dcclctl.config import DistillConfig
from dcclctl.stages.compute import OnProgress, settle, torch_device
from dcclctl.stages.handles import PatchSet, write_basis
from dcclctl.stages.models.din import fit_facts, fit_model
from dcclctl.store.store import Artifact, Store


def distill(
    patches: PatchSet, config: DistillConfig, store: Store, on_progress: OnProgress, force: bool = False
) -> tuple[Artifact, bool]:
    """Both steps of MoMoDistill; the cloud model that the patches belong to is the start of step 1.

    Args:
        patches: the teachers. Users without a patch are taught by the cloud model itself.
        config: settings. β = 0 leaves the labels alone.
        store: where the model goes.
        on_progress: see compute.OnProgress.
        force: compute even if the same model exists.

    Returns:
        The new cloud artifact (W_f, Θ, U), and whether it existed already.

    Raises:
        DataError: the block has no events. DivergedError: NaN loss.
    """
    config = settle(config)
    cloud, dataset, log = patches.cloud, patches.cloud.dataset, patches.cloud.dataset.log
    block = Block.parse(config.on)
    inputs = {
        "cloud": cloud.artifact.as_input(),
        "dataset": dataset.artifact.as_input(),
        "patches": patches.artifact.as_input(),
    }
    with store.begin("distill", "cloud", config.model_dump(mode="json"), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        device = torch_device(config)
        old, basis = cloud.module(config), patches.basis()
        codes, patched = patches.codes()
        teacher = teacher_of(old, basis, codes, log, cloud.history)
        student = cloud.module(config)
        fit = training.FitSettings(
            history=cloud.history,
            negatives=config.negatives,
            epochs=config.epochs,
            patience=0,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            dropout=config.dropout,
            seed=config.seed,
            purpose=f"distill/{config.on}",
            beta=config.beta,
        )
        state = fit_model(student, dataset, [block], fit, work, on_progress, "distill W", teacher)
        events, catalogue, excluded = log.events_in(block), log.catalogue(block), log.never_negative(block)

        def draw(epoch: int) -> training.Samples:
            return training.sample(
                log, events, config.negatives, catalogue, excluded, config.seed, "distill/basis-negatives", epoch
            )

        def on_epoch(epoch: int, loss: float) -> None:
            work.record({"stage": "distill basis", "epoch": epoch, "loss": loss})
            on_progress("distill Θ, U", epoch, config.basis_epochs, f"loss {loss:.4f}")

        encoder = cloud.encoder() or new_encoder(basis.size, config.encoder_size, log.profile_sizes, config.seed)
        encoder.to(device)
        settings = BasisSettings(
            config.basis_epochs, config.basis_learning_rate, config.beta, config.batch_size, config.seed
        )
        basis, basis_losses = distill_basis(
            student, basis, codes, log, cloud.history, draw, teacher, encoder, settings, on_epoch
        )
        work.write_tensors("model.safetensors", state.best)
        work.write_json("model.json", cloud.settings)
        write_basis(work, basis)
        work.write_tensors("encoder.safetensors", {name: weight.cpu() for name, weight in encoder.state_dict().items()})
        facts = {
            "id_map": dataset.id_map,
            "parameters": sum(weight.numel() for weight in state.best.values()),
            "teachers": int(patched.sum()),
            "basis_losses": basis_losses,
            "round": int(cloud.artifact.facts.get("round", 0)) + 1,
        }
        return work.commit(facts | fit_facts(dataset, [block], state)), False
