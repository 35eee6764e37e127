"""What an error says to type where an artifact is damaged makes the same artifact again."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from world import DISTILL, PATCH, TRAIN, World, dcclctl, done, ingest, sets

from dcclctl.stages.remake import command_again
from dcclctl.store.store import Store

FROM_MEMORY = ("--method=from-memory", "--epochs=1", "--threads=1", *sets("distill.from-memory", highest=3))
#: stage and variant → the words of a command; seed and settings differ from their defaults
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", *TRAIN, "--seed=3", "--on=cloud,device"),
    "train further": ("train", "--continue=cloud@1", "--on=device", "--epochs=2", "--seed=4", "--threads=1"),
    "train counted": ("train", "--model=item-knn", "--seed=5", *sets("train.item-knn", neighbours=7)),
    "memory": ("memory", "--size=40", "--counted-through=cloud", "--seed=2", *sets("memory", shrinkage=2.5)),
    "patch": ("patch", "--cloud=cloud@1", *PATCH, "--users=head", "--guard", "--held-back=0.3", "--seed=6"),
    "patch some": ("patch", "--cloud=cloud@1", "--method=fine-tune", "--users=u1,u2,u3", "--steps=2", "--threads=1"),
    "patch memory": ("patch", "--cloud=cloud@1", *sets("patch.memory", epochs=1), "--seed=7", "--threads=1"),
    "distill": ("distill", "--patches=patches@1", *DISTILL, "--seed=8", "--teachers=shuffled", "--beta=0.25"),
    "distill another": ("distill", "--patches=patches@1", "--cloud=cloud@2", *FROM_MEMORY),
    "evaluate": ("evaluate", "cloud@2", "patches@1+mean", "--against=cloud@1", "--k=4", "--seed=9", "--threads=1"),
    "evaluate new users": (
        "evaluate",
        "cloud@1",
        "--first-events=1",
        "--targets-after=1",
        "--k=4",
        "--threads=1",
        "--candidates=all",
    ),
    "recommend": ("recommend", "patches@1+mean", "--users=tail", "--top=3", "--seed=1", "--threads=1"),
    "recommend some": ("recommend", "cloud@1", "--users=u4,u5", "--exclude=none", *sets("recommend", shard_users=9)),
    "export": ("export", "patches@1", "--items=top:30", "--precision=fp16", "--seed=2"),
    "tune": (
        *("tune", "train", "--model=din,popularity", "--trials=2", "--metric=tail.hr@5", "--seed=3", "--threads=1"),
        *sets("train.din", item_size=8, epochs=1, history=8, weight_decay=1e-5),
        *("--set=train.on=cloud,device", "--space=train.din.learning_rate=0.01,0.02", "--candidates=20"),
    ),
}


def made_again(store: Path, made: dict[str, Any], **files: object) -> dict[str, Any]:
    """Damage an artifact, type what the error says, and return what that made."""
    folder = Store(store).resolve(made["ref"]).path
    folder.chmod(0o755)
    largest = max(folder.glob("*"), key=lambda path: path.stat().st_size if path.name != "manifest.json" else -1)
    largest.unlink()
    found = dcclctl("artifacts", "verify", made["ref"], store=store)
    assert found.exit_code == 3
    [command] = re.findall(r"or run dcclctl (.*), and then", found.stderr)
    words = [str(files.get(word.lstrip("@"), word)) for word in shlex.split(command)]
    again = done(*words, store=store)
    assert again["id"] == made["id"] and again["ref"] != made["ref"] and not again["reused"]
    return again


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_in_an_error_makes_the_same_artifact(name: str, shop: Path, tmp_path: Path) -> None:
    made = done(*COMMANDS[name], store=shop)
    if isinstance(made.get("evaluations"), list):  # one for each K
        [made] = made["evaluations"]
    (tmp_path / "ids.txt").write_text("\n".join(["u1", "u2", "u3"] if name.startswith("patch") else ["u4", "u5"]))
    made_again(shop, made, FILE=f"@{tmp_path}/ids.txt")


def test_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--label=rating>=4", "--seed=3", "--min-user-events=8", "--repeats=keep", "--periods=50,20,20,10")
    made = ingest(tmp_path / "a log's folder", tmp_path / "store", *flags, "--map=label=rating", "--delimiter=,")
    monkeypatch.chdir(tmp_path / "a log's folder")
    made_again(tmp_path / "store", made)


def test_a_process_that_only_looks(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path / "store")
    folder = Store(store).resolve("cloud@1").path
    folder.chmod(0o755)
    (folder / "model.safetensors").unlink()
    command = [sys.executable, "-m", "dcclctl", "artifacts", "verify", f"--store={store}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    assert "--set train.din.item_size=8" in said


def test_several_seeds(shop: Path) -> None:
    for seed in range(2):
        done("train", *TRAIN, f"--seed={seed + 20}", f"--name=base-{seed}", store=shop)
    made = done("evaluate", "cloud@base", "cloud@1", "--seeds=0,1", "--against=cloud@base", "--k=3", store=shop)
    made_again(shop, made)


@pytest.mark.parametrize(
    "config",
    [
        {"model": "din", "din": {"epochs": {"a": ["$(id)"]}}, "on": "';id;'"},
        {"model": ["din"], "method": {}, "against": [], "collect": 5, "seeds": {}, "suffix": ["x"]},
        {"command": "train", "base": {"din": 5}, "space": []},
        {"command": [], "base": {}},
    ],
)
@pytest.mark.parametrize("stage", ["train", "distill", "evaluate", "tune", "collect", "recommend", "nothing"])
def test_what_no_command_wrote_is_a_line_all_the_same(world: World, stage: str, config: dict[str, Any]) -> None:
    given = {"kind": "cloud", "id": "ab" * 32}
    roles = ("cloud", "patches", "subject-00:$(id)+x;id", "seed-0", "log-1:\n;id", "bundle")
    manifest = {"stage": stage, "config": config, "seed": 1, "inputs": dict.fromkeys(roles, given)}
    command = command_again(manifest, world.store)
    assert command.startswith(f"dcclctl {stage}") and command.isprintable()
    # each word is harmless: the shell sees no operator, no variable and no other command
    assert all(re.fullmatch(r"'.*'|[\w@%+=:,./-]+", shlex.quote(word)) for word in shlex.split(command))
    assert not re.search(r"[;$`|&<>]", re.sub(r"'[^']*'|\"'\"", "", command))
