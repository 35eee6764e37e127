"""Factors of items: those of matrix factorisation, and a user's own without solving for them."""

import numpy as np
import pytest
import torch
from scipy import sparse

from dcclctl.compute import Phase, no_progress
from dcclctl.devices.memory import factors as module
from dcclctl.devices.memory.factors import improve, in_the_basis_of_events, item_factors, sweeps
from dcclctl.models.ials import IalsSettings, solve

N_USERS, N_ITEMS = 60, 40


def counts(seed: int = 0, share: float = 0.2) -> np.ndarray:
    """(U, I) events of two groups of users, each with items of its own half most of the time."""
    draw = np.random.default_rng(seed)
    own = (np.arange(N_USERS)[:, None] % 2) == (np.arange(N_ITEMS) % 2)
    return draw.poisson(np.where(own, share, share / 10))


def found(given: np.ndarray, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    order = np.random.default_rng(3).permutation(int(given.sum()))
    user, item = (np.repeat(each, given[given > 0]).astype(np.int32)[order] for each in np.nonzero(given))
    return item_factors(user, item, given.shape[1], size, seed, Phase(no_progress, "", sweeps(), ""))


def test_many_steps_solve_for_the_factors_of_ials() -> None:
    others = np.random.default_rng(1).normal(size=(N_ITEMS, 6)) * 0.3
    rows = sparse.csr_array(counts(share=0.8))
    expected = solve(torch.from_numpy(others), rows, IalsSettings(unobserved=0.1, penalty=0.003)).numpy()
    far, near, exact = (np.zeros((N_USERS, 6)) for _ in range(3))
    for factors, steps in ((far, 1), (near, 3), (exact, 30)):
        improve(factors, rows, others, steps)
    np.testing.assert_allclose(exact, expected, atol=1e-8)
    errors = [np.abs(factors - expected).max() for factors in (far, near)]
    assert errors[1] < errors[0] / 2


def test_damped_sums_are_the_solution_with_what_an_event_adds_on_average() -> None:
    draw = np.random.default_rng(2)
    raw, events = draw.normal(size=(N_ITEMS, 5)) * 0.3, draw.integers(1, 9, N_ITEMS)
    factors, damping = in_the_basis_of_events(torch.from_numpy(raw), torch.from_numpy(events))
    alone = 0.1 * raw.T @ raw + 0.003 * 0.1 * N_ITEMS * np.eye(5)
    each = (raw * (events / events.sum())[:, None]).T @ raw + 0.003 * np.eye(5)
    for held, weights in (([3], [1.0]), ([3, 8, 3, 20], [1.0, 0.9, 0.81, 0.729])):
        n = sum(weights)
        solved = raw @ np.linalg.solve(alone + n * each, np.array(weights) @ raw[held])
        own = torch.tensor(weights) @ factors[held] / (1 + n * damping)
        np.testing.assert_allclose((factors @ own).numpy(), solved, rtol=1e-4, atol=1e-5)


def test_a_user_of_one_group_fits_items_of_that_group_also_those_never_had_together() -> None:
    given = counts()
    factors, damping = found(given, 4)
    together = given.T @ given
    scores = (factors / (1 + damping)) @ factors.mT  # (held, candidate)
    half = np.arange(N_ITEMS) % 2
    strangers = (together == 0) & (given.sum(0) > 2) & (given.sum(0)[:, None] > 2)
    same = strangers & (half == half[:, None])
    assert same.sum() > 20
    apart = strangers & ~same
    assert float(scores[torch.from_numpy(same)].mean()) > float(scores[torch.from_numpy(apart)].mean()) + 0.01


def test_threads_change_nothing_and_blocks_nothing_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    given, threads = counts(), torch.get_num_threads()
    one = found(given, 8)
    torch.set_num_threads(2)
    try:
        again = found(given, 8)
        assert again[0].equal(one[0]) and again[1].equal(one[1]) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert not found(given, 8, seed=1)[0].equal(one[0])
    monkeypatch.setattr(module, "_PAIRS", 7)
    factors, damping = found(given, 8)
    torch.testing.assert_close(damping, one[1])
    torch.testing.assert_close(factors.double() @ factors.double().mT, one[0].double() @ one[0].double().mT)


def test_some_users_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given = counts()
    nobody = np.vstack([given, np.zeros((9, N_ITEMS), dtype=np.int64)])
    assert found(nobody, 4)[0].equal(found(given, 4)[0])
    monkeypatch.setattr(module, "_EVENTS", int(given.sum()) // 3)
    some = found(given, 4)[0]
    assert some.equal(found(given, 4)[0]) and not some.equal(found(given, 4, seed=1)[0])
    monkeypatch.setattr(module, "_EVENTS", 1)
    assert found(given, 4)[0].any()  # a user with more events than asked for is not left out


def test_without_events_there_is_nothing_to_say() -> None:
    factors, damping = found(np.zeros((4, 6), dtype=np.int64), 8)
    assert factors.equal(torch.zeros(6, 8))
    assert damping.isfinite().all()
