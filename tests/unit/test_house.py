"""The house keeps its own rules: direction of imports, quick help, pins, and documents that name what exists."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dcclctl.cli.main import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted((ROOT / "pipelines").glob("*.sh"))
HEAVY = {"torch", "polars", "pyarrow", "numpy", "pydantic", "rich.console"}


def loaded_after(*words: str) -> set[str]:
    """Modules that a fresh interpreter has after `dcclctl WORDS`."""
    code = (
        "import sys\n"
        "from dcclctl.cli.main import main\n"
        f"sys.argv = {['dcclctl', *words]!r}\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "dcclctl" in ran.stdout
    return set(ran.stderr.split())


def test_help_of_all_loads_nothing_heavy() -> None:
    assert loaded_after("--help") & HEAVY == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_one_command_loads_no_torch(command: str) -> None:
    assert loaded_after(command, "--help") & {"torch", "polars", "pyarrow"} == set()


def test_direction_of_imports() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    ran = subprocess.run([*command, "--no-cache"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", ran.stdout), ran.stdout


def requirements(texts: list[str]) -> dict[str, Requirement]:
    """Name → requirement, without the package's own extras."""
    found = [Requirement(text) for text in texts]
    return {canonicalize_name(each.name): each for each in found if each.name != PROJECT["name"]}


NEEDED = requirements(PROJECT["dependencies"])
OPTIONAL = requirements([text for group in PROJECT["optional-dependencies"].values() for text in group])


def test_pins_fit_the_ranges() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = Version(version.split()[0])
    for name, requirement in (NEEDED | OPTIONAL).items():
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not allow {pins[name]}"


def test_dependencies_are_those_that_are_imported() -> None:
    modules = set()
    for path in (ROOT / "dcclctl").rglob("*.py"):
        modules |= set(re.findall(r"^\s*(?:import|from) ([a-z_0-9]+)", path.read_text(), flags=re.MULTILINE))
    providers = importlib.metadata.packages_distributions()
    outside = {
        canonicalize_name(name)
        for module in modules - {"dcclctl"} - sys.stdlib_module_names
        for name in providers.get(module, [module])
    }
    assert "torch" in outside
    # markupsafe is where jinja2 has its Markup from
    assert outside <= NEEDED.keys() | OPTIONAL.keys() | {"markupsafe"}
    assert NEEDED.keys() <= outside


def words_of(text: str) -> list[list[str]]:
    """Every `dcclctl …` in a text, as words: shell commands, and code spans in prose."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in text.splitlines():
        for start in re.finditer(r"(?<![\w./\[-])dcclctl (?=[a-z-])", line):
            rest = re.split(r"[`|;]|&&|\)\"| > |>/dev| 2>", line[start.end() :])[0]
            words = re.findall(r"[^\s\"']+", rest)
            found.append(words)
    return found


def command_of(name: str, sub: str | None = None) -> Any:
    group = typer.main.get_command(app)
    command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
    return command.commands[sub] if sub else command


def unknown_parts(words: list[str]) -> list[str]:
    """Commands and flags of one command line that do not exist."""
    name, *rest = words
    if name.startswith("-"):
        return [word for word in words if word not in ("--help", "-h", "--version")]
    if name not in COMMANDS:
        return [name]
    command = command_of(name)
    if hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return [rest[0]]
        command = command.commands[rest.pop(0)]
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    flags = [word.partition("=")[0].rstrip(".,:)") for word in rest if re.match(r"--?[a-z]", word)]
    return [flag for flag in flags if flag not in known]


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "sample_data" / "README.md", *SCRIPTS]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_and_flags_that_exist(path: Path) -> None:
    lines = words_of(path.read_text())
    if path.name not in ("CONTRIBUTING.md",):
        assert lines
    for words in lines:
        assert unknown_parts(words) == [], " ".join(words)


def test_the_check_of_documents_can_fail() -> None:
    text = (
        "run `dcclctl train --epochs 3` and `dcclctl trian` or dcclctl patch --user tail | cat; dcclctl artifacts lsit"
    )
    assert [unknown_parts(words) for words in words_of(text)] == [[], ["trian"], ["--user"], ["lsit"]]


def test_flags_in_the_readme_exist() -> None:
    """Also those that stand alone in prose: `--repeats keep`."""
    known = {"--help", "--version"}
    for name in COMMANDS:
        command = command_of(name)
        for each in getattr(command, "commands", {name: command}).values():
            known |= {flag for option in each.params for flag in (*option.opts, *option.secondary_opts)}
    text = (ROOT / "README.md").read_text()
    alone = {word for span in re.findall(r"`(--[a-z][a-z-]*)[^`]*`", text) for word in span.split()}
    assert alone and alone <= known


def test_toml_in_the_readme_is_a_configuration(tmp_path: Path) -> None:
    from dcclctl.config import SECTIONS, resolve

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    stages = [block for block in blocks if any(f"[{name}]" in block for name in SECTIONS)]
    assert stages
    for block in stages:
        (tmp_path / "dccl.toml").write_text(block)
        for section in SECTIONS.values():
            resolve(section, tmp_path / "dccl.toml")


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_pipelines_are_there() -> None:
    assert {"quickstart.sh", "rounds.sh", "movielens-100k.sh"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_pipelines(path: Path) -> None:
    lines = path.read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith("#")]
    assert lines[0] == "#!/usr/bin/env bash"
    assert code[0] == "set -euo pipefail"
    assert len(lines[1].lstrip("# ")) > 20  # says what it is for
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert path.stat().st_mode & 0o111, "not executable"
    # flags that pass through a shell function of the script: `ref patch --cloud …`
    for line in re.findall(r"\bref ([a-z]+ [^)\n]*)", path.read_text()):
        assert unknown_parts(shlex.split(line)) == [], line


def test_the_package_is_typed_and_has_one_version() -> None:
    import dcclctl

    assert PROJECT["version"] == dcclctl.__version__
    assert (ROOT / "dcclctl" / "py.typed").exists()


@pytest.mark.parametrize("word", ["pickle", "eval(", "exec(", "torch.load", "yaml.load", "shell=True"])
def test_nothing_runs_what_it_reads(word: str) -> None:
    for path in (ROOT / "dcclctl").rglob("*.py"):
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(rf"(?<![\w.]){re.escape(word)}", code), path


def test_core_code_neither_prints_nor_exits() -> None:
    for path in (ROOT / "dcclctl").rglob("*.py"):
        room = path.relative_to(ROOT / "dcclctl").parts[0]
        if room in ("cli", "__main__.py"):
            continue
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"(?<![\w.])(print|exit)\(|sys\.exit|os\._exit", code), path
