"""The paper's loop on real logs, three seeds: where the tables of research/results/loop.md come from.

    python research/real_logs.py --out results/ [LOG …] [--seeds 0,1,2] [--periods valid,test]

LOG is one of ml-100k, ml-100k-loo, grocery, amazon-beauty, sample, sample-repeats (default: all). The first four need
the folder with the logs (--data, or DCCL_DATA); see research/README.md for where to get them.

For every seed: train on `cloud` (frozen), train it further on `device` (incremental, the strong control), patch on
`device`, distill, and patch the distilled model on `valid`. `valid` is the block right after what the first patches
and both cloud updates learned from; on `test` only the second patches are fresh. Everything goes through the command line.

Each log gives OUT/<log>.loop.md, a table of `test`, which research/results_page.py puts on its page, and
OUT/<log>.loop.rows.md, rows of all models, groups and periods. The store is OUT/<log>.loop.store.
"""

import argparse
import json
from pathlib import Path

import polars as pl
from figures import cell, table
from pipeline import DATA, Runner, ingest_arguments, plain
from study import METAPATCH, PAPER

from dcclctl.metrics.groups import paired_differences
from dcclctl.metrics.significance import compare

MODELS = ("frozen cloud", "incremental", "patched", "distilled", "distilled + encoder", "distilled + patched")
#: logs in which ranking everything for everybody would take hours on two cores
LARGE = ("grocery", "amazon-beauty")
LOGS = ("sample", "ml-100k", "grocery", "amazon-beauty", "ml-100k-loo", "sample-repeats")
COLUMNS = ("gauc", "hr@10", "ndcg@10")
CONTROL = "incremental"
#: the models of the short table, as it calls them
SHOWN = {
    "frozen cloud": "frozen cloud",
    CONTROL: "incremental (the control)",
    "patched": "frozen cloud, patched",
    "distilled": "distilled",
    "distilled + patched": "distilled, patched on `valid`",
}


def one_seed(run: Runner, name: str, seed: int, only: str, periods: list[str]) -> dict[str, pl.DataFrame]:
    """The loop under one seed; returns period → per-user table with the names in MODELS as subjects."""
    s = ["--seed", str(seed)]
    frozen = run(f"train {seed}", "train", "--dataset", only, *s)
    incremental = run(f"incremental {seed}", "train", "--continue", frozen, "--on", "device", *s)
    patched = run(f"patch {seed}", "patch", *METAPATCH, "--cloud", frozen, *s)
    distilled = run(f"distill {seed}", "distill", "--patches", patched, *PAPER, *s)
    again = run(f"patch distilled {seed}", "patch", *METAPATCH, "--cloud", distilled, "--on", "valid", *s)
    tables = {}
    sampled = ["--candidates", "300"] if name in LARGE else ["--candidates", "all"]
    for period in periods:
        names = {"frozen cloud": frozen, "incremental": incremental, "patched": patched, "distilled": distilled}
        names["distilled + encoder"] = f"{distilled}+encoder"
        if period == "test":
            names["distilled + patched"] = again
        reference = run(f"evaluate {period} {seed}", "evaluate", *names.values(), "--on", period, *sampled)
        tables[period] = plain(run.table(reference), names)
    return tables


def mean_over_seeds(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Each user's metrics, averaged over the seeds."""
    keys = ["subject", "user_index", "user_id", "group", "activity_group"]
    return pl.concat(tables).group_by(keys, maintain_order=True).agg(pl.col(*COLUMNS).mean())


def of_group(table: pl.DataFrame, model: str, group: str) -> pl.DataFrame:
    """Rows of one model's users in the group, or of all of them."""
    return table.filter((pl.col("subject") == model) & ((pl.col("group") == group) | (group == "all")))


def mean_and_spread(per_user: pl.DataFrame, each: list[pl.DataFrame], model: str, group: str, metric: str) -> str:
    """In points: mean over users and seeds ± half the range over seeds (a table for each)."""
    value, *seeds = (of_group(table, model, group)[metric].mean() for table in (per_user, *each))
    return f"{100 * value:.2f} ±{100 * (max(seeds) - min(seeds)) / 2:.2f}"


def lines_of(name: str, period: str, seeds: list[pl.DataFrame]) -> list[str]:
    """Markdown rows: points (×100) by model and group, and the paired difference to frozen and incremental."""
    per_user = mean_over_seeds(seeds)
    rows = []
    each = [mean_over_seeds([table]) for table in seeds]
    for subject in [model for model in MODELS if model in per_user["subject"].unique()]:
        for group in ("head", "tail", "new", "all"):
            mine = of_group(per_user, subject, group)
            if mine.is_empty():
                continue
            cells = [mean_and_spread(per_user, each, subject, group, metric) for metric in COLUMNS]
            for control in ("frozen cloud", CONTROL):
                if subject == control:
                    cells += ["", ""]
                    continue
                found = compare(paired_differences(per_user, subject, control), seed=0)
                for metric in ("gauc", "hr@10"):
                    row = found.filter((pl.col("group") == group) & (pl.col("metric") == metric)).row(0, named=True)
                    low, high = row["low"], row["high"]
                    interval = "" if low is None else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
                    cells.append(f"{100 * row['difference']:+.2f}{interval}")
            rows.append(f"| {name} | {period} | {subject} | {group} | {mine.height:,} | {' | '.join(cells)} |")
    return rows


def loop_table(seeds: list[pl.DataFrame]) -> str:
    """Markdown: models down; GAUC and HR@10 by group in points, and the paired difference to the control across."""
    per_user, each = mean_over_seeds(seeds), [mean_over_seeds([table]) for table in seeds]
    groups, compared = ("head", "tail", "all"), ("tail", "all")
    rows = []
    for model, called in SHOWN.items():
        cells = [mean_and_spread(per_user, each, model, g, metric) for metric in ("gauc", "hr@10") for g in groups]
        if model == CONTROL:
            cells += [""] * len(compared)
        else:
            found = compare(paired_differences(per_user, model, CONTROL), compared, seed=0).filter(metric="gauc")
            cells += [cell(row) for row in found.iter_rows(named=True)]
        rows.append([called, *cells])
    users = per_user.filter(pl.col("subject") == CONTROL)["group"].value_counts()
    count = dict(users.iter_rows()) | {"all": users["count"].sum()}
    title = [f"{name}, {group}" for name in ("GAUC", "HR@10") for group in groups]
    title += [f"Δ GAUC to the control, {group}" for group in compared]
    sizes = ", ".join(f"{group} {count[group]:,}" for group in groups)
    return table([f"model ({sizes} users)", *title], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LOG")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--periods", default="valid,test", help="to evaluate on; ranking everything takes most of the time"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    known = ingest_arguments(options.data)
    for name in options.names or LOGS:
        run = Runner(options.out / f"{name}.loop.store", options.threads)
        print(name, flush=True)
        dataset = run("ingest", "ingest", *known[name])
        periods = options.periods.split(",")
        tables: dict[str, list[pl.DataFrame]] = {period: [] for period in periods}
        for seed in map(int, options.seeds.split(",")):
            for period, per_user in one_seed(run, name, seed, dataset, periods).items():
                tables[period].append(per_user)
            (options.out / f"{name}.loop.costs.{seed}.json").write_text(json.dumps(run.costs, indent=1))
            written = [line for period, found in tables.items() for line in lines_of(name, period, found)]
            (options.out / f"{name}.loop.rows.md").write_text("\n".join(written) + "\n")
            if "test" in tables:
                (options.out / f"{name}.loop.md").write_text(loop_table(tables["test"]))
    print("see", options.out)


if __name__ == "__main__":
    main()
