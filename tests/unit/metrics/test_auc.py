import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import user_auc_by_two_sorts
from sklearn.metrics import roc_auc_score

from dcclctl.errors import DataError
from dcclctl.metrics.auc import gauc, user_auc

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-4, 4)), min_size=1, max_size=40)


def columns(rows):
    users, labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    return users, labels, scores.astype(float)


def test_agrees_with_scikit_learn_on_many_users_with_ties():
    rng = np.random.default_rng(1)
    users = rng.integers(0, 200, 4000)
    labels = rng.integers(0, 2, 4000)
    scores = rng.integers(0, 20, 4000).astype(np.float32)
    ours = dict(user_auc(users, labels, scores).iter_rows())
    assert len(ours) == len(np.unique(users))
    for user, value in ours.items():
        own = users == user
        assert value == pytest.approx(roc_auc_score(labels[own], scores[own]), abs=1e-12)


@given(ROWS)
def test_agrees_with_counting_the_pairs(rows):
    users, labels, scores = columns(rows)
    for user, value in user_auc(users, labels, scores).iter_rows():
        own = users == user
        good, bad = scores[own & (labels == 1)], scores[own & (labels == 0)]
        if not len(good) or not len(bad):
            assert value is None
        else:
            wins = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
            assert value == pytest.approx(np.mean(wins), abs=1e-12)


@given(ROWS)
def test_identities(rows):
    users, labels, scores = columns(rows)
    plain = user_auc(users, labels, scores)
    assert plain.equals(user_auc(users, labels, np.exp(scores))), "a monotone transform changed AUC"
    assert plain.equals(user_auc(users[::-1], labels[::-1], scores[::-1])), "the order of the rows changed AUC"
    turned = user_auc(users, labels, -scores)["auc"].to_list()
    for value, other in zip(plain["auc"], turned, strict=True):
        assert (value is None and other is None) or value + other == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_sort_gives_the_bits_of_two(dtype):
    """Also with ties, with 0 and −0, which are equal, with infinite scores, and with users of one class."""
    rng = np.random.default_rng(3)
    users, labels = rng.integers(0, 90, 5000), (rng.random(5000) < 0.1).astype(np.int8)
    scores = np.round(rng.normal(size=5000), 1).astype(dtype)
    scores[:6], labels[users == 7], labels[users == 8] = [np.inf, -np.inf, 0.0, -0.0, -0.0, 0.0], 0, 1
    for some in (slice(None), slice(0, 1), slice(0, 0)):
        rows = users[some], labels[some], scores[some]
        assert user_auc(*rows).equals(user_auc_by_two_sorts(*rows))


def test_users_with_one_class_are_null_and_not_counted():
    table = user_auc(np.array([7, 7, 3, 3, 5]), np.array([1, 1, 0, 1, 0]), np.array([0.1, 0.2, 0.3, 0.9, 0.5]))
    assert table.rows() == [(3, 1.0), (5, None), (7, None)]
    assert table.schema == {"user_index": pl.Int32, "auc": pl.Float64}
    assert gauc(table) == (1.0, 1)


def test_gauc_weighs_users_not_rows():
    users = np.array([0] * 10 + [1, 1])
    labels = np.array([1] * 5 + [0] * 5 + [1, 0])
    scores = np.array([1.0] * 5 + [0.0] * 5 + [0.0, 1.0])
    assert gauc(user_auc(users, labels, scores)) == (0.5, 2)


def test_all_labels_equal_is_no_value_rather_than_one_half():
    assert gauc(user_auc(np.arange(3), np.ones(3), np.arange(3.0))) == (None, 0)


def test_no_rows():
    table = user_auc(np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0))
    assert table.shape == (0, 2)
    assert gauc(table) == (None, 0)


def test_bad_rows_are_refused():
    with pytest.raises(DataError, match="NaN"):
        user_auc(np.zeros(2), np.array([0, 1]), np.array([0.0, math.nan]))
    with pytest.raises(DataError, match="labels 0 and 1"):
        user_auc(np.zeros(2), np.array([0, 2]), np.zeros(2))
