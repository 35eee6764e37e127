"""The inner loops of memory, ranking and metrics against their plain forms, on a log drawn at random.

    python benchmarks/kernels.py [--times 3] [--only auc membership]

Both forms run in this process on one thread, in turn, and must give the same result; CPU seconds are compared. The plain
forms are those of tests/references.py, which the tests compare with too.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Ratio, in_turn, show

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from references import (
    activations_event_by_event,
    contains_by_search,
    dense_neighbours,
    sequence_logits_event_by_event,
    user_auc_by_two_sorts,
)

from dcclctl.compute import no_progress
from dcclctl.devices.memory import statistics
from dcclctl.devices.memory.features import FeatureTables, features_of
from dcclctl.devices.memory.ring import Ring, RingContents
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.events.groups import UserGroups
from dcclctl.events.log import DEVICE, TEST, VALID, Block, EventColumns, EventLog
from dcclctl.events.sampling import PairSet
from dcclctl.metrics.auc import user_auc
from dcclctl.models.din import Din, DinBackbone, DinSettings
from dcclctl.models.scoring import score
from dcclctl.models.sequence import Sasrec, SequenceBackbone, SequenceSettings
from dcclctl.models.windows import Baskets

N_CATEGORIES = 50


def drawn_log(n_users: int, n_items: int, per_user: int) -> EventLog:
    """Half of the events are of popular items (log-uniform ranks), half of any; 80% of a user's events are before test."""
    draw = np.random.default_rng(0)
    lengths = 2 + draw.poisson(per_user - 2, n_users)
    user = np.repeat(np.arange(n_users), lengths)
    popular = np.floor(n_items ** draw.random(len(user))).astype(np.int64) - 1
    item = np.where(draw.random(len(user)) < 0.5, popular, draw.integers(0, n_items, len(user)))
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    period = np.searchsorted([0.5, 0.8, 0.9], place / np.repeat(lengths, lengths), side="right")
    events = EventColumns(user, draw.permutation(n_items)[item], place, np.ones(len(user), dtype=np.int64), period)
    categories = torch.from_numpy(draw.integers(0, N_CATEGORIES, (n_items, 1)))
    return EventLog.build(events, categories, N_CATEGORIES, torch.zeros(n_users, 1, dtype=torch.int64), (1,))


def ratio(
    what: str, plain: Callable[[], Any], fast: Callable[[], Any], times: int, target: float | None, warm: bool = True
) -> Ratio:
    """How many times less CPU time the fast form takes."""
    seconds = in_turn({"plain": plain, "fast": fast}, times, time.process_time, warm)
    return Ratio.faster(what, seconds["plain"], seconds["fast"], target)


def neighbours(times: int) -> list[Ratio]:
    """Each item's 100 nearest items, of 10,000 users with 50 events each."""
    found = []
    for n_items, target in ((20_000, 8), (50_000, 40)):
        log = drawn_log(10_000, n_items, 50)
        rows, settings = np.arange(len(log.user)), StatisticsSettings(200, 100, 10.0, 10, 32)
        events, _ = statistics._read(UserGroups.of(log), lambda log: log.label > 0, 3, 0, no_progress)
        results: dict[str, Any] = {}

        def plain() -> None:
            results["plain"] = dense_neighbours(log, rows, settings)  # noqa: B023 (called in this turn)

        def fast() -> None:
            results["fast"] = statistics._neighbours(events, settings, no_progress)  # noqa: B023

        # once: the plain form takes minutes for 50,000 items
        found.append(ratio(f"neighbours of {n_items:,} items", plain, fast, 1, target, warm=False))
        assert all(ours.equal(theirs) for ours, theirs in zip(results["fast"], results["plain"], strict=True))
    return found


def memory_features(times: int) -> list[Ratio]:
    """Features from memories of 200 items: of all 20,000 items, and of 1,000 candidates; 64 events."""
    log = drawn_log(3_000, 20_000, 50)
    settings = StatisticsSettings(200, 100, 10.0, 10, 32)
    known = count_statistics(log, lambda log: log.up_to(Block(DEVICE)), settings, 0)
    tables = FeatureTables(known, log.item_categories)
    draw = np.random.default_rng(0)
    events = draw.choice(log.events_in(TEST), 64, replace=False)
    found = []
    for n_candidates, target in ((log.n_items, 50), (1_000, 5)):
        sampled = torch.from_numpy(draw.integers(0, log.n_items, (len(events), n_candidates)))
        everything = n_candidates == log.n_items
        asked = torch.arange(log.n_items).expand(len(events), -1) if everything else sampled

        def plain() -> torch.Tensor:
            parts = []
            for at in range(0, len(events), 8):
                held, mask = log.histories(events[at : at + 8], settings.size)
                parts.append(features_of(held, mask.float(), asked[at : at + 8], log.item_categories, known))  # noqa: B023
            return torch.cat(parts)

        def fast() -> torch.Tensor:
            return tables.of_events(log, events, None if everything else asked, settings.size)  # noqa: B023

        assert plain().equal(fast())
        what = "all 20,000 items" if everything else f"{n_candidates:,} candidates"
        found.append(ratio(f"memory features of {what}", plain, fast, times, target))
    return found


def remembering(times: int) -> list[Ratio]:
    """What the rings of 5,000 users hold after 50 events each."""
    log = drawn_log(5_000, 20_000, 50)
    size, window, features = 200, 50, 14

    def plain() -> list[Ring]:
        starts = np.unique(log.user, return_index=True)[1]
        return [Ring(size, items.tolist(), window, features) for items in np.split(log.item, starts[1:])]

    def fast() -> RingContents:
        return RingContents.of(log.user, log.item, size, window, features)

    rings, found = plain(), fast()
    assert np.array_equal(np.concatenate([ring.newest_first() for ring in rings]), found.items)
    assert [ring.bytes for ring in rings] == found.bytes.tolist()
    return [ratio("filling the rings of 5,000 users", plain, fast, times, 100)]


def membership(times: int) -> list[Ratio]:
    """Which items 256 of 10,000 users have interacted with: of all 20,000 items, and of 101 drawn for each event."""
    log = drawn_log(10_000, 20_000, 50)
    positive = log.label > 0
    pairs = PairSet(log.user[positive], log.item[positive], log.n_items)
    draw = np.random.default_rng(0)
    users, items = draw.integers(0, log.n_users, 256), np.arange(log.n_items)[None, :]
    own, drawn = log.user[:, None][::20], draw.integers(0, log.n_items, (len(log.user[::20]), 101))

    def every() -> Any:
        return contains_by_search(pairs, np.broadcast_to(users[:, None], (256, log.n_items)), items)

    def some() -> Any:
        return contains_by_search(pairs, own, drawn)

    assert np.array_equal(np.nonzero(every()), pairs.of_owners(users))
    assert np.array_equal(some(), pairs.contains(own, drawn))
    return [
        ratio("items of a user among all 20,000", every, lambda: pairs.of_owners(users), times, 20),
        ratio("items of a user among 101 drawn", some, lambda: pairs.contains(own, drawn), times, None),
    ]


def auc(times: int) -> list[Ratio]:
    """AUC of 20,000 users with 1 positive event on average, each beside 100 negatives: in chunks of users, and at once."""
    draw = np.random.default_rng(0)
    users = np.repeat(draw.integers(0, 20_000, 20_000), 101)
    labels = np.tile(np.arange(101) == 0, 20_000).astype(np.int8)
    scores = draw.normal(size=len(users)).astype(np.float32)
    assert user_auc(users, labels, scores).equals(user_auc_by_two_sorts(users, labels, scores))
    return [
        ratio(
            "AUC of 20,000 users, 101 rows an event",
            lambda: user_auc_by_two_sorts(users, labels, scores),
            lambda: user_auc(users, labels, scores),
            times,
            None,
        )
    ]


def din_ranking(times: int) -> list[Ratio]:
    """A DIN of the usual sizes scores all 12,000 items for 12 events with 10 items in their histories."""
    log = drawn_log(3_000, 12_000, 12)
    model = Din(log, DinSettings(), torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    backbone = DinBackbone(model, log)
    events = np.random.default_rng(0).choice(log.events_in(TEST), 12, replace=False)
    head = backbone.head

    def plain() -> torch.Tensor:
        return torch.cat(
            [head(events[[at]], None, activations_event_by_event(backbone, events[[at]])) for at in range(len(events))]
        )

    def fast() -> torch.Tensor:
        return torch.cat(
            [head(events[[at]], None, backbone.activations(events[[at]], None)) for at in range(len(events))]
        )

    torch.testing.assert_close(plain(), fast(), rtol=1e-4, atol=1e-6)
    return [ratio("DIN over all 12,000 items, attention known", plain, fast, times, 3)]


def sequence_ranking(times: int) -> list[Ratio]:
    """A SASRec of the usual sizes scores 300 candidates for each of the last 20 % of 500 users' 30 events."""
    log = drawn_log(500, 50_000, 30)
    model = Sasrec(log, SequenceSettings(), torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    backbone = SequenceBackbone(model, log, Baskets(log))
    events = log.events_in(VALID, TEST)
    candidates = torch.from_numpy(np.random.default_rng(0).integers(0, log.n_items, (len(events), 300)))
    lengths = log.history_lengths(events, model.sizes.history)

    def plain() -> torch.Tensor:
        found = torch.empty(candidates.shape)
        order = np.argsort(lengths, kind="stable")
        for at in range(0, len(order), 64):
            some = order[at : at + 64]
            found[some] = sequence_logits_event_by_event(backbone, events[some], candidates[some])
        return found

    def fast() -> torch.Tensor:
        found = torch.empty(candidates.shape)
        place = {event: at for at, event in enumerate(events.tolist())}

        def batch(some: np.ndarray) -> Candidates:
            return Candidates(some, candidates[[place[event] for event in some.tolist()]])

        for given, (logits,) in score(backbone, [backbone.head], events, batch, 300, 256):
            found[[place[event] for event in given.events.tolist()]] = logits
        return found

    torch.testing.assert_close(plain(), fast(), rtol=1e-4, atol=1e-5)
    return [ratio("SASRec, 300 candidates an event, shared windows", plain, fast, times, None)]


@dataclass
class Candidates:
    """Some events with their candidates, as `score` wants them."""

    events: np.ndarray
    items: torch.Tensor


KERNELS = {
    "sasrec": sequence_ranking,
    "din": din_ranking,
    "auc": auc,
    "membership": membership,
    "neighbours": neighbours,
    "memory-features": memory_features,
    "remember": remembering,
}


def compare(names: Iterable[str], times: int) -> Iterator[Ratio]:
    """The ratios of some kernels, on one thread."""
    torch.set_num_threads(1)
    for name in names:
        yield from KERNELS[name](times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="repetitions of each form; medians are compared")
    parser.add_argument("--only", nargs="*", choices=KERNELS, default=list(KERNELS), help="these kernels only")
    options = parser.parse_args()
    show(compare(options.only, options.times))


if __name__ == "__main__":
    main()
