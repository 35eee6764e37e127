"""Training sequence models: the loss by an independent formula, windows, batches, and a world with an answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from small_worlds import first_loss, fit_settings, log_of, random_log, samples_of, trained, trainer
from test_sequence import KINDS, backbone_of, both, model_of
from torch.nn import functional as F

from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.models.sequence import SequenceBackbone, SequenceSettings, WindowPass
from dcclctl.models.trainable import Pass, Trainable
from dcclctl.models.training import restore, validate
from dcclctl.models.windows import Baskets, batches, windows_of


@both
def test_the_valid_loss_is_sklearns_of_the_scores(kind, monkeypatch):
    """Scores as they are ranked, cross-entropy as scikit-learn has it."""
    log = random_log()
    backbone, samples = backbone_of(log, kind), samples_of(log, VALID)
    states = backbone.activations(samples.events, None)
    logits = backbone.logits(states, samples.candidates)
    counted = samples.weights.numpy() > 0
    expected = log_loss(samples.labels.numpy()[counted], torch.sigmoid(logits.double()).numpy()[counted])
    for batch_size in (4, 1024):
        monkeypatch.setattr(WindowPass, "VALIDATION_EVENTS", batch_size)
        found = validate(backbone.model, backbone.model.serving_pass(log, samples.events), samples)
        assert found.loss == pytest.approx(expected, rel=1e-5)
    assert not counted.all()  # observed negatives have no sampled ones


@both
def test_the_first_steps_loss_is_sklearns_too(kind):
    """No dropout, one batch: what an epoch reports is the loss of the weights that it began with, on its own negatives."""
    log = random_log(n_events=10)
    model = model_of(log, kind, window=50)
    backbone = SequenceBackbone(model, log, Baskets(log))
    events = log.events_in(DEVICE)
    drawn = Sampler(log, [DEVICE], 3, 7, "train/negatives").draw(events)
    logits = backbone.logits(backbone.activations(events, None), drawn.candidates)
    counted = drawn.weights.numpy() > 0
    expected = log_loss(drawn.labels.numpy()[counted], torch.sigmoid(logits.double()).numpy()[counted])
    found = first_loss(trainer(model, log, DEVICE, dropout=0.0, batch_size=10_000))
    assert found == pytest.approx(expected, rel=1e-5)


@both
def test_the_first_step_with_shared_negatives_is_torchs_cross_entropy(kind):
    """Again one batch without dropout, here against the scores of all items that the event may have as a negative."""
    log = random_log(n_events=10)
    model = model_of(log, kind, window=50)
    backbone = SequenceBackbone(model, log, Baskets(log))
    events = log.events_in(DEVICE)
    logits, own = backbone.logits(backbone.activations(events, None), None), torch.from_numpy(log.item[events])
    negatives = Sampler(log, [DEVICE], 0, 7, "train/negatives").shared(events, 1000, 3, 0)
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    allowed[:, negatives.items] = negatives.allowed
    mean = (logits.exp() * allowed).sum(1) / allowed.sum(1)
    chosen = logits.gather(1, own[:, None])[:, 0]
    ranked = torch.log1p(mean * (len(log.catalogue(DEVICE)) - 1) / chosen.exp())
    positive = torch.from_numpy(log.label[events]) > 0
    expected = torch.where(positive, ranked + 0.05 * (mean * 3).log() ** 2, F.softplus(chosen)).mean()
    found = first_loss(trainer(model, log, DEVICE, dropout=0.0, batch_size=10_000, shared_negatives=1000))
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert 0 < positive.sum() < len(positive)


@both
def test_items_that_all_events_share_have_the_logits_of_own_candidates(kind):
    log = random_log()
    model, events = model_of(log, kind), log.events_in(DEVICE)
    through, candidates = model.training_pass(log, events), torch.from_numpy(log.item[events])[:, None]
    positions, shared = np.arange(0, len(events), 3), torch.tensor([4, 2, 17])
    fast = through.forward_shared(positions, candidates[positions], shared)
    plain = Pass.forward_shared(through, positions, candidates[positions], shared)
    torch.testing.assert_close(fast.logits, plain.logits)
    torch.testing.assert_close(fast.shared, plain.shared)
    assert torch.equal(fast.items, plain.items)


@both
@pytest.mark.parametrize("repeats", [True, False])
def test_the_epochs_ndcg_is_that_of_a_plain_ranking(kind, repeats, monkeypatch):
    """Every positive valid event, every item of the catalogue that is no excluded pair, one event at a time."""
    log = replace(random_log(), repeats=repeats)
    model, excluded = model_of(log, kind), log.never_negative(VALID)
    backbone, found = SequenceBackbone(model, log, Baskets(log)), []
    for event in log.events_in(VALID):
        if log.label[event]:
            [scores] = backbone.logits(backbone.activations(np.array([event]), None), None).detach().numpy()
            owner = log.owners(np.array([event]), excluded)
            seen = {log.item[event], *excluded.of_owners(owner)[1]}
            others = [i for i in log.catalogue(VALID) if i not in seen]
            rank = 1 + np.sum(scores[others] > scores[log.item[event]])
            found.append(1 / np.log2(1 + rank) if rank <= 10 else 0)
    fit = trainer(model, log, shared_negatives=2)
    assert fit.validate().ndcg == pytest.approx(np.mean(found), rel=1e-6)
    assert 0 < np.mean(found) < 1
    monkeypatch.setattr(Trainable, "ranked_on_valid", (7, 20_000))
    some = trainer(model, log, shared_negatives=2)
    assert some.validation.ranked.sum() == 7 < len(found)
    whole, part = fit.validate(), some.validate()  # the others have loss and AUC all the same, but for ties
    assert part.loss == pytest.approx(whole.loss, rel=1e-6) and part.auc == pytest.approx(whole.auc, abs=0.02)
    assert part.ndcg != whole.ndcg
    assert trainer(model, log).validate().ndcg is None


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 100])
def test_windows_hold_what_comes_before_each_event(limit):
    log = random_log()
    baskets, events = Baskets(log), log.events_in(CLOUD, DEVICE)
    windows = windows_of(baskets, log, events, limit)
    own, end = baskets.before(log, events)
    first = windows.first[windows.window]
    assert np.array_equal(first + windows.state, end)
    assert (windows.end - windows.first <= limit).all() and (windows.end[windows.window] >= end).all()
    assert (first >= own).all()
    known = end - own
    assert (windows.state[known <= limit] == known[known <= limit]).all()
    assert (windows.state >= np.minimum(known, limit - limit // 2)).all()
    # no basket of another user
    owner = np.searchsorted(np.unique(log.history_start), baskets.starts, side="right")
    assert all(len(np.unique(owner[a:b])) <= 1 for a, b in zip(windows.first, windows.end, strict=True))


def test_every_event_is_in_one_batch_and_windows_stay_whole():
    log = random_log(n_users=40)
    events = log.events_in(CLOUD, DEVICE)
    windows = windows_of(Baskets(log), log, events, 4)
    settings = fit_settings(batch_size=16)
    orders = []
    for epoch in (0, 1):
        parts = list(batches(windows, settings, epoch))
        together = np.concatenate(parts)
        assert np.array_equal(np.sort(together), np.arange(len(events)))
        owners = [set(windows.window[part]) for part in parts]
        assert sum(map(len, owners)) == len(windows.first)
        assert max(map(len, parts)) < 16 + np.bincount(windows.window).max()
        orders.append(together)
    assert not np.array_equal(*orders)


@both
def test_the_gradient_of_own_rows_is_that_of_the_table(kind):
    """What a training pass gives to the batch's own rows = autograd through a plain forward of the whole table."""
    log = random_log()
    model, events = model_of(log, kind, window=50), log.events_in(DEVICE)
    samples = samples_of(log)
    through = model.training_pass(log, events)
    positions = np.arange(0, len(events), 2)
    candidates = samples.candidates[torch.from_numpy(positions)]
    found = through.forward(positions, candidates)
    found.logits.square().sum().backward()
    assert model.item_table.grad is None and found.leaf is not None
    baskets = Baskets(log)
    first, end = baskets.before(log, events[positions])
    bags = baskets.bags(first, end)
    states = model.states(model.steps(bags, model.embed(bags.items)))
    own = states[torch.arange(len(positions)), torch.from_numpy(end - first)]
    logits = model.logits(own, candidates, model.embed(candidates))
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)
    logits.square().sum().backward()
    usual = model.item_table.grad
    torch.testing.assert_close(found.leaf.grad, usual[found.items], atol=1e-4, rtol=1e-4)
    others = torch.ones(log.n_items, dtype=torch.bool)
    others[found.items] = False
    assert usual.abs().sum() > 0 and not usual[others].any()


def pairs_log(n_users: int = 80, n_pairs: int = 20, steps: int = 12) -> EventLog:
    """Everybody takes a random first item and then its second one, again and again."""
    rng = np.random.default_rng(0)
    second = n_pairs + rng.permutation(n_pairs)
    rows = []
    for user in range(n_users):
        for step in range(steps):
            period = int(np.searchsorted([8, 9, 10], step, side="right"))
            first = int(rng.integers(n_pairs))
            rows += [(user, first, 2 * step, 1, period), (user, int(second[first]), 2 * step + 1, 1, period)]
    return log_of(rows, n_users, 2 * n_pairs)


@both
def test_a_world_in_which_the_last_item_tells_the_next(kind):
    log = pairs_log()
    model = KINDS[kind](log, SequenceSettings(history=8, item_size=16), torch.Generator().manual_seed(0))
    restore(model, trained(model, log, epochs=25, learning_rate=0.02, dropout=0.0, batch_size=128).best)
    seconds = log.events_in(TEST)[1::2]

    def found(log: EventLog) -> float:
        backbone = SequenceBackbone(model, log, Baskets(pairs_log()))
        best = backbone.logits(backbone.activations(seconds, None), None).argmax(1).numpy()
        return float((best == log.item[seconds]).mean())

    assert found(log) > 0.95
    # without the newest item the rest of the history tells nothing, though it is the same things in the same order
    stale = replace(log, history_end=log.history_end - 1)
    assert found(stale) < 0.2
