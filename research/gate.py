"""Harm: one gate for everybody in place of a guard for each user, tried on tables that `evaluate` wrote. Nothing is trained.

    python research/gate.py --out results/ [--logs ml-100k,…] [--seeds 0,1,2]

Uses the models that the chapter `strong` of science.py left in the same folder (or makes them). A gate says, before the test period begins, which users are
served by the memory patch and which by the cloud model. Three gates, each with its threshold fixed on `valid`:

    size      users whose memory holds at least m events
    record    users whose held-back events the patch foretold better, by more than t nats (what `patch --guard` does with t = 0)
    learned   users with a predicted gain above t; the prediction is a ridge regression of the gain in NDCG@10 and GAUC on
              valid, on the logarithm of memory size, its square, the record shrunk by its number of events, and whether
              there is one; learned on one half of the users, used for the other half, and the other way round

A threshold is the one with the least estimated lasting harm among those that lose at most a tenth of the mean gain on
valid. Gain and harm are GAUC, `test`; harm is estimated from valid and test as in figures.py, among the users that keep the
patch, and counted among all. Writes OUT/<log>.gate.json and .md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from figures import Records, below_zero, mean_over_seeds, table
from pipeline import DATA, Runner, ingest_arguments
from study import ON_FURTHER, STRONG, Study

from dcclctl.metrics.groups import paired_differences

#: a gate may lose so much of the mean gain
LOST = 0.1
#: weight of the ridge, in units of users
RIDGE = 10.0


def gains(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Each user's gain in GAUC by the patch, mean over seeds, in points."""
    joint = mean_over_seeds(tables)
    return (
        paired_differences(joint, ON_FURTHER, STRONG)
        .select("user_index", "group", gain=100 * pl.col("gauc"))
        .drop_nulls()
    )


def harm(valid: np.ndarray, test: np.ndarray, on: np.ndarray) -> float:
    """Estimated share of all users that are worse off for good; users that the gate leaves out are not."""
    return float(on.mean() * below_zero(valid[on], test[on])) if on.sum() > 2 else 0.0


def interval(valid: np.ndarray, test: np.ndarray, on: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """95 % interval of `harm` over users."""
    draws = np.random.default_rng(0).integers(0, len(on), (resamples, len(on)))
    found = np.quantile([harm(valid[at], test[at], on[at]) for at in draws], [0.025, 0.975])
    return float(found[0]), float(found[1])


def crossed(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Predictions of a ridge regression, each user's from the other half of the users."""
    half = np.random.default_rng(0).permutation(len(target)) % 2
    found = np.empty(len(target))
    for own in (0, 1):
        x, y = features[half != own], target[half != own]
        middle, scale = x.mean(0), x.std(0) + 1e-9
        z = (x - middle) / scale
        weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - y.mean()))
        found[half == own] = (features[half == own] - middle) / scale @ weights + y.mean()
    return found


def chosen(score: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Who keeps the patch: at the highest threshold that loses at most `LOST` of the mean gain on valid."""
    best = np.ones(len(score), dtype=bool)
    for threshold in np.quantile(score, np.linspace(0, 0.9, 46)):
        on = score >= threshold
        if (valid * on).mean() >= (1 - LOST) * valid.mean():
            best = on
    return best


def rows_of(valid: list[pl.DataFrame], test: list[pl.DataFrame], users: pl.DataFrame) -> Records:
    """One record for each gate and group.

    Args:
        valid, test: PER_USER tables, one a seed. users: user_index, held, record, tested (events held back).
    """
    both = gains(valid).join(gains(test).drop("group"), on="user_index", suffix="_test")
    both = both.join(users, on="user_index", how="left").fill_null(0).sort("user_index")
    first, second = both["gain"].to_numpy(), both["gain_test"].to_numpy()
    size = np.log1p(both["held"].to_numpy())
    tested = both["tested"].to_numpy().astype(float)
    record = both["record"].to_numpy() * tested / (tested + 5)
    features = np.stack([size, size**2, record, tested > 0], 1)
    gates = {
        "everybody": np.ones(len(first), dtype=bool),
        "size": chosen(size, first),
        "record, as the guard": (both["record"].to_numpy() > 0) | (tested == 0),
        "record": chosen(record, first),
        "learned": chosen(crossed(features, first), first),
    }
    records: Records = []
    for name, on in gates.items():
        for group in ("all", "tail", "head"):
            mine = np.ones(len(first), dtype=bool) if group == "all" else both["group"].to_numpy() == group
            low, high = interval(first[mine], second[mine], on[mine])
            records.append(
                {
                    "gate": name,
                    "group": group,
                    "users": int(mine.sum()),
                    "patched": float(on[mine].mean()),
                    "gain": float((second * on)[mine].mean()),
                    "gain_without": float(second[mine].mean()),
                    "harm": harm(first[mine], second[mine], on[mine]),
                    "low": low,
                    "high": high,
                    "worse": float(((second < 0) & on)[mine].mean()),
                }
            )
    return records


def markdown(records: Records) -> str:
    """Shares in per cent, gains in points."""
    rows = []
    for r in records:
        shares = [f"{100 * float(r[name]):.1f}" for name in ("patched", "worse")]  # type: ignore[arg-type]
        estimate = f"{100 * r['harm']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"  # type: ignore[operator]
        rows.append(
            [f"{r['gate']}, {r['group']}", f"{r['users']:,}", shares[0], f"{r['gain']:+.2f}", shares[1], estimate]
        )
    title = ["gate", "users", "with the patch, %", "Δ GAUC", "worse on test, %", "lasting harm, estimated, %"]
    return table(title, rows)


def held_back_events() -> pl.Expr:
    """How many events of a user were held back, as learner.held_back_of has it: a fifth, at least one, of three or more."""
    fifth = (pl.col("events") * 0.2 + 0.5).floor().clip(1)
    return pl.when(pl.col("events") >= 3).then(fifth).otherwise(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", default="ml-100k,grocery")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    ingest = ingest_arguments(options.data)
    for log in options.logs.split(","):
        run = Runner(options.out / f"{log}.store", threads=1)
        dataset = run("ingest", "ingest", *ingest[log])
        blocks: dict[str, list[pl.DataFrame]] = {}
        records_of = []
        for seed in map(int, options.seeds.split(",")):
            study = Study(run, dataset, seed, "all", False, "keep" in ingest[log])
            for part, found in study.strong_harm():
                blocks.setdefault(part, []).append(found)
            records_of.append(run.read(study.strong_patched, "users.parquet"))
        held = run.read(study.memory(), "memory.parquet").select("user_index", held="seen")
        # what each user's held-back events say, mean over seeds
        record = pl.concat(records_of).select(
            "user_index", record=pl.col("loss_before") - pl.col("loss_after"), tested=held_back_events()
        )
        record = record.group_by("user_index").mean().sort("user_index")
        users = held.join(record, on="user_index", how="full", coalesce=True).sort("user_index")
        records = rows_of(blocks["strong-valid"], blocks["strong-test"], users)
        (options.out / f"{log}.gate.json").write_text(json.dumps(records, indent=1))
        (options.out / f"{log}.gate.md").write_text(markdown(records))
        print(markdown(records))


if __name__ == "__main__":
    main()
