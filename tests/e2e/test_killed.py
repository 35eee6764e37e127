"""Runs that are killed or interrupted, and the same command typed again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from world import EVALUATE, PATCH, TRAIN, World, dcclctl, done

#: Sends itself a signal right after the method named in argv[2] has run for the argv[3]-th time.
STOP_AFTER = """
import os, signal, sys
from dcclctl.__main__ import main
from dcclctl.store.work import Work

number, name, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
method, calls = getattr(Work, name), []

def stopping(self, *arguments):
    done = method(self, *arguments)
    calls.append(arguments)
    if len(calls) == times:
        os.kill(os.getpid(), number)
    return done

setattr(Work, name, stopping)
sys.argv = ["dcclctl", *sys.argv[4:]]
main()
"""


def stopped(store: Path, number: signal.Signals, method: str, times: int, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that is stopped on its way."""
    command = [
        sys.executable,
        "-c",
        STOP_AFTER,
        str(int(number)),
        method,
        str(times),
        *arguments,
        "--store",
        str(store),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return ran.returncode, ran.stdout, ran.stderr


def without(shop: Path, *references: str) -> None:
    """Take artifacts out of a store."""
    for reference in references:
        folder = World(shop, shop, {}).artifact(reference).path
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


@pytest.fixture
def data_only(shop: Path) -> Path:
    without(shop, "evaluation@1", "patches@1", "cloud@2", "cloud@1")
    return shop


def test_train_killed_after_its_first_epoch(world: World, data_only: Path) -> None:
    code, out, _ = stopped(data_only, signal.SIGKILL, "checkpoint", 1, "train", *TRAIN)
    assert (code, out) == (-signal.SIGKILL, "")
    assert done("artifacts", "list", "--kind=cloud", store=data_only)["artifacts"] == []
    made = done("train", *TRAIN, store=data_only)
    assert (made["id"], made["reused"]) == (world.ids["train"], False)
    again = World(data_only, data_only, {}).artifact(made["ref"])
    assert again.run["resumed"]
    # the first epoch was not done again: each epoch has one line
    assert (again.path / "metrics.jsonl").read_text().count('"epoch":1,') == 1


def test_patch_killed_between_shards(world: World, shop: Path) -> None:
    without(shop, "patches@1")
    # write 1 is μ, write 2 the basis, write 3 who is patched, write 4 the first shard of 20 users, of three
    code, out, _ = stopped(shop, signal.SIGKILL, "write_tensors", 4, "patch", "--users=tail", "--cloud=cloud@1", *PATCH)
    assert (code, out) == (-signal.SIGKILL, "")
    (first,) = shop.glob("patches/work/*/theta-00000.safetensors")
    assert not list(shop.glob("patches/work/*/theta-00001.safetensors"))
    written = first.stat()
    made = done("patch", "--users=tail", "--cloud=cloud@1", *PATCH, store=shop)
    assert (made["id"], made["reused"]) == (world.ids["patch"], False)
    kept = World(shop, shop, {}).artifact(made["ref"]).path / first.name
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_torn_shard_is_made_again(world: World, shop: Path) -> None:
    without(shop, "patches@1")
    stopped(shop, signal.SIGKILL, "write_tensors", 4, "patch", "--users=tail", "--cloud=cloud@1", *PATCH)
    (first,) = shop.glob("patches/work/*/theta-00000.safetensors")
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.chmod(0o644)
    first.write_bytes(bytes(data))
    assert done("patch", "--users=tail", "--cloud=cloud@1", *PATCH, store=shop)["id"] == world.ids["patch"]


def test_a_part_of_an_evaluation_that_lost_one_of_its_files_is_scored_again(world: World, shop: Path) -> None:
    """As a kill during the commit and a power failure leave it."""
    without(shop, "evaluation@1")
    # write 1 is the values of the first part's users, write 2 those of all
    code, out, _ = stopped(shop, signal.SIGKILL, "write_table", 2, "evaluate", *EVALUATE)
    assert (code, out) == (-signal.SIGKILL, "")
    (table,) = shop.glob("evaluation/work/*/scored-00000.parquet")
    table.unlink()
    made = done("evaluate", *EVALUATE, store=shop)
    assert (made["id"], made["reused"]) == (world.ids["evaluate"], False)


def test_interrupt_exits_130_with_a_remark_and_continues(world: World, data_only: Path) -> None:
    code, out, err = stopped(data_only, signal.SIGINT, "checkpoint", 2, "train", *TRAIN)
    assert (code, out) == (130, "")
    assert err.splitlines() == ["", "interrupted: the same command continues where it stopped"]
    assert done("train", *TRAIN, store=data_only)["id"] == world.ids["train"]


def test_interrupt_in_this_process(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcclctl.devices.metapatch.HiddenDevices.fit", interrupt)
    result = dcclctl("patch", *PATCH, "--seed=3", store=shop)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "interrupted" in result.stderr
