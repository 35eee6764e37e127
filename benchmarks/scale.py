"""Every stage on generated logs of 10,000, 100,000 and 1,000,000 users: seconds, peak memory, users a second, exponents.

    python benchmarks/scale.py --users 10000,100000                   # some minutes
    python benchmarks/scale.py --users 10000,100000,1000000           # hours on two cores; see docs/scale.md

Each stage runs in a fresh process, whose peak memory is that of the process and of each of its workers. An exponent of 1
means that a figure grows with the number of users, 0 that it does not depend on it.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

EVENTS_PER_USER, ITEMS = 30, 100_000
_DAY = 86_400
#: sizes of the cloud model: about a quarter of the work of the defaults
SIZES = [
    part
    for size in ("item_size=32", "category_size=8", "history=20", "shared_negatives=256")
    for part in ("--set", f"train.sasrec.{size}")
]
#: stage → its command
STAGES = {
    "ingest": ["ingest", "LOG"],
    "train": ["train", "--model", "sasrec", "--on", "cloud", "--epochs", "1", *SIZES],
    "memory": ["memory"],
    "patch metapatch": [
        *("patch", "--cloud", "cloud@1", "--method", "metapatch", "--set", "patch.metapatch.basis_epochs=1")
    ],
    "patch memory": ["patch", "--cloud", "cloud@1", "--method", "memory"],
    "distill": ["distill", "--patches", "patches@1", "--epochs", "1"],
    "evaluate": ["evaluate", "cloud@1", "patches@1", "patches@2", "--against", "cloud@1", "--candidates", "100"],
    "recommend": ["recommend", "cloud@1", "--users", "@USERS", "--as-of", "test"],
    "score": ["score", "patches@2", "--user", "u7"],
    "export": ["export", "patches@2"],
    "audit": ["audit", "patches@2"],
    "train item-knn": ["train", "--model", "item-knn", "--on", "cloud"],
    "train ials": ["train", "--model", "ials", "--on", "cloud", "--set", "train.ials.sweeps=2"],
    "train tifu-knn": ["train", "--model", "tifu-knn", "--on", "cloud"],
    "train ease": ["train", "--model", "ease", "--on", "cloud"],
}
#: stages that are not run unless they are asked for: EASE takes a few thousand items
ON_DEMAND = ("train ease",)
#: users that `recommend` makes lists for: all items are scored for each, so that the time per user does not depend on how many
LISTED = 1000


def generate(path: Path, users: int, items: int, events_per_user: int = EVENTS_PER_USER, seed: int = 0) -> None:
    """Write a Parquet log in order of users: Zipf-like items, each user mostly in one of 200 kinds of items, one year."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(seed)
    share = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    by_rank = random.permutation(items)
    kinds = np.minimum(200, items // 50)
    writer = None
    for first in range(0, users, 50_000):
        some = np.arange(first, min(first + 50_000, users))
        counts = np.maximum(3, random.poisson(random.gamma(2.0, events_per_user / 2, len(some))))
        user = np.repeat(some, counts)
        item = by_rank[np.searchsorted(share, random.random(len(user)) * share[-1])]
        own = np.repeat(random.integers(0, kinds, len(some)), counts)
        item = np.where(random.random(len(user)) < 0.7, item // kinds * kinds + own, item) % items
        time_ = 1_700_000_000 + random.integers(0, 365 * _DAY, len(user))
        table = pa.table(
            {
                "user_id": pa.array(np.char.add("u", user.astype(str))),
                "item_id": pa.array(np.char.add("i", item.astype(str))),
                "timestamp": pa.array(time_),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def run(arguments: list[str], store: Path) -> dict[str, float]:
    """Wall and CPU seconds of a command in a fresh process, and the peak memory of the largest process, in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    code = (
        "import json, resource, sys\n"
        "from dcclctl.__main__ import main\n"
        "try: main()\n"
        "finally:\n"
        "  own, of = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "  print('PEAK', max(own, of), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *arguments, "--store", str(store), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DCCL_STORE": str(store)})
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    peak = int(next(line for line in done.stderr.splitlines()[::-1] if line.startswith("PEAK")).split()[1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "peak_mib": round(peak / 1024)}


def measure(
    users: int, events: int, items: int, folder: Path, stages: list[str], more: list[str]
) -> dict[str, dict[str, float]]:
    """Stage → its figures, on a log of so many users with so many events each."""
    place = folder / f"{users}x{events}x{items}"
    place.mkdir(parents=True, exist_ok=True)
    log, chosen = place / "log.parquet", place / "users.txt"
    if not log.exists():
        generate(log, users, items, events)
        chosen.write_text("\n".join(f"u{user}" for user in range(0, users, max(users // LISTED, 1))))
    known = place / "figures.json"
    found: dict[str, dict[str, float]] = json.loads(known.read_text()) if known.exists() else {}
    for stage in stages:
        arguments = [part.replace("LOG", str(log)).replace("USERS", str(chosen)) for part in STAGES[stage]]
        own = more if stage.split()[0] in ("patch", "evaluate") else []
        found[stage] = run([*arguments, *own], place / "store")
        print(f"{users:>9,} users  {stage:16s} {found[stage]}", flush=True)
        known.write_text(json.dumps(found, indent=1))
    return found


def exponents(figures: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print how each stage's CPU seconds and memory grow from one number of users to the next."""
    sizes = sorted(figures)
    for few, many in pairwise(sizes):
        for stage in figures[many].keys() & figures[few].keys():
            old, new = figures[few][stage], figures[many][stage]
            growth = {
                name: math.log(new[name] / old[name]) / math.log(many / few) for name in ("cpu_seconds", "peak_mib")
            }
            print(
                f"{few:,} → {many:,} users  {stage:16s} time {growth['cpu_seconds']:.2f}  memory {growth['peak_mib']:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="10000,100000")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--events", type=int, default=EVENTS_PER_USER, help="of each user, on average")
    parser.add_argument("--folder", type=Path, default=Path("dcclctl-scale"))
    parser.add_argument("--stages", default=",".join(each for each in STAGES if each not in ON_DEMAND))
    parser.add_argument(
        "more", nargs="*", help="options for the stages that work shard by shard, e.g. -- --executor local:2"
    )
    given = parser.parse_args()
    sizes = [int(part) for part in given.users.split(",")]
    stages, more = given.stages.split(","), given.more
    exponents({size: measure(size, given.events, given.items, given.folder, stages, more) for size in sizes})


if __name__ == "__main__":
    main()
