"""Write docs/cli.md from the commands and their settings: `python docs/make_cli.py`. A test holds the page current."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dcclctl.cli.main import COMMANDS, app
from dcclctl.cli.settings import listed
from dcclctl.config import has_flag
from dcclctl.logs.format import FORMATS
from dcclctl.stages.settings import COMMANDS as WITH_SETTINGS
from dcclctl.stages.settings import variant_section

PAGE = Path(__file__).parent / "cli.md"
#: explained once, at the top
SHARED = (
    "--set",
    "--config",
    "--name",
    "--track",
    "--store",
    "--json",
    "--quiet",
    "--force",
    "--plan",
    "--seed",
    "--device",
    "--threads",
)

INTRODUCTION = """# Commands and settings

*Made by `python docs/make_cli.py` from the commands and their settings. `dcclctl COMMAND --help` and `dcclctl settings COMMAND` say the same.*

Each command reads committed artifacts of a store and commits one new artifact. An artifact is named by kind and number (`cloud@7`), by
the start of its id (`cloud@3fa9c2d1`), by an alias (`cloud@fresh`, given with `--name` or `artifacts tag`), or as the newest of its kind
(`cloud@latest`, or just `cloud`). A command that is not told which artifact to take takes the newest.

A setting comes from its default, from a TOML file (`--config`, or else `dccl.toml` in the working directory), from an environment variable, or from
a flag or `--set`. A later one wins over an earlier one. A flag or `--set` that the chosen model or method does not read is an error; in a file and in variables it is left aside. Settings without a flag are changed with `--set COMMAND.KEY=VALUE` or `--set COMMAND.NAME.KEY=VALUE`, or in the file:

```toml
# dccl.toml: found in the working directory; dcclctl init LOG writes one for a log
seed = 1                    # of every command

[train]
on = ["cloud", "device"]

[train.din]
epochs = 5
item_size = 64

[patch]
users = "tail"

[patch.metapatch]
steps = 20
```

A variable is the setting's name in capitals: `DCCL_SEED=1`, `DCCL_TRAIN_ON=cloud,device`, `DCCL_TRAIN_EPOCHS=3` (of the chosen model),
`DCCL_TRAIN_DIN_ITEM_SIZE=64`, `DCCL_PATCH_FINE_TUNE_STEPS=20`. A command says on stderr which file and variables it read. An unknown name is an error where it begins with the
command's own name, else a warning. Python programs read neither file nor variables unless they name the file: `train(data, config="dccl.toml")`.

Results go to stdout, progress and remarks to stderr. Exit codes: 0 done · 1 a bug · 2 usage or configuration · 3 bad data or artifact ·
4 a gate failed or training diverged · 5 stdout could not be written · 130 interrupted · 141 the reader of stdout went away · 143 terminated.

`--plan` on a command that makes an artifact says what would be reused and what made, with estimated time and memory, and does nothing. The
estimates come from earlier runs in the store; without any, from general figures.

`dcclctl --install-completion` teaches the shell's Tab key the commands, models, methods and devices, and the references and names in the store.

A phase that lasts shows what is done, its fraction, rate and time left: as a bar on a terminal, elsewhere as a line on stderr every 30 seconds.

## Options of several commands

"""


def page() -> str:
    """The text of docs/cli.md."""
    group = typer.main.get_command(app)
    commands = {name: group.get_command(typer.Context(group), name) for name in COMMANDS}  # type: ignore[attr-defined]
    common = shared_options(commands)
    meanings = {flag: option.help for option in common for flag in option.opts}
    parts = [INTRODUCTION + table(option_row(each) for each in common)]
    for name, command in commands.items():
        parts.append(f"## {name}\n\n{about(command)}")
        for sub, own in getattr(command, "commands", {}).items():
            parts.append(f"### {name} {sub}\n\n{about(own)}{parameters(own, meanings)}")
        if not hasattr(command, "commands"):
            parts.append(parameters(command, meanings).lstrip())
        if name == "ingest":
            rows = ((f"`{key}`", each.about) for key, each in FORMATS.items())
            parts.append("Formats (`--format`):\n\n" + table(rows, ("format", "files")))
        if name in WITH_SETTINGS:
            parts.append(settings_of(name))
    return "\n".join(part.strip("\n") + "\n" for part in parts if part.strip())


def settings_of(name: str) -> str:
    """Settings without a flag, and those of every model or method."""
    command = WITH_SETTINGS[name]
    rare = [
        row for row in listed(name, command.section) if not has_flag(command.own[row["key"].removeprefix(f"{name}.")])
    ]
    text = ""
    if rare:
        text += (
            "Settings without a flag:\n\n"
            + table(map(setting_row, rare), ("setting", "default", "values", "meaning"))
            + "\n"
        )
    if not command.variants:
        return text
    for variant, each in command.variants.items():
        rows = map(setting_row, listed(f"{name}.{variant}", variant_section(name, variant)))
        text += f"### {name} --{command.choice} {variant}\n\n{each.about[0].upper()}{each.about[1:]}.\n\n"
        text += table(rows, ("setting", "default", "values", "meaning")) + "\n"
    return text


def shared_options(commands: dict[str, Any]) -> list[Any]:
    """The options of SHARED, each with the help that most commands give it."""
    found: dict[str, list[Any]] = {flag: [] for flag in SHARED}
    for command in commands.values():
        for option in getattr(command, "params", []):
            for flag in set(option.opts) & set(SHARED):
                found[flag].append(option)
    helps = {flag: Counter(option.help for option in options) for flag, options in found.items()}
    usual = {flag: counts.most_common(1)[0][0] for flag, counts in helps.items()}
    return [next(option for option in found[flag] if option.help == usual[flag]) for flag in SHARED]


def about(command: Any) -> str:
    """A command's docstring as Markdown: paragraphs, and its examples in a block."""
    text, _, examples = (command.help or "").replace("\b\n", "").partition("Examples:\n")
    if not examples:
        text, _, examples = text.partition("Example:\n")
    paragraphs = "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))
    lines = [f"$ {line.strip()}" for line in examples.splitlines() if line.strip()]
    return paragraphs + "\n" + ("\n```console\n" + "\n".join(lines) + "\n```\n" if lines else "")


def parameters(command: Any, meanings: dict[str, str]) -> str:
    """Arguments and options of a command as a table, and which of the shared options it has.

    Args:
        meanings: what each shared option means; one that means something else here is in the table.
    """
    elsewhere = [
        each for each in command.params if any(flag in meanings and meanings[flag] == each.help for flag in each.opts)
    ]
    own = [each for each in command.params if each not in elsewhere and "--help" not in each.opts]
    shared = [flag for flag in SHARED if any(flag in each.opts for each in elsewhere)]
    text = "\n" + table(option_row(each) for each in own) if own else ""
    return text + ("\nAlso: " + ", ".join(f"`{flag}`" for flag in shared) + ".\n" if shared else "")


def option_row(option: Any) -> tuple[str, str]:
    flags = [*option.opts, *option.secondary_opts] if option.param_type_name == "option" else []
    name = ", ".join(flags)
    metavar = (option.metavar or "") + ("..." if not flags and option.nargs != 1 else "")
    required = " Required." if option.required else ""
    return f"`{' '.join([name, metavar]).strip()}`", (option.help or "") + required


def setting_row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return f"`{row['key']}`", f"`{row['default']}`" if row["default"] else "", row["values"], row["meaning"]


def table(rows: Iterator[tuple[str, ...]] | Any, title: tuple[str, ...] = ("option", "meaning")) -> str:
    """A Markdown table."""
    lines = [title, tuple("---" for _ in title), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |\n" for row in lines
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
