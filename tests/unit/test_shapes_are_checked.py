"""Shapes stand in the signatures, and are checked when the tests run: the hook of tests/conftest.py is at work."""

import pytest
import torch
from shapes import SignatureError
from small_worlds import din, normal, random_log

from dcclctl.devices.hidden_patch import DeviceRows
from dcclctl.devices.placebos import mean_code
from dcclctl.distillation.teachers import bernoulli_kl
from dcclctl.evaluation.lists import best_columns
from dcclctl.models.training import snapshot


def test_a_wrong_shape_is_refused():
    model = din(random_log())
    d = model.embedding_size
    mask = torch.ones(2, 3, dtype=torch.bool)
    model.interest(normal(2, 4, d), normal(2, 3, d), mask)
    with pytest.raises(SignatureError, match="mask"):
        model.interest(normal(2, 4, d), normal(2, 3, d), mask[:, :2])


def test_a_wrong_type_is_refused():
    with pytest.raises(SignatureError, match="student"):
        bernoulli_kl(normal(3), torch.zeros(3, dtype=torch.int64))


def test_a_record_of_mismatched_tensors_is_refused():
    with pytest.raises(SignatureError):
        DeviceRows(normal(2, 5, 4), normal(2, 4), normal(2, 5))


def test_every_room_with_tensors_is_checked():
    """A function of each room that is given something else than it says."""
    log = random_log()
    for call in (
        lambda: log.histories([1, 2], 5),
        lambda: snapshot(log),
        lambda: mean_code(normal(3), torch.ones(3)),
        lambda: bernoulli_kl(1.0, 2.0),
        lambda: best_columns(normal(3), 2),
    ):
        with pytest.raises(SignatureError):
            call()
