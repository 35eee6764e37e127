"""θ̂ of many users by `dcclctl patch`, against a plain loop over users.

    python benchmarks/patch.py [--data FOLDER] [--users 2048] [--loop-users 64] [--threads 1]

Plain loop: for each user one module with the frozen cloud model and the user's θ̂, autograd, torch.optim.Adam; every step
runs the whole model forward. The loop with cached activations runs the frozen lower layers once per user instead. All
three take the same events, negatives, steps and prior, and must come to the same θ̂; drawing the negatives and filling
the cache is in everybody's time. The loops get the first of the same users, evenly spread over the user numbers.

A command also tests each patch on held-back events, which is a second fit; it is left out here on all sides.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from side_by_side import SAMPLE, Ratio, find_data, flags, in_turn, ingested, logs, show
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.devices.basis import EPSILON

if TYPE_CHECKING:
    from dcclctl.artifacts import CloudModel
    from dcclctl.devices.hidden_patch import Basis
    from dcclctl.devices.metapatch import HiddenDevices
    from dcclctl.events.sampler import Samples
    from dcclctl.models.din import Din

USERS, LOOP_USERS = 2048, 64
TARGETS = {"ml-100k": 15.0, "amazon-beauty": 40.0}
#: largest difference of θ̂ between two ways, relative to the longest θ̂
TOLERANCE = 1e-4


class DeviceModel(nn.Module):
    """f^(m): the frozen cloud model with one user's patch, generated from θ̂."""

    def __init__(self, model: "Din", basis: "Basis", mean: Tensor) -> None:
        super().__init__()
        self.model, self.basis = model, basis
        self.code = nn.Parameter(mean[None].clone())

    def lower_layers(self, candidates: Tensor, history: Tensor, mask: Tensor, profile: Tensor) -> Tensor:
        """(B, C) candidates of B events → activations (B, C, H1) of the first hidden layer."""
        keys, query = self.model.embed(history), self.model.embed(candidates)
        interest = self.model.interest(query, keys, mask)
        return self.model.first_layer(query, interest, self.model.embed_profile(profile))

    def upper_layers(self, z1: Tensor) -> Tensor:
        """(B, C, H1) → logits (B, C)."""
        patch = self.basis.patch(self.code)
        z1 = z1 + torch.tanh(z1 @ patch.down_1[0].T) @ patch.up_1[0].T
        z2 = self.model.second_layer(z1)
        z2 = z2 + torch.tanh(z2 @ patch.down_2[0].T) @ patch.up_2[0].T
        return self.model.logits(z2) + z2 @ patch.out[0] + patch.bias


def loop(devices: "HiddenDevices", mine: list["Samples"], cache: bool) -> Tensor:
    """θ̂ (U, K), user by user.

    Args:
        devices: the cloud model, Θ, the prior's mean and the settings.
        mine: each user's samples.
        cache: run the frozen lower layers once per user instead of in every step.
    """
    codes = []
    log, model, shared, settings = devices.log, devices.model, devices.shared, devices.settings
    for samples in mine:
        history, mask = log.histories(samples.events, model.sizes.history)
        inputs = samples.candidates, history, mask, log.profile[torch.from_numpy(log.user[samples.events])]
        device = DeviceModel(model, shared.basis, shared.mean)
        optimiser = torch.optim.Adam([device.code], lr=settings.learning_rate, eps=EPSILON)
        z1 = device.lower_layers(*inputs)
        for step in range(settings.steps):
            if step and not cache:
                z1 = device.lower_layers(*inputs)
            losses = F.binary_cross_entropy_with_logits(device.upper_layers(z1), samples.labels, reduction="none")
            loss = (losses * samples.weights).sum() + settings.prior * (device.code - shared.mean).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        codes.append(device.code.detach()[0])
    return torch.stack(codes)


@dataclass
class Bench:
    """One log's devices, and the two ways to fit them."""

    devices: "HiddenDevices"
    events: np.ndarray

    def batched(self, users: np.ndarray) -> Tensor:
        """As `dcclctl patch` fits a shard."""
        from dcclctl.devices.learner import fit_shard

        log = self.devices.log
        own = self.events[np.isin(log.user[self.events], users)]
        return fit_shard(self.devices, users, own)["theta"]

    def one_by_one(self, users: np.ndarray, cache: bool) -> Tensor:
        """As a plain loop does."""
        from dcclctl.events.sampler import Samples

        log = self.devices.log
        own = self.events[np.isin(log.user[self.events], users)]
        drawn = self.devices.sampler.draw(own)
        first, end = (np.searchsorted(log.user[own], users, side=side) for side in ("left", "right"))
        mine = [
            Samples(own[a:b], drawn.candidates[a:b], drawn.labels[a:b], drawn.weights[a:b])
            for a, b in zip(first, end, strict=True)
        ]
        return loop(self.devices, mine, cache)


def prepare(name: str, data: Path | None, folder: Path, threads: int) -> Bench:
    """Ingest the log, train a cloud model for one epoch, learn Θ for one."""
    import dcclctl

    store = dcclctl.Store(folder)
    return bench_of(dcclctl.train(ingested(name, data, store), epochs=1, threads=threads))


def bench_of(cloud: "CloudModel") -> Bench:
    """The devices of all users of a cloud model; Θ is learned for one epoch."""
    from dcclctl.config import PatchConfig
    from dcclctl.devices.metapatch import MetaPatch, MetaPatchSettings
    from dcclctl.devices.method import PatchTask
    from dcclctl.events.log import DEVICE, Block

    config, settings = PatchConfig(method="metapatch", negatives=4, held_back=0), MetaPatchSettings(basis_epochs=1)
    log, cpu = cloud.dataset.log, torch.device("cpu")
    events = log.events_in(DEVICE)
    with cloud.store.begin("patch", "patches", {}, 0, {}) as work:
        users = np.unique(log.user[events])
        task = PatchTask(cloud, Block(DEVICE), users, config, settings, cpu, work, lambda *progress: None)
        devices: Any = MetaPatch().learner(task, events)
    devices.model.requires_grad_(False)
    return Bench(devices, events)


def compare(data: Path | None, users: int, loop_users: int, threads: int, times: int) -> list[Ratio]:
    """How many times more users a second than the plain loop, and than the loop with cached activations."""
    torch.set_num_threads(threads)
    ratios = []
    for name in logs(TARGETS, data):
        with tempfile.TemporaryDirectory() as folder:
            bench = prepare(name, data, Path(folder), threads)
        active = np.unique(bench.devices.log.user[bench.events])
        many = active[np.linspace(0, len(active) - 1, min(users, len(active))).astype(np.int64)]
        few = many[np.linspace(0, len(many) - 1, min(loop_users, len(many))).astype(np.int64)]
        check(bench, few)
        ways = {
            "plain loop": lambda b=bench, u=few: b.one_by_one(u, cache=False),
            "loop with a cache": lambda b=bench, u=few: b.one_by_one(u, cache=True),
            "dcclctl": lambda b=bench, u=many: b.batched(u),
        }
        seconds = in_turn(ways, times)
        fitted = {way: len(many if way == "dcclctl" else few) for way in ways}
        each = {way: [s / fitted[way] for s in found] for way, found in seconds.items()}
        rates = ", ".join(f"{way} {1 / statistics.median(found):,.0f}" for way, found in each.items())
        rows = len(bench.events) / len(active) * (1 + bench.devices.sampler.negatives)
        print(f"patch, {name}: {rows:.0f} rows a user, {threads} thread(s), users/s: {rates}")
        target = TARGETS.get(name) if name != SAMPLE else None
        ratios += [
            Ratio.faster(f"MetaPatch against a plain loop, {name}", each["plain loop"], each["dcclctl"], target),
            Ratio.faster(f"… against a loop with a cache, {name}", each["loop with a cache"], each["dcclctl"], None),
        ]
    return ratios


def check(bench: Bench, users: np.ndarray) -> None:
    """Stop if the three ways do not come to the same θ̂."""
    batched = bench.batched(users)
    for cache in (False, True):
        alone = bench.one_by_one(users, cache)
        difference = float((batched - alone).norm(dim=1).max() / alone.norm(dim=1).max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"the loop (cache={cache}) and dcclctl differ by {difference:.1e} relative in θ̂")
        print(f"  same θ̂ as the loop{' with a cache' if cache else ''}: largest difference {difference:.1e} relative")


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--users", type=int, default=USERS, help="users that dcclctl fits (one shard)")
    parser.add_argument("--loop-users", type=int, default=LOOP_USERS, help="users that the loops fit")
    arguments = parser.parse_args()
    data = find_data(arguments.data)
    show(compare(data, arguments.users, arguments.loop_users, arguments.threads, arguments.times))


if __name__ == "__main__":
    main()
