import dataclasses

import numpy as np
import pytest
import torch
from small_worlds import basis_for, din, frozen, local, normal, random_log, samples_of, shown_with
from torch.nn import functional as F

from dcclctl.devices.basis import EPSILON, JointFit, SharedEvents, learn_basis, new_basis
from dcclctl.devices.hidden_patch import (
    Basis,
    DeviceRows,
    Head,
    PatchShape,
    device_gradient,
    fit_devices,
    frozen_head,
    head_logits,
    patched_logits,
)
from dcclctl.errors import DivergedError
from dcclctl.events.log import DEVICE
from dcclctl.models.din import Din

PIECES = ("down_1", "up_1", "down_2", "up_2", "out", "bias")
STEPS = local(12, 0.03, 1.0)
MANY = local(15, 0.03, 10.0)


def rows_of(counts: list[int], width: int, seed: int = 0) -> DeviceRows:
    """Users with so many rows each, padded with garbage of weight 0; some rows within are held back too."""
    n = max(counts)
    weights = (torch.arange(n) < torch.tensor(counts)[:, None]).float()
    if n > 3:
        weights[:, 2] *= 0
    return DeviceRows(normal(len(counts), n, width, seed=seed), (normal(len(counts), n, seed=1) > 0).float(), weights)


def double(thing):
    """A record of tensors, in float64."""
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return type(thing)(**{name: x.double() if isinstance(x, torch.Tensor) else x for name, x in fields.items()})


def linear(head: Head, rows: DeviceRows) -> torch.Tensor:
    return rows.z1 @ head.weight_2.T + head.bias_2


@pytest.fixture(scope="module")
def model() -> Din:
    return din(random_log(), scale=10)


@pytest.fixture(scope="module")
def basis(model) -> Basis:
    return basis_for(model)


# The identity: a zero patch is the cloud model


def test_a_zero_patch_is_the_cloud_model_to_the_last_bit(model, basis):
    z1 = normal(9, 5, 12)
    cloud = model.logits(model.second_layer(z1))
    assert torch.equal(patched_logits(model, z1, basis.patch(torch.zeros(9, 4))), cloud)


def test_a_zero_patch_among_others_is_the_cloud_model_to_the_last_bit(model, basis):
    z1, codes = normal(9, 5, 12), normal(9, 4)
    codes[[0, 4, 5]] = 0
    cloud = model.logits(model.second_layer(z1))
    patched = patched_logits(model, z1, basis.patch(codes))
    assert torch.equal(patched[[0, 4, 5]], cloud[[0, 4, 5]])
    others = [1, 2, 3, 6, 7, 8]
    assert (patched[others] != cloud[others]).all()


def test_a_zero_patch_is_the_cloud_model_at_the_sizes_of_real_runs():
    log = random_log(n_users=40, n_items=60, n_events=60)
    model = din(log, hidden_sizes=(64, 32), scale=10)
    basis = new_basis(PatchShape((64, 32), 8), 16, seed=0)
    samples = samples_of(log, DEVICE, negatives=4)
    with torch.no_grad():
        z1 = shown_with(model, 20).first_layer_of_few(log, samples.events, samples.candidates)
        cloud = model.logits(model.second_layer(z1))
        assert torch.equal(patched_logits(model, z1, basis.patch(torch.zeros(len(z1), 16))), cloud)


def test_no_piece_of_a_new_patch_works_before_it_is_trained(model, basis):
    patch = basis.patch(torch.zeros(1, 4))
    for name in ("up_1", "up_2", "out", "bias"):
        assert not getattr(patch, name).any()
    for name in ("down_1", "down_2"):  # else no gradient would reach anything
        assert getattr(patch, name).all()


# Layout


def test_pieces_are_a_partition_of_the_weights():
    shape = PatchShape((12, 7), 3)
    assert tuple(shape.parts) == PIECES
    assert shape.size == 3 * 12 + 12 * 3 + 3 * 7 + 7 * 3 + 7 + 1
    weights = torch.arange(2 * shape.size).float().view(2, -1)
    patch = shape.patch(weights)
    pieces = [getattr(patch, name) for name in PIECES]
    assert [tuple(piece.shape[1:]) for piece in pieces] == list(shape.parts.values())
    assert torch.equal(torch.cat([piece.flatten(1) for piece in pieces], dim=1), weights)


def test_weights_are_origin_plus_basis_times_code(basis):
    codes = normal(5, 4)
    for user in range(5):
        expected = basis.origin + basis.theta @ codes[user]
        torch.testing.assert_close(basis.weights(codes)[user], expected)


def test_columns_of_a_new_basis_have_length_one_and_depend_on_the_seed():
    shape = PatchShape((12, 7), 3)
    basis, same, other = (new_basis(shape, 4, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(basis.theta.norm(dim=0), torch.ones(4))
    assert torch.equal(basis.theta, same.theta)
    assert torch.equal(basis.origin, same.origin)
    assert not torch.equal(basis.theta, other.theta)
    assert not torch.equal(basis.origin, other.origin)


def test_the_patched_model_is_the_papers_equation(model, basis):
    """f_l(x) + h_l(f_l(x)) after both hidden layers, one user at a time, with plain layers."""
    z1, codes = normal(3, 5, 12), normal(3, 4)
    patched = patched_logits(model, z1, basis.patch(codes))
    for user in range(3):
        flat = basis.origin + basis.theta @ codes[user]
        pieces = flat.split([36, 36, 21, 21, 7, 1])
        down_1, up_1, down_2, up_2 = (
            p.view(s) for p, s in zip(pieces, [(3, 12), (12, 3), (3, 7), (7, 3)], strict=False)
        )
        x = z1[user]
        x = x + F.linear(torch.tanh(F.linear(x, down_1)), up_1)
        x = F.prelu(model.hidden_2(x), model.slope_2)
        x = x + F.linear(torch.tanh(F.linear(x, down_2)), up_2)
        expected = F.linear(x, model.out.weight + pieces[4], model.out.bias + pieces[5])
        torch.testing.assert_close(patched[user], expected[:, 0], atol=1e-6, rtol=1e-5)


def test_the_three_forms_of_the_patched_head_agree(model, basis):
    head, rows, codes = Head.of(model), rows_of([6, 6, 6], 12), normal(3, 4)
    patch = basis.patch(codes)
    reference = patched_logits(model, rows.z1, patch)
    torch.testing.assert_close(head_logits(head, rows.z1, patch), reference, atol=1e-6, rtol=1e-5)
    _, logits = device_gradient(head, patch, rows, linear(head, rows))
    torch.testing.assert_close(logits, reference, atol=1e-6, rtol=1e-5)


# The gradient by hand


@pytest.mark.parametrize("piece", PIECES)
def test_the_gradient_by_hand_is_autograds(model, basis, piece):
    head, rows = double(Head.of(model)), double(rows_of([7, 3, 1], 12))
    weights = double(basis).weights(normal(3, 4, dtype=torch.float64)).requires_grad_()
    patch = basis.shape.patch(weights)
    logits = head_logits(head, rows.z1, patch)
    F.binary_cross_entropy_with_logits(logits, rows.labels, rows.weights, reduction="sum").backward()
    by_hand, _ = device_gradient(head, basis.shape.patch(weights.detach()), rows, linear(head, rows))
    ours, autograd = (getattr(basis.shape.patch(gradient), piece) for gradient in (by_hand, weights.grad))
    assert autograd.flatten(1).any(1).all()
    torch.testing.assert_close(ours, autograd, atol=1e-12, rtol=1e-9)


def test_rows_without_weight_have_no_gradient(model, basis):
    head, rows, patch = Head.of(model), rows_of([5, 5], 12), basis.patch(normal(2, 4))
    nothing = dataclasses.replace(rows, weights=torch.zeros_like(rows.weights))
    gradient, _ = device_gradient(head, patch, nothing, linear(head, rows))
    assert not gradient.any()


# Training on devices


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0, 0.0), (0.3, -1.2, 0.0, 0.7)])
def test_devices_learn_as_torchs_adam_would(model, basis, mean):
    """Σ CE + λ‖θ̂ − μ‖² from μ on, by autograd and torch.optim.Adam, user by user, in float64."""
    head, wide, rows = double(Head.of(model)), double(basis), double(rows_of([7, 3, 1], 12))
    mu = torch.tensor(mean, dtype=torch.float64)
    ours = fit_devices(head, wide, rows, STEPS, mu)
    for user in range(3):
        code = mu[None].clone().requires_grad_()
        optimiser = torch.optim.Adam([code], lr=STEPS.learning_rate, eps=EPSILON)
        for _ in range(STEPS.steps):
            optimiser.zero_grad()
            logits = head_logits(head, rows.z1[user : user + 1], wide.patch(code))[0]
            losses = F.binary_cross_entropy_with_logits(logits, rows.labels[user], reduction="none")
            loss = (losses * rows.weights[user]).sum() + STEPS.prior * (code - mu).square().sum()
            loss.backward()
            optimiser.step()
        torch.testing.assert_close(ours[user], code.detach()[0], atol=1e-9, rtol=1e-7)


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm(dim=-1).div(theirs.norm(dim=-1)).max())


COUNTS = [1, 40, 3, 17, 200, 8, 2, 90]


@pytest.fixture(scope="module")
def many():
    """Users with 1 to 200 rows, at the sizes of real runs, and what each learns alone, without any padding."""
    model = din(random_log(), hidden_sizes=(64, 32), scale=10)
    head, basis = Head.of(model), new_basis(PatchShape((64, 32), 8), 16, seed=0)
    rows = rows_of(COUNTS, 64)
    one_by_one = []
    for user, count in enumerate(COUNTS):
        own = DeviceRows(*(x[user : user + 1, :count] for x in (rows.z1, rows.labels, rows.weights)))
        one_by_one.append(fit_devices(head, basis, own, MANY))
    return head, basis, rows, torch.cat(one_by_one)


def test_batched_is_one_by_one(many):
    head, basis, rows, one_by_one = many
    together = fit_devices(head, basis, rows, MANY)
    assert (one_by_one.norm(dim=1) > 1e-3).all()
    assert relative_difference(together, one_by_one) <= 1e-4


@pytest.mark.parametrize("size", [1, 3, 5])
def test_users_in_any_batches_and_order_learn_the_same(many, size):
    head, basis, rows, one_by_one = many
    order = np.random.default_rng(size).permutation(len(COUNTS))
    for begin in range(0, len(order), size):
        users = torch.from_numpy(order[begin : begin + size])
        part = DeviceRows(rows.z1[users], rows.labels[users], rows.weights[users])
        codes = fit_devices(head, basis, part, MANY)
        assert relative_difference(codes, one_by_one[users]) <= 1e-4


def test_threads_learn_the_same(many, two_threads):
    head, basis, rows, one_by_one = many
    for codes in two_threads(lambda: fit_devices(head, basis, rows, MANY)):
        assert relative_difference(codes, one_by_one) <= 1e-4


def test_what_stands_in_the_padding_does_not_matter(many):
    head, basis, rows, _ = many
    padded = rows.weights == 0
    other = DeviceRows(
        torch.where(padded.unsqueeze(-1), 7.0, rows.z1), torch.where(padded, 1 - rows.labels, rows.labels), rows.weights
    )
    first, second = (fit_devices(head, basis, r, MANY) for r in (rows, other))
    assert relative_difference(first, second) <= 1e-5


def test_a_user_without_rows_keeps_what_is_expected_of_everybody(model, basis):
    rows, mean = rows_of([4, 4], 12), torch.tensor([0.3, -1.2, 0.0, 0.7])
    rows.weights[1] = 0
    codes = fit_devices(Head.of(model), basis, rows, STEPS)
    assert codes[0].all()
    assert not codes[1].any()
    codes = fit_devices(Head.of(model), basis, rows, STEPS, mean)
    assert (codes[0] != mean).all()
    assert torch.equal(codes[1], mean)


def test_every_number_of_a_code_learns_and_all_else_is_frozen(model, basis):
    head, rows = Head.of(model), rows_of([7, 3, 5], 12)
    kept = [*model.parameters(), basis.origin, basis.theta, rows.z1]
    before = frozen(*kept)
    codes = fit_devices(head, basis, rows, STEPS)
    assert codes.all()
    assert frozen(*kept) == before


def test_learning_lowers_the_objective_and_the_prior_shrinks_the_code(model, basis):
    head, rows = Head.of(model), rows_of([30, 30], 12)

    def loss(codes):
        logits = head_logits(head, rows.z1, basis.patch(codes))
        return F.binary_cross_entropy_with_logits(logits, rows.labels, rows.weights, reduction="sum")

    codes = [fit_devices(head, basis, rows, local(300, 0.01, prior)) for prior in (0.0, 1.0, 10.0)]
    losses = [float(loss(c)) for c in (*codes, torch.zeros_like(codes[0]))]
    assert losses == sorted(losses)
    assert losses[0] < 0.95 * losses[-1]
    assert codes[0].norm() > 2 * codes[1].norm() > 2 * codes[2].norm()


def test_devices_that_diverge_say_so(model, basis):
    with pytest.raises(DivergedError) as error:
        fit_devices(Head.of(model), basis, rows_of([4, 4], 12), local(15, 1e30, 1.0))
    assert "--learning-rate" in error.value.remedy


# Learning the basis


def learn(model, basis, log, epochs=2, learning_rate=0.01, prior=10.0, batch_size=16, seed=0, on_epoch=None):
    events = log.events_in(DEVICE)
    users = np.unique(log.user[events], return_inverse=True)[1]

    def activations(rows, candidates):
        return model.first_layer_of_few(log, rows, candidates)

    return learn_basis(
        basis,
        SharedEvents(events, users, lambda epoch: samples_of(log, DEVICE, epoch=epoch)),
        frozen_head(Head.of(model), activations, events),
        JointFit(epochs, learning_rate, prior, seed, batch_size, on_epoch),
    )


@pytest.fixture(scope="module")
def log():
    return random_log(n_events=40)


def test_the_basis_and_the_table_learn_and_all_else_is_frozen(model, basis, log):
    kept = [*model.parameters(), basis.origin, basis.theta]
    before = frozen(*kept)
    told = []
    learned, mean, table = learn(model, basis, log, epochs=6, on_epoch=lambda *figures: told.append(figures))
    assert frozen(*kept) == before
    assert torch.equal(learned.origin, basis.origin)
    assert (learned.theta != basis.theta).all()
    assert not mean.any()  # nobody asked for one
    assert len(table) == len(np.unique(log.user[log.events_in(DEVICE)]))
    assert table.all()
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5, 6]


def test_every_piece_of_the_basis_gets_a_gradient(model, basis, log):
    """Without the first steps, in which θ̂ = 0 and no gradient reaches Θ: it moves by more than the renormalisation."""
    learned, _, _ = learn(model, basis, log, epochs=4)
    for name, piece in basis.shape.patch(learned.theta.T.contiguous()).__dict__.items():
        other = getattr(basis.shape.patch(basis.theta.T.contiguous()), name)
        # scaled back by the best factor, what is left is a change of direction
        factor = (piece * other).sum() / other.square().sum()
        if name != "bias":
            assert (piece - factor * other).norm() > 0.02 * other.norm(), f"{name} did not learn"
        assert (piece != other).all()


def test_columns_of_the_basis_stay_at_length_one(model, basis, log):
    learned, _, _ = learn(model, basis, log)
    torch.testing.assert_close(learned.theta.norm(dim=0), torch.ones(4))


@pytest.mark.parametrize(("with_mean", "fixed"), [(False, False), (True, False), (True, True)])
def test_the_objective_of_the_basis_is_the_devices_own(model, basis, log, with_mean, fixed):
    """Steps on one batch = autograd of (Σ CE + λ Σ‖θ̂ − μ‖²) / events over everybody, then torch's Adam."""
    events = log.events_in(DEVICE)
    users = np.unique(log.user[events], return_inverse=True)[1]
    samples = samples_of(log, DEVICE, epoch=0)
    # two steps: after the first, θ̂ is no longer zero
    ours, mean, table = learn_basis(
        basis,
        SharedEvents(events, users, lambda epoch: samples),
        frozen_head(Head.of(model), lambda rows, candidates: model.first_layer_of_few(log, rows, candidates), events),
        JointFit(epochs=2, learning_rate=0.01, prior=10.0, seed=0, batch_size=10**6),
        with_mean=with_mean,
        fixed=fixed,
    )
    theta = basis.theta.clone().requires_grad_()
    own, mu = torch.zeros(users.max() + 1, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.Adam([own, *([mu] if with_mean else []), *([] if fixed else [theta])], lr=0.01)
    with torch.no_grad():
        z1 = model.first_layer_of_few(log, events, samples.candidates)
    for _ in range(2):
        patch = Basis(basis.shape, basis.origin, theta).patch((own + mu)[torch.from_numpy(users)])
        losses = F.binary_cross_entropy_with_logits(
            patched_logits(model, z1, patch), samples.labels, samples.weights, reduction="sum"
        )
        optimiser.zero_grad()
        ((losses + 10.0 * own.square().sum()) / len(events)).backward()
        optimiser.step()
        if not fixed:
            with torch.no_grad():
                theta /= theta.norm(dim=0)
    torch.testing.assert_close(table, (own + mu).detach(), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(mean, mu.detach(), atol=1e-5, rtol=1e-3)
    assert bool(mean.any()) == with_mean
    torch.testing.assert_close(ours.theta, theta.detach(), atol=1e-4, rtol=1e-3)
    assert torch.equal(ours.theta, basis.theta) == fixed


def test_the_same_seed_gives_the_same_basis(model, basis, log):
    ours, same, other = (learn(model, basis, log, seed=seed)[0].theta for seed in (0, 0, 1))
    assert torch.equal(ours, same)
    assert not torch.equal(ours, other)


def test_a_basis_that_diverges_says_so(model, basis, log):
    with pytest.raises(DivergedError) as error:
        learn(model, basis, log, learning_rate=1e30)
    assert "basis_learning_rate" in error.value.remedy
