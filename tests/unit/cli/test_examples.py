"""Every example of every help text is run: commands that make an artifact with --plan, the others as they stand."""

import gc
import gzip
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from test_usage import EVERY
from world import EVALUATE, PATCH, World, dcclctl, done, write_log

from dcclctl.artifacts import Bundle
from dcclctl.cli.main import COMMANDS
from dcclctl.stages.export import token_of
from dcclctl.store.store import Store

MAKES = ("ingest", "train", "memory", "patch", "distill", "tune", "evaluate", "recommend", "export", "collect")
#: the examples' user is one of MovieLens
OURS = {"196": "u1", "22": "u2"}


def examples(name: str) -> list[str]:
    """The lines below 'Example' that begin with dcclctl (of the whole program: all); '&&' joins several commands."""
    shown = dcclctl(*name.split(), "--help").stdout
    shown = shown.partition("Example")[2].partition("Options:")[0] if name else shown
    lines = [line.strip() for line in shown.splitlines() if line.strip().startswith("dcclctl ")]
    return [part.strip() for line in lines for part in line.split("&&")]


def _groups_of_seeds(store: Store) -> None:
    """Names of groups that examples use: five cloud models, and patches that stand for five."""
    for seed in range(5):
        store.tag(store.resolve(f"cloud@{seed + 3}"), f"base-{seed}")
        store.tag(store.resolve("patches@1"), f"mine-{seed}")
    store.tag(store.resolve("patches@1"), "release")
    for name in ("fresh", "retrained", "before"):
        store.tag(store.resolve("cloud@1"), name)


def _one_uplink(store: Store, folder: Path) -> None:
    """What one device sends back to bundle@1."""
    bundle = Bundle(store.resolve("bundle@1"))
    theta = [0.0] * bundle.spec["sizes"]["theta"]
    folder.mkdir()
    uplink = {"bundle": bundle.spec["id"], "token": token_of(bundle, 0), "theta": theta, "events": 1}
    (folder / "one.json").write_text(json.dumps(uplink))


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
    assert dcclctl("artifacts", "tag", "cloud@1", "candidate", store=store).exit_code == 0
    _groups_of_seeds(Store(store))
    done("export", "patches@1", "--measure", "-o", folder / "device", store=store)
    _one_uplink(Store(store), folder / "uplinks")
    (folder / "best.toml").write_text('[train]\nmodel = "popularity"\n')
    assert dcclctl("artifacts", "export", "cloud@1", "-o", folder / "release.tar", store=store).exit_code == 0
    (folder / "in-stock.txt").write_text("i1\ni2\ni3\n")
    (folder / "today.csv").write_text("user_id,item_id,timestamp,rating\nu1,i3,1700000000,5\n")
    rows = "".join(f"u{at % 9},i{at % 7},{1600000000 + at},u{at % 9},i{at % 7},{1600000000 + at}\n" for at in range(99))
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp,uid,sku,ts\n" + rows)
    (folder / "users.txt").write_text("u1\nu2\nu3\n")
    (folder / "ml-100k").mkdir()
    (folder / "ml-100k" / "u.data").write_text("196\t242\t3\t881250949\n")
    (folder / "clicks-1.csv.gz").write_bytes(gzip.compress(b"uid,sku,ts,rating\na,b,1600000000,5\n"))
    (folder / "products.csv").write_text("sku,name\nb,Bread\n")
    (folder / "UserBehavior.csv").write_text("1,2268318,2520377,pv,1511544070\n")
    gc.collect()  # a store of this process that is not collected yet has a lease, and some examples delete
    return folder


#: a server ends when it is told to
RUNS_ON = ("serve",)


@pytest.mark.parametrize("name", [name for name in ("", *EVERY) if name not in RUNS_ON])
def test_the_examples_of_the_help(name: str, full: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own"  # some commands write or delete
    shutil.copytree(full, own, copy_function=os.link)
    monkeypatch.chdir(own)
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
