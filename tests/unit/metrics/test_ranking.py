import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from dcclctl.errors import DataError
from dcclctl.metrics.ranking import hit_ratio, ndcg, ranks, reciprocal_rank

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=5)


def test_known_ranks():
    positive = np.array([0.9, 0.1, 0.5, 0.5])
    candidates = np.array([[0.1, 0.2], [0.2, 0.3], [0.5, 0.9], [0.5, 0.5]])
    assert ranks(positive, candidates).tolist() == [1.0, 3.0, 2.5, 2.0]


@given(positive=st.integers(-3, 3), others=SCORES)
def test_tied_rank_is_the_mean_over_all_ways_to_break_the_ties(positive, others):
    # Independent reference: put the equal items into every order and average the place of the positive.
    equal = [f"other {i}" for i, score in enumerate(others) if score == positive]
    greater = sum(score > positive for score in others)
    places = [1 + greater + order.index("positive") for order in itertools.permutations(["positive", *equal])]
    rank = ranks(np.array([float(positive)]), np.array([others], dtype=float))[0]
    assert rank == pytest.approx(np.mean(places), abs=1e-12)


@given(positive=st.integers(-3, 3), others=SCORES)
def test_a_strictly_monotone_transform_changes_no_rank(positive, others):
    a, b = np.array([float(positive)]), np.array([others], dtype=float)
    assert ranks(a, b).tolist() == ranks(np.exp(a) * 5 - 1, np.exp(b) * 5 - 1).tolist()


def test_a_constant_model_ranks_in_the_middle():
    assert ranks(np.zeros(3), np.zeros((3, 100))).tolist() == [51.0] * 3


def test_left_out_candidates_never_count():
    rank = ranks(np.array([0.0]), np.array([[-math.inf, -math.inf, 1.0]]))
    assert rank.tolist() == [2.0]


def test_an_event_that_cannot_be_scored_scores_zero_everywhere():
    rank = ranks(np.array([-math.inf]), np.array([[-math.inf, 0.0]]))
    assert rank.tolist() == [math.inf]
    assert hit_ratio(rank, 1000).tolist() == ndcg(rank, 1000).tolist() == reciprocal_rank(rank).tolist() == [0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_scores_are_refused(bad):
    with pytest.raises(DataError, match="NaN or infinite"):
        ranks(np.array([bad, 0.0]), np.zeros((2, 3)))
    with pytest.raises(DataError, match="NaN or infinite"):
        ranks(np.zeros(2), np.array([[0.0, bad], [0.0, 0.0]]))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="do not fit together"):
        ranks(np.zeros(2), np.zeros((3, 4)))


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_ndcg_agrees_with_scikit_learn(k):
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(12.0), (200, 1)), axis=1)
    truth = np.zeros_like(scores)
    truth[:, 0] = 1
    ours = ndcg(ranks(scores[:, 0], scores[:, 1:]), k)
    assert ours.mean() == pytest.approx(ndcg_score(truth, scores, k=k), abs=1e-12)


def test_known_figures_at_k():
    rank = np.array([1.0, 1.5, 2.0, 2.5, 3.0])
    assert hit_ratio(rank, 2).tolist() == [1, 1, 1, 0, 0]
    assert ndcg(rank, 2) == pytest.approx([1, 1 / math.log2(2.5), 1 / math.log2(3), 0, 0], abs=1e-12)
    assert reciprocal_rank(rank) == pytest.approx([1, 2 / 3, 1 / 2, 2 / 5, 1 / 3], abs=1e-12)


@given(rank=st.integers(1, 50), k=st.integers(1, 50))
def test_ndcg_never_exceeds_the_hit_ratio_and_grows_with_k(rank, k):
    r = np.array([float(rank)])
    assert 0 <= ndcg(r, k)[0] <= hit_ratio(r, k)[0]
    assert ndcg(r, k)[0] <= ndcg(r, k + 1)[0]


def test_no_events_give_no_ranks():
    assert ranks(np.empty(0), np.empty((0, 5))).shape == (0,)
