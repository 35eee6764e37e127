"""`dcclctl train`: dataset → cloud model."""

from typing import Annotated, Any

import typer

from dcclctl.cli.console import Reporter, kept_epoch
from dcclctl.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    ForceOption,
    JsonOption,
    LogOption,
    QuietOption,
    StoreOption,
    setting,
    split_commas,
)
from dcclctl.config import TrainConfig, resolve
from dcclctl.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(TrainConfig, name, *flags, metavar=metavar)


@app.command()
def train(
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="REF", help="What to train on. [default: the newest dataset]")
    ] = None,
    continue_: Annotated[
        str | None,
        typer.Option("--continue", metavar="REF", help="Train this cloud model further (the incremental control)."),
    ] = None,
    model: Annotated[str | None, _option("model", metavar="NAME")] = None,
    on: Annotated[str | None, _option("on", metavar="PERIOD,…")] = None,
    history: Annotated[int | None, _option("history", metavar="L")] = None,
    item_size: Annotated[int | None, _option("item_size", metavar="N")] = None,
    category_size: Annotated[int | None, _option("category_size", metavar="N")] = None,
    profile_size: Annotated[int | None, _option("profile_size", metavar="N")] = None,
    attention_size: Annotated[int | None, _option("attention_size", metavar="N")] = None,
    hidden_sizes: Annotated[str | None, _option("hidden_sizes", metavar="N,N")] = None,
    negatives: Annotated[int | None, _option("negatives", metavar="N")] = None,
    epochs: Annotated[int | None, _option("epochs", metavar="N")] = None,
    patience: Annotated[int | None, _option("patience", metavar="N")] = None,
    criterion: Annotated[str | None, _option("criterion", metavar="loss|auc")] = None,
    batch_size: Annotated[int | None, _option("batch_size", metavar="N")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", metavar="RATE")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", metavar="RATE")] = None,
    dropout: Annotated[float | None, _option("dropout", metavar="FRACTION")] = None,
    newest: Annotated[float | None, _option("newest", metavar="SHARE")] = None,
    neighbours: Annotated[int | None, _option("neighbours", metavar="N")] = None,
    shrinkage: Annotated[float | None, _option("shrinkage", metavar="NUMBER")] = None,
    ridge: Annotated[float | None, _option("ridge", metavar="λ")] = None,
    device: Annotated[str | None, _option("device", metavar="auto|cpu|cuda|mps")] = None,
    threads: Annotated[int | None, _option("threads", metavar="N")] = None,
    seed: Annotated[int | None, _option("seed", metavar="N")] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Train the cloud model on everybody's log.

    The weights of the epoch that ranks best on valid are kept. A run that is stopped continues at the last finished
    epoch when the same command is typed again, and ends with the same weights.

    A default below that names no model is everybody's. Some baselines cannot be patched: popularity, recent,
    gp-topfreq, item-knn and ease are counted (the last three read a user's whole history), bpr, fm and neumf know a
    user by a vector.

    \b
    Examples:
      dcclctl train
      dcclctl train --epochs 5 --seed 1 --threads 2
      dcclctl train --continue cloud@1 --on device
      dcclctl train --model ease --on cloud,device
    """
    sizes = {
        "model": model,
        "history": history,
        "item_size": item_size,
        "category_size": category_size,
        "profile_size": profile_size,
        "attention_size": attention_size,
        "hidden_sizes": split_commas(hidden_sizes),
    }
    given = [f"--{name.replace('_', '-')}" for name, value in sizes.items() if value is not None]
    if continue_ is not None and given:
        raise UsageError(f"{', '.join(given)}: a continued model keeps its sizes", "Leave them out with --continue.")
    if continue_ is not None and dataset is not None:
        raise UsageError("--dataset: a continued model keeps its dataset", "Leave it out with --continue.")
    settings = resolve(
        TrainConfig,
        config,
        **sizes,
        on=split_commas(on),
        negatives=negatives,
        epochs=epochs,
        patience=patience,
        criterion=criterion,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dropout=dropout,
        newest=newest,
        neighbours=neighbours,
        shrinkage=shrinkage,
        ridge=ridge,
        device=device,
        threads=threads,
        seed=seed,
    )
    from dcclctl.stages.handles import CloudModel, Dataset
    from dcclctl.stages.track import record_of
    from dcclctl.stages.train import train as run
    from dcclctl.store.store import Store
    from dcclctl.tracking import open_trackers

    trackers = open_trackers(log)
    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    parent = None if continue_ is None else CloudModel.load(place.resolve(continue_, "cloud"), place)
    data = parent.dataset if parent else Dataset(place.resolve(dataset or "dataset@latest", "dataset"))
    with reporter.progress() as progress:
        made, reused = run(data, settings, place, progress, force, parent)
    for track in trackers:
        reporter.remark(track(record_of(made, place)))
    facts = made.facts
    epochs_done = len(facts["epochs"])
    best = facts["best_epoch"]
    reporter.line(
        f"{made.config['model']}  {facts['parameters']:,} weights  trained on {facts['trained_on_events']:,} events of "
        f"{facts['trained_on_users']:,} users ({','.join(settings.on)} of {data.artifact.ref})"
    )
    if epochs_done:
        reporter.line(kept_epoch(facts, settings.criterion))
    reporter.finish(
        made.ref,
        made.id,
        reused,
        dataset=data.artifact.ref,
        best_valid_loss=facts["best_valid_loss"],
        best_epoch=best,
        epochs=epochs_done,
        parameters=facts["parameters"],
    )
