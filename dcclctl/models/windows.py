"""Histories as sequences of baskets, cut into windows for training.

A *basket* is all positive events of a user at one time. Shapes: W windows, T baskets in a window, B events.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dcclctl.events.log import EventLog
from dcclctl.events.sampling import Ints, permutation
from dcclctl.models.settings import FitSettings
from dcclctl.models.trainable import BUCKET_BATCHES


@dataclass(frozen=True)
class Bags:
    """The baskets of W windows as bags of items.

    Attributes:
        items: (N,) items, bag by bag. offsets: (M,) where each bag begins in `items`.
        slots: (M,) place of each bag in the flattened (W, T). shape: (W, T); T ≥ 1, the longest window.
    """

    items: Int[Tensor, "N"]
    offsets: Int[Tensor, "M"]
    slots: Int[Tensor, "M"]
    shape: tuple[int, int]


class Baskets:
    """The positive events of a log, grouped by user and time; a basket is a run of `sequence`."""

    def __init__(self, log: EventLog) -> None:
        self.sequence = log.sequence
        #: (M,) where each basket begins in `sequence`
        self.starts = log.basket_starts

    def number(self, places: Ints) -> Ints:
        """The number of the basket that holds each of some places in `sequence`."""
        numbers: Ints = np.searchsorted(self.starts, places, side="right") - 1
        return numbers

    def before(self, log: EventLog, events: Ints) -> tuple[Ints, Ints]:
        """(B,) each event's history as baskets: the number of its first basket, and that of the basket after its last.

        Args:
            log: the baskets' log, also with truncated histories.
        """
        first = np.searchsorted(self.starts, log.history_start[events])
        end = np.searchsorted(self.starts, log.history_end[events])
        return first.astype(np.int64), end.astype(np.int64)

    def bags(self, first: Ints, end: Ints, stop: Ints | None = None) -> Bags:
        """The baskets [first, end) of W windows.

        Args:
            stop: (W,) place in `sequence` where the history ends, if that can be within a window's last basket.
        """
        lengths = end - first
        width = max(1, int(lengths.max(initial=0)))
        window, place = runs(lengths)
        basket = first[window] + place
        begins = self.starts[basket]
        ends = np.append(self.starts, len(self.sequence))[basket + 1]
        sizes = (ends if stop is None else np.minimum(ends, stop[window])) - begins
        bag, nth = runs(sizes)
        return Bags(
            items=self.sequence[torch.from_numpy(begins[bag] + nth)],
            offsets=torch.from_numpy(np.cumsum(sizes) - sizes),
            slots=torch.from_numpy(window * width + place),
            shape=(len(first), width),
        )


def runs(lengths: Ints) -> tuple[Ints, Ints]:
    """For consecutive runs of the given lengths: the run of each element, and its place in the run."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


@dataclass(frozen=True)
class Windows:
    """Runs of users' baskets, and each event's state.

    Attributes:
        first, end: (W,) baskets of each window. window: (B,) of each event. state: (B,) its state there, 0 … L.
        stop: (W,) place in `sequence` where the last basket ends, earlier where a history is cut within it; None: all
            baskets are whole.
    """

    first: Ints
    end: Ints
    window: Ints
    state: Ints
    stop: Ints | None = None

    @property
    def lengths(self) -> Ints:
        """(B,) baskets in each event's window."""
        lengths: Ints = (self.end - self.first)[self.window]
        return lengths


def windows_of(baskets: Baskets, log: EventLog, events: Ints, limit: int) -> Windows:
    """Cut the histories of the events (B,) into few windows, for training.

    A window holds at most L = `limit` baskets. The windows of a long history overlap by half, so that a state covers at
    least the last L/2 baskets, or the whole history if it is not longer than L.
    """
    own, end = baskets.before(log, events)
    stride = max(1, limit // 2)
    over = np.maximum(0, end - own - limit)
    first = own + -(-over // stride) * stride
    starts, window = np.unique(first, return_inverse=True)
    ends = starts.copy()
    np.maximum.at(ends, window, end)
    return Windows(starts, ends, window.reshape(-1).astype(np.int64), end - first)


def served_windows(baskets: Baskets, log: EventLog, events: Ints, limit: int) -> Windows:
    """The windows that scores of the events (B,) are read from: each event's last L = `limit` baskets.

    Histories that begin with the same basket share the window of the longest of them, because no state depends on what
    comes after it. A history whose last basket is cut has a window of its own.
    """
    own, end = baskets.before(log, events)
    first, stop = np.maximum(own, end - limit), log.history_end[events]
    cut = stop < np.append(baskets.starts, len(baskets.sequence))[end]
    alike = first * (len(baskets.sequence) + 1) + np.where(cut, stop, 0)
    _, at, window = np.unique(alike, return_index=True, return_inverse=True)
    ends, stops = end[at], stop[at]
    np.maximum.at(ends, window, end)
    np.maximum.at(stops, window, stop)
    return Windows(first[at], ends, window.reshape(-1).astype(np.int64), end - first, stops)


def batches(windows: Windows, settings: FitSettings, epoch: int) -> Iterator[Ints]:
    """Positions of events, batch by batch: whole windows in random order, windows of similar length together.

    A batch has about `settings.batch_size` events, more if a single window has more.
    """
    order = permutation(settings.seed, f"{settings.purpose}/shuffle", windows.first, epoch)
    counts = np.bincount(windows.window, minlength=len(windows.first))
    lengths = windows.end - windows.first
    by_window = np.argsort(windows.window, kind="stable")
    begins = np.cumsum(counts) - counts
    span = settings.batch_size * BUCKET_BATCHES
    chunks = np.cumsum(counts[order]) // span
    for chunk in range(int(chunks.max(initial=-1)) + 1):
        some = order[chunks == chunk]
        some = some[np.argsort(lengths[some], kind="stable")]
        cuts = (np.cumsum(counts[some]) - counts[some]) // settings.batch_size
        numbers = np.unique(cuts)
        for number in numbers[permutation(settings.seed, f"{settings.purpose}/batches", numbers, epoch, chunk)]:
            members = some[cuts == number]
            yield np.concatenate([by_window[begins[w] : begins[w] + counts[w]] for w in members])
