"""Command lines with a mistake: the exit code, what is wrong, what to type instead, and never a traceback."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from world import World, dcclctl

from dcclctl.cli.main import COMMANDS, app

#: words of the command line, exit code, what stderr must say
BAD = [
    # flags, commands and values that do not exist
    (["trian"], 2, ["No such command 'trian'", "train"]),
    (["train", "--epoch=3"], 2, ["--epoch", "--epochs"]),
    (["train", "--epochs=many"], 2, ["--epochs", "valid integer", "train -h"]),
    (["train", "--epochs=0"], 2, ["--epochs", "greater than or equal to 1", "dcclctl train --help"]),
    (["train", "--dropout=1"], 2, ["--dropout", "less than 1"]),
    (["train", "--learning-rate=0"], 2, ["--learning-rate"]),
    (["train", "--learning-rate=1e39"], 2, ["--learning-rate"]),
    (["train", "--learning-rate=nan"], 2, ["--learning-rate"]),
    (["train", "--hidden-sizes=64"], 2, ["--hidden-sizes"]),
    (["train", "--hidden-sizes=64,x"], 2, ["--hidden-sizes", "'x'"]),
    (["train", "--model=dine"], 2, ["--model", "'din'"]),
    (["train", "--on="], 2, ["--on"]),
    (["train", "--on=test"], 2, ["--on", "give cloud, device"]),
    (["train", "--on=device:3/2"], 2, ["there is no part 3 of 2"]),
    (["train", "--on=tuesday"], 2, ["--on", "device:2/3", "'tuesday'"]),
    (["train", "--seed=-1"], 2, ["--seed"]),
    (["train", "--threads=-2"], 2, ["--threads"]),
    (["train", "--device=tpu"], 2, ["--device", "'auto', 'cpu'"]),
    (["train", "surplus"], 2, ["surplus"]),
    (["patch", "--held-back=2"], 2, ["--held-back"]),
    (["patch", "--method=magic"], 2, ["--method", "metapatch"]),
    (["patch", "--on=test"], 2, ["--on"]),
    (["distill", "--beta=-1"], 2, ["--beta"]),
    (["evaluate", "--k=5,x"], 2, ["--k", "'x'"]),
    (["evaluate", "--k="], 2, ["--k", "at least 1"]),
    (["evaluate", "--k=0"], 2, ["--k"]),
    (["evaluate", "--candidates=some"], 2, ["--candidates", "all, auto, or a number"]),
    (["evaluate", "--candidates=0"], 2, ["--candidates", "all, auto, or a number"]),
    (["evaluate", "--candidates=-5"], 2, ["--candidates", "all, auto, or a number"]),
    (["evaluate", "--unpatched=nobody"], 2, ["--unpatched", "'encoder' or 'cloud'"]),
    (["score", "patches"], 2, ["--user"]),
    (["score", "--user=u1"], 2, ["REF"]),
    (["score", "patches", "--user=u1", "--top=0"], 2, ["--top"]),
    # references
    (["train", "--dataset=dataset@9"], 2, ["there is no dataset@9", "dataset@1"]),
    (["train", "--dataset=cloud@1"], 2, ["is of kind cloud, but dataset is needed here", "dataset@1"]),
    (["train", "--continue=patches@1"], 2, ["cloud is needed here", "cloud@1, cloud@2"]),
    (["patch", "--cloud=cluod@1"], 2, ["cloud@1"]),
    (["patch", "--cloud=cloud@best"], 2, ["there is no cloud@best", "cloud@1, cloud@2"]),
    (["distill", "--patches=cloud@2"], 2, ["patches is needed here", "patches@1"]),
    (["evaluate", "dataset"], 2, ["cannot be evaluated", "patches"]),
    (["evaluate", "cloud@1", "cloud@1"], 2, ["named twice"]),
    (["evaluate", "cloud@17"], 2, ["there is no cloud@17", "cloud@1, cloud@2"]),
    (["evaluate", "cloud@1+encoder"], 2, ["has no encoder", "dcclctl distill"]),
    (["score", "evaluation", "--user=u1"], 2, ["evaluation cannot be"]),
    (["score", "patches", "--user=u1000"], 2, ["no user 'u1000'", "u"]),
    # contradictions
    (["train", "--continue=cloud@1", "--history=4"], 2, ["--history", "Leave them out"]),
    (["ingest", "x.csv", "--implicit", "--label=rating>=4"], 2, ["contradict"]),
    (["ingest", "nowhere.csv"], 2, ["nowhere.csv"]),
    # configuration files
    (["train", "--config=nowhere.toml"], 2, ["nowhere.toml", "--config"]),
    (["train", "--config=/"], 2, ["--config"]),
]


@pytest.mark.parametrize(("words", "code", "messages"), BAD, ids=[" ".join(words) for words, _, _ in BAD])
def test_mistakes(world: World, words: list[str], code: int, messages: list[str]) -> None:
    before = sorted(world.root.glob("*/v/*"))
    result = dcclctl(*words, store=world.root)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for message in messages:
        assert message in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(world.root.glob("*/v/*")) == before


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (["train"], "dcclctl ingest LOG"),
        (["patch"], "dcclctl train"),
        (["distill"], "dcclctl patch"),
        (["evaluate"], "dcclctl train"),
        (["score", "patches", "--user=1"], "dcclctl patch"),
    ],
)
def test_an_empty_store_says_what_comes_first(tmp_path: Path, command: list[str], first: str) -> None:
    result = dcclctl(*command, store=tmp_path / "none")
    assert result.exit_code == 2
    assert f"Run first: {first}" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_store_that_is_a_file(tmp_path: Path, world: World) -> None:
    (tmp_path / "store").write_text("not a folder")
    for command in (["train"], ["ingest", str(world.log)]):
        result = dcclctl(*command, store=tmp_path / "store")
        assert result.exit_code in (2, 3)
        assert "error:" in result.stderr and str(tmp_path / "store") in result.stderr


def commands(name: str) -> dict[str, Any]:
    """Command and subcommand names → typer's commands."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="dcclctl")
    command = group.get_command(context, name)  # type: ignore[attr-defined]
    inner = getattr(command, "commands", None)
    return {f"{name} {sub}": found for sub, found in inner.items()} if inner else {name: command}


EVERY = {name: command for top in COMMANDS for name, command in commands(top).items()}


def flags_of(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("name", EVERY)
def test_help_has_an_example_with_flags_that_exist(name: str) -> None:
    shown = dcclctl(*name.split(), "--help")
    assert shown.exit_code == 0
    examples = [line.strip() for line in shown.stdout.splitlines() if line.strip().startswith("dcclctl ")]
    assert examples
    assert any(example.startswith(f"dcclctl {name}") for example in examples)
    for example in examples:
        words = shlex.split(example, comments=True)[1:]
        width = 2 if words[0] == "artifacts" else 1
        command = EVERY[" ".join(words[:width])]
        used = {word.partition("=")[0] for word in words[width:] if re.match(r"--?[a-z]", word)}
        assert used <= flags_of(command), example


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    """The list is kept apart from the commands, so that no command is imported to show it."""
    if name == "artifacts":
        return
    assert COMMANDS[name] == (EVERY[name].help or "").strip().splitlines()[0]


@pytest.mark.parametrize("name", ["ingest", "train", "patch", "distill", "evaluate"])
def test_every_setting_is_a_flag_with_its_default_in_the_help(name: str) -> None:
    from dcclctl.config import SECTIONS

    shown = " ".join(dcclctl(name, "--help").stdout.split())
    for field, info in SECTIONS[name].model_fields.items():
        flag = f"--{field.replace('_', '-')}"
        assert flag in flags_of(EVERY[name]), flag
        assert " ".join((info.description or "").split()[:4]) in shown
    assert {"--store", "--config", "--json", "--quiet", "--force", "--seed"} <= flags_of(EVERY[name])


def test_root_help_and_version() -> None:
    shown = dcclctl("--help")
    assert shown.exit_code == 0
    assert all(f"  {name}" in shown.stdout and text in shown.stdout for name, text in COMMANDS.items())
    from dcclctl import __version__

    assert dcclctl("--version").stdout == f"dcclctl {__version__}\n"
    assert dcclctl("-h").stdout == shown.stdout
