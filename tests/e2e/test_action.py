"""The GitHub Action and the script under it, run as a runner runs them: inputs substituted, steps one after another in bash."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from world import write_log

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
#: quick, and the same twice
POPULARITY = "--model popularity\n--threads 1"


@pytest.fixture
def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return found


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A workspace with a log, and `dcclctl` and `python` on a PATH of its own; pip only writes down what it was asked for."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (
        ("dcclctl", f'exec "{sys.executable}" -m dcclctl "$@"'),
        ("python", f'printf "%s\\n" "$@" >"{tmp_path}/asked"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    write_log(tmp_path / "data")
    return tmp_path


def run(action: dict[str, Any], runner: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """Run the action's steps; exit code of the last, what was printed, and the outputs."""
    declared = action["inputs"]
    assert {name for name, each in declared.items() if each.get("required")} <= set(inputs)
    values = {f"inputs.{name}": inputs.get(name, each.get("default")) for name, each in declared.items()}
    values["github.action_path"] = str(ROOT)
    output = runner / "output"
    output.write_text("")
    told, code = "", 0
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash" and "${{" not in step["run"]
        own = {
            name: re.sub(r"\$\{\{ *(.*?) *\}\}", lambda found: values[found[1]], text)
            for name, text in step["env"].items()
        }
        environment = {
            "PATH": f"{runner}/tools:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(runner / "summary.md"),
            **own,
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=runner,
            env=environment,
            capture_output=True,
            text=True,
        )
        told, code = told + done.stdout + done.stderr, done.returncode
        if code:
            break
    return code, told, dict(line.split("=", 1) for line in output.read_text().splitlines())


def test_the_action_says_what_it_takes(action: dict[str, Any]) -> None:
    assert action["runs"]["using"] == "composite"
    named = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert named == set(action["inputs"])
    assert all(each["description"] for each in action["inputs"].values())
    # what the action sets is what the script reads
    script = (ROOT / "pipelines" / "ci-gate.sh").read_text()
    for name in action["runs"]["steps"][1]["env"]:
        assert name == "ACTION" or re.search(rf"\b{name}\b", script), name


def test_without_a_release_it_refuses_and_with_make_release_it_is_made(action: dict[str, Any], runner: Path) -> None:
    given = {
        "log": "data/events.csv",
        "candidate-flags": POPULARITY,
        "release-flags": POPULARITY,
        "max-drop": "all.mrr=1%\ntail.gauc=1%",
    }
    code, told, outputs = run(action, runner, **given)
    assert code == 3, told
    assert "there is no release in .dccl-gate" in told and "MAKE_RELEASE=1" in told
    assert outputs == {}
    # nothing was trained, least of all a release
    assert not list((runner / ".dccl-gate").rglob("model.safetensors"))

    # the tail is too small to judge: strict asks for more
    code, told, outputs = run(action, runner, **given, strict="true", **{"make-release": "true"})
    assert code == 4, told
    assert (runner / "asked").read_text().splitlines()[:3] == ["-m", "pip", "install"]
    assert "made the release from this code" in told
    assert outputs["headline"].startswith("Gate failed, because --strict asks every rule to pass: ")
    assert (runner / "gate" / "gate.xml").is_file()
    assert (runner / "summary.md").read_text() == (runner / "gate" / "gate.md").read_text()


def test_a_gate_without_rules_is_refused(action: dict[str, Any], runner: Path) -> None:
    code, told, _ = run(action, runner, log="data/events.csv")
    assert code == 2
    assert "the gate has no rule" in told
