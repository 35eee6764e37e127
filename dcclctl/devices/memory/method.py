"""The device method `memory`: patches that are computed from each device's memory.

The patch is learned from events that the cloud model was not trained on, with statistics that do not count them
(cross-fitting). The newest cloud model was trained on the newest events, so for each part of the block the newest model
of its lineage is used that was not trained on that part. The learned patch then serves on the newest model. A model
that was trained from scratch has no such lineage; --learn-with names the model to learn with.
"""

import math
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dcclctl.artifacts import CloudModel, Memory, PatchSet
from dcclctl.artifacts.memory import STATISTICS_FILE, TYPICAL_FILE
from dcclctl.compute import Phase
from dcclctl.config import Fraction, Positive, Rate, Section, rarely, tuned
from dcclctl.devices.learner import held_back_of, shard_table, with_ids
from dcclctl.devices.memory.contrast import Contrast
from dcclctl.devices.memory.features import FeatureTables, Memories, Statistics
from dcclctl.devices.memory.patch import MemoryFit, MemoryPatch, MemoryRows, learn, prior_shift, user_losses
from dcclctl.devices.memory.statistics import Counted, StatisticsSettings, count_statistics
from dcclctl.devices.method import DeviceMethod, Learned, PatchTask, Served, Serving
from dcclctl.devices.placebos import shuffled_histories
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.events.log import Block
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import Ints, log_uniform, permutation, stream, uniforms
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import Backbone
from dcclctl.models.training import snapshot
from dcclctl.store.artifact import Artifact
from dcclctl.store.lineage import ancestors

PATCH_FILE = "memory_patch.safetensors"
_BATCH = 512
#: events whose candidates are chosen at once
_EVENTS = 128
#: of a learned patch the weights are below 10; logits of a patch with far larger ones would be noise
_LARGEST_WEIGHT = 1e3
#: rows (events with their candidates) to learn from, at most; more rows change the third digit only
_ROWS = 1_500_000
#: parts of the block, at most: statistics are counted for each
_PARTS = 60


class MemorySettings(Section):
    hidden_size: Positive = tuned(32, "H: hidden units of the patch.", search="16,32,64")
    epochs: Positive = tuned(8, "Passes over the events that learn the patch.", search="4..16")
    learning_rate: Rate = rarely(0.003, "AdamW's step size.", search="3e-4..3e-2")
    weight_decay: Annotated[float, Field(ge=0.0)] = rarely(0.01, "AdamW's weight decay.", search="1e-4..1e-1")
    highest: Positive = rarely(
        64,
        "Items that the cloud model ranks highest, with which each event's item is compared; in a catalogue of more than "
        "20,000, of 20,000 items that are drawn.",
    )
    others: Positive = rarely(64, "Further items with which each event's item is compared; they stand for all others.")
    truncated_share: Fraction = rarely(
        0.5,
        "Share of the events that the patch is learned from a second time, with the history cut to its newest baskets, "
        "as on a new device.",
    )
    order: Literal["auto", "always", "never"] = Field(
        "auto", description="Use the order of events; auto: unless held-back events are predicted better without."
    )
    min_history_quantile: Fraction = rarely(
        0.01,
        "The cloud model serves users whose memory holds fewer events than this quantile of the memories that the "
        "patch was learned from.",
    )


def before(block: Block) -> Counted:
    """The events before a block."""
    return lambda log: log.before(block)


def statistics_of(memory: Memory) -> Statistics:
    """The statistics of a committed memory.

    Raises:
        ArtifactError: they are for other features than this program computes.
    """
    tensors = memory.artifact.read_tensors(STATISTICS_FILE)
    found = Statistics(**tensors) if set(tensors) == set(Statistics.__dataclass_fields__) else None
    if found is None or list(found.features) != memory.facts["features"]:
        raise ArtifactError(
            f"{memory.ref} has means and spreads of other features than this dcclctl computes",
            "Make it and its patches again: dcclctl memory --force",
        )
    return found


#: what serving from a memory needs for all users, made once for each memory in use
_tables: WeakKeyDictionary[Memory, tuple[FeatureTables, Float[Tensor, "T1 R"]]] = WeakKeyDictionary()


def tables_of(memory: Memory) -> tuple[FeatureTables, Float[Tensor, "T1 R"]]:
    """Tables of a committed memory's statistics, and its typical profiles."""
    if memory not in _tables:
        tables = FeatureTables(statistics_of(memory), memory.dataset.item_categories)
        _tables[memory] = tables, memory.artifact.read_tensors(TYPICAL_FILE)["typical"]
    return _tables[memory]


def unseen_model_per_block(cloud: CloudModel, block: Block) -> list[tuple[CloudModel, Block]]:
    """For each part of the block the newest model of the lineage that was not trained on it.

    Args:
        cloud: the model to serve. block: the events to learn from.

    Returns:
        (model, part), oldest part first; together the parts are the block. (cloud, block) if the cloud model was not
        trained on the block at all.

    Raises:
        UsageError: every model of the lineage was trained on some part, or there are too many parts.
    """
    lineage = [cloud]
    while (parent := lineage[0].parent) is not None:
        lineage.insert(0, parent)
    seen = [{other for other in learned_from(model.artifact) if other.overlaps(block)} for model in lineage]
    # the blocks of a model include those of its ancestors
    parts = math.lcm(block.parts, *(other.parts for other in seen[-1]))
    many = parts // block.parts
    if many > _PARTS:
        cuts = ", ".join(str(other) for other in sorted(seen[-1]))
        raise UsageError(
            f"{cloud.ref} was trained on {cuts}, which cut {block} into {many:,} parts",
            "Use successive blocks of one length, such as device:1/3, device:2/3, device:3/3.",
        )
    found = []
    for number in range((block.part - 1) * many + 1, block.part * many + 1):
        part = Block(block.period, number, parts)
        trained = [any(other.overlaps(part) for other in blocks) for blocks in seen]
        first = trained.index(True) if True in trained else len(lineage)
        if first == 0:
            raise _all_trained(cloud, lineage[0], part)
        found.append((lineage[first - 1], part))
    return found


def learned_from(artifact: Artifact) -> set[Block]:
    """Blocks that an artifact or one of its ancestors learned from or counted."""
    found: set[Block] = set()
    for each in ancestors(artifact).values():
        if each.kind == "memory":
            found |= blocks_through(Block.parse(each.config["counted_through"]))
        elif each.kind in ("cloud", "patches"):
            on = each.config["on"]
            found |= {Block.parse(name) for name in ([on] if isinstance(on, str) else on)}
    return found


def blocks_through(last: Block) -> set[Block]:
    """Blocks that together are everything up to the end of the last."""
    periods = {Block(period) for period in range(last.period)}
    return periods | {Block(last.period, part + 1, last.parts) for part in range(last.part)}


def _all_trained(cloud: CloudModel, root: CloudModel, part: Block) -> UsageError:
    on = ", ".join(root.config["on"])
    origin = "" if root.id == cloud.id else f", the first model in the lineage of {cloud.ref},"
    return UsageError(
        f"{root.ref}{origin} was trained on {on} at once. Every model in this lineage was trained on {part}, "
        "and the patch must be learned from events that the model has not seen",
        f"Learn with a model that ends before {part}: dcclctl train --model {root.model} --on cloud, then dcclctl patch "
        "--learn-with REF",
    )


class _Run:
    """Rows of all parts of the block, and patches learned from them.

    Attributes:
        counts: (U,) events of each user in the block. log: of all users, or in a large log of so many that there are
            enough events to learn from.
    """

    def __init__(self, task: PatchTask[MemorySettings], memory: Memory) -> None:
        self.task, self.memory, self.settings, self.dataset = task, memory, task.settings, task.cloud.dataset
        self.models = unseen_model_per_block(task.learn_with or task.cloud, task.block)
        self.statistics = statistics_of(memory)
        self.counts = self.dataset.count_events(task.block)
        self.log = self.dataset.sample(self.counts, self._most_events, task.seed, "memory/parts")

    def remembered(self, smallest: int) -> npt.NDArray[np.bool_]:
        """(U,) users with at least `smallest` positive events up to the end of the block: memories that the patch reads."""
        through = blocks_through(self.task.block)
        return self.dataset.count_events(*sorted(through), positive=True) >= smallest

    @property
    def _most_events(self) -> int:
        """Events to learn from, at most."""
        return _ROWS // (1 + self.settings.highest + self.settings.others)

    def rows(self) -> tuple[MemoryRows, MemoryRows]:
        """Rows of all users, also of those that get no patch.

        Returns:
            A row for each event; and for some of the events a second one, in which the memory and the cloud model have only
            the newest few events of the history, in whole baskets, as on a new device.
        """
        whole: list[MemoryRows] = []
        truncated: list[MemoryRows] = []
        log, negatives = self.log, self.task.config.negatives
        how, on_progress = StatisticsSettings.of(self.memory.config), self.task.on_progress
        events_of = [self._events_of(block) for _, block in self.models]
        shorter = [self._truncated(events) for events in events_of]
        n_rows = sum(len(events) + len(some) for events, (some, _) in zip(events_of, shorter, strict=True))
        phase = Phase(on_progress, "compute features", n_rows, "events")
        for number, (model, block) in enumerate(self.models):
            statistics = count_statistics(self.dataset.groups, before(block), how, self.task.seed, on_progress)
            backbone, shift = open_backbone(model, self.task.device, log), prior_shift(model.negatives, negatives)
            sampler = Sampler(log, [block], 0, self.task.seed, f"memory/negatives/{self.task.config.on}")
            events, (some, lengths) = events_of[number], shorter[number]
            cut = backbone.with_log(log.truncate_history(some, lengths))
            for parts, chosen, reader in ((whole, events, backbone), (truncated, some, cut)):
                found = self._rows_of(reader, sampler, chosen, number, statistics, phase)
                found.logits.add_(shift)
                parts.append(found)
        return MemoryRows.join(whole), MemoryRows.join(truncated)

    def _events_of(self, block: Block) -> Ints:
        """All events of a part of the block, or a sample if there are too many."""
        events = self.log.events_in(block)
        limit = self._most_events // len(self.models)
        if len(events) <= limit:
            return events
        return np.sort(events[permutation(self.task.seed, "memory/sample", self.log.places(events))[:limit]])

    def _truncated(self, events: Ints) -> tuple[Ints, Ints]:
        """Events to learn from a second time, and the length of each history: see `log_uniform`, but no basket is cut."""
        seed, places = self.task.seed, self.log.places(events)
        held = self.log.history_lengths(events, self.memory.size)
        chosen = (uniforms(seed, "memory/short", places) < self.settings.truncated_share) & (held > 0)
        lengths = log_uniform(seed, "memory/length", places[chosen], 1, held[chosen])
        return events[chosen], self.log.whole_baskets(events[chosen], lengths)

    @torch.no_grad()
    def _rows_of(
        self, backbone: Backbone, sampler: Sampler, events: Ints, number: int, statistics: Statistics, phase: Phase
    ) -> MemoryRows:
        """Rows of some events of part `number` of the block, with histories from the backbone's log."""
        memory, log, width = self.memory, backbone.log, self.settings.highest + self.settings.others
        memories = Memories(log, statistics, memory.size, memory.profile_window)
        logits, stands = torch.empty(len(events), 1 + width), torch.empty(len(events), width)
        found = torch.empty(len(events), 1 + width, len(statistics.features))
        contrast = Contrast(backbone, sampler, self.settings.highest, self.settings.others)
        order = np.argsort(backbone.lengths(events), kind="stable")
        for at in range(0, len(order), _EVENTS):
            some = order[at : at + _EVENTS]
            index = torch.from_numpy(some)
            chosen = contrast.of(events[some], number)
            logits[index], stands[index] = chosen.logits, chosen.stands
            found[index] = memories.of_candidates(events[some], chosen.candidates)
            phase.add(len(some))
        held, labels = log.history_lengths(events, memory.size), torch.from_numpy(log.label[events]).float()
        return MemoryRows(events, held, found, memories.profiles(events), logits, labels, stands)

    def learn(self, rows: MemoryRows, what: str, order: bool = True) -> MemoryPatch:
        """A patch learned from the rows; without `order` it ignores the features that depend on the order of events."""
        settings, seed = self.settings, self.task.seed
        ignored = [] if order else self.statistics.order_columns(self.memory.profile_window)
        patch = new_patch(self.memory, settings.hidden_size, stream(seed, "memory/weights"))
        negatives = self.task.config.negatives
        fit = MemoryFit(settings.epochs, settings.learning_rate, settings.weight_decay, _BATCH, seed, negatives)
        phase = Phase(self.task.on_progress, what, settings.epochs * len(rows.events), "events")
        learn(patch, rows.blank(ignored) if ignored else rows, fit, phase.add)
        patch.ignore(ignored)
        return patch

    def test(
        self, rows: MemoryRows, truncated: MemoryRows, order: bool, smallest: int
    ) -> tuple[Float[Tensor, "U two"], bool, dict[str, float]]:
        """Learn a patch without each user's newest events, and test it on them.

        Args:
            order: whether the order of events may be used. smallest: events in a memory that the patch reads.

        Returns:
            Each user's mean loss without and with the patch, NaN without held-back events; whether the order of events
            is used; and the losses with and without it, if both were tried.
        """
        log, owners, negatives = self.log, self.log.user[rows.events], self.task.config.negatives
        read = np.bincount(owners, minlength=log.n_users)
        newest = torch.from_numpy(_newest(owners, held_back_of(read, self.task.config.held_back)))
        losses = torch.full((log.n_users, 2), math.nan, dtype=torch.float64)
        if not newest.any():
            return losses, order, {}
        known = torch.from_numpy(~np.isin(truncated.events, rows.events[newest.numpy()]))
        older = MemoryRows.join([rows.where(~newest), truncated.where(known)])
        losses = user_losses(self.learn(older, "learn (held back)", order), rows, log, newest, negatives, smallest)
        if not order or self.settings.order != "auto":
            return losses, order, {}
        without = user_losses(self.learn(older, "learn (held back)", False), rows, log, newest, negatives, smallest)
        tried = {"with": float(losses[:, 1].nanmean()), "without": float(without[:, 1].nanmean())}
        return (without, False, tried) if tried["without"] < tried["with"] else (losses, True, tried)


def new_patch(memory: Memory, hidden_size: int, seed: int) -> MemoryPatch:
    """A memory patch before learning."""
    features, profile = len(memory.facts["features"]), len(memory.facts["profile_features"])
    return MemoryPatch(hidden_size, features, profile, torch.Generator().manual_seed(seed))


def patch_of(patches: PatchSet) -> MemoryPatch:
    """The patch's weights of committed memory patches.

    Raises:
        ArtifactError: other shapes than the settings say, or weights that no learning comes to.
    """
    assert patches.memory is not None
    patch = new_patch(patches.memory, patches.settings["hidden_size"], 0)
    weights = patches.artifact.read_weights(PATCH_FILE, patch.state_dict())
    largest = max(float(weight.abs().max()) for weight in weights.values() if weight.numel())
    if largest > _LARGEST_WEIGHT:
        raise patches.artifact.unreadable(PATCH_FILE, f"has a weight of {largest:.3g}, which no learning comes to")
    patch.load_state_dict(weights)
    return patch.requires_grad_(False)


class MemoryMethod(DeviceMethod[MemorySettings]):
    Settings = MemorySettings
    uses_memory = True
    learns_locally = False

    def learn(self, task: PatchTask[MemorySettings]) -> Learned:
        """Learn the patch's weights from all users' events.

        Raises:
            UsageError: every model of the lineage was trained on the block (see `unseen_model_per_block`); the order of
                events is wanted, and the memory does not have it.
        """
        memory, settings = task.memory, task.settings
        assert memory is not None
        knows_order = memory.config["transition_window"] > 0
        if settings.order == "always" and not knows_order:
            raise UsageError(
                f"order = always: {memory.ref} does not know the order of events",
                "Make one that does: dcclctl memory --transition-window 10",
            )
        run = _Run(task, memory)
        rows, truncated = run.rows()
        learned = MemoryRows.join([rows, truncated])
        # users with smaller memories than nearly all that the patch learned from are served by the cloud model
        sizes, quantile = np.maximum(learned.held, 1), settings.min_history_quantile
        smallest = int(np.quantile(sizes, quantile, method="lower")) if quantile else 1
        losses, order, tried = run.test(rows, truncated, knows_order and settings.order != "never", smallest)
        patch = run.learn(learned, "learn", order)
        task.work.write_tensors(PATCH_FILE, snapshot(patch))
        read = np.bincount(run.log.user[rows.events], minlength=run.log.n_users)
        chosen = torch.from_numpy(task.users)
        lost = losses[chosen, 1] >= losses[chosen, 0]  # False for NaN: a user without held-back events gets the patch
        tensors = {
            "user_index": chosen,
            "events": torch.from_numpy(run.counts)[chosen],
            "losses": losses[chosen],
            "kept": ~lost if task.config.guard else torch.ones_like(lost),
        }
        facts: dict[str, Any] = {
            "learned_with": [f"{model.id} on {block}" for model, block in run.models],
            "smallest_memory": smallest,
            "order": order,
            "order_losses": tried,
            "patch_weights": sum(weight.numel() for weight in patch.parameters()),
            "events_read": int(read[task.users].sum()),
            "users_from_older": int((run.remembered(smallest) & (run.counts == 0))[task.users].sum()),
        }
        table = with_ids(shard_table(0, tensors), task.cloud.dataset)
        return Learned(table, 0, memory.facts["bytes_per_user_largest"], facts)

    def open(self, patches: PatchSet, backbone: Backbone, serving: Serving) -> Served:
        """Serve users with their memories, to which every event of the log is added.

        The placebo `shuffled` gives every user the history of another user at the end of the period before; `mean`
        changes nothing, because there is no θ̂.
        """
        memory, log = patches.memory, backbone.log
        assert memory is not None
        patch, (tables, typical) = patch_of(patches), tables_of(memory)
        _, patched = patches.codes(log.n_users)
        source_of = shuffled_histories(log, serving.seed) if serving.placebo == "shuffled" else lambda events: events
        counted = log.up_to(Block.parse(memory.counted_through))
        memories = Memories(
            log, tables.statistics, memory.size, memory.profile_window, counted, tables=tables, typical=typical
        )
        smallest = int(patches.facts["smallest_memory"])
        shift = prior_shift(patches.cloud.negatives, int(patches.config["negatives"]))

        def remembers(events: Ints) -> npt.NDArray[np.bool_]:
            enough = log.history_lengths(source_of(events), smallest) >= smallest
            used: npt.NDArray[np.bool_] = enough & patched.numpy()[log.user[events]]
            return used

        def head(events: Ints, candidates: Tensor | None, below: Tensor) -> Tensor:
            # on the CPU, where the memories are; a GPU computes only the cloud model's logits
            cloud = backbone.head(events, candidates, below)
            logits = cloud.cpu()
            remembered = patch(memories.features(source_of(events), candidates), logits + shift) - shift
            used = torch.from_numpy(remembers(events)).unsqueeze(1)
            return torch.where(used, remembered, logits).to(cloud.device)

        by = np.full(log.n_users, "cloud", dtype="<U7")
        by[patched.numpy()] = "memory"
        return Served(head, by, remembers)


def _newest(owners: Ints, held: Ints) -> npt.NDArray[np.bool_]:
    """(B,) whether a row is among its user's newest `held` (U,) rows; a user's rows are in order of time."""
    order = np.argsort(owners, kind="stable")
    sorted_owners = owners[order]
    ends = np.searchsorted(sorted_owners, sorted_owners, side="right")
    newest = np.zeros(len(owners), dtype=bool)
    newest[order] = ends - np.arange(len(owners)) <= held[sorted_owners]
    return newest
