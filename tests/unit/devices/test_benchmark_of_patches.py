"""The benchmark of patches compares equal work: its plain loops come to the θ̂ of `dcclctl patch`."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from world import World

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def test_the_plain_loops_come_to_the_same_codes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcclctl.artifacts import CloudModel
    from dcclctl.store.store import Store

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    patch = importlib.import_module("patch")
    bench = patch.bench_of(CloudModel(Store(world.copy(tmp_path / "shop")).resolve("cloud@1")))
    users = np.unique(bench.devices.log.user[bench.events])[:20]
    patch.check(bench, users)
    assert capsys.readouterr().out.count("same θ̂ as the loop") == 2
    monkeypatch.setattr(patch, "EPSILON", 1e-8)
    with pytest.raises(SystemExit, match="differ by"):
        patch.check(bench, users)
