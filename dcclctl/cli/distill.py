"""`dcclctl distill`: teach the cloud model with the patched models."""

from typing import Annotated, Any

import typer

from dcclctl.cli.console import Reporter
from dcclctl.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    ForceOption,
    JsonOption,
    LogOption,
    QuietOption,
    StoreOption,
    setting,
)
from dcclctl.config import DistillConfig, resolve

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _option(name: str, *flags: str, metavar: str | None = None) -> Any:
    return setting(DistillConfig, name, *flags, metavar=metavar)


@app.command()
def distill(
    patches: Annotated[
        str | None, typer.Option("--patches", metavar="REF", help="The teachers. [default: the newest patches]")
    ] = None,
    beta: Annotated[float | None, _option("beta", metavar="β")] = None,
    on: Annotated[str | None, _option("on", metavar="PERIOD")] = None,
    epochs: Annotated[int | None, _option("epochs", metavar="N")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate", metavar="RATE")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", metavar="RATE")] = None,
    dropout: Annotated[float | None, _option("dropout", metavar="FRACTION")] = None,
    basis_epochs: Annotated[int | None, _option("basis_epochs", metavar="N")] = None,
    basis_learning_rate: Annotated[float | None, _option("basis_learning_rate", metavar="RATE")] = None,
    encoder_size: Annotated[int | None, _option("encoder_size", metavar="N")] = None,
    negatives: Annotated[int | None, _option("negatives", metavar="N")] = None,
    batch_size: Annotated[int | None, _option("batch_size", metavar="N")] = None,
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
    """Teach the cloud model with the patched models.

    MoMoDistill: step 1 trains the cloud weights on the labels and, with weight β, on every user's own patched model. Step 2 freezes
    them and trains the patch basis Θ and the encoder U, which serves users without a patch. The result is a new cloud
    model; the start is the one that the patches belong to.

    \b
    Examples:
      dcclctl distill
      dcclctl distill --patches patches@1 --beta 0.5 --epochs 3
    """
    settings = resolve(
        DistillConfig,
        config,
        beta=beta,
        on=on,
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dropout=dropout,
        basis_epochs=basis_epochs,
        basis_learning_rate=basis_learning_rate,
        encoder_size=encoder_size,
        negatives=negatives,
        batch_size=batch_size,
        device=device,
        threads=threads,
        seed=seed,
    )
    from dcclctl.stages.distill import distill as run
    from dcclctl.stages.handles import PatchSet
    from dcclctl.stages.track import record_of
    from dcclctl.store.store import Store
    from dcclctl.tracking import open_trackers

    trackers = open_trackers(log)
    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    teachers = PatchSet.load(place.resolve(patches or "patches@latest", "patches"), place)
    with reporter.progress() as progress:
        made, reused = run(teachers, settings, place, progress, force)
    for track in trackers:
        reporter.remark(track(record_of(made, place)))
    facts = made.facts
    reporter.line(
        f"{facts['teachers']:,} patched models of {teachers.artifact.ref} taught {teachers.cloud.artifact.ref} "
        f"on {facts['trained_on_events']:,} events of {settings.on} (β = {settings.beta:g}, round {facts['round']})"
    )
    reporter.line(
        f"best valid loss {facts['best_valid_loss']:.4f} after epoch {facts['best_epoch']} of {len(facts['epochs'])}"
        + ("  (no epoch was better than the start)" if facts["best_epoch"] == 0 else "")
    )
    if facts["basis_losses"]:
        losses = facts["basis_losses"]
        reporter.line(f"Θ and encoder U: loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} epochs")
    reporter.finish(
        made.ref,
        made.id,
        reused,
        patches=teachers.artifact.ref,
        cloud=teachers.cloud.artifact.ref,
        teachers=facts["teachers"],
        best_valid_loss=facts["best_valid_loss"],
        round=facts["round"],
    )
