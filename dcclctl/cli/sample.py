"""`dcclctl sample`: a log to try the commands on."""

from pathlib import Path
from typing import Annotated

import typer

from dcclctl.cli.console import print_json
from dcclctl.cli.options import Call, command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, "sample", shared=("as_json", "quiet"))
def sample(
    call: Call,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write the files; it is made if it is not there.")
    ] = Path("dcclctl-sample"),
) -> None:
    """Write a small real log to try the commands on.

    190,000 purchases of 697 households, with a README of the commands to type next. Nothing is fetched from the network, and
    no file is overwritten.

    \b
    Example:
      dcclctl sample
      dcclctl sample groceries
    """
    from dcclctl.stages.sample import NEXT, write_sample

    files = write_sample(folder)
    if call.reporter.as_json:
        print_json({"folder": str(folder), "files": [file.name for file in files], "next": list(NEXT)})
    elif call.reporter.quiet:
        print(folder)
    else:
        call.reporter.line(f"{folder}  {len(files)} files. Next:")
        call.reporter.line(f"  cd {folder}")
        for each in NEXT:
            call.reporter.line(f"  {each}")
