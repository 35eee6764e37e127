"""The moment at which lists are made: every user's state at the start of the test period."""

import numpy as np
import polars as pl
import pytest
import torch
from world import PATCH, TRAIN, World, done, ingest

from dcclctl.devices.memory.features import Memories
from dcclctl.devices.memory.ring import Ring
from dcclctl.devices.memory.statistics import StatisticsSettings, count_statistics
from dcclctl.devices.serving import Subject
from dcclctl.evaluation.lists import at_start_of_test
from dcclctl.events.log import CLOUD, TEST, Block, EventColumns, EventLog
from dcclctl.models.kind import MODELS
from dcclctl.stages.score import recommend, score
from dcclctl.store.store import Store

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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chosen", ["all", "some", "one"])
def test_histories_by_a_plain_loop(seed: int, chosen: str) -> None:
    log = random_log(seed)
    present = np.unique(log.user)
    users = {"all": present, "some": present[1::3], "one": present[seed : seed + 1]}[chosen]
    longer, rows = at_start_of_test(log, users)
    assert len(rows) == len(users)
    for user, row in zip(users, rows, strict=True):
        mine = log.events_of(int(user))
        expected = [int(log.item[at]) for at in mine if log.period[at] < TEST and log.label[at]]
        assert longer.user[row] == user
        assert history(longer, int(row)) == expected
    # all other rows are those of the log, in its order, with the histories that they had
    without = [user for user in users if not (log.period[log.events_of(int(user))] == TEST).any()]
    assert len(longer.user) == len(log.user) + len(without)
    added = rows[np.isin(users, without)]
    rest = np.setdiff1d(np.arange(len(longer.user)), added)
    for name in ("user", "item", "label", "period", "share", "history_start", "history_end"):
        same = getattr(longer, name)[rest] == getattr(log, name)
        assert (same | np.isin(rest, rows) if name == "history_end" else same).all(), name
    assert (np.diff(longer.user) >= 0).all()
    # a row of its own is the user's last and no event to learn from; any other is the user's first test event
    assert not longer.label[added].any()
    assert all(row == longer.events_of(int(longer.user[row]))[-1] for row in added)
    for row in rows[~np.isin(users, without)]:
        mine = longer.events_of(int(longer.user[row]))
        assert row == mine[longer.period[mine] == TEST][0]


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
    statistics = count_statistics(log, log.up_to(Block(CLOUD)), StatisticsSettings(10, 4, 1.0, 3), 3)
    ring = Ring(10, profile_window=4, n_features=len(statistics.profile_features))
    for moment in np.unique(times):
        together = [each for each, when in zip(item[:4], times, strict=True) if when == moment]
        found = ring.features(torch.tensor(together), categories, statistics)
        for each, own in zip(together, found, strict=True):
            ring.observe(each, own)
    longer, rows = at_start_of_test(log, np.array([0, 1]))
    features = Memories(longer, statistics, 10, 4).features(rows, None)
    torch.testing.assert_close(features[0], ring.features(torch.arange(6), categories, statistics))
    # the other user's is the same whether or not a row was added before it
    alone, row = at_start_of_test(log, np.array([1]))
    torch.testing.assert_close(Memories(alone, statistics, 10, 4).features(row, None)[0], features[1])


@pytest.fixture(scope="module", params=["first", "keep"])
def shop_of(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, str]:
    """A store without and with repeats: cloud@1 and patches@1 (metapatch on the tail), and memory patches."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "first":
        world.copy(folder / "store")
    else:
        ingest(folder / "log", folder / "store", "--repeats=keep")
        done("train", *TRAIN, store=folder / "store")
        done("patch", "--users=tail", *PATCH, store=folder / "store")
    done("patch", "--cloud=cloud@1", "--set=epochs=2", "--threads=1", store=folder / "store")
    return Store(folder / "store"), request.param


@pytest.mark.parametrize("reference", ["cloud@1", "patches@1", "patches@1+shuffled", "patches@2"])
def test_a_list_for_many_is_what_score_shows_each(shop_of: tuple[Store, str], reference: str) -> None:
    store, repeats = shop_of
    subject = Subject.of(reference, store)
    dataset = subject.cloud.dataset
    found = recommend(subject, "all", 7, {"threads": 1})
    assert found["user_id"].unique(maintain_order=True).to_list() == dataset.users["user_id"].to_list()
    for (user_id,), rows in found.group_by("user_id", maintain_order=True):
        shown = score(subject, str(user_id), 7, {"threads": 1})
        name = "cloud" if reference == "cloud@1" else "patched"
        ranking = shown.rankings[name]
        assert rows["rank"].to_list() == ranking["rank"].to_list()
        assert rows["item_id"].to_list() == ranking["item_id"].to_list(), user_id
        assert rows["name"].to_list() == ranking["name"].to_list()
        assert rows["logit"].to_list() == pytest.approx(ranking["logit"].to_list(), abs=1e-5)
        assert set(rows["served_by"]) == {shown.served_by[name]}
    events = dataset.artifact.read_table("events.parquet").filter((pl.col("period") < TEST) & (pl.col("label") > 0))
    had = events.join(dataset.users, on="user_index").join(dataset.items, on="item_index")
    again = found.join(had.select("user_id", "item_id").unique(), on=["user_id", "item_id"], how="semi")
    # without repeats nobody is shown what they had; with repeats some are
    assert again.is_empty() if repeats == "first" else again.height > 10


@pytest.mark.parametrize("model", [model for model in MODELS if model != "din"])
def test_every_kind_of_model_makes_the_lists_that_score_shows(
    world: World, tmp_path_factory: pytest.TempPathFactory, model: str
) -> None:
    root = world.copy(tmp_path_factory.mktemp(model) / "store")
    ref = done("train", f"--model={model}", "--threads=1", store=root)["ref"]
    subject = Subject.of(ref, Store(root))
    found = recommend(subject, "u1,u7,n2", 5, {"threads": 1})
    assert found["user_id"].unique(maintain_order=True).sort().to_list() == ["n2", "u1", "u7"]
    for (user_id,), rows in found.group_by("user_id"):
        ranking = score(subject, str(user_id), 5, {"threads": 1}).rankings["cloud"]
        assert rows["item_id"].to_list() == ranking["item_id"].to_list()


def test_the_order_of_lists_and_who_is_asked_for(shop_of: tuple[Store, str]) -> None:
    subject = Subject.of("patches@1", shop_of[0])
    everybody = recommend(subject, "all", 80, {"threads": 1})
    tail = recommend(subject, "tail", 3, {"threads": 1})
    users = subject.cloud.dataset.users
    assert set(tail["user_id"]) == set(users.filter(pl.col("group") == "tail")["user_id"])
    assert tail.equals(everybody.filter((pl.col("rank") <= 3) & pl.col("user_id").is_in(tail["user_id"].implode())))
    for _, rows in everybody.group_by("user_id"):
        assert rows["rank"].to_list() == list(range(1, rows.height + 1))
        assert rows["logit"].is_sorted(descending=True)
