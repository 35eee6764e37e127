"""Sparse products of items and the largest values of their rows, against dense tables sorted whole."""

import numpy as np
import pytest
from references import dense_neighbours
from small_worlds import random_log

from dcclctl.compute import no_progress
from dcclctl.devices.memory import statistics
from dcclctl.devices.memory.statistics import StatisticsSettings
from dcclctl.events.groups import UserGroups
from dcclctl.models import neighbours
from dcclctl.models.neighbours import largest_of_rows, sparse_co_occurrences


@pytest.mark.parametrize("count", [1, 3, 8, 12])
def test_the_order_is_that_of_whole_rows_sorted_by_value_and_then_by_column(count: int) -> None:
    draw = np.random.default_rng(count)
    dense = draw.integers(0, 4, (40, 12)) * (
        draw.random((40, 12)) < draw.random((40, 1))
    )  # many ties, rows without values
    rows, columns = np.nonzero(dense | draw.integers(0, 2, dense.shape))  # some of the values given are 0
    mixed = np.lexsort((draw.random(len(rows)), rows))
    rows, columns = rows[mixed], columns[mixed]
    start = np.searchsorted(rows, np.arange(41))
    column, value = largest_of_rows(start, columns, dense[rows, columns].astype(np.float64), count)
    expected = np.argsort(-dense, axis=1, kind="stable")[:, :count]
    assert (column == expected).all()
    assert (value == np.take_along_axis(dense, expected, 1)).all()


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_sparse_products_are_those_of_the_weighted_matrix(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "_SPARSE_BLOCK", block)
    matrix = np.random.default_rng(0).random((15, 9)) < 0.3
    matrix[:, 4] = False
    users, items = np.nonzero(matrix)
    weights = np.random.default_rng(1).random(15)
    found = np.zeros((9, 9))
    firsts = []
    for first, start, columns, values in sparse_co_occurrences(users, items, 9, weights):
        firsts.append(first)
        found[first + np.repeat(np.arange(len(start) - 1), np.diff(start)), columns] = values
    assert found == pytest.approx(matrix.T @ np.diag(weights) @ matrix)
    assert (len(firsts) == 9, len(firsts) > 1)[block > 1] == (block < 1 << 20)


@pytest.mark.parametrize("count", [1, 4, 29])
@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
@pytest.mark.parametrize("n_items", [30, 300])
def test_nearest_items_are_those_of_the_dense_table_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, count: int, shrinkage: float, n_items: int
) -> None:
    monkeypatch.setattr(neighbours, "_SPARSE_BLOCK", 500)
    log = random_log(n_items=n_items)
    settings = StatisticsSettings(6, count, shrinkage, 3, 0)
    rows = np.flatnonzero(log.label > 0)
    for some in (rows, rows[:5], rows[:0]):
        counted = np.isin(np.arange(len(log.label)), some)
        events, _ = statistics._read(UserGroups.of(log), lambda log, counted=counted: counted, 3, 0, no_progress)
        found, expected = statistics._neighbours(events, settings, no_progress), dense_neighbours(log, some, settings)
        assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))
