"""`train`: dataset → cloud model of any kind (see stages/models)."""

from typing import Any

from dcclctl.algorithm.eventlog import Block
from dcclctl.config import TrainConfig
from dcclctl.errors import UsageError
from dcclctl.stages.compute import OnProgress, settle
from dcclctl.stages.handles import CloudModel, Dataset
from dcclctl.stages.models import module_of
from dcclctl.store.store import Artifact, Store


def train(
    dataset: Dataset,
    config: TrainConfig,
    store: Store,
    on_progress: OnProgress,
    force: bool = False,
    parent: CloudModel | None = None,
) -> tuple[Artifact, bool]:
    """Train the cloud model, and keep the weights of the epoch that is best on valid by the criterion.

    Args:
        dataset: what to train on.
        config: settings; with `parent` its kind and sizes are replaced by the parent's.
        store: where the model goes.
        on_progress: see compute.OnProgress.
        force: train even if the same model exists.
        parent: continue from this model's weights (the incremental control); its patch basis is not taken over.

    Returns:
        The cloud artifact, and whether it existed already.

    Raises:
        DataError: the chosen periods have no events. UsageError: valid or test in `on`. DivergedError: NaN loss.
    """
    config = settle(config)
    inputs = {"dataset": dataset.artifact.as_input()}
    kind = module_of(parent.settings["model"] if parent else config.model)
    if parent is not None:
        config = TrainConfig(
            **config.model_dump(exclude_unset=True) | {name: parent.settings[name] for name in kind.SIZES}
        )
        inputs["cloud"] = parent.artifact.as_input()
    if any(Block.parse(text).period > 1 for text in config.on):
        raise UsageError("--on: the cloud model trains on cloud and device only", "valid decides when to stop.")
    with store.begin("train", "cloud", config.recorded(), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        settings: dict[str, Any] = config.model_dump(mode="json")
        facts = kind.fit(dataset, config, work, on_progress, parent)
        work.write_json("model.json", {name: settings[name] for name in kind.SIZES})
        artifact = work.commit({"id_map": dataset.id_map, **facts})
    return artifact, False
