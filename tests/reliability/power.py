"""Power loss: a recorded run is replayed up to a moment, and what was not synchronised may be lost, in any combination.

The model is stricter than file systems are. A file's bytes are safe after its fsync, an entry of a folder after the fsync of
that folder; every other write and every other entry is kept or lost on its own, whatever the order. A write that is lost may
leave zeros. Only a rename is one step.
"""

import math
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reliability.bench import End, plan
from reliability.campaign import Campaign, Findings, spread
from reliability.scenes import DELETERS, Scene, State, look, lost
from reliability.stops import again, deletable, promised

#: power losses at each moment: with no unsynchronised change on the disk, with all, and with half of them, drawn anew
TURNS = 4


@dataclass(eq=False)
class Node:
    """A file or a folder.

    Attributes:
        entries: of a folder, as they are on the disk. content: of a file, as it is on the disk. source: or the file that holds it.
        pending: (offset, bytes) of writes after the last fsync; bytes None for a new length.
    """

    is_folder: bool
    entries: dict[str, "Node"] = field(default_factory=dict)
    content: bytes = b""
    source: Path | None = None
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)


@dataclass(eq=False)
class Change:
    """A change of entries: (folder, name) that goes, (folder, name) that comes, and what it is about."""

    node: Node
    gone: tuple[Node, str] | None
    come: tuple[Node, str] | None

    def apply(self) -> None:
        if self.gone and self.gone[0].entries.get(self.gone[1]) is self.node:
            del self.gone[0].entries[self.gone[1]]
        if self.come:
            self.come[0].entries[self.come[1]] = self.node


def operations(trace: Path) -> Iterator[tuple[str, str, str, int, bytes]]:
    """(what, path, other path, offset, bytes) of every line of a trace."""
    with trace.open("rb") as file:
        while head := file.readline():
            what, path, other, offset, length = head.decode().rstrip("\n").split("\t")
            yield what, path, other, int(offset), file.read(int(length))


class Disk:
    """A disk on which a recorded run happens again, operation by operation.

    Args:
        root: the folder as it was before the run.
    """

    def __init__(self, root: Path) -> None:
        self.root = _tree(root)
        #: how the running program sees the names; equal to `root` once everything is synchronised
        self._seen: dict[str, Node] = {}
        self._folders: list[Node] = []
        self._index(self.root, str(root))
        self.changes: list[Change] = []
        self.said = b""

    def _index(self, node: Node, path: str) -> None:
        self._seen[path] = node
        self._folders += [node] if node.is_folder else []
        for name, inner in node.entries.items():
            self._index(inner, f"{path}/{name}")

    def do(self, what: str, path: str, other: str, offset: int, data: bytes) -> None:
        """Replay one operation."""
        if what == "say":
            self.said += data
        elif what in ("create", "folder"):
            node = Node(what == "folder")
            self._index(node, path)
            self._change(node, None, path)
        elif what == "write" and path in self._seen:
            self._seen[path].pending.append((offset, data))
        elif what == "truncate" and path in self._seen:
            self._seen[path].pending.append((offset, None))
        elif what == "sync":
            self._unseen(path, data)
            self._sync(self._seen[path], data)
        elif what == "remove":
            self._change(self._seen.pop(path), path, None)
        elif what == "rename":
            self._unseen(path, data)
            self._change(self._seen[path], path, other)
            self._seen.pop(other, None)
            for seen in [each for each in self._seen if each == path or each.startswith(path + "/")]:
                self._seen[other + seen[len(path) :]] = self._seen.pop(seen)

    def _unseen(self, path: str, data: bytes) -> None:
        """Take in a file that a library made by system calls that the trace does not see; its bytes are not on the disk yet."""
        if path not in self._seen:
            node = Node(False, pending=[(0, data)])
            self._index(node, path)
            self._change(node, None, path)

    def _change(self, node: Node, gone: str | None, come: str | None) -> None:
        places = [path and (self._seen[os.path.dirname(path)], os.path.basename(path)) for path in (gone, come)]  # noqa: PTH119, PTH120
        self.changes.append(Change(node, places[0] or None, places[1] or None))

    def _sync(self, node: Node, data: bytes) -> None:
        if not node.is_folder:
            node.content, node.source, node.pending = data, None, []
            return
        safe = [
            change for change in self.changes if node in [place[0] for place in (change.gone, change.come) if place]
        ]
        for change in safe:
            change.apply()
        self.changes = [change for change in self.changes if change not in safe]

    def after_power_loss(self, folder: Path, draw: random.Random, kept: float) -> None:
        """Write into an empty folder what is on the disk after a power loss now.

        Args:
            draw: decides. kept: chance of every change that is not synchronised: 0 none, 1 all.
        """
        before = [(node, dict(node.entries)) for node in self._folders]
        for change in self.changes:
            if draw.random() < kept:
                change.apply()
        _write(self.root, folder, draw, kept)
        for node, entries in before:
            node.entries = entries


def _tree(path: Path) -> Node:
    if not path.is_dir():
        return Node(False, source=path)
    return Node(True, {inner.name: _tree(inner) for inner in path.iterdir()})


def _content(node: Node) -> bytes:
    return node.content if node.source is None else node.source.read_bytes()


def _written(content: bytes, writes: list[tuple[int, bytes | None]]) -> bytes:
    data = bytearray(content)
    for offset, new in writes:
        if new is None:
            data = data[:offset].ljust(offset, b"\0")
        else:
            data[len(data) :] = bytes(max(0, offset - len(data)))
            data[offset : offset + len(new)] = new
    return bytes(data)


def _write(node: Node, folder: Path, draw: random.Random, kept: float) -> None:
    folder.mkdir()
    for name, inner in node.entries.items():
        if inner.is_folder:
            _write(inner, folder / name, draw, kept)
        elif inner.source is not None and not inner.pending:
            os.link(inner.source, folder / name)
        else:
            writes: list[tuple[int, bytes | None]] = []
            for offset, new in inner.pending:
                if draw.random() < kept:
                    writes.append((offset, new))
                elif new is not None and draw.random() < kept:
                    writes.append((offset, bytes(len(new))))
            (folder / name).write_bytes(_written(_content(inner), writes))


def power_losses(campaign: Campaign, count: int) -> Findings:
    """Record a run of every command, and lose the power at moments of it: all unsynchronised changes, none, or half of them."""
    found = Findings()
    for scene, share in campaign.in_time(campaign.shares(count)):
        found.add(losses_of(campaign, scene, math.ceil(share / TURNS)))
    return found


def losses_of(campaign: Campaign, scene: Scene, points: int) -> Findings:
    """Record one run, and lose the power at that many moments of it, TURNS times at each."""
    found, before, folder = Findings(), look(scene.before), campaign.bench.folder
    kept_before = folder / "power" / "before"
    shutil.rmtree(kept_before.parent, ignore_errors=True)
    scene.case(kept_before)
    store, trace = scene.case(folder / "case"), folder / "trace"
    end = campaign.bench.run(store, scene.words, plan=plan("nothing"), trace=str(trace), **campaign.job)
    if end.code != 0:
        found.wrong(f"{scene.name}: exit {end.code} while recording: {end.err[-300:]}")
        return found
    recorded = list(operations(trace))
    disk, moments, draw = Disk(kept_before), set(spread(len(recorded), points)), campaign.draw
    prefix, case = str(folder / "case"), folder / "case"
    for at, (what, path, other, offset, data) in enumerate(recorded, 1):
        here, there = (each.replace(prefix, str(kept_before), 1) for each in (path, other))
        disk.do(what, here, there, offset, data)
        if at not in moments:
            continue
        for turn, kept in enumerate((0.0, 1.0, *[0.5] * (TURNS - 2))):
            shutil.rmtree(case)
            disk.after_power_loss(case, draw, kept)
            problems = one_loss(scene, case / "store", before, disk.said)
            if not problems and turn == TURNS - 1 and at % 3 == 0:
                problems = again(campaign, scene)
                found.count("commands typed again")
            for problem in problems:
                found.wrong(
                    f"{scene.name}, power loss after operation {at} ({what} {Path(path).name}), draw {turn}: {problem}"
                )
            found.count("power losses")
            found.count(f"after a {what}")
            found.count(f"in {scene.name}")
    found.count("operations recorded", len(recorded))
    return found


def one_loss(scene: Scene, store: Path, before: State, said: bytes) -> list[str]:
    """What is wrong with a store after a power loss."""
    now = look(store)
    gone = deletable(scene, before)
    end = End(0, said.decode("utf-8", "replace"), "", 0)
    problems = lost(before, now, gone) + promised(end, now)
    if scene.name in DELETERS and end.made:
        problems += [f"{ref} is back" for ref in gone if ref in now.ids and now.ids[ref] == before.ids[ref]]
        problems += [f"{path.name} is back in the trash" for path in store.glob("trash/*")]
    return problems
