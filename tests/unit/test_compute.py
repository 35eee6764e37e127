"""Where torch runs is settled once, before anything is named by it."""

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from world import World, dcclctl

from dcclctl import compute
from dcclctl.compute import (
    PASSIVE_WAITING,
    compute_settings,
    cpu_quota,
    default_threads,
    keep_freed_memory,
    settle,
    settled,
)
from dcclctl.config import TrainConfig
from dcclctl.errors import UsageError


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_replaced_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle(TrainConfig())
    assert (settled.device, settled.threads) == ("cpu", default_threads())
    assert torch.get_num_threads() == default_threads()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert settle(TrainConfig()).device == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settle(TrainConfig()).device == "cuda"


@pytest.mark.parametrize(
    ("cores", "variable", "said"),
    [
        (2, "", "2 threads (2 cores; --threads to change)"),
        (8, "3", "3 threads (8 cores; --threads to change)"),
        (1, "", "1 thread (1 core; --threads to change)"),
    ],
)
def test_the_number_of_threads_is_said(
    shop: Path, monkeypatch: pytest.MonkeyPatch, cores: int, variable: str, said: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(compute, "cpu_quota", lambda: math.inf)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    shown = dcclctl("train", "--model=popularity", store=shop)
    assert shown.stderr.splitlines()[0] == said
    assert said not in shown.stdout
    for silent in (["--quiet"], ["--threads=1"], ["--set=train.threads=1"]):
        assert "thread" not in dcclctl("train", "--model=popularity", *silent, store=shop).stderr


def test_a_gpu_that_is_chosen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    auto = TrainConfig(threads=1)
    assert compute.in_words(auto, settled(auto)) == "computing on cuda (--device to change)"
    assert compute.in_words(TrainConfig(device="cpu", threads=1), settled(TrainConfig(device="cpu", threads=1))) == ""


def test_what_is_asked_for_stays() -> None:
    settled = settle(TrainConfig(device="cpu", threads=1, seed=3))
    assert settled == TrainConfig(device="cpu", threads=1, seed=3)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_a_device_that_is_not_there(world: World) -> None:
    with pytest.raises(UsageError, match="--device cuda: torch finds none") as error:
        settle(TrainConfig(device="cuda"))
    assert "Available: cpu" in error.value.remedy
    for command in (["train"], ["patch"], ["distill"], ["evaluate"], ["score", "patches", "--user=u1"]):
        result = dcclctl(*command, "--device=mps", store=world.root)
        assert result.exit_code == 2 and "Available: cpu" in result.stderr
    assert not world.store.numbers("memory")


def test_the_manifest_names_device_and_threads(world: World) -> None:
    for ref in ("cloud@1", "patches@1", "cloud@2", "evaluation@1"):
        config = world.artifact(ref).config
        assert config["threads"] == 1
        assert config["device"] in ("cpu", "cuda", "mps")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_where_there_is_glibc() -> None:
    """A block that is freed and asked for again costs no page faults again, once there has been room for it."""
    code = (
        "import resource, sys, torch\n"
        "from dcclctl.compute import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': assert keep_freed_memory()\n"
        "def fill(): torch.ones(50_000_000 // 4)\n"
        "for _ in range(10): fill()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): fill()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "return")
    )
    assert kept < returned / 20


def test_without_glibc_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


def state() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settings_hold_for_the_body_only(device: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    kept = []
    monkeypatch.setattr(compute, "keep_freed_memory", lambda: kept.append(1))
    outside = state()
    try:
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(deterministic, warn_only=deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = not deterministic
        before = state()
        with pytest.raises(KeyError), compute_settings(TrainConfig(device=device, threads=2)) as config:
            assert config == TrainConfig(device=device, threads=2)
            assert state() == (2, True, False, False, ":4096:8" if device == "cuda" else None)
            raise KeyError
        assert state() == before
        assert not kept  # it cannot be put back, and nobody said that this process is dcclctl's own
        monkeypatch.setattr(compute, "_owned", True)
        with compute_settings(TrainConfig(device="cpu")) as config:
            assert torch.get_num_threads() == config.threads == default_threads()
        assert kept
    finally:
        torch.set_num_threads(outside[0])
        torch.use_deterministic_algorithms(outside[1], warn_only=outside[2])
        torch.utils.deterministic.fill_uninitialized_memory = outside[3]


def test_what_is_settled_changes_nothing() -> None:
    before = state()
    assert settled(TrainConfig(threads=7)).threads == 7
    assert settled(TrainConfig()).device == "cpu"
    assert state() == before


@pytest.mark.parametrize(
    ("cores", "quota", "asked", "threads"),
    [
        (8, math.inf, "", 8),
        (8, 2.5, "", 2),
        (8, 0.5, "", 1),
        (8, math.inf, "3", 3),
        (8, math.inf, "3,2", 3),
        (8, 2.0, "3", 2),
        (2, math.inf, "64", 2),
        (8, math.inf, "many", 8),
        (8, math.inf, "0", 8),
    ],
)
def test_the_default_is_what_this_process_may_use(
    cores: int, quota: float, asked: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(compute, "cpu_quota", lambda: quota)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    # the load has no say: the same command must find the same artifact
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 100.0, 100.0))
    assert default_threads() == settled(TrainConfig()).threads == threads
    assert settled(TrainConfig(threads=5)).threads == 5


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5),
        ("0::/host/only\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "what?\n"}, math.inf),
        (
            "3:cpu,cpuacct:/d\n1:memory:/m\n0::/\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/d/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("3:cpu:/d\n", {"cpu/cpu.cfs_quota_us": "40000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 0.8),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "10\n", "cpuset/cpu.cfs_period_us": "100\n"}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_the_quota_of_a_container(groups: str | None, files: dict[str, str], quota: float, tmp_path: Path) -> None:
    for name, text in {f"sys/fs/cgroup/{name}": text for name, text in files.items()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    assert cpu_quota(tmp_path) == quota


def environment_at_import_of_torch(code: str, **given: str) -> dict[str, str]:
    """PASSIVE_WAITING's variables as a fresh interpreter has them when torch is imported, or at the end."""
    watch = (
        "import sys, os, json, importlib.abc\n"
        f"def told(): print(json.dumps({{n: os.environ.get(n) for n in {[*PASSIVE_WAITING]}}}), flush=True); os._exit(0)\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': told()\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    rest = {name: value for name, value in os.environ.items() if name not in PASSIVE_WAITING}
    ran = subprocess.run([sys.executable, "-c", watch + code], capture_output=True, text=True, env=rest | given)
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_threads_of_the_command_sleep_while_they_wait(world: World) -> None:
    command = (
        "from dcclctl.__main__ import main\n"
        f"sys.argv = ['dcclctl', 'train', '--epochs=1', '--store', {str(world.root)!r}]\n"
        "main()\n"
    )
    assert environment_at_import_of_torch(command) == PASSIVE_WAITING
    mine = {"OMP_WAIT_POLICY": "ACTIVE"}  # who asks for something else gets it
    assert environment_at_import_of_torch(command, **mine) == PASSIVE_WAITING | mine


def test_the_library_leaves_the_environment_alone() -> None:
    imports = "import dcclctl.cli.main, dcclctl.compute, dcclctl.stages.train, dcclctl.stages.evaluate\n"
    assert set(environment_at_import_of_torch(imports + "told()\n").values()) == {None}
