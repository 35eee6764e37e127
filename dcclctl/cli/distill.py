"""`dcclctl distill`: patched models → a better cloud model."""

from typing import Annotated

import typer

from dcclctl.cli.console import kept_epoch
from dcclctl.cli.options import Call, command
from dcclctl.distillation.method import METHODS

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "distill", seeded={"patches": True, "cloud": False})
def distill(
    call: Call,
    patches: Annotated[
        str | None, typer.Option("--patches", metavar="REF", help="Patches that teach. [default: the newest]")
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option("--cloud", metavar="REF", help="Cloud model to improve. [default: the one under the patches]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="|".join(METHODS),
            help="Which items the teachers score. [default: from-memory for memory patches, else momodistill]",
        ),
    ] = None,
) -> None:
    """Distil the patched models into a better cloud model.

    --method momodistill is the distillation of the DCCL paper. Step 1 trains the cloud weights on the labels and, with weight
    β, on the predictions of each user's patched model (the teacher) for the same candidates. Step 2 freezes the cloud weights
    and trains the patch basis Θ and the encoder U, which serves users without a patch; it is done for patches of --method
    metapatch only.

    --method from-memory asks the teachers to rank items without a label, because devices with a memory have already counted
    the labelled events. For each event the student learns the teacher's order of three kinds of items: those that the teacher
    ranks highest, some that the cloud model ranks high and the teacher does not, and some of all others.

    The result is a new cloud model, trained further from the one under the patches or from --cloud.

    \b
    Examples:
      dcclctl distill
      dcclctl distill --patches patches@1 --method momodistill --beta 0.5 --epochs 3
      dcclctl distill --patches patches@2 --cloud cloud@1 --teachers guarded
      dcclctl distill --patches patches@mine --seeds 0..4 --name taught
    """
    from dcclctl.artifacts import CloudModel, PatchSet
    from dcclctl.stages.distill import distill as run

    given = PatchSet(call.store.resolve(patches or "patches@latest", "patches"))
    start = CloudModel(call.store.resolve(cloud, "cloud")) if cloud else given.cloud
    with call.run() as options:
        made = run(given, call.settings, options, start)
    facts, config, line = made.facts, made.config, call.reporter.line
    own = config[config["method"]]
    who = {
        "unpatched": f"{given.cloud.ref} without patches",
        "shuffled": f"{facts['teachers']:,} patched models of {given.ref}, each on the events of another user,",
        "guarded": f"{facts['teachers']:,} patched models of {given.ref} that passed the guard",
        "patched": f"{facts['teachers']:,} patched models of {given.ref}",
    }[config["teachers"]]
    asked = f" and {own['highest'] + 2 * own['others']:,} unlabelled items per event" if "highest" in own else ""
    if not own["beta"]:
        who, asked = "labels alone, without teachers,", ""
    line(
        f"{who} taught {start.ref} on {facts['trained_on_events']:,} events of {config['on']}{asked} "
        f"({config['method']}, β = {own['beta']:g}, round {facts['round']})"
    )
    line(kept_epoch(facts))
    losses = facts["basis_losses"]
    if losses:
        line(f"Θ and encoder U: loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} epochs")
    if facts["no_basis"]:
        line(f"Θ and encoder U were not trained: {facts['no_basis']}")
    call.finish(
        made,
        patches=given.ref,
        cloud=start.ref,
        teachers=facts["teachers"],
        best_valid_loss=facts["best_valid_loss"],
        best_valid_auc=facts["best_valid_auc"],
        best_valid_ndcg=facts.get("best_valid_ndcg"),
        round=facts["round"],
    )
