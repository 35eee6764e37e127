"""SASRec and GRU4Rec: what a state knows, and that nothing else changes it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from references import sequence_logits_event_by_event
from small_worlds import Row, log_of, random_log, scores
from torch.nn import functional as F

from dcclctl.events.log import EventLog
from dcclctl.models.sequence import Gru4rec, Sasrec, SequenceBackbone, SequenceModel, SequenceSettings
from dcclctl.models.windows import Bags, Baskets

WINDOW = 6
KINDS = {"gru4rec": Gru4rec, "sasrec": Sasrec}
both = pytest.mark.parametrize("kind", sorted(KINDS))


def model_of(log: EventLog, kind: str, window: int = WINDOW, seed: int = 0) -> SequenceModel:
    """A small model, with random biases and scales too, so that none of them can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    model = KINDS[kind](log, SequenceSettings(history=window, item_size=6, category_size=4), generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "table" in name:
                weight *= 10
            elif weight.dim() == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
        if log.n_categories:
            model.category_table[-1].zero_()
    return model


def backbone_of(log: EventLog, kind: str, window: int = WINDOW) -> SequenceBackbone:
    return SequenceBackbone(model_of(log, kind, window), log, Baskets(log))


def rows_of(log: EventLog) -> list[Row]:
    """The rows of `random_log`, which does not keep its times."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for user in range(12):
        for time in np.sort(rng.integers(0, 40, 20 + user % 5)):
            period = int(np.searchsorted([20, 28, 34], time, side="right"))
            rows.append((user, int(rng.integers(30)), int(time), int(rng.random() < 0.8), period))
    assert [row[1] for row in rows] == log.item.tolist()
    return rows


def plain_history(log: EventLog, rows: list[Row], event: int) -> list[list[int]]:
    """Positive items at strictly earlier times, basket by basket, oldest first: by a plain loop."""
    user, _, now, _, _ = rows[event]
    found: dict[int, list[int]] = {}
    for owner, item, time, label, _ in rows:
        if owner == user and time < now and label:
            found.setdefault(time, []).append(item)
    return [found[time] for time in sorted(found)]


def test_bags_are_the_baskets_of_a_plain_loop():
    log = random_log()
    rows, baskets = rows_of(log), Baskets(log)
    ties = 0
    for event in range(len(rows)):
        first, end = baskets.before(log, np.array([event]))
        bags = baskets.bags(first, end)
        parts = torch.tensor_split(bags.items, bags.offsets[1:]) if len(bags.offsets) else ()
        assert [part.tolist() for part in parts] == plain_history(log, rows, event)
        assert bags.slots.tolist() == list(range(len(parts)))
        ties += any(len(part) > 1 for part in parts)
    assert ties > 50


def reference_states(model: SequenceModel, history: list[list[int]]) -> torch.Tensor:
    """States of one history from textbook parts: loops over positions, torch's own cells."""
    size = model.embedding_size
    steps = [
        torch.stack([model.embed(torch.tensor(i)) for i in moment]).mean(0) * math.sqrt(size) for moment in history
    ]
    if hasattr(model, "gru"):
        cell = torch.nn.GRUCell(size, size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data = getattr(model.gru, f"{name}_l0").data
        states = [model.start]
        for step in steps:
            states.append(cell(step[None], states[-1][None])[0])
        return torch.stack(states)
    x = [model.start * math.sqrt(size), *steps]
    for block in model.blocks:
        normed = [F.layer_norm(each, (size,), block.scale_1, block.shift_1) for each in x]
        after = []
        for i in range(len(x)):
            weights = []
            for j in range(i + 1):
                age = block.ages[-1] if j == 0 else block.ages[i - j]
                weights.append(block.query(normed[i]) @ block.key(normed[j]) / math.sqrt(size) + age)
            shares = torch.stack(weights).softmax(0)
            after.append(x[i] + sum(share * block.value(n) for share, n in zip(shares, normed[: i + 1], strict=True)))
        x = []
        for each in after:
            normed_2 = F.layer_norm(each, (size,), block.scale_2, block.shift_2)
            x.append(each + block.outer(torch.relu(block.inner(normed_2))))
    return torch.stack([F.layer_norm(each, (size,), model.scale, model.shift) for each in x])


@both
def test_states_and_logits_are_those_of_a_plain_loop(kind):
    log = random_log()
    rows, backbone = rows_of(log), backbone_of(log, kind)
    model = backbone.model
    events = np.arange(0, len(rows), 7)
    states = backbone.activations(events, None)
    logits = backbone.head(events, None, states)
    for at, event in enumerate(events):
        history = plain_history(log, rows, int(event))[-WINDOW:]
        with torch.no_grad():
            state = reference_states(model, history)[-1]
            expected = [model.embed(torch.tensor(i)) @ state + model.item_bias[i] for i in range(log.n_items)]
        torch.testing.assert_close(states[at], state, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[at], torch.stack(expected), atol=1e-5, rtol=1e-4)


@both
def test_all_states_of_a_window_at_once_are_those_of_its_beginnings(kind):
    log = random_log()
    model, baskets = model_of(log, kind), Baskets(log)
    own, end = baskets.before(log, np.array([len(log.user) - 1]))
    first = end - WINDOW
    assert first >= own
    bags = baskets.bags(first, end)
    with torch.no_grad():
        whole = model.states(model.steps(bags, model.embed(bags.items)))[0]
        for known in range(WINDOW + 1):
            part = baskets.bags(first, first + known)
            begun = model.states(model.steps(part, model.embed(part.items)))[0, known]
            torch.testing.assert_close(whole[known], begun, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)


@both
def test_the_order_of_rows_at_one_time_changes_nothing(kind):
    """A basket may be written in any order: neither its own events nor any later one tell which."""
    log = random_log()
    rows = rows_of(log)
    keys = np.random.default_rng(1).random(len(rows))
    order = sorted(range(len(rows)), key=lambda at: (rows[at][0], rows[at][2], keys[at]))
    assert order != list(range(len(rows)))
    more = {"item_categories": log.item_categories, "n_categories": log.n_categories}
    other = log_of([rows[at] for at in order], log.n_users, log.n_items, **more)
    before, after = backbone_of(log, kind), backbone_of(other, kind)
    events = np.array(order)
    torch.testing.assert_close(
        after.activations(np.arange(len(rows)), None), before.activations(events, None), atol=1e-5, rtol=1e-4
    )


@both
def test_a_state_knows_nothing_of_its_own_time_or_later(kind):
    """Every item at or after the event is replaced; its state stays. An earlier one is replaced; it does not."""
    log = random_log()
    rows = rows_of(log)
    event = max(at for at, row in enumerate(rows) if row[0] == 5) - 6
    before = backbone_of(log, kind).activations(np.array([event]), None)

    def changed(where):
        new = [(u, (i + 1) % 30 if u == 5 and where(t) else i, t, y, p) for u, i, t, y, p in rows]
        more = {"item_categories": log.item_categories, "n_categories": log.n_categories}
        world = log_of(new, log.n_users, log.n_items, **more)
        return backbone_of(world, kind).activations(np.array([event]), None)

    now = rows[event][2]
    assert torch.equal(changed(lambda time: time >= now), before)
    assert not torch.allclose(changed(lambda time: time < now), before, atol=1e-3)


@both
def test_a_user_without_history_has_the_start_state(kind):
    log = log_of([(0, 3, 5, 1, 0), (1, 2, 1, 0, 0), (1, 4, 2, 1, 0), (2, 1, 0, 1, 3)], 3, 5)
    states = backbone_of(log, kind).activations(np.array([0, 1, 2, 3]), None)
    assert states.isfinite().all()
    for other in (1, 2, 3):  # user 1's first event is negative: nothing is known after it either
        assert torch.equal(states[other], states[0])


@both
def test_a_history_that_is_cut_within_a_basket_shows_no_more_of_it(kind):
    """What --first-events does: history_end may stand in the middle of a moment."""
    rows = [(0, 1, 0, 1, 0), (0, 2, 7, 1, 0), (0, 3, 7, 1, 0), (0, 4, 9, 1, 3)]
    log = log_of(rows, 1, 6)
    cut = replace(log, history_end=np.minimum(log.history_end, log.history_start + 2))
    seen = SequenceBackbone(model_of(log, kind), cut, Baskets(log)).activations(np.array([3]), None)
    without = log_of([row for row in rows if row[1] != 3], 1, 6)
    expected = backbone_of(without, kind).activations(np.array([2]), None)
    torch.testing.assert_close(seen, expected)


@both
@pytest.mark.parametrize("batch_events", [1, 7, 256])
def test_batches_change_no_score_and_candidates_are_columns_of_all(kind, batch_events):
    log = random_log()
    backbone = backbone_of(log, kind)
    events = log.events_in(2, 3)
    whole = backbone.logits(backbone.activations(events, None), None)
    wanted = torch.from_numpy(np.random.default_rng(0).integers(0, log.n_items, (len(events), 5)))
    torch.testing.assert_close(scores(backbone, events, None, batch_events), whole, atol=1e-5, rtol=1e-4)
    few = scores(backbone, events, wanted, batch_events)
    torch.testing.assert_close(few, whole.gather(1, wanted), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(backbone.logits_of_few(events, wanted, backbone.head), few, atol=1e-5, rtol=1e-4)


def test_an_event_alone_has_a_window_of_at_most_the_model_s_length():
    log = random_log()
    rows, backbone = rows_of(log), backbone_of(log, "sasrec", 4)
    lengths = [int(backbone.lengths(np.array([event]))[0]) for event in range(len(rows))]
    assert lengths == [min(4, len(plain_history(log, rows, event))) for event in range(len(rows))]
    assert set(lengths) == {0, 1, 2, 3, 4}


def test_events_share_the_window_of_the_latest_of_those_that_begin_alike(monkeypatch):
    """A user's events of the first L baskets are read from one pass, later ones from one each."""
    log = random_log()
    rows, backbone = rows_of(log), backbone_of(log, "sasrec", 4)
    events = np.arange(len(rows))
    before = [len(plain_history(log, rows, event)) for event in events]
    first = [(rows[event][0], max(0, known - 4)) for event, known in zip(events, before, strict=True)]
    longest = {begin: 0 for begin in first}
    for begin, known in zip(first, before, strict=True):
        longest[begin] = max(longest[begin], min(4, known))
    assert backbone.lengths(events).tolist() == [longest[begin] for begin in first]
    passes = []
    states = type(backbone.model).states
    monkeypatch.setattr(
        type(backbone.model), "states", lambda self, steps: passes.append(len(steps)) or states(self, steps)
    )
    together = backbone.activations(events, None)
    assert passes == [len(longest)]
    alone = torch.cat([backbone.activations(events[at : at + 1], None) for at in events])
    candidates = torch.from_numpy(np.random.default_rng(0).integers(0, log.n_items, (len(events), 5)))
    torch.testing.assert_close(
        backbone.logits(together, candidates),
        sequence_logits_event_by_event(backbone, events, candidates),
        atol=1e-5,
        rtol=1e-4,
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@both
def test_another_log_gives_other_histories(kind):
    """`with_log` on a truncated log is the model whose histories are that short."""
    log = random_log()
    events = log.events_in(2)
    cut = log.truncate_history(events, np.zeros(len(events), dtype=np.int64))
    backbone = backbone_of(log, kind)
    forgetful = backbone.with_log(cut)
    empty = forgetful.activations(events, None)
    assert torch.equal(empty, empty[:1].expand_as(empty)) and not forgetful.lengths(events).any()
    assert backbone.log is log and not torch.equal(backbone.activations(events, None), empty)


@both
def test_a_short_history_of_whole_baskets_is_read_whole(kind):
    """`truncate_history` within a basket hides that basket from the model, `whole_baskets` does not."""
    log = random_log()
    events = log.events_in(2)
    events = events[log.history_lengths(events, 9) > 0]
    keep = np.ones(len(events), dtype=np.int64)
    forgetful = backbone_of(log, kind).with_log(log.truncate_history(events, keep))
    assert not forgetful.lengths(events).all(), "no basket of this log has two items"
    whole = log.truncate_history(events, log.whole_baskets(events, keep))
    assert (forgetful.with_log(whole).lengths(events) == 1).all()


@both
def test_the_items_that_are_read_are_those_of_the_last_baskets(kind):
    log = random_log()
    backbone = backbone_of(log, kind)
    limit = backbone.model.sizes.history
    events = np.arange(len(log.user))
    expected = []
    for event in events:
        own = np.flatnonzero(
            (log.user == log.user[event]) & (log.label > 0) & (log.history_end < log.history_end[event])
        )
        baskets = np.unique(log.history_end[own])[-limit:]
        expected.append(int(np.isin(log.history_end[own], baskets).sum()))
    assert backbone.items_read(events).tolist() == expected
    assert (np.array(expected) > backbone.lengths(events)).any() and min(expected) == 0


@both
def test_a_log_without_any_positive_event(kind):
    log = log_of([(0, 1, 0, 0, 0), (0, 2, 1, 0, 0)], 1, 3)
    assert torch.equal(*backbone_of(log, kind).activations(np.array([0, 1]), None))


@both
def test_the_same_seed_makes_the_same_weights(kind):
    log = random_log()
    one, two, other = (model_of(log, kind, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["item_table"], other["item_table"])


def test_an_empty_window_is_one_step_of_padding():
    log = random_log()
    bags = Baskets(log).bags(np.array([0]), np.array([0]))
    assert isinstance(bags, Bags) and bags.shape == (1, 1) and len(bags.items) == 0
    model = model_of(log, "gru4rec")
    assert not model.steps(bags, model.embed(bags.items)).any()
