"""Training of any cloud model: sampled losses, early stopping that keeps the best weights, a checkpoint each epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.compute import OnProgress, Phase, no_progress
from dcclctl.errors import DataError, DivergedError
from dcclctl.events.groups import UserGroups
from dcclctl.events.log import VALID, Block, EventLog
from dcclctl.events.sampler import Sampler, Samples, SharedNegatives, valid_sampler
from dcclctl.events.sampling import Ints, permutation, stream
from dcclctl.metrics.auc import gauc, user_auc
from dcclctl.metrics.ranking import ndcg, ranks
from dcclctl.models.adam import LazyAdam, gradient_of, new_adam_state
from dcclctl.models.settings import FitSettings
from dcclctl.models.trainable import Dropout, Forward, Pass, Trainable, dropout, keep_all
from dcclctl.models.world import World
from dcclctl.store.work import Work


class Validation(NamedTuple):
    """A model's figures on the valid samples.

    Attributes:
        loss: mean loss, nats; NaN without samples.
        auc: share of (event, negative) pairs in which the event's item is ranked first, 0 to 1; 0.5 without pairs. In a log
            with observed negatives the mean of this and of GAUC on the observed labels.
        ndcg: NDCG@10, see `validate`; None for a model that learns from each event's own negatives.
    """

    loss: float
    auc: float
    ndcg: float | None = None

    @property
    def quality(self) -> tuple[float, float]:
        """What the best epoch is chosen by: NDCG@10 where it is measured, and AUC where it is not or is the same."""
        return self.ndcg or 0.0, self.auc


@dataclass
class FitState:
    """The state of a training after some epochs, from which it can be resumed.

    Attributes:
        epoch: epochs done. weights: current weights by name. best: those of the best epoch, see `Validation.quality`.
        adam_state: Adam's two running means by name ("<name>.m", "<name>.v"). steps: optimiser steps done.
        best_valid: figures of the best weights.
        history: one record for each epoch: epoch, train_loss, valid_loss (nats per scored candidate, or per
            event where a batch shares its negatives), valid_auc, and valid_ndcg where it is measured.
    """

    epoch: int
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    adam_state: dict[str, Tensor]
    steps: int
    best_valid: Validation
    epochs_since_best: int
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, model: nn.Module, valid: Validation) -> "FitState":
        """The state before the first epoch: the model's weights are also the best ones so far."""
        weights = snapshot(model)
        best = {name: weight.clone() for name, weight in weights.items()}
        return cls(0, weights, best, new_adam_state(weights), 0, valid, 0)

    @property
    def best_epoch(self) -> int:
        return self.epoch - self.epochs_since_best

    def finished(self, settings: FitSettings) -> bool:
        stopped = settings.patience > 0 and self.epochs_since_best >= settings.patience
        return self.epoch >= settings.epochs or stopped

    def after(self, model: nn.Module, optimiser: LazyAdam, train_loss: float, valid: Validation) -> "FitState":
        """The state after one more epoch, which replaces this one.

        Raises:
            DivergedError: the valid loss or a weight is infinite or NaN.
        """
        epoch, weights = self.epoch + 1, snapshot(model)
        if not math.isfinite(valid.loss):
            raise DivergedError(f"the valid loss became {valid.loss}", _LOWER)
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise DivergedError(f"a weight became infinite or NaN in epoch {epoch}", _LOWER)
        better = valid.quality > self.best_valid.quality
        record = {"epoch": epoch, "train_loss": train_loss, "valid_loss": valid.loss, "valid_auc": valid.auc}
        if valid.ndcg is not None:
            record["valid_ndcg"] = valid.ndcg
        return FitState(
            epoch=epoch,
            weights=weights,
            best={name: weight.clone() for name, weight in weights.items()} if better else self.best,
            adam_state=optimiser.state,
            steps=optimiser.steps,
            best_valid=valid if better else self.best_valid,
            epochs_since_best=0 if better else self.epochs_since_best + 1,
            history=[*self.history, record],
        )

    def save(self, work: Work) -> None:
        """Write the checkpoint that `resume` reads."""
        groups = (("weights", self.weights), ("best", self.best), ("adam", self.adam_state))
        tensors = {f"{part}/{name}": tensor.cpu() for part, group in groups for name, tensor in group.items()}
        names = ("epoch", "steps", "best_valid", "epochs_since_best", "history")
        work.checkpoint(tensors, {name: getattr(self, name) for name in names})

    @classmethod
    def resume(cls, work: Work) -> "FitState | None":
        """The state after the last finished epoch of an interrupted run; None without one."""
        saved = work.load_checkpoint()
        if saved is None:
            return None
        tensors, numbers = saved
        best_valid = Validation(*numbers.pop("best_valid"))

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

        weights, best, adam_state = part("weights/"), part("best/"), part("adam/")
        return cls(weights=weights, best=best, adam_state=adam_state, best_valid=best_valid, **numbers)


_INGEST_AGAIN = "dcclctl artifacts show DATASET lists the periods: ingest again with another --split or --label, or with more events of each user."
_LOWER = "Lower --learning-rate and run the command again."


class SharedLogits(NamedTuple):
    """The negatives that the events of a batch share, and their logits."""

    negatives: SharedNegatives
    logits: Float[Tensor, "B N"]


#: weight of the squared distance of the mean odds, of a state or an event, from what they should be
CALIBRATION = 0.05
#: a logit whose odds are 0 in float32
NOTHING = -1e4


def softmax_losses(
    own: Float[Tensor, "B"], labels: Float[Tensor, "B"], shared: SharedLogits
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Losses in nats, and weights: −log of the share of an event's item among all items, estimated from shared negatives.

    A softmax leaves the level of a state's logits open, but other parts read logits as log odds of a click among a
    number of sampled items: a second term pulls the mean odds of all items to one in `negatives.expected`. An event with
    label 0 has the binary cross-entropy of its own item.

    Source: Klenitskiy & Vasilev, RecSys 2023 (arXiv 2309.07602); the second term: Devlin et al., ACL 2014, section 2.3.
    Differs: negatives are shared by the whole batch, and the sum over them is scaled to all other items. The sum has no
    bias, its logarithm has one where few items hold most of the odds; it shrinks with more negatives.
    """
    negatives, device = shared.negatives, own.device
    allowed = negatives.allowed.to(device)
    counts = allowed.sum(1)
    # not −∞, which would give events without any negative a gradient that is no number
    mean = torch.logsumexp(torch.where(allowed, shared.logits, NOTHING), 1) - torch.log(counts.clamp(min=1))
    ranked = F.softplus(mean + math.log(max(negatives.catalogue - 1, 1)) - own)
    level = CALIBRATION * (mean + math.log(negatives.expected)).square()
    positive = labels > 0
    return torch.where(positive, ranked + level, F.softplus(own)), torch.where(positive, (counts > 0).float(), 1.0)


class Objective:
    """What training minimises: the model's own losses on the labels. Distillation adds the teachers' terms.

    Attributes:
        own_negatives: whether it reads each event's own negatives even where the events of a batch share theirs.
    """

    own_negatives: ClassVar[bool] = False

    def candidates(self, events: Ints, candidates: Int[Tensor, "B C"]) -> Int[Tensor, "B C2"]:
        """The candidates whose logits the loss needs: the given ones, then any others."""
        return candidates

    def loss(
        self,
        model: Trainable,
        samples: Samples,
        candidates: Int[Tensor, "B C"],
        logits: Float[Tensor, "B C"],
        shared: SharedLogits | None = None,
    ) -> Float[Tensor, ""]:
        """Mean loss of a batch of samples; candidates: from `candidates`, with their logits."""
        return mean_loss(model, logits, samples, shared)


def losses_of(
    model: Trainable,
    logits: Float[Tensor, "B C"],
    labels: Float[Tensor, "B C"],
    weights: Float[Tensor, "B C"],
    shared: SharedLogits | None,
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Losses in nats, and weights: of a softmax over shared negatives, or without them the model's own."""
    if shared is None:
        return model.losses(logits, labels, weights)
    losses, counted = softmax_losses(logits[:, 0], labels[:, 0], shared)
    return losses.unsqueeze(1), counted.unsqueeze(1)


def mean_loss(
    model: Trainable, logits: Float[Tensor, "B C"], samples: Samples, shared: SharedLogits | None = None
) -> Float[Tensor, ""]:
    """Mean of the losses over what counts: a softmax over shared negatives, or without them the model's own losses."""
    labels, weights = samples.labels.to(logits.device), samples.weights.to(logits.device)
    losses, weights = losses_of(model, logits, labels, weights, shared)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


class TrainingGroup:
    """The events of some users that a training learns from, and their negatives.

    Attributes:
        log: of these users. objective: what to minimise on their events.
        all_events: in the blocks. events: those that the model can learn from. sampler: of their negatives.
    """

    def __init__(
        self, log: EventLog, blocks: Sequence[Block], model: Trainable, settings: FitSettings, objective: Objective
    ) -> None:
        self.log, self.objective = log, objective
        self.all_events = log.events_in(*blocks)
        self.events = learnable(model, log, self.all_events)
        own = not settings.shared_negatives or objective.own_negatives
        negatives, purpose = settings.negatives if own else 0, f"{settings.purpose}/negatives"
        self.sampler = Sampler(log, blocks, negatives, settings.seed, purpose, observed=model.pairwise)


class ValidationGroup:
    """The valid events of some users, and what a model is validated with on them.

    Attributes:
        log: of these users. sampler: of negatives that are the same for all epochs and models.
        samples: the events. ranked: (B,) whether an event's item is ranked, as some of the positive ones are.
    """

    def __init__(self, log: EventLog, settings: FitSettings, n_ranked: int) -> None:
        """Args: n_ranked: events that are ranked, at most, where a batch shares its negatives."""
        self.log = log
        self.sampler = valid_sampler(log, 0 if settings.shared_negatives else settings.negatives, settings.seed)
        self.samples = self.sampler.draw(log.events_in(VALID))
        self.ranked = np.zeros(len(self.samples.events), dtype=bool)
        if settings.shared_negatives:
            positive = np.flatnonzero(log.label[self.samples.events] > 0)
            drawn = permutation(settings.seed, "valid/ranked", self.samples.events[positive])[:n_ranked]
            self.ranked[positive[drawn]] = True


def learnable(model: Trainable, log: EventLog, events: Ints) -> Ints:
    """Those of some events that the model can learn from."""
    positive: Ints = events[log.label[events] > 0]
    return positive if model.pairwise else events


class _Batch(NamedTuple):
    """A batch of an epoch: positions in a pass over a group's events with their samples; number: of the batch."""

    group: TrainingGroup
    through: Pass
    samples: Samples
    positions: Ints
    number: int
    epoch: int


#: a process that trains alone
ALONE = World()


class Trainer:
    """Trains one model on the events of some blocks.

    A log in several groups of users is read group by group, in a new order each epoch, and validated on one of its groups.

    Args:
        model: on its device; `fit` leaves the best weights in it.
        log: the events and their histories, or groups of them. blocks: what to train on.
        objective: what to minimise; or for groups a function of a group's log. world: who trains, see world.py.

    Raises:
        DataError: the blocks or valid have no events (for a pairwise model: no positive events).
    """

    def __init__(
        self,
        model: Trainable,
        log: EventLog | UserGroups,
        blocks: Sequence[Block],
        settings: FitSettings,
        objective: Objective | Callable[[EventLog], Objective] | None = None,
        world: World = ALONE,
    ) -> None:
        self.model, self.blocks, self.settings, self.world = model, blocks, settings, world
        self.groups, self._objective = UserGroups.of(log), objective or Objective()
        self._opened: tuple[int, TrainingGroup] | None = None
        self.n_all_events = self.n_events = self.n_users = 0
        for number in range(self.groups.count):
            group = self.group(number)
            self.n_all_events += len(group.all_events)
            self.n_users += len(np.unique(group.log.user[group.all_events]))
            self.n_events += len(group.events)
        self._check(", ".join(map(str, blocks)), self.n_all_events, self.n_events)
        self.validation = self._validation()

    def group(self, number: int = 0) -> TrainingGroup:
        """A group of users; the last one stays open."""
        if self._opened is None or self._opened[0] != number:
            self._opened = None  # before another one takes its memory
            log = self.groups.open(number)
            given = self._objective
            objective = given if isinstance(given, Objective) else given(log)
            self._opened = number, TrainingGroup(log, self.blocks, self.model, self.settings, objective)
        return self._opened[1]

    def _validation(self) -> ValidationGroup:
        """The first group, in a random order, that has events to validate on."""
        numbers = np.arange(self.groups.count)
        found = None
        for number in permutation(self.settings.seed, "valid/groups", numbers):
            log = self.groups.open(int(number)) if self.groups.count > 1 else self.group().log
            found = ValidationGroup(log, self.settings, self.model.ranked_on_valid[0])
            if (log.label[found.samples.events] > 0).any():
                return found
        kind = "valid events" if found is None or not len(found.samples.events) else "positive events in valid"
        raise DataError(f"there are no {kind} to choose the best epoch by", _INGEST_AGAIN)

    def _check(self, names: str, n_all: int, n_learnable: int) -> None:
        """Refuse blocks without events that the model can learn from."""
        if not n_all:
            raise DataError(
                f"there are no events in {names}", "Choose other periods with --on, or ingest with other --periods."
            )
        if not n_learnable:
            raise DataError(
                f"there are no positive events in {names}, and this model learns from positive ones only",
                "Choose other periods with --on, or ingest with another --label.",
            )

    def fit(self, work: Work, on_progress: OnProgress, what: str) -> FitState:
        """Train until finished, from the last checkpoint if there is one; the model then has the best weights.

        Args:
            work: gets a checkpoint and one line of metrics after each epoch. what: names the phase.

        Raises:
            DivergedError: the loss or a weight became infinite or NaN.
        """
        settings, each = self.settings, self.n_events
        state = FitState.resume(work)
        if state is None:
            state = FitState.start(self.model, self.validate(on_progress))
        phase = Phase(on_progress, what, settings.epochs * each, "events", state.epoch * each)

        def on_step(number: int, done: int, loss: float) -> None:
            phase.at((number - 1) * each + done, f"epoch {number}/{settings.epochs}  loss {loss:.4f}")

        while not state.finished(settings):
            state = self.epoch(state, on_step, on_progress)
            if self.world.leads:
                work.record({"stage": what, **state.history[-1]})
                state.save(work)
        if state.epoch < settings.epochs:
            phase.at(settings.epochs * each, f"no better since epoch {state.best_epoch}")
        restore(self.model, state.best)
        return state

    def epoch(
        self,
        state: FitState,
        on_step: Callable[[int, int, float], None] = lambda *figures: None,
        on_progress: OnProgress = no_progress,
    ) -> FitState:
        """Train one epoch and validate; the model then has the epoch's weights.

        Args:
            state: after the epoch before. on_step: gets the epoch, events done, and mean loss.
            on_progress: of the validation.

        Raises:
            DivergedError: the loss or a weight became infinite or NaN.
        """
        model, settings = self.model, self.settings
        restore(model, state.weights)
        optimiser = LazyAdam(model, settings.learning_rate, settings.weight_decay, state.adam_state, state.steps)
        own = f"/{self.world.rank}" if self.world.rank else ""
        drawn = stream(settings.seed, f"{settings.purpose}/dropout/{state.epoch}{own}")
        generator = torch.Generator().manual_seed(drawn)
        total, done, batches = 0.0, 0, 0

        def drop(x: Tensor) -> Tensor:
            return dropout(x, settings.dropout, generator)

        numbers = np.arange(self.groups.count)
        for chosen in permutation(settings.seed, f"{settings.purpose}/groups", numbers, state.epoch):
            group = self.group(int(chosen))
            samples = group.sampler.draw(group.events, state.epoch)
            through = model.training_pass(group.log, group.events)
            for positions in through.batches(settings, state.epoch):
                value = self._step(optimiser, _Batch(group, through, samples, positions, batches, state.epoch), drop)
                if not math.isfinite(value):
                    raise DivergedError(
                        f"the loss became {value} in epoch {state.epoch + 1} after {done} events", _LOWER
                    )
                total, done, batches = total + value * len(positions), done + len(positions), batches + 1
                on_step(state.epoch + 1, done, total / done)
        return state.after(model, optimiser, total / max(done, 1), self.validate(on_progress))

    def _step(self, optimiser: LazyAdam, batch: "_Batch", drop: Dropout) -> float:
        """One step on a batch, of which each process of the world computes its part; returns the batch's mean loss."""
        model, world, group = self.model, self.world, batch.group
        positions = world.share(batch.positions)
        # the mean over what counts in the batch is the sum of the processes' parts
        counts = batch.samples.weights.sum(1)
        weight = float(counts[positions].sum() / counts[batch.positions].sum().clamp(min=1)) if world.size > 1 else 1.0
        positions = positions if len(positions) else batch.positions[:1]
        part = pick(batch.samples, positions)
        candidates = group.objective.candidates(part.events, part.candidates)
        negatives = self._shared(group.sampler, part.events, batch.number, batch.epoch)
        found, shared = forward(batch.through, positions, candidates, negatives, drop)
        loss = group.objective.loss(model, part, candidates, found.logits, shared)
        optimiser.zero_grad()
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        value = loss.detach() * weight
        table = optimiser.weights["item_table"]
        gradient = gradient_of(table)[found.items] if found.leaf is None else gradient_of(found.leaf)
        world.sum([gradient_of(optimiser.weights[name]) for name in optimiser.dense] + [value])
        optimiser.step(*world.sum_rows(found.items, gradient))
        return float(value)

    def validate(self, on_progress: OnProgress = no_progress) -> Validation:
        """Loss, AUC and, with shared negatives, NDCG@10 on valid, with the histories that the served model reads."""
        group = self.validation
        users = group.log.user[group.samples.events]
        through = self.model.serving_pass(group.log, group.samples.events)
        draw = partial(self._shared, group.sampler)
        return validate(self.model, through, group.samples, users, on_progress, draw, group.ranked, group.sampler)

    def _shared(self, sampler: Sampler, events: Ints, batch: int, epoch: int = 0) -> SharedNegatives | None:
        """The negatives that the events of one batch share, if they share any."""
        settings = self.settings
        if not settings.shared_negatives:
            return None
        return sampler.shared(events, settings.shared_negatives, settings.negatives, batch, epoch)

    def facts(self, state: FitState) -> dict[str, object]:
        """Facts about the training, for the manifest."""
        return {
            "parameters": sum(weight.numel() for weight in state.best.values()),
            "negatives": self.settings.negatives,
            "shared_negatives": self.settings.shared_negatives,
            "trained_on_events": self.n_all_events,
            "trained_on_users": self.n_users,
            "validated_on_events": len(self.validation.samples.events),
            "epochs": state.history,
            "best_epoch": state.best_epoch,
            "best_valid_loss": state.best_valid.loss,
            "best_valid_auc": state.best_valid.auc,
            "best_valid_ndcg": state.best_valid.ndcg,
        }


def pick(samples: Samples, positions: Ints) -> Samples:
    """The samples at some positions."""
    index = torch.from_numpy(positions)
    return Samples(samples.events[positions], samples.candidates[index], samples.labels[index], samples.weights[index])


def forward(
    through: Pass,
    positions: Ints,
    candidates: Int[Tensor, "B C"],
    negatives: SharedNegatives | None,
    drop: Dropout = keep_all,
) -> tuple[Forward, SharedLogits | None]:
    """A batch's forward pass, and the logits of the negatives that it shares, if any."""
    found, shared = forward_each(through, positions, candidates, [] if negatives is None else [negatives], drop)
    return found, shared[0] if shared else None


def forward_each(
    through: Pass,
    positions: Ints,
    candidates: Int[Tensor, "B C"],
    negatives: Sequence[SharedNegatives],
    drop: Dropout = keep_all,
) -> tuple[Forward, list[SharedLogits]]:
    """The same with several lists of shared negatives."""
    if not negatives:
        return through.forward(positions, candidates, drop), []
    found = through.forward_shared(positions, candidates, torch.cat([each.items for each in negatives]), drop)
    assert found.shared is not None
    parts = torch.split(found.shared, [len(each.items) for each in negatives], 1)
    return found, [SharedLogits(each, logits) for each, logits in zip(negatives, parts, strict=True)]


@torch.no_grad()
def validate(
    model: Trainable,
    through: Pass,
    samples: Samples,
    users: Ints | None = None,
    on_progress: OnProgress = no_progress,
    draw: Callable[[Ints, int], SharedNegatives | None] = lambda events, batch: None,
    ranked: npt.NDArray[np.bool_] | None = None,
    sampler: Sampler | None = None,
) -> Validation:
    """Mean loss and AUC of the samples (ties count half), and NDCG@10 of those whose items are ranked.

    Args:
        users: (B,) of the samples' events. With them, and where some user has events of both labels, the AUC is the mean of
            two: positive events against their sampled negatives, and GAUC on the observed labels.
        draw: events of a batch and its number → the negatives that the batch shares, if any.
        ranked: (B,) whether an event's item is ranked, among the items that `sampler` does not exclude as its negatives, as in
            an evaluation: of the whole catalogue, or of as many items as `ranked_on_valid` of the model says.

    Raises:
        DataError: there are samples, and none has an item to be compared with.
    """
    phase = Phase(on_progress, "validate", len(samples.events), "events")
    loss, count, wins, pairs = 0.0, 0.0, 0.0, 0.0
    scores, gains = np.zeros(len(samples.events)), np.zeros(len(samples.events))
    ranked = np.zeros(len(samples.events), dtype=bool) if ranked is None else ranked
    for number, batch_positions in enumerate(through.validation_batches()):
        for positions in (batch_positions[ranked[batch_positions]], batch_positions[~ranked[batch_positions]]):
            if not len(positions):
                continue
            batch = pick(samples, positions)
            drawn = draw(batch.events, number)
            lists = [drawn] if drawn is not None else []
            if sampler is not None and ranked[positions[0]]:
                lists.append(sampler.ranked(batch.events, number, most=model.ranked_on_valid[1]))
            found, each = forward_each(through, positions, batch.candidates, lists)
            logits, shared = found.logits, each[0] if drawn is not None else None
            targets, weights = batch.labels.to(logits.device), batch.weights.to(logits.device)
            losses, counts = losses_of(model, logits, targets, weights, shared)
            loss += float((losses * counts).sum(dtype=torch.float64))
            count += float(counts.sum(dtype=torch.float64))
            own, others = logits[:, :1], logits[:, 1:]
            scores[positions] = own[:, 0].double().cpu().numpy()
            counted = weights[:, 1:]
            if shared is not None:
                others, counted = shared.logits, shared.negatives.allowed.to(logits.device)
            compared = (targets[:, :1] * counted).double()
            wins += float((compared * ((own > others) + 0.5 * (own == others))).sum())
            pairs += float(compared.sum())
            if ranked[positions[0]]:
                if not (own.isfinite().all() and each[-1].logits.isfinite().all()):
                    raise DivergedError("a score of a valid event became infinite or NaN", _LOWER)
                everything = each[-1].negatives.allowed_only(each[-1].logits)
                gains[positions] = ndcg(ranks(own[:, 0].cpu().numpy(), everything.cpu().numpy()), 10)
            phase.add(len(positions))
    if len(samples.events) and not count:
        raise DataError(
            "no valid event has another item to be compared with",
            "Training needs users who have not had every item: ingest a log with more items.",
        )
    auc = wins / pairs if pairs else 0.5
    labels = samples.labels[:, 0].numpy()
    if users is not None and not labels.all() and np.isfinite(scores).all():
        observed, _ = gauc(user_auc(users, labels, scores))
        auc = auc if observed is None else (auc + observed) / 2
    quality = float(gains[ranked].mean()) if ranked.any() else None
    return Validation(loss / count if count else math.nan, auc, quality)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def restore(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into the model."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
