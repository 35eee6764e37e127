"""`dcclctl distill`: teach the cloud model with the patched models."""

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
    cloud: Annotated[
        str | None,
        typer.Option(
            "--cloud", metavar="REF", help="Where the student starts. [default: the cloud model under the patches]"
        ),
    ] = None,
    lesson: Annotated[
        str | None,
        typer.Option(
            "--lesson",
            metavar="events|unlabelled",
            help=f"{DistillConfig.model_fields['lesson'].description} [default: unlabelled for patches that remember, else events]",
        ),
    ] = None,
    unlabelled: Annotated[int | None, _option("unlabelled", metavar="N")] = None,
    lesson_short: Annotated[float | None, _option("lesson_short", metavar="FRACTION")] = None,
    teachers: Annotated[str | None, _option("teachers", metavar="patched|unpatched|shuffled|guarded")] = None,
    evidence: Annotated[bool | None, _option("evidence", "--evidence/--no-evidence")] = None,
    epochs: Annotated[int | None, _option("epochs", metavar="N")] = None,
    patience: Annotated[int | None, _option("patience", metavar="N")] = None,
    criterion: Annotated[str | None, _option("criterion", metavar="loss|auc")] = None,
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
    them and trains the patch basis Θ and the encoder U, which serves users without a patch (step 2 is left out for
    patches of a kind that has no Θ). The result is a new cloud model; the start is the one that the patches belong to,
    or --cloud: the teachers may stand on a newer, larger or quite another model than the student.

    Devices with a memory have counted the events that they would teach. So they are asked about other items, which
    nobody has labelled (--lesson unlabelled).

    \b
    Examples:
      dcclctl distill
      dcclctl distill --patches patches@1 --lesson events --beta 0.5 --epochs 3
      dcclctl distill --patches patches@2 --cloud cloud@1 --teachers guarded --evidence
    """
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    teaching = place.resolve(patches or "patches@latest", "patches")
    settings = resolve(
        DistillConfig,
        config,
        {"lesson": "unlabelled" if "memory" in teaching.inputs else "events"},
        beta=beta,
        on=on,
        lesson=lesson,
        unlabelled=unlabelled,
        lesson_short=lesson_short,
        teachers=teachers,
        evidence=evidence,
        epochs=epochs,
        patience=patience,
        criterion=criterion,
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
    from dcclctl.stages.handles import CloudModel, PatchSet
    from dcclctl.stages.track import record_of
    from dcclctl.tracking import open_trackers

    trackers = open_trackers(log)
    given = PatchSet.load(teaching, place)
    start = CloudModel.load(place.resolve(cloud, "cloud"), place) if cloud else given.cloud
    with reporter.progress() as progress:
        made, reused = run(given, settings, place, progress, force, start)
    for track in trackers:
        reporter.remark(track(record_of(made, place)))
    facts = made.facts
    who = (
        f"{given.cloud.artifact.ref} itself"
        if settings.teachers == "unpatched"
        else (f"{facts['teachers']:,} patched models of {given.artifact.ref}")
    )
    how = {"shuffled": ", each on another user's events,", "guarded": ", those that passed the guard,"}
    trusted = f", mean weight {facts['mean_trust']:.2f}" if facts["mean_trust"] < 1 else ""
    asked = f", about {settings.unlabelled:,} unlabelled items an event" if settings.lesson == "unlabelled" else ""
    reporter.line(
        f"{who}{how.get(settings.teachers, '')} taught {start.artifact.ref} on {facts['trained_on_events']:,} events "
        f"of {settings.on}{asked} (β = {settings.beta:g}{trusted}, round {facts['round']})"
    )
    reporter.line(kept_epoch(facts, settings.criterion))
    if facts["basis_losses"]:
        losses = facts["basis_losses"]
        reporter.line(f"Θ and encoder U: loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} epochs")
    if facts["no_basis"]:
        reporter.line(f"no Θ and no encoder U: {facts['no_basis']}")
    reporter.finish(
        made.ref,
        made.id,
        reused,
        patches=given.artifact.ref,
        cloud=start.artifact.ref,
        teachers=facts["teachers"],
        best_valid_loss=facts["best_valid_loss"],
        round=facts["round"],
    )
