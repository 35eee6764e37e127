"""The moment at which lists are made: every user's state at the start of the test period."""

import numpy as np
import pytest
import torch

from dcclctl.devices.memory.features import Memories
from dcclctl.devices.memory.ring import Ring
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.evaluation.lists import Moment, at_moment, best_columns
from dcclctl.events.log import CLOUD, TEST, Block, EventColumns, EventLog

PERIODS = 4


def random_log(seed: int, users: int = 40, items: int = 12) -> EventLog:
    """Users without events, without test events, with nothing else; moments with several events, also across a cut."""
    draw = np.random.default_rng(seed)
    columns: list[tuple[int, int, int, int, int]] = []
    for user in range(users):
        kinds = (range(3), range(PERIODS), [TEST], [])[user % 4]
        for period in kinds:
            times = np.sort(draw.integers(3 * period, 3 * period + 4, draw.integers(1, 6)))
            columns += [
                (user, int(draw.integers(items)), int(time), int(draw.random() < 0.7), period) for time in times
            ]
    user, item, time, label, period = np.array(columns).T
    categories, profile = torch.zeros(items, 1, dtype=torch.int64), torch.zeros(users, 1, dtype=torch.int64)
    return EventLog.build(EventColumns(user, item, time, label, period), categories, 1, profile, (1,))


def history(log: EventLog, row: int) -> list[int]:
    return log.sequence[log.history_start[row] : log.history_end[row]].tolist()


@pytest.mark.parametrize("as_of", ["test", "end"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chosen", ["all", "some", "one"])
def test_histories_by_a_plain_loop(seed: int, chosen: str, as_of: Moment) -> None:
    log = random_log(seed)
    everybody = np.arange(log.n_users)  # some have no event at all
    users = {"all": everybody, "some": everybody[1::3], "one": everybody[seed : seed + 1]}[chosen]
    longer, rows = at_moment(log, users, as_of)
    assert len(rows) == len(users)
    past = TEST if as_of == "test" else PERIODS
    for user, row in zip(users, rows, strict=True):
        mine = log.events_of(int(user))
        expected = [int(log.item[at]) for at in mine if log.period[at] < past and log.label[at]]
        assert longer.user[row] == user
        assert history(longer, int(row)) == expected
        own = longer.events_of(int(user))
        assert (own < row).sum() == (log.period[mine] < past).sum()
    # all other rows are those of the log, in its order, with the histories that they had
    rest = np.setdiff1d(np.arange(len(longer.user)), rows)
    assert len(rest) == len(log.user)
    for name in ("user", "item", "label", "period", "share", "history_start", "history_end"):
        assert np.array_equal(getattr(longer, name)[rest], getattr(log, name)), name
    assert (np.diff(longer.user * PERIODS + longer.period) >= 0).all()
    assert not longer.label[rows].any()  # no event to learn from


@pytest.mark.parametrize("k", [1, 4, 9, 12, 20])
def test_best_columns_by_a_stable_sort(k: int) -> None:
    draw = torch.Generator().manual_seed(k)
    for distinct in (1, 2, 4, 1000):
        scores = torch.randint(distinct, (50, 12), generator=draw).float()
        scores[torch.rand(scores.shape, generator=draw) < 0.3] = -torch.inf
        found = best_columns(scores, k)
        expected = torch.from_numpy(np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k])
        real = torch.isfinite(scores.gather(1, expected))
        assert torch.equal(torch.isfinite(scores.gather(1, found)), real)
        assert torch.equal(found[real], expected[real])


@pytest.mark.parametrize("tested", [False, True])
@pytest.mark.parametrize("times", [[0, 1, 2, 3], [0, 1, 3, 3]])
def test_a_memory_at_the_moment_is_what_the_device_holds(times: list[int], tested: bool) -> None:
    """Also where the user's last events came together: none of them was there when the others were interacted with."""
    item, time, period = [1, 2, 3, 4], [*times], [CLOUD] * 4
    if tested:  # what comes in the test period is not known yet
        item, time, period = [*item, 5, 0], [*time, 5, 6], [*period, TEST, TEST]
    user = np.array([0] * len(item) + [1] * 5)
    item, time, period = [*item, 4, 3, 2, 1, 0], [*time, *range(5)], [*period, *[CLOUD] * 5]
    categories, profile = torch.zeros(6, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
    columns = (np.array(each) for each in (item, time, np.ones_like(item), period))
    log = EventLog.build(EventColumns(user, *columns), categories, 1, profile, (1,))
    statistics = count_statistics(log, lambda log: log.up_to(Block(CLOUD)), StatisticsSettings(10, 4, 1.0, 3, 4), 3)
    ring = Ring(10, profile_window=4, n_features=len(statistics.profile_features))
    for moment in np.unique(times):
        together = [each for each, when in zip(item[:4], times, strict=True) if when == moment]
        found = ring.features(torch.tensor(together), categories, statistics)
        for each, own in zip(together, found, strict=True):
            ring.observe(each, own)
    longer, rows = at_moment(log, np.array([0, 1]), "test")
    features = Memories(longer, statistics, 10, 4).features(rows, None)
    torch.testing.assert_close(features[0], ring.features(torch.arange(6), categories, statistics))
    # the other user's is the same whether or not a row was added before it
    alone, row = at_moment(log, np.array([1]), "test")
    torch.testing.assert_close(Memories(alone, statistics, 10, 4).features(row, None)[0], features[1])
