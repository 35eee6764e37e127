"""Device methods beside MetaPatch: against independent formulas, one by one, and in a world with a known answer."""

import dataclasses

import numpy as np
import pytest
import torch
from dcclctl.algorithm import basis as basis_module
from dcclctl.algorithm import devicemethods, metapatch
from dcclctl.algorithm.basis import JointFit, SharedEvents
from dcclctl.algorithm.devicemethods import (
    GeneratedSpace,
    Generator,
    Histories,
    ItemSpace,
    LayerSpace,
    LocalRows,
    PatchSpace,
    cloud_logits,
    fit_corrected,
    fit_layers,
    item_head,
    known_sequences,
    layer_head,
    learn_generator,
    learn_map,
    linearised,
    new_map,
    newton,
    similar_users,
    with_offset,
)
from dcclctl.algorithm.din import Din
from dcclctl.algorithm.eventlog import CLOUD, DEVICE, TEST, Block, EventLog
from dcclctl.algorithm.metapatch import Basis, Head, head_logits
from dcclctl.algorithm.scoring import DinBackbone, cloud_head, item_embeddings
from dcclctl.algorithm.training import first_layer, sample
from scipy.optimize import minimize
from small_worlds import basis_for, din, log_of, normal, random_log
from torch.nn import functional as F

COUNTS = [1, 40, 3, 17, 8]


def rows_of(counts: list[int], width: int, seed: int = 0) -> LocalRows:
    """Users with so many rows each, padded with garbage of weight 0."""
    n = max(counts)
    weights = (torch.arange(n) < torch.tensor(counts)[:, None]).float()
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(30, (len(counts), n), generator=generator)
    return LocalRows(
        normal(len(counts), n, width, seed=seed),
        (normal(len(counts), n, seed=seed + 1) > 0).float(),
        weights,
        np.arange(len(counts)),
        items,
        np.zeros(len(counts), dtype=np.int64),
    )


def alone(rows: LocalRows, user: int, count: int) -> LocalRows:
    """One user's rows without any padding."""
    pick = {name: getattr(rows, name)[user : user + 1, :count] for name in ("z1", "labels", "weights", "items")}
    return dataclasses.replace(rows, **pick, users=rows.users[user : user + 1], until=rows.until[user : user + 1])


@pytest.fixture(scope="module")
def log() -> EventLog:
    return random_log()


@pytest.fixture(scope="module")
def model(log: EventLog) -> Din:
    return din(log, scale=10)


@pytest.fixture(scope="module")
def head(model: Din) -> Head:
    return Head.of(model)


@pytest.fixture(scope="module")
def basis(model: Din) -> Basis:
    return basis_for(model)


@pytest.fixture(scope="module")
def item_space(model: Din, head: Head) -> ItemSpace:
    embeddings = item_embeddings(model)
    return ItemSpace(head, embeddings, 3 * new_map(embeddings, 4, seed=0))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# Newton's steps


def test_one_newton_step_is_weighted_ridge_regression_in_numpy() -> None:
    """(ΦᵀSΦ + 2λI)⁻¹ Φᵀ(y − p) with S = p(1 − p), row by row, in float64."""
    rows, phi, offset = rows_of(COUNTS, 12), normal(5, 40, 4, seed=3), normal(5, 40, seed=4)
    found = newton(offset, phi, rows, prior=0.7, steps=1)
    for user, count in enumerate(COUNTS):
        x, y = phi[user, :count].double().numpy(), rows.labels[user, :count].double().numpy()
        p = sigmoid(offset[user, :count].double().numpy())
        curvature = 2 * 0.7 * np.eye(4) + sum(p[i] * (1 - p[i]) * np.outer(x[i], x[i]) for i in range(count))
        expected = np.linalg.inv(curvature) @ sum((y[i] - p[i]) * x[i] for i in range(count))
        np.testing.assert_allclose(found[user].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_newton_steps_reach_the_optimum_that_scipy_finds() -> None:
    rows, phi, offset = rows_of(COUNTS, 12), normal(5, 40, 4, seed=3), normal(5, 40, seed=4)
    found = newton(offset, phi, rows, prior=0.7, steps=8)
    for user, count in enumerate(COUNTS):
        x, y = phi[user, :count].double().numpy(), rows.labels[user, :count].double().numpy()
        base = offset[user, :count].double().numpy()

        def loss(code: np.ndarray, x: np.ndarray = x, y: np.ndarray = y, base: np.ndarray = base) -> float:
            logits = base + x @ code
            return float((np.logaddexp(0, logits) - y * logits).sum() + 0.7 * (code**2).sum())

        best = minimize(loss, np.zeros(4), tol=1e-10).x
        np.testing.assert_allclose(found[user].numpy(), best, rtol=1e-3, atol=1e-4)


def test_without_a_prior_a_user_with_one_row_still_has_an_answer() -> None:
    rows = rows_of([1, 2], 12)
    assert newton(normal(2, 2), normal(2, 2, 4, seed=1), rows, prior=0.0, steps=1).isfinite().all()


# Linearised MetaPatch


def test_phi_is_the_slope_of_the_patched_logit_by_autograd(head: Head, basis: Basis) -> None:
    rows = rows_of([6, 6, 6], 12)
    offset, phi = linearised(head, basis, rows)
    torch.testing.assert_close(offset, cloud_logits(head, rows))
    for user in range(3):
        slopes = torch.autograd.functional.jacobian(
            lambda code, user=user: head_logits(head, rows.z1[user : user + 1], basis.patch(code[None]))[0],
            torch.zeros(4),
        )
        assert slopes.abs().max() > 0.01
        torch.testing.assert_close(phi[user], slopes, atol=1e-5, rtol=1e-4)


# One by one, zero codes, and what is frozen


def methods(head: Head, basis: Basis, item_space: ItemSpace) -> dict:
    wide = with_offset(basis)
    layers = LayerSpace(head)
    return {
        "linearised": (
            PatchSpace(head, basis, torch.zeros(basis.size)),
            lambda rows: newton(*linearised(head, basis, rows), rows, 1.0, 1),
        ),
        "item-space": (
            item_space,
            lambda rows: newton(cloud_logits(head, rows), item_space.features(rows), rows, 1.0, 5),
        ),
        "fine-tune": (layers, lambda rows: fit_layers(layers, rows, 12, 0.01, 0.5)),
        "label-correction": (
            PatchSpace(head, wide, torch.zeros(wide.size)),
            lambda rows: fit_corrected(head, wide, rows, 12, 0.03, 1.0, torch.zeros(5)),
        ),
    }


NAMES = ["linearised", "item-space", "fine-tune", "label-correction"]


@pytest.mark.parametrize("name", NAMES)
def test_batched_is_one_by_one(head: Head, basis: Basis, item_space: ItemSpace, name: str) -> None:
    space, fit = methods(head, basis, item_space)[name]
    rows = rows_of(COUNTS, 12)
    together = fit(rows)
    assert together.shape == (5, space.size) and (together.norm(dim=1) > 1e-3).all()
    for user, count in enumerate(COUNTS):
        single = fit(alone(rows, user, count))[0]
        assert (together[user] - single).norm() <= 1e-4 * single.norm()


@pytest.mark.parametrize("name", NAMES)
def test_the_learned_numbers_lower_the_users_loss(head: Head, basis: Basis, item_space: ItemSpace, name: str) -> None:
    space, fit = methods(head, basis, item_space)[name]
    rows = rows_of([30, 30], 12)
    codes = fit(rows)
    losses = [
        F.binary_cross_entropy_with_logits(space.logits(rows, code), rows.labels, reduction="none").sum(1)
        for code in (torch.zeros_like(codes), codes)
    ]
    assert (losses[1] < losses[0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_space_with_zero_codes_is_the_cloud_model(head: Head, basis: Basis, item_space: ItemSpace, name: str) -> None:
    space, _ = methods(head, basis, item_space)[name]
    rows = rows_of(COUNTS, 12)
    zero = space.logits(rows, torch.zeros(5, space.size))
    torch.testing.assert_close(zero, cloud_logits(head, rows), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(space.logits(rows, torch.full((5, space.size), 0.3)), zero, atol=1e-3)


def heads_of(name: str, model: Din, log: EventLog, item_space: ItemSpace, codes: torch.Tensor):
    if name == "item-space":
        return item_head(model, item_space.embeddings, codes @ item_space.map.T, log)
    return layer_head(model, codes, log)


@pytest.mark.parametrize("name", ["item-space", "fine-tune"])
@pytest.mark.parametrize("everything", [True, False])
def test_served_heads(
    model: Din, log: EventLog, head: Head, item_space: ItemSpace, name: str, everything: bool
) -> None:
    """A zero code gives the cloud's logits to the last bit; another one what its space says."""
    space = item_space if name == "item-space" else LayerSpace(head)
    backbone, events = DinBackbone(model, log, 6), log.events_in(TEST)
    candidates = None if everything else torch.arange(20).expand(len(events), -1)
    with torch.no_grad():
        z1 = backbone.activations(events, candidates)
        cloud = cloud_head(model)(events, candidates, z1)
        zero = torch.zeros(log.n_users, space.size)
        assert torch.equal(heads_of(name, model, log, item_space, zero)(events, candidates, z1), cloud)
        codes = normal(log.n_users, space.size) * 0.1
        served = heads_of(name, model, log, item_space, codes)(events, candidates, z1)
    width = log.n_items if everything else 20
    rows = LocalRows(
        z1,
        torch.zeros(len(events), width),
        torch.ones(len(events), width),
        log.user[events],
        torch.arange(width).expand(len(events), -1),
        np.zeros(len(events), dtype=np.int64),
    )
    torch.testing.assert_close(
        served, space.logits(rows, codes[torch.from_numpy(log.user[events])]), atol=1e-5, rtol=1e-4
    )
    assert (served != cloud).any(1).all()


# Fine-tuning


def test_fine_tuning_is_torchs_adam_on_the_models_own_last_layers(model: Din, head: Head) -> None:
    """Σ CE + decay·‖w − w_cloud‖² by autograd on real layers, user by user, in float64."""
    rows = rows_of([7, 3, 1], 12)
    wide = Head(**{field.name: getattr(head, field.name).double() for field in dataclasses.fields(head)})
    exact = dataclasses.replace(rows, z1=rows.z1.double(), labels=rows.labels.double(), weights=rows.weights.double())
    ours = devicemethods.descend  # the optimiser is shared; the gradient is what is checked
    assert ours is basis_module.descend
    torch.set_default_dtype(torch.float64)
    try:
        found = fit_layers(LayerSpace(wide), exact, steps=10, learning_rate=0.01, decay=0.3)
        for user in range(3):
            hidden, out = torch.nn.Linear(12, 7), torch.nn.Linear(7, 1)
            with torch.no_grad():
                hidden.weight.copy_(wide.weight_2), hidden.bias.copy_(wide.bias_2)
                out.weight.copy_(wide.out[None]), out.bias.copy_(wide.bias[None])
            weights = [*hidden.parameters(), *out.parameters()]
            cloud = [weight.detach().clone() for weight in weights]
            optimiser = torch.optim.Adam(weights, lr=0.01)
            for _ in range(10):
                optimiser.zero_grad()
                logits = out(F.prelu(hidden(exact.z1[user]), wide.slope_2))[:, 0]
                loss = F.binary_cross_entropy_with_logits(
                    logits, exact.labels[user], exact.weights[user], reduction="sum"
                )
                pull = sum((w - c).square().sum() for w, c in zip(weights, cloud, strict=True))
                (loss + 0.3 * pull).backward()
                optimiser.step()
            change = torch.cat([(w.detach() - c).flatten() for w, c in zip(weights, cloud, strict=True)])
            assert change.abs().max() > 0.01
            torch.testing.assert_close(found[user], change, atol=1e-9, rtol=1e-7)
    finally:
        torch.set_default_dtype(torch.float32)


# Item space


def test_the_map_learns_with_columns_of_one_length(model: Din, head: Head, log: EventLog) -> None:
    embeddings = item_embeddings(model)
    start = new_map(embeddings, 4, seed=0)
    typical = float(embeddings.norm(dim=1).square().mean().sqrt())
    torch.testing.assert_close(start.norm(dim=0), torch.full((4,), 1 / typical))
    learned = learn_map(head, embeddings, start, *learning(model, log), JointFit(3, 0.05, 1.0, seed=0))
    torch.testing.assert_close(learned.norm(dim=0), start.norm(dim=0))
    assert F.cosine_similarity(learned, start, dim=0).max() < 0.99


def learning(model: Din, log: EventLog):
    """What all learners of shared weights are given."""
    events = log.events_in(DEVICE)

    def draw(epoch: int):
        drawn = sample(log, events, 4, log.catalogue(DEVICE), log.never_negative(DEVICE), 0, "test", epoch)
        return drawn.candidates, drawn.labels, drawn.weights

    users = np.unique(log.user[events], return_inverse=True)[1]
    return SharedEvents(events, users, draw), lambda own, candidates: first_layer(
        model, log, own, candidates, 6
    ).detach()


# Codes made in the cloud


def test_summaries_are_the_mean_of_the_newest_and_their_number(log: EventLog, model: Din) -> None:
    histories = Histories(log, item_embeddings(model), limit=3)
    events = log.events_in(TEST)
    found = histories.of_events(events)
    assert histories.size == found.shape[1]
    scale = item_embeddings(model).square().mean().sqrt()
    for at, event in enumerate(events):
        items = log.sequence[log.history_start[event] : log.history_end[event]][-3:]
        if len(items):
            torch.testing.assert_close(
                found[at, :-1], item_embeddings(model)[items].mean(0) / scale, atol=1e-5, rtol=1e-4
            )
        assert found[at, -1] == pytest.approx(np.log1p(len(items)))
    none = np.zeros(2, dtype=np.int64)
    assert not histories(none, none).any()


@pytest.mark.parametrize("block", [Block(CLOUD), Block(DEVICE), Block(DEVICE, 1, 2), Block(TEST)])
def test_what_is_known_of_a_user_ends_with_the_block(log: EventLog, block: Block) -> None:
    start, end = known_sequences(log, block)
    for user in range(log.n_users):
        own = [e for e in range(len(log.user)) if log.user[e] == user and log.label[e]]
        past = [
            e
            for e in own
            if log.period[e] < block.period or (log.period[e] == block.period and log.share[e] < block.end)
        ]
        assert log.sequence[start[user] : end[user]].tolist() == log.item[past].tolist()


class Turned:
    """Everybody liked the first half of the items; then users whose history was of even items turn to the second half.

    The cloud model scores all items alike, so only what is generated from the history can tell.
    """

    def __init__(self) -> None:
        rng, rows = np.random.default_rng(1), []
        for user in range(60):
            for t in range(12):
                period = CLOUD if t < 6 else DEVICE if t < 10 else TEST
                half = (user % 2) * (period != CLOUD)
                item = half * 10 + int(rng.integers(5)) * 2 + (user % 2 if period == CLOUD else int(rng.integers(2)))
                rows.append((user, item, t, 1, period))
        # users from 50 on have nothing in the device period: they are served from their history alone
        rows = [row for row in rows if row[0] < 50 or row[4] != DEVICE]
        # categories say an item's half and whether it is even
        items = torch.arange(20)
        categories = torch.stack([(items >= 10).long(), 2 + items % 2], dim=1)
        self.log = log_of(rows, 60, 20, item_categories=categories, n_categories=4)
        self.model = din(self.log, scale=5)
        self.head = Head.of(self.model)

    def margin(self, space: GeneratedSpace, users: np.ndarray) -> float:
        """Mean of logit(own half) − logit(other half) over users and items, as of the end of the device period."""
        start, end = known_sequences(self.log, Block(DEVICE))
        events = np.array([np.flatnonzero((self.log.user == user) & (self.log.period == TEST))[0] for user in users])
        candidates = torch.arange(20).expand(len(users), -1)
        with torch.no_grad():
            z1 = first_layer(self.model, self.log, events, candidates, 6)
            nothing = torch.zeros(len(users), 20)
            rows = LocalRows(z1, nothing, nothing, users, candidates, end[users])
            codes = space.codes(rows, start)
            change = space.logits(rows, codes) - space.logits(rows, torch.zeros_like(codes))
        sign = torch.where((torch.arange(20) >= 10)[None] == torch.from_numpy(users % 2 == 1)[:, None], 1.0, -1.0)
        return float((change * sign).mean())


def test_the_generator_learns_also_for_users_without_events_in_the_block() -> None:
    world = Turned()
    log = world.log
    basis = basis_for(world.model)
    embeddings = item_embeddings(world.model)
    histories = Histories(log, embeddings, 10)
    generator = Generator(histories.size, 8, 4, log.profile_sizes, torch.Generator().manual_seed(0))
    before = {name: weight.detach().clone() for name, weight in generator.named_parameters()}
    space = GeneratedSpace(world.head, basis, generator, histories)
    users, idle = np.arange(50), np.arange(50, 60)
    assert world.margin(space, users) == 0  # an untrained generator is the cloud model
    learned = learn_generator(
        world.head, basis, generator, histories, *learning(world.model, log), JointFit(150, 0.05, 0.001, seed=0)
    )
    for name, weight in generator.named_parameters():
        assert weight.grad is not None and not torch.equal(weight, before[name]), name
    space = GeneratedSpace(world.head, learned, generator, histories)
    assert world.margin(space, users) > 0.3
    assert world.margin(space, idle) > 0.1


# Similar users


def test_the_nearest_by_cosine_never_oneself() -> None:
    keys = normal(9, 5)
    users = torch.arange(9) * 2
    index, cosine = similar_users(keys[2:5], users[2:5], keys, users, 3)
    for at, own in enumerate(range(2, 5)):
        scores = F.cosine_similarity(keys[own][None], keys).clamp(min=0).numpy()
        scores[own] = 0
        best = np.argsort(-scores, kind="stable")[:3]
        positive = scores[best] > 0
        assert index[at].numpy()[positive].tolist() == best[positive].tolist()
        np.testing.assert_allclose(cosine[at].numpy(), scores[best], atol=1e-6)
        assert own not in index[at][cosine[at] > 0]


def test_nobody_is_similar_to_a_user_without_history() -> None:
    _, cosine = similar_users(torch.zeros(1, 5), torch.tensor([99]), normal(4, 5), torch.arange(4), 10)
    assert cosine.shape == (1, 4) and not cosine.any()


# Label correction


def test_the_last_number_of_a_corrected_code_is_an_offset_of_the_logit(head: Head, basis: Basis) -> None:
    wide, rows = with_offset(basis), rows_of([6, 6], 12)
    codes = torch.zeros(2, 5)
    codes[:, -1] = torch.tensor([0.7, -1.3])
    shifted = head_logits(head, rows.z1, wide.patch(codes))
    torch.testing.assert_close(shifted, cloud_logits(head, rows) + codes[:, -1:], atol=1e-5, rtol=1e-5)
    assert torch.equal(
        basis.shape.patch(wide.theta.T.contiguous()).bias[:4],
        basis.shape.patch(basis.theta.T.contiguous()).bias,
    )


def test_the_offset_is_the_users_base_rate_shrunken_and_stays_while_the_code_learns(head: Head, basis: Basis) -> None:
    rows = rows_of([30, 30], 12)
    rows.labels[0], rows.labels[1] = 1, 0  # one clicks on everything, the other on nothing
    codes = fit_corrected(head, with_offset(basis), rows, 12, 0.03, 2.0, torch.zeros(5))
    assert codes[0, -1] > 0.5 and codes[1, -1] < -0.5
    for user in range(2):
        b, base = float(codes[user, -1]), cloud_logits(head, rows)[user].double().numpy()
        slope = (sigmoid(base + b) - rows.labels[user].numpy()).sum() + 2 * 2.0 * b
        assert abs(slope) < 1e-3
    assert codes[:, :-1].all()
    free = metapatch.fit_devices(head, basis, rows, 12, 0.03, 2.0)
    assert (codes[:, :-1].norm(dim=1) < free.norm(dim=1)).all()  # what the offset took up, the code need not learn
    # with a mean the offset is what is left beside what is expected of everybody
    mean = torch.tensor([0.5, -0.5, 0.2, 0.0, 0.0])
    near = fit_corrected(head, with_offset(basis), rows, 12, 0.03, 2.0, mean)
    expected = head_logits(head, rows.z1, with_offset(basis).patch(mean.repeat(2, 1))).double().numpy()
    for user in range(2):
        b = float(near[user, -1])
        slope = (sigmoid(expected[user] + b) - rows.labels[user].numpy()).sum() + 2 * 2.0 * b
        assert abs(slope) < 1e-3
