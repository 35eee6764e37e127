"""What differential privacy of devices costs and hides: the tables in research/results/bundles.md.

    python research/privacy.py --out results/ [--logs ml-100k,sample-repeats] [--epsilons 8,4,2,1,0.5]

Honest devices learn the θ̂ of `patch --method metapatch` (what the runner learns on a device is the same) and send it as
`device.py --uplink FILE --dp EPSILON` does. `collect` makes patches of it, and the cloud model is distilled from them.

The attack is given what one device sent, the bundle, and two logs of the learning period with the activations of the
cloud model: the user's own, and another user's. It says that the log is the user's own whose gradient at μ points more
against the step θ̂ − μ (alignment), or whose loss falls more from μ to θ̂ (loss). Its AUC is the share of users for whom it
is right, half of the ties. On noise of s sensitivities no attack is right more often than Φ(1 / 2s).
"""

import argparse
import math
import random
from pathlib import Path

import numpy as np
import polars as pl
from devices_round import Round
from pipeline import DATA, Runner, difference, ingest_arguments, plain
from study import UNPATCHED_TEACHERS

from dcclctl.artifacts import Bundle
from dcclctl.devices.bundle.build import local_settings
from dcclctl.devices.bundle.device import Graphs, noise_of, with_noise
from dcclctl.devices.bundle.serving import ReplayedDevices
from dcclctl.events.log import Block
from dcclctl.events.sampler import Sampler

DELTA = 1e-5
#: events of a log that the attack reads, the newest; users that are attacked
_EVENTS, _USERS = 20, 400


class Attack:
    """Rows of users' learning events, read once, for any θ̂ that is sent."""

    def __init__(self, bundle: Bundle, users: np.ndarray, seed: int) -> None:
        log, patches = bundle.cloud.dataset.log, bundle.patches
        assert patches is not None
        self.graphs = Graphs(bundle.artifact.path)
        kept = {name: value.numpy() for name, value in bundle.users().items()}
        devices = ReplayedDevices(self.graphs, log, kept.pop("number"), kept)
        block = Block.parse(patches.config["on"])
        sampler = Sampler(log, [block], int(patches.config["negatives"]), seed, "privacy/negatives")
        learned = log.events_in(block)
        self.mean = np.array(self.graphs.spec["learning"]["start"])
        self.inputs = []
        for user in users:
            events = learned[log.user[learned] == user][-_EVENTS:]
            drawn = sampler.draw(events)
            rows = []
            for at, event in enumerate(events):
                device = devices.at(int(event))
                parts = (part[at].numpy() for part in (drawn.candidates, drawn.labels, drawn.weights))
                rows.append(device.rows_of(*parts))
            self.inputs.append(device.learning_inputs(rows))
        self.prior = local_settings(patches).prior
        self.at_mean = np.array([self.gradient(each, self.mean) for each in self.inputs])
        self.other = np.roll(np.arange(len(users)), 1)

    def gradient(self, given: dict[str, object], theta: np.ndarray) -> np.ndarray:
        """Of the mean loss of a log at θ̂ without the prior: the first moment of a first step is a tenth of the gradient."""
        zeros = np.zeros(len(theta), dtype=np.float32)
        moments = {"first": zeros, "second": zeros, "step": np.array(1, dtype=np.float32)}
        assert self.graphs.learn is not None
        feeds = given | moments | {"theta": theta.astype(np.float32)}
        found = self.graphs.learn.run(["new_first"], feeds)[0]
        return found.astype(float) * 10 / float(np.sum(given["weights"]))  # type: ignore[arg-type]

    def auc(self, sent: np.ndarray) -> tuple[float, float]:
        """AUC of alignment, and of the loss, of which the mean of the gradients at both ends times the step is the fall."""
        step = sent - self.mean
        found = []
        for loss in (False, True):
            scores = []
            for which in (np.arange(len(sent)), self.other):
                slope = self.at_mean[which]
                if loss:
                    ends = np.array(
                        [self.gradient(self.inputs[log], theta) for log, theta in zip(which, sent, strict=True)]
                    )
                    # the gradient of the graph has the prior's 2λ(θ̂ − μ), which is the same for both logs but for its weight
                    weights = np.array([float(np.sum(self.inputs[log]["weights"])) for log in which])
                    slope = (slope + ends - 2 * self.prior * step / weights[:, None]) / 2
                scores.append(-(slope * step).sum(1))
            found.append(float(np.mean((scores[0] > scores[1]) + 0.5 * (scores[0] == scores[1]))))
        return found[0], found[1]


def study(run: Runner, dataset: str, seed: int, out: Path, epsilons: list[float]) -> str:
    """Both tables, in Markdown."""
    s = ["--seed", str(seed)]
    devices = Round.run(run, dataset, seed)
    cloud, patches, theta, mean = devices.cloud, devices.patches, devices.theta, devices.mean
    clip = devices.bundle.spec["learning"]["clip"]
    attacked = np.sort(np.random.default_rng(seed).permutation(len(theta))[:_USERS])
    attack = Attack(devices.bundle, devices.users[attacked], seed)

    how = ["--method", "momodistill", "--epochs", "2", *s]
    untaught = run("distill unpatched", "distill", "--patches", patches, *how, *UNPATCHED_TEACHERS)
    models, rows = {"cloud model": cloud, "all μ": f"{patches}+mean", "distilled, no patches": untaught}, []

    def came_back(name: str, sent: np.ndarray, noise: float) -> None:
        place = out / f"uplinks.{seed}.{name.replace(' ', '')}.jsonl"
        uplinks = devices.uplinks(place, sent, events=0, noise=noise)
        made = models[f"patches, {name}"] = run(f"collect {name}", "collect", devices.exported, uplinks)
        models[f"distilled, {name}"] = run(f"distill {name}", "distill", "--patches", made, *how)

    for epsilon in (math.inf, *epsilons):
        name, noise, bound = f"ε = {epsilon:g}", 0.0, ""
        sent = theta
        if math.isfinite(epsilon):
            gauss = random.Random(f"{seed} {epsilon}").gauss
            sent = np.array([with_noise(each, mean, clip, epsilon, DELTA, gauss)[0] for each in theta])
            noise = noise_of(epsilon, DELTA, 2 * clip)
            bound = f"{0.5 + 0.5 * math.erf(clip / noise / math.sqrt(2)):.3f}"
        came_back(name, sent, noise)
        if epsilon == max(epsilons):
            came_back(f"{name}, noise unsaid", sent, 0.0)
        alignment, loss = attack.auc(sent[attacked])
        rows.append(f"| {epsilon:g} | {noise / clip:.2f} | {alignment:.3f} | {loss:.3f} | {bound} |")
    evaluated = run("evaluate", "evaluate", *models.values(), "--candidates", "100", *s)
    table = plain(run.table(evaluated), models)
    lines = [
        "| | tail NDCG@10 | against the cloud model | tail GAUC | against the cloud model |",
        "|---|---|---|---|---|",
    ]
    for name in models:
        cells = []
        for metric in ("ndcg@10", "gauc"):
            own = table.filter((pl.col("subject") == name) & (pl.col("group") == "tail"))[metric].mean()
            against = "" if name == "cloud model" else difference(table, name, "cloud model", metric, "tail")
            cells += [f"{100 * float(own):.2f}", against]  # type: ignore[arg-type]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    head = "| ε | noise, in clips | AUC, alignment | AUC, loss | no attack is above |\n|---|---|---|---|---|\n"
    return "\n".join(lines) + f"\n\n{len(attacked)} users:\n\n" + head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", default="ml-100k,sample-repeats")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epsilons", default="8,4,2,1,0.5")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for log in options.logs.split(","):
        run = Runner(options.out / f"{log}.privacy.store", 1)
        dataset = run("ingest", "ingest", *ingest_arguments(options.data)[log])
        out = options.out / log
        out.mkdir(exist_ok=True)
        text = study(run, dataset, options.seed, out, [float(each) for each in options.epsilons.split(",")])
        (options.out / f"{log}.privacy.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
