"""`dcclctl report`: evaluations as one offline page."""

from pathlib import Path
from typing import Annotated

import typer

from dcclctl.cli.console import Reporter
from dcclctl.cli.options import DEFAULT_STORE, JsonOption, QuietOption, StoreOption
from dcclctl.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def report(
    evaluations: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EVALUATION]...", help="What to report. [default: the newest evaluation]"),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE.html", help="Where the page goes; overwritten if it is there."),
    ] = Path("report.html"),
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write evaluations as one offline page.

    For a manager and an engineer alike: headline, groups with intervals, activity picture, who gains and who loses, learning curves, rounds, calibration,
    lineage, configuration and the commands that make it again. The baseline is that of evaluate --against, or the
    first model if none was named. One file without scripts; it loads nothing. It names the few users who lose most.

    \b
    Examples:
      dcclctl report
      dcclctl report evaluation@1 evaluation@2 -o rounds.html
    """
    from dcclctl.artifacts import Evaluation
    from dcclctl.report.html import render
    from dcclctl.stages.report import load_page
    from dcclctl.store.store import Store

    reporter = Reporter(as_json, quiet)
    place = Store(store, remark=reporter.remark)
    chosen = [place.resolve(reference, "evaluation") for reference in evaluations or ["evaluation@latest"]]
    for at, artifact in enumerate(chosen):
        if artifact.id in [other.id for other in chosen[:at]]:
            raise UsageError(f"{artifact.ref} is named twice", "Name each evaluation once.")
    page = render(load_page([Evaluation(artifact) for artifact in chosen])).encode()
    try:
        output.write_bytes(page)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "Name another file with -o.") from error
    reporter.line(f"{output}  {len(page) / 1024:,.0f} KiB, one offline page")
    first = chosen[0]
    reporter.finish(
        first.ref, first.id, False, evaluations=[each.ref for each in chosen], path=str(output), bytes=len(page)
    )
