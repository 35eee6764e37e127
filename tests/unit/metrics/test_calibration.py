import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from dcclctl.errors import DataError
from dcclctl.metrics.calibration import BINS, Reliability, expected_calibration_error, log_loss


def reliability(logits, labels, bins=BINS):
    found = Reliability(bins)
    found.add(logits, labels)
    return found.table()


def random_rows(rows=5000):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, rows)
    return logits, (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(int)


def test_log_loss_agrees_with_scikit_learn():
    logits, labels = random_rows()
    reference = sklearn_log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert log_loss(logits, labels).mean() == pytest.approx(reference, abs=1e-9)


def test_log_loss_of_extreme_logits_is_finite_and_exact():
    assert log_loss(np.array([1000.0, -1000.0, 1000.0, 0.0]), np.array([0, 1, 1, 1])).tolist() == [
        1000.0,
        1000.0,
        0.0,
        math.log(2),
    ]


def test_ece_agrees_with_a_plain_loop():
    logits, labels = random_rows()
    labels[:500] = 0  # Miscalibrated on purpose, so that the value is far from 0.
    probabilities = 1 / (1 + np.exp(-logits))
    expected = 0.0
    for number in range(15):
        own = (probabilities >= number / 15) & (probabilities < (number + 1) / 15)
        if own.any():
            expected += own.mean() * abs(probabilities[own].mean() - labels[own].mean())
    assert expected > 0.02
    assert expected_calibration_error(reliability(logits, labels)) == pytest.approx(expected, abs=1e-9)


def test_reliability_table():
    table = reliability(np.array([-50.0, 0.0, 0.0, 50.0]), np.array([0, 1, 0, 1]), bins=3)
    assert table["rows"].to_list() == [1, 2, 1]
    assert table["predicted"].to_list() == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)
    assert table["observed"].to_list() == [0.0, 0.5, 1.0]
    assert table["upper"].to_list()[-1] == 1.0
    assert expected_calibration_error(table) == pytest.approx(0.0, abs=1e-12)


def test_empty_bins_are_null_and_no_rows_give_no_value():
    table = reliability(np.array([50.0]), np.array([1]), bins=2)
    assert table["predicted"].to_list()[0] is None
    assert expected_calibration_error(reliability(np.empty(0), np.empty(0))) is None


def test_nan_logits_are_refused():
    with pytest.raises(DataError, match="NaN"):
        log_loss(np.array([math.nan]), np.array([1]))
    with pytest.raises(DataError, match="NaN"):
        reliability(np.array([math.nan]), np.array([1]))
