"""The memory-conditioned patch: what it starts as, what it learns, and what it must not be able to learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dcclctl.algorithm.eventlog import CLOUD, DEVICE, TEST, Block, EventLog
from dcclctl.algorithm.memory import FEATURES, ORDER_FEATURES, Counting, Memories, count_statistics
from dcclctl.algorithm.memorypatch import (
    MemoryFit,
    MemoryPatch,
    MemoryRows,
    category_shares,
    fit_codes,
    learn,
    user_losses,
)
from dcclctl.algorithm.sampling import PairSet
from dcclctl.algorithm.training import sample
from small_worlds import Row, log_of, normal
from torch.nn import functional as F

from dcclctl.errors import DivergedError

N_USERS, N_ITEMS, N_CATEGORIES, SIZE, TRACK = 60, 60, 6, 50, 8
N_FEATURES = len(FEATURES + ORDER_FEATURES)
WIDTH = N_FEATURES + N_FEATURES - 1
FIT = MemoryFit(epochs=6, learning_rate=0.01, weight_decay=0.01, batch_size=64, seed=4)


def shop(loyalty: float, seed: int = 0, repeats: bool = True) -> EventLog:
    """30 events a user, 18 of them of the cloud, 6 of device, 6 of test, each at its own time.

    Args:
        loyalty: chance that a user takes an item of the user's own category; else it is any item.
    """
    draw = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(N_USERS):
        items = np.where(
            draw.random(30) < loyalty,
            user % N_CATEGORIES + N_CATEGORIES * draw.integers(0, N_ITEMS // N_CATEGORIES, 30),
            draw.integers(0, N_ITEMS, 30),
        )
        if not repeats:
            items = items[np.sort(np.unique(items, return_index=True)[1])]
        for at, item in enumerate(items):
            period = CLOUD if at < 0.6 * len(items) else DEVICE if at < 0.8 * len(items) else TEST
            rows.append((user, int(item), at * 100 + user, 1, period))
    return log_of(
        rows,
        N_USERS,
        N_ITEMS,
        item_categories=(torch.arange(N_ITEMS) % N_CATEGORIES)[:, None],
        n_categories=N_CATEGORIES,
        repeats=repeats,
    )


def rows_of(
    log: EventLog,
    period: int,
    negatives: int = 4,
    excluded: PairSet | None = None,
    lent: bool = False,
    keep: int = SIZE,
    track: int = TRACK,
) -> MemoryRows:
    """Rows as the devices make them, on a cloud model that knows nothing.

    Args:
        excluded: what may not be drawn; the log's own rule if not given. lent: with the memories of other users.
        keep: events that each memory keeps, the newest. track: T.
    """
    block = Block(period)
    events = log.events_in(block)
    samples = sample(
        log, events, negatives, log.catalogue(block), excluded or log.never_negative(block), 1, f"test/{period}"
    )
    statistics = count_statistics(log, log.before(block), Counting(SIZE, 5, 1.0, 3), 2)
    whose = events[np.argsort((log.user[events] + 1) % N_USERS, kind="stable")] if lent else events
    log = log.shortened(whose, np.full(len(whose), keep))
    found = Memories(log, statistics, SIZE, track).features(whose, samples.candidates)
    logits = torch.full(samples.labels.shape, -math.log(negatives))
    shares = category_shares(log, whose, SIZE)
    held = log.history_lengths(whose, SIZE)
    popular = statistics.popularity[samples.candidates]
    return MemoryRows(events, held, found, logits, popular, samples.labels, samples.weights, shares)


def new_patch(
    log: EventLog, code_size: int = 0, seed: int = 0, tracked: int = N_FEATURES - 1, popularity: bool = True
) -> MemoryPatch:
    generator = torch.Generator().manual_seed(seed)
    sizes = (log.profile_sizes, log.n_categories)
    return MemoryPatch(8, N_FEATURES, tracked, popularity, code_size, *sizes, generator)


@torch.no_grad()
def gauc(log: EventLog, patch: MemoryPatch, rows: MemoryRows) -> float:
    """Mean over the users of the share of (positive, negative) pairs that are in order; ties count half."""
    users = torch.from_numpy(log.user[rows.events])
    codes = patch.encode(torch.zeros(len(users), patch.code_size), log.profile[users], rows.shares)
    logits = patch(rows.features, rows.logits, rows.popularity, codes)
    own, others = logits[:, :1], logits[:, 1:]
    right = ((own > others).double() + 0.5 * (own == others).double()).mean(1)
    return float(np.mean([right[users == user].mean() for user in users.unique()]))


@torch.no_grad()
def log_loss(log: EventLog, patch: MemoryPatch, rows: MemoryRows) -> float:
    logits = patch(rows.features, rows.logits, rows.popularity, torch.zeros(len(rows.events), 0))
    return float(F.binary_cross_entropy_with_logits(logits, rows.labels))


# -- what it starts as


def test_a_new_patch_is_the_cloud_model() -> None:
    log = shop(0.5)
    for code_size in (0, 3):
        patch = new_patch(log, code_size)
        logits = 5 * normal(4, 7)
        codes = torch.zeros(4, code_size)
        assert patch(normal(4, 7, WIDTH, seed=1), logits, normal(4, 7, seed=2), codes).equal(logits)
        assert patch.encode(codes, log.profile[:4], torch.zeros(4, N_CATEGORIES + 1)).equal(codes)


def test_without_codes_there_is_nothing_to_encode() -> None:
    patch = new_patch(shop(0.5), 0)
    empty = torch.zeros(4, 0)
    assert patch.code_size == 0
    assert patch.encode(empty, torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 0)) is empty


def filled(patch: MemoryPatch) -> MemoryPatch:
    """Weights as after a training, none of them zero."""
    with torch.no_grad():
        for at, weight in enumerate(patch.parameters()):
            weight.copy_(0.5 * normal(*weight.shape, seed=at))
    return patch


@pytest.mark.parametrize("popularity", [True, False])
def test_the_patch_and_its_codes_by_formula(popularity: bool) -> None:
    log = replace(shop(0.5), profile=torch.tensor([[1, 0]] * N_USERS), profile_sizes=(2, 3))
    patch = filled(new_patch(log, 2, popularity=popularity)).requires_grad_(False)
    weight = {name: value.detach().double().numpy() for name, value in patch.named_parameters()}
    found, logits, codes = normal(1, 2, WIDTH), normal(1, 2, seed=1), normal(1, 2, seed=2)
    popular = normal(1, 2, seed=3)
    shares = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0]])
    code = weight["code"] @ codes[0].double().numpy() + np.tanh(
        weight["profile"][1] + weight["profile"][2 + 0] + 0.5 * (weight["summary"][0] + weight["summary"][1])
    )
    encoded = patch.encode(codes, log.profile[:1], shares)
    np.testing.assert_allclose(encoded.detach()[0], code, rtol=1e-5)
    for at in range(2):
        both, f = found[0, at].double().numpy(), float(logits[0, at])
        c = both[:N_FEATURES]  # the track record behind them goes into the hidden units only
        item = [f, float(popular[0, at])] if popularity else [f]
        hidden = np.tanh(weight["inner"] @ [*both, *item] + weight["inner_bias"])
        if popularity:  # what an item's popularity says by itself is the cloud model's business
            alone = [c[0], *np.zeros(N_FEATURES - 1), *both[N_FEATURES:], f]
            hidden -= np.tanh(weight["inner"] @ [*alone, item[1]] + weight["inner_bias"])
            hidden += np.tanh(weight["inner"] @ [*alone, 0] + weight["inner_bias"])
        phi = np.concatenate([hidden, c])
        expected = f + (weight["outer"] + weight["basis"] @ code) @ phi
        assert float(patch(found, logits, popular, encoded)[0, at]) == pytest.approx(expected, rel=1e-4)


def test_without_evidence_popularity_counts_for_nothing() -> None:
    """Where a memory of any size and record says of an item what everybody's would, it does not matter how popular the item is."""
    patch = filled(new_patch(shop(0.5)))
    logits, popular, codes = 3 * normal(5, 4), 3 * normal(5, 4, seed=1), torch.zeros(5, 0)
    some = normal(5, 4, WIDTH, seed=2)
    nothing = some.clone()
    nothing[..., 1:N_FEATURES] = 0
    torch.testing.assert_close(patch(nothing, logits, popular, codes), patch(nothing, logits, popular + 1, codes))
    assert (patch(some, logits, popular, codes) - patch(some, logits, popular + 1, codes)).abs().min() > 1e-3
    # and an average item is judged as by the patch to which popularity is nothing
    without = filled(new_patch(shop(0.5), popularity=False))
    assert without(some, logits, popular, codes).equal(without(some, logits, popular + 1, codes))
    with torch.no_grad():
        for name, weight in without.named_parameters():
            weight.copy_(getattr(patch, name)[:, :-1] if name == "inner" else getattr(patch, name))
    average = torch.zeros(5, 4)
    torch.testing.assert_close(patch(some, logits, average, codes), without(some, logits, average, codes))


def test_what_evidence_is_worth_is_learned_by_popularity() -> None:
    """An item near the memory is the next one if it is rare, and one among many if everybody has it."""
    log = shop(0.5)
    draw = np.random.default_rng(3)
    n = 600
    features = torch.zeros(n, 5, WIDTH)
    popular = torch.from_numpy(draw.choice([-1.0, 1.0], (n, 5))).float()
    near = torch.from_numpy(draw.random((n, 5)) < 0.5)
    features[..., 3] = 2.0 * near
    odds = torch.where(near & (popular < 0), 2.0, -2.0)
    labels = (torch.from_numpy(draw.random((n, 5))) < torch.sigmoid(odds)).float()
    logits = torch.full((n, 5), -1.5)
    rows = MemoryRows(
        log.events_in(CLOUD)[:n], np.full(n, 5), features, logits, popular, labels, torch.ones(n, 5), torch.zeros(n, 0)
    )
    losses = {}
    for popularity in (True, False):
        patch = new_patch(log, popularity=popularity)
        losses[popularity] = learn(patch, rows, log, replace(FIT, epochs=30))[-1]
    assert losses[True] < losses[False] - 0.05


def test_shares_of_a_memory_are_those_of_its_categories() -> None:
    log = log_of(
        [(0, 0, 1, 1, CLOUD), (0, 1, 2, 1, CLOUD), (0, 2, 3, 1, CLOUD), (0, 0, 4, 1, CLOUD)],
        1,
        3,
        item_categories=torch.tensor([[0, 2], [0, 1], [2, 2]]),
        n_categories=2,
    )
    assert category_shares(log, np.arange(4), 9)[:, :2].tolist() == [
        [0, 0],
        [1, 0],
        [pytest.approx(2 / 3), pytest.approx(1 / 3)],
        [pytest.approx(2 / 3), pytest.approx(1 / 3)],  # item 2 has no category
    ]
    assert category_shares(log, np.array([3]), 2)[0].tolist() == [0.5, 0.5, 0]  # 0 is forgotten


# -- what it learns


def test_users_who_come_back_are_learned_and_strangers_memories_are_not() -> None:
    log = shop(0.8)
    learned, on_test = rows_of(log, DEVICE), rows_of(log, TEST)
    patch = new_patch(log)
    losses = learn(patch, learned, log, FIT)
    assert losses[-1] < losses[0] - 0.02
    own = gauc(log, patch, on_test)
    assert own > 0.75
    lent = gauc(log, patch, rows_of(log, TEST, lent=True))
    assert lent < own - 0.2
    # a patch that is learned from strangers' memories has nothing to learn
    other = new_patch(log)
    learn(other, rows_of(log, DEVICE, lent=True), log, FIT)
    assert gauc(log, other, on_test) < own - 0.15


def test_what_a_short_memory_says_has_to_be_learned_from_short_ones() -> None:
    """Everybody remembers 18 events or more when the patch is learned; then somebody comes who has had one or two."""
    log = shop(0.6)
    rows = rows_of(log, DEVICE, track=0)  # a track record would say how little there is to go by
    short = [rows_of(log, DEVICE, keep=keep, track=0) for keep in (1, 2, 4)]
    found = {}
    for name, taught in (("long", rows), ("short too", MemoryRows.join([rows, *short]))):
        patch = new_patch(log, tracked=0)
        learn(patch, taught, log, FIT)
        found[name] = [log_loss(log, patch, rows_of(log, TEST, keep=keep, track=0)) for keep in (1, 2, SIZE)]
    nothing = log_loss(log, new_patch(log), rows_of(log, TEST, keep=1))
    assert found["long"][0] > nothing > found["short too"][0]
    assert found["long"][1] > found["short too"][1]
    assert found["short too"][2] < found["long"][2] + 0.01


def test_learning_is_the_same_bits_twice_and_another_seed_another_patch() -> None:
    log = shop(0.5)
    rows = rows_of(log, DEVICE)

    def learned(seed: int = 4) -> list[torch.Tensor]:
        patch = new_patch(log, 2)
        learn(patch, rows, log, replace(FIT, epochs=2, seed=seed))
        return [weight.detach() for weight in patch.parameters()]

    first, second, third = learned(), learned(), learned(5)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, third, strict=True))


def test_every_weight_is_learned() -> None:
    log = replace(shop(0.5), profile=torch.arange(N_USERS)[:, None] % 2, profile_sizes=(2,))
    patch = new_patch(log, 3)
    before = {name: weight.detach().clone() for name, weight in patch.named_parameters()}
    learn(patch, rows_of(log, DEVICE), log, replace(FIT, epochs=1))
    moved = {name for name, weight in patch.named_parameters() if not weight.detach().equal(before[name])}
    # W₂ multiplies θ̂, which is 0 here: weight decay alone moves it
    assert moved == set(before)
    assert torch.allclose(patch.code, before["code"] * patch.code[0, 0])


def test_a_loss_that_is_no_number_is_said() -> None:
    log = shop(0.5)
    with pytest.raises(DivergedError, match="--memory-learning-rate"):
        learn(new_patch(log), rows_of(log, DEVICE), log, replace(FIT, learning_rate=1e30))


# -- θ̂ on the device


def test_all_devices_at_once_are_each_device_alone() -> None:
    """Adam of PyTorch on one user's own rows gives that user's θ̂."""
    log = shop(0.8)
    rows = rows_of(log, DEVICE)
    patch = filled(new_patch(log, 3)).requires_grad_(False)
    owners = log.user[rows.events]
    keep = torch.from_numpy(np.arange(len(owners)) % 5 > 0) & torch.from_numpy(owners != 7)
    found = fit_codes(patch, rows, log, keep, steps=7, learning_rate=0.05, prior=0.3)
    assert not found[7].any()  # nothing may be learned from
    for user in (0, 3, 59):
        mine = rows.pick(torch.from_numpy(np.flatnonzero((owners == user) & keep.numpy())))
        profile = log.profile[torch.full((len(mine.events),), user)]
        code = torch.zeros(3, requires_grad=True)
        adam = torch.optim.Adam([code], lr=0.05)
        for _ in range(7):
            own = patch.encode(code.expand(len(profile), -1), profile, mine.shares)
            logits = patch(mine.features, mine.logits, mine.popularity, own)
            each = F.binary_cross_entropy_with_logits(logits, mine.labels, reduction="none")
            adam.zero_grad()
            ((each * mine.weights).sum() + 0.3 * code.square().sum()).backward()
            adam.step()
        assert code.detach().abs().max() > 0.05
        torch.testing.assert_close(found[user], code.detach(), rtol=1e-3, atol=1e-4)


def test_losses_are_those_of_what_is_served() -> None:
    """Mean cross-entropy of each user's judged events; where nothing is remembered, the cloud model's on both sides."""
    log = shop(0.8)
    rows = rows_of(log, DEVICE).pick(torch.arange(40))
    rows.held[3:5] = 0
    patch = filled(new_patch(log, 2)).requires_grad_(False)
    judged = torch.arange(40) % 3 == 0
    codes = normal(N_USERS, 2, seed=9)
    found = user_losses(patch, rows, log, codes, judged)
    owners = log.user[rows.events]
    for user in range(N_USERS):
        mine = np.flatnonzero((owners == user) & judged.numpy())
        if not len(mine):
            assert found[user].isnan().all()
            continue
        index = torch.from_numpy(mine)
        code = patch.encode(codes[[user]].expand(len(mine), -1), log.profile[[user] * len(mine)], rows.shares[index])
        after = patch(rows.features[index], rows.logits[index], rows.popularity[index], code)
        after = torch.where(torch.from_numpy(rows.held[mine] > 0)[:, None], after, rows.logits[index])
        expected = [
            F.binary_cross_entropy_with_logits(logits, rows.labels[index]).item()
            for logits in (rows.logits[index], after)
        ]
        assert found[user].tolist() == pytest.approx(expected, rel=1e-5)
    nothing = rows.pick(torch.tensor([3]))
    losses = user_losses(patch, nothing, log, codes, torch.tensor([True]))[owners[3]]
    assert losses[0] == losses[1]


# -- what it must not be able to learn


def everything_ever_had(log: EventLog, *blocks: object) -> PairSet:
    """A planted leak: negatives that the user never had, before or after."""
    return PairSet(log.user, log.item, log.n_items)


def learned_without_a_signal(log: EventLog, excluded: PairSet | None) -> tuple[float, float, float]:
    """GAUC on what is learned from, GAUC on test under the honest rule, and the last loss against that of knowing nothing."""
    rows = rows_of(log, DEVICE, negatives=8, excluded=excluded)
    patch = new_patch(log)
    loss = learn(patch, rows, log, FIT)[-1]
    knowing_nothing = math.log(9) - 8 / 9 * math.log(8)
    return gauc(log, patch, rows), gauc(log, patch, rows_of(log, TEST, negatives=8)), knowing_nothing - loss


def test_counts_do_not_give_the_label_away_through_the_negatives() -> None:
    """Users choose at random. Where negatives are drawn from all that a user might take, memory tells nothing of them;
    where what the user ever had is left out, an item in memory is a positive for sure, and the patch learns just that."""
    log = shop(0.0)
    honest_train, honest_test, honest_gain = learned_without_a_signal(log, None)
    leaky_train, leaky_test, leaky_gain = learned_without_a_signal(log, everything_ever_had(log))
    assert abs(honest_test - 0.5) < 0.04, "the memory knows something of choices that nothing was known of"
    assert honest_train < 0.6, "the negatives that are learned from give the label away"
    assert honest_gain < 0.01
    # the very same figures show a leak where there is one
    assert leaky_train > 0.63
    assert leaky_gain > 0.03
    assert abs(leaky_test - 0.5) < 0.04
