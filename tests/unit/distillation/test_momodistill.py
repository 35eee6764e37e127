import dataclasses

import numpy as np
import pytest
import torch
from dcclctl.algorithm import training
from dcclctl.algorithm.eventlog import DEVICE, Block
from dcclctl.algorithm.memory import Counting, count_statistics
from dcclctl.algorithm.metapatch import patched_logits
from dcclctl.algorithm.momodistill import (
    BasisSettings,
    distill_basis,
    new_encoder,
    teacher_of,
    trust_in,
    unlabelled_candidates,
)
from dcclctl.algorithm.sampling import hashes
from dcclctl.algorithm.scoring import DinBackbone, patched_head
from dcclctl.algorithm.training import bernoulli_kl, first_layer
from small_worlds import basis_for, din, fit_settings, frozen, no_samples, normal, random_log, samples_of
from torch.nn import functional as F

from dcclctl.errors import DivergedError

LIMIT = 6
DEVICE_BLOCK = Block(DEVICE)


@pytest.fixture(scope="module")
def world():
    """A log, a cloud model, a basis, and a code for every user but the first three."""
    log = random_log(n_events=40)
    model = din(log, scale=10)
    codes = normal(log.n_users, 4)
    codes[:3] = 0
    return log, model, basis_for(model), codes


def device_models(model, basis, codes, log):
    return teacher_of(DinBackbone(model, log, LIMIT), patched_head(model, basis, codes, log))


def cloud_logits(model, log, samples):
    with torch.no_grad():
        z1 = first_layer(model, log, samples.events, samples.candidates, LIMIT)
        return model.logits(model.second_layer(z1))


def settings(**changes) -> BasisSettings:
    return dataclasses.replace(BasisSettings(epochs=3, learning_rate=0.01, beta=0.5, batch_size=16, seed=2), **changes)


def distill(world, encoder, teacher=None, on_epoch=None, trust=None, **changes):
    log, model, basis, codes = world
    teacher = teacher or device_models(model, basis, codes, log)
    return distill_basis(
        model,
        basis,
        codes,
        log,
        LIMIT,
        lambda epoch: samples_of(log, DEVICE, epoch=epoch),
        teacher,
        encoder,
        settings(**changes),
        on_epoch,
        trust,
    )


# Teachers


def test_a_shift_moves_every_logit_of_a_teacher(world):
    log, model, basis, codes = world
    samples = samples_of(log)
    backbone, head = DinBackbone(model, log, LIMIT), patched_head(model, basis, codes, log)
    plain = teacher_of(backbone, head)(samples.events, samples.candidates)
    moved = teacher_of(backbone, head, -1.5)(samples.events, samples.candidates)
    torch.testing.assert_close(moved, plain - 1.5)


def test_a_teacher_is_the_users_own_device_model(world):
    log, model, basis, codes = world
    samples = samples_of(log)
    taught = device_models(model, basis, codes, log)(samples.events, samples.candidates)
    for row, event in enumerate(samples.events):
        z1 = first_layer(model, log, samples.events[row : row + 1], samples.candidates[row : row + 1], LIMIT)
        own = patched_logits(model, z1, basis.patch(codes[int(log.user[event])][None]))
        torch.testing.assert_close(taught[row], own[0].detach(), atol=1e-6, rtol=1e-5)
    assert not taught.requires_grad


def test_without_a_patch_the_teacher_is_the_cloud_model_to_the_last_bit(world):
    log, model, basis, codes = world
    samples = samples_of(log)
    taught = device_models(model, basis, codes, log)(samples.events, samples.candidates)
    cloud = cloud_logits(model, log, samples)
    unpatched = torch.from_numpy(log.user[samples.events] < 3)
    assert torch.equal(taught[unpatched], cloud[unpatched])
    assert not torch.equal(taught[~unpatched], cloud[~unpatched])


def test_a_teacher_equal_to_the_student_costs_nothing(world):
    log, model, basis, codes = world
    samples = samples_of(log)
    taught = device_models(model, basis, torch.zeros_like(codes), log)(samples.events, samples.candidates)
    assert not bernoulli_kl(taught, cloud_logits(model, log, samples)).any()


def test_a_teacher_of_another_kind_is_what_it_serves(world):
    """Anything that scores candidates can teach; it is asked for as few events at a time as it wants."""
    log, *_ = world
    samples = samples_of(log)
    asked = []

    class Rows:
        """Logits that name the event and the candidate; a few events at once."""

        def __init__(self, log):
            self.log = log

        def head(self, events, candidates, below):
            return below + candidates

        def lengths(self, events):
            return np.full(len(events), 7)

        def units(self, n_candidates, length):
            assert (n_candidates, length) == (samples.candidates.shape[1], 7)
            return (1 << 20) // 6

        def activations(self, events, candidates):
            asked.append(len(events))
            return 1000.0 * torch.from_numpy(events)[:, None] + 0 * candidates

    taught = teacher_of(Rows(log), Rows(log).head)(samples.events, samples.candidates)
    assert torch.equal(taught, 1000.0 * torch.from_numpy(samples.events)[:, None] + samples.candidates)
    assert max(asked) == 6 and sum(asked) == len(samples.events)


def test_the_teachers_logits_are_those_that_are_ranked(world):
    """The short way of a DIN gives what evaluate's way gives."""
    log, model, basis, codes = world
    samples, backbone = samples_of(log), DinBackbone(model, log, LIMIT)
    head = patched_head(model, basis, codes, log)
    ranked = head(samples.events, samples.candidates, backbone.activations(samples.events, samples.candidates))
    torch.testing.assert_close(
        teacher_of(backbone, head)(samples.events, samples.candidates), ranked.detach(), atol=1e-5, rtol=1e-5
    )


# Trust


def test_everybody_is_trusted_alike_unless_told_otherwise():
    assert torch.equal(trust_in(4, np.array([1, 3]), np.array([5, 30])), torch.ones(4))


def test_evidence_is_a_share_of_events():
    trust = trust_in(4, np.array([1, 3]), np.array([10, 30]), evidence=True)
    torch.testing.assert_close(trust, torch.tensor([0.0, 0.5, 0.0, 0.75]))


def test_only_those_who_passed_teach():
    users, events, passed = np.array([1, 3, 4]), np.array([10, 30, 90]), np.array([True, False, True])
    assert torch.equal(trust_in(6, users, events, passed), torch.tensor([0.0, 1, 0, 0, 1, 0]))
    both = trust_in(6, users, events, passed, evidence=True)
    torch.testing.assert_close(both, torch.tensor([0.0, 0.5, 0, 0, 0.9, 0]))


def test_a_teacher_without_trust_is_not_heard(world):
    """In both steps: trust 0 is β = 0, trust 1 is no trust given, and half of it is half of β."""
    log, model, basis, codes = world
    teacher, valid = device_models(model, basis, codes, log), no_samples(log)

    def learned(beta, trust):
        student, encoder = din(log, seed=1, scale=10), new_encoder(4, 5, log.profile_sizes, seed=1)
        given = None if trust is None else torch.full((log.n_users,), trust)
        state = training.train_epoch(
            student,
            log,
            log.events_in(DEVICE),
            log.catalogue(DEVICE),
            log.positives_in(DEVICE),
            valid,
            fit_settings(beta=beta),
            training.start(student, training.Judged(0.0, 1.0)),
            teacher,
            trust=given,
        )
        theta, losses = distill(world, encoder, trust=given, beta=beta)
        return state.weights["hidden_1.weight"], theta.theta, torch.tensor(losses)

    for ours, same in ((learned(0.8, 0.0), learned(0.0, None)), (learned(0.8, 1.0), learned(0.8, None))):
        assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))
    for a, b in zip(learned(0.8, 0.5), learned(0.4, None), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not torch.equal(learned(0.8, 1.0)[0], learned(0.0, None)[0])


def test_trust_is_the_users_own(world):
    """Teachers of some users are not heard: no lie of theirs changes anything."""
    log, model, basis, codes = world
    honest = device_models(model, basis, codes, log)
    trust = (torch.arange(log.n_users) >= 6).float()

    def liar(events, candidates):
        lies = torch.from_numpy(log.user[events] < 6)[:, None]
        return torch.where(lies, -20.0, honest(events, candidates))

    results = []
    for teacher in (honest, liar):
        student = din(log, seed=1, scale=10)
        state = training.train_epoch(
            student,
            log,
            log.events_in(DEVICE),
            log.catalogue(DEVICE),
            log.positives_in(DEVICE),
            no_samples(log),
            fit_settings(beta=0.8),
            training.start(student, training.Judged(0.0, 1.0)),
            teacher,
            trust=trust,
        )
        encoder = new_encoder(4, 5, log.profile_sizes, seed=1)
        results.append((state.weights["item_table"], distill(world, encoder, teacher, trust=trust)[0].theta))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Step 1


def test_teachers_stay_frozen_while_the_student_learns(world):
    log, model, basis, codes = world
    kept = [*model.parameters(), basis.origin, basis.theta, codes]
    before = frozen(*kept)
    student = din(log, scale=10)
    state = training.train_epoch(
        student,
        log,
        log.events_in(DEVICE),
        log.catalogue(DEVICE),
        log.positives_in(DEVICE),
        no_samples(log),
        fit_settings(beta=0.5),
        training.start(student, training.Judged(0.0, 1.0)),
        device_models(model, basis, codes, log),
    )
    assert frozen(*kept) == before
    assert all(weight.grad is None for weight in model.parameters())
    assert all(not torch.equal(state.weights[name], weight) for name, weight in model.named_parameters())


# Step 2


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
    learned, _ = distill(world, new_encoder(4, 5, log.profile_sizes, seed=1), epochs=4)
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
    _, losses = distill(world, encoder, epochs=1, batch_size=10**6, beta=0.7)
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
    learned, _ = distill_basis(
        model,
        basis,
        codes,
        log,
        LIMIT,
        lambda epoch: samples,
        lambda events, candidates: device_models(model, basis, codes, log)(events, candidates),
        ours,
        settings(epochs=2, batch_size=10**6),
    )
    theta = basis.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta, *theirs.parameters()], lr=0.01)
    users = torch.from_numpy(log.user[samples.events])
    with torch.no_grad():
        z1 = first_layer(model, log, samples.events, samples.candidates, LIMIT)
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
    distill(world, encoder, epochs=4)
    known = torch.cat(asked).any(1).float().mean()
    with_a_code = np.mean(log.user[log.events_in(DEVICE)] >= 3)
    assert 0.35 * with_a_code < known < 0.65 * with_a_code


def test_without_teachers_weight_it_is_cross_entropy_alone(world):
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
    learned, losses = distill(world, encoder, epochs=0)
    assert losses == []
    assert torch.equal(learned.theta, basis.theta)
    assert not encoder.out.any()


def test_divergence_says_so(world):
    log, *_ = world
    with pytest.raises(DivergedError) as error:
        distill(world, new_encoder(4, 5, log.profile_sizes, seed=1), learning_rate=1e30)
    assert "--basis-learning-rate" in error.value.remedy


# Unlabelled items


def questions(log, nearest=None, seed=0, count=6):
    return unlabelled_candidates(log, LIMIT, count, DEVICE_BLOCK, seed, "lesson", nearest)


@pytest.mark.parametrize("repeats", [True, False])
def test_unlabelled_items_are_seen_ones_that_no_event_of_the_user_labels(world, repeats):
    log = dataclasses.replace(world[0], repeats=repeats)
    events, known = log.events_in(DEVICE), set(log.catalogue(DEVICE).tolist())
    statistics = count_statistics(log, log.up_to(DEVICE_BLOCK), Counting(LIMIT, 5, 1.0, 3), seed=0)
    for nearest in (None, statistics):
        drawn = questions(log, nearest)(events, 0).numpy()
        assert drawn.shape == (len(events), 6)
        assert set(drawn.flatten().tolist()) <= known
        had_before = 0
        for event, items in zip(events, drawn, strict=True):
            own = (log.user == log.user[event]) & (log.label > 0)
            assert not set(log.item[own & (log.period == DEVICE)]) & set(items)
            had_before += len(set(log.item[own & (log.period < DEVICE)]) & set(items))
        # what was had before the block may be had again where there are repeats, and is no candidate where there are none
        assert (had_before > 0) == repeats


def test_every_second_unlabelled_item_is_near_the_history(world):
    log, *_ = world
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, log.up_to(DEVICE_BLOCK), Counting(LIMIT, 5, 1.0, 3), seed=0)
    uniform, near = questions(log)(events, 0), questions(log, statistics)(events, 0)
    assert torch.equal(near[:, ::2], uniform[:, ::2])
    changed = near[:, 1::2] != uniform[:, 1::2]
    assert changed.float().mean() > 0.3
    history, mask = log.histories(events, LIMIT)
    for row, column in changed.nonzero().tolist():
        held = history[row][mask[row]]
        related = statistics.neighbours[held][statistics.similarity[held] > 0]
        assert near[row, 1 + 2 * column] in related


def test_unlabelled_items_of_an_event_depend_on_nothing_but_the_event_epoch_and_seed(world):
    log, *_ = world
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, log.up_to(DEVICE_BLOCK), Counting(LIMIT, 5, 1.0, 3), seed=0)
    draw = questions(log, statistics)
    some = np.random.default_rng(0).permutation(len(events))[:7]
    assert torch.equal(draw(events[some], 1), draw(events, 1)[torch.from_numpy(some)])
    assert not torch.equal(draw(events, 0), draw(events, 1))
    assert not torch.equal(draw(events, 0), questions(log, statistics, seed=1)(events, 0))


def test_who_has_no_history_is_asked_about_what_everybody_begins_with(world):
    """Every second item is drawn as popular items are, even one that this user once had; but none that the block labels."""
    log, *_ = world
    log = dataclasses.replace(log, repeats=False)
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, log.up_to(DEVICE_BLOCK), Counting(LIMIT, 5, 1.0, 3), seed=0)
    forgetful = log.shortened(events, np.zeros(len(events), dtype=np.int64))
    draw = questions(forgetful, statistics)
    drawn = np.concatenate([draw(events, epoch).numpy() for epoch in range(200)])
    owners = np.tile(log.user[events], 200)
    assert torch.equal(draw(events, 0)[:, ::2], questions(log)(events, 0)[:, ::2])  # the others are uniform, as ever
    past = log.up_to(DEVICE_BLOCK) & (log.label > 0)
    counts = np.bincount(log.item[past], minlength=log.n_items)
    in_block = log.positives_in(DEVICE_BLOCK)
    assert not in_block.contains(owners[:, None], drawn).any()
    before = log.up_to(DEVICE_BLOCK) & (log.period < DEVICE) & (log.label > 0)
    had = {(int(user), int(item)) for user, item in zip(log.user[before], log.item[before], strict=True)}
    asked = {(int(user), int(item)) for user, items in zip(owners, drawn[:, 1::2], strict=True) for item in items}
    assert had & asked
    assert not had & {
        (int(user), int(item)) for user, items in zip(owners, drawn[:, ::2], strict=True) for item in items
    }
    often = np.bincount(drawn[:, 1::2].flatten(), minlength=log.n_items)
    evenly = np.bincount(drawn[:, ::2].flatten(), minlength=log.n_items)
    popular = counts >= np.median(counts[counts > 0])
    assert often[popular].sum() / often.sum() > evenly[popular].sum() / evenly.sum() + 0.1


def test_where_nobody_liked_anything_all_questions_are_of_the_catalogue(world):
    log, *_ = world
    events = log.events_in(DEVICE)
    statistics = count_statistics(log, log.up_to(DEVICE_BLOCK), Counting(LIMIT, 5, 1.0, 3), seed=0)
    joyless = dataclasses.replace(log, label=np.zeros_like(log.label))
    forgetful = joyless.shortened(events, np.zeros(len(events), dtype=np.int64))
    drawn = questions(forgetful, statistics)(events, 0)
    assert set(drawn.flatten().tolist()) <= set(log.catalogue(DEVICE).tolist())
