"""Patches after the state of a sequence model: identities, gradients, and what they learn."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_worlds import frozen, local, normal, random_log
from torch.nn import functional as F

from dcclctl.devices import state_patch
from dcclctl.devices.basis import EPSILON, JointFit, SharedEvents, learn_basis, new_basis
from dcclctl.devices.state_patch import StateBasis, StatePatch, StateRows, StateShape
from dcclctl.errors import DivergedError
from dcclctl.events.log import EventLog
from dcclctl.events.sampler import Samples
from dcclctl.models.sequence import Gru4rec, Sasrec, SequenceBackbone, SequenceSettings
from dcclctl.models.windows import Baskets

U, N, C, D, R, K = 5, 7, 4, 6, 3, 4


def basis_of(size: int = D, seed: int = 0) -> StateBasis:
    return new_basis(StateShape(size, R), K, seed)


def rows_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> StateRows:
    """Users with 1 to N events; the first candidate of each is positive."""
    labels = torch.zeros(U, N, C, dtype=dtype)
    labels[..., 0] = 1
    weights = torch.ones(U, N, C, dtype=dtype)
    for user in range(U):
        weights[user, 1 + user * (N - 1) // (U - 1) :] = 0
    return StateRows(
        normal(U, N, D, seed=seed, dtype=dtype),
        normal(U, N, C, D, seed=seed + 1, dtype=dtype),
        normal(U, N, C, seed=seed + 2, dtype=dtype),
        labels,
        weights,
    )


def first_events(rows: StateRows) -> StateRows:
    """The first event of each user."""
    return StateRows(*(values[:, :1] for values in vars(rows).values()))


def drawn_from(events: StateRows, users: np.ndarray | None = None) -> tuple[SharedEvents, Callable]:
    """What a basis is learned from: the same candidates each epoch (events as rows, N = 1), and the patched model on them.

    users: of the events; one each if not given.
    """
    catalogue, biases = events.items.flatten(0, 2), events.bias.flatten()
    candidates = torch.arange(len(catalogue)).view(len(events.labels), -1)
    each = np.arange(len(candidates))
    samples = Samples(each, candidates, events.labels[:, 0], events.weights[:, 0])
    shared = SharedEvents(each, each if users is None else users, lambda epoch: samples)
    return shared, state_patch.frozen_states(events.states[:, 0], lambda wanted: (catalogue[wanted], biases[wanted]))


def test_what_a_basis_is_learned_from_is_the_patched_model():
    events, patch = first_events(rows_of()), basis_of().patch(normal(U, K))
    shared, logits = drawn_from(events)
    some = np.array([3, 0])
    index = torch.from_numpy(some)
    chosen = StatePatch(*(piece[index] for piece in vars(patch).values()))
    found = logits(some, shared.draw(0).candidates[index], chosen)
    torch.testing.assert_close(found, events.logits(patch)[index, 0])
    assert not torch.isclose(found, events.logits(basis_of().patch(torch.zeros(U, K)))[index, 0]).any()


def test_origin_changes_nothing_and_columns_have_length_one():
    basis = basis_of()
    assert basis.shape.size == 2 * R * D + D and basis.theta.shape == (basis.shape.size, K)
    torch.testing.assert_close(basis.theta.norm(dim=0), torch.ones(K))
    patch = basis.patch(torch.zeros(2, K))
    assert patch.down.abs().min() > 0 and not patch.up.any() and not patch.offset.any()
    assert not patch.change(normal(2, N, D)).any()
    assert torch.equal(basis_of().theta, basis.theta) and not torch.equal(basis_of(seed=1).theta, basis.theta)


def test_a_patch_is_the_formula_that_it_says():
    basis, states, codes = basis_of(), normal(2, D), normal(2, K)
    found = state_patch.patched_states(states, basis, codes)
    for user in range(2):
        weights = (basis.origin + basis.theta @ codes[user]).numpy()
        down, up, offset = weights[: R * D].reshape(R, D), weights[R * D : -D].reshape(D, R), weights[-D:]
        s = states[user].numpy()
        np.testing.assert_allclose(found[user].numpy(), s + up @ np.tanh(down @ s) + offset, atol=1e-5)


def backbone_of(log: EventLog, kind: type[Sasrec | Gru4rec]) -> SequenceBackbone:
    sizes = SequenceSettings(history=6, item_size=6, category_size=4)
    return SequenceBackbone(kind(log, sizes, torch.Generator().manual_seed(0)), log, Baskets(log))


@pytest.mark.parametrize("kind", [Sasrec, Gru4rec])
def test_a_zero_code_gives_the_clouds_logits_to_the_last_bit(kind):
    log = random_log()
    backbone, codes = backbone_of(log, kind), normal(log.n_users, K)
    codes[::2] = 0
    head = state_patch.state_head(backbone, basis_of(backbone.embeddings.shape[1]), codes)
    events = log.events_in(2, 3)
    states = backbone.activations(events, None)
    for candidates in (None, torch.arange(30).expand(len(events), -1)[:, ::3]):
        cloud, patched = backbone.head(events, candidates, states), head(events, candidates, states)
        unpatched = torch.from_numpy(log.user[events] % 2 == 0)
        assert torch.equal(patched[unpatched], cloud[unpatched])
        assert not torch.isclose(patched[~unpatched], cloud[~unpatched]).all(1).any()


def test_the_gradient_by_hand_is_autograds():
    rows = rows_of(dtype=torch.float64)
    basis = basis_of()
    weights = (basis.origin + normal(U, K) @ basis.theta.T).double().requires_grad_()
    patch = basis.shape.patch(weights)
    rows.losses(patch).sum().backward()
    with torch.no_grad():
        found = state_patch.device_gradient(rows, patch)
    torch.testing.assert_close(found, weights.grad)
    assert found.abs().min() > 0


def one_by_one(
    rows: StateRows, basis: StateBasis, user: int, steps: int, rate: float, prior: float, mean: torch.Tensor
) -> torch.Tensor:
    """A device by itself: its own events only, one at a time, torch's own Adam."""
    code = mean.clone().requires_grad_()
    optimiser = torch.optim.Adam([code], lr=rate, eps=EPSILON)
    for _ in range(steps):
        loss = prior * (code - mean).square().sum()
        weights = basis.origin + basis.theta @ code
        down, up, offset = weights[: R * D].view(R, D), weights[R * D : -D].view(D, R), weights[-D:]
        for n in range(N):
            s = rows.states[user, n]
            logits = rows.items[user, n] @ (s + up @ torch.tanh(down @ s) + offset) + rows.bias[user, n]
            losses = F.binary_cross_entropy_with_logits(logits, rows.labels[user, n], reduction="none")
            loss = loss + (losses * rows.weights[user, n]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return code.detach()


def test_all_users_at_once_learn_what_each_learns_alone():
    rows, basis = rows_of(), basis_of()
    for mean in (torch.zeros(K), torch.linspace(-0.5, 0.8, K)):
        codes = state_patch.fit_devices(basis, rows, local(12, 0.05, 0.3), mean)
        assert (codes - mean).abs().max() > 0.1
        for user in range(U):
            alone = one_by_one(rows, basis, user, 12, 0.05, 0.3, mean)
            torch.testing.assert_close(codes[user], alone, rtol=1e-3, atol=1e-4)


def test_what_has_no_weight_teaches_nothing():
    rows, basis = rows_of(), basis_of()
    other = replace(
        rows,
        labels=torch.where(rows.weights > 0, rows.labels, 1 - rows.labels),
        items=torch.where(rows.weights.unsqueeze(-1) > 0, rows.items, 3.0),
    )
    fit = state_patch.fit_devices(basis, rows, local(5, 0.05, 0.3))
    assert torch.equal(state_patch.fit_devices(basis, other, local(5, 0.05, 0.3)), fit)
    nothing = replace(rows, weights=torch.zeros_like(rows.weights))
    assert not state_patch.fit_devices(basis, nothing, local(5, 0.05, 0.3)).any()
    mean = torch.linspace(-0.5, 0.8, K)
    assert torch.equal(state_patch.fit_devices(basis, nothing, local(5, 0.05, 0.3), mean), mean.repeat(U, 1))


def test_patches_lower_the_loss_and_the_prior_keeps_them_small():
    rows, basis = rows_of(), basis_of()
    before = rows.losses(basis.patch(torch.zeros(U, K)))
    weak, strong = (state_patch.fit_devices(basis, rows, local(60, 0.05, prior)) for prior in (0.01, 100.0))
    assert (rows.losses(basis.patch(weak)) < before).all()
    assert (strong.norm(dim=1) < 0.2 * weak.norm(dim=1)).all()


def test_the_basis_learns_what_users_have_in_common():
    """Each user likes items on one side of a hidden direction of the state: one column of Θ tells them apart."""
    rng = np.random.default_rng(0)
    n_users, n_events = 30, 12
    taste = np.repeat(np.where(np.arange(n_users) % 2, 1.0, -1.0), n_events)
    users = np.repeat(np.arange(n_users), n_events)
    items = torch.from_numpy(rng.normal(size=(len(users), 1, 2, D))).float()
    items[:, 0, 0, 0], items[:, 0, 1, 0] = torch.from_numpy(taste).float(), -torch.from_numpy(taste).float()
    items[:, 0, :, 1:] = items[:, 0, :1, 1:]  # the two candidates differ in the hidden direction alone
    labels = torch.tensor([1.0, 0.0]).expand(len(users), 1, 2)
    states = torch.from_numpy(rng.normal(size=(len(users), 1, D))).float()
    whole = StateRows(states, items, torch.zeros(len(users), 1, 2), labels, torch.ones(len(users), 1, 2))

    start, losses = basis_of(), []
    kept = frozen(start.origin, start.theta)
    learned, mean, _ = learn_basis(
        start,
        *drawn_from(whole, users),
        JointFit(30, 0.05, 0.1, seed=0, batch_size=64, on_epoch=lambda epoch, loss: losses.append(loss)),
    )
    assert frozen(start.origin, start.theta) == kept and torch.equal(learned.origin, start.origin)
    torch.testing.assert_close(learned.theta.norm(dim=0), torch.ones(K))
    assert losses[-1] < 0.5 * losses[0]
    assert not mean.any()  # nobody asked for one
    devices = StateRows(*(values.view(n_users, n_events, *values.shape[2:]) for values in vars(whole).values()))
    after = {}
    for name, basis in (("random", start), ("learned", learned)):
        codes = state_patch.fit_devices(basis, devices, local(15, 0.05, 0.1))
        after[name] = float(devices.losses(basis.patch(codes)).mean())
    assert after["learned"] < 0.7 * after["random"]


def test_the_mean_learns_what_all_users_share():
    """Every user prefers the same side: μ takes it up, and a user without any event has it too."""
    rng = np.random.default_rng(3)
    n_users, n_events = 30, 6
    users = np.repeat(np.arange(n_users), n_events)
    items = torch.from_numpy(rng.normal(size=(len(users), 1, 2, D))).float()
    items[:, 0, 0, 0], items[:, 0, 1, 0] = 1.0, -1.0
    items[:, 0, :, 1:] = items[:, 0, :1, 1:]
    states = torch.from_numpy(rng.normal(size=(len(users), 1, D))).float()
    labels = torch.tensor([1.0, 0.0]).expand(len(users), 1, 2)
    whole = StateRows(states, items, torch.zeros(len(users), 1, 2), labels, torch.ones(len(users), 1, 2))

    basis, mean, _ = learn_basis(
        basis_of(), *drawn_from(whole, users), JointFit(30, 0.05, 10.0, seed=0, batch_size=64), with_mean=True
    )
    before, after = (whole.losses(basis.patch(codes.repeat(len(users), 1))).mean() for codes in (0 * mean, mean))
    assert after < 0.5 * before


def test_divergence_is_said():
    rows, basis = rows_of(), basis_of()
    with pytest.raises(DivergedError, match="infinite"):
        state_patch.fit_devices(basis, replace(rows, states=rows.states * float("inf")), local(3, 0.05, 0.3))
    with pytest.raises(DivergedError, match="Θ became"):
        learn_basis(basis, *drawn_from(first_events(rows_of())), JointFit(3, 1e30, 0.1, seed=0))
