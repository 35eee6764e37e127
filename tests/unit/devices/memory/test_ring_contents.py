"""What all rings hold, in closed form, against one ring a user that observes event by event."""

import numpy as np
import pytest

from dcclctl.devices.memory.ring import Ring, RingContents


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize(("window", "n_features"), [(0, 0), (2, 5), (30, 5)])
def test_slices_of_the_log_are_what_the_rings_hold(size: int, window: int, n_features: int) -> None:
    draw = np.random.default_rng(0)
    lengths = np.array([4, 0, 1, 3, 40, 2, 0])  # users without events, with fewer than M, with many more
    user = np.repeat(np.arange(len(lengths)), lengths)
    item = draw.integers(0, 100, len(user))
    found = RingContents.of(user, item, size, window, n_features)
    assert found.users.tolist() == [0, 2, 3, 4, 5]
    assert len(found.start) == 6
    for row, own in enumerate(found.users.tolist()):
        ring = Ring(size, item[user == own].tolist(), window, n_features)
        assert found.items[found.start[row] : found.start[row + 1]].tolist() == ring.newest_first().tolist()
        assert (found.seen[row], found.bytes[row]) == (ring.seen, ring.bytes)
    nobody = RingContents.of(user[:0], item[:0], size, window, n_features)
    assert (len(nobody.users), nobody.start.tolist(), len(nobody.items)) == (0, [0], 0)
