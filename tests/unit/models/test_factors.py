"""BPR, FM and NeuMF against formulas written out, and in worlds with known answers."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from small_worlds import Row, log_of, random_log, scores, trained
from torch import nn

from dcclctl.errors import DivergedError
from dcclctl.events.log import CLOUD, TEST, VALID, EventLog
from dcclctl.models.factors import Bpr, FactorBackbone, FactorisationMachine, FactorModel, NeuMF
from dcclctl.models.training import restore

KINDS = ("bpr", "fm", "neumf")
LIMIT = 4


def fresh(kind: str, log: EventLog, size: int = 8, seed: int = 0) -> FactorModel:
    generator = torch.Generator().manual_seed(seed)
    if kind == "bpr":
        return Bpr(log.n_users, log.n_items, size, generator)
    if kind == "fm":
        return FactorisationMachine(log, size, LIMIT, generator)
    return NeuMF(log.n_users, log.n_items, size, (16, 8), generator)


def random(kind: str, log: EventLog, seed: int = 3) -> FactorModel:
    """A model all of whose weights differ from zero, so that none can be forgotten unnoticed."""
    model = fresh(kind, log, size=5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.5, generator=generator)
            if name == "category_table":
                weight[-1] = 0
    return model


def some(log: EventLog, count: int = 7) -> tuple[np.ndarray, torch.Tensor]:
    """Events with and without a history, and candidates of their own."""
    events = log.events_in(CLOUD)[:: max(1, len(log.events_in(CLOUD)) // count)][:count]
    return events, torch.from_numpy(np.random.default_rng(1).integers(0, log.n_items, (len(events), 6)))


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}


def test_bpr_is_a_bias_and_a_dot_product() -> None:
    log = random_log()
    model, (events, candidates) = random("bpr", log), some(log)
    w = weights_of(model)
    found = model(log, events, candidates).detach().numpy()
    for row, event in enumerate(events):
        for column, item in enumerate(candidates[row].tolist()):
            expected = w["item_table"][item, 0] + w["user_table"][log.user[event]] @ w["item_table"][item, 1:]
            assert found[row, column] == pytest.approx(expected, abs=1e-5)


def fm_features(log: EventLog, event: int, item: int) -> list[tuple[str, int, float]]:
    """(table, row, x) of every feature of an FM that is not zero."""
    user = int(log.user[event])
    found = [("user_table", user, 1.0), ("item_table", item, 1.0)]
    found += [(f"profile_tables.{f}", int(code), 1.0) for f, code in enumerate(log.profile[user])]
    own = [int(code) for code in log.item_categories[item] if code < log.n_categories]
    found += [("category_table", code, 1 / len(own)) for code in own]
    past = log.sequence[log.history_start[event] : log.history_end[event]][-LIMIT:].tolist()
    return found + [("history_table", each, 1 / len(past)) for each in past]


def test_fm_is_the_sum_over_all_pairs_of_features() -> None:
    log = random_log()
    model, (events, candidates) = random("fm", log), some(log)
    w = weights_of(model)
    found = model(log, events, candidates).detach().numpy()
    lengths = set()
    for row, event in enumerate(events):
        for column, item in enumerate(candidates[row].tolist()):
            features = fm_features(log, event, item)
            lengths.add(len(features))
            expected = w["constant"][0] + sum(w[table][at, 0] * x for table, at, x in features)
            for first, (table, at, x) in enumerate(features):
                for other, there, y in features[first + 1 :]:
                    expected += w[table][at, 1:] @ w[other][there, 1:] * x * y
            assert found[row, column] == pytest.approx(expected, abs=1e-4)
    assert min(lengths) < 4 + LIMIT <= max(lengths)  # without categories or with a short history, and with all


def test_fm_of_a_log_without_categories() -> None:
    log = log_of([(0, 0, 0, 1, CLOUD), (0, 1, 1, 1, CLOUD)], 1, 3)
    model = random("fm", log)
    w = weights_of(model)
    found = model(log, np.array([1]), torch.tensor([[2]])).item()
    features = [w["user_table"][0], w["item_table"][2], w["profile_tables.0"][0], w["history_table"][0]]
    pairs = sum(a[1:] @ b[1:] for at, a in enumerate(features) for b in features[at + 1 :])
    assert found == pytest.approx(w["constant"][0] + sum(f[0] for f in features) + pairs, abs=1e-5)


def test_neumf_is_gmf_beside_an_mlp_of_both_vectors() -> None:
    log = random_log()
    model, (events, candidates) = random("neumf", log), some(log)
    w = weights_of(model)
    found = model(log, events, candidates).detach().numpy()
    joint = np.concatenate([w["hidden_user.weight"], w["hidden_item.weight"]], axis=1)
    for row, event in enumerate(events):
        p = w["user_table"][log.user[event]]
        for column, item in enumerate(candidates[row].tolist()):
            q = w["item_table"][item]
            hidden = np.maximum(joint @ np.concatenate([p[5:], q[5:]]) + w["hidden_user.bias"], 0)
            hidden = np.maximum(w["hidden_2.weight"] @ hidden + w["hidden_2.bias"], 0)
            expected = w["out.weight"][0] @ np.concatenate([p[:5] * q[:5], hidden]) + w["out.bias"][0]
            assert found[row, column] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_catalogue_and_given_candidates_agree_whatever_the_batch(kind: str) -> None:
    log = random_log()
    model, (events, candidates) = random(kind, log), some(log)
    backbone = FactorBackbone(model, log)
    with torch.no_grad():
        whole, few = backbone.activations(events, None), backbone.activations(events, candidates)
        assert torch.allclose(few, model(log, events, candidates), atol=1e-5)
    assert whole.shape == (len(events), log.n_items)
    assert torch.allclose(whole.gather(1, candidates), few, atol=1e-5)
    assert torch.allclose(scores(backbone, events, batch_events=2), whole, atol=1e-5)
    assert torch.allclose(scores(backbone, events, candidates, batch_events=2), few, atol=1e-5)


def test_losses_are_those_of_the_formulas() -> None:
    logits = torch.tensor([[0.3, -1.2, 0.8], [2.0, 0.1, -0.4], [-0.7, 5.0, 5.0]])
    labels = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.0, 0, 0]])
    weights = torch.tensor([[1.0, 1, 1], [1.0, 1, 1], [1.0, 0, 0]])  # the last is a negative event: nothing beside it
    log = random_log()
    each, counts = fresh("bpr", log).losses(logits, labels, weights)
    differences = [0.3 + 1.2, 0.3 - 0.8, 2.0 - 0.1, 2.0 + 0.4]
    expected = -sum(math.log(1 / (1 + math.exp(-d))) for d in differences)
    assert float((each * counts).sum()) == pytest.approx(expected, rel=1e-6)
    assert counts.sum() == 4
    for kind in ("fm", "neumf"):
        each, counts = fresh(kind, log).losses(logits, labels, weights)
        scored = [0.3, -1.2, 0.8, 2.0, 0.1, -0.4, -0.7]
        expected = log_loss([1, 0, 0, 1, 0, 0, 0], [1 / (1 + math.exp(-x)) for x in scored], normalize=False)
        assert float((each * counts).sum()) == pytest.approx(expected, rel=1e-6)
        assert counts.sum() == 7


@pytest.mark.parametrize("kind", ["bpr", "fm"])
def test_decay_shrinks_the_vectors_of_users(kind: str) -> None:
    log = random_log()
    free, held = (
        trained(fresh(kind, log), log, epochs=5, weight_decay=decay).weights["user_table"] for decay in (0.0, 0.1)
    )
    assert held.norm() < 0.5 * free.norm()


def test_a_step_that_is_too_long_is_said_so() -> None:
    log = random_log()
    with pytest.raises(DivergedError, match="became"):
        trained(fresh("fm", log), log, epochs=3, learning_rate=1e25)


HALF = 15


def taste_log(shared_items: bool = False) -> EventLog:
    """80 users of two tastes; users 70 … 79 have events in the test period only.

    Args:
        shared_items: everybody takes items of the first half mostly: then popularity is what new users can be served by.
    """
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for user in range(80):
        taste = 0 if shared_items else user % 2
        own = taste * HALF + rng.permutation(HALF)[:12]
        for at, item in enumerate(own):
            period = TEST if user >= 70 or at > 9 else VALID if at > 7 else CLOUD
            rows.append((user, int(item), at, 1, period))
    extra = [(80, item, item, 1, CLOUD) for item in range(2 * HALF)]  # so that every item is in the catalogue
    return log_of(rows + extra, 81, 2 * HALF)


def group_auc(kind: str, log: EventLog, of_new: bool) -> float:
    model = fresh(kind, log)
    state = trained(model, log, epochs=60, patience=10, learning_rate=0.01, batch_size=64, negatives=4)
    restore(model, state.best)
    events = log.events_in(TEST)
    logits = scores(FactorBackbone(model, log), events).numpy()
    right = (log.item[events][:, None] < HALF) == (np.arange(log.n_items) < HALF)
    chosen = (log.user[events] >= 70) == of_new
    assert chosen.any()
    return float(roc_auc_score(right[chosen].ravel(), logits[chosen].ravel()))


@pytest.mark.parametrize("kind", KINDS)
def test_two_tastes_are_told_apart(kind: str) -> None:
    assert group_auc(kind, taste_log(), of_new=False) > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_new_users_are_served_by_what_is_known_of_items(kind: str) -> None:
    assert group_auc(kind, taste_log(shared_items=True), of_new=True) > 0.97
