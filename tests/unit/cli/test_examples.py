"""Every example of every help text is run: commands that make an artifact with --plan, the others as they stand."""

import gzip
import shlex
from pathlib import Path

import pytest
from test_usage import EVERY
from world import EVALUATE, PATCH, World, dcclctl, done, write_log

from dcclctl.cli.main import COMMANDS

MAKES = ("ingest", "train", "memory", "patch", "distill", "evaluate")
#: the examples' user is one of MovieLens
OURS = {"196": "u1"}


def examples(name: str) -> list[str]:
    """The lines below 'Example' that begin with dcclctl (of the whole program: all); '&&' joins several commands."""
    shown = dcclctl(*name.split(), "--help").stdout
    shown = shown.partition("Example")[2].partition("Options:")[0] if name else shown
    lines = [line.strip() for line in shown.splitlines() if line.strip().startswith("dcclctl ")]
    return [part.strip() for line in lines for part in line.split("&&")]


@pytest.fixture(scope="module")
def full(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that examples name, and a store with seven cloud models, two patch sets, three evaluations."""
    folder = tmp_path_factory.mktemp("examples")
    store = world.copy(folder / ".dccl")
    write_log(folder).rename(folder / "LOG")
    for seed in range(5):
        done("train", "--model=popularity", f"--seed={seed}", "--threads=1", store=store)
    done("patch", "--cloud=cloud@2", "--users=head", *PATCH, store=store)
    for ref in ("cloud@3", "cloud@4"):
        done("evaluate", ref, *EVALUATE, store=store)
    assert dcclctl("artifacts", "tag", "cloud@7", "release", store=store).exit_code == 0
    (folder / "users.txt").write_text("u1\nu2\nu3\n")
    (folder / "ml-100k").mkdir()
    (folder / "ml-100k" / "u.data").write_text("196\t242\t3\t881250949\n")
    (folder / "clicks-1.csv.gz").write_bytes(gzip.compress(b"uid,sku,ts,rating\na,b,1600000000,5\n"))
    (folder / "products.csv").write_text("sku,name\nb,Bread\n")
    (folder / "UserBehavior.csv").write_text("1,2268318,2520377,pv,1511544070\n")
    return folder


@pytest.mark.parametrize("name", ["", *EVERY])
def test_the_examples_of_the_help(name: str, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(full)
    found = examples(name)
    assert found
    for example in found:
        words = [OURS.get(word, word) for word in shlex.split(example, comments=True)[1:]]
        result = dcclctl(*words, *(["--plan"] if words[0] in MAKES else []))
        # the shop's new users have four events each, and one example scores what comes after ten
        too_few = "--first-events" in words and "no new user with more than 10 events" in result.stderr
        assert result.exit_code == 0 or too_few, f"{example}\n{result.stderr}"


def test_every_command_that_makes_an_artifact_can_be_planned() -> None:
    planned = {name for name, command in EVERY.items() if any("--plan" in each.opts for each in command.params)}
    assert planned == set(MAKES) <= set(COMMANDS)
