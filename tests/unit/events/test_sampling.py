import hashlib

import numpy as np
import pytest
from references import contains_by_search
from scipy.stats import chisquare

from dcclctl.events.sampling import NO_ITEM, PairSet, draw_negatives, hashes, log_uniform, permutation, stream

NOBODY = PairSet(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 1000)
CATALOGUE = np.arange(100, 150, dtype=np.int64)


def mix(x: int) -> int:
    """SplitMix64's finaliser in whole numbers of any size."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_a_hash_is_splitmix_over_the_keys():
    start = int.from_bytes(hashlib.sha256(b"3/why").digest()[:8], "little") >> 1
    assert stream(3, "why") == start
    expected = []
    for key in (0, 1, 2**40, -1):
        state = start
        for part in (9, key):
            state = mix((state * 0x9E3779B97F4A7C15 + part + 0x9E3779B97F4A7C15) % 2**64)
        expected.append(state)
    assert hashes(3, "why", 9, np.array([0, 1, 2**40, -1])).tolist() == expected


def test_seed_purpose_and_every_key_matter():
    keys = np.arange(10, 60)
    ours = hashes(0, "a", 1, keys)
    for other in (hashes(1, "a", 1, keys), hashes(0, "b", 1, keys), hashes(0, "a", 2, keys), hashes(0, "a", keys, 1)):
        assert (ours != other).all()
    assert np.array_equal(ours, hashes(0, "a", 1, keys))


def test_hashes_are_evenly_spread():
    bits = np.unpackbits(hashes(0, "bits", np.arange(20000)).view(np.uint8).reshape(-1, 8), axis=1)
    # each of 64 bits is one in half of the draws: 5 standard deviations
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(20000)


def test_a_permutation_is_one_and_follows_the_keys():
    keys = np.arange(1000)
    order = permutation(0, "shuffle", keys, 3)
    assert np.array_equal(np.sort(order), keys)
    assert not np.array_equal(order, keys)
    assert not np.array_equal(order, permutation(0, "shuffle", keys, 4))
    # the same keys in another order come out in the same order of keys
    turned = keys[::-1].copy()
    assert np.array_equal(turned[permutation(0, "shuffle", turned, 3)], keys[order])


def test_every_place_is_equally_likely_in_a_permutation():
    places = [int(np.flatnonzero(permutation(0, "shuffle", np.arange(5), round) == 2)[0]) for round in range(2000)]
    assert chisquare(np.bincount(places, minlength=5)).pvalue > 1e-4


def test_negatives_are_uniform_over_the_catalogue():
    keys = np.arange(5000)
    drawn = draw_negatives(0, "n", keys, keys % 7, 4, CATALOGUE, NOBODY)
    assert chisquare(np.bincount(drawn.ravel() - 100, minlength=50)).pvalue > 1e-4
    for column in range(4):
        assert chisquare(np.bincount(drawn[:, column] - 100, minlength=50)).pvalue > 1e-4


def test_negatives_are_uniform_over_what_is_not_excluded():
    keys = np.arange(5000)
    excluded = PairSet(np.zeros(30, dtype=np.int64), CATALOGUE[:30], 1000)
    drawn = draw_negatives(0, "n", keys, np.zeros_like(keys), 4, CATALOGUE, excluded)
    assert drawn.min() == 130
    assert chisquare(np.bincount(drawn.ravel() - 130, minlength=20)).pvalue > 1e-4


def test_excluded_pairs_are_never_drawn():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 6, 250), rng.integers(100, 150, 250)
    excluded = PairSet(users, items, 1000)
    owners = np.arange(3000) % 6
    drawn = draw_negatives(0, "n", np.arange(3000), owners, 5, CATALOGUE, excluded)
    pairs = set(zip(users.tolist(), items.tolist(), strict=True))
    assert not any((u, i) in pairs for u, row in zip(owners.tolist(), drawn.tolist(), strict=True) for i in row)
    assert set(drawn.ravel()) <= set(CATALOGUE.tolist())


def plain_draws(left: list[list[int]], drawn: np.ndarray) -> None:
    """Check draws by a plain loop: distinct items of what is left for each event, as many as there are, then NO_ITEM."""
    for allowed, row in zip(left, drawn.tolist(), strict=True):
        items = row[: min(len(allowed), len(row))]
        assert len(set(items)) == len(items) and set(items) <= set(allowed)
        assert row[len(items) :] == [NO_ITEM] * (len(row) - len(items))


@pytest.mark.parametrize("count", [1, 3, 6, 60])
def test_draws_are_distinct_items_of_what_is_left_and_no_item_beyond(count):
    """User u may get u items of the catalogue: from none to all of them."""
    users = np.repeat(np.arange(51), 50)
    items = np.tile(CATALOGUE, 51)
    taken = items - 100 >= users
    excluded = PairSet(users[taken], items[taken], 1000)
    keys = np.arange(3 * 51)
    drawn = draw_negatives(0, "n", keys, keys % 51, count, CATALOGUE, excluded)
    plain_draws([list(range(100, 100 + key % 51)) for key in range(3 * 51)], drawn)


def test_the_first_items_are_the_same_whatever_the_count():
    """Also where the larger draw uses up all that is left, and the smaller one does not."""
    excluded = PairSet(np.zeros(44, dtype=np.int64), CATALOGUE[:44], 1000)
    keys = np.arange(300)
    most = draw_negatives(0, "n", keys, np.zeros_like(keys), 9, CATALOGUE, excluded)
    assert (most[:, 6:] == NO_ITEM).all() and (most[:, :6] >= 144).all()
    for count in range(9):
        fewer = draw_negatives(0, "n", keys, np.zeros_like(keys), count, CATALOGUE, excluded)
        assert np.array_equal(fewer, most[:, :count])
    for column in range(6):  # and each place is as likely for each item
        assert chisquare(np.bincount(most[:, column] - 144, minlength=6)).pvalue > 1e-4


def test_an_empty_catalogue_has_no_negatives():
    drawn = draw_negatives(0, "n", np.arange(4), np.arange(4), 3, CATALOGUE[:0], NOBODY)
    assert drawn.tolist() == [[NO_ITEM] * 3] * 4


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_draw_depends_on_its_event_and_not_on_the_batch(batch):
    rng = np.random.default_rng(0)
    keys, users = np.arange(200), rng.integers(0, 5, 200)
    excluded = PairSet(rng.integers(0, 5, 150), rng.integers(100, 150, 150), 1000)
    whole = draw_negatives(4, "n", keys, users, 4, CATALOGUE, excluded, round=2)
    order = rng.permutation(200)
    for start in range(0, 200, batch):
        part = order[start : start + batch]
        assert np.array_equal(draw_negatives(4, "n", keys[part], users[part], 4, CATALOGUE, excluded, 2), whole[part])
    fewer = draw_negatives(4, "n", keys, users, 2, CATALOGUE, excluded, round=2)
    assert np.array_equal(fewer, whole[:, :2])


def test_rounds_draw_anew():
    keys = np.arange(500)
    first, second = (draw_negatives(0, "n", keys, keys, 4, CATALOGUE, NOBODY, round) for round in (0, 1))
    assert (first == second).mean() < 0.05  # by chance 1 in 50


def test_an_empty_set_has_no_pairs():
    assert not NOBODY.contains(np.arange(3), np.arange(3)).any()


def test_log_uniform_lengths_are_as_often_the_least_as_the_next_two_or_the_four_after():
    keys = np.arange(70_000)
    for least in (0, 1):
        lengths = log_uniform(3, "x", keys, least, np.full(len(keys), least + 6)) - least
        assert lengths.min() == 0 and lengths.max() == 6
        shares = [((lengths >= low) & (lengths <= high)).mean() for low, high in ((0, 0), (1, 2), (3, 6))]
        np.testing.assert_allclose(shares, 1 / 3, atol=0.02)
    most = keys % 5
    assert (log_uniform(3, "x", keys, 0, most) <= most).all()
    assert (log_uniform(3, "x", keys, 0, np.zeros_like(keys)) == 0).all()


@pytest.mark.parametrize(("n_owners", "n_items", "n_pairs"), [(7, 11, 40), (1000, 50, 3000), (3, 5, 0), (2, 3, 6)])
def test_membership_is_that_of_a_search_of_every_pair(n_owners: int, n_items: int, n_pairs: int) -> None:
    draw = np.random.default_rng(n_pairs)
    pairs = PairSet(draw.integers(0, n_owners, n_pairs), draw.integers(0, n_items, n_pairs), n_items)
    owners, items = np.arange(n_owners + 2)[::-1].copy(), np.arange(n_items)
    expected = contains_by_search(pairs, owners[:, None], items[None, :])
    assert np.array_equal(pairs.contains(owners[:, None], items[None, :]), expected)
    assert np.array_equal(pairs.of_owners(owners), np.nonzero(expected))
    assert np.array_equal(pairs.among(owners, items), expected)
    assert expected.sum() <= n_pairs
    assert expected.any() == (n_pairs > 0)
    twice = pairs.of_owners(owners[[3, 3]])  # an owner may be asked for twice
    assert np.array_equal(twice, np.nonzero(expected[[3, 3]]))
    assert pairs.contains(owners[:0], items[:0]).shape == (0,)
