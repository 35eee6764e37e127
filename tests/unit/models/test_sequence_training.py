"""Training sequence models: the loss by an independent formula, windows, batches, resuming, and a world with an answer."""

import math

import numpy as np
import pytest
import torch
from small_worlds import fit_settings, log_of, random_log, samples_of
from sklearn.metrics import log_loss
from test_sequence import backbone_of, both, model_of

from dcclctl.algorithm import sequence_training, training
from dcclctl.algorithm.eventlog import CLOUD, DEVICE, TEST, VALID, EventLog
from dcclctl.algorithm.sequence import KINDS, Moments, SequenceBackbone, SequenceModel, SequenceSizes
from dcclctl.errors import DivergedError


def trained(
    model: SequenceModel, log: EventLog, epochs: int, blocks: tuple[int, ...] = (CLOUD,), **changes: object
) -> training.FitState:
    valid = training.valid_samples(log, 3, seed=0)
    moments = Moments(log)
    settings = fit_settings(**changes)
    state = training.start(model, sequence_training.judge(model, moments, log, valid))
    part = log.events_in(*blocks), log.catalogue(max(blocks)), log.never_negative(*blocks)
    for _ in range(epochs):
        state = sequence_training.train_epoch(model, moments, log, *part, valid, settings, state)
    return state


@both
def test_the_valid_loss_is_sklearns_of_the_scores(kind):
    """Scores as they are ranked, cross-entropy as scikit-learn has it."""
    log = random_log()
    backbone, samples = backbone_of(log, kind), samples_of(log, VALID)
    states = backbone.activations(samples.events, None)
    logits = backbone.logits(states, samples.candidates)
    counted = samples.weights.numpy() > 0
    expected = log_loss(samples.labels.numpy()[counted], torch.sigmoid(logits.double()).numpy()[counted])
    for batch_size in (4, 4096):
        found = sequence_training.judge(backbone.model, backbone.moments, log, samples, batch_size).loss
        assert found == pytest.approx(expected, rel=1e-5)
    assert not counted.all()  # observed negatives have no sampled ones


@both
def test_the_first_steps_loss_is_sklearns_too(kind):
    """No dropout, one batch: what an epoch reports is the loss of the weights that it began with, on its own negatives."""
    log = random_log(n_events=10)
    model, settings = model_of(log, kind, window=50), fit_settings(dropout=0.0, batch_size=10_000)
    backbone = SequenceBackbone(model, log, Moments(log))
    events = log.events_in(DEVICE)
    drawn = training.sample(
        log, events, 3, log.catalogue(DEVICE), log.never_negative(DEVICE), settings.seed, "train/negatives", 0
    )
    logits = backbone.logits(backbone.activations(events, None), drawn.candidates)
    counted = drawn.weights.numpy() > 0
    expected = log_loss(drawn.labels.numpy()[counted], torch.sigmoid(logits.double()).numpy()[counted])
    state = trained(model, log, 1, (DEVICE,), dropout=0.0, batch_size=10_000)
    assert state.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 100])
def test_windows_hold_what_comes_before_each_event(limit):
    log = random_log()
    moments, events = Moments(log), log.events_in(CLOUD, DEVICE)
    windows = sequence_training.windows_of(moments, log, events, limit)
    own, end = moments.before(log, events)
    first = windows.first[windows.window]
    assert np.array_equal(first + windows.state, end)
    assert (windows.end - windows.first <= limit).all() and (windows.end[windows.window] >= end).all()
    assert (first >= own).all()
    known = end - own
    assert (windows.state[known <= limit] == known[known <= limit]).all()
    assert (windows.state >= np.minimum(known, limit - limit // 2)).all()
    # no moment of another user
    owner = np.searchsorted(np.unique(log.history_start), moments.starts, side="right")
    assert all(len(np.unique(owner[a:b])) <= 1 for a, b in zip(windows.first, windows.end, strict=True))


def test_every_event_is_in_one_batch_and_windows_stay_whole():
    log = random_log(n_users=40)
    events = log.events_in(CLOUD, DEVICE)
    windows = sequence_training.windows_of(Moments(log), log, events, 4)
    settings = fit_settings(batch_size=16)
    orders = []
    for epoch in (0, 1):
        parts = list(sequence_training.batches(windows, settings, epoch))
        together = np.concatenate(parts)
        assert np.array_equal(np.sort(together), np.arange(len(events)))
        owners = [set(windows.window[part]) for part in parts]
        assert sum(map(len, owners)) == len(windows.first)
        assert max(map(len, parts)) < 16 + np.bincount(windows.window).max()
        orders.append(together)
    assert not np.array_equal(*orders)


@both
def test_every_weight_learns_but_the_padding_category(kind):
    log = random_log()
    model = model_of(log, kind)
    before = training.snapshot(model)
    after = trained(model, log, 2).weights
    for name, weight in before.items():
        changed = weight != after[name]
        assert changed.any(), name
        if name == "category_table":
            assert not changed[-1].any() and changed[:-1].all()
    # items that were neither events, histories nor negatives keep their rows
    assert set(before) == {name for name, _ in model.named_parameters()}


@both
def test_the_gradient_of_own_rows_is_that_of_the_table(kind):
    log = random_log()
    model, moments = model_of(log, kind), Moments(log)
    samples = samples_of(log)
    windows = sequence_training.windows_of(moments, log, samples.events, 6)
    positions = np.arange(0, len(samples.events), 2)
    candidates = samples.candidates[torch.from_numpy(positions)]
    leaf: dict[str, torch.Tensor] = {}
    for given in (None, leaf):
        logits = sequence_training.candidate_logits(model, moments, windows, positions, candidates, leaf=given)
        logits.square().sum().backward()
        if given is None:
            usual = model.item_table.grad[:]
            model.item_table.grad = None
    assert model.item_table.grad is None
    torch.testing.assert_close(leaf["rows"].grad, usual[leaf["items"]], atol=1e-4, rtol=1e-4)
    assert usual.abs().sum() > 0


@both
def test_training_lowers_the_loss_and_one_state_goes_on_as_if_never_stopped(kind):
    log = random_log()
    whole = trained(model_of(log, kind), log, 4)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]
    model, valid, moments, settings = (
        model_of(log, kind),
        training.valid_samples(log, 3, 0),
        Moments(log),
        fit_settings(),
    )
    begun = trained(model, log, 2)
    other = model_of(log, kind, seed=9)  # whatever the weights of the process are that goes on
    part = log.events_in(CLOUD), log.catalogue(CLOUD), log.never_negative(CLOUD)
    for _ in range(2):
        begun = sequence_training.train_epoch(other, moments, log, *part, valid, settings, begun)
    assert begun.history == whole.history
    assert all(torch.equal(begun.weights[name], whole.weights[name]) for name in whole.weights)


@both
def test_diverged_training_says_so(kind):
    with pytest.raises(DivergedError, match="became"):
        trained(model_of(random_log(), kind), random_log(), 3, learning_rate=1e30)


def test_no_valid_events_give_no_loss():
    log = log_of([(0, 1, 0, 1, 0), (0, 2, 1, 1, 0)], 1, 5)
    model = model_of(log, "sasrec")
    samples = training.valid_samples(log, 2, 0)
    assert math.isnan(sequence_training.judge(model, Moments(log), log, samples).loss)


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
    model = KINDS[kind](SequenceSizes(40, 0, 8, item_size=16), log.item_categories, torch.Generator().manual_seed(0))
    state = trained(model, log, 25, learning_rate=0.02, dropout=0.0, batch_size=128)
    training.restore(model, state.best)
    seconds = log.events_in(TEST)[1::2]

    def found(log: EventLog) -> float:
        backbone = SequenceBackbone(model, log, Moments(pairs_log()))
        best = backbone.logits(backbone.activations(seconds, None), None).argmax(1).numpy()
        return float((best == log.item[seconds]).mean())

    assert found(log) > 0.95
    # without the newest item the rest of the history tells nothing, though it is the same things in the same order
    stale = EventLog(**{**vars(log), "history_end": log.history_end - 1})
    assert found(stale) < 0.2
