"""README and docs name what exists: commands, flags, settings and links; and what they show can be run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import typer
from test_contributing import ROW
from world import dcclctl, write_log

from dcclctl.cli.main import COMMANDS, app
from dcclctl.config import VariantSection
from dcclctl.evaluation.gate import read_gate
from dcclctl.logs.format import FORMATS
from dcclctl.logs.rules import REASONS
from dcclctl.stages.settings import COMMANDS as WITH_SETTINGS
from dcclctl.stages.settings import read_toml, resolve, variant_section

ROOT = Path(__file__).resolve().parents[2]
#: these tell of flags that are gone
HISTORY = [ROOT / "CHANGELOG.md", ROOT / "research" / "results" / "removed.md"]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "sample_data/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(path for path in sorted((ROOT / "research").rglob("*.md")) if path not in HISTORY),
]
PAGES = [*DOCUMENTS, *HISTORY]
#: what CONTRIBUTING.md adds to the package
ADDED = {
    name for row in ROW.finditer((ROOT / "CONTRIBUTING.md").read_text()) for name in re.findall(r'"(\w+)":', row[0])
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of a page's code blocks, in their order."""
    found = re.findall(r"```(\w+)\n(.*?)```", path.read_text(), flags=re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def commands_in(text: str) -> list[list[str]]:
    """Every command line in a text, as words: `dcclctl …` in blocks and in prose, and `COMMAND --flag …` in prose."""
    text = re.sub(r"\\\n\s*", " ", text)
    spans = re.findall(rf"(?<!`)`((?:{'|'.join(COMMANDS)}) [^`]*--[^`]*)`(?!`)", text)
    for line in text.splitlines():
        for start in re.finditer(r"(?<![\w./\[-])dcclctl (?=[a-z-])", line):
            spans.append(re.split(r"[`|;]|&&|\)\"| > |>/dev| 2>| {2,}#", line[start.end() :])[0])
    return [re.findall(r"[^\s\"']+", span) for span in spans]


def parameters(words: list[str]) -> tuple[Any, list[str]] | None:
    """The command that a line calls, and the words after it; None if there is no such command."""
    name, *rest = words
    if name not in COMMANDS:
        return None
    group = typer.main.get_command(app)
    command: Any = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
    if hasattr(command, "commands") and rest:
        return (command.commands[rest[0]], rest[1:]) if rest[0] in command.commands else None
    return command, rest


def unknown_parts(words: list[str]) -> list[str]:
    """What does not exist of one command line: a command, flag, setting, model or method."""
    if words[0] in ("--help", "-h", "--version", "--install-completion"):
        return []
    found = parameters(words)
    if found is None:
        return [" ".join(words[:2])]
    command, rest = found
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    rest = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    wrong = []
    for place, word in enumerate(rest):
        word = word.rstrip(".,:)")
        value = rest[place + 1].rstrip(".,:)") if place + 1 < len(rest) else ""
        if re.match(r"--?[a-z]", word) and word not in known:
            wrong.append(word)
        elif (
            word in ("--set", "--space")
            and not re.search(r"[A-Z]|\.\.\.", value)
            and not setting_exists(value.partition("=")[0])
        ) or (
            word in ("--model", "--method")
            and value.islower()
            and not set(value.split(",")) <= {*variants_of(words), *ADDED}
        ):
            wrong.append(value)
    return wrong


def variants_of(words: list[str]) -> set[str]:
    """Models or methods of the command of a line; `settings COMMAND` and `tune COMMAND` have those of COMMAND."""
    name = words[1] if words[0] in ("settings", "tune") else words[0]
    return set(WITH_SETTINGS[name].variants)


def setting_exists(key: str) -> bool:
    """Is it COMMAND.KEY or COMMAND.VARIANT.KEY?"""
    command, *parts = key.split(".")
    if command not in WITH_SETTINGS or not parts:
        return False
    if parts[0] in ADDED:
        return True
    if len(parts) == 2:
        return parts[0] in WITH_SETTINGS[command].variants and (
            parts[1] in variant_section(command, parts[0]).model_fields
        )
    return parts[0] in WITH_SETTINGS[command].section.model_fields


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_flags_and_settings_exist(path: Path) -> None:
    for words in commands_in(path.read_text()):
        assert unknown_parts(words) == [], " ".join(words)


def test_the_check_of_commands_can_fail() -> None:
    text = (
        "`dcclctl train --epochs 3`, `dcclctl trian`, dcclctl patch --user tail | cat; dcclctl artifacts lsit, `patch --stepz 3`\n"
        "$ dcclctl train --set train.din.epochz=3 --set train.din.epochs=3 --model dinn   # a comment with --nothing\n"
    )
    found = sorted(part for words in commands_in(text) for part in unknown_parts(words))
    assert found == ["--stepz", "--user", "artifacts lsit,", "dinn", "train.din.epochz=3", "trian"]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose):
        if target.startswith(("http:", "https:")):
            continue
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), f"{target} is not there"
        if anchor and page.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{target} has no heading #{anchor}"


def test_every_picture_is_shown() -> None:
    shown = {target for path in PAGES for target in re.findall(r"\]\((\S*images/[^)\s]+)\)", path.read_text())}
    pictures = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert pictures == {Path(target).name for target in shown}


@pytest.mark.parametrize(("page", "limit"), [("README.md", 700), ("docs/results.md", 1500)])
def test_pages_stay_short(page: str, limit: int) -> None:
    assert len((ROOT / page).read_text().split()) <= limit


def test_make_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {found for path in DOCUMENTS for found in re.findall(r"(?:`|\$ )make ([a-z]+)", path.read_text())}
    assert {"demo", "test"} <= named <= targets


def test_the_page_of_commands_is_current() -> None:
    """`python docs/make_cli.py` writes it."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == _module(ROOT / "docs" / "make_cli.py").page()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_reason_and_format_is_described() -> None:
    text = (ROOT / "docs" / "logs.md").read_text()
    table = text[text.index("| reason |") : text.index("Exact duplicates")]
    assert re.findall(r"`([a-z-]+)`", table) == list(REASONS)
    assert set(FORMATS) <= set(re.findall(r"[a-z]+", text.lower().replace("json lines", "jsonl")))


TOML = [(path, text) for path in DOCUMENTS for _, text in blocks(path, "toml")]


@pytest.mark.parametrize(("path", "text"), TOML, ids=[f"{path.name}-{at}" for at, (path, _) in enumerate(TOML)])
def test_toml_is_a_configuration_or_a_gate(path: Path, text: str, tmp_path: Path) -> None:
    file = tmp_path / "dccl.toml"
    file.write_text(text)
    if "rule" in tomllib.loads(text):
        assert read_gate(file)
        return
    read_toml(file)
    for command in WITH_SETTINGS.values():
        section = command.section
        chosen = tomllib.loads(text).get(next(n for n, each in WITH_SETTINGS.items() if each is command), {})
        variants = [name for name in chosen if name in command.variants] or [None]
        for variant in variants:
            field = section.VARIANT if issubclass(section, VariantSection) else ""
            resolve(section, {field: variant} if variant else {}, file)


def run_page(path: Path, folder: Path) -> list[list[str]]:
    """Run a page's Python and console blocks from top to bottom; the `dcclctl` commands that were run.

    A block that begins with `# file: NAME` is saved. A command must succeed, unless `$ echo $?` and another code follow it.
    """
    space: dict[str, Any] = {}
    ran = []
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, text in blocks(path, "python", "console"):
        saved = re.match(r"# file: (\S+)\n", text)
        if saved:
            (folder / saved[1]).write_text(text)
        elif language == "python":
            exec(compile(text, path.name, "exec"), space)
        else:
            lines = re.sub(r"\\\n\s*", " ", text).splitlines()
            wanted = [int(lines[at + 1]) for at, line in enumerate(lines) if line == "$ echo $?"]
            shell = [line[2:].partition("   #")[0] for line in lines if line.startswith("$ ")]
            for at, line in enumerate(shell):
                follows = at + 1 < len(shell) and shell[at + 1] == "echo $?"
                expected = wanted.pop(0) if follows else 0
                if line == "echo $?":
                    continue
                if line.startswith("dcclctl "):
                    ran.append(shlex.split(line)[1:])
                    result = dcclctl(*ran[-1])
                    assert result.exit_code == expected, f"{line}\n{result.output}"
                else:
                    subprocess.run(["bash", "-c", line], check=True, cwd=folder, env=environment, capture_output=True)
    return ran


def test_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DCCL_STORE", raising=False)
    ran = run_page(ROOT / "docs" / "tutorial.md", tmp_path)
    commands = [words[0] for words in ran]
    # ten, and twice two that go wrong or are the second half of a step
    assert commands == [
        *("init", "ingest", "ingest", "train", "train", "patch", "evaluate", "report", "recommend", "artifacts"),
        *("train", "evaluate"),
    ]
    made = {path.name for path in tmp_path.iterdir()}
    assert {"dccl.toml", "gate.toml", "report.html", "top.parquet", "gate.xml", ".github"} <= made
    lists = pl.read_parquet(tmp_path / "top.parquet")
    assert lists["name"].str.starts_with("Product ").all() and lists["user_id"].n_unique() == 400
    assert "memory" in (tmp_path / "report.html").read_text()


def test_the_page_of_the_python_api_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "docs" / "python-api.md", tmp_path)
    assert (tmp_path / "report.html").exists()


def test_the_python_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log").rename(tmp_path / "clicks.csv")
    ((_, text),) = blocks(ROOT / "README.md", "python")
    assert len([line for line in text.splitlines() if line]) <= 10
    space: dict[str, Any] = {}
    exec(compile(text, "README.md", "exec"), space)
    assert space["found"].comparison.height


def test_the_python_of_the_page_on_tuning_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log").rename(tmp_path / "events.csv")
    ((_, text),) = blocks(ROOT / "docs" / "tuning.md", "python")
    space: dict[str, Any] = {}
    exec(compile(text, "tuning.md", "exec"), space)
    assert set(space["found"].per_seed["seed"]) == {0, 1, 2}
    assert tomllib.loads(space["best"].toml())["train"]["model"] == "item-knn"
