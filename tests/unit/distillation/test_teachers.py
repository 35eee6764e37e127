"""Teachers, how much they count, and the loss that is made of labels and teachers."""

import pytest
import torch
from small_worlds import (
    din,
    din_logits,
    first_loss,
    log_of,
    normal,
    random_log,
    run,
    same_state,
    samples_of,
    trained,
    trainer,
)
from torch.nn import functional as F
from world import World, quiet_progress

from dcclctl.config import DistillConfig
from dcclctl.distillation.method import DistillTask
from dcclctl.distillation.momodistill import MoMoDistillSettings
from dcclctl.distillation.teachers import TaughtObjective, bernoulli_kl, teacher_of, teacher_weight
from dcclctl.events.log import CLOUD, DEVICE, Block
from dcclctl.events.sampler import Sampler
from dcclctl.models.kind import open_backbone
from dcclctl.models.sequence import Sasrec, SequenceBackbone, SequenceSettings
from dcclctl.models.windows import Baskets


@pytest.fixture(scope="module")
def log():
    return random_log()


def taught(log, teacher, beta=0.5, weight=None):
    """An objective whose teachers all count alike unless told otherwise."""
    return TaughtObjective(log, beta, torch.ones(log.n_users) if weight is None else weight, teacher)


def constant(value):
    return lambda events, candidates: torch.full(candidates.shape, value)


# KL


def test_kl_is_torchs_and_zero_between_equals():
    teacher, student = 4 * normal(50, 5), 4 * normal(50, 5, seed=1)
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(logits=teacher.double()), bernoulli(logits=student.double()))
    torch.testing.assert_close(bernoulli_kl(teacher.double(), student.double()), expected)
    torch.testing.assert_close(bernoulli_kl(teacher, student), expected.float(), atol=1e-5, rtol=1e-4)
    assert not bernoulli_kl(teacher, teacher).any()
    assert (expected > 0).all()


def test_kl_of_extreme_logits_is_finite():
    far = torch.tensor([-200.0, 200.0])
    assert bernoulli_kl(far, far).tolist() == [0, 0]
    torch.testing.assert_close(bernoulli_kl(far, -far), torch.tensor([200.0, 200.0]))


def test_the_gradient_of_the_kl_pulls_towards_the_teacher():
    teacher, student = normal(30), normal(30, seed=1).requires_grad_()
    bernoulli_kl(teacher, student).sum().backward()
    torch.testing.assert_close(student.grad, torch.sigmoid(student.detach()) - torch.sigmoid(teacher))


# The objective


def test_with_beta_zero_it_is_plain_training_and_nobody_is_asked(log):
    def refuse(*asked):
        raise AssertionError("β is 0: nobody needs to be asked")

    plain = trained(din(log), log, period=DEVICE)
    silent = taught(log, refuse, beta=0.0)
    assert same_state(trained(din(log), log, period=DEVICE, objective=silent), plain)
    heard = taught(log, constant(5.0))
    assert not same_state(trained(din(log), log, period=DEVICE, objective=heard), plain)


def test_users_whose_teacher_has_weight_zero_are_taught_by_labels_alone(log):
    """With no weight at all it is plain training; with some users' weight 0, no lie of their teachers changes anything."""
    plain = trained(din(log), log, period=DEVICE)
    nobody = taught(log, constant(5.0), weight=torch.zeros(log.n_users))
    assert same_state(trained(din(log), log, period=DEVICE, objective=nobody), plain)
    weight = (torch.arange(log.n_users) >= 6).float()

    def honest(events, candidates):
        return torch.where(candidates % 2 == 0, 2.0, -2.0)

    def liar(events, candidates):
        lies = torch.from_numpy(log.user[events] < 6)[:, None]
        return torch.where(lies, -20.0, honest(events, candidates))

    def learned(teacher, weight):
        return trained(din(log), log, period=DEVICE, objective=taught(log, teacher, weight=weight))

    assert same_state(learned(honest, weight), learned(liar, weight))
    assert not same_state(learned(honest, None), learned(liar, None))
    assert not same_state(learned(honest, weight), plain)


def test_teachers_count_alike_beside_a_softmax(log):
    """The label term is then per event and no longer per candidate, and so is the teachers' term."""

    def model():  # each anew, because a first loss is followed by a step
        return Sasrec(log, SequenceSettings(history=50, item_size=6, category_size=4), torch.Generator().manual_seed(0))

    fit = {"dropout": 0.0, "batch_size": 10_000, "shared_negatives": 1000}

    def loss(beta):
        return first_loss(trainer(model(), log, DEVICE, taught(log, constant(1.0), beta), **fit))

    backbone = SequenceBackbone(model(), log, Baskets(log))
    drawn = Sampler(log, [DEVICE], 3, 7, "train/negatives").draw(log.events_in(DEVICE))
    logits = backbone.logits(backbone.activations(drawn.events, None), drawn.candidates)
    divergence = (bernoulli_kl(torch.ones_like(logits), logits) * drawn.weights).sum() / drawn.weights.sum()
    plain = first_loss(trainer(model(), log, DEVICE, **fit))
    assert loss(0.0) == pytest.approx(plain, rel=1e-6)
    assert loss(0.5) == pytest.approx(plain + 0.5 * 4 * float(divergence), rel=1e-5)


def test_half_the_weight_is_half_of_beta(log):
    def loss(weight, beta):
        objective = taught(log, constant(5.0), beta, torch.full((log.n_users,), weight))
        return first_loss(trainer(din(log), log, objective=objective, batch_size=4096))

    assert loss(0.5, 2.0) == pytest.approx(loss(1.0, 1.0), rel=1e-6)
    assert loss(0.5, 2.0) < loss(1.0, 2.0)


def test_a_teacher_pulls_the_student_along(log):
    def teacher(events, candidates):
        return torch.where(candidates % 2 == 0, 2.0, -2.0)

    model = din(log)
    run(trainer(model, log, objective=taught(log, teacher, beta=1000.0), epochs=40))
    samples = samples_of(log, CLOUD)
    logits = din_logits(model, log, samples.events, samples.candidates)
    assert ((logits > 0) == (samples.candidates % 2 == 0)).float().mean() > 0.95


def one_batch(log):
    """The first loss of one batch with everything, beside its parts: (loss, labels' part, mean divergence of what was asked)."""
    heard = {}

    def teacher(events, candidates):
        heard.update(events=events, candidates=candidates, logits=normal(*candidates.shape))
        return heard["logits"]

    objective = taught(log, teacher, 0.7)
    loss = first_loss(trainer(din(log), log, objective=objective, batch_size=10**6, dropout=0.0))
    samples = Sampler(log, [CLOUD], 3, 7, "train/negatives").draw(heard["events"])
    logits = din_logits(din(log), log, samples.events, samples.candidates).detach()
    each = F.binary_cross_entropy_with_logits(logits, samples.labels, samples.weights, reduction="none")
    return loss, samples, each, heard


def test_the_loss_is_cross_entropy_and_beta_times_the_kl(log):
    loss, samples, each, heard = one_batch(log)
    assert torch.equal(heard["candidates"], samples.candidates)
    logits = din_logits(din(log), log, samples.events, samples.candidates).detach()
    divergence = bernoulli_kl(heard["logits"], logits) * samples.weights
    assert (samples.weights == 0).any()
    expected = (each.sum() + 0.7 * divergence.sum()) / samples.weights.sum()
    assert loss == pytest.approx(float(expected), rel=1e-5)


# Teachers of committed patches


def task_of(world: World, teachers: str) -> DistillTask:
    config = DistillConfig(teachers=teachers, seed=3)
    patches = world.patches()
    settings = MoMoDistillSettings(negatives=4)
    device = torch.device("cpu")
    return DistillTask(patches, patches.cloud, Block(DEVICE), config, settings, device, None, quiet_progress)


def said(world: World, teachers: str) -> torch.Tensor:
    log = world.dataset().log
    samples = Sampler(log, [DEVICE], 4, 0, "test").draw(log.events_in(DEVICE))
    found = teacher_of(task_of(world, teachers), log)(samples.events, samples.candidates)
    assert not found.requires_grad
    return found


def test_who_teaches_is_the_model_that_serves_the_user(world: World):
    """With the user's patch; the cloud model to the last bit for users without one and where the patches are left out."""
    log, patches = world.dataset().log, world.patches()
    samples = Sampler(log, [DEVICE], 4, 0, "test").draw(log.events_in(DEVICE))
    backbone = open_backbone(patches.cloud, torch.device("cpu"))
    cloud = backbone.logits_of_few(samples.events, samples.candidates, backbone.head).detach()
    own, without, shuffled = (said(world, teachers) for teachers in ("patched", "unpatched", "shuffled"))
    patched = patches.codes()[1][torch.from_numpy(log.user[samples.events])]
    assert 0 < patched.sum() < len(patched)
    assert torch.equal(without, cloud)
    assert torch.equal(own[~patched], cloud[~patched]) and torch.equal(shuffled[~patched], cloud[~patched])
    assert (own != cloud)[patched].any(1).all()
    assert (own != shuffled)[patched].any(1).all()
    torch.testing.assert_close(said(world, "guarded"), own)


def test_guarded_teachers_are_the_patches_that_won_on_held_back_events(world: World):
    patches = world.patches()
    for teachers in ("patched", "unpatched", "shuffled"):
        assert torch.equal(teacher_weight(patches, teachers), torch.ones(patches.cloud.dataset.log.n_users))
    weight = teacher_weight(patches, "guarded")
    won = set()
    for row in patches.users.iter_rows(named=True):
        if row["loss_after"] is not None and row["loss_after"] < row["loss_before"]:
            won.add(row["user_index"])
    assert set(torch.nonzero(weight == 1).flatten().tolist()) == won
    assert set(weight.tolist()) == {0.0, 1.0} and 0 < len(won) < patches.users.height


def test_teachers_stay_as_they_are_while_the_student_learns(log):
    teacher_model = din(log, scale=10)
    before = [weight.detach().clone() for weight in teacher_model.parameters()]

    def teacher(events, candidates):
        with torch.no_grad():
            return din_logits(teacher_model, log, events, candidates)

    student = din(log, seed=1)
    start = [weight.detach().clone() for weight in student.parameters()]
    trained(student, log, objective=taught(log, teacher), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(teacher_model.parameters(), before, strict=True))
    assert all(weight.grad is None for weight in teacher_model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(student.parameters(), start, strict=True))


def test_a_teacher_equal_to_the_student_costs_nothing():
    """The first batch of a student that is its own teacher has the loss of the labels alone."""
    log = log_of([(user, (user + t) % 7, t, 1, min(t // 2, 3)) for user in range(5) for t in range(8)], 5, 7)
    model = din(log)

    def itself(events, candidates):
        with torch.no_grad():
            return din_logits(model, log, events, candidates)

    def loss(objective):
        return first_loss(trainer(din(log), log, objective=objective, batch_size=4096, dropout=0.0))

    assert loss(taught(log, itself, beta=9.0)) == pytest.approx(loss(None), rel=1e-6)
