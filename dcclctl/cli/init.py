"""`dcclctl init`: look at a log, and write settings, a gate and a workflow for it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dcclctl.cli.console import print_json
from dcclctl.cli.options import Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "init", shared=("as_json", "quiet"))
def init(
    call: Call,
    source: Annotated[
        Path, typer.Argument(metavar="LOG", help="A log as for ingest; its first records are looked at.")
    ],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the files go.")] = Path(),
    columns: Annotated[
        str | None, typer.Option("--map", metavar="NAME=COLUMN,…", help="Columns that it does not find, as for ingest.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Look at a log; write settings for it, a gate and a CI workflow.

    Writes dccl.toml (columns, unit of time, label rule, repeats and split, each with the reason for it), gate.toml (how much
    a new model may be worse) and .github/workflows/dcclctl-gate.yml. Commands find dccl.toml in the working directory.

    \b
    Examples:
      dcclctl init clicks.csv
      dcclctl init clicks.csv --map user=uid,item=sku,time=ts --dir recommender
    """
    from dcclctl.config import IngestConfig
    from dcclctl.stages.init import init as run
    from dcclctl.stages.settings import resolve

    given = resolve(IngestConfig, {"map": columns}).map
    written = run(source, folder, given, overwrite)
    if call.reporter.as_json:
        print_json({"files": [str(path) for path in written]})
    for path in written:
        call.reporter.line(f"wrote {path}")
    settings, gate = written[:2]
    place = "" if folder.resolve() == Path.cwd() else f" --config {shlex.quote(str(settings))}"
    call.reporter.line(f"Read {settings}, correct what is wrong, then:")
    call.reporter.line(f"  dcclctl ingest {shlex.quote(str(source))}{place}")
    call.reporter.line(f"  dcclctl train{place} --name release")
    call.reporter.line(f"  dcclctl train{place} --seed 1 --name candidate")
    call.reporter.line(
        f"  dcclctl evaluate cloud@candidate{place} --against cloud@release --gate {shlex.quote(str(gate))}"
    )
