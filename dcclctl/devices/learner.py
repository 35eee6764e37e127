"""Learning on all devices at once, in shards of users and batches of users with similar numbers of events."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dcclctl.artifacts.cloud import CloudModel
from dcclctl.artifacts.dataset import Dataset
from dcclctl.artifacts.patches import THETA_FILE, PatchSet, shard_name
from dcclctl.compute import Phase, no_progress, torch_device
from dcclctl.config import PatchConfig
from dcclctl.devices.basis import JointFit, SharedEvents
from dcclctl.devices.method import DeviceMethod, Learned, PatchTask, Served, Serving, method_of
from dcclctl.devices.placebos import mean_code, shuffled_codes
from dcclctl.devices.settings import LocalSettings
from dcclctl.events.log import Block
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import Ints
from dcclctl.models.scoring import Backbone, HeadFunction
from dcclctl.models.windows import runs
from dcclctl.scale.executor import Executor, for_each_shard
from dcclctl.scale.task import OnShard, ShardTask
from dcclctl.store.store import Store
from dcclctl.store.work import Work

#: the users whose patches are learned, shard by shard; it is needed on the way only
ACTIVE_FILE = "active.safetensors"
#: events that what all users share is learned from, about, in a log with many more
_SHARED_EVENTS = 1_000_000
#: name of the draws of negatives that devices learn with
NEGATIVES = "patch/negatives"
SettingsT = TypeVar("SettingsT", bound=LocalSettings)
RowsT = TypeVar("RowsT")


class Learner(ABC, Generic[SettingsT, RowsT]):
    """The devices of one run; `size` is K, the numbers that each device learns."""

    size: int

    def __init__(self, task: PatchTask[SettingsT]) -> None:
        self.task, self.log, self.settings, self.device = task, task.log, task.settings, task.device
        self.sampler = Sampler(task.log, [task.block], task.config.negatives, task.seed, NEGATIVES)

    @abstractmethod
    def rows(self, events: Ints, first: Ints, counts: Ints) -> RowsT:
        """Rows of some users' events events[first : first + counts] (U,), padded to the largest count."""

    @abstractmethod
    def fit(self, rows: RowsT) -> Float[Tensor, "U K"]:
        """Learn θ̂ of the rows' users."""

    @abstractmethod
    def without(self, rows: RowsT, left_out: Bool[Tensor, "U N"]) -> RowsT:
        """The rows without some of each user's events."""

    @abstractmethod
    def losses(self, rows: RowsT, codes: Float[Tensor, "U K"]) -> tuple[Float[Tensor, "U"], Float[Tensor, "U"]]:
        """Each user's sum of cross-entropies over the rows as served with θ̂, nats, and the number of rows."""

    def padded(self, values: Tensor, counts: Ints) -> Tensor:
        """Values (E, …) of some users' events, user by user, padded with zeros to (U, N, …)."""
        places = torch.zeros(len(counts), int(counts.max()), *values.shape[1:], device=self.device)
        user, place = (torch.from_numpy(each).to(self.device) for each in runs(counts))
        places[user, place] = values.to(self.device)
        return places

    def shared_events(self, events: Ints) -> SharedEvents:
        """All users' events, with new negatives every epoch."""
        task = self.task
        negatives, excluded = task.config.negatives, self.sampler.excluded
        sampler = Sampler(task.log, [task.block], negatives, task.seed, "basis/negatives", excluded)
        users = np.unique(self.log.user[events], return_inverse=True)[1]
        return SharedEvents(events, users, lambda epoch: sampler.draw(events, epoch))

    def joint_fit(self, what: str, epochs: int, learning_rate: float, n_events: int) -> JointFit:
        """Settings for learning from all users' `n_events` events; `what` names the phase in the progress line."""
        task = self.task

        def on_epoch(epoch: int, loss: float) -> None:
            task.work.record({"stage": "basis", "epoch": epoch, "loss": loss})

        phase = Phase(task.on_progress, what, epochs * n_events, "events")
        prior = self.settings.prior
        return JointFit(epochs, learning_rate, prior, task.seed, on_epoch=on_epoch, on_step=phase.add)


class CodeMethod(DeviceMethod[SettingsT]):
    """A method that learns K numbers θ̂ for each user; θ̂ = 0 is the cloud model."""

    @abstractmethod
    def learner(self, task: PatchTask[SettingsT], events: Ints) -> Learner[SettingsT, Any]:
        """The devices, ready to learn; events: all users' events in the block."""

    @abstractmethod
    def head(self, patches: PatchSet, backbone: Backbone, codes: Float[Tensor, "U K"]) -> HeadFunction:
        """The model's head with θ̂ of each event's user."""

    def learn(self, task: PatchTask[SettingsT]) -> Learned:
        """Learn θ̂ of every chosen user that has events in the block, shard by shard.

        What all users share is learned first: from all events, or in a large log from those of many users.
        """
        work, dataset = task.work, task.cloud.dataset
        counts = dataset.count_events(task.block)
        many = dataset.sample(counts, _SHARED_EVENTS, task.seed, "patch/parts")
        learner = self.learner(replace(task, part=many), many.events_in(task.block))
        active = task.users[counts[task.users] > 0]
        size = task.settings.shard_users
        work.write_tensors(ACTIVE_FILE, {"user_index": torch.from_numpy(active)})
        n_shards = math.ceil(len(active) / size)
        started = time.perf_counter()
        phase = Phase(task.on_progress, "patch", len(active), "users")
        arguments = {
            "cloud": task.cloud.artifact.id,
            "block": str(task.block),
            "config": task.config.model_dump(mode="json", exclude={"settings"}),
            "settings": task.settings.model_dump(mode="json"),
        }
        shards = ShardTask.of(
            task.cloud.store, work, "dcclctl.devices.learner:shard_learner", arguments, (THETA_FILE,), task.config
        )

        def members(shard: int) -> int:
            return len(active[shard * size : (shard + 1) * size])

        computed = for_each_shard(
            task.cloud.store, work, shards, range(n_shards), Executor.parse(task.executor), phase.add, members
        )
        if computed:
            seconds = time.perf_counter() - started
            work.note_run(users_per_second=min(computed * size, len(active)) / seconds, fit_seconds=seconds)
        work.leave_out(ACTIVE_FILE)
        saved = [work.read_tensors(shard_name(shard)) for shard in range(n_shards)]
        table = pl.concat([shard_table(number, tensors) for number, tensors in enumerate(saved)])
        return Learned(with_ids(table, dataset), learner.size, 4 * learner.size, {})

    def open(self, patches: PatchSet, backbone: Backbone, serving: Serving) -> Served:
        """Serve users with their θ̂, or with that of a placebo."""
        # a placebo's θ̂ are those of other users
        codes, patched = patches.codes(backbone.log.n_users, None if serving.placebo else backbone.log.users)
        if serving.placebo == "mean":
            codes, patched = mean_code(codes, patched), torch.ones_like(patched)
        elif serving.placebo == "shuffled":
            codes = shuffled_codes(codes, patched, serving.seed)
        return serve_codes(codes, patched, backbone, serving, lambda own: self.head(patches, backbone, own))


def shard_learner(store: Store, work: Work, arguments: dict[str, Any]) -> OnShard:
    """Open a cloud model to learn on shard after shard of its users; see scale.ShardTask.

    Args:
        arguments: `cloud`: its id. `block`: whose events are learned from. `config`, `settings`: of the command and the method.
    """
    cloud, block = CloudModel(store.resolve(f"cloud@{arguments['cloud']}")), Block.parse(arguments["block"])
    method = method_of(arguments["config"]["method"])
    assert isinstance(method, CodeMethod)
    settings = method.Settings(**arguments["settings"])
    # checked where the command was given
    config = PatchConfig.model_construct(**arguments["config"], settings=settings)
    work.finished(ACTIVE_FILE)
    active = work.read_tensors(ACTIVE_FILE)["user_index"].numpy()
    task: PatchTask[Any] = PatchTask(cloud, block, active, config, settings, torch_device(config), work, no_progress)
    size = task.settings.shard_users

    def on_shard(shard: int, on_done: Callable[[float], None]) -> None:
        members = active[shard * size : (shard + 1) * size]
        own = cloud.dataset.log_with(members)
        events = own.events_in(block)
        events = events[np.isin(own.user[events], members)]
        learner = method.learner(replace(task, part=own), events)
        work.write_tensors(shard_name(shard), fit_shard(learner, members, events))
        on_done(len(members))

    return on_shard


def serve_codes(
    codes: Float[Tensor, "U K"], patched: Bool[Tensor, "U"], backbone: Backbone, serving: Serving, head_of: Any
) -> Served:
    """Serve patched users with their θ̂, others with the encoder's if there is one; head_of: all users' θ̂ → head."""
    profile = backbone.log.profile
    by = np.full(len(codes), "cloud", dtype="<U7")
    if serving.encoder is not None:
        with torch.no_grad():
            encoded = serving.encoder(torch.zeros_like(codes), profile)
        codes = torch.where(patched[:, None], codes, encoded)
        by[(~patched & profile.any(1)).numpy()] = "encoder"  # without a profile U(0, u) is the cloud model
    by[patched.numpy()] = "patch"
    return Served(head_of(codes), by)


def fit_shard(learner: Learner[Any, Any], members: Ints, events: Ints) -> dict[str, Tensor]:
    """Learn θ̂ of one shard's users, and test it on held-back events: the tensors of one file of the artifact.

    Args:
        members: (U,) the users, ascending. events: the events to learn from, sorted by user.
    """
    log, config = learner.log, learner.task.config
    first = np.searchsorted(log.user[events], members)
    counts = np.searchsorted(log.user[events], members, side="right") - first
    codes = torch.zeros(len(members), learner.size)
    losses = torch.full((len(members), 2), math.nan, dtype=torch.float64)
    for batch in packed(counts, 1 + config.negatives, learner.settings.batch_rows):
        rows = learner.rows(events, first[batch], counts[batch])
        index = torch.from_numpy(batch)
        codes[index] = learner.fit(rows).cpu()
        held = held_back_of(counts[batch], config.held_back)
        if held.any():
            # a patch learned without the newest events is tested on them; the patch that is kept is learned from all
            age = counts[batch][:, None] - 1 - np.arange(counts[batch].max())
            newest = torch.from_numpy(age < held[:, None])
            trial = learner.fit(learner.without(rows, newest))
            tested = learner.without(rows, ~newest)
            both = [learner.losses(tested, code) for code in (torch.zeros_like(trial), trial)]
            losses[index] = torch.stack([total / number for total, number in both], dim=1).cpu()
    # False for NaN: a user without held-back events gets no patch
    kept = losses[:, 1] < losses[:, 0] if config.guard else torch.ones(len(members), dtype=torch.bool)
    return {
        "theta": codes * kept.unsqueeze(1),
        "user_index": torch.from_numpy(members),
        "events": torch.from_numpy(counts),
        "losses": losses,
        "kept": kept,
    }


def shard_table(shard: int, tensors: dict[str, Tensor]) -> pl.DataFrame:
    """One row for each user of a shard, in the order of its tensors' rows; NaN losses are null."""
    users, losses = tensors["user_index"], tensors["losses"]
    return pl.DataFrame(
        {
            "user_index": users.numpy().astype(np.int32),
            "shard": np.full(len(users), shard, dtype=np.int32),
            "row": np.arange(len(users), dtype=np.int32),
            "events": tensors["events"].numpy().astype(np.int32),
            "loss_before": losses[:, 0].numpy(),
            "loss_after": losses[:, 1].numpy(),
            "kept": tensors["kept"].numpy(),
        }
    ).with_columns(pl.col("loss_before", "loss_after").fill_nan(None))


def with_ids(table: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Add the users' outside ids, which makes a PATCHED_USERS table."""
    ids = dataset.users.select("user_index", "user_id")
    table = table.join(ids, on="user_index", how="left", maintain_order="left")
    return table.select("user_index", "user_id", "shard", "row", "events", "loss_before", "loss_after", "kept")


def held_back_of(counts: Ints, fraction: float) -> Ints:
    """(U,) how many newest events to hold back: the share, rounded, at least 1; 0 for users with 1 or 2 events."""
    if fraction == 0:
        return np.zeros_like(counts)
    held = np.maximum(1, np.floor(counts * fraction + 0.5).astype(np.int64))
    return np.where(counts >= 3, np.minimum(held, counts - 1), 0)


def packed(counts: Ints, width: int, batch_rows: int) -> list[Ints]:
    """Batches of users with similar numbers of events, each of one user or at most `batch_rows` rows after padding."""
    order = np.argsort(counts, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * counts[order[end]] * width <= batch_rows:
            end += 1
        batches.append(order[begin:end])
        begin = end
    return batches
