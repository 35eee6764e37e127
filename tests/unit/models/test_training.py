import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from small_worlds import (
    din,
    din_logits,
    fit_settings,
    log_of,
    normal,
    random_log,
    run,
    same_state,
    samples_of,
    shown_with,
    trained,
    trainer,
)
from torch.nn import functional as F

from dcclctl.errors import DataError, DivergedError
from dcclctl.events.log import CLOUD, DEVICE, TEST, VALID
from dcclctl.events.sampler import Sampler, SharedNegatives
from dcclctl.models.adam import LazyAdam
from dcclctl.models.factors import Bpr
from dcclctl.models.trainable import HistoryPass, dropout
from dcclctl.models.training import (
    FitState,
    SharedLogits,
    Validation,
    mean_loss,
    pick,
    snapshot,
    softmax_losses,
    validate,
)
from dcclctl.store.store import Store


@pytest.fixture(scope="module")
def log():
    return random_log()


def cloud_samples(log, negatives=3, seed=7):
    """What the first epoch of a trainer on the cloud period draws."""
    return Sampler(log, [CLOUD], negatives, seed, "train/negatives").draw(log.events_in(CLOUD))


def validated(model, log, samples):
    return validate(model, model.serving_pass(log, samples.events), samples)


# Losses


def test_cross_entropy_is_scikit_learns(log):
    logits, samples = 3 * normal(len(log.events_in(DEVICE)), 4), samples_of(log)
    assert (samples.weights == 0).any()
    expected = log_loss(
        samples.labels.flatten().numpy(),
        torch.sigmoid(logits.double()).flatten().numpy(),
        sample_weight=samples.weights.flatten().numpy(),
    )
    assert float(mean_loss(din(log), logits, samples)) == pytest.approx(expected, rel=1e-6)


def shared_logits(logits, allowed, catalogue, expected=3):
    items = torch.arange(logits.shape[1])
    return SharedLogits(SharedNegatives(items, allowed, catalogue, expected), logits)


def test_with_all_items_the_softmax_is_torchs_cross_entropy():
    """Beside it stands the level of the logits, which is 0 where the mean odds are one in `expected`."""
    logits, items = normal(6, 9), torch.arange(6)
    allowed = F.one_hot(items, 9) == 0
    mean = (logits.exp() * allowed).sum(1, keepdim=True) / 8
    logits = logits - (3 * mean).log()  # now the mean odds of the others are 1/3
    own = logits.gather(1, items[:, None])[:, 0]
    found, weights = softmax_losses(own, torch.ones(6), shared_logits(logits, allowed, 9))
    torch.testing.assert_close(found, F.cross_entropy(logits, items, reduction="none"))
    assert weights.all()
    level, _ = softmax_losses(own + 2, torch.ones(6), shared_logits(logits + 2, allowed, 9))
    torch.testing.assert_close(level, found + 0.05 * 4)


def test_fewer_shared_negatives_stand_for_the_whole_catalogue():
    """Twice the catalogue with the same negatives is every negative twice."""
    logits, allowed = normal(5, 4), torch.ones(5, 4, dtype=torch.bool)
    own = normal(5)
    half, _ = softmax_losses(own, torch.ones(5), shared_logits(logits, allowed, 8))
    whole = shared_logits(torch.cat([logits, logits], 1), torch.cat([allowed, allowed], 1), 8)
    torch.testing.assert_close(half, softmax_losses(own, torch.ones(5), whole)[0])


def test_observed_negatives_and_events_without_any_negative_beside_a_softmax():
    logits, own = normal(3, 4).requires_grad_(), normal(3).requires_grad_()
    allowed = torch.tensor([[True] * 4, [True] * 4, [False] * 4])
    losses, weights = softmax_losses(own, torch.tensor([1.0, 0.0, 1.0]), shared_logits(logits, allowed, 4))
    torch.testing.assert_close(losses[1], F.binary_cross_entropy_with_logits(own[1], torch.tensor(0.0)))
    assert weights.tolist() == [1, 1, 0] and losses.isfinite().all()
    (losses * weights).sum().backward()
    assert own.grad[:2].all() and own.grad[2] == 0
    assert logits.grad[0].all() and not logits.grad[1:].any()


def test_the_validated_loss_is_the_mean_over_what_counts(log, monkeypatch):
    model, samples = din(log, scale=10), samples_of(log, VALID)
    logits = din_logits(model, log, samples.events, samples.candidates).detach()
    count = samples.weights.bool()
    expected = log_loss(samples.labels[count].numpy(), torch.sigmoid(logits.double())[count].numpy())
    assert validated(model, log, samples).loss == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(HistoryPass, "VALIDATION_EVENTS", 3)
    assert validated(model, log, samples).loss == pytest.approx(expected, rel=1e-6)
    assert math.isnan(validated(model, log, pick(samples, np.arange(0))).loss)


def test_the_auc_is_sklearns_of_each_event_with_its_negatives(log, monkeypatch):
    model, samples = din(log, scale=10), samples_of(log, VALID)
    assert (samples.labels[:, 0] == 0).any()  # events that are their own negative rank nothing
    logits = din_logits(model, log, samples.events, samples.candidates).detach()
    pairs = list(zip(samples.labels, logits, strict=True))
    expected = np.mean([roc_auc_score(labels, scores) for labels, scores in pairs if labels[0]])
    assert validated(model, log, samples).auc == pytest.approx(expected)
    monkeypatch.setattr(HistoryPass, "VALIDATION_EVENTS", 3)
    assert validated(model, log, samples).auc == pytest.approx(expected)
    assert validated(model, log, pick(samples, np.arange(0))).auc == 0.5
    with torch.no_grad():
        model.out.weight.zero_()
    assert validated(model, log, samples).auc == 0.5  # equal scores are half won


# One step


def test_items_outside_the_data_stay_as_they_are():
    """Nobody ever sees items 5 to 9, as history, as positive or as negative."""
    periods = [CLOUD] * 4 + [VALID] * 2
    rows = [(user, (user + t) % 5, t, 1, periods[t]) for user in range(6) for t in range(6)]
    log = log_of(rows, n_users=6, n_items=10)
    model = din(log)
    before = snapshot(model)["item_table"]
    trained(model, log)
    assert torch.equal(model.item_table[5:], before[5:])
    assert (model.item_table[:5] != before[:5]).all()


def test_the_gradient_through_own_rows_is_the_gradient_of_the_table(log):
    """One step of the loop = autograd through the whole table, then the optimiser (no dropout, one batch)."""
    model, reference = din(log, scale=10), din(log, scale=10)
    trained(model, log, epochs=1, batch_size=4096, dropout=0.0, weight_decay=0.0)
    samples = cloud_samples(log)
    logits = din_logits(reference, log, samples.events, samples.candidates)
    optimiser = torch.optim.Adam(reference.parameters(), lr=0.01)
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


def batches(log, history=20, epoch=0, **changes):
    events = log.events_in(CLOUD)
    through = shown_with(din(log), history).training_pass(log, events)
    return events, list(through.batches(fit_settings(**changes), epoch))


def test_batches_hold_every_event_once(log):
    events, parts = batches(log, batch_size=10)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(events)))
    assert {len(part) for part in parts[:-1]} <= {10, len(events) % 10}
    _, again = batches(log, batch_size=10)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    _, later = batches(log, epoch=1, batch_size=10)
    assert not np.array_equal(np.concatenate(parts), np.concatenate(later))


def test_batches_hold_histories_of_like_length_in_no_order(log):
    events, parts = batches(log, batch_size=10)
    lengths = log.history_lengths(events, 20)
    ranges = [lengths[part] for part in parts]
    assert np.mean([np.ptp(part) for part in ranges]) < 2 < np.ptp(lengths)
    means = [part.mean() for part in ranges]
    assert means != sorted(means), "short histories always come first"


# Many epochs


def test_the_optimiser_remembers_from_one_epoch_to_the_next(log):
    whole = trained(din(log), log)
    assert whole.steps == 3 * -(-len(log.events_in(CLOUD)) // 32)
    other = trainer(din(log), log)
    first = run(other, epochs=1)
    assert same_state(run(other, copy.deepcopy(first)), whole)
    first.adam_state = {name: torch.zeros_like(mean) for name, mean in first.adam_state.items()}
    assert not same_state(run(other, first), whole)


def test_a_weight_that_the_loss_does_not_reach_is_a_bug(log):
    model = din(log)
    model.forgotten = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="no gradient"):
        trained(model, log)


def test_the_same_run_gives_the_same_bits_and_another_seed_others(log):
    first, second = (trained(din(log), log) for _ in range(2))
    assert same_state(first, second)
    assert not same_state(first, trained(din(log), log, seed=8))
    assert not same_state(first, trained(din(log), log, purpose="distill"))


def test_global_random_state_is_neither_used_nor_touched(log):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    model, before = din(log), torch.get_rng_state()
    first = trained(model, log, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert same_state(first, trained(din(log), log, epochs=1))


def test_threads_change_nothing_but_the_last_digits(two_threads):
    log = random_log(n_users=40, n_items=100, n_events=50)

    def fit():
        return trained(shown_with(din(log, hidden_sizes=(64, 32)), 20), log, epochs=1, batch_size=256)

    one, two = two_threads(fit)
    assert one.best_valid.loss == pytest.approx(two.best_valid.loss, rel=1e-5)
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, two.weights[name], atol=1e-4, rtol=1e-3)


def test_early_stopping_keeps_the_epoch_with_the_highest_auc(log, tmp_path):
    """A rate that overshoots: the AUC falls again, training stops, and the best epoch's weights are kept."""
    model = din(log)
    fit = trainer(model, log, epochs=30, patience=2, learning_rate=0.05, dropout=0.0)
    with Store(tmp_path).begin("train", "cloud", {}, 0, {}) as work:
        state = fit.fit(work, lambda *figures: None, "train")
    found = [record["valid_auc"] for record in state.history]
    assert 2 < state.epoch < 30
    best = int(np.argmax(found))
    assert state.epoch == best + 1 + 2 and state.best_epoch == best + 1
    assert found[-1] < found[best] == state.best_valid.auc == fit.validate().auc
    assert state.best_valid.loss == state.history[best]["valid_loss"] == fit.validate().loss


def test_the_best_epoch_is_the_first_with_the_highest_auc(log):
    """The loss turns before the ranking does."""
    model = din(log)
    state = FitState.start(model, Validation(0.7, 0.5))
    seen = [Validation(0.5, 0.6), Validation(0.4, 0.65), Validation(0.45, 0.7), Validation(0.5, 0.7)]
    for number, figures in enumerate(seen, 1):
        with torch.no_grad():
            model.out.bias.fill_(number)
        state = state.after(model, LazyAdam(model, 0.1, 0.0), 0.3, figures)
    assert state.best_valid == seen[2]
    assert float(state.best["out.bias"]) == 3
    assert (state.epochs_since_best, state.best_epoch) == (1, 3)
    assert [(record["valid_loss"], record["valid_auc"]) for record in state.history] == [
        figures[:2] for figures in seen
    ]


def test_ndcg_chooses_the_epoch_before_auc(log):
    model = din(log)
    state = FitState.start(model, Validation(0.7, 0.5, 0.0))
    seen = [Validation(0.5, 0.9, 0.2), Validation(0.4, 0.6, 0.3), Validation(0.4, 0.8, 0.3), Validation(0.3, 0.95, 0.1)]
    for figures in seen:
        state = state.after(model, LazyAdam(model, 0.1, 0.0), 0.3, figures)
    assert state.best_valid == seen[2] and state.best_epoch == 3
    assert [record["valid_ndcg"] for record in state.history] == [0.2, 0.3, 0.3, 0.1]


def test_the_weights_at_the_start_are_the_best_if_nothing_is_better(log):
    model = din(log)
    before = snapshot(model)
    state = run(trainer(model, log, patience=2, epochs=9), FitState.start(model, Validation(-1.0, 2.0)))
    assert state.epoch == 2
    assert all(torch.equal(state.best[name], before[name]) for name in before)
    assert state.best_valid == Validation(-1.0, 2.0)


def test_without_patience_all_epochs_are_done(log):
    state = trained(din(log), log, epochs=5, learning_rate=0.1)
    assert state.epoch == 5
    assert not state.finished(fit_settings(epochs=6))


@pytest.mark.parametrize("batch_size", [32, 4096])
def test_an_absurd_rate_diverges_with_a_remedy(log, batch_size):
    with pytest.raises(DivergedError, match="became") as error:
        trained(din(log), log, learning_rate=1e30, batch_size=batch_size)
    assert "--learning-rate" in error.value.remedy
    assert error.value.exit_code == 4


def test_a_weight_that_becomes_infinite_in_the_last_step_is_seen(log):
    with pytest.raises(DivergedError):
        trained(din(log), log, learning_rate=1e39, batch_size=4096, epochs=1)


def test_progress_is_reported_and_every_epoch_is_recorded(log, tmp_path):
    told = []
    fit = trainer(din(log), log, epochs=2)
    with Store(tmp_path).begin("train", "cloud", {}, 0, {}) as work:
        state = fit.fit(work, lambda *figures: told.append(figures), "learn")
    assert [what for what in dict.fromkeys(what for what, *_ in told)] == ["validate", "learn"]
    learned, each = [call for call in told if call[0] == "learn"], len(log.events_in(CLOUD))
    assert {total for _, _, total, _ in learned} == {2 * each}
    done = [done for _, done, _, _ in learned]
    assert done == sorted(done) and {0, each} < set(done) and done[-1] == 2 * each
    assert learned[1][3].startswith("epoch 1/2  loss") and learned[-1][3].startswith("epoch 2/2  loss")
    validated = [done for what, done, _, _ in told if what == "validate"]
    assert validated.count(0) == 3  # before the first epoch, and after each
    facts = fit.facts(state)
    assert facts["epochs"] == state.history and [record["epoch"] for record in state.history] == [1, 2]
    assert facts["trained_on_events"] == len(log.events_in(CLOUD))
    assert facts["trained_on_users"] == len(set(log.user[log.events_in(CLOUD)]))


def test_events_that_are_missing_are_said(log):
    with pytest.raises(DataError, match="no events in device"):
        trainer(din(log), log_of([(0, 0, 0, 1, CLOUD), (0, 1, 1, 1, VALID)], 1, 30), DEVICE)
    with pytest.raises(DataError, match="no valid events"):
        trainer(din(log), log_of([(0, 0, 0, 1, CLOUD), (0, 1, 1, 1, TEST)], 1, 30))
    disliked = log_of([(0, 0, 0, 0, CLOUD), (0, 1, 1, 1, VALID)], 1, 30)
    trainer(din(log), disliked)
    unranked = log_of([(0, 0, 0, 1, CLOUD), (0, 1, 1, 0, VALID)], 1, 30)
    with pytest.raises(DataError, match="no positive events in valid") as error:
        trainer(din(log), unranked)
    assert "ingest again" in error.value.remedy
    pairs = Bpr(1, 30, 4, torch.Generator())
    with pytest.raises(DataError, match="no positive events in cloud"):
        trainer(pairs, disliked)
    with pytest.raises(DataError, match="no positive events in valid"):
        trainer(pairs, unranked)


def test_dropout_scales_what_it_keeps():
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(100, 100)
    dropped = dropout(x, 0.2, generator)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert abs(float((dropped == 0).float().mean()) - 0.2) < 0.02
    assert dropout(x, 0.0, generator) is x
