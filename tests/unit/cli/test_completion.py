"""What the Tab key offers, in bash's own way of splitting words and in another shell's."""

import subprocess
import sys
from pathlib import Path

import pytest
from world import World

from dcclctl.models.kind import MODELS
from dcclctl.store.store import Store

ROOT = Path(__file__).resolve().parents[3]
#: runs one completion after another in one process; each is a list of words, the last one being typed
MANY = """
import contextlib, io, json, os, sys
from dcclctl.__main__ import _program

shell, found = sys.argv[1], []
for words in json.loads(sys.argv[2]):
    os.environ["_DCCLCTL_COMPLETE"] = f"complete_{shell}"
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\\n".join(words), str(len(words) - 1)
    os.environ["_TYPER_COMPLETE_ARGS"] = " ".join(words)
    os.environ["_TYPER_COMPLETE_FISH_ACTION"], os.environ["_TYPER_COMPLETE_WORD_TO_COMPLETE"] = "get-args", words[-1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        _program()
    found.append(out.getvalue().split())
loaded = sorted({"torch", "polars", "pyarrow", "numpy"} & set(sys.modules))
print(json.dumps([found, loaded]))
"""


def offered(store: Path, *lines: str, shell: str = "bash") -> list[list[str]]:
    """What is offered for each line; its words are separated by spaces, as the shell splits them."""
    import json
    import os

    words = [["dcclctl", *line.split(" ")] for line in lines]
    command = [sys.executable, "-c", MANY, shell, json.dumps(words)]
    environment = os.environ | {"DCCL_STORE": str(store)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stderr
    found, loaded = json.loads(ran.stdout)
    assert loaded == []  # the Tab key is quick
    return list(found)


def test_names_and_values(world: World) -> None:
    lines = {
        "tr": ["train"],
        "artifacts v": ["verify"],
        "train --model ": list(MODELS),
        "train --model s": ["sasrec"],
        "patch --method f": ["fine-tune"],
        "patch --users h": ["head"],
        "distill --method ": ["momodistill", "from-memory"],
        "distill --teachers s": ["shuffled"],
        "train --device c": ["cpu", "cuda"],
        "train --on d": ["device"],
        "ingest --split p": ["per-user"],
        "ingest --format m": ["mind", "movielens"],
        "artifacts list --kind d": ["dataset"],
        "settings pat": ["patch"],
        "settings train --model ea": ["ease"],
        "evaluate --unpatched e": ["encoder"],
    }
    assert dict(zip(lines, offered(world.root, *lines), strict=True)) == lines


def test_references_and_names_of_the_store(shop: Path, tmp_path: Path) -> None:
    store = Store(shop)
    store.tag(store.resolve("cloud@1"), "release")
    clouds = ["cloud", "cloud@release", "cloud@2", "cloud@1"]
    lines = {
        "train --continue ": clouds,
        "patch --cloud cl": clouds,
        "distill --patches ": ["patches", "patches@1"],
        "report ": ["evaluation", "evaluation@1"],
        "train --dataset ": ["dataset", "dataset@1"],
        "artifacts show pa": ["patches", "patches@1"],
        "evaluate --against e": ["evaluation", "evaluation@1"],
        f"artifacts show --store {tmp_path} ": [],
    }
    found = dict(zip(lines, offered(shop, *lines), strict=True))
    assert found == lines
    assert offered(tmp_path / "none", "patch --cloud ") == [[]]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("artifacts show cloud @", ["release", "2", "1"]),
        ("artifacts show cloud @ r", ["release"]),
        ("artifacts show cloud @ 2", ["2"]),
        ("artifacts diff cloud @ 1 cloud @ 2", ["2"]),
        ("evaluate cloud @ release pat", ["patches", "patches@1"]),
        ("patch --users @users.txt --cloud cl", ["cloud", "cloud@release", "cloud@2", "cloud@1"]),
    ],
)
def test_bash_splits_at_the_at_sign_and_replaces_the_last_part(shop: Path, line: str, rest: list[str]) -> None:
    store = Store(shop)
    store.tag(store.resolve("cloud@1"), "release")
    assert offered(shop, line) == [rest]


def test_zsh_and_fish_take_whole_words(world: World) -> None:
    assert offered(world.root, "train --model sa", shell="fish") == [["sasrec"]]
    (found,) = offered(world.root, "artifacts show cloud@", shell="fish")
    assert found == ["cloud@2", "cloud@1"]
