"""The `dcclctl` command. Each subcommand's file is imported only when it is called, so that --help stays quick."""

import errno
import importlib
import os
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from dcclctl.cli.process import say_stopped, stop_in
from dcclctl.errors import DcclError

#: command → one line for the list; the code is in dcclctl/cli/<command>.py, attribute `app`.
COMMANDS = {
    "sample": "Write a small real log to try the commands on.",
    "init": "Look at a log; write settings for it, a gate and a CI workflow.",
    "ingest": "Read recommendation logs into a dataset.",
    "train": "Train a cloud model on the events of all users.",
    "memory": "Make every device's memory: its user's newest events.",
    "patch": "Learn one small patch per user, from the user's own events.",
    "distill": "Distil the patched models into a better cloud model.",
    "tune": "Find the best settings of train, patch or distill on valid.",
    "evaluate": "Score models side by side, for active and less active users.",
    "report": "Write evaluations as one HTML page that works offline.",
    "recommend": "Recommend items to many users, and write a file.",
    "score": "Show users' recommendations with and without the patch.",
    "export": "Write what a device needs to run a model with patches.",
    "collect": "Make patches of what devices learned and sent back.",
    "serve": "Open a bundle as a web page on this computer.",
    "settings": "List all settings of a command, a model or a method.",
    "audit": "Check that no model was trained on the events it is scored on.",
    "artifacts": "List, check, compare, name, delete and hand on artifacts.",
    "doctor": "Check the installation, this machine and the store.",
}


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and imports one only to run it or to show its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"dcclctl.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # typer's suggestions look at self.commands, which is empty here: give it the names.
        self.commands = {name: TyperCommand(name=name, help=text) for name, text in COMMANDS.items()}
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        try:
            from dcclctl.compute import check_address_space

            check_address_space()
            return super().invoke(ctx)
        except DcclError as error:
            from dcclctl.cli.console import print_error

            print_error(error)
            ctx.exit(error.exit_code)
        except Exception as error:
            if stopped := stop_in(error):
                ctx.exit(say_stopped(stopped))
            # the machine's fault, not a bug: a full disk, a limit, a permission, also where a library says so
            from dcclctl.cli.console import print_error
            from dcclctl.store.disk import REMEDIES, explained, system_error

            limit = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) if isinstance(error, MemoryError) else None
            system = limit or system_error(error)
            if system is None or system.errno not in REMEDIES:
                raise
            where = getattr(system, "filename", None)
            told = explained(system, f"cannot use {os.fsdecode(where)}" if where else "the system refused a request")
            for note in getattr(error, "__notes__", ()):
                told.add_note(note)
            print_error(told)
            ctx.exit(told.exit_code)
        except KeyboardInterrupt as stopped:
            ctx.exit(say_stopped(stopped))


def _print_version(value: bool) -> None:
    if value:
        from dcclctl.version import __version__

        print(f"dcclctl {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Device-Cloud Collaborative Learning on recommendation logs.

    Each command makes one artifact, from the newest artifacts unless others are named:

    \b
      dcclctl ingest LOG && dcclctl train && dcclctl patch && dcclctl evaluate

    The loop of the DCCL paper, MetaPatch and MoMoDistill:

    \b
      dcclctl patch --method metapatch && dcclctl distill --method momodistill
    """


app = typer.Typer(
    cls=LazyGroup,
    name="dcclctl",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.callback()(_root)
