"""`train`: dataset → cloud model of any kind (see models/kind.py)."""

from typing import Any

from dcclctl.artifacts import CloudModel, Dataset
from dcclctl.compute import compute_settings, no_progress, torch_device
from dcclctl.config import Section, TrainConfig
from dcclctl.errors import UsageError
from dcclctl.events.log import VALID, Block
from dcclctl.models.kind import FitTask, kind_of, size_fields
from dcclctl.models.world import World, world_size
from dcclctl.stages.plan import events_of
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.work import Work


def train(
    dataset: Dataset, settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN, start: CloudModel | None = None
) -> CloudModel:
    """Train a cloud model, and keep the weights of the epoch that ranks valid best (see models/training.py).

    Args:
        dataset: what to train on. settings: see TrainConfig and the model's own section.
        run: how to run. start: train this model further; its kind and sizes stay, and its negatives where none are
            given; its patch basis is not taken over.

    Raises:
        UsageError: a setting that the model does not read; valid or test in `on`; another dataset than that of `start`.
        DataError: the chosen periods have no events. DivergedError: NaN loss.
    """
    inputs = {"dataset": dataset.artifact.as_input()}
    if start is not None:
        _check_start(start, dataset, settings)
        inputs["cloud"] = start.artifact.as_input()
    config = resolve(TrainConfig, {**settings, "model": start.model} if start else settings, run.config)
    if start is not None:
        config = config.model_copy(update={"settings": _as_started(config.settings, start)})
    blocks = [Block.parse(text) for text in config.on]
    if any(block.period >= VALID for block in blocks):
        raise UsageError("--on: the cloud model trains on cloud and device only", "valid decides when to stop.")
    with compute_settings(config, run.remark) as config:
        kind, world = kind_of(config.model), _world(config)
        recorded = config.recorded() | ({"world_size": world.size} if world.size > 1 else {})
        amount = events_of(dataset, blocks) * getattr(config.settings, "epochs", 1)
        store, key = dataset.store, dataset.store.key_of("train", "cloud", recorded, config.seed, inputs)
        device = torch_device(config)

        def task(work: Work) -> FitTask[Any]:
            on_progress = run.on_progress if world.leads else no_progress
            return FitTask(dataset, blocks, config.settings, config.seed, device, work, on_progress, start, world)

        if not world.leads:  # the process of rank 0 has opened the work before they agree
            if not world.agree(0):
                kind.fit(task(store.join("cloud", key)))
                world.agree(0)
            return CloudModel(store.made("cloud", key))
        with store.begin("train", "cloud", recorded, config.seed, inputs, run.force, amount) as work:
            if world.agree(int(work.reused is not None)):
                assert work.reused is not None
                return named(CloudModel(work.reused), run)
            facts = kind.fit(task(work))
            sizes = {name: recorded[config.model][name] for name in size_fields(config.model)}
            work.write_json("model.json", {"model": config.model, **sizes})
            made = work.commit({"id_map": dataset.id_map, **facts})
            world.agree(0)  # from here on the others find it
            return named(CloudModel(made), run)


def _world(config: TrainConfig) -> World:
    """The processes that train the model together.

    Raises:
        UsageError: several processes for a model that one process makes.
    """
    if world_size() > 1 and not kind_of(config.model).can_be_shared:
        raise UsageError(
            f"--model {config.model} is made by one process, and torchrun has started {world_size()}",
            "Run the command without torchrun.",
        )
    return World.join(torch_device(config))


def _as_started(settings: Section, start: CloudModel) -> Section:
    """The settings with the sizes of the model that is trained further, and its negatives where none are given.

    Other negatives would be another loss and another level of the logits.
    """
    recorded = type(kind_of(start.model)).Settings(**start.sizes)
    kept = {name: getattr(recorded, name) for name in start.sizes}
    for name in ("negatives", "shared_negatives"):
        if name in type(settings).model_fields and name not in settings.model_fields_set:
            kept[name] = getattr(start, name) or getattr(settings, name)
    return settings.model_copy(update=kept)


def _check_start(start: CloudModel, dataset: Dataset, settings: Settings) -> None:
    """Refuse what a model that is trained further cannot change."""
    if start.dataset.id != dataset.id:
        raise UsageError(
            f"{start.ref} was trained on {start.dataset.ref}, not on {dataset.ref}", "A model keeps its dataset."
        )
    kept = {"model", *size_fields(start.model)}
    changed = [key for key, value in settings.items() if value is not None and key.rpartition(".")[2] in kept]
    if changed:
        kind = f"{start.ref} is a {start.model}, and"
        raise UsageError(
            f"{kind} a model that is trained further keeps its kind and sizes", f"Leave out {', '.join(changed)}."
        )
