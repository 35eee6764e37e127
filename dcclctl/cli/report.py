"""`dcclctl report`: evaluations as one HTML page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcclctl.cli.options import LOOKS, Call, command
from dcclctl.errors import UsageError

if TYPE_CHECKING:
    from dcclctl.cli.console import Progress
    from dcclctl.store.store import Artifact

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "report", shared=LOOKS)
def report(
    call: Call,
    evaluations: Annotated[
        list[str] | None, typer.Argument(metavar="EVALUATION", help="What to report. [default: the newest evaluation]")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.html", help="The page; a file of that name is overwritten.")
    ] = Path("report.html"),
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", metavar="FOLDER", help="Also show what dcclctl export --measure -o FOLDER found of a bundle."
        ),
    ] = None,
) -> None:
    """Write evaluations as one HTML page that works offline.

    The page shows the verdict, metrics by user group with intervals, metrics by activity, who gains and who loses, learning
    curves, rounds of distillation, calibration, lineage, configuration, and the commands that make it all again. It
    compares with the baseline of evaluate --against, or with the first model. It is one file without scripts that loads
    nothing from the network. It names the few users who lose most.

    \b
    Examples:
      dcclctl report
      dcclctl report evaluation@1 evaluation@2 -o rounds.html
      dcclctl report --bundle device
    """
    with call.working() as progress:
        chosen, page = _page(call, evaluations or ["evaluation@latest"], bundle, progress)
    try:
        output.write_bytes(page)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "Name another file with -o.") from error
    call.reporter.line(f"{output}  {len(page) / 1024:,.0f} KiB, one HTML page that works offline")
    call.finish(chosen[0], evaluations=[each.ref for each in chosen], path=str(output), bytes=len(page))


def _page(
    call: Call, references: list[str], bundle: Path | None, progress: "Progress"
) -> "tuple[list[Artifact], bytes]":
    """The evaluations, and the page about them."""
    from dcclctl.artifacts import Evaluation
    from dcclctl.report.html import render
    from dcclctl.stages.report import load_page

    chosen = [call.store.resolve(reference, "evaluation") for reference in references]
    for at, artifact in enumerate(chosen):
        if artifact.id in [other.id for other in chosen[:at]]:
            raise UsageError(f"{artifact.ref} is named twice", "Name each evaluation once.")
    progress("read", 0, 0)
    content = load_page([Evaluation(artifact) for artifact in chosen], bundle)
    progress("draw", 0, 0)
    return chosen, render(content).encode()
