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
        "from dcclctl.__main__ import main\n"
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


def settings_given(words: list[str]) -> list[str]:
    """What stands after --set."""
    joined = [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    return joined + [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--set"]


def known_settings(command: str) -> set[str]:
    """Every name by which --set knows a setting of a command, or of one of its variants."""
    from dcclctl.stages.settings import COMMANDS, variant_section

    command = command if command in COMMANDS else "evaluate"  # score reads the settings of evaluate
    spec = COMMANDS[command]
    names = set(spec.section.model_fields) - {"settings"}
    for variant in spec.variants:
        own = variant_section(command, variant).model_fields
        names |= {*own, *(f"{variant}.{name}" for name in own)}
    return names | {f"{command}.{name}" for name in names}


def unknown_parts(words: list[str]) -> list[str]:
    """Commands, flags and settings of one command line that do not exist."""
    name, *rest = words
    if name.startswith("-"):
        return [word for word in words if word not in ("--help", "-h", "--version", "--install-completion")]
    if name not in COMMANDS:
        return [name]
    command = command_of(name)
    if hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return [rest[0]]
        command = command.commands[rest.pop(0)]
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    flags = [word.partition("=")[0].rstrip(".,:)") for word in rest if re.match(r"--?[a-z]", word)]
    unread = [
        given
        for given in settings_given(rest)
        # tune passes the settings of the command on that it tunes
        if "=" not in given or given.partition("=")[0] not in known_settings(rest[0] if name == "tune" else name)
    ]
    return [flag for flag in flags if flag not in known] + unread


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "sample_data" / "README.md", *SCRIPTS]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
#: what a reader copies from
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "sample_data/README.md", "benchmarks/README.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_commands_and_flags_that_exist(path: Path) -> None:
    lines = words_of(path.read_text())
    if path in (ROOT / "README.md", *SCRIPTS):
        assert lines
    for words in lines:
        assert unknown_parts(words) == [], " ".join(words)


def test_the_check_of_documents_can_fail() -> None:
    text = (
        "run `dcclctl train --epochs 3` and `dcclctl trian` or dcclctl patch --user tail | cat; dcclctl artifacts lsit\n"
        "dcclctl train --set train.din.item_size=8 --set=epochs=3 && dcclctl train --set train.din.itemsize=8\n"
        "dcclctl patch --set metapatch.steps=3 --set train.din.epochs=3; dcclctl patch --set=steps"
    )
    assert [unknown_parts(words) for words in words_of(text)] == [
        *([], ["trian"], ["--user"], ["lsit"]),
        *([], ["train.din.itemsize=8"]),
        *(["train.din.epochs=3"], ["steps"]),
    ]


def all_flags() -> set[str]:
    known = {"--help", "--version", "--install-completion"}
    for name in COMMANDS:
        command = command_of(name)
        for each in getattr(command, "commands", {name: command}).values():
            known |= {flag for option in each.params for flag in (*option.opts, *option.secondary_opts)}
    return known


@pytest.mark.parametrize("path", [*PAGES, *OTHER_PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_that_stand_alone_in_prose_exist(path: Path) -> None:
    """Such as `--repeats keep`."""
    alone = {word for span in re.findall(r"`(--[a-z][a-z-]*)[^`]*`", path.read_text()) for word in span.split()}
    assert alone <= all_flags()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_that_stand_alone_in_prose_exist(path: Path) -> None:
    """Such as `patch.memory.order` and `train.din.item_size=64`."""
    from dcclctl.stages.settings import COMMANDS as SETTINGS
    from dcclctl.stages.settings import variant_section

    for name in re.findall(r"`([a-z]+\.[a-z0-9-]+\.[a-z_]+)(?:=[^`]*)?`", path.read_text()):
        command, variant, key = name.split(".")
        if command in SETTINGS and variant in SETTINGS[command].variants:
            assert key in variant_section(command, variant).model_fields, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_toml_on_a_page_is_a_configuration(path: Path, tmp_path: Path) -> None:
    from dcclctl.stages.settings import COMMANDS as SETTINGS
    from dcclctl.stages.settings import resolve

    blocks = re.findall(r"```toml\n(.*?)```", path.read_text(), flags=re.DOTALL)
    for block in blocks:
        if re.search(rf"^\[({'|'.join(SETTINGS)})[].]|^seed\b", block, flags=re.MULTILINE):  # a gate has [[rule]]
            (tmp_path / "dccl.toml").write_text(block)
            for command in SETTINGS.values():
                resolve(command.section, {}, tmp_path / "dccl.toml")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_pages_that_messages_name_are_there() -> None:
    """A remedy that sends people to a page sends them to one that exists."""
    found = {
        page for path in (ROOT / "dcclctl").rglob("*.py") for page in re.findall(r"\bdocs/[\w-]+\.md", path.read_text())
    }
    assert "docs/cli.md" in found
    assert [page for page in sorted(found) if not (ROOT / page).exists()] == []


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


def test_core_code_neither_prints_nor_exits() -> None:
    for path in (ROOT / "dcclctl").rglob("*.py"):
        room = path.relative_to(ROOT / "dcclctl").parts[0]
        if room in ("cli", "__main__.py"):
            continue
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"(?<![\w.])(print|exit)\(|sys\.exit|os\._exit", code), path
