"""Where torch runs is settled once, before anything is named by it."""

import platform
import subprocess
import sys

import pytest
import torch
from world import World, dcclctl

from dcclctl.config import TrainConfig
from dcclctl.errors import UsageError
from dcclctl.stages.compute import available_cores, keep_freed_memory, settle


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_replaced_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = settle(TrainConfig())
    assert (settled.device, settled.threads) == ("cpu", available_cores())
    assert torch.get_num_threads() == available_cores()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert settle(TrainConfig()).device == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settle(TrainConfig()).device == "cuda"


def test_what_is_asked_for_stays() -> None:
    settled = settle(TrainConfig(device="cpu", threads=1, epochs=3))
    assert settled == TrainConfig(device="cpu", threads=1, epochs=3)
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
        "from dcclctl.stages.compute import keep_freed_memory\n"
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
