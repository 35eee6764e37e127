"""Every chapter of the studies asks for commands and flags that exist, and for models that differ."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import science
import typer
from pipeline import ingest_arguments
from study import Study

from dcclctl.cli.main import app
from dcclctl.errors import UsageError
from dcclctl.stages.settings import COMMANDS as SETTINGS
from dcclctl.stages.settings import resolve


def parsed(name: str, arguments: tuple[str, ...]) -> None:
    """Have the command line read its arguments and the settings among them, without running the command."""
    group: Any = typer.main.get_command(app)
    given = group.get_command(typer.Context(group), name).make_context(name, list(arguments)).params
    sets = dict(text.split("=", 1) for text in given["set"] or ())
    flags = {key: given[key] for key in SETTINGS[name].flags() if key in given}
    resolve(SETTINGS[name].section, flags | sets)


class Parser:
    """In place of a runner: reads each command line as `dcclctl` would, and makes up what it gives."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, ...], str] = {}
        self.named: dict[str, tuple[str, ...]] = {}

    def __call__(self, name: str, command: str, *arguments: str) -> str:
        line = (command, *arguments)
        assert self.named.setdefault(name, line) == line, name
        if line not in self.made:
            parsed(command, arguments)
            kind = {"patch": "patches", "memory": "memory", "evaluate": "evaluation"}.get(command, "cloud")
            self.made[line] = f"{kind}@{len(self.made) + 1}"
        return self.made[line]

    def table(self, reference: str) -> pl.DataFrame:
        (line,) = (line for line, made in self.made.items() if made == reference)
        models = [word for word in line[1 : [*line, "--"].index("--on")] if "@" in word]
        return pl.DataFrame({"subject": models, "group": ["new"] * len(models), "auc": [0.5] * len(models)})


@pytest.mark.parametrize(
    "chapter", [*science.CHAPTERS, "counted", "strong_harm", "strong_metapatch", "strong_placebo", "strong_taught"]
)
@pytest.mark.parametrize("repeats", [True, False])
def test_chapters_name_commands_that_exist(chapter: str, repeats: bool) -> None:
    study = Study(Parser(), "dataset@1", 0, "300", chapter in science.WITH_PLAIN, repeats)
    made = study.memories() if chapter == "memory" else getattr(study, chapter)()
    if isinstance(made, pl.DataFrame):
        made = {chapter: made}
    tables = dict(made)
    assert tables
    for table in tables.values():
        assert table["subject"].n_unique() == len(table) >= 2


def test_a_setting_that_nothing_reads_is_noticed() -> None:
    parsed("train", ("--epochs", "3", "--set", "train.din.history=100"))
    for wrong in (("--set", "train.din.hist=100"), ("--model", "ease", "--epochs", "3")):
        with pytest.raises(UsageError):
            parsed("train", wrong)


def test_two_names_for_one_model_are_noticed() -> None:
    study = Study(Parser(), "dataset@1", 0, "300", False, False)
    with pytest.raises(ValueError):
        study.evaluated("twice", {"one": study.frozen, "the same": study.frozen}, "test")


def test_logs_are_ingested_with_flags_that_exist(tmp_path: Path) -> None:
    known = ingest_arguments(tmp_path, tmp_path)
    assert set(science.LOGS) <= known.keys()
    for arguments in known.values():
        parsed("ingest", tuple(arguments))
