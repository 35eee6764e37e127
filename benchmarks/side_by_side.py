"""What the benchmarks share: two ways timed in turn, the logs they run on, and how a ratio is shown."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcclctl import Dataset, Store

HERE = Path(__file__).resolve().parent.parent
SAMPLE = "sample"


@dataclass(frozen=True)
class Ratio:
    """One result: how two ways compare.

    Attributes:
        what: what was compared, on which log.
        value: the ratio of the medians. spread: lowest and highest ratio of the single repetitions.
        target: what the ratio should be, e.g. "≥ 4"; empty where none is set.
        met: whether it is; None without a target.
    """

    what: str
    value: float
    spread: tuple[float, float]
    target: str
    met: bool | None
    unit: str = "×"

    @classmethod
    def faster(cls, what: str, slow: list[float], fast: list[float], at_least: float | None) -> "Ratio":
        """How many times faster one way is, from the seconds of repetitions that were run in pairs."""
        pairs = [a / b for a, b in zip(slow, fast, strict=True)]
        value = statistics.median(slow) / statistics.median(fast)
        target = "" if at_least is None else f"≥ {at_least:g}"
        return cls(what, value, (min(pairs), max(pairs)), target, None if at_least is None else value >= at_least)


def in_turn(
    ways: Mapping[str, Callable[[], Any]], times: int, clock: Callable[[], float] = time.process_time, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of every way, `times` repetitions in turn, so that all see the same moments of a busy machine.

    With `warm` each way runs once before, untimed: the first run pays for imports, memory and thread pools. The seconds are those of
    the processor, which say more where other programs run beside; `time.perf_counter` as the clock is for other processes.
    """
    for way in ways.values() if warm else ():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, way in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
    return seconds


def show(ratios: Iterable[Ratio]) -> None:
    """One line a ratio on stdout."""
    for ratio in ratios:
        verdict = {None: "", True: "met", False: "MISSED"}[ratio.met]
        low, high = ratio.spread
        print(f"{ratio.what:58} {ratio.value:7.2f}{ratio.unit:4} ({low:.2f} … {high:.2f})  {ratio.target:9} {verdict}")


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, load of the last minute, versions."""
    from importlib.metadata import version

    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    versions = {name: version(name) for name in ("torch", "numpy", "polars")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "load": load,
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def write_results(path: Path, about: dict[str, Any], ratios: Iterable[Ratio], found: dict[str, Any]) -> None:
    """Write results as JSON: the machine as it was, every ratio, and what was measured."""
    document = {"machine": about, "ratios": [asdict(ratio) for ratio in ratios], "measured": found}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def flags(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark on logs has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ml-100k/ and amazon-beauty/ (or DCCL_DATA)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, the same for both ways")
    parser.add_argument("--times", type=int, default=5, help="repetitions of each way; medians are compared")
    return parser


def find_data(given: Path | None) -> Path | None:
    """The folder with the real logs: --data, else DCCL_DATA, else shared/data beside a folder above; None if nowhere."""
    named = given or (Path(os.environ["DCCL_DATA"]) if os.environ.get("DCCL_DATA") else None)
    folders = [named] if named else [parent / "shared" / "data" for parent in HERE.parents]
    return next((folder for folder in folders if folder.is_dir()), None)


def logs(wanted: Iterable[str], data: Path | None) -> list[str]:
    """The wanted logs that are there; the sample log, with a remark, if one is not."""
    found = [name for name in wanted if data is not None and (data / name).is_dir()]
    missing = [name for name in wanted if name not in found]
    if missing:
        print(f"no {', '.join(missing)} (give the folder with --data): the sample log instead, which has no target")
    return found + ([SAMPLE] if missing else [])


def ingested(name: str, data: Path | None, store: "Store") -> "Dataset":
    """One log as a dataset."""
    import dcclctl

    sample = HERE / "sample_data"
    columns = {"user": "household_id", "item": "product_id", "time": "time"}
    sources: dict[str, tuple[Path, Path | None, dict[str, Any]]] = {
        SAMPLE: (sample / "purchases.csv.gz", sample / "products.csv.gz", {"map": columns})
    }
    if data is not None:
        beauty, movies = data / "amazon-beauty", data / "ml-100k"
        sources["amazon-beauty"] = (beauty / "events.csv.gz", beauty / "items.csv", {"split": "leave-one-out"})
        sources["ml-100k"] = (movies / "ml-100k.inter", None, {"split": "per-user"})
    log, items, settings = sources[name]
    return dcclctl.ingest(log, store=store, items=items, **settings)
