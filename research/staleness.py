"""What a bundle is worth when it is some blocks old, while the device's ring goes on: the table in research/results/bundles.md.

    python research/staleness.py --out results/ [LOG …] [--seeds 0,1,2] [--journey complete_journey/]

LOG is one of pipeline.ingest_arguments (default: ml-100k sample-repeats). The device period is cut into six blocks. The
cloud model learns block after block; after a block the cloud counts statistics and learns patches on that block. All are
scored on the sixth block: the patches after the fifth block are new, those after the fourth one block old, and so on. The
devices' memories hold all that came before each scored event. A bundle in fp32 gives the patches' metrics to the fourth
digit, so the patches are scored in its place.
"""

import argparse
from pathlib import Path

import polars as pl
from figures import mean_over_seeds
from pipeline import DATA, Runner, difference, ingest_arguments, plain

BLOCKS = 6
#: block after which a bundle is made → its age in blocks when the last one is scored
AGES = {5: 0, 4: 1, 3: 2, 1: 4}
METRICS = ("gauc", "ndcg@10")


def one_seed(run: Runner, dataset: str, seed: int, first: list[str]) -> pl.DataFrame:
    """The per-user table of all ages under one seed.

    Args:
        first: flags of the first training.
    """
    s = ["--seed", str(seed)]
    model, models, names = run(f"train {seed}", "train", "--dataset", dataset, *first, *s), [], []
    for block in range(1, BLOCKS):
        on = f"device:{block}/{BLOCKS}"
        model = run(f"continue {block} {seed}", "train", "--continue", model, "--on", on, *s)
        if block in AGES:
            memory = run(f"memory {block}", "memory", "--dataset", dataset, "--counted-through", on)
            models += [
                run(f"patch {block} {seed}", "patch", "--cloud", model, "--memory", memory, "--on", on, *s),
                model,
            ]
            names += [f"memory {AGES[block]}", f"cloud {AGES[block]}"]
    target = ["--on", f"device:{BLOCKS}/{BLOCKS}", "--candidates", "100", *s]
    return plain(run.table(run(f"evaluate {seed}", "evaluate", *models, *target)), names)


def table_of(tables: list[pl.DataFrame]) -> str:
    """A row for each age: GAUC and NDCG@10, the difference to new patches, and that to the newest cloud model alone."""
    joint = mean_over_seeds(tables)
    lines = [
        "| blocks old | metric | its cloud model | with patches | against new patches | against the newest cloud model |",
        "|---|---|---|---|---|---|",
    ]
    for age in AGES.values():
        for metric in METRICS:
            values = [
                100 * float(joint.filter(pl.col("subject") == name)[metric].mean())  # type: ignore[arg-type]
                for name in (f"cloud {age}", f"memory {age}")
            ]
            cells = [f"{value:.2f}" for value in values]
            for against in ("memory 0", "cloud 0"):
                subject = f"memory {age}"
                cells.append("" if subject == against else difference(joint, subject, against, metric, "all"))
            lines.append(f"| {age} | {metric.upper()} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="*", default=["ml-100k", "sample-repeats"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--journey", type=Path, default=Path(), help="folder of research/complete_journey.py")
    parser.add_argument("--epochs", type=int, default=0, help="of the first training; 0: until it ranks no better")
    options = parser.parse_args()
    first = ["--epochs", str(options.epochs)] if options.epochs else []
    options.out.mkdir(parents=True, exist_ok=True)
    for log in options.logs:
        print(log, flush=True)
        run = Runner(options.out / f"{log}.staleness.store", options.threads)
        dataset = run("ingest", "ingest", *ingest_arguments(options.data, options.journey.resolve())[log])
        tables: list[pl.DataFrame] = []
        for seed in options.seeds.split(","):
            tables.append(one_seed(run, dataset, int(seed), first))
            text = table_of(tables)
            (options.out / f"{log}.staleness.md").write_text(text)
            print(text, flush=True)


if __name__ == "__main__":
    main()
