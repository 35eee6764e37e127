"""`patch --method memory`: patches that are conditioned on what each device remembers.

What the cloud ships (see algorithm/memorypatch.py) must be learned from events that the model beneath had not been
trained on, with statistics that had not counted them. A fresh cloud model has been trained on the newest events, so its lineage is
walked: every update that learned from part of the block gives its parent, which had not. Served is the patch on the
fresh model.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dcclctl.algorithm import training
from dcclctl.algorithm.eventlog import Block
from dcclctl.algorithm.memory import Memories, Statistics, count_statistics
from dcclctl.algorithm.memorypatch import (
    MemoryFit,
    MemoryPatch,
    MemoryRows,
    category_shares,
    fit_codes,
    learn,
    prior_shift,
    user_losses,
)
from dcclctl.algorithm.sampling import Ints, log_uniform, permutation, stream, uniforms
from dcclctl.algorithm.scoring import Backbone, reading
from dcclctl.config import PatchConfig
from dcclctl.errors import UsageError
from dcclctl.stages.compute import OnProgress
from dcclctl.stages.fleet import held_back_of
from dcclctl.stages.handles import CloudModel, Memory, new_memory_patch, shard_name
from dcclctl.stages.models import MODULES
from dcclctl.stages.patch import shard_table, summary, with_ids
from dcclctl.store.store import Artifact, Store, Work

_BATCH = 512
#: rows that are learned from at most (events with their negatives); more changes the third digit only
_ROWS = 1_500_000
#: parts of the block that are learned from with models of their own, at most: the statistics are counted for each
_PARTS = 60


def lessons(cloud: CloudModel, block: Block, store: Store) -> list[tuple[CloudModel, Block]]:
    """Which model to learn the patch with, for each part of the block: the newest that had not been trained on it.

    Args:
        cloud: the model that will be served. block: what devices learn from.

    Returns:
        (model, part of the block), oldest part first; the parts are the whole block. (cloud, block) if the cloud model
        has not seen the block at all.

    Raises:
        UsageError: no model of the lineage had not seen some part, or the block is cut in too many ways.
    """
    lineage = [cloud]
    while "cloud" in lineage[0].artifact.inputs:
        lineage.insert(0, CloudModel.load(store.find("cloud", lineage[0].artifact.inputs["cloud"].id), store))
    seen = [{other for other in _learned_from(model.artifact, store) if _overlap(other, block)} for model in lineage]
    # the model that is served has learned from all that its ancestors have
    parts = math.lcm(block.parts, *(other.parts for other in seen[-1]))
    many = parts // block.parts
    if many > _PARTS:
        cuts = ", ".join(str(other) for other in sorted(seen[-1]))
        raise UsageError(
            f"{cloud.artifact.ref} was trained on {cuts}, which cut {block} into {many:,} parts",
            "Use successive blocks of one length, such as device:1/3, device:2/3, device:3/3.",
        )
    taught = []
    for number in range((block.part - 1) * many + 1, block.part * many + 1):
        part = Block(block.period, number, parts)
        knowing = [any(_overlap(other, part) for other in blocks) for blocks in seen]
        first = knowing.index(True) if True in knowing else len(lineage)
        if first == 0:
            raise _all_know(cloud, lineage[0], part)
        taught.append((lineage[first - 1], part))
    return taught


def _learned_from(artifact: Artifact, store: Store) -> set[Block]:
    """What a cloud model or patches, and everything that they were made from, learned from or counted."""
    if artifact.kind == "memory":
        until = Block.parse(artifact.config["until"])
        whole = {Block(period) for period in range(until.period)}
        return whole | {Block(until.period, part + 1, until.parts) for part in range(until.part)}
    on = artifact.config["on"]
    found = {Block.parse(name) for name in ([on] if isinstance(on, str) else on)}
    for given in artifact.inputs.values():
        if given.kind in ("cloud", "patches", "memory"):
            found |= _learned_from(store.find(given.kind, given.id), store)
    return found


def _overlap(one: Block, other: Block) -> bool:
    return one.period == other.period and one.start < other.end and other.start < one.end


def _all_know(cloud: CloudModel, root: CloudModel, part: Block) -> UsageError:
    on = ", ".join(root.artifact.config["on"])
    comes = "" if root.artifact.id == cloud.artifact.id else f", where {cloud.artifact.ref} comes from,"
    model = root.settings["model"]
    return UsageError(
        f"{root.artifact.ref}{comes} was trained on {on} at once: no model of this lineage had not seen {part}, "
        "which the patch would be learned from",
        f"Patch a model that ends before it: dcclctl train --model {model} --on cloud"
        if MODULES[model] == "counts"
        else "Train in steps: dcclctl train --on cloud, then dcclctl train --continue REF --on device.",
    )


class MemoryDevices:
    """One run: rows of all parts of the block, and what is learned from them."""

    def __init__(
        self, taught: list[tuple[CloudModel, Block]], memory: Memory, config: PatchConfig, on_progress: OnProgress
    ) -> None:
        self.lessons, self.memory, self.config, self.on_progress = taught, memory, config, on_progress
        self.log = memory.dataset.log

    def rows(self) -> tuple[MemoryRows, MemoryRows]:
        """Everybody's rows: the patch is learned from all users, whoever gets one.

        Returns:
            A row for each event; and, for some of the events, another one in which cloud model and memory know only
            the newest few of what came before, as those of a new device do.
        """
        whole, short = [], []
        log, memory = self.log, self.memory
        for number, (model, block) in enumerate(self.lessons):
            statistics = count_statistics(log, log.before(block), memory.counting, self.config.seed)
            backbone, shift = model.backbone(self.config), prior_shift(model.negatives, self.config.negatives)
            events = self._events_of(block)
            some, lengths = self._shortened(events)
            ref = model.artifact.ref
            whole.append(self._rows_of(ref, backbone, shift, self.samples(events, block, number), statistics))
            cut = reading(backbone, log.shortened(some, lengths))
            short.append(self._rows_of(ref, cut, shift, self.samples(some, block, number), statistics))
        return MemoryRows.join(whole), MemoryRows.join(short)

    def _events_of(self, block: Block) -> Ints:
        """What is learned from of a part of the block: all of it up to a limit, a sample beyond."""
        events = self.log.events_in(block)
        limit = _ROWS // (1 + self.config.negatives) // len(self.lessons)
        if len(events) <= limit:
            return events
        return np.sort(events[permutation(self.config.seed, "memory/sample", events)[:limit]])

    def _shortened(self, events: Ints) -> tuple[Ints, Ints]:
        """Events that are learned from a second time, and how much each of them then knows: as often 1 as 2-3 or 4-7."""
        seed = self.config.seed
        held = self.log.history_lengths(events, self.memory.size)
        chosen = (uniforms(seed, "memory/short", events) < self.config.memory_short) & (held > 0)
        some = events[chosen]
        return some, log_uniform(seed, "memory/length", some, 1, held[chosen])

    def samples(self, events: Ints, block: Block, number: int) -> training.Samples:
        """Events of a part of the block with their negatives; number: which part."""
        log, config = self.log, self.config
        catalogue, excluded = log.catalogue(block), log.never_negative(block)
        purpose = f"memory/negatives/{config.on}"
        return training.sample(log, events, config.negatives, catalogue, excluded, config.seed, purpose, number)

    @torch.no_grad()
    def _rows_of(
        self, ref: str, backbone: Backbone, shift: float, sampled: training.Samples, statistics: Statistics
    ) -> MemoryRows:
        """Rows of some events of a part of the block, as the backbone's log gives their histories; ref: its model."""
        memory, log, events = self.memory, backbone.log, sampled.events
        memories = Memories(log, statistics, memory.size, memory.track)
        logits = torch.empty(sampled.candidates.shape)
        found = torch.empty(*sampled.candidates.shape, memories.width)
        order = np.argsort(backbone.lengths(events), kind="stable")
        for at in range(0, len(order), _BATCH):
            some = order[at : at + _BATCH]
            index = torch.from_numpy(some)
            candidates = sampled.candidates[index]
            below = backbone.activations(events[some], candidates)
            logits[index] = backbone.head(events[some], candidates, below).cpu() + shift
            found[index] = memories.features(events[some], candidates)
            self.on_progress(f"remember {ref}", min(at + _BATCH, len(order)), len(order), "")
        shares = category_shares(log, events, memory.size) if self.personal else torch.zeros(len(events), 0)
        held = log.history_lengths(events, memory.size)
        popularity = statistics.popularity[sampled.candidates]
        return MemoryRows(events, held, found, logits, popularity, sampled.labels, sampled.weights, shares)

    @property
    def personal(self) -> bool:
        """Is there a θ̂ at all?"""
        return self.config.personal != "none"

    def learn(self, rows: MemoryRows, what: str, order: bool = True) -> MemoryPatch:
        """Everything that the cloud ships, learned from the rows; without order it makes nothing of what came after what."""
        config, log = self.config, self.log
        left_out = [] if order else self.memory.statistics.about_order(self.memory.track)
        patch = new_memory_patch(
            self.memory,
            config.memory_hidden,
            config.memory_popularity,
            config.patch_size if self.personal else 0,
            torch.Generator().manual_seed(stream(config.seed, "memory/weights")),
        )
        settings = MemoryFit(
            config.memory_epochs, config.memory_learning_rate, config.memory_weight_decay, _BATCH, config.seed
        )
        learn(
            patch,
            rows.blank(left_out) if left_out else rows,
            log,
            settings,
            lambda epoch, loss: self.on_progress(what, epoch, config.memory_epochs, f"loss {loss:.4f}"),
        )
        patch.forget(left_out)
        return patch

    def codes(self, patch: MemoryPatch, rows: MemoryRows, keep: Bool[Tensor, "B"]) -> Float[Tensor, "U K"]:
        """θ̂ of every user, trained on the user's own rows; zeros without training on the device."""
        config = self.config
        if config.personal != "device":
            return torch.zeros(self.log.n_users, patch.code_size)
        return fit_codes(patch, rows, self.log, keep, config.steps, config.learning_rate, config.prior)


def patch_with_memory(
    cloud: CloudModel,
    memory: Memory,
    users: Ints,
    config: PatchConfig,
    store: Store,
    work: Work,
    on_progress: OnProgress,
) -> Artifact:
    """Learn what the cloud ships, train θ̂ of the chosen users if asked for, and commit.

    Args:
        cloud: the model that will be served. memory: what the devices hold. users: who gets a patch.
        config: settings. store: where the cloud model's ancestors are. work: an open patches artifact.

    Raises:
        UsageError: every model of the lineage has been trained on the block (see `lessons`); order is asked for and not known.
    """
    knows_order = bool(memory.statistics.about_order(memory.track))
    if config.memory_order == "always" and not knows_order:
        raise UsageError(
            f"--memory-order always: {memory.artifact.ref} does not know the order of events",
            "Make one that does: dcclctl memory --lookback 10",
        )
    log = cloud.dataset.log
    block = Block.parse(config.on)
    devices = MemoryDevices(lessons(cloud, block, store), memory, config, on_progress)
    rows, short = devices.rows()
    owners = log.user[rows.events]
    counts = np.bincount(log.user[log.events_in(block)], minlength=log.n_users)
    read = np.bincount(owners, minlength=log.n_users)  # fewer, where there are more than _ROWS
    newest = torch.from_numpy(_newest(owners, held_back_of(read, config.held_back)))
    everything = torch.ones(len(owners), dtype=torch.bool)
    losses = torch.full((log.n_users, 2), float("nan"), dtype=torch.float64)
    order, tried = knows_order and config.memory_order != "never", {}
    if newest.any():
        # learned without the newest events of every user, judged on them; what is shipped is learned from all
        known = torch.from_numpy(~np.isin(short.events, rows.events[newest.numpy()]))
        older = MemoryRows.join([rows.where(~newest), short.where(known)])

        def judged(order: bool) -> Float[Tensor, "U two"]:
            trial = devices.learn(older, "learn (held back)", order)
            return user_losses(trial, rows, log, devices.codes(trial, rows, ~newest), newest)

        losses = judged(order)
        if order and config.memory_order == "auto":
            without = judged(False)
            tried = {"with": float(losses[:, 1].nanmean()), "without": float(without[:, 1].nanmean())}
            if tried["without"] < tried["with"]:
                order, losses = False, without
    learned = MemoryRows.join([rows, short])
    patch = devices.learn(learned, "learn", order)
    codes = devices.codes(patch, rows, everything)
    work.write_tensors("memory_patch.safetensors", {n: w.detach().clone() for n, w in patch.state_dict().items()})
    # What it makes of fewer events than it was learned from is not known: there the cloud model serves.
    sizes = np.maximum(learned.held, 1)
    smallest = int(np.quantile(sizes, config.memory_floor, method="lower")) if config.memory_floor else 1
    chosen = torch.from_numpy(users)
    work.write_tensors(shard_name(0), {"theta": codes[chosen]})
    mine = losses[chosen]
    lost = mine[:, 1] >= mine[:, 0]  # false for NaN: nothing was held back
    kept = ~lost if config.guard else torch.ones_like(lost)
    table = with_ids(shard_table(0, chosen, torch.from_numpy(counts)[chosen], mine, kept), cloud.dataset)
    work.write_table("users.parquet", table)
    return work.commit(
        {
            "id_map": cloud.dataset.id_map,
            "on": config.on,
            "family": "memory",
            "own_basis": True,  # whatever Θ and U the cloud model has, they are nothing to these patches
            "learned_with": [f"{model.artifact.id} on {block}" for model, block in devices.lessons],
            "smallest_memory": smallest,
            "order": order,
            "order_losses": tried,
            "patch_size": patch.code_size,
            "patch_weights": sum(weight.numel() for weight in patch.parameters()),
            **summary(table, patch.code_size, len(users)),
            "events_read": int(read[users].sum()),
            "bytes_per_user": 4 * patch.code_size + memory.artifact.facts["bytes_per_user_largest"],
        }
    )


def _newest(owners: Ints, held: Ints) -> npt.NDArray[np.bool_]:
    """Which of the rows are among their user's newest `held`; a user's rows are in order of time."""
    order = np.argsort(owners, kind="stable")
    sorted_owners = owners[order]
    ends = np.searchsorted(sorted_owners, sorted_owners, side="right")
    newest = np.zeros(len(owners), dtype=bool)
    newest[order] = ends - np.arange(len(owners)) <= held[sorted_owners]
    return newest
