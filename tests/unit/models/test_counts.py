"""Popularity, item-kNN and EASE against plain loops, closed forms and scikit-learn, and in a world with a known answer."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from small_worlds import Row, log_of, random_log, scores

from dcclctl.events.log import CLOUD, TEST, EventLog
from dcclctl.models import neighbours
from dcclctl.models.neighbours import (
    HistoryBackbone,
    ItemWeights,
    Neighbours,
    OwnCounts,
    add_co_occurrences,
    co_occurrences,
    ease,
    item_knn,
)
from dcclctl.models.popularity import PopularityBackbone, log_odds, newest_of_users, start_of_newest
from dcclctl.models.positives import count_matrix
from dcclctl.models.scoring import Backbone

N_ITEMS = 12


def pairs(seed: int = 0, n_users: int = 40) -> np.ndarray:
    """A random 0/1 matrix (U, I) without an event of the last item."""
    rng = np.random.default_rng(seed)
    matrix = (rng.random((n_users, N_ITEMS)) < rng.uniform(0.05, 0.7, N_ITEMS)).astype(float)
    matrix[:, -1] = 0
    return matrix


def ones(matrix: np.ndarray) -> sparse.csr_array:
    """The same, sparse, as models are learned from."""
    return sparse.csr_array(matrix.astype(np.int32))


def pairs_of(log: EventLog, rows: np.ndarray) -> sparse.csr_array:
    """The distinct pairs of some events."""
    found = count_matrix(log, rows)[1]
    found.data[:] = 1
    return found


def gram_of(pairs: sparse.csr_array) -> torch.Tensor:
    return torch.from_numpy((pairs.T @ pairs).toarray()).double()


def dense(model: Neighbours) -> np.ndarray:
    """(I, I): row = item of the history, column = candidate."""
    n_items = len(model.start) - 1
    return model.scores(np.arange(n_items), np.arange(n_items), None, n_items).numpy()


def all_logits(backbone: Backbone, log: EventLog, period: int, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    events = log.events_in(period)
    return events, scores(backbone, events, batch_events=batch).numpy()


def test_the_start_of_the_newest_events() -> None:
    time = np.array([*range(8), 50, 51])
    mixed = np.random.default_rng(0).permutation(time)
    assert start_of_newest(mixed, 0.3) == 7  # two of ten are later
    assert start_of_newest(mixed, 0.31) == 6
    assert start_of_newest(mixed, 1.0) == 0
    # a moment stays together, and the last one is always kept
    assert start_of_newest(np.zeros(10, dtype=np.int64), 0.01) == 0
    assert start_of_newest(np.array([3, 9, 9, 9]), 0.01) == 9
    assert start_of_newest(time[2:5], 0.4) == 3


def test_the_newest_events_of_each_user() -> None:
    rows: list[Row] = [(0, 0, time, 1, CLOUD) for time in range(8)] + [(1, 0, time, 1, CLOUD) for time in (50, 51)]
    log = log_of(rows, 2, 1)
    time, every = np.array([row[2] for row in rows]), log.events_in(CLOUD)
    # of 8 and of 2 events of one user, those with less than a quarter of them later
    assert newest_of_users(log, every, time, 0.25).tolist() == [6, 7, 9]
    assert newest_of_users(log, every, np.zeros(10, dtype=np.int64), 0.01).tolist() == every.tolist()


def test_popularity_is_the_log_odds_of_the_sampling() -> None:
    counts = np.array([0, 1, 2, 5])
    logits = log_odds(counts, negatives=4)
    share = (counts + 1) / (counts + 1).sum()
    # one positive by its share, and four negatives, each item as likely as any other
    assert torch.sigmoid(logits).numpy() == pytest.approx(share / (share + 4 / 4), rel=1e-6)
    assert logits.argsort().tolist() == [0, 1, 2, 3]
    backbone = PopularityBackbone(logits, random_log())
    candidates = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(backbone.activations(np.array([5, 9]), candidates), logits[candidates])
    assert torch.equal(backbone.activations(np.array([5, 9]), None), torch.stack([logits, logits]))


def test_own_counts_are_of_what_is_strictly_earlier_and_popularity_breaks_ties() -> None:
    log, popularity = random_log(), np.arange(random_log().n_items)[::-1].copy()
    backbone = HistoryBackbone(OwnCounts(log.n_items), log, torch.from_numpy(popularity).float())
    events, found = all_logits(backbone, log, TEST)
    expected = np.zeros((len(events), log.n_items))
    for row, event in enumerate(events):
        # history_end counts everybody's positive events before the moment
        for item in log.sequence[log.history_start[event] : log.history_end[event]].tolist():
            expected[row, item] += 1
    assert expected.max() > 1 and (expected == 0).any()
    assert (np.floor(found) == expected).all()
    for row, own in zip(found, expected, strict=True):
        assert (np.argsort(-row, kind="stable") == np.lexsort((-popularity, -own))).all()
    assert (all_logits(backbone, log, TEST, batch=1)[1] == found).all()
    candidates = torch.tensor([[4, 0, 0]]).expand(len(events), 3)
    assert torch.equal(backbone.activations(events, candidates), torch.from_numpy(found)[:, [4, 0, 0]])


@pytest.mark.parametrize("block", [1, 3 * N_ITEMS, 1 << 20])
def test_co_occurrences_are_the_product_of_the_matrix_with_itself(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    matrix = pairs()
    found = np.zeros((N_ITEMS, N_ITEMS))
    blocks = list(co_occurrences(ones(matrix)))
    for first, counts in blocks:
        found[first : first + len(counts)] = counts.numpy()
    assert len(blocks) == {1: N_ITEMS, 3 * N_ITEMS: 4, 1 << 20: 1}[block]
    assert (found == matrix.T @ matrix).all()
    parts = torch.zeros(N_ITEMS, N_ITEMS, dtype=torch.float64)
    for users in (slice(0, 7), slice(7, 7), slice(7, 40)):
        add_co_occurrences(parts, ones(matrix[users]))
    assert (parts.numpy() == found).all()


def test_all_neighbours_without_shrinkage_are_the_cosine() -> None:
    matrix = pairs()
    expected = cosine_similarity(matrix.T)
    assert dense(item_knn(ones(matrix), N_ITEMS, 0.0, itself=True)) == pytest.approx(expected, abs=1e-6)
    np.fill_diagonal(expected, 0)
    assert dense(item_knn(ones(matrix), N_ITEMS, 0.0, itself=False)) == pytest.approx(expected, abs=1e-6)


def test_nearest_neighbours_of_each_candidate_with_shrinkage() -> None:
    matrix = pairs(seed=1)
    expected = np.zeros((N_ITEMS, N_ITEMS))
    for i in range(N_ITEMS):
        found = []
        for j in range(N_ITEMS):
            both = (matrix[:, i] * matrix[:, j]).sum()
            if i != j and both:
                found.append((both / (math.sqrt(matrix[:, i].sum() * matrix[:, j].sum()) + 7.5), j))
        for value, j in sorted(found, reverse=True)[:3]:
            expected[j, i] = value
    found = dense(item_knn(ones(matrix), 3, 7.5, itself=False))
    assert found == pytest.approx(expected, abs=1e-6)
    # near is not mutual: an item in nobody's list of three may have three itself
    assert not np.array_equal(found > 0, found.T > 0)


def test_many_neighbours_are_held_dense_with_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    near = item_knn(ones(pairs()), 4, 1.0, itself=False)
    bags, past = np.array([0, 0, 0, 2, 2, 3]), np.array([1, 4, 7, 0, 11, 5])
    full = near.faster()
    assert isinstance(full, ItemWeights)
    assert full.scores(bags, past, None, 5).numpy() == pytest.approx(near.scores(bags, past, None, 5).numpy(), abs=1e-6)
    monkeypatch.setattr(neighbours, "_DENSE", 0.9)
    assert near.faster() is near


def test_ease_is_a_ridge_regression_of_every_item_on_all_others() -> None:
    matrix = pairs(seed=2)
    weights = ease(gram_of(ones(matrix)), ridge=3.0).weights.numpy()
    assert (np.diag(weights) == 0).all()
    for j in range(N_ITEMS):
        others = np.delete(np.arange(N_ITEMS), j)
        fit = Ridge(alpha=3.0, fit_intercept=False).fit(matrix[:, others], matrix[:, j])
        assert weights[others, j] == pytest.approx(fit.coef_, abs=1e-6)


def test_scores_are_sums_over_what_is_strictly_earlier() -> None:
    # user 0 takes item 0, then 1 and 2 in one moment, a disliked 3, then 0 again, then 4; user 1 has no history
    rows: list[Row] = [(0, 0, 0, 1, TEST), (0, 1, 1, 1, TEST), (0, 2, 1, 1, TEST), (0, 3, 2, 0, TEST)]
    rows += [(0, 0, 3, 1, TEST), (0, 4, 4, 1, TEST), (1, 4, 9, 1, TEST)]
    log = log_of(rows, 2, 5)
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    popularity = torch.tensor([1.0, 4.0, 2.0, 0.0, 3.0])
    histories: list[set[int]] = [set(), {0}, {0}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}, set()]
    expected = np.array([sum((weights[j].numpy() for j in sorted(past)), np.zeros(5)) for past in histories])
    backbone = HistoryBackbone(ItemWeights(weights), log, popularity)
    events, found = all_logits(backbone, log, TEST)
    assert found == pytest.approx(expected, abs=2e-6)
    # without a history popularity decides, and no more than that
    assert found[0].argsort().tolist() == [3, 0, 2, 4, 1] and found[0].max() == pytest.approx(1e-6)
    candidates = torch.tensor([[4, 0, 0]]).expand(len(events), 3)
    assert torch.equal(backbone.activations(events, candidates), torch.from_numpy(found)[:, [4, 0, 0]])


def test_a_log_without_any_positive_event_has_histories_without_items() -> None:
    log = log_of([(0, 0, 0, 0, TEST), (0, 1, 1, 0, TEST)], 1, 3)
    backbone = HistoryBackbone(ItemWeights(torch.ones(3, 3)), log, torch.zeros(3))
    assert all_logits(backbone, log, TEST)[1].tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("kind", ["item-knn", "ease"])
def test_the_batch_has_no_effect(kind: str) -> None:
    log = random_log()
    rows = log.events_in(CLOUD)
    model = ease(gram_of(pairs_of(log, rows)), 2.0)
    if kind == "item-knn":
        model = item_knn(pairs_of(log, rows), 5, 1.0, itself=True)
    backbone = HistoryBackbone(model, log, torch.ones(log.n_items))
    together, alone = all_logits(backbone, log, TEST), all_logits(backbone, log, TEST, batch=1)
    assert (together[1] == alone[1]).all()


def taste_log(unseen: int = 0) -> EventLog:
    """Users of two tastes take items 0 … 9 or 10 … 19; the last `unseen` of them have events in the test period only."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for user in range(60):
        own = (user % 2) * 10 + rng.permutation(10)[:8]
        for at, item in enumerate(own):
            period = TEST if at > 5 or user >= 60 - unseen else CLOUD
            rows.append((user, int(item), at, 1, period))
    return log_of(rows, 60, 20)


@pytest.mark.parametrize("kind", ["item-knn", "ease"])
def test_two_tastes_are_told_apart_also_for_users_that_training_never_saw(kind: str) -> None:
    log = taste_log(unseen=10)
    own = pairs_of(log, log.events_in(CLOUD))
    model = ease(gram_of(own), 5.0) if kind == "ease" else item_knn(own, 5, 1.0, itself=False)
    backbone = HistoryBackbone(model, log, torch.from_numpy(own.sum(axis=0)).float())
    events, logits = all_logits(backbone, log, TEST)
    right = (log.item[events][:, None] < 10) == (np.arange(20) < 10)
    history, mask = log.histories(events, 20)
    seen = ((history[:, :, None] == torch.arange(20)) & mask[:, :, None]).any(1).numpy()
    # an item speaks for others, not for itself; and one or two may have too few neighbours
    judged = (mask.sum(1, keepdim=True) > 2).numpy() & ~seen
    assert (log.user[events[judged.any(1)]] >= 50).any()
    assert roc_auc_score(right[judged], logits[judged]) > 0.98


def test_decay_weighs_an_item_by_the_baskets_since_its_newest_event() -> None:
    log = random_log()
    weights = np.random.default_rng(0).random((log.n_items, log.n_items))
    backbone = HistoryBackbone(ItemWeights(torch.from_numpy(weights).float()), log, torch.zeros(log.n_items), 0.7)
    events, found = all_logits(backbone, log, TEST)
    most = 0
    for event, row in zip(events, found, strict=True):
        # the user's positive events strictly before the event; a basket is the events with one history_end
        mine = [
            e
            for e in log.events_of(int(log.user[event]))
            if log.label[e] and log.history_end[e] < log.history_end[event]
        ]
        order = sorted({log.history_end[e] for e in mine}, reverse=True)
        newest = {int(log.item[e]): order.index(log.history_end[e]) for e in mine}
        expected = sum((0.7**since * weights[item] for item, since in newest.items()), np.zeros(log.n_items))
        assert row == pytest.approx(expected, rel=1e-5)
        most = max(most, len(order))
    assert most > 5
    # a neighbour of the oldest item stays above an item without any relation, however popular
    weights = np.zeros((log.n_items, log.n_items))
    event = int(events[np.argmax([len(log.events_of(int(log.user[e]))) for e in events])])
    oldest = int(log.sequence[log.history_start[event]])
    weights[oldest, 3] = 1.0
    popularity = (torch.arange(log.n_items) != 3).float()
    backbone = HistoryBackbone(ItemWeights(torch.from_numpy(weights).float()), log, popularity, 0.2)
    (row,) = backbone.activations(np.array([event]), None).numpy()
    assert 0 < row[3] < 1e-6 and row.argmax() == 3
    near = item_knn(ones(pairs()), 4, 1.0, itself=False)
    bags, past, own = np.array([0, 0, 2]), np.array([1, 4, 7]), np.array([0.5, 1.0, 0.25])
    sparse_scores, dense_scores = (model.scores(bags, past, own, 3).numpy() for model in (near, near.faster()))
    assert sparse_scores == pytest.approx(dense_scores, abs=1e-6) and sparse_scores[0] == pytest.approx(
        0.5 * dense(near)[1] + dense(near)[4], abs=1e-6
    )
