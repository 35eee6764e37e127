import copy
import math

import numpy as np
import pytest
import torch
from small_worlds import din, fit_settings, frozen, log_of, no_samples, normal, random_log, samples_of
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn import functional as F

from dcclctl.algorithm import training
from dcclctl.algorithm.eventlog import CLOUD, DEVICE, VALID
from dcclctl.algorithm.training import Adam, FitState
from dcclctl.errors import DivergedError


@pytest.fixture(scope="module")
def log():
    return random_log()


def run(log, model, settings, state=None, valid=None, epochs=None, teacher=None, on_step=None, period=CLOUD, **taught):
    """Epochs one after another until the settings or `epochs` end it."""
    valid = training.valid_samples(log, 3, seed=1) if valid is None else valid
    state = state or training.start(model, training.judge(model, log, valid, settings.history))
    while not state.finished(settings) and (epochs is None or state.epoch < epochs):
        state = training.train_epoch(
            model,
            log,
            log.events_in(period),
            log.catalogue(period),
            log.positives_in(period),
            valid,
            settings,
            state,
            teacher,
            on_step,
            **taught,
        )
    return state


def same_state(a: FitState, b: FitState) -> bool:
    groups = ((a.weights, b.weights), (a.best, b.best), (a.moments, b.moments))
    tensors = all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in groups)
    return tensors and (a.epoch, a.steps, a.history) == (b.epoch, b.steps, b.history)


# Losses


def test_cross_entropy_is_scikit_learns():
    logits, weights = normal(20, 5), torch.rand(20, 5, generator=torch.Generator().manual_seed(1))
    labels = (normal(20, 5, seed=2) > 0).float()
    weights[3:6] = 0
    expected = log_loss(
        labels.flatten().numpy(),
        torch.sigmoid(logits.double()).flatten().numpy(),
        sample_weight=weights.flatten().numpy(),
    )
    assert float(training.weighted_cross_entropy(logits, labels, weights)) == pytest.approx(expected, rel=1e-6)


def test_kl_is_torchs_and_zero_between_equals():
    teacher, student = 4 * normal(50, 5), 4 * normal(50, 5, seed=1)
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(logits=teacher.double()), bernoulli(logits=student.double()))
    torch.testing.assert_close(training.bernoulli_kl(teacher.double(), student.double()), expected)
    torch.testing.assert_close(training.bernoulli_kl(teacher, student), expected.float(), atol=1e-5, rtol=1e-4)
    assert not training.bernoulli_kl(teacher, teacher).any()
    assert (expected > 0).all()


def test_kl_of_extreme_logits_is_finite():
    far = torch.tensor([-200.0, 200.0])
    assert training.bernoulli_kl(far, far).tolist() == [0, 0]
    torch.testing.assert_close(training.bernoulli_kl(far, -far), torch.tensor([200.0, 200.0]))


def test_the_gradient_of_the_kl_pulls_towards_the_teacher():
    teacher, student = normal(30), normal(30, seed=1).requires_grad_()
    training.bernoulli_kl(teacher, student).sum().backward()
    torch.testing.assert_close(student.grad, torch.sigmoid(student.detach()) - torch.sigmoid(teacher))


def test_the_evaluated_loss_is_the_mean_over_what_counts(log):
    model = din(log, scale=10)
    samples = samples_of(log, VALID)
    logits = model.logits(
        model.second_layer(training.first_layer(model, log, samples.events, samples.candidates, 6))
    ).detach()
    count = samples.weights.bool()
    expected = log_loss(samples.labels[count].numpy(), torch.sigmoid(logits.double())[count].numpy())
    assert training.judge(model, log, samples, 6).loss == pytest.approx(expected, rel=1e-6)
    assert training.judge(model, log, samples, 6, batch_size=3).loss == pytest.approx(expected, rel=1e-6)
    assert math.isnan(training.judge(model, log, no_samples(log), 6).loss)


def test_the_auc_is_sklearns_of_each_event_with_its_negatives(log):
    model = din(log, scale=10)
    samples = samples_of(log, VALID)
    assert (samples.labels[:, 0] == 0).any()  # events that are their own negative rank nothing
    logits = model.logits(
        model.second_layer(training.first_layer(model, log, samples.events, samples.candidates, 6))
    ).detach()
    pairs = list(zip(samples.labels, logits, strict=True))
    expected = np.mean([roc_auc_score(labels, scores) for labels, scores in pairs if labels[0]])
    assert training.judge(model, log, samples, 6).auc == pytest.approx(expected)
    assert training.judge(model, log, samples, 6, batch_size=3).auc == pytest.approx(expected)
    assert training.judge(model, log, no_samples(log), 6).auc == 0.5
    level = training.Tally()
    level.add(torch.zeros(()), torch.ones(()), torch.zeros(2, 3), torch.tensor([[1.0, 0, 0]] * 2), torch.ones(2, 3))
    assert level.judged.auc == 0.5  # equal scores are half won


def test_valid_negatives_never_change(log):
    first, second = (training.valid_samples(log, 3, seed=1) for _ in range(2))
    assert torch.equal(first.candidates, second.candidates)
    assert np.array_equal(first.events, log.events_in(VALID))
    assert not torch.equal(first.candidates, training.valid_samples(log, 3, seed=2).candidates)


# Adam


def test_lazy_adam_is_torchs_adam_where_every_row_is_touched(log):
    """Item rows against Adam with an L2 penalty, everything else against Adam without."""
    model, reference = din(log), din(log)
    ours = Adam(model, 0.01, weight_decay=0.1)
    weights = dict(reference.named_parameters())
    theirs = torch.optim.Adam(
        [
            {"params": [weights["item_table"]], "weight_decay": 0.1},
            {"params": [weights[name] for name in ours.dense]},
        ],
        lr=0.01,
    )
    everything = torch.arange(log.n_items)
    for step in range(6):
        for place, name in enumerate(weights):
            gradient = normal(*weights[name].shape, seed=100 * step + place)
            weights[name].grad = gradient
            ours.weights[name].grad = gradient.clone()
        ours.step(everything, weights["item_table"].grad)
        theirs.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=1e-5)


def test_lazy_adam_is_torchs_sparse_adam_on_the_rows_of_a_batch(log):
    model = din(log)
    ours = Adam(model, 0.01, weight_decay=0.0)
    table = torch.nn.Parameter(model.item_table.detach().clone())
    theirs = torch.optim.SparseAdam([table], lr=0.01)
    for step in range(6):
        items = torch.randperm(log.n_items, generator=torch.Generator().manual_seed(step))[:7]
        gradient = normal(7, 6, seed=step)
        for name in ours.dense:
            ours.weights[name].grad = torch.zeros_like(ours.weights[name])
        before = frozen(model.item_table)
        ours.step(items, gradient)
        assert frozen(model.item_table) != before
        table.grad = torch.sparse_coo_tensor(items[None], gradient, table.shape, check_invariants=True).coalesce()
        theirs.step()
    torch.testing.assert_close(model.item_table, table, atol=1e-6, rtol=1e-5)


def test_rows_outside_a_batch_do_not_move(log):
    model = din(log)
    optimiser = Adam(model, 0.01, weight_decay=0.1)
    for name in optimiser.dense:
        optimiser.weights[name].grad = torch.zeros_like(optimiser.weights[name])
    others = torch.tensor([i for i in range(log.n_items) if i not in (3, 8)])
    before = frozen(model.item_table[others])
    optimiser.step(torch.tensor([3, 8]), normal(2, 6))
    assert frozen(model.item_table[others]) == before
    assert not optimiser.moments["item_table.m"][others].any()
    assert optimiser.moments["item_table.m"][[3, 8]].all()


# One step


def test_every_weight_learns_and_the_padding_category_does_not(log):
    model = din(log, scale=10)
    before = training.snapshot(model)
    state = run(log, model, fit_settings(epochs=1, batch_size=4096), valid=no_samples(log))
    assert state.steps == 1
    samples = training.sample(
        log, log.events_in(CLOUD), 3, log.catalogue(CLOUD), log.positives_in(CLOUD), 7, "train/negatives"
    )
    history, mask = log.histories(samples.events, 6)
    seen = torch.unique(torch.cat([history[mask], samples.candidates.flatten()]))
    assert len(seen) > 20
    assert (model.item_table[seen] != before["item_table"][seen]).any(1).all(), "an item in the batch did not learn"
    for name, weight in model.named_parameters():
        moment = state.moments[f"{name}.m"]
        if name == "category_table":
            assert not weight[-1].any(), "the padding category changed"
            assert not moment[-1].any()
            weight, moment, earlier = weight[:-1], moment[:-1], before[name][:-1]
        elif name == "item_table":
            continue
        elif name == "profile_tables.0" or name == "profile_tables.1":
            codes = torch.unique(log.profile[torch.from_numpy(log.user[samples.events]), int(name[-1])])
            weight, moment, earlier = weight[codes], moment[codes], before[name][codes]
        else:
            earlier = before[name]
        assert moment.any(), f"{name} got no gradient"
        assert (weight != earlier).float().mean() > 0.7, f"{name} did not learn"


def test_items_outside_the_data_stay_as_they_are():
    """Nobody ever sees items 5 to 9, as history, as positive or as negative."""
    rows = [(user, (user + t) % 5, t, 1, CLOUD) for user in range(6) for t in range(6)]
    log = log_of(rows, n_users=6, n_items=10)
    model = din(log)
    before = training.snapshot(model)["item_table"]
    run(log, model, fit_settings(), valid=no_samples(log))
    assert torch.equal(model.item_table[5:], before[5:])
    assert (model.item_table[:5] != before[:5]).all()


def test_the_gradient_through_own_rows_is_the_gradient_of_the_table(log):
    """One step of the loop = autograd through the whole table, then the optimiser (no dropout, one batch)."""
    settings = fit_settings(epochs=1, batch_size=4096, dropout=0.0, weight_decay=0.0)
    model, reference = din(log, scale=10), din(log, scale=10)
    run(log, model, settings, valid=no_samples(log))
    events = log.events_in(CLOUD)
    samples = training.sample(log, events, 3, log.catalogue(CLOUD), log.positives_in(CLOUD), 7, "train/negatives")
    logits = reference.logits(
        reference.second_layer(training.first_layer(reference, log, events, samples.candidates, 6))
    )
    optimiser = torch.optim.Adam(reference.parameters(), lr=settings.learning_rate)
    F.binary_cross_entropy_with_logits(logits, samples.labels, samples.weights, reduction="sum").div(
        samples.weights.sum()
    ).backward()
    optimiser.step()
    ours = dict(model.named_parameters())
    for name, weight in reference.named_parameters():
        # Adam's first step is ±rate whatever the size of the gradient: where it is about zero the sign is a matter of chance
        sure = weight.grad.abs() > 1e-6
        assert sure.any()
        torch.testing.assert_close(ours[name][sure], weight[sure], atol=1e-5, rtol=1e-4)


# Batches


def test_batches_hold_every_event_once(log):
    samples = samples_of(log, CLOUD)
    settings = fit_settings(batch_size=10)
    parts = list(training.batches(log, samples, settings, epoch=0))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(samples.events)))
    assert {len(part) for part in parts[:-1]} <= {10, len(samples.events) % 10}
    again = list(training.batches(log, samples, settings, epoch=0))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    later = np.concatenate(list(training.batches(log, samples, settings, epoch=1)))
    assert not np.array_equal(np.concatenate(parts), later)


def test_batches_hold_histories_of_like_length_in_no_order(log):
    samples = samples_of(log, CLOUD)
    lengths = log.history_lengths(samples.events, 20)
    ranges = [lengths[part] for part in training.batches(log, samples, fit_settings(batch_size=10, history=20), 0)]
    assert np.mean([np.ptp(part) for part in ranges]) < 2 < np.ptp(lengths)
    means = [part.mean() for part in ranges]
    assert means != sorted(means), "short histories always come first"


# Many epochs


def test_a_run_that_stopped_goes_on_to_the_same_bits(log):
    settings = fit_settings(epochs=3)
    whole = run(log, din(log), settings)
    first = run(log, din(log), settings, epochs=1)
    saved = copy.deepcopy(first)
    other = din(log, seed=99)  # another process: a fresh model, and only the state
    resumed = run(log, other, settings, state=saved)
    assert same_state(resumed, whole)
    assert all(torch.equal(whole.weights[n], w) for n, w in other.named_parameters())
    assert [record["epoch"] for record in whole.history] == [1, 2, 3]


def test_the_optimiser_remembers_from_one_epoch_to_the_next(log):
    settings = fit_settings(epochs=3)
    whole = run(log, din(log), settings)
    per_epoch = -(-len(log.events_in(CLOUD)) // settings.batch_size)
    assert whole.steps == 3 * per_epoch
    model = din(log)
    first = run(log, model, settings, epochs=1)
    first.moments = {name: torch.zeros_like(moment) for name, moment in first.moments.items()}
    assert not same_state(run(log, model, settings, state=first), whole)


def test_a_weight_that_the_loss_does_not_reach_is_a_bug(log):
    model = din(log)
    model.forgotten = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="no gradient"):
        run(log, model, fit_settings(epochs=1))


def test_the_same_run_gives_the_same_bits_and_another_seed_others(log):
    first, second = (run(log, din(log), fit_settings()) for _ in range(2))
    assert same_state(first, second)
    assert not same_state(first, run(log, din(log), fit_settings(seed=8)))
    assert not same_state(first, run(log, din(log), fit_settings(purpose="distill")))


def test_global_random_state_is_neither_used_nor_touched(log):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    model, before = din(log), torch.get_rng_state()
    first = run(log, model, fit_settings(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert same_state(first, run(log, din(log), fit_settings(epochs=1)))


def test_threads_change_nothing_but_the_last_digits(two_threads):
    log = random_log(n_users=40, n_items=100, n_events=50)
    settings = fit_settings(epochs=1, batch_size=256, history=20)
    one, two = two_threads(lambda: run(log, din(log, hidden_sizes=(64, 32)), settings))
    assert one.best_loss == pytest.approx(two.best_loss, rel=1e-5)
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, two.weights[name], atol=1e-4, rtol=1e-3)


def test_early_stopping_keeps_the_best(log):
    """A rate that overshoots: the loss rises again, training stops, and the best epoch's weights are kept."""
    settings = fit_settings(epochs=30, patience=2, learning_rate=0.05, dropout=0.0)
    model = din(log)
    valid = training.valid_samples(log, 3, seed=1)
    state = run(log, model, settings, valid=valid)
    losses = [record["valid_loss"] for record in state.history]
    assert 2 < state.epoch < 30
    best = int(np.argmin(losses))
    assert state.epoch == best + 1 + settings.patience
    assert state.best_loss == losses[best]
    assert training.judge(model, log, valid, settings.history).loss == losses[-1] > losses[best]
    training.restore(model, state.best)
    assert training.judge(model, log, valid, settings.history).loss == losses[best]


@pytest.mark.parametrize(("criterion", "best"), [("loss", 2), ("auc", 3)])
def test_the_best_epoch_is_the_one_by_the_criterion(log, criterion, best):
    """The loss turns before the ranking does."""
    model = din(log)
    state = training.start(model, training.Judged(0.7, 0.5))
    judged = [
        training.Judged(0.5, 0.6),
        training.Judged(0.4, 0.65),
        training.Judged(0.45, 0.7),
        training.Judged(0.5, 0.7),
    ]
    for number, figures in enumerate(judged, 1):
        with torch.no_grad():
            model.out.bias.fill_(number)
        state = training.after_epoch(model, state, Adam(model, 0.1, 0.0), 0.3, figures, criterion)
    assert (state.best_loss, state.best_auc) == judged[best - 1]
    assert float(state.best["out.bias"]) == best
    assert state.epochs_since_best == 4 - best
    assert [(record["valid_loss"], record["valid_auc"]) for record in state.history] == judged


def test_the_weights_at_the_start_are_the_best_if_nothing_is_better(log):
    model = din(log)
    before = training.snapshot(model)
    valid = training.valid_samples(log, 3, seed=1)
    for criterion in ("loss", "auc"):
        state = training.start(model, training.Judged(-1.0, 2.0))
        state = run(log, model, fit_settings(patience=2, epochs=9, criterion=criterion), state=state, valid=valid)
        assert state.epoch == 2
        assert all(torch.equal(state.best[name], before[name]) for name in before)
        assert (state.best_loss, state.best_auc) == (-1.0, 2.0)
        training.restore(model, before)


def test_without_patience_all_epochs_are_done(log):
    state = run(log, din(log), fit_settings(epochs=5, patience=0, learning_rate=0.1))
    assert state.epoch == 5
    assert not state.finished(fit_settings(epochs=6))


def test_without_valid_events_the_newest_epoch_counts(log):
    model = din(log)
    state = run(log, model, fit_settings(epochs=3, patience=1), valid=no_samples(log))
    assert state.epoch == 3
    assert all(torch.equal(state.best[name], weight) for name, weight in model.named_parameters())
    assert all(math.isnan(record["valid_loss"]) for record in state.history)


@pytest.mark.parametrize("batch_size", [32, 4096])
def test_an_absurd_rate_diverges_with_a_remedy(log, batch_size):
    with pytest.raises(DivergedError) as error:
        run(log, din(log), fit_settings(learning_rate=1e30, batch_size=batch_size))
    assert "--learning-rate" in error.value.remedy
    assert error.value.exit_code == 4


def test_an_absurd_rate_diverges_in_the_last_step_without_valid_events_too(log):
    with pytest.raises(DivergedError):
        run(log, din(log), fit_settings(learning_rate=1e39, batch_size=4096, epochs=1), valid=no_samples(log))


def test_progress_is_reported(log):
    told = []
    run(log, din(log), fit_settings(epochs=2), on_step=lambda *figures: told.append(figures))
    total = len(log.events_in(CLOUD))
    for epoch in (1, 2):
        own = [figures for figures in told if figures[0] == epoch]
        assert [figures[1] for figures in own] == sorted(figures[1] for figures in own)
        assert own[-1][1:3] == (total, total)
        assert all(math.isfinite(figures[3]) and figures[4] > 0 for figures in own)


def test_dropout_scales_what_it_keeps():
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(100, 100)
    dropped = training.dropout(x, 0.2, generator)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert abs(float((dropped == 0).float().mean()) - 0.2) < 0.02
    assert training.dropout(x, 0.0, generator) is x


# With a teacher


def test_distilling_with_beta_zero_is_plain_training(log):
    def teacher(events, candidates):
        return torch.full(candidates.shape, 50.0)

    plain = run(log, din(log), fit_settings(), period=DEVICE)
    assert same_state(run(log, din(log), fit_settings(beta=0.0), teacher=teacher, period=DEVICE), plain)
    assert not same_state(run(log, din(log), fit_settings(beta=0.5), teacher=teacher, period=DEVICE), plain)


def test_a_teacher_pulls_the_student_along(log):
    def teacher(events, candidates):
        return torch.where(candidates % 2 == 0, 2.0, -2.0)

    model = din(log)
    run(log, model, fit_settings(beta=1000.0, epochs=40), teacher=teacher, valid=no_samples(log))
    samples = samples_of(log, CLOUD)
    logits = model.logits(model.second_layer(training.first_layer(model, log, samples.events, samples.candidates, 6)))
    agree = ((logits > 0) == (samples.candidates % 2 == 0)).float().mean()
    assert agree > 0.95


def test_the_loss_is_cross_entropy_and_beta_times_the_kl(log):
    """The first batch's reported loss, from its parts."""
    settings = fit_settings(beta=0.7, epochs=1, batch_size=4096, dropout=0.0)
    told = []
    wisdom = {}

    def teacher(events, candidates):
        wisdom.update(events=events, candidates=candidates, logits=normal(*candidates.shape))
        return wisdom["logits"]

    run(log, din(log), settings, teacher=teacher, on_step=lambda *figures: told.append(figures))
    model, events = din(log), wisdom["events"]
    logits = model.logits(
        model.second_layer(training.first_layer(model, log, events, wisdom["candidates"], settings.history))
    ).detach()
    labels = torch.zeros_like(logits)
    labels[:, 0] = torch.from_numpy(log.label[events]).float()
    weights = torch.ones_like(logits)
    weights[labels[:, 0] == 0, 1:] = 0
    expected = training.weighted_cross_entropy(logits, labels, weights)
    expected = expected + 0.7 * (training.bernoulli_kl(wisdom["logits"], logits) * weights).sum() / weights.sum()
    assert told[0][3] == pytest.approx(float(expected), rel=1e-5)


def test_teachers_of_unlabelled_items_are_asked_about_those_alone(log):
    """And the labels speak of the event's own item and its negatives alone: the first batch's loss from its parts."""
    settings = fit_settings(beta=0.7, epochs=1, batch_size=4096, dropout=0.0)
    told, wisdom, drawn = [], {}, {}

    def unlabelled(events, epoch):
        drawn.update(zip(events.tolist(), torch.randint(log.n_items, (len(events), 3)), strict=True))
        assert epoch == 0
        return torch.stack([drawn[event] for event in events.tolist()])

    def teacher(events, candidates):
        wisdom.update(events=events, candidates=candidates, logits=normal(*candidates.shape))
        return wisdom["logits"]

    run(log, din(log), settings, teacher=teacher, on_step=lambda *f: told.append(f), unlabelled=unlabelled)
    model, events = din(log), wisdom["events"]
    asked = torch.stack([drawn[event] for event in events.tolist()])
    assert torch.equal(wisdom["candidates"], asked)

    def logits_of(events, candidates):
        z1 = training.first_layer(model, log, events, candidates, settings.history)
        return model.logits(model.second_layer(z1)).detach()

    samples = training.sample(
        log,
        events,
        settings.negatives,
        log.catalogue(CLOUD),
        log.positives_in(CLOUD),
        settings.seed,
        f"{settings.purpose}/negatives",
        0,
    )
    entropy = training.weighted_cross_entropy(logits_of(events, samples.candidates), samples.labels, samples.weights)
    divergence = training.bernoulli_kl(wisdom["logits"], logits_of(events, asked)).mean()
    assert told[0][3] == pytest.approx(float(entropy + 0.7 * divergence), rel=1e-5)


def test_labels_of_untold_events_teach_nothing(log):
    """With half of the events untold the loss is the told ones' cross-entropy over all candidates, and the divergence."""
    told, wisdom = [], {}
    settings = fit_settings(epochs=1, batch_size=10**6, dropout=0.0, beta=0.7)
    drawn = torch.from_numpy(np.random.default_rng(3).integers(0, log.n_items, (len(log.item), 3)))
    untold = np.arange(len(log.item)) % 2 == 0

    def unlabelled(events, epoch):
        return drawn[torch.from_numpy(events)]

    def teacher(events, candidates):
        wisdom.update(events=events, logits=normal(*candidates.shape))
        return wisdom["logits"]

    run(
        log,
        din(log),
        settings,
        teacher=teacher,
        on_step=lambda *f: told.append(f),
        unlabelled=unlabelled,
        untold=untold,
    )
    model, events = din(log), wisdom["events"]

    def logits_of(candidates):
        z1 = training.first_layer(model, log, events, candidates, settings.history)
        return model.logits(model.second_layer(z1)).detach()

    catalogue, excluded = log.catalogue(CLOUD), log.positives_in(CLOUD)
    purpose = f"{settings.purpose}/negatives"
    samples = training.sample(log, events, settings.negatives, catalogue, excluded, settings.seed, purpose, 0)
    losses = F.binary_cross_entropy_with_logits(logits_of(samples.candidates), samples.labels, reduction="none")
    counted = samples.weights * torch.from_numpy(~untold[events]).unsqueeze(1)
    assert 0 < float(counted.sum()) < float(samples.weights.sum())
    entropy = (losses * counted).sum() / samples.weights.sum()
    divergence = training.bernoulli_kl(wisdom["logits"], logits_of(unlabelled(events, 0))).mean()
    assert told[0][3] == pytest.approx(float(entropy + 0.7 * divergence), rel=1e-5)


def test_a_batch_of_untold_events_is_taught_by_the_teacher_alone(log):
    logits, labels, weights = normal(4, 3), torch.zeros(4, 3), torch.ones(4, 3)
    nobody = torch.zeros(4, dtype=torch.bool)
    assert float(training.weighted_cross_entropy(logits, labels, weights, nobody)) == 0


def test_without_a_teacher_nobody_draws_unlabelled_items(log):
    def unlabelled(events, epoch):
        raise AssertionError("nobody is there to be asked")

    def teacher(events, candidates):
        raise AssertionError("β is 0")

    plain = run(log, din(log), fit_settings(), period=DEVICE)
    silent = run(log, din(log), fit_settings(beta=0.0), teacher=teacher, period=DEVICE, unlabelled=unlabelled)
    assert same_state(silent, plain)
    assert same_state(run(log, din(log), fit_settings(beta=1.0), period=DEVICE, unlabelled=unlabelled), plain)


def test_trust_weighs_what_is_said_of_unlabelled_items(log):
    def unlabelled(events, epoch):
        return torch.from_numpy(np.stack([events % log.n_items] * 2, 1))

    def teacher(events, candidates):
        return torch.full(candidates.shape, 5.0)

    def loss(trust, beta):
        settings = fit_settings(beta=beta, epochs=1, batch_size=4096)
        told = []
        training.train_epoch(
            model := din(log),
            log,
            log.events_in(CLOUD),
            log.catalogue(CLOUD),
            log.positives_in(CLOUD),
            no_samples(log),
            settings,
            training.start(model, training.Judged(1.0, 0.5)),
            teacher,
            lambda *figures: told.append(figures[3]),
            trust,
            unlabelled,
        )
        return told[0]

    half = torch.full((log.n_users,), 0.5)
    assert loss(half, 2.0) == pytest.approx(loss(None, 1.0), rel=1e-6)
    assert loss(half, 2.0) < loss(None, 2.0)
