"""The same stages on a GPU and on the CPU: events a second, users a second, and how far the figures are apart. Ten minutes.

    python benchmarks/gpu.py --users 50000 --json benchmarks/gpu.json      # needs CUDA; --device cpu tries the script itself

Both devices get the log of benchmarks/scale.py. Training draws the same events and negatives, but sums in another order, so
weights differ after a while; parity is therefore that of one model, trained on the CPU and scored on both devices.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from scale import generate

#: of the log
ITEMS = 20_000


def timed(work: Any) -> tuple[Any, float]:
    """What a function returns, and its seconds."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def stages(log: Path, folder: Path, device: str) -> dict[str, Any]:
    """Rates of the stages that compute, on one device; and the store they were run in."""
    import dcclctl

    store = dcclctl.Store(folder / device)
    data = dcclctl.ingest(log, store=store)
    cloud, training = timed(
        lambda: dcclctl.train(data, model="sasrec", on="cloud", epochs=1, device=device, force=True)
    )
    patches, patching = timed(
        lambda: dcclctl.patch(
            cloud, method="metapatch", device=device, force=True, **{"patch.metapatch.basis_epochs": 1}
        )
    )
    found, scoring = timed(lambda: dcclctl.evaluate([cloud, patches], candidates="all", device=device, force=True))
    return {
        "train_events_per_second": round(cloud.facts["trained_on_events"] / training),
        "patch_users_per_second": round(patches.facts["users"] / patching),
        "ranked_events_per_second": round(2 * found.facts["events"] / scoring),
        "seconds": {"train": round(training, 1), "patch": round(patching, 1), "evaluate": round(scoring, 1)},
    }


def parity(folder: Path, device: str) -> dict[str, float]:
    """Largest difference of a user's figures, one model scored on both devices; and of the means."""
    import polars as pl

    import dcclctl

    store = dcclctl.Store(folder / "cpu")
    cloud = store.resolve("cloud@latest")
    tables = [
        dcclctl.evaluate([dcclctl.CloudModel(cloud)], candidates="all", device=each, force=True).per_user
        for each in ("cpu", device)
    ]
    names = [name for name, kind in tables[0].schema.items() if kind == pl.Float64]
    away = [(tables[0][name] - tables[1][name]).abs() for name in names]
    means = [abs((tables[0][name].mean() or 0) - (tables[1][name].mean() or 0)) for name in names]
    return {"largest_of_a_user": max(float(each.max() or 0) for each in away), "largest_of_a_mean": max(means)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    given = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generate(folder / "log.parquet", given.users, ITEMS)
        found: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if given.device == "cuda" else "",
            "torch": torch.__version__,
            "users": given.users,
            "items": ITEMS,
            "cpu": stages(folder / "log.parquet", folder, "cpu"),
        }
        if given.device != "cpu":
            found[given.device] = stages(folder / "log.parquet", folder, given.device)
        found["parity"] = parity(folder, given.device)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
