"""Events with their candidates: what may be a negative, and what counts."""

import numpy as np
import pytest
import torch
from small_worlds import log_of, positives_in, random_log

from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID, Block
from dcclctl.events.sampler import Sampler, valid_sampler
from dcclctl.events.sampling import NO_ITEM, draw_negatives


def test_an_event_stands_first_and_negative_events_have_no_sampled_negatives():
    log = random_log()
    events = log.events_in(DEVICE)
    samples = Sampler(log, [DEVICE], 3, 0, "n").draw(events)
    assert np.array_equal(samples.events, events)
    assert np.array_equal(samples.candidates[:, 0].numpy(), log.item[events])
    for row, label in enumerate(log.label[events]):
        assert samples.labels[row].tolist() == [label, 0, 0, 0]
        assert samples.weights[row].tolist() == ([1, 1, 1, 1] if label else [1, 0, 0, 0])
    assert 0 < log.label[events].mean() < 1


def test_a_slot_without_an_item_does_not_count():
    """Items 0 to 3; the basket takes three of them, so one negative is left of five."""
    rows = [(0, item, 1, 1, DEVICE) for item in (0, 1, 2)] + [(0, 3, 2, 1, DEVICE)]
    log = log_of(rows, n_users=1, n_items=4)
    samples = Sampler(log, [DEVICE], 5, 0, "n").draw(log.events_in(DEVICE))
    assert samples.weights.tolist() == [[1, 1, 0, 0, 0, 0]] * 3 + [[1, 1, 1, 1, 0, 0]]
    for candidates, weights, own in zip(samples.candidates, samples.weights, (0, 1, 2, 3), strict=True):
        negatives = candidates[1:][weights[1:] > 0].tolist()
        assert sorted(negatives) == sorted({0, 1, 2, 3} - ({own} if own == 3 else {0, 1, 2}))
        assert (candidates[weights == 0] == own).all(), "an item must stand in an empty slot, and it may be no other"
    assert not samples.labels[:, 1:].any()


def test_with_repeats_only_what_comes_at_the_same_time_is_left_out():
    """Leaving out what a user ever liked would give a label away to a model that knows the user's past."""
    rows = [(0, item, item, 1, CLOUD) for item in range(5)] + [(0, 5 + item, 10 + item, 1, DEVICE) for item in range(5)]
    rows += [(0, 10, 20, 0, DEVICE)]
    log = log_of(rows, n_users=1, n_items=12)  # nobody ever saw the last item
    events = log.events_in(DEVICE)
    drawn = Sampler(log, [DEVICE], 20, 0, "n").items(events, 20)
    for event, items in zip(events, drawn, strict=True):
        own = {int(log.item[event])} if log.label[event] else set()
        assert set(items.tolist()) - {NO_ITEM} == set(range(11)) - own


@pytest.mark.parametrize("blocks", [[CLOUD], [DEVICE, CLOUD], [Block(DEVICE, 1, 2)]])
def test_an_item_that_comes_later_is_no_negative(blocks):
    log = random_log(n_items=400)
    first = Sampler(log, blocks, 3, 0, "n").items(log.events_in(CLOUD), 400)
    half = 0.5 if isinstance(blocks[0], Block) else 1.0
    last = DEVICE if len(blocks) > 1 or half < 1 else CLOUD
    known = (log.period < last) | ((log.period == last) & (log.share < half))
    assert set(first.ravel().tolist()) - {NO_ITEM} == set(log.item[known].tolist())


def test_the_items_are_those_of_draw_negatives_for_the_events_owners():
    log = random_log()
    events = log.events_in(DEVICE)
    sampler = Sampler(log, [DEVICE], 4, 3, "why")
    pairs = log.never_negative(DEVICE)
    expected = draw_negatives(3, "why", events, log.owners(events, pairs), 4, log.catalogue(DEVICE), pairs, round=2)
    assert np.array_equal(sampler.items(events, 4, epoch=2), expected)
    samples = sampler.draw(events, epoch=2)
    assert torch.equal(samples.candidates[:, 1:], torch.from_numpy(expected))
    assert not torch.equal(sampler.draw(events, epoch=3).candidates, samples.candidates)
    assert not np.array_equal(Sampler(log, [DEVICE], 4, 3, "other").items(events, 4), sampler.items(events, 4))


@pytest.mark.parametrize("batch", [1, 7])
def test_samples_of_an_event_do_not_depend_on_its_batch(batch):
    log = random_log()
    events, sampler = log.events_in(DEVICE), Sampler(log, [DEVICE], 3, 0, "n")
    whole = sampler.draw(events)
    for at in range(0, len(events), batch):
        part = sampler.draw(events[at : at + batch])
        for name in ("candidates", "labels", "weights"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[at : at + batch])


def test_given_pairs_are_left_out_instead_of_the_logs_own():
    log = random_log()
    events, positives = log.events_in(DEVICE), positives_in(log, DEVICE)
    drawn = Sampler(log, [DEVICE], 5, 0, "n", positives).items(events, 5)
    assert not positives.contains(log.user[events][:, None], drawn).any()
    own = Sampler(log, [DEVICE], 5, 0, "n").items(events, 5)
    assert positives.contains(log.user[events][:, None], own).any(), "the log's own rule leaves out less"


@pytest.mark.parametrize("count", [7, 1000])
def test_shared_negatives_are_negatives_of_every_event_that_may_have_them(count):
    log = random_log()
    events = log.events_in(DEVICE)
    sampler, pairs, catalogue = Sampler(log, [DEVICE], 0, 3, "why"), log.never_negative(DEVICE), log.catalogue(DEVICE)
    found = sampler.shared(events, count, 4, batch=1, epoch=2)
    items = found.items.numpy()
    assert len(set(items)) == len(items) == min(count, len(catalogue)) and set(items) <= set(catalogue)
    owners = log.owners(events, pairs)
    taken = pairs.contains(owners[:, None], items) | (log.item[events][:, None] == items)
    assert np.array_equal(found.allowed.numpy(), ~taken) and taken.any()
    assert (found.catalogue, found.expected) == (len(catalogue), 4)
    if count < len(catalogue):
        others = [sampler.shared(events, count, 4, *which).items for which in ((1, 2), (2, 2), (1, 3))]
        assert torch.equal(others[0], found.items)
        assert not any(torch.equal(other, found.items) for other in others[1:])


def test_valid_negatives_never_change():
    log = random_log()
    events = log.events_in(VALID)
    first, second = (valid_sampler(log, 3, seed=1).draw(events) for _ in range(2))
    assert torch.equal(first.candidates, second.candidates)
    assert np.array_equal(first.events, events)
    assert not torch.equal(first.candidates, valid_sampler(log, 3, seed=2).draw(events).candidates)
    assert not set(first.candidates.flatten().tolist()) - set(log.catalogue(VALID).tolist())
    assert log.events_in(TEST).size
