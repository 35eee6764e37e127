"""The wheel works on its own, outside the repository: built by its backend without a network, unpacked, and run."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dcclctl.cli.main import COMMANDS
from dcclctl.stages.sample import FILES
from dcclctl.version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    ran = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    with zipfile.ZipFile(folder / ran.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The unpacked package's command, with the dependencies of this environment."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-m", "dcclctl", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_what_is_in_it(installed: Path) -> None:
    top = {path.name for path in installed.iterdir()}
    assert top == {"dcclctl", f"dcclctl-{__version__}.dist-info"}
    assert {path.name for path in (installed / "dcclctl" / "sample_data").iterdir()} == set(FILES)
    modules = {path.relative_to(ROOT) for path in (ROOT / "dcclctl").rglob("*") if path.suffix in (".py", ".jinja")}
    assert {path for path in modules if not (installed / path).is_file()} == set()
    assert (installed / "dcclctl" / "py.typed").is_file()
    scripts = configparser.ConfigParser()
    scripts.read(installed / f"dcclctl-{__version__}.dist-info" / "entry_points.txt")
    assert dict(scripts["console_scripts"]) == {"dcclctl": "dcclctl.__main__:main"}


def test_every_command_starts(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, dcclctl.cli.main as program\n"
        "from typer.testing import CliRunner\n"
        "for name in program.COMMANDS:\n"
        "    shown = CliRunner().invoke(program.app, [name, '--help'], prog_name='dcclctl')\n"
        "    print(shown.exit_code, shown.stdout.splitlines()[0])\n"
        "print(program.__file__)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    *lines, place = shown.stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [["0", "Usage:", "dcclctl", name] for name in COMMANDS], shown.stderr
    assert Path(place).is_relative_to(installed)  # not the checkout


def test_from_the_sample_to_a_report(installed: Path, tmp_path: Path) -> None:
    """The commands of the README that `dcclctl sample` writes, with models that are counted, to be quick."""
    assert run(installed, "sample", "groceries", cwd=tmp_path).returncode == 0
    folder = tmp_path / "groceries"
    readme = (folder / "README.md").read_text()
    commands = [line.split()[1:] for line in readme.splitlines() if line.startswith("    dcclctl ")][:5]
    assert [words[0] for words in commands] == ["ingest", "train", "patch", "evaluate", "report"]
    quick = {
        "train": ["train", "--model", "popularity", "--threads", "1"],
        "patch": ["train", "--model", "popularity", "--on", "cloud,device", "--threads", "1"],
        "evaluate": ["evaluate", "cloud@1", "cloud@2", "--against", "cloud@1", "--candidates", "20", "--threads", "1"],
    }
    for words in commands:
        ran = run(installed, *quick.get(words[0], words), cwd=folder)
        assert ran.returncode == 0, ran.stderr
    assert (folder / "report.html").stat().st_size > 50_000
