"""What an event's item is compared with: the cloud model's highest items as they are, and a sample of the rest that stands for it."""

import numpy as np
import pytest
import torch
from small_worlds import Row, log_of

from dcclctl.devices.memory.contrast import Contrast, Contrasted
from dcclctl.events import sampler
from dcclctl.events.log import CLOUD, DEVICE, Block, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import Ints
from dcclctl.models.scoring import Backbone

N_ITEMS, N_USERS = 40, 6


class Fixed(Backbone):
    """A model that gives item i of user u the logit (7·i + u) mod 40, whatever the history."""

    def __init__(self, log: EventLog) -> None:
        self.log = log

    def lengths(self, events: Ints) -> Ints:
        return np.ones(len(events), dtype=np.int64)

    def activation_cost(self, n_candidates: int, length: int) -> int:
        return n_candidates

    def activations(self, events: Ints, candidates: torch.Tensor | None) -> torch.Tensor:
        items = torch.arange(N_ITEMS).expand(len(events), -1) if candidates is None else candidates
        return ((7 * items + torch.from_numpy(self.log.user[events])[:, None]) % N_ITEMS).float()


def log_with_events() -> EventLog:
    """Everybody has three items of cloud and two of device; the last item comes later and is in no catalogue of device."""
    rows: list[Row] = []
    for user in range(N_USERS):
        rows += [(user, (user * 5 + k) % 30, k, 1, CLOUD if k < 3 else DEVICE) for k in range(5)]
    rows += [(0, item, 2, 1, CLOUD) for item in range(30, N_ITEMS - 1)]
    return log_of(rows, N_USERS, N_ITEMS, repeats=False)


def chosen(log: EventLog, highest: int, others: int) -> tuple[Contrast, Ints, Contrasted]:
    made = Contrast(Fixed(log), Sampler(log, [Block(DEVICE)], 0, 3, "test"), highest, others)
    events = log.events_in(DEVICE)
    return made, events, made.of(events, 0)


def allowed(log: EventLog, event: int) -> set[int]:
    user = log.user[event]
    known = {item for item in range(N_ITEMS) if item in log.item}
    return known - set(log.item[log.user == user].tolist())


def test_the_highest_items_and_a_sample_that_stands_for_the_rest() -> None:
    log = log_with_events()
    made, events, found = chosen(log, 4, 6)
    for row, event in enumerate(events):
        own, *others = found.candidates[row].tolist()
        rest = allowed(log, event)
        ranked = sorted(rest, key=lambda item: -((7 * item + log.user[event]) % N_ITEMS))
        assert own == log.item[event] and others[:4] == ranked[:4]
        assert len(set(others[4:])) == 6 and set(others[4:]) <= set(ranked[4:])
        assert found.stands[row].tolist() == pytest.approx([1] * 4 + [(len(rest) - 4) / 6] * 6)
        values = [(7 * item + log.user[event]) % N_ITEMS for item in (own, *others)]
        assert found.logits[row].tolist() == values
    again = made.of(events, 0)
    assert again.candidates.equal(found.candidates) and not made.of(events, 1).candidates.equal(found.candidates)


def test_a_small_catalogue_leaves_places_empty() -> None:
    log = log_with_events()
    _, events, found = chosen(log, 30, 30)
    assert found.candidates.shape == (len(events), 61)
    for row, event in enumerate(events):
        there = found.stands[row] > 0
        assert set(found.candidates[row, 1:][there].tolist()) == allowed(log, event)
        assert (found.stands[row][there] == 1).all()
        assert (found.candidates[row, 1:][~there] == log.item[event]).all()


def test_of_a_large_catalogue_a_draw_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "RANKED_ITEMS", 20)
    log = log_with_events()
    _, events, found = chosen(log, 3, 5)
    n_known = len(set(log.item.tolist()))
    for row, event in enumerate(events):
        assert set(found.candidates[row, 1:].tolist()) <= allowed(log, event)
        # the draw of 20 of all items stands for all of them
        assert found.stands[row, 0] == pytest.approx(n_known / 20)
        assert 0.5 * n_known < float(found.stands[row].sum()) <= n_known
