"""`dcclctl distill`: teach the cloud model with the patched models."""

from typing import Annotated

import typer

from dcclctl.cli.console import kept_epoch
from dcclctl.cli.options import Call, command
from dcclctl.distillation.method import METHODS

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "distill")
def distill(
    call: Call,
    patches: Annotated[
        str | None, typer.Option("--patches", metavar="REF", help="The teachers. [default: the newest patches]")
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option(
            "--cloud", metavar="REF", help="Where the student starts. [default: the cloud model under the patches]"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="|".join(METHODS),
            help="What the teachers are asked about. [default: from-memory for memory patches, else momodistill]",
        ),
    ] = None,
) -> None:
    """Teach the cloud model with the patched models.

    --method momodistill is the paper's. Step 1 trains the cloud weights on the labels and, with weight β, on what each
    user's patched model says about the same candidates. Step 2 freezes them and trains the patch basis Θ and the encoder
    U, which serves users without a patch (for patches of another kind step 2 is left out).

    --method from-memory asks the teachers about items that nobody has labelled: devices with a memory have counted the
    labelled events themselves.

    The result is a new cloud model. It starts from the one under the patches, or from --cloud.

    \b
    Examples:
      dcclctl distill
      dcclctl distill --patches patches@1 --method momodistill --beta 0.5 --epochs 3
      dcclctl distill --patches patches@2 --cloud cloud@1 --teachers guarded
    """
    from dcclctl.artifacts import CloudModel, PatchSet
    from dcclctl.cli.tracking import track
    from dcclctl.stages.distill import distill as run

    given = PatchSet(call.store.resolve(patches or "patches@latest", "patches"))
    start = CloudModel(call.store.resolve(cloud, "cloud")) if cloud else given.cloud
    with track(call) as send, call.run() as options:
        made = run(given, call.settings, options, start)
        send(made)
    facts, config, line = made.facts, made.config, call.reporter.line
    own = config[config["method"]]
    who = {
        "unpatched": f"{given.cloud.ref} itself",
        "shuffled": f"{facts['teachers']:,} patched models of {given.ref}, each on another user's events,",
        "guarded": f"{facts['teachers']:,} patched models of {given.ref} that passed the guard",
        "patched": f"{facts['teachers']:,} patched models of {given.ref}",
    }[config["teachers"]]
    asked = f", about {own['unlabelled']:,} unlabelled items per event" if "unlabelled" in own else ""
    line(
        f"{who} taught {start.ref} on {facts['trained_on_events']:,} events of {config['on']}{asked} "
        f"({config['method']}, β = {own['beta']:g}, round {facts['round']})"
    )
    line(kept_epoch(facts))
    if facts["basis_losses"]:
        losses = facts["basis_losses"]
        line(f"Θ and encoder U: loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} epochs")
    if facts["no_basis"]:
        line(f"no Θ and no encoder U: {facts['no_basis']}")
    call.finish(
        made,
        patches=given.ref,
        cloud=start.ref,
        teachers=facts["teachers"],
        best_valid_loss=facts["best_valid_loss"],
        round=facts["round"],
    )
