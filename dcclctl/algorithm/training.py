"""Training the cloud model: sampled cross-entropy, early stopping with the best weights kept, resumable after any epoch.

With a teacher the same loop is step 1 of MoMoDistill (see momodistill.py).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import VALID, EventLog
from dcclctl.algorithm.sampling import Ints, PairSet, draw_negatives, permutation, stream
from dcclctl.errors import DivergedError

#: on_step(epoch, events done in this epoch, events per epoch, mean loss so far, events per second)
OnStep = Callable[[int, int, int, float, float], None]
#: events (B,), candidates (B, C) → the teacher's logits (B, C)
Teacher = Callable[[Ints, Int[Tensor, "B C"]], Float[Tensor, "B C"]]
#: events (B,), epoch from 0 → items (B, M) that nobody has labelled
Unlabelled = Callable[[Ints, int], Int[Tensor, "B M"]]

#: what makes an epoch the best one on the valid samples
Criterion = Literal["loss", "auc"]

#: batches that are sorted by history length together: long enough for tight padding, short enough to stay random
_BUCKET_BATCHES = 50


@dataclass(frozen=True)
class FitSettings:
    """How to train. `purpose` names the random draws, so that two stages with one seed draw differently."""

    history: int
    negatives: int
    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int
    purpose: str = "train"
    beta: float = 0.0
    criterion: Criterion = "loss"


@dataclass
class FitState:
    """Everything that a later epoch depends on.

    Attributes:
        epoch: epochs done.
        weights: current weights by name. best: the best weights so far by the criterion (see FitSettings).
        moments: Adam's moments by name ("<name>.m", "<name>.v"). steps: optimiser steps done.
        best_loss, best_auc: of the best weights on the valid samples (see Judged).
        history: one record an epoch: epoch, train_loss, valid_loss (nats per scored candidate), valid_auc.
    """

    epoch: int
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    moments: dict[str, Tensor]
    steps: int
    best_loss: float
    best_auc: float
    epochs_since_best: int
    history: list[dict[str, float]] = field(default_factory=list)

    def finished(self, settings: FitSettings) -> bool:
        stopped = settings.patience > 0 and self.epochs_since_best >= settings.patience
        return self.epoch >= settings.epochs or stopped


class Judged(NamedTuple):
    """What a model makes of samples.

    Attributes:
        loss: mean loss of a candidate, nats; NaN without samples.
        auc: how often an event's item is above one of its own negatives, 0 to 1; 0.5 where there is nothing to rank.
    """

    loss: float
    auc: float


class Tally:
    """Adds up batches of samples; `judged` is what they come to."""

    def __init__(self) -> None:
        self.loss, self.count, self.wins, self.pairs = 0.0, 0.0, 0.0, 0.0

    def add(
        self,
        losses: Float[Tensor, ""],
        count: Float[Tensor, ""],
        logits: Float[Tensor, "B C"],
        labels: Float[Tensor, "B C"],
        weights: Float[Tensor, "B C"],
    ) -> None:
        """One batch: the sum of its losses and of how many there are, its logits, and what the samples say of them."""
        self.loss, self.count = self.loss + float(losses), self.count + float(count)
        own, others = logits[:, :1], logits[:, 1:]
        pairs = (labels[:, :1] * weights[:, 1:]).double()
        self.wins += float((pairs * ((own > others) + 0.5 * (own == others))).sum())
        self.pairs += float(pairs.sum())

    @property
    def judged(self) -> Judged:
        loss = self.loss / self.count if self.count else math.nan
        return Judged(loss, self.wins / self.pairs if self.pairs else 0.5)


def zero_moments(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's moments of weights that have not been trained yet."""
    return {f"{name}.{moment}": torch.zeros_like(weight) for name, weight in weights.items() for moment in "mv"}


class Adam:
    """Adam on dense weights, and lazily on the rows of the item table that a batch touches.

    Source: Kingma & Ba 2015; the lazy form is the one of torch.optim.SparseAdam.
    Differs: rows outside a batch keep their moments, so that a step costs what the batch costs, not the catalogue.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float,
        weight_decay: float,
        moments: dict[str, Tensor] | None = None,
        steps: int = 0,
    ) -> None:
        self.model, self.rate, self.weight_decay, self.steps = model, rate, weight_decay, steps
        self.weights = dict(model.named_parameters())
        self.moments = moments or zero_moments(self.weights)
        self.dense = [name for name in self.weights if name != "item_table"]

    @torch.no_grad()
    def step(self, items: Int[Tensor, "R"], item_gradient: Float[Tensor, "R E"]) -> None:
        """Update all dense weights from their `.grad`, and the given rows of the item table."""
        self.steps += 1
        moments, names = self.moments, self.dense
        torch._fused_adam_(
            [self.weights[n] for n in names],
            [gradient_of(self.weights[n]) for n in names],
            [moments[f"{n}.m"] for n in names],
            [moments[f"{n}.v"] for n in names],
            [],
            [torch.tensor(float(self.steps), device=self.weights[n].device) for n in names],
            lr=self.rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        table, first, second = self.weights["item_table"], moments["item_table.m"], moments["item_table.v"]
        gradient = item_gradient + self.weight_decay * table[items]
        m = first[items].mul_(0.9).add_(gradient, alpha=0.1)
        v = second[items].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        first[items], second[items] = m, v
        scale = self.rate / (1 - 0.9**self.steps)
        table[items] -= scale * m / (v.sqrt() / math.sqrt(1 - 0.999**self.steps) + 1e-8)


@dataclass(frozen=True)
class Samples:
    """Targets of one pass: each event's own item first, then its negatives.

    Attributes:
        events: (B,) rows of the log. candidates: (B, C) items. labels: (B, C) 0 or 1.
        weights: (B, C) 1 where the candidate counts. An event with label 0 is its own negative and has no sampled ones.
    """

    events: Ints
    candidates: Int[Tensor, "B C"]
    labels: Float[Tensor, "B C"]
    weights: Float[Tensor, "B C"]


def sample(
    log: EventLog,
    events: Ints,
    negatives: int,
    catalogue: Ints,
    excluded: PairSet,
    seed: int,
    purpose: str,
    round: int = 0,
) -> Samples:
    """Each event with `negatives` sampled items that are not positive for its user in the same block."""
    drawn = draw_negatives(seed, purpose, events, log.owners(events, excluded), negatives, catalogue, excluded, round)
    own = log.label[events]
    labels = np.zeros((len(events), 1 + negatives), dtype=np.float32)
    labels[:, 0] = own
    weights = np.ones_like(labels)
    weights[own == 0, 1:] = 0
    candidates = np.concatenate([log.item[events][:, None], drawn], axis=1)
    return Samples(events, torch.from_numpy(candidates), torch.from_numpy(labels), torch.from_numpy(weights))


def batches(log: EventLog, samples: Samples, settings: FitSettings, epoch: int) -> Iterator[Ints]:
    """Positions into `samples`, batch by batch: shuffled, and bucketed so that a batch's histories have similar lengths."""
    order = permutation(settings.seed, f"{settings.purpose}/shuffle", samples.events, epoch)
    lengths = log.history_lengths(samples.events, settings.history)
    span = settings.batch_size * _BUCKET_BATCHES
    for start in range(0, len(order), span):
        chunk = order[start : start + span]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        firsts = np.arange(0, len(chunk), settings.batch_size)
        for first in firsts[permutation(settings.seed, f"{settings.purpose}/batches", firsts, epoch, start)]:
            yield chunk[first : first + settings.batch_size]


def first_layer(
    model: Din,
    log: EventLog,
    events: Ints,
    candidates: Int[Tensor, "B C"],
    limit: int,
    item_rows: Callable[[Int[Tensor, "R"]], Float[Tensor, "R E"]] | None = None,
) -> Float[Tensor, "B C H1"]:
    """Activations of the first hidden layer for every (event, candidate).

    Args:
        candidates: few per event; for rankings see scoring.py.
        limit: L, history length.
        item_rows: gives the item-table rows to use for the batch's distinct items (training passes leaves of its own).
    """
    device = model.out.weight.device
    history, mask = log.histories(events, limit)
    distinct, inverse = torch.unique(torch.cat([history.flatten(), candidates.flatten()]), return_inverse=True)
    distinct, inverse = distinct.to(device), inverse.to(device)
    table = model.embed(distinct, None if item_rows is None else item_rows(distinct))
    keys = F.embedding(inverse[: history.numel()].view(history.shape), table)
    query = F.embedding(inverse[history.numel() :].view(candidates.shape), table)
    profile = log.profile[torch.from_numpy(log.user[events])].to(device)
    return model.first_layer(query, model.interest(query, keys, mask.to(device)), model.embed_profile(profile))


def weighted_cross_entropy(
    logits: Float[Tensor, "B C"],
    labels: Float[Tensor, "B C"],
    weights: Float[Tensor, "B C"],
    told: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy over the candidates that count, nats; 0 for events that are not told."""
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights
    return (losses if told is None else losses * told.unsqueeze(1)).sum() / weights.sum()


def bernoulli_kl(teacher: Float[Tensor, "..."], student: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """KL(p_teacher ‖ p_student) of the two click probabilities, from logits, nats; 0 where they are equal.

    Source: MoMoDistill, Yao et al. 2021, eq. 6 and 7.
    """
    p = torch.sigmoid(teacher)
    return p * (teacher - student) + F.softplus(student) - F.softplus(teacher)


@torch.no_grad()
def judge(model: Din, log: EventLog, samples: Samples, limit: int, batch_size: int = 4096) -> Judged:
    """Mean cross-entropy of the samples, and AUC."""
    tally = Tally()
    device = model.out.weight.device
    for start in range(0, len(samples.events), batch_size):
        part = slice(start, start + batch_size)
        z1 = first_layer(model, log, samples.events[part], samples.candidates[part], limit)
        logits = model.logits(model.second_layer(z1))
        labels, counts = samples.labels[part].to(device), samples.weights[part].to(device)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        sums = (losses * counts).sum(dtype=torch.float64), counts.sum(dtype=torch.float64)
        tally.add(*sums, logits, labels, counts)
    return tally.judged


def valid_samples(log: EventLog, negatives: int, seed: int) -> Samples:
    """The valid period's events with negatives that never change, so that epochs and models compare on one footing."""
    events = log.events_in(VALID)
    return sample(log, events, negatives, log.catalogue(VALID), log.never_negative(VALID), seed, "valid/negatives")


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights by name into the model."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])


def start(model: nn.Module, valid: Judged) -> FitState:
    """The state before the first epoch: the weights as they are, which also stand as the best so far."""
    weights = snapshot(model)
    best = {name: weight.clone() for name, weight in weights.items()}
    return FitState(0, weights, best, zero_moments(weights), 0, valid.loss, valid.auc, 0)


def train_epoch(
    model: Din,
    log: EventLog,
    events: Ints,
    catalogue: Ints,
    excluded: PairSet,
    valid: Samples,
    settings: FitSettings,
    state: FitState,
    teacher: Teacher | None = None,
    on_step: OnStep | None = None,
    trust: Float[Tensor, "U"] | None = None,
    unlabelled: Unlabelled | None = None,
    untold: Bool[np.ndarray, "N"] | None = None,
) -> FitState:
    """One pass over the events, then the valid loss; the model is left with the epoch's weights.

    Args:
        events: (N,) rows to train on. catalogue: items that may be negatives. excluded: pairs that may not.
        valid: samples that decide which epoch was best; if empty the newest epoch counts as best.
        teacher: with it the loss is CE + β·KL(teacher ‖ model), β = settings.beta.
        trust: factor on β for each user's events; None is 1 for everybody.
        unlabelled: more candidates for each event. With them the teacher is asked about these alone, and the labels
            speak of the event's own item and its negatives alone.
        untold: rows of the log whose labels are not taught, only what the teacher says; None is none of them.

    Returns:
        The state after the epoch; `state` itself is used up.

    Raises:
        DivergedError: the loss or a weight became infinite or NaN.
    """
    device = model.out.weight.device
    samples = sample(
        log,
        events,
        settings.negatives,
        catalogue,
        excluded,
        settings.seed,
        f"{settings.purpose}/negatives",
        state.epoch,
    )
    generator = dropout_generator(settings, state.epoch)
    teacher = teacher if settings.beta > 0 else None
    ask = unlabelled if teacher is not None else None
    labelled = samples.candidates.shape[1]
    descent = Descent(model, settings, state, len(events), on_step)
    for positions in batches(log, samples, settings, state.epoch):
        rows: dict[str, Tensor] = {}

        def own_rows(items: Tensor, rows: dict[str, Tensor] = rows) -> Tensor:
            rows["items"] = items
            rows["leaf"] = model.item_table.detach()[items].requires_grad_()
            return rows["leaf"]

        index = torch.from_numpy(positions)
        candidates = samples.candidates[index]
        if ask is not None:
            candidates = torch.cat([candidates, ask(samples.events[positions], state.epoch)], 1)
        labels, weights = samples.labels[index].to(device), samples.weights[index].to(device)
        told = None if untold is None else torch.from_numpy(~untold[samples.events[positions]]).to(device)
        z1 = first_layer(model, log, samples.events[positions], candidates, settings.history, own_rows)
        z2 = model.second_layer(dropout(z1, settings.dropout, generator))
        logits = model.logits(dropout(z2, settings.dropout, generator))
        loss = weighted_cross_entropy(logits[:, :labelled], labels, weights, told)
        if teacher is not None:
            asked = slice(0 if ask is None else labelled, None)
            counts = weights if ask is None else torch.ones_like(logits[:, asked])
            with torch.no_grad():
                wisdom = teacher(samples.events[positions], candidates[:, asked])
            divergence = bernoulli_kl(wisdom, logits[:, asked]) * counts
            if trust is not None:
                owners = torch.from_numpy(log.user[samples.events[positions]])
                divergence = divergence * trust[owners].to(device).unsqueeze(1)
            loss = loss + settings.beta * divergence.sum() / counts.sum()
        descent.step(loss, len(positions), rows["items"], rows["leaf"])
    return descent.finished(judge(model, log, valid, settings.history) if len(valid.events) else None)


class Descent:
    """One epoch of Adam on any model, step by step, from a state to the next."""

    def __init__(
        self, model: nn.Module, settings: FitSettings, state: FitState, n_events: int, on_step: OnStep | None
    ) -> None:
        """Puts the state's weights into the model.

        Args:
            state: before the epoch; it is used up. n_events: in the epoch, for `on_step`.
        """
        restore(model, state.weights)
        self.model, self.settings, self.state, self.n_events, self.on_step = model, settings, state, n_events, on_step
        self.optimiser = Adam(model, settings.learning_rate, settings.weight_decay, state.moments, state.steps)
        self.total, self.done, self.started = 0.0, 0, time.perf_counter()

    def step(
        self,
        loss: Float[Tensor, ""],
        n_events: int,
        items: Int[Tensor, "R"],
        leaf: Tensor | None = None,
    ) -> None:
        """Descend on one batch.

        Args:
            loss: mean of the batch. n_events: in it. items: rows of the item table that it touches.
            leaf: those rows (R, E), where the loss was taken of a copy of them; None if it was taken of the table itself.

        Raises:
            DivergedError: the loss is infinite or NaN.
        """
        for weight in self.optimiser.weights.values():
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        value, epoch = float(loss.detach()), self.state.epoch + 1
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss became {value} in epoch {epoch} after {self.done} events",
                "Lower --learning-rate (or --beta when distilling) and run the command again.",
            )
        self.decay()
        table = self.optimiser.weights["item_table"]
        self.optimiser.step(items, gradient_of(table)[items] if leaf is None else gradient_of(leaf))
        self.total, self.done = self.total + value * n_events, self.done + n_events
        if self.on_step is not None:
            rate = self.done / (time.perf_counter() - self.started)
            self.on_step(epoch, self.done, self.n_events, self.total / self.done, rate)

    def decay(self) -> None:
        """What is added to the gradients before a step: nothing, Adam itself decays the item table."""

    def finished(self, valid: Judged | None) -> FitState:
        """The state after the epoch; valid: see `after_epoch`."""
        mean = self.total / max(self.done, 1)
        return after_epoch(self.model, self.state, self.optimiser, mean, valid, self.settings.criterion)


def after_epoch(
    model: nn.Module,
    state: FitState,
    optimiser: Adam,
    train_loss: float,
    valid: Judged | None,
    criterion: Criterion,
) -> FitState:
    """The state after an epoch, with the best weights so far.

    Args:
        model, optimiser: as the epoch left them. state: before the epoch; it is used up.
        valid: None without valid events: the newest epoch then counts as best.
        criterion: lowest valid loss, or highest AUC.

    Raises:
        DivergedError: the valid loss or a weight is infinite or NaN.
    """
    if valid is not None and not math.isfinite(valid.loss):
        raise DivergedError(f"the valid loss became {valid.loss}", "Lower --learning-rate and run the command again.")
    better = valid is None or (valid.auc > state.best_auc if criterion == "auc" else valid.loss < state.best_loss)
    loss, auc = valid or Judged(math.nan, math.nan)
    weights_now = snapshot(model)
    if not all(bool(weight.isfinite().all()) for weight in weights_now.values()):
        raise DivergedError(
            f"a weight became infinite or NaN in epoch {state.epoch + 1}",
            "Lower --learning-rate and run the command again.",
        )
    record = {"epoch": state.epoch + 1, "train_loss": train_loss, "valid_loss": loss, "valid_auc": auc}
    return FitState(
        epoch=state.epoch + 1,
        weights=weights_now,
        best={n: w.clone() for n, w in weights_now.items()} if better else state.best,
        moments=optimiser.moments,
        steps=optimiser.steps,
        best_loss=loss if better else state.best_loss,
        best_auc=auc if better else state.best_auc,
        epochs_since_best=0 if better else state.epochs_since_best + 1,
        history=[*state.history, record],
    )


def gradient_of(weight: Tensor) -> Tensor:
    """The gradient, which every weight has: one that the loss does not reach is a bug, not a frozen weight."""
    if weight.grad is None:
        raise RuntimeError("a weight got no gradient")
    return weight.grad


def dropout_generator(settings: FitSettings, epoch: int) -> torch.Generator:
    """What an epoch's dropout masks are drawn from."""
    return torch.Generator().manual_seed(stream(settings.seed, f"{settings.purpose}/dropout/{epoch}"))


def dropout(x: Float[Tensor, "..."], rate: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Inverted dropout from an explicit generator on the CPU, so that the mask does not depend on global state."""
    if rate == 0:
        return x
    keep = torch.empty(x.shape).bernoulli_(1 - rate, generator=generator).to(x.device)
    return x * keep / (1 - rate)
