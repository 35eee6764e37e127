"""`dcclctl train`: dataset → cloud model."""

from typing import Annotated

import typer

from dcclctl.cli.console import kept_epoch
from dcclctl.cli.options import Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "train", seeded={"continue_": False})
def train(
    call: Call,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="REF", help="What to train on. [default: the newest dataset]")
    ] = None,
    continue_: Annotated[
        str | None,
        typer.Option("--continue", metavar="REF", help="Train this cloud model further: the control for distill."),
    ] = None,
) -> None:
    """Train a cloud model on the events of all users.

    Keeps the weights of the epoch with the highest AUC on the valid period. A run that was stopped continues after its last
    finished epoch when the same command is typed again, and ends with the same weights.

    Each model has settings of its own: dcclctl settings train --model NAME lists them.

    \b
    Examples:
      dcclctl train
      dcclctl train --epochs 5 --seed 1 --threads 2
      dcclctl train --continue cloud@1 --on device --name fresh
      dcclctl train --seeds 0..4 --name base
      dcclctl train --model ease --on cloud,device --set train.ease.ridge=200
    """
    from dcclctl.artifacts import CloudModel, Dataset
    from dcclctl.errors import UsageError
    from dcclctl.stages.train import train as run

    if continue_ is not None and dataset is not None:
        raise UsageError(
            "--dataset: a model that is trained further keeps its dataset", "Leave --dataset out with --continue."
        )
    start = None if continue_ is None else CloudModel(call.store.resolve(continue_, "cloud"))
    data = start.dataset if start else Dataset(call.store.resolve(dataset or "dataset@latest", "dataset"))
    with call.run() as options:
        made = run(data, call.settings, options, start)
    facts = made.facts
    call.reporter.line(
        f"{made.model}  {facts['parameters']:,} weights  trained on {facts['trained_on_events']:,} events of "
        f"{facts['trained_on_users']:,} users ({','.join(made.config['on'])} of {data.ref})"
    )
    if facts["epochs"]:
        call.reporter.line(kept_epoch(facts))
        if not facts["best_epoch"] and start is None:
            call.reporter.remark(
                "warning: the model has learned nothing: no epoch ranks valid better than random weights do. On a small log try "
                "--batch-size 64 and --patience 0; --model popularity says what is easily reached"
            )
    call.finish(
        made,
        dataset=data.ref,
        best_valid_loss=facts["best_valid_loss"],
        best_valid_auc=facts["best_valid_auc"],
        best_valid_ndcg=facts.get("best_valid_ndcg"),
        best_epoch=facts["best_epoch"],
        epochs=len(facts["epochs"]),
        parameters=facts["parameters"],
    )
