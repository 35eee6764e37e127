"""The memory-conditioned patch: what it starts as, what it learns, and what it must not be able to learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_worlds import Row, log_of, normal

from dcclctl.devices.memory.features import FACTOR_FEATURES, FEATURES, ORDER_FEATURES, Memories
from dcclctl.devices.memory.patch import (
    MemoryFit,
    MemoryPatch,
    MemoryRows,
    event_losses,
    learn,
    prior_shift,
    user_losses,
)
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.errors import DivergedError
from dcclctl.events.log import CLOUD, DEVICE, TEST, Block, EventLog
from dcclctl.events.sampler import Sampler
from dcclctl.events.sampling import PairSet

N_USERS, N_ITEMS, N_CATEGORIES, SIZE, WINDOW = 60, 60, 6, 50, 8
N_FEATURES = len(FEATURES + ORDER_FEATURES + FACTOR_FEATURES)
N_PROFILE = N_FEATURES - 1
WIDTH = N_FEATURES + N_PROFILE
NEGATIVES = 4
FIT = MemoryFit(epochs=6, learning_rate=0.01, weight_decay=0.01, batch_size=64, seed=4, negatives=NEGATIVES)


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
    negatives: int = NEGATIVES,
    excluded: PairSet | None = None,
    shuffled: bool = False,
    keep: int = SIZE,
    window: int = WINDOW,
) -> MemoryRows:
    """Rows as the devices make them, on a cloud model that knows nothing.

    Args:
        excluded: what may not be drawn; the log's own rule if not given. shuffled: with the memories of other users.
        keep: events that each memory keeps, the newest. window: T.
    """
    block = Block(period)
    events = log.events_in(block)
    samples = Sampler(log, [block], negatives, 1, f"test/{period}", excluded).draw(events)
    statistics = count_statistics(log, lambda log: log.before(block), StatisticsSettings(SIZE, 5, 1.0, 3, 4), 2)
    whose = events[np.argsort((log.user[events] + 1) % N_USERS, kind="stable")] if shuffled else events
    log = log.truncate_history(whose, np.full(len(whose), keep))
    found = Memories(log, statistics, SIZE, window).features(whose, samples.candidates)
    logits = torch.full(samples.labels.shape, -math.log(negatives))
    stands = samples.weights[:, 1:] * (N_ITEMS / negatives)
    features, profile = found[..., :N_FEATURES], found[:, 0, N_FEATURES:]
    return MemoryRows(events, log.history_lengths(whose, SIZE), features, profile, logits, samples.labels[:, 0], stands)


def new_patch(seed: int = 0, n_profile: int = N_PROFILE) -> MemoryPatch:
    return MemoryPatch(8, N_FEATURES, n_profile, torch.Generator().manual_seed(seed))


@torch.no_grad()
def gauc(log: EventLog, patch: MemoryPatch, rows: MemoryRows) -> float:
    """Mean over the users of the share of (positive, negative) pairs that are in order; ties count half."""
    users = torch.from_numpy(log.user[rows.events])
    logits = patch(rows.inputs, rows.logits)
    own, others = logits[:, :1], logits[:, 1:]
    right = ((own > others).double() + 0.5 * (own == others).double()).mean(1)
    return float(np.mean([right[users == user].mean() for user in users.unique()]))


@torch.no_grad()
def log_loss(patch: MemoryPatch, rows: MemoryRows) -> float:
    return float(event_losses(patch(rows.inputs, rows.logits), rows.labels, rows.stands, NEGATIVES).mean())


# -- what it starts as


def test_a_new_patch_is_the_cloud_model() -> None:
    logits = 5 * normal(4, 7)
    assert new_patch()(normal(4, 7, WIDTH, seed=1), logits).equal(logits)


def filled(patch: MemoryPatch) -> MemoryPatch:
    """Weights as after a training, none of them zero."""
    with torch.no_grad():
        for at, weight in enumerate(patch.parameters()):
            weight.copy_(0.5 * normal(*weight.shape, seed=at))
    return patch


def test_the_patch_by_formula() -> None:
    patch = filled(new_patch()).requires_grad_(False)
    weight = {name: value.double().numpy() for name, value in patch.named_parameters()}
    features, logits = normal(1, 2, WIDTH), normal(1, 2, seed=1)
    for at in range(2):
        both, f = features[0, at].double().numpy(), float(logits[0, at])
        hidden = np.tanh(weight["inner"] @ [*both, f] + weight["inner_bias"])
        # the profile of recent events goes into the hidden units only
        expected = f + weight["outer"] @ np.concatenate([hidden, both[:N_FEATURES]])
        assert float(patch(features, logits)[0, at]) == pytest.approx(expected, rel=1e-4)


def test_an_ignored_number_changes_nothing() -> None:
    patch = filled(new_patch()).requires_grad_(False)
    ignored = [3, N_FEATURES + 2]
    features, logits = normal(5, 4, WIDTH), normal(5, 4, seed=1)
    changed = features.clone()
    changed[..., ignored] += 1
    before = patch(features, logits)
    assert not torch.isclose(patch(changed, logits), before).any()
    patch.ignore(ignored)
    assert patch(changed, logits).equal(patch(features, logits))
    assert not torch.isclose(patch(features, logits), before).all()


def test_rows_are_picked_joined_and_blanked() -> None:
    rows = rows_of(shop(0.5), DEVICE)
    parts = [rows.pick(torch.arange(5)), rows.where(torch.arange(len(rows.events)) >= 5)]
    whole = MemoryRows.join(parts)
    for name, values in vars(rows).items():
        assert np.array_equal(getattr(whole, name), values)
    turned = rows.pick(torch.tensor([7, 2]))
    assert turned.events.tolist() == rows.events[[7, 2]].tolist() and turned.labels.equal(rows.labels[[7, 2]])
    columns = [0, 4, N_FEATURES + 1]
    blank, others = rows.blank(columns), [at for at in range(WIDTH) if at not in columns]
    assert not blank.inputs[..., columns].any() and rows.inputs[..., columns].any()
    assert blank.inputs[..., others].equal(rows.inputs[..., others])


def test_the_prior_shift_moves_the_odds_of_a_click_from_one_sampling_to_another() -> None:
    """An item of a catalogue of 50 that comes next with probability 0.1: one click among n uniform negatives."""
    for trained, wanted in ((4, 1), (1, 16)):
        odds = {n: 0.1 / (n / 50) for n in (trained, wanted)}
        assert math.log(odds[trained]) + prior_shift(trained, wanted) == pytest.approx(math.log(odds[wanted]))


# -- what it learns


def test_the_users_own_memory_is_learned_and_another_users_is_of_no_use() -> None:
    log = shop(0.8)
    learned, on_test = rows_of(log, DEVICE), rows_of(log, TEST)
    patch = new_patch()
    losses = learn(patch, learned, FIT)
    assert losses[-1] < losses[0] - 0.02
    own = gauc(log, patch, on_test)
    assert own > 0.75
    shuffled = gauc(log, patch, rows_of(log, TEST, shuffled=True))
    assert shuffled < own - 0.2
    # a patch that is learned from other users' memories has nothing to learn
    other = new_patch()
    learn(other, rows_of(log, DEVICE, shuffled=True), FIT)
    assert gauc(log, other, on_test) < own - 0.15


def test_what_a_short_memory_says_has_to_be_learned_from_short_ones() -> None:
    """Everybody remembers 18 events or more when the patch is learned; then a user comes with one or two."""
    log = shop(0.6)
    rows = rows_of(log, DEVICE, window=0)  # a profile of recent events would say how few events there are
    short = [rows_of(log, DEVICE, keep=keep, window=0) for keep in (1, 2, 4)]
    found = {}
    for name, taught in (("long", rows), ("short too", MemoryRows.join([rows, *short]))):
        patch = new_patch(n_profile=0)
        learn(patch, taught, FIT)
        found[name] = [log_loss(patch, rows_of(log, TEST, keep=keep, window=0)) for keep in (1, 2, SIZE)]
    nothing = log_loss(new_patch(n_profile=0), rows_of(log, TEST, keep=1, window=0))
    assert min(nothing, found["long"][0]) > found["short too"][0]
    assert found["long"][1] > found["short too"][1]
    assert found["short too"][2] < found["long"][2] + 0.1


def test_learning_is_the_same_bits_twice_and_another_seed_another_patch() -> None:
    rows = rows_of(shop(0.5), DEVICE)

    def learned(seed: int = 4) -> list[torch.Tensor]:
        patch = new_patch()
        learn(patch, rows, replace(FIT, epochs=2, seed=seed))
        return [weight.detach() for weight in patch.parameters()]

    first, second, third = learned(), learned(), learned(5)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, third, strict=True))


def test_every_weight_is_learned_and_every_step_is_told() -> None:
    patch, told = new_patch(), []
    before = {name: weight.detach().clone() for name, weight in patch.named_parameters()}
    losses = learn(patch, rows_of(shop(0.5), DEVICE), FIT, lambda *figures: told.append(figures))
    for name, weight in patch.named_parameters():
        assert (weight != before[name]).float().mean() > 0.9, name
    counts = [count for count, _ in told]
    assert sum(counts) == FIT.epochs * len(rows_of(shop(0.5), DEVICE).events) and len(losses) == FIT.epochs
    assert all(note.startswith(("loss 3.", "loss 4.")) for _, note in told)  # about log 61


def test_the_objective_is_the_share_of_the_own_item_among_all_with_torchs_adamw() -> None:
    """One batch, two steps, written out."""
    rows = rows_of(shop(0.5), DEVICE)
    rows.stands[::3, 2:] = 0
    rows.labels[::5] = 0
    ours, theirs = new_patch(), new_patch()
    learn(ours, rows, replace(FIT, epochs=2, batch_size=10**6))
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=FIT.learning_rate, weight_decay=FIT.weight_decay)
    for _ in range(2):
        odds = theirs(rows.inputs, rows.logits).exp()
        own, others = odds[:, 0], (odds[:, 1:] * rows.stands).sum(1)
        level = (others / rows.stands.sum(1) * NEGATIVES).log()
        chosen = (1 + others / own).log() + 0.05 * level.square()
        loss = torch.where(rows.labels > 0, chosen, (1 + own).log()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-3)


def test_an_event_with_nothing_to_compare_with_teaches_nothing() -> None:
    logits = normal(3, 5).requires_grad_()
    losses = event_losses(logits, torch.ones(3), torch.zeros(3, 4), NEGATIVES)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0] and logits.grad is not None and not logits.grad.any()


def test_a_loss_that_is_no_number_is_said() -> None:
    with pytest.raises(DivergedError, match="became") as error:
        learn(new_patch(), rows_of(shop(0.5), DEVICE), replace(FIT, learning_rate=1e30))
    assert "patch.memory.learning_rate" in error.value.remedy


@pytest.mark.parametrize("smallest", [1, 5])
def test_losses_are_those_of_what_is_served(smallest: int) -> None:
    """Mean loss of each user's tested events; where too little is remembered, the cloud model's on both sides."""
    log = shop(0.8)
    rows = rows_of(log, DEVICE).pick(torch.arange(40))
    rows.held[3:5] = 0
    patch = filled(new_patch()).requires_grad_(False)
    tested = torch.arange(40) % 3 == 0
    assert 0 < (rows.held >= smallest).sum() < 40
    found = user_losses(patch, rows, log, tested, NEGATIVES, smallest)
    owners = log.user[rows.events]
    for user in range(N_USERS):
        mine = np.flatnonzero((owners == user) & tested.numpy())
        if not len(mine):
            assert found[user].isnan().all()
            continue
        index = torch.from_numpy(mine)
        after = patch(rows.inputs[index], rows.logits[index])
        after = torch.where(torch.from_numpy(rows.held[mine] >= smallest)[:, None], after, rows.logits[index])
        expected = [
            event_losses(logits, rows.labels[index], rows.stands[index], NEGATIVES).mean().item()
            for logits in (rows.logits[index], after)
        ]
        assert found[user].tolist() == pytest.approx(expected, rel=1e-5)
    nothing = rows.pick(torch.tensor([3]))
    losses = user_losses(patch, nothing, log, torch.tensor([True]), NEGATIVES, smallest)[owners[3]]
    assert losses[0] == losses[1]


# -- what it must not be able to learn


def everything_ever_taken(log: EventLog) -> PairSet:
    """A planted leak: negatives that the user never takes, before or after."""
    return PairSet(log.user, log.item, log.n_items)


def learned_without_a_signal(log: EventLog, excluded: PairSet | None) -> tuple[float, float, float]:
    """GAUC on what is learned from, GAUC on test under the honest rule, and the last loss against that of knowing nothing."""
    rows = rows_of(log, DEVICE, negatives=8, excluded=excluded)
    patch = new_patch()
    loss = learn(patch, rows, replace(FIT, negatives=8))[-1]
    knowing_nothing = math.log(1 + N_ITEMS)
    return gauc(log, patch, rows), gauc(log, patch, rows_of(log, TEST, negatives=8)), knowing_nothing - loss


def test_counts_do_not_give_the_label_away_through_the_negatives() -> None:
    """Users choose at random. Where negatives are drawn from all that a user might take, memory tells nothing of them;
    where what the user ever takes is left out, an item in memory is a positive for sure, and the patch learns just that."""
    log = shop(0.0)
    honest_train, honest_test, honest_gain = learned_without_a_signal(log, None)
    leaky_train, leaky_test, leaky_gain = learned_without_a_signal(log, everything_ever_taken(log))
    assert abs(honest_test - 0.5) < 0.04, "the memory knows something of choices that nothing was known of"
    assert honest_train < 0.6, "the negatives that are learned from give the label away"
    assert honest_gain < 0.05
    # the very same figures show a leak where there is one
    assert leaky_train > 0.63
    assert leaky_gain > 0.15
    assert abs(leaky_test - 0.5) < 0.04
