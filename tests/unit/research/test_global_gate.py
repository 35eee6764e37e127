"""Gates that say who is served by a patch: what they keep, what they lose, and whom they spare."""

import gate
import numpy as np
import pytest


def test_harm_counts_those_who_keep_the_patch_alone() -> None:
    rng = np.random.default_rng(0)
    lasting = np.concatenate([rng.normal(2, 1, 4000), rng.normal(-2, 1, 1000)])
    valid, test = (lasting + rng.normal(0, 3, 5000) for _ in range(2))
    everybody, good = np.ones(5000, dtype=bool), np.arange(5000) < 4000
    # of normal gains with mean 2 and spread 1 2.3 % lie below zero; four fifths of the users keep the patch
    assert gate.harm(valid, test, good) == pytest.approx(0.8 * 0.0228, abs=0.01)
    assert gate.harm(valid, test, everybody) > 0.2
    assert gate.harm(valid, test, np.zeros(5000, dtype=bool)) == 0
    low, high = gate.interval(valid[::5], test[::5], good[::5], resamples=200)
    assert low < gate.harm(valid[::5], test[::5], good[::5]) < high


def test_a_threshold_loses_at_most_a_tenth_of_the_gain() -> None:
    score = np.arange(100.0)
    gain = np.where(score < 40, 0.1, 1.0)  # the first forty users have 6 % of all
    on = gate.chosen(score, gain)
    kept = (gain * on).sum() / gain.sum()
    assert 0.9 <= kept < 0.93 and not on[:40].any() and on[50:].all()
    assert gate.chosen(score, -np.ones(100)).sum() <= 100


def test_a_prediction_comes_from_the_other_half_of_the_users() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2000, 3))
    gain = features @ [1.0, -2.0, 0.0] + rng.normal(0, 1, 2000)
    assert np.corrcoef(gate.crossed(features, gain), gain)[0, 1] > 0.85
    # of pure noise nothing can be foretold for others, however many features there are
    noise = rng.normal(size=2000)
    assert abs(np.corrcoef(gate.crossed(rng.normal(size=(2000, 200)), noise)[0:], noise)[0, 1]) < 0.08
