"""Adam against torch's own, and what it does not import."""

import subprocess
import sys

import pytest
import torch
from small_worlds import din, frozen, normal, random_log

from dcclctl.models.adam import Adam, LazyAdam


@pytest.fixture(scope="module")
def log():
    return random_log()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_dense_adam_is_torchs_adamw(decay):
    ours, theirs = ([torch.nn.Parameter(normal(4, 3, seed=1)), torch.nn.Parameter(normal(5, seed=2))] for _ in range(2))
    own, reference = Adam(ours, 0.01, decay), torch.optim.AdamW(theirs, lr=0.01, weight_decay=decay)
    for step in range(6):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = normal(*mine.shape, seed=step)
            other.grad = mine.grad.clone()
        own.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_weight_without_a_gradient_is_a_bug():
    optimiser = Adam([torch.nn.Parameter(torch.zeros(3))], 0.01)
    with pytest.raises(RuntimeError, match="no gradient"):
        optimiser.step()


def test_adam_does_not_import_torchs_compiler():
    script = """
import sys, torch
from dcclctl.models.adam import Adam
weight = torch.nn.Parameter(torch.zeros(3))
optimiser = Adam([weight], 0.01)
weight.grad = torch.ones(3)
optimiser.step()
assert weight.detach().any()
print("torch._dynamo" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_lazy_adam_is_torchs_adam_where_every_row_is_touched(log):
    """Item rows against Adam with an L2 penalty, everything else against Adam without."""
    model, reference = din(log), din(log)
    ours = LazyAdam(model, 0.01, weight_decay=0.1)
    weights = dict(reference.named_parameters())
    theirs = torch.optim.Adam(
        [{"params": [weights["item_table"]], "weight_decay": 0.1}, {"params": [weights[name] for name in ours.dense]}],
        lr=0.01,
    )
    everything = torch.arange(log.n_items)
    for step in range(6):
        for place, name in enumerate(weights):
            gradient = normal(*weights[name].shape, seed=100 * step + place)
            weights[name].grad = gradient
            ours.weights[name].grad = gradient.clone()
        ours.step(everything, ours.weights["item_table"].grad)
        theirs.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=1e-5)


def test_lazy_adam_is_torchs_sparse_adam_on_the_rows_of_a_batch(log):
    model = din(log)
    ours = LazyAdam(model, 0.01, weight_decay=0.0)
    table = torch.nn.Parameter(model.item_table.detach().clone())
    theirs = torch.optim.SparseAdam([table], lr=0.01)
    for step in range(6):
        items = torch.randperm(log.n_items, generator=torch.Generator().manual_seed(step))[:7]
        gradient = normal(7, 6, seed=step)
        for name in ours.dense:
            ours.weights[name].grad = torch.zeros_like(ours.weights[name])
        before = frozen(model.item_table)
        ours.step(items, gradient)
        assert frozen(model.item_table) != before
        table.grad = torch.sparse_coo_tensor(items[None], gradient, table.shape, check_invariants=True).coalesce()
        theirs.step()
    torch.testing.assert_close(model.item_table, table, atol=1e-6, rtol=1e-5)


def test_rows_outside_a_batch_do_not_move(log):
    model = din(log)
    optimiser = LazyAdam(model, 0.01, weight_decay=0.1)
    for name in optimiser.dense:
        optimiser.weights[name].grad = torch.zeros_like(optimiser.weights[name])
    others = torch.tensor([i for i in range(log.n_items) if i not in (3, 8)])
    before = frozen(model.item_table[others])
    optimiser.step(torch.tensor([3, 8]), normal(2, 6))
    assert frozen(model.item_table[others]) == before
    assert not optimiser.state["item_table.m"][others].any()
    assert optimiser.state["item_table.m"][[3, 8]].all()
