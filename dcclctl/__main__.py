"""The program `dcclctl`, also `python -m dcclctl`."""

import os
from typing import NoReturn

from dcclctl.cli.process import run


def _program() -> int:
    from dcclctl.compute import own_process

    own_process()  # before torch is imported
    from dcclctl.cli.main import app

    try:
        if "_DCCLCTL_COMPLETE" in os.environ:
            from dcclctl.cli.completion import whole_references

            with whole_references():
                app(prog_name="dcclctl")
        app(prog_name="dcclctl")
    except SystemExit as ended:
        stopped = ended.__context__ and ended.__context__.__cause__
        if isinstance(stopped, KeyboardInterrupt):
            raise stopped from None  # outside of a command typer would end without a word
        return int(ended.code or 0)
    return 0


def main() -> NoReturn:
    """Entry point of the console script."""
    run(_program)


if __name__ == "__main__":
    main()
