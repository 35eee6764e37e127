"""What every part of the campaign is given, and what it hands back."""

import math
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from reliability.bench import Bench
from reliability.scenes import COMMANDS, Scene, build

T = TypeVar("T")


@dataclass
class Findings:
    """What a part did and found.

    Attributes:
        phases: what was done → how often. problems: what went wrong; empty if the promise holds.
    """

    phases: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def count(self, phase: str, number: int = 1) -> None:
        self.phases[phase] = self.phases.get(phase, 0) + number

    def wrong(self, what: str) -> None:
        self.problems.append(what)

    def add(self, other: "Findings") -> None:
        for phase, number in other.phases.items():
            self.count(phase, number)
        self.problems += other.problems


@dataclass(frozen=True)
class Campaign:
    """The commands with the stores that they find, and the processes that run them.

    Attributes:
        seed: of every draw of the campaign. plant: name of the bug that is planted in the program; '' for none.
        until: moment of `time.monotonic` after which no part begins another case.
    """

    bench: Bench
    scenes: dict[str, Scene]
    seed: int = 0
    plant: str = ""
    until: float = math.inf

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    @property
    def job(self) -> dict[str, str]:
        """What every command is run with."""
        return {"plant": self.plant} if self.plant else {}

    @property
    def draw(self) -> random.Random:
        return random.Random(self.seed)

    def only(self, *names: str) -> "Campaign":
        """The same with some of the commands."""
        return replace(self, scenes={name: self.scenes[name] for name in names if name in self.scenes})

    def with_bug(self, plant: str) -> "Campaign":
        """The same with a bug planted in the program."""
        return replace(self, plant=plant)

    def shares(self, count: int) -> Iterator[tuple[Scene, int]]:
        """Every scene with its share of a number of cases, by how many operations on files its command does; at least one."""
        total = sum(scene.end.count for scene in self.scenes.values()) or 1
        for scene in self.scenes.values():
            yield scene, max(1, math.ceil(count * scene.end.count / total))

    def in_time(self, cases: Iterable[T]) -> Iterator[T]:
        """The cases in an order that is drawn, until it is late: so a campaign that is cut short has seen all commands."""
        drawn = list(cases)
        self.draw.shuffle(drawn)
        for case in drawn:
            if self.late:
                return
            yield case


@contextmanager
def prepared(names: Sequence[str] = tuple(COMMANDS), seed: int = 0) -> Iterator[Campaign]:
    """Build the library of faults, start the process that runs commands, and the stores that the commands find."""
    with tempfile.TemporaryDirectory(prefix="dcclctl-reliability-") as folder, Bench(Path(folder)) as bench:
        yield Campaign(bench, build(bench, names), seed)


def spread(count: int, points: int) -> list[int]:
    """At most `points` of the numbers 1 … count, evenly spread, both ends among them."""
    if count <= points:
        return list(range(1, count + 1))
    return sorted({1 + round(at * (count - 1) / max(1, points - 1)) for at in range(points)})
