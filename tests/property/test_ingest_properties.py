"""Which events of a log stay, by a plain loop over its rows."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError
from dcclctl.logs.events import select_events
from dcclctl.logs.formats import detect_log
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.reader import LogReader
from dcclctl.logs.sources import identify

Row = tuple[int, int, int, int]
#: (user, item, second, label): few of each, so that rows fall on one another
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=40
)
T = 1_600_000_000


def selected(rows: list[Row], config: IngestConfig) -> tuple[list[tuple[str, str, int, int]], dict[str, int], int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_text("user,item,time,clk\n" + "".join(f"u{u},i{i},{T + t},{y}\n" for u, i, t, y in rows))
        source = identify(path)
        log = LogReader(config, Quarantine(), lambda *_: None).read([(source, detect_log(source, config))])
        try:
            events = select_events(log, config)
        except DataError:
            return [], {}, 0
    ids = zip(events.users.tolist(), events.items.tolist(), events.times.tolist(), events.labels.tolist(), strict=True)
    found = [(events.user_ids[u], events.item_ids[i], time // 1_000_000 - T, label) for u, i, time, label in ids]
    return found, events.dropped, events.hidden["repeats"]


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS,
    conflicts=st.sampled_from(("last", "first", "max")),
    repeats=st.sampled_from(("first", "keep")),
    cap=st.integers(0, 4),
    least=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_the_events_that_stay(rows: list[Row], conflicts: str, repeats: str, cap: int, least: tuple[int, int]) -> None:
    config = IngestConfig(
        map={"user": "user", "item": "item", "time": "time", "label": "clk"},
        label_conflicts=conflicts,
        repeats=repeats,
        max_user_events=cap,
        min_user_events=least[0],
        min_item_events=least[1],
    )
    # one row an event
    events: dict[tuple[int, int, int], list[int]] = {}
    for user, item, time, label in rows:
        events.setdefault((user, time, item), []).append(label)
    pick = {"last": lambda given: given[-1], "first": lambda given: given[0], "max": max}[conflicts]
    first_row = {}
    for at, (user, item, time, label) in enumerate(rows):
        if label == pick(events[user, time, item]):
            first_row.setdefault((user, time, item), at)
    kept = [
        (user, item, time, pick(given))
        for (user, time, item), given in sorted(events.items(), key=lambda e: (e[0][0], e[0][1], first_row[e[0]]))
    ]
    # one row a user and item
    hidden = repeated = 0
    if repeats == "first":
        stays = []
        for row in kept:
            pair = [other for other in kept if other[:2] == row[:2]]
            positive = [other for other in pair if other[3]]
            if row == (positive or pair)[0]:
                stays.append(row)
            else:
                repeated, hidden = repeated + 1, hidden + row[3]
        kept = stays
    # the newest of a user
    if cap:
        kept = [row for at, row in enumerate(kept) if sum(other[0] == row[0] for other in kept[at:]) <= cap]
    # enough of each user and item
    while True:
        users, items = Counter(row[0] for row in kept), Counter(row[1] for row in kept)
        enough = [row for row in kept if users[row[0]] >= least[0] and items[row[1]] >= least[1]]
        if enough == kept:
            break
        kept = enough

    found, dropped, positives = selected(rows, config)
    assert found == [(f"u{u}", f"i{i}", time, label) for u, i, time, label in sorted(kept, key=lambda row: row[0])]
    if found:
        assert (dropped["repeats"], positives) == (repeated, hidden)
        assert len(rows) - sum(dropped.values()) == len(found)
    if repeats == "first":
        assert max(Counter(row[:2] for row in found).values(), default=1) == 1
        clicked = {row[:2] for row in rows if row[3]}
        if not cap and least == (1, 1) and conflicts == "max":  # then no click is lost
            assert {row[:2] for row in found if row[3]} == {(f"u{u}", f"i{i}") for u, i in clicked}
