"""Plug-in networks by activity group on the strong cloud model: the nearest rival of patches for tail users.

    python research/pin.py --out results/ [--logs ml-100k,grocery] [--seed 0] [--groups 5]

A plug-in is a small network after SASRec's state, s + up·tanh(down·s) + offset, and all users of an activity group share one. The
cloud model is frozen; the plug-ins learn from all events of `device`, with the softmax over shared negatives that trained it. Beside
them one plug-in for everybody, which says whether groups matter. `test`, every item ranked, against the model trained further.

The idea is known as plug-in networks (PIN); this is our form of it, not a reproduction of a paper. Uses the models that the chapter `strong` of science.py left in the same folder. Writes OUT/<log>.pin.json and .md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from figures import figures_of, markdown
from pipeline import DATA, Runner, ingest_arguments
from study import STRONG, STRONG_FROZEN, Study
from torch import Tensor, nn

from dcclctl.artifacts import CloudModel
from dcclctl.config import EvaluateConfig
from dcclctl.evaluation.candidates import Candidates
from dcclctl.evaluation.scores import Scores, whole_users
from dcclctl.events.log import DEVICE, TEST, Block
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import Ints, permutation
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import HeadFunction, score
from dcclctl.models.sequence import SequenceBackbone
from dcclctl.models.training import SharedLogits, softmax_losses
from dcclctl.store.store import Store

BOTTLENECK, EPOCHS, RATE, DECAY, BATCH, NEGATIVES = 8, 15, 0.003, 0.01, 1024, 1024


class PlugIns(nn.Module):
    """One plug-in for each group; before learning they change nothing."""

    def __init__(self, groups: int, size: int, seed: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(groups, BOTTLENECK, size))
        self.up = nn.Parameter(torch.zeros(groups, size, BOTTLENECK))
        self.offset = nn.Parameter(torch.zeros(groups, size))
        nn.init.normal_(self.down, std=size**-0.5, generator=torch.Generator().manual_seed(seed))

    def forward(self, states: Tensor, group: Tensor) -> Tensor:
        """States (B, D) with the plug-ins of groups (B,)."""
        hidden = torch.tanh(torch.bmm(self.down[group], states.unsqueeze(-1)))
        return states + torch.bmm(self.up[group], hidden).squeeze(-1) + self.offset[group]


def states_of(backbone: SequenceBackbone, events: Ints) -> Tensor:
    """The frozen model's states before the events."""
    states = torch.empty(len(events), backbone.embeddings.shape[1])
    order = np.argsort(backbone.lengths(events), kind="stable")
    for at in range(0, len(order), 512):
        some = order[at : at + 512]
        states[torch.from_numpy(some)] = backbone.activations(events[some], None)
    return states


def learned(backbone: SequenceBackbone, group_of: npt.NDArray[np.int64], negatives: int, seed: int) -> PlugIns:
    """Plug-ins learned from the device period; the epoch is that with the least loss on a tenth of its events, held back."""
    log, block = backbone.log, Block(DEVICE)
    events = log.events_in(block)
    events = events[log.label[events] > 0]
    sampler = Sampler(log, [block], 0, seed, "pin")
    states, table, bias = states_of(backbone, events), backbone.embeddings, backbone.model.item_bias.detach()
    groups, own = torch.from_numpy(group_of[log.user[events]]), torch.from_numpy(log.item[events])
    plug = PlugIns(int(group_of.max()) + 1, states.shape[1], seed)
    optimiser = torch.optim.AdamW(plug.parameters(), lr=RATE, weight_decay=DECAY)

    def loss(rows: Ints, epoch: int, batch: int) -> Tensor:
        index = torch.from_numpy(rows)
        shared = sampler.shared(events[rows], NEGATIVES, negatives, batch, epoch)
        patched = plug(states[index], groups[index])
        mine = (patched * table[own[index]]).sum(1) + bias[own[index]]
        others = torch.addmm(bias[shared.items], patched, table[shared.items].T)
        losses, weights = softmax_losses(mine, torch.ones(len(rows)), SharedLogits(shared, others))
        return (losses * weights).sum() / weights.sum().clamp(min=1)

    shuffled = permutation(seed, "pin/held", events)
    held, taught = np.sort(shuffled[: len(events) // 10]), np.sort(shuffled[len(events) // 10 :])
    best, least = {k: v.detach().clone() for k, v in plug.state_dict().items()}, float(loss(held, 0, 0).detach())
    for epoch in range(1, EPOCHS + 1):
        order = taught[permutation(seed, "pin/shuffle", events[taught], epoch)]
        for number, at in enumerate(range(0, len(order), BATCH)):
            optimiser.zero_grad()
            loss(order[at : at + BATCH], epoch, number).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        found = float(loss(held, 0, 0).detach())
        print(f"    epoch {epoch}: held back {found:.4f}", flush=True)
        if found < least:
            best, least = {k: v.detach().clone() for k, v in plug.state_dict().items()}, found
    plug.load_state_dict(best)
    return plug.requires_grad_(False)


def head_of(backbone: SequenceBackbone, plug: PlugIns, group_of: npt.NDArray[np.int64]) -> HeadFunction:
    """The model's head after the plug-in of each event's user."""

    def head(events: Ints, candidates: Tensor | None, states: Tensor) -> Tensor:
        return backbone.logits(plug(states, torch.from_numpy(group_of[backbone.log.user[events]])), candidates)

    return head


def per_user(backbone: SequenceBackbone, heads: dict[str, HeadFunction], cloud: CloudModel) -> pl.DataFrame:
    """PER_USER tables of the heads on `test`, every item ranked, as `evaluate` makes them."""
    candidates = Candidates(cloud.dataset, Block(TEST), EvaluateConfig(candidates="all"))
    scores = {name: Scores(candidates) for name in heads}
    for users in whole_users(candidates.log.user[candidates.events], candidates.events_at_once):
        some = candidates.events[users]
        for batch, logits in score(backbone, list(heads.values()), some, candidates.batch, candidates.width, 256):
            for name, values in zip(heads, logits, strict=True):
                scores[name].add(batch, values.numpy())
        for found in scores.values():
            found.reduce()
    served = np.full(backbone.log.n_users, "cloud")
    tables = [found.per_user(cloud.dataset, name, served) for name, found in scores.items()]
    return pl.concat(tables).rename({"auc": "gauc"})


def one_log(run: Runner, dataset: str, seed: int, groups: int, repeats: bool) -> pl.DataFrame:
    """The per-user metrics of all models of one log."""
    study = Study(run, dataset, seed, "all", False, repeats)
    clouds = []
    for reference in (study.strong_frozen, study.strong_fresh):
        clouds.append(CloudModel(Store(run.store).resolve(reference)))
    frozen, fresh = clouds
    backbones = [open_backbone(cloud, torch.device("cpu")) for cloud in clouds]
    assert all(isinstance(each, SequenceBackbone) for each in backbones)
    base, newer = backbones
    users = frozen.dataset.users.sort("user_index")
    group_of = (users["activity_group"].fill_null(0).to_numpy().astype(np.int64) * groups) // 20
    alike = np.zeros_like(group_of)
    plug, one = (learned(base, each, frozen.negatives, seed) for each in (group_of, alike))
    tables = [
        per_user(newer, {STRONG: newer.head, "plug-ins carried onto it": head_of(newer, plug, group_of)}, fresh),
        per_user(
            base,
            {
                STRONG_FROZEN: base.head,
                "plug-ins by activity on the frozen one": head_of(base, plug, group_of),
                "one plug-in for all on the frozen one": head_of(base, one, alike),
            },
            frozen,
        ),
    ]
    return pl.concat(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", default="ml-100k,grocery")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ingest = ingest_arguments(options.data)
    for log in options.logs.split(","):
        run = Runner(options.out / f"{log}.store", threads=1)
        dataset = run("ingest", "ingest", *ingest[log])
        records = figures_of([one_log(run, dataset, options.seed, options.groups, "keep" in ingest[log])])
        (options.out / f"{log}.pin.json").write_text(json.dumps(records, indent=1))
        (options.out / f"{log}.pin.md").write_text(markdown(records))
        print(markdown(records))


if __name__ == "__main__":
    main()
