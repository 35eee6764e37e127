"""Step 2 of MoMoDistill: the basis Θ and the encoder U, with the cloud weights frozen."""

import numpy as np
import pytest
import torch
from small_worlds import basis_for, din, frozen, new_encoder, normal, random_log, samples_of
from torch.nn import functional as F

from dcclctl.devices.hidden_patch import patched_head, patched_logits
from dcclctl.distillation.momodistill import MoMoDistillSettings, SecondStep
from dcclctl.distillation.teachers import TaughtObjective, bernoulli_kl
from dcclctl.errors import DivergedError
from dcclctl.events.log import DEVICE
from dcclctl.events.sampling import hashes
from dcclctl.models.din import DinBackbone


@pytest.fixture(scope="module")
def world():
    """A log, a cloud model, a basis, and a code for every user but the first three."""
    log = random_log(n_events=40)
    model = din(log, scale=10)
    codes = normal(log.n_users, 4)
    codes[:3] = 0
    return log, model, basis_for(model), codes


def device_models(model, basis, codes, log):
    backbone = DinBackbone(model, log)
    head = patched_head(backbone, basis, codes)
    return lambda events, candidates: backbone.logits_of_few(events, candidates, head).detach()


def cloud_logits(model, log, samples):
    with torch.no_grad():
        z1 = model.first_layer_of_few(log, samples.events, samples.candidates)
        return model.logits(model.second_layer(z1))


def distill(world, encoder, teacher=None, on_epoch=lambda *figures: None, weight=None, draw=None, seed=2, **changes):
    log, model, basis, codes = world
    teacher = teacher or device_models(model, basis, codes, log)
    given = {"basis_epochs": 3, "basis_learning_rate": 0.01, "beta": 0.5, "batch_size": 16} | changes
    settings = MoMoDistillSettings(**given)
    weight = torch.ones(log.n_users) if weight is None else weight
    step, objective = SecondStep(model, codes, settings), TaughtObjective(log, settings.beta, weight, teacher)
    draw = draw or (lambda epoch: samples_of(log, DEVICE, epoch=epoch))
    return step.distill(basis, encoder, lambda epoch: [(objective, draw(epoch))], seed, on_epoch)


def test_the_basis_and_the_encoder_learn_and_all_else_is_frozen(world):
    log, model, basis, codes = world
    encoder = new_encoder(4, 5, log.profile_sizes, seed=1)
    kept = [*model.parameters(), basis.origin, basis.theta, codes]
    before, untrained = frozen(*kept), {name: w.detach().clone() for name, w in encoder.named_parameters()}
    told = []
    learned, losses = distill(world, encoder, on_epoch=lambda *figures: told.append(figures))
    assert frozen(*kept) == before
    assert torch.equal(learned.origin, basis.origin)
    assert (learned.theta != basis.theta).all()
    torch.testing.assert_close(learned.theta.norm(dim=0), torch.ones(4))
    for name, weight in encoder.named_parameters():
        changed = weight != untrained[name]
        if name == "profile":  # missing values are never read
            missing = torch.arange(len(weight))[:, None] == encoder.offsets
            assert torch.equal(changed.all(1), ~missing.any(1))
        else:
            assert changed.float().mean() > 0.9, f"{name} did not learn"
    assert told == list(enumerate(losses, start=1))
    assert losses[-1] < losses[0]


def test_every_piece_of_the_basis_learns(world):
    log, _, basis, _ = world
    learned, _ = distill(world, new_encoder(4, 5, log.profile_sizes, seed=1), basis_epochs=4)
    after, before = (b.shape.patch(b.theta.T.contiguous()) for b in (learned, basis))
    for name in ("down_1", "up_1", "down_2", "up_2", "out"):
        ours, other = getattr(after, name), getattr(before, name)
        factor = (ours * other).sum() / other.square().sum()
        assert (ours - factor * other).norm() > 0.02 * other.norm(), f"{name} only followed the length of its column"


def test_a_user_without_a_patch_is_served_from_the_profile_after_training(world):
    log, *_ = world
    encoder = new_encoder(4, 5, log.profile_sizes, seed=1)
    nobody = torch.zeros(log.n_users, 4)
    assert not encoder(nobody, log.profile).any()
    distill(world, encoder)
    served = encoder(nobody, log.profile)
    assert torch.equal(served.any(1), log.profile.any(1))
    assert served.any()
    kinds, kind = torch.unique(log.profile, dim=0, return_inverse=True)
    first = torch.stack([served[kind == k][0] for k in range(len(kinds))]).detach()
    torch.testing.assert_close(served.detach(), first[kind])
    apart = torch.cdist(first, first) + torch.eye(len(kinds))
    assert len(kinds) > 1 and (apart > 1e-3).all()


def test_the_first_loss_is_that_of_the_cloud_model(world):
    """U is zero before the first step, so f̂ = f: CE(f) + β·KL(teacher ‖ f), over everything that counts."""
    log, model, basis, codes = world
    encoder = new_encoder(4, 5, log.profile_sizes, seed=1)
    _, losses = distill(world, encoder, basis_epochs=1, batch_size=10**6, beta=0.7)
    samples = samples_of(log, epoch=0)
    logits = cloud_logits(model, log, samples)
    taught = device_models(model, basis, codes, log)(samples.events, samples.candidates)
    entropy = F.binary_cross_entropy_with_logits(logits, samples.labels, reduction="none")
    expected = ((entropy + 0.7 * bernoulli_kl(taught, logits)) * samples.weights).sum() / samples.weights.sum()
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_two_steps_are_those_of_autograd_and_torchs_adam(world):
    """The equation written out: patch weights ϑ₀ + Θ·U(θ̂ or 0, u), one batch, two steps (Θ moves from the second on)."""
    log, model, basis, codes = world
    ours, theirs = (new_encoder(4, 5, log.profile_sizes, seed=1) for _ in range(2))
    samples = samples_of(log)
    taught = device_models(model, basis, codes, log)(samples.events, samples.candidates)
    learned, _ = distill(world, ours, draw=lambda epoch: samples, basis_epochs=2, batch_size=10**6)
    theta = basis.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta, *theirs.parameters()], lr=0.01)
    users = torch.from_numpy(log.user[samples.events])
    with torch.no_grad():
        z1 = model.first_layer_of_few(log, samples.events, samples.candidates)
    for epoch in range(2):
        forgotten = torch.from_numpy(hashes(2, "distill/forget", epoch, samples.events) % 2 == 0)
        known = torch.where(forgotten[:, None], 0.0, codes[users])
        weights = basis.origin + theirs(known, log.profile[users]) @ theta.T
        logits = patched_logits(model, z1, basis.shape.patch(weights))
        entropy = F.binary_cross_entropy_with_logits(logits, samples.labels, reduction="none")
        optimiser.zero_grad()
        (((entropy + 0.5 * bernoulli_kl(taught, logits)) * samples.weights).sum() / samples.weights.sum()).backward()
        optimiser.step()
        with torch.no_grad():
            theta /= theta.norm(dim=0)
    torch.testing.assert_close(learned.theta, theta.detach(), atol=1e-4, rtol=1e-3)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight, dict(theirs.named_parameters())[name], atol=1e-4, rtol=1e-3)


def test_codes_are_forgotten_for_half_of_the_events(world):
    """Codes that are forgotten leave no trace in what the encoder is asked; it is asked about both kinds."""
    log, *_ = world
    encoder = new_encoder(4, 5, log.profile_sizes, seed=1)
    asked = []
    encoder.register_forward_pre_hook(lambda module, given: asked.append(given[0].clone()))
    distill(world, encoder, basis_epochs=4)
    known = torch.cat(asked).any(1).float().mean()
    with_a_code = np.mean(log.user[log.events_in(DEVICE)] >= 3)
    assert 0.35 * with_a_code < known < 0.65 * with_a_code


def test_with_beta_zero_it_is_cross_entropy_alone(world):
    log, *_ = world

    def liar(events, candidates):
        return torch.full(candidates.shape, 30.0)

    first, second = (new_encoder(4, 5, log.profile_sizes, seed=1) for _ in range(2))
    ours, losses = distill(world, first, beta=0.0)
    lied_to, same = distill(world, second, teacher=liar, beta=0.0)
    assert losses == same
    assert torch.equal(ours.theta, lied_to.theta)
    _, other = distill(world, new_encoder(4, 5, log.profile_sizes, seed=1), teacher=liar)
    assert other[0] > losses[0]


def test_the_weight_of_a_teacher_is_the_users_own(world):
    """Weight 0 is β = 0, half of it is half of β, and no lie of a teacher without weight changes anything."""
    log, model, basis, codes = world
    honest = device_models(model, basis, codes, log)

    def liar(events, candidates):
        lies = torch.from_numpy(log.user[events] < 6)[:, None]
        return torch.where(lies, -20.0, honest(events, candidates))

    def learned(teacher, weight, beta=0.8):
        found, losses = distill(world, new_encoder(4, 5, log.profile_sizes, seed=1), teacher, weight=weight, beta=beta)
        return torch.cat([found.theta.flatten(), torch.tensor(losses)])

    everybody, some = torch.ones(log.n_users), (torch.arange(log.n_users) >= 6).float()
    assert torch.equal(learned(honest, 0 * everybody), learned(honest, everybody, beta=0.0))
    torch.testing.assert_close(
        learned(honest, 0.5 * everybody), learned(honest, everybody, beta=0.4), atol=1e-5, rtol=1e-4
    )
    assert torch.equal(learned(honest, some), learned(liar, some))
    assert not torch.equal(learned(honest, everybody), learned(liar, everybody))


def test_the_same_seed_gives_the_same_bits(world):
    log, *_ = world
    encoders = [new_encoder(4, 5, log.profile_sizes, seed=1) for _ in range(3)]
    ours, same, other = (
        distill(world, encoder, seed=seed)[0].theta for encoder, seed in zip(encoders, (2, 2, 3), strict=True)
    )
    assert torch.equal(ours, same)
    assert torch.equal(encoders[0].out, encoders[1].out)
    assert not torch.equal(ours, other)


def test_no_epochs_change_nothing(world):
    log, _, basis, _ = world
    encoder = new_encoder(4, 5, log.profile_sizes, seed=1)
    learned, losses = distill(world, encoder, basis_epochs=0)
    assert losses == []
    assert torch.equal(learned.theta, basis.theta)
    assert not encoder.out.any()


def test_divergence_says_so(world):
    log, *_ = world
    with pytest.raises(DivergedError) as error:
        distill(world, new_encoder(4, 5, log.profile_sizes, seed=1), basis_learning_rate=1e30)
    assert "basis_learning_rate" in error.value.remedy
