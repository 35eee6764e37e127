"""`dcclctl export`: what a device needs to run a model with patches."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcclctl.cli.options import Call, command

if TYPE_CHECKING:
    from dcclctl.artifacts import Bundle
    from dcclctl.devices.bundle.spec import Measured

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "export")
def export(
    call: Call,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="Patches, or a cloud model. [default: the newest patches]", show_default=False
        ),
    ] = "patches@latest",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PLACE", help="Also write it to a new folder, or to a .zip file."),
    ] = None,
    user: Annotated[
        str,
        typer.Option(
            "--user", metavar="ID", help="With -o: also write user.json, what this user's device alone is sent."
        ),
    ] = "",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure bytes, milliseconds and memory on this machine, on one thread, and what the patches still gain "
            "when they are 1, 2 and 4 blocks of the test period old.",
        ),
    ] = False,
    max_bytes: Annotated[
        int,
        typer.Option(
            "--max-bytes",
            metavar="N",
            min=0,
            help="Exit 4 if a device downloads more; 0: no limit. Measures all but age.",
        ),
    ] = 0,
    max_ms: Annotated[
        float,
        typer.Option(
            "--max-ms",
            metavar="N",
            min=0,
            help="Exit 4 if 300 candidates take longer (95th percentile); 0: no limit. Measures all but age.",
        ),
    ] = 0.0,
) -> None:
    """Write what a device needs to run a model with patches.

    The bundle holds the cloud model with the patch as an ONNX graph, the table of the items, a second graph that learns θ̂
    on the device (MetaPatch), test vectors, and a runner in Python that needs numpy and onnxruntime only. A bundle can be
    evaluated like the patches that it was made from; every score then comes from the exported graph.

    \b
    Examples:
      dcclctl export patches@1 -o bundle/ --user 196
      dcclctl export --items top:5000 --precision int8 --measure
      dcclctl evaluate patches@1 bundle@1 --against patches@1
    """
    from dcclctl.artifacts import CloudModel, PatchSet
    from dcclctl.errors import UsageError
    from dcclctl.stages.chosen import find_users
    from dcclctl.stages.export import check_target, measured, write_bundle
    from dcclctl.stages.export import export as run

    if user and output is None:
        raise UsageError("--user is read with -o only", "Add -o FOLDER.")
    artifact = call.store.resolve(reference)
    if artifact.kind not in ("patches", "cloud"):
        raise UsageError(f"{artifact.ref} cannot be exported", "Name patches or a cloud model.")
    model = PatchSet(artifact) if artifact.kind == "patches" else CloudModel(artifact)
    if output is not None:  # before the work
        check_target(output)
    if user:
        data = (model.cloud if isinstance(model, PatchSet) else model).dataset
        find_users(data.users, data.ref, [user])
    with call.run() as options:
        made = run(model, call.settings, options)
        wanted = measure or max_bytes or max_ms
        budget = measured(made, max_bytes, max_ms, measure, options) if wanted else None
    _show(call, made, budget)
    if output is not None:
        write_bundle(made, output, user, budget)
        call.reporter.line(f"written to {output}")
    call.finish(made, bytes=made.spec["bytes"], **({} if budget is None else {"measured": budget.model_dump()}))


def _show(call: Call, made: "Bundle", budget: "Measured | None") -> None:
    from dcclctl.report.bundle import AGES, age_rows, cost_rows
    from dcclctl.report.comparison import new_table

    facts, line = made.facts, call.reporter.line
    size = made.spec["bytes"]
    line(
        f"{facts['items']:,} items of {made.spec['items']['of']:,}, {facts['bytes_per_item']:,} bytes each in "
        f"{made.spec['precision']}; graphs and basis {size['shared']:,} bytes; at most {size['user']:,} bytes of its user on a device"
    )
    if "program" in made.spec:
        line(
            f"device.pte for ExecuTorch {made.spec['program']['version']}: {made.spec['files']['device.pte']['bytes']:,} bytes, "
            "its golden vectors are right"
        )
    if made.spec["short_rings"]:
        line(
            f"{made.spec['short_rings']:,} users have more events in their newest {made.spec['sizes']['history']} baskets "
            f"than a device's ring of {made.spec['sizes']['ring']:,} holds; their devices read fewer baskets"
        )
    if budget is None:
        return
    for what, figures in cost_rows(budget):
        line(f"{what}: {figures}")
    if budget.staleness:
        table = new_table("What the patches gain, block after block of the test period", AGES[0], AGES[1:])
        for row in age_rows(budget.staleness):
            table.add_row(*row)
        call.reporter.table(table)
