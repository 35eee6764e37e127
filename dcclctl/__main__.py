"""The program `dcclctl`, also `python -m dcclctl`."""

import _signal as signal  # type: ignore[import-not-found]  # built in; `signal` loads enum, where Ctrl-C is a traceback
import os


def main() -> None:
    """Entry point of the console script. From its first line on, a signal is no traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # not if the caller ignores it
            signal.signal(number, _end)
    from dcclctl.cli.process import run

    run(_program)


def _end(number: int, frame: object) -> None:
    """End at once: nothing is begun yet, and what is raised inside an import may be lost there."""
    try:
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        os.write(2, f"\n{word}: nothing was begun\n".encode())
    finally:
        os._exit(128 + number)


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


if __name__ == "__main__":
    main()
