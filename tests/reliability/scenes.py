"""The commands of the campaign, each with the store that it finds, on the tiny shop of `world.py`."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from world import DISTILL, EVALUATE, PATCH, SMALL, TRAIN, sets, write_log

from reliability.bench import Bench, End, plan

#: name → words, in the order in which they run; FOLDER stands for the folder of the log
COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "FOLDER/events.csv", "--users=FOLDER/users.csv", "--items=FOLDER/items.csv"),
    "train": ("train", *TRAIN, "--name=base"),
    "memory": ("memory",),
    "patch": ("patch", "--users=tail", "--cloud=cloud@1", *PATCH),
    "patch memory": (
        *("patch", "--method=memory", "--cloud=cloud@1", "--threads=1"),
        *sets("patch.memory", epochs=1, hidden_size=4),
    ),
    "distill": ("distill", "--patches=patches@1", *DISTILL),
    "train bpr": ("train", "--model=bpr", "--epochs=2", "--learning-rate=0.05", "--threads=1"),
    "evaluate": ("evaluate", "cloud@1", "patches@1", "--against=cloud@1", *EVALUATE),
    "recommend": ("recommend", "patches@1", "--threads=1"),
    "export": ("export", "patches@1"),
    "tune": ("tune", "train", "--model=din", "--trials=1", "--threads=1", *sets("train.din", **SMALL)),
    "report": ("report", "evaluation@1", "--output=report.html"),
    "tag": ("artifacts", "tag", "cloud@2", "release"),
    "archive": ("artifacts", "export", "cloud@release", "--output=release.tar"),
    "list": ("artifacts", "list"),
    "verify": ("artifacts", "verify"),
    "score": ("score", "patches@1", "--user=u3"),
    "rm": ("artifacts", "rm", "recommendations@1"),
    "gc": ("artifacts", "gc", "--keep=1", "--apply"),
    "forget": ("artifacts", "forget", "u1", "u2", "--apply"),
}
#: the commands that make an artifact, and so print its reference
MAKERS = (
    "ingest",
    "train",
    "memory",
    "patch",
    "patch memory",
    "distill",
    "train bpr",
    "evaluate",
    "recommend",
    "export",
)
#: those that delete
DELETERS = ("rm", "gc", "forget")
READERS = ("list", "verify", "score")


@dataclass
class Scene:
    """One command, the store before it, and what it does there when nothing happens to it.

    Attributes:
        name, words: of the command. before: the store that it finds; never written to.
        after: digests of the store when it has run undisturbed. end: what it printed then. operations: how many it did.
    """

    name: str
    words: tuple[str, ...]
    before: Path
    after: "State" = field(default_factory=lambda: State())
    end: End = field(default_factory=lambda: End(0, "", "", 0))

    def case(self, folder: Path) -> Path:
        """A folder of one case with a copy of the store that the command finds; returns the store."""
        shutil.rmtree(folder, ignore_errors=True)
        return copied(self.before, folder / "store")


def copied(store: Path, to: Path) -> Path:
    """A copy by hard links: files of a store are replaced, never written again."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if store.exists():
        shutil.copytree(store, to, copy_function=os.link)
    return to


@dataclass
class State:
    """A store as this file reads it, without any code of the program.

    Attributes:
        ids: 'cloud@1' → id of every whole version. damaged: 'cloud@2' → what is wrong. names: 'cloud@base' → id.
    """

    ids: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def look(store: Path) -> State:
    """Read every version and compare every byte with its manifest."""
    found = State()
    for folder in sorted(store.glob("*/v/*")):
        reference = f"{folder.parent.parent.name}@{int(folder.name)}"
        try:
            manifest = (folder / "manifest.json").read_bytes()
            id = hashlib.sha256(manifest).hexdigest()
            if (folder / "manifest.sha256").read_text() != f"{id}  manifest.json\n":
                raise ValueError("its manifest has another hash")
            for name, listed in json.loads(manifest)["files"].items():
                data = (folder / name).read_bytes()
                if hashlib.sha256(data).hexdigest() != listed["sha256"]:
                    raise ValueError(f"{name} has another hash")
            found.ids[reference] = id
        except (OSError, ValueError) as error:
            found.damaged[reference] = str(error)
    for name in sorted(store.glob("*/refs/*")):
        if not name.name.startswith("."):
            found.names[f"{name.parent.parent.name}@{name.name}"] = name.read_text().strip()
    return found


def lost(before: State, now: State, deleted: Iterable[str] = ()) -> list[str]:
    """What is wrong with a store after a fault: versions that are gone, changed or torn, names that mean nothing.

    Args:
        deleted: references that the command may have deleted.
    """
    problems = [f"{reference} is damaged: {why}" for reference, why in now.damaged.items()]
    may_go = set(deleted)
    for reference, id in before.ids.items():
        if reference not in may_go and now.ids.get(reference) != id:
            problems.append(f"{reference} is lost")
    for name, id in now.names.items():
        if id not in now.ids.values():
            problems.append(f"the name {name} means nothing")
    return problems


def build(bench: Bench, names: Sequence[str] = tuple(COMMANDS)) -> dict[str, Scene]:
    """Run the commands one after another and keep the store before each of them."""
    log = write_log(bench.folder / "log").parent
    store = bench.folder / "line" / "store"
    store.parent.mkdir()
    scenes = {}
    for name in names:
        words = tuple(word.replace("FOLDER", str(log)) for word in COMMANDS[name])
        scene = Scene(name, (*words, "--json"), copied(store, bench.folder / "before" / name.replace(" ", "-")))
        scene.end = bench.run(store, scene.words, plan=plan("nothing"), modules=str(bench.folder / "modules"))
        assert scene.end.code == 0, (name, scene.end)
        scene.after = look(store)
        assert not scene.after.damaged
        scenes[name] = scene
    return scenes
