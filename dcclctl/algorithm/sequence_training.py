"""Training a sequence model: all states of a window at once, sampled cross-entropy on the events of the blocks.

Source: Kang & McAuley 2018, section 3.5 (binary cross-entropy with sampled negatives at every position).
Differs: any number of negatives; several events may follow one state (a basket); a window's earlier events are context
without a loss where they lie outside of the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dcclctl.algorithm import training
from dcclctl.algorithm.eventlog import EventLog
from dcclctl.algorithm.sampling import Ints, PairSet, permutation
from dcclctl.algorithm.sequence import Dropout, Moments, SequenceModel, keep_all
from dcclctl.algorithm.training import FitSettings, FitState, OnStep, Samples

#: windows that are sorted by length together, in batches
_BUCKET_BATCHES = 50


@dataclass(frozen=True)
class Windows:
    """Runs of users' moments, and the state that stands before each event.

    Attributes:
        first, end: (W,) moments of each window. window: (B,) each event's. state: (B,) its state there, 0 … L.
    """

    first: Ints
    end: Ints
    window: Ints
    state: Ints


def windows_of(moments: Moments, log: EventLog, events: Ints, limit: int) -> Windows:
    """Cut the histories of many events into as few windows as serve them all.

    A window holds at most `limit` moments; the windows of a long history overlap by half, so that every state knows the
    user's last L moments or at least half as many (all of them where the history is no longer than L).

    Args:
        events: (B,) rows of the log. limit: L.
    """
    own, end = moments.before(log, events)
    stride = max(1, limit // 2)
    over = np.maximum(0, end - own - limit)
    first = own + -(-over // stride) * stride
    starts, window = np.unique(first, return_inverse=True)
    ends = starts.copy()
    np.maximum.at(ends, window, end)
    return Windows(starts, ends, window.reshape(-1).astype(np.int64), end - first)


def served_windows(moments: Moments, log: EventLog, events: Ints, limit: int) -> Windows:
    """One window for each history: the last L moments, as a model is served (see SequenceBackbone).

    Args:
        events: (B,) rows of the log. limit: L.
    """
    own, end = moments.before(log, events)
    histories, window = np.unique(np.stack([np.maximum(own, end - limit), end]), axis=1, return_inverse=True)
    window = window.reshape(-1).astype(np.int64)
    return Windows(histories[0], histories[1], window, (histories[1] - histories[0])[window])


def batches(windows: Windows, settings: FitSettings, epoch: int) -> Iterator[Ints]:
    """Positions of events, batch by batch: whole windows, shuffled, in buckets of similar length.

    A batch has about `settings.batch_size` events (more where one window alone has more).
    """
    order = permutation(settings.seed, f"{settings.purpose}/shuffle", windows.first, epoch)
    counts = np.bincount(windows.window, minlength=len(windows.first))
    lengths = windows.end - windows.first
    by_window = np.argsort(windows.window, kind="stable")
    begins = np.cumsum(counts) - counts
    span = settings.batch_size * _BUCKET_BATCHES
    chunks = np.cumsum(counts[order]) // span
    for chunk in range(int(chunks.max(initial=-1)) + 1):
        some = order[chunks == chunk]
        some = some[np.argsort(lengths[some], kind="stable")]
        cuts = (np.cumsum(counts[some]) - counts[some]) // settings.batch_size
        numbers = np.unique(cuts)
        for number in numbers[permutation(settings.seed, f"{settings.purpose}/batches", numbers, epoch, chunk)]:
            members = some[cuts == number]
            yield np.concatenate([by_window[begins[w] : begins[w] + counts[w]] for w in members])


def candidate_logits(
    model: SequenceModel,
    moments: Moments,
    windows: Windows,
    positions: Ints,
    candidates: Int[Tensor, "B C"],
    drop: Dropout = keep_all,
    leaf: dict[str, Tensor] | None = None,
) -> Float[Tensor, "B C"]:
    """Logits of some events' candidates.

    Args:
        windows: of all events. positions: (B,) which of them. candidates: theirs.
        leaf: if given, it gets `items` (the batch's distinct items) and `rows` (their rows of the item table, as a
            tensor of its own that the gradient goes to).
    """
    device = model.item_table.device
    used, window = np.unique(windows.window[positions], return_inverse=True)
    bags = moments.bags(windows.first[used], windows.end[used])
    distinct, inverse = torch.unique(torch.cat([bags.items, candidates.flatten()]), return_inverse=True)
    distinct, inverse = distinct.to(device), inverse.to(device)
    rows = model.item_table[distinct]
    if leaf is not None:
        rows = rows.detach().requires_grad_()
        leaf["items"], leaf["rows"] = distinct, rows
    table = model.embed(distinct, rows)
    states = model.states(model.steps(bags, F.embedding(inverse[: len(bags.items)], table)), drop)
    place = window.reshape(-1) * states.shape[1] + windows.state[positions]
    own = F.embedding(torch.from_numpy(place).to(device), states.flatten(0, 1))
    wanted = F.embedding(inverse[len(bags.items) :].view(candidates.shape), table)
    return model.logits(own, candidates.to(device), wanted)


@torch.no_grad()
def judge(
    model: SequenceModel, moments: Moments, log: EventLog, samples: Samples, batch_size: int = 1024
) -> training.Judged:
    """Mean cross-entropy of the samples as they are served, and AUC."""
    windows = served_windows(moments, log, samples.events, model.sizes.window)
    order = np.argsort(windows.end[windows.window] - windows.first[windows.window], kind="stable")
    tally = training.Tally()
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        index = torch.from_numpy(positions)
        logits = candidate_logits(model, moments, windows, positions, samples.candidates[index])
        labels, counts = samples.labels[index].to(logits.device), samples.weights[index].to(logits.device)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        sums = (losses * counts).sum(dtype=torch.float64), counts.sum(dtype=torch.float64)
        tally.add(*sums, logits, labels, counts)
    return tally.judged


def train_epoch(
    model: SequenceModel,
    moments: Moments,
    log: EventLog,
    events: Ints,
    catalogue: Ints,
    excluded: PairSet,
    valid: Samples,
    settings: FitSettings,
    state: FitState,
    on_step: OnStep | None = None,
) -> FitState:
    """One pass over the events, then the valid loss; the model is left with the epoch's weights.

    Args:
        moments: of the log. Everything else as in `training.train_epoch`; L is the model's own.

    Returns:
        The state after the epoch; `state` itself is used up.

    Raises:
        DivergedError: the loss or a weight became infinite or NaN.
    """
    device = model.item_table.device
    purpose = f"{settings.purpose}/negatives"
    samples = training.sample(log, events, settings.negatives, catalogue, excluded, settings.seed, purpose, state.epoch)
    windows = windows_of(moments, log, events, model.sizes.window)
    generator = training.dropout_generator(settings, state.epoch)

    def drop(x: Tensor) -> Tensor:
        return training.dropout(x, settings.dropout, generator)

    descent = training.Descent(model, settings, state, len(events), on_step)
    for positions in batches(windows, settings, state.epoch):
        leaf: dict[str, Tensor] = {}
        index = torch.from_numpy(positions)
        logits = candidate_logits(model, moments, windows, positions, samples.candidates[index], drop, leaf)
        labels, weights = samples.labels[index].to(device), samples.weights[index].to(device)
        loss = training.weighted_cross_entropy(logits, labels, weights)
        descent.step(loss, len(positions), leaf["items"], leaf["rows"])
    return descent.finished(judge(model, moments, log, valid) if len(valid.events) else None)
