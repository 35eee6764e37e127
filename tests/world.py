"""A tiny shop with known quirks, and the commands run on it in this process.

60 users and 80 items over 40 days: five users (n0 … n4) and four items (i76 … i79) appear only in the test period, some
items have no category, some users no profile, some events share a moment. Users prefer items of their own quarter.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dcclctl.cli.main import app
from dcclctl.store.store import Artifact, Store

if TYPE_CHECKING:
    from dcclctl.artifacts import CloudModel, Dataset, PatchSet

N_USERS, N_ITEMS, NEW_USERS = 60, 80, 5
START, DAY = 1_600_000_000, 86_400
#: small and quick, and on one thread so that two workers of the tests do not fight
SMALL = {"item_size": "8", "category_size": "4", "profile_size": "2", "attention_size": "8", "hidden_sizes": "16,8"}


def sets(prefix: str, **settings: object) -> tuple[str, ...]:
    """--set PREFIX.KEY=VALUE for each."""
    return tuple(f"--set={prefix}.{key}={value}" for key, value in settings.items())


def replaced(flags: tuple[str, ...], *changed: str) -> tuple[str, ...]:
    """The flags, with others in the place of those that set the same."""
    names = [flag.rpartition("=")[0] for flag in changed]
    return (*(flag for flag in flags if flag.rpartition("=")[0] not in names), *changed)


TRAIN = (
    *sets("train.din", **SMALL, history=8),
    *("--epochs=3", "--batch-size=32", "--learning-rate=0.03", "--threads=1"),
)
#: a weak prior and long steps, so that patches differ from the cloud model by more than rounding
PATCH = (
    *("--method=metapatch", "--prior=0.05", "--threads=1"),
    *sets("patch.metapatch", patch_size=4, bottleneck=2, basis_epochs=2, shard_users=20, learning_rate=0.2),
)
DISTILL = ("--epochs=1", *sets("distill.momodistill", basis_epochs=1, encoder_size=4, batch_size=128), "--threads=1")
EVALUATE = ("--k=3,10", "--threads=1")


def quiet_progress(what: str, done: float, total: float, note: str) -> None:
    """No progress."""


def rows(seed: int = 0) -> list[tuple[str, str, int, int]]:
    """(user, item, seconds, rating) of every event, in order of time."""
    draw = np.random.default_rng(seed)
    found = []
    for user in range(N_USERS):
        is_new = user >= N_USERS - NEW_USERS
        name = f"n{user - N_USERS + NEW_USERS}" if is_new else f"u{user}"
        n_events = 4 if is_new else int(draw.integers(6, 44))
        first, last = (37.5, 40.0) if is_new else (0.0, 40.0)
        for day in np.sort(draw.uniform(first, last, n_events)):
            usual = (user % 4) + 4 * int(draw.integers(0, 19))
            item = usual if draw.random() < 0.7 else int(draw.integers(0, 76))
            if day > 37.5 and draw.random() < 0.1:
                item = int(draw.integers(76, 80))
            # whole hours: two events of a user may share a moment
            found.append((name, f"i{item}", START + int(day * 24) * 3600, int(draw.integers(1, 6))))
    return sorted(found, key=lambda row: row[2])


def write_log(folder: Path) -> Path:
    """events.csv, users.csv and items.csv; returns the log."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id,item_id,timestamp,rating"] + [",".join(map(str, row)) for row in rows()]
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    users = [f"{row},{('young', 'old', '')[at % 3]},{('north', 'south')[at % 2]}" for at, row in enumerate(user_ids())]
    (folder / "users.csv").write_text("\n".join(["user_id,age,city", *users]) + "\n")
    items = [f"i{at},Thing {at},{'' if at % 10 == 9 else 'aisle ' + str(at % 4)}" for at in range(N_ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,name,category", *items]) + "\n")
    return folder / "events.csv"


def user_ids() -> list[str]:
    return [f"u{user}" for user in range(N_USERS - NEW_USERS)] + [f"n{user}" for user in range(NEW_USERS)]


def dcclctl(*arguments: object, store: Path | str | None = None) -> Result:
    """Run a command in this process; an exception that is no exit is raised."""
    words = [str(argument) for argument in arguments] + (["--store", str(store)] if store is not None else [])
    result = CliRunner().invoke(app, words, catch_exceptions=False, prog_name="dcclctl")
    assert "Traceback" not in result.output
    return result


def done(*arguments: object, store: Path | str) -> dict[str, Any]:
    """Run a command that must succeed, with --json; its object."""
    result = dcclctl(*arguments, "--json", store=store)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def ingest(folder: Path, store: Path | str, *flags: object) -> dict[str, Any]:
    log = write_log(folder)
    return done("ingest", log, "--users", folder / "users.csv", "--items", folder / "items.csv", *flags, store=store)


@dataclass(frozen=True)
class World:
    """A store in which every stage has run: dataset@1, cloud@1, patches@1 (tail), cloud@2 (distilled), evaluation@1."""

    root: Path
    log: Path
    ids: dict[str, str]

    def copy(self, to: Path) -> Path:
        """A store of its own with the same artifacts (hard links: committed files are never written again)."""
        shutil.copytree(self.root, to, copy_function=os.link)
        return to

    @property
    def store(self) -> Store:
        return Store(self.root)

    def ids_of(self, reference: str) -> str:
        return self.artifact(reference).id

    def artifact(self, reference: str) -> Artifact:
        return self.store.resolve(reference)

    def dataset(self) -> "Dataset":
        from dcclctl.artifacts import Dataset

        return Dataset(self.artifact("dataset@1"))

    def cloud(self, number: int = 1) -> "CloudModel":
        from dcclctl.artifacts import CloudModel

        return CloudModel(self.artifact(f"cloud@{number}"))

    def patches(self) -> "PatchSet":
        from dcclctl.artifacts import PatchSet

        return PatchSet(self.artifact("patches@1"))


def five_stages(folder: Path, store: Path | str) -> dict[str, str]:
    """The five commands one after another without any reference; stage → id."""
    made = {"ingest": ingest(folder, store)["id"]}
    made["train"] = done("train", *TRAIN, store=store)["id"]
    made["patch"] = done("patch", "--users=tail", *PATCH, store=store)["id"]
    made["distill"] = done("distill", *DISTILL, store=store)["id"]
    made["evaluate"] = done("evaluate", *EVALUATE, store=store)["id"]
    return made


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests; those that write take `copy`."""
    folder = tmp_path_factory.mktemp("world")
    ids = five_stages(folder / "log", folder / "store")
    return World(folder / "store", folder / "log" / "events.csv", ids)


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Path:
    """A store of this test's own, with everything that the world has."""
    return world.copy(tmp_path / "shop")
