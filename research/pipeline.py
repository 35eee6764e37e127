"""What the studies on whole logs share: the logs, and a runner of commands that reuses what is in the store."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from dcclctl.metrics.groups import paired_differences
from dcclctl.metrics.significance import compare

HERE = Path(__file__).resolve().parent.parent
#: the folder with the public logs, see research/README.md
DATA = Path(os.environ.get("DCCL_DATA", HERE.parent / "shared" / "data"))
#: weeks of 2017: cloud 1-30, device 31-40, valid 41-43, test 44-47
_WEEKS = "2017-07-24T04:00:00Z,2017-10-02T04:00:00Z,2017-10-23T04:00:00Z"


def ingest_arguments(data: Path, journey: Path = Path()) -> dict[str, list[str]]:
    """Arguments of `ingest` for every log.

    Args:
        data: folder with the public logs. journey: folder of research/complete_journey.py.
    """
    data = data.resolve()  # commands run in the repository's root
    grocery, beauty, sample = data / "grocery", data / "amazon-beauty", HERE / "sample_data"
    ml = str(data / "ml-100k" / "ml-100k.inter")
    columns = ["--map", "user=household_id,item=product_id,time=time"]
    whole = [str(journey / "purchases.parquet"), "--items", str(journey / "products.parquet")]
    whole += ["--users", str(journey / "households.parquet"), *columns, "--periods", _WEEKS, "--min-item-events", "20"]
    part = [str(sample / "purchases.csv.gz"), "--items", str(sample / "products.csv.gz")]
    part += ["--users", str(sample / "households.csv.gz"), *columns]
    return {
        "ml-100k": [ml, "--split", "per-user"],
        "ml-100k-loo": [ml, "--split", "leave-one-out"],
        "grocery": [str(grocery / "events.tsv"), "--items", str(grocery / "items.tsv")],
        "amazon-beauty": [
            *[str(beauty / "events.csv.gz"), "--items", str(beauty / "items.csv")],
            *["--split", "leave-one-out"],
        ],
        "journey-first": [*whole, "--repeats", "first"],
        "journey-repeats": [*whole, "--repeats", "keep"],
        "sample": [*part, "--repeats", "first"],
        "sample-repeats": [*part, "--repeats", "keep"],
    }


class Runner:
    """Runs commands on one store, and keeps what they cost."""

    def __init__(self, store: Path, threads: int, given: dict[str, str] | None = None) -> None:
        """Args: given has names that are not run, and what stands for them."""
        self.store, self.threads, self.made = store.resolve(), threads, dict(given or {})
        self.asked: dict[str, tuple[str, ...]] = {}
        self.costs: dict[str, dict[str, object]] = {}

    def __call__(self, name: str, command: str, *arguments: str) -> str:
        """The reference of what the command made; `name` is for the log and the costs, and means one command for good."""
        if self.asked.setdefault(name, (command, *arguments)) != (command, *arguments):
            raise RuntimeError(f"{name} is {' '.join(self.asked[name])} already, not {command} {' '.join(arguments)}")
        if name in self.made:
            return self.made[name]
        compute = ["--threads", str(self.threads)] if command not in ("ingest", "memory", "export", "collect") else []
        line = [sys.executable, "-m", "dcclctl", command, *arguments, *compute, "--store", str(self.store), "--json"]
        started = time.perf_counter()
        done = subprocess.run(line, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(line)}\n{done.stderr}")
        document = json.loads(done.stdout.strip().splitlines()[-1])
        seconds = time.perf_counter() - started
        reference = str(document["ref"])
        if not document["reused"]:
            run = json.loads((self._folder(reference) / "run.json").read_text())
            self.costs[name] = {"seconds": round(seconds, 1), "command": " ".join(line[3:]), "run": run}
        print(f"    {name}: {reference} {seconds:.1f} s", flush=True)
        self.made[name] = reference
        return reference

    def _folder(self, reference: str) -> Path:
        kind, number = reference.split("@")
        return self.store / kind / "v" / f"{int(number):06d}"

    def facts(self, reference: str) -> dict[str, Any]:
        """What an artifact's manifest says of it."""
        found: dict[str, Any] = json.loads((self._folder(reference) / "manifest.json").read_text())["facts"]
        return found

    def read(self, reference: str, name: str) -> pl.DataFrame:
        """A table of an artifact."""
        return pl.read_parquet(self._folder(reference) / name)

    def table(self, reference: str) -> pl.DataFrame:
        """Per-user metrics of an evaluation."""
        return self.read(reference, "per_user.parquet")


def plain(table: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """Per-user metrics with the models named as in `names`, in their order, and sampled metrics under their plain names."""
    order = table["subject"].unique(maintain_order=True).to_list()
    table = table.rename({name: name.partition("/")[0] for name in table.columns if "/" in name} | {"auc": "gauc"})
    return table.with_columns(pl.col("subject").replace_strict(dict(zip(order, names, strict=True))))


def difference(table: pl.DataFrame, subject: str, against: str, metric: str, group: str) -> str:
    """A model's difference to another one, paired by user, with its interval; in points."""
    found = compare(paired_differences(table, subject, against), groups=(group,), seed=0)
    row = found.filter(pl.col("metric") == metric).row(0, named=True)
    return f"{100 * row['difference']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
