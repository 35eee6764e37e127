"""`patch`: cloud model × each user's own log → patches (the device side), all users at once in shards."""

import hashlib
import math
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.algorithm import devicemethods, training
from dcclctl.algorithm.devicemethods import LocalRows, Space
from dcclctl.algorithm.eventlog import Block
from dcclctl.algorithm.metapatch import Basis, Head
from dcclctl.algorithm.sampling import Ints
from dcclctl.algorithm.scoring import item_embeddings
from dcclctl.algorithm.sequence import KINDS, runs
from dcclctl.config import PatchConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.stages.compute import OnProgress, settle
from dcclctl.stages.fleet import Fleet, fit_shard
from dcclctl.stages.handles import CloudModel, Dataset, Memory, shard_name
from dcclctl.stages.patch_methods import METHODS, SIMILARITY_EVENTS, Lenders
from dcclctl.stages.patch_state import StateDevices
from dcclctl.store.store import Artifact, Input, Store, Work
from dcclctl.tables import GROUPS

#: events whose attention units are held at once, so that they stay in a CPU's cache: twice as fast as thousands
_CACHED_EVENTS = 256


def chosen_users(dataset: Dataset, users: str) -> tuple[Ints, str]:
    """Dense numbers of the users that a `--users` value means, ascending, and that value without any path.

    Raises:
        UsageError: an unreadable file, or an id that the dataset does not know.
    """
    table = dataset.users
    if users == "all":
        return table["user_index"].to_numpy().astype(np.int64), users
    if users in GROUPS:
        return table.filter(pl.col("group") == users)["user_index"].to_numpy().astype(np.int64), users
    if users.startswith("@"):
        try:
            # -sig: some editors put a byte-order mark before the first id
            text = Path(users[1:]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--users {users}: cannot read {users[1:]} ({error})", "Give a text file with one user id a line."
            ) from error
        wanted = [line.strip() for line in text.splitlines() if line.strip()]
        spec = f"@sha256:{hashlib.sha256(chr(10).join(wanted).encode()).hexdigest()}"
    else:
        wanted, spec = [part.strip() for part in users.split(",") if part.strip()], users
    found = table.filter(pl.col("user_id").is_in(wanted))
    missing = sorted(set(wanted) - set(found["user_id"]))
    if missing or not wanted:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise UsageError(
            f"--users: {dataset.artifact.ref} has no user {shown}" if missing else "--users is empty",
            f"Use tail, head, all, new, @FILE, or ids such as {', '.join(table['user_id'][:3])}.",
        )
    return found["user_index"].to_numpy().astype(np.int64), spec


def patch(
    cloud: CloudModel,
    config: PatchConfig,
    store: Store,
    on_progress: OnProgress,
    force: bool = False,
    memory: Memory | None = None,
) -> tuple[Artifact, bool]:
    """Learn θ̂ for every chosen user that has events in the block; Θ first if the cloud model has none yet.

    A method that needs no local events (stages/patch_methods.py) gives θ̂ to every chosen user.

    Args:
        cloud: the frozen model.
        config: settings; sizes of the patch are the cloud's where it brings a basis.
        store: where the patches go.
        on_progress: see compute.OnProgress.
        force: compute even if the same patches exist.
        memory: what devices remember, for the method memory and no other.

    Returns:
        The patches artifact, and whether it existed already.

    Raises:
        DataError: none of the chosen users has events in the block.
    """
    config = settle(config)
    dataset, log = cloud.dataset, cloud.dataset.log
    users, spec = chosen_users(dataset, config.users)
    basis = cloud.basis() if memory is None else None
    if basis is not None:
        config = config.model_copy(update={"patch_size": basis.size, "bottleneck": basis.shape.bottleneck})
    negatives = config.negatives or cloud.negatives
    config = config.model_copy(update={"users": spec, "negatives": negatives})
    block = Block.parse(config.on)
    events = log.events_in(block)
    chosen = np.zeros(log.n_users, dtype=bool)
    chosen[users] = True
    mine = events[chosen[log.user[events]]]
    local = memory is None and METHODS[config.method].local
    active = np.unique(log.user[mine]) if local else users
    if not (len(active) and len(events)):
        raise DataError(
            f"--users {spec}: none of the {len(users)} has an event in {config.on}, so there is nothing to learn from",
            "Users without one need no patch: evaluate serves them with the cloud model or, after distill, --unpatched encoder.",
        )
    inputs = {"cloud": cloud.artifact.as_input(), "dataset": dataset.artifact.as_input()}
    if spec.startswith("@sha256:"):
        inputs["users"] = Input("raw", spec.removeprefix("@sha256:"))
    if memory is not None:
        inputs["memory"] = memory.artifact.as_input()
    with store.begin("patch", "patches", config.recorded(), config.seed, inputs, force) as work:
        if work.reused is not None:
            return work.reused, True
        if memory is not None:
            from dcclctl.stages.patch_memory import patch_with_memory

            return patch_with_memory(cloud, memory, users, config, store, work, on_progress), False
        devices = _fleet(cloud, config, block, work, on_progress)
        space = devices.basis(basis, events)
        n_shards = math.ceil(len(active) / config.shard_users)
        started, computed = time.perf_counter(), 0
        for shard in range(n_shards):
            members = active[shard * config.shard_users : (shard + 1) * config.shard_users]
            if not work.finished(shard_name(shard)):
                work.write_tensors(shard_name(shard), fit_shard(devices, members, mine, space))
                computed += len(members)
            rate = computed / max(time.perf_counter() - started, 1e-9)
            on_progress(
                "patch", min((shard + 1) * config.shard_users, len(active)), len(active), f"{rate:,.0f} users/s"
            )
        if computed:
            seconds = time.perf_counter() - started
            work.note_run(users_per_second=computed / seconds, fit_seconds=seconds)
        table = _users_table(work, dataset, n_shards)
        work.write_table("users.parquet", table)
        facts = {
            "id_map": dataset.id_map,
            "on": config.on,
            "family": devices.family,
            "own_basis": METHODS[config.method].own_basis,
            "patch_size": space.size,
        }
        return work.commit(facts | summary(table, space.size, len(users))), False


def _fleet(cloud: CloudModel, config: PatchConfig, block: Block, work: Work, on_progress: OnProgress) -> Fleet:
    if cloud.settings["model"] in KINDS:
        return StateDevices(cloud, config, block, work, on_progress)
    return Devices(cloud, config, block, work, on_progress)


class Devices(Fleet):
    """One frozen DIN and what its users' devices do with it."""

    def __init__(
        self, cloud: CloudModel, config: PatchConfig, block: Block, work: Work, on_progress: OnProgress
    ) -> None:
        super().__init__(cloud.dataset.log, config, block, work, on_progress)
        self.cloud = cloud
        self.method = METHODS[config.method]
        self.family = self.method.family
        self.model = cloud.module(config)
        self.head: Head = Head.of(self.model)
        first, second = cloud.settings["hidden_sizes"]
        self.hidden_sizes: tuple[int, int] = (first, second)

    @torch.no_grad()
    def activations(self, events: Ints, candidates: Int[Tensor, "B C"]) -> Float[Tensor, "B C H1"]:
        """First-layer activations, computed for events with similarly long histories together."""
        limit = self.cloud.history
        z1 = torch.empty(*candidates.shape, self.head.weight_2.shape[1], device=self.device)
        order = np.argsort(self.log.history_lengths(events, limit), kind="stable")
        for at in range(0, len(order), _CACHED_EVENTS):
            some = order[at : at + _CACHED_EVENTS]
            index = torch.from_numpy(some)
            found = training.first_layer(self.model, self.log, events[some], candidates[index], limit)
            z1[index.to(self.device)] = found
        return z1

    def basis(self, given: Basis | None, events: Ints) -> Space:
        """What all users share: the cloud's, or learned from everybody's events of the block (once, also over a kill)."""
        space: Space = self.method.prepare(self, given, events)
        return space

    @cached_property
    def lenders(self) -> Lenders:
        """Who may lend events to similar users."""
        histories = devicemethods.Histories(self.log, item_embeddings(self.model), SIMILARITY_EVENTS)
        return Lenders(self.log, self.log.events_in(self.block), histories, self.known)

    @cached_property
    def known(self) -> tuple[Ints, Ints]:
        """Where every user's positive events up to the end of the block start and end in `EventLog.sequence`."""
        return devicemethods.known_sequences(self.log, self.block)

    def fit(self, basis: Space, rows: LocalRows) -> Float[Tensor, "U K"]:
        """θ̂ of the rows' users."""
        return self.method.fit(self, basis, rows)

    def before(self, rows: LocalRows, newest: Bool[Tensor, "U N"], until: Ints) -> LocalRows:
        """The rows without the newest events of every user; what the method looks up of a user ends there too."""
        return replace(rows, weights=rows.weights * ~self._each(newest), until=np.where(until >= 0, until, rows.until))

    def mean_losses(
        self, basis: Space, rows: LocalRows, newest: Bool[Tensor, "U N"], codes: Float[Tensor, "U K"]
    ) -> Float[Tensor, "U"]:
        """Each user's mean cross-entropy over the newest events; NaN where there are none."""
        weights = rows.weights * self._each(newest)
        losses = F.binary_cross_entropy_with_logits(basis.logits(rows, codes), rows.labels, reduction="none").double()
        return (losses * weights).sum(1) / weights.double().sum(1)

    def _each(self, events: Bool[Tensor, "U N"]) -> Bool[Tensor, "U NC"]:
        """The same for every candidate of the events."""
        return events.to(self.device).repeat_interleave(1 + self.config.negatives, dim=1)

    def rows(self, users: Ints, events: Ints, first: Ints, counts: Ints) -> LocalRows:
        """Padded rows of some users, oldest event first: the candidates of one event after those of another."""
        n, width = int(counts.max()), 1 + self.config.negatives
        owner, place = runs(counts)
        own = events[first[owner] + place]
        samples = self.samples(own, "patch/negatives")
        z1 = self.activations(own, samples.candidates)
        slot = torch.from_numpy(owner).to(self.device), torch.from_numpy(place).to(self.device)
        padded = torch.zeros(len(counts), n, width, z1.shape[-1], device=self.device)
        labels, weights = (torch.zeros(len(counts), n, width, device=self.device) for _ in range(2))
        items = torch.zeros(len(counts), n, width, dtype=torch.int64)
        padded[slot] = z1
        labels[slot] = samples.labels.to(self.device)
        weights[slot] = samples.weights.to(self.device)
        items[torch.from_numpy(owner), torch.from_numpy(place)] = samples.candidates
        return LocalRows(
            padded.flatten(1, 2), labels.flatten(1), weights.flatten(1), users, items.flatten(1), self.known[1][users]
        )


def _users_table(work: Work, dataset: Dataset, n_shards: int) -> pl.DataFrame:
    parts = []
    for shard in range(n_shards):
        saved = work.read_tensors(shard_name(shard))
        parts.append(shard_table(shard, saved["user_index"], saved["events"], saved["losses"], saved["kept"]))
    return with_ids(pl.concat(parts), dataset)


def shard_table(
    shard: int, users: Tensor, events: Tensor, losses: Float[Tensor, "U two"], kept: Tensor
) -> pl.DataFrame:
    """What is known of the users of one shard, in the order of its rows; NaN losses are null."""
    return pl.DataFrame(
        {
            "user_index": users.numpy().astype(np.int32),
            "shard": np.full(len(users), shard, dtype=np.int32),
            "row": np.arange(len(users), dtype=np.int32),
            "events": events.numpy().astype(np.int32),
            "loss_before": losses[:, 0].numpy(),
            "loss_after": losses[:, 1].numpy(),
            "kept": kept.numpy(),
        }
    ).with_columns(pl.col("loss_before", "loss_after").fill_nan(None))


def with_ids(table: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """The users' outside ids beside their numbers."""
    ids = dataset.users.select("user_index", "user_id")
    table = table.join(ids, on="user_index", how="left", maintain_order="left")
    return table.select("user_index", "user_id", "shard", "row", "events", "loss_before", "loss_after", "kept")


def summary(table: pl.DataFrame, size: int, asked: int) -> dict[str, object]:
    """Facts about the patched users for the manifest; size: K."""
    judged = table.drop_nulls("loss_after")
    improved = int((judged["loss_after"] < judged["loss_before"]).sum())
    return {
        "users": table.height,
        "users_asked_for": asked,
        "users_without_events": asked - int((table["events"] > 0).sum()),
        "events": int(table["events"].sum()),
        "bytes_per_user": 4 * size,
        "users_judged": judged.height,
        "users_improved": improved,
        "improved_share": improved / judged.height if judged.height else None,
        "kept": int(table["kept"].sum()),
    }
