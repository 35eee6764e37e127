"""iALS against a plain loop over all pairs, the gradient of its loss, and in a world with a known answer."""

import numpy as np
import pytest
import torch
from scipy import sparse
from small_worlds import Row, log_of, random_log, scores

from dcclctl.events.log import CLOUD, TEST, EventLog
from dcclctl.models import ials
from dcclctl.models.ials import FoldIn, IalsSettings, item_factors, solve
from dcclctl.models.neighbours import HistoryBackbone
from dcclctl.models.positives import count_matrix

SETTINGS = IalsSettings(item_size=5, sweeps=3, unobserved=0.2, penalty=0.05)


def counts(seed: int = 0) -> np.ndarray:
    """(U, I) how often users had items; one user and one item without events, some more than once."""
    rng = np.random.default_rng(seed)
    found = rng.poisson(0.4, (12, 9)) * (rng.random((12, 9)) < 0.7)
    found[3], found[:, 5] = 0, 0
    return found.astype(float)


def by_loop(factors: np.ndarray, rows: np.ndarray, own: IalsSettings) -> np.ndarray:
    """Normal equations of each row, pair by pair."""
    width = factors.shape[1]
    solved = np.zeros((len(rows), width))
    for row, values in enumerate(rows):
        penalty = own.penalty * (values.sum() + own.unobserved * len(values))
        matrix, target = penalty * np.eye(width), np.zeros(width)
        for value, h in zip(values, factors, strict=True):
            matrix += (value + own.unobserved) * np.outer(h, h)
            target += value * h
        solved[row] = np.linalg.solve(matrix, target)
    return solved


def counted(log: EventLog) -> sparse.csr_array:
    """(T, I) how often users had items in the first period."""
    rows = log.events_in(CLOUD)
    return count_matrix(log, rows[log.label[rows] > 0])[1]


def backbone_of(log: EventLog, settings: IalsSettings = SETTINGS) -> HistoryBackbone:
    return HistoryBackbone(FoldIn(item_factors(counted(log), settings, 0), settings), log, torch.ones(log.n_items))


@pytest.mark.parametrize("block", [1, 40, 1 << 21])
def test_a_step_solves_the_normal_equations_of_every_row(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(ials, "_BLOCK", block)
    rows = counts()
    factors = np.random.default_rng(1).normal(size=(9, 5))
    found = solve(torch.from_numpy(factors), sparse.csr_array(rows), SETTINGS).numpy()
    assert found == pytest.approx(by_loop(factors, rows, SETTINGS), rel=1e-9, abs=1e-12)
    assert (found[3] == 0).all()


def test_the_solution_is_where_the_loss_is_flat() -> None:
    rows = torch.from_numpy(counts())
    factors = torch.from_numpy(np.random.default_rng(1).normal(size=(9, 5)))
    users = solve(factors, sparse.csr_array(rows.numpy()), SETTINGS).requires_grad_()
    predicted = users @ factors.T
    penalty = SETTINGS.penalty * (rows.sum(1) + SETTINGS.unobserved * 9) * users.square().sum(1)
    loss = (rows * (1 - predicted).square()).sum() + SETTINGS.unobserved * predicted.square().sum() + penalty.sum()
    loss.backward()
    assert users.grad.abs().max() < 1e-9
    assert loss < rows.sum()  # that of users without factors


def test_sweeps_alternate_between_users_and_items() -> None:
    log = random_log()
    rows = log.events_in(CLOUD)
    rows = rows[log.label[rows] > 0]
    matrix = np.zeros((log.n_users, log.n_items))
    np.add.at(matrix, (log.user[rows], log.item[rows]), 1)
    assert matrix.max() > 1
    once = IalsSettings(**{**SETTINGS.model_dump(), "sweeps": 1})
    factors = item_factors(counted(log), once, 0)
    expected = factors.numpy()
    for _ in range(SETTINGS.sweeps - 1):
        expected = by_loop(by_loop(expected, matrix, SETTINGS), matrix.T, SETTINGS)
    found = item_factors(counted(log), SETTINGS, 0)
    assert found.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert torch.equal(found, item_factors(counted(log), SETTINGS, 0))
    assert not torch.equal(factors, item_factors(counted(log), once, 1))


def test_a_user_is_folded_in_from_what_is_strictly_earlier() -> None:
    log = random_log()
    backbone, events = backbone_of(log), log.events_in(TEST)
    factors = backbone.model.factors.numpy()
    past = np.zeros((len(events), log.n_items))
    for row, event in enumerate(events):
        np.add.at(past[row], log.sequence[log.history_start[event] : log.history_end[event]].numpy(), 1)
    expected = by_loop(factors, past, SETTINGS) @ factors.T + 1e-6
    found = scores(backbone, events)
    assert found.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.allclose(found, scores(backbone, events, batch_events=1), rtol=1e-6, atol=1e-7)


def test_two_tastes_are_told_apart_also_for_users_that_training_never_saw() -> None:
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for user in range(40):
        for at, item in enumerate(user % 2 * 10 + rng.permutation(10)[:8]):
            rows.append((user, int(item), at, 1, TEST if at > 5 or user >= 30 else CLOUD))
    log = log_of(rows, 40, 20)
    events = log.events_in(TEST)
    events = events[(log.user[events] >= 30) & (log.history_end[events] - log.history_start[events] > 2)]
    found = scores(backbone_of(log, IalsSettings(item_size=2)), events).numpy()
    own = (log.item[events][:, None] < 10) == (np.arange(20) < 10)
    assert len(events) > 20 and found[own].min() > found[~own].max()
