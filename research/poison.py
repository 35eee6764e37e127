"""How much a minority of dishonest devices moves the distilled model: a table in research/results/bundles.md.

    python research/poison.py --out results/ [--log ml-100k] [--shares 0.01,0.05,0.2]

Honest devices send the θ̂ that `patch --method metapatch` learns (what the runner learns on a device is the same). A share
of the devices, chosen at random, sends something else, and the cloud model is distilled from what `collect` makes of it:

    scaled      the device's own θ̂, nine times the bound away from the mean: as far as is not rejected
    flipped     the device's own step away from the mean, backwards, and as far
    colluding   all dishonest devices send one θ̂, as far, in the direction that lowers most what patches have in common

With --max-norm 1e9 nothing is moved to a bound, for comparison.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from devices_round import Round
from pipeline import DATA, Runner, difference, ingest_arguments, plain

from dcclctl.artifacts import PatchSet
from dcclctl.store.store import Store

ATTACKS = ("scaled", "flipped", "colluding")
#: of the bound; `collect` rejects from ten times on
_FAR = 9.0


def poisoned(theta: np.ndarray, mean: np.ndarray, bound: float, attack: str, share: float, seed: int) -> np.ndarray:
    """(U, K) what the devices send: θ̂, with some rows replaced."""
    sent = theta.copy()
    draw = np.random.default_rng(seed)
    bad = draw.permutation(len(theta))[: max(1, round(share * len(theta)))]
    step = theta[bad] - mean
    if attack == "colluding":
        step = np.broadcast_to(-(theta - mean).mean(0), step.shape)
    step = step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-12)
    sent[bad] = mean + (-_FAR if attack == "flipped" else _FAR) * bound * step
    return sent


def study(run: Runner, dataset: str, seed: int, out: Path, shares: list[float]) -> str:
    """The table, in Markdown."""
    s, store = ["--seed", str(seed)], Store(run.store)
    devices = Round.run(run, dataset, seed)

    def distilled(name: str, sent: np.ndarray, *flags: str) -> tuple[str, dict[str, object]]:
        uplinks = devices.uplinks(out / f"uplinks.{name.replace(' ', '-')}.jsonl", sent, events=1)
        made = run(f"collect {name}", "collect", devices.exported, uplinks, *flags)
        how = ["--method", "momodistill", "--epochs", "2"]
        return run(f"distill {name}", "distill", "--patches", made, *how, *s), PatchSet(store.resolve(made)).facts

    models = {"clean": distilled("clean", devices.theta)}
    bound = float(models["clean"][1]["bound"])  # type: ignore[arg-type]
    for attack in ATTACKS:
        for share in shares:
            sent = poisoned(devices.theta, devices.mean, bound, attack, share, seed)
            models[f"{attack} {share:.0%}"] = distilled(f"{attack} {share:.0%}", sent)
        models[f"{attack} {share:.0%}, no bound"] = distilled(
            f"{attack} {share:.0%}, no bound", sent, "--max-norm", "1e9"
        )
    references = [devices.cloud, *(model for model, _ in models.values())]
    evaluated = run("evaluate", "evaluate", *references, "--candidates", "100", *s)
    table = plain(run.table(evaluated), ["cloud model", *models])
    lines = ["| devices | moved to the bound | tail NDCG@10 | difference to clean |", "|---|---|---|---|"]
    for name in ("cloud model", *models):
        own = table.filter((pl.col("subject") == name) & (pl.col("group") == "tail"))["ndcg@10"].mean()
        clipped = models[name][1]["clipped"] if name in models else ""
        against = "" if name == "clean" else difference(table, name, "clean", "ndcg@10", "tail")
        lines.append(f"| {name} | {clipped} | {100 * float(own):.2f} | {against} |")  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", default="ml-100k")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shares", default="0.01,0.05,0.2", help="of dishonest devices; the last one also without a bound"
    )
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Runner(options.out / f"{options.log}.poison.store", 1)
    dataset = run("ingest", "ingest", *ingest_arguments(options.data)[options.log])
    text = study(run, dataset, options.seed, options.out, [float(share) for share in options.shares.split(",")])
    (options.out / f"{options.log}.poison.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
