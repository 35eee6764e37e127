"""Layouts that public logs really have, as they are published: a few rows of each, and what is read from them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.formats import detect_log
from dcclctl.logs.impressions import one_by_one
from dcclctl.logs.reader import batches
from dcclctl.logs.sources import identify
from dcclctl.stages.ingest import Sides, ingest
from dcclctl.store.store import Artifact, Store

T = 1_600_000_000


def run(path: Path, text: str, implicit: bool = False, **config: Any) -> Artifact:
    path.write_text(text, encoding="utf-8")
    sides = Sides(implicit=implicit)
    return ingest(
        [path], Store(path.parent / "store"), {"split": "per-user", "timezone": "UTC"} | config, sides=sides
    ).artifact


def events(artifact: Artifact) -> list[tuple[str, str, int]]:
    """User, item and label of every event, by user and time."""
    users, items = (artifact.read_table(f"{role}s.parquet") for role in ("user", "item"))
    table = artifact.read_table("events.parquet")
    for side, on in ((users, "user_index"), (items, "item_index")):
        table = table.join(side, on=on, maintain_order="left")
    return list(table.select("user_id", "item_id", "label").iter_rows())


def seconds(artifact: Artifact) -> list[int]:
    return [time // 1_000_000 for time in artifact.read_table("events.parquet")["time_us"].to_list()]


# --- impressions


def test_mind_as_published(tmp_path: Path) -> None:
    path = tmp_path / "behaviors.tsv"
    path.write_text(
        "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
        "2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-0 N58114-1\n"
    )
    source = identify(path)
    layout = detect_log(source, IngestConfig())
    assert layout.format == "mind"
    assert layout.roles == {"user": "user_id", "item": "shown", "time": "time", "impressions": "shown"}
    [(batch, _)] = batches(source, layout, ["user_id", "time", "shown"])
    batch = one_by_one(batch, layout.roles)
    assert batch.frame.select("user_id", "shown", "clicked").rows() == [
        ("U13740", "N55689", "1"),
        ("U13740", "N35729", "0"),
        ("U91836", "N20678", "0"),
        ("U91836", "N39317", "0"),
        ("U91836", "N58114", "1"),
    ]
    assert batch.records.tolist() == [1, 1, 2, 2, 2]
    assert batch.read == 5
    assert "U91836" in batch.raw(4)[1]


@pytest.mark.parametrize("mapped", [{}, {"user": "2", "item": "5", "time": "3"}])
def test_an_impression_is_one_basket_of_labels(tmp_path: Path, mapped: dict[str, str]) -> None:
    """The published form of the times, which name no zone."""
    text = "".join(f"{n}\tU{n % 2}\t11/{n + 9}/2019 9:05:58 AM\tN1 N2\tN{n}-1 N{n + 20}-0\n" for n in range(1, 11))
    data = run(tmp_path / "behaviors.tsv", text, map=mapped)
    assert any("UTC" in note for note in data.facts["remarks"])
    assert data.facts["labels"] == "observed"
    assert data.facts["label_expression"] == "clicked>0"
    assert (data.facts["rows"]["read"], data.facts["events"], data.facts["positives"]) == (20, 20, 10)
    assert ("U1", "N3", 1) in events(data)
    assert ("U1", "N23", 0) in events(data)


def test_shown_and_clicked_lists(tmp_path: Path) -> None:
    """EB-NeRD: Parquet with a list of shown and a list of clicked articles."""
    path = tmp_path / "behaviors.parquet"
    pl.DataFrame(
        {
            "impression_id": [149474, 150528, 153068, 153070],
            "impression_time": pl.Series(["2023-05-24T07:47:53"] * 4).str.to_datetime(),
            "article_ids_inview": [[9778623, 9778682], [9778682, 9778728], [9778728], []],
            "article_ids_clicked": [[9778682], [9778682, 9778728], [], []],
            "user_id": [139836, 143471, 151570, 151570],
        }
    ).write_parquet(path)
    columns = {"impressions": "article_ids_inview", "clicked": "article_ids_clicked", "time": "impression_time"}
    given = {"map": columns, "split": "leave-one-out", "max_reject": 0.5, "timezone": "UTC"}
    data = ingest([path], Store(tmp_path / "store"), given).artifact
    assert events(data) == [
        ("139836", "9778623", 0),
        ("139836", "9778682", 1),
        ("143471", "9778682", 1),
        ("143471", "9778728", 1),
        ("151570", "9778728", 0),
    ]
    assert data.facts["rows"]["rejected_by_reason"] == {"empty-item": 1}


def test_impressions_in_any_log(tmp_path: Path) -> None:
    text = "uid,at,slate\n" + "".join(f'u{n % 2},{T + n},"a-1, b-0 c-x-1"\n' for n in range(10))
    data = run(tmp_path / "log.csv", text, map={"user": "uid", "time": "at", "impressions": "slate"}, repeats="keep")
    assert {each[1:] for each in events(data)} == {("a", 1), ("b", 0), ("c-x", 1)}


def test_a_shown_item_without_a_label_is_rejected(tmp_path: Path) -> None:
    text = "uid,at,slate\n" + "".join(f"u{n % 2},{T + n},{'a-1 b' if n else 'a-1 b-2 c-x'}\n" for n in range(10))
    given = {"map": {"user": "uid", "time": "at", "impressions": "slate"}, "max_reject": 0.9}
    rows = run(tmp_path / "log.csv", text, **given).facts["rows"]
    assert rows["rejected_by_reason"] == {"bad-label": 10}
    assert rows["read"] == rows["kept"] + rows["rejected"] == 21


def test_impressions_have_labels_of_their_own(tmp_path: Path) -> None:
    text = "".join(f"{n}\tU1\t2019-11-{n:02} 09:05:58\t\tN{n}-1 N2{n}-0\n" for n in range(1, 9))
    with pytest.raises(UsageError, match="--label: the log holds impressions"):
        run(tmp_path / "behaviors.tsv", text, label="history>1")
    with pytest.raises(UsageError, match="--implicit: the log holds impressions"):
        run(tmp_path / "behaviors.tsv", text, implicit=True)


# --- objects inside objects


def session(user: int, *shopped: tuple[int, int, str]) -> str:
    return (
        json.dumps({"session": user, "events": [{"aid": a, "ts": t * 1000, "type": k} for a, t, k in shopped]}) + "\n"
    )


SESSIONS = (
    session(12899779, (59625, T, "clicks"), (59626, T + 1, "carts"), (59627, T + 2, "orders"), (59628, T + 3, "clicks"))
    + session(12899780, (1142000, T, "clicks"), (582732, T + 1, "clicks"), (973453, T + 2, "clicks"))
    + session(12899781)
)


@pytest.mark.parametrize(
    "mapped", [{}, {"user": "session", "item": "events.aid", "time": "events.ts", "behaviour": "events.type"}]
)
def test_otto(tmp_path: Path, mapped: dict[str, str]) -> None:
    data = run(tmp_path / "train.jsonl", SESSIONS, map=mapped, split="leave-one-out")
    assert events(data)[3:6] == [("12899779", "59628", 1), ("12899780", "1142000", 1), ("12899780", "582732", 1)]
    assert seconds(data) == [T, T + 1, T + 2, T + 3, T, T + 1, T + 2]
    assert data.facts["sources"][0]["format"] == "otto"
    assert data.facts["rows"]["read"] == 7


def test_otto_orders_only(tmp_path: Path) -> None:
    assert events(run(tmp_path / "train.jsonl", SESSIONS, behaviours=["orders"])) == [("12899779", "59627", 1)]


def test_a_broken_event_of_a_session_is_one_reject(tmp_path: Path) -> None:
    broken = SESSIONS.replace('"aid": 59626', '"aid": null').replace('"aid": 582732', '"aid": [1]')
    data = run(tmp_path / "train.jsonl", broken, max_reject=0.9)
    rejects = data.read_table("rejects.parquet")
    assert sorted(rejects["reason"]) == ["empty-item", "nested-value"]
    assert sorted(rejects["record"]) == [2, 6]
    assert data.facts["events"] == 5


def test_paths_of_json_lines(tmp_path: Path) -> None:
    lines = [{"user": {"id": n % 2, "os": {"v": 1}}, "item": {"id": n}, "ts": T + n} for n in range(10)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    data = run(tmp_path / "mongo.jsonl", text, map={"user": "user.id", "item": "item.id"})
    assert events(data)[:2] == [("0", "0", 1), ("0", "2", 1)]
    with pytest.raises(DataError, match=r"its header: 'user\.id', 'user\.os\.v', 'item\.id', 'ts'"):
        run(tmp_path / "mongo.jsonl", text)


def test_a_key_with_a_dot_is_that_key(tmp_path: Path) -> None:
    text = "".join(json.dumps({"u.id": n % 2, "item_id": n, "ts": T + n}) + "\n" for n in range(10))
    assert len(events(run(tmp_path / "flat.jsonl", text, map={"user": "u.id"}))) == 10


def test_paths_through_two_lists_are_refused(tmp_path: Path) -> None:
    line = json.dumps({"u": 1, "a": [{"item": 1}], "b": [{"ts": T}]}) + "\n"
    with pytest.raises(DataError, match="nested-value"):
        run(tmp_path / "two.jsonl", line, map={"user": "u", "item": "a.item", "time": "b.ts"})


# --- order of the rows


def test_no_time_column(tmp_path: Path) -> None:
    """Tenrec, steam-200k: rows in order of time, without the time."""
    text = "user_id,item_id,click\n1,9,1\n2,8,0\n1,7,0\n1,9,1\n2,6,1\n1,5,1\n2,4,1\n"
    data = run(tmp_path / "QB-video.csv", text, split="leave-one-out", label="click>0", repeats="keep")
    assert events(data) == [
        *(("1", "9", 1), ("1", "7", 0), ("1", "9", 1), ("1", "5", 1)),
        *(("2", "8", 0), ("2", "6", 1), ("2", "4", 1)),
    ]
    assert data.facts["time_kind"] == "ordinal"
    assert "no time column: the rows are taken to be in order of time" in data.facts["remarks"]


def test_the_order_goes_on_in_the_next_file(tmp_path: Path) -> None:
    for name, items in (("a.csv", "135"), ("b.csv", "24")):
        (tmp_path / name).write_text("user_id,item_id\n" + "".join(f"u,{item}\n" for item in items))
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    data = ingest(paths, Store(tmp_path / "store"), {"split": "leave-one-out"}).artifact
    assert [item for _, item, _ in events(data)] == ["1", "3", "5", "2", "4"]


def test_a_common_timeline_needs_a_time_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column for time") as caught:
        run(tmp_path / "log.csv", "user_id,item_id\n1,2\n", split="global")
    assert "--split per-user" in caught.value.remedy
    with pytest.raises(UsageError, match="a global split needs times"):
        run(tmp_path / "log.csv", "user_id,item_id\n1,2\n", split="global", time_unit="ordinal")


def test_steps_on_each_users_own_timeline(tmp_path: Path) -> None:
    text = "user_id,item_id,ordinal\n" + "".join(f"1,{n},{n}\n" for n in range(1, 11))
    periods = run(tmp_path / "steps.csv", text).facts["periods"]
    assert [each["events"] for each in periods] == [6, 2, 1, 1]


# --- periods without an event


@pytest.mark.parametrize("split", ["per-user", "leave-one-out"])
def test_periods_without_an_event_are_said(tmp_path: Path, split: str) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u{n},{n},{T + n}\n" for n in range(9))
    [said] = [each for each in run(tmp_path / "one.csv", text, split=split).facts["remarks"] if "no event" in each]
    assert said.startswith("warning: no event in device, valid, test") or split == "per-user"
    assert "no event in" in said


def test_a_share_of_nothing_may_be_empty(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u,{n},{T + n}\n" for n in range(9))
    remarks = run(tmp_path / "log.csv", text, periods=["80", "0", "10", "10"]).facts["remarks"]
    assert not [each for each in remarks if "no event" in each]


def test_leave_one_out_has_no_shares(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u,{n},{T + n}\n" for n in range(9))
    with pytest.raises(UsageError, match="--periods has no effect with --split leave-one-out"):
        run(tmp_path / "log.csv", text, split="leave-one-out", periods=["10", "10", "40", "40"])


# --- ratings, play ratios, baskets


def test_yelp(tmp_path: Path) -> None:
    lines = [
        {
            "review_id": f"r{n}",
            "user_id": "mh_-eMZ6K5RLWhZyISBhwA",
            "business_id": f"XQfwVwDr-v0ZS3_CbbE5X{n}",
            "stars": 1.0 + n % 5,
            "useful": 0,
            "text": "…",
            "date": f"2018-07-0{n + 1} 22:09:11",
        }
        for n in range(9)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    data = run(tmp_path / "yelp_academic_dataset_review.json", text, label="stars>=4")
    assert (data.facts["events"], data.facts["positives"]) == (9, 3)


def test_hm_daily_baskets(tmp_path: Path) -> None:
    head = "t_dat,customer_id,article_id,price,sales_channel_id\n"
    rows = [("2018-09-20", "0663713001"), ("2018-09-20", "0541518023"), ("2018-09-21", "0505221004")]
    text = head + "".join(f"{day},000058a12d5b43e6,{item},0.0508,2\n" for day, item in rows)
    data = run(tmp_path / "transactions_train.csv", text, split="leave-one-out")
    assert [item for _, item, _ in events(data)] == ["0663713001", "0541518023", "0505221004"]
    assert len(set(seconds(data))) == 2


def test_lastfm_1k(tmp_path: Path) -> None:
    row = "user_000001\t2009-05-0{}T23:08:57Z\tf1b1cf71\t坂本龍一\t{}\tComposition 0919 (Live_2009_4_15)\n"
    text = "".join(row.format(n, f"track-{n}") for n in range(9, 3, -1))
    data = run(
        tmp_path / "userid-timestamp-artid-artname-traid-traname.tsv", text, map={"user": "1", "time": "2", "item": "5"}
    )
    assert [item for _, item, _ in events(data)] == [f"track-{n}" for n in range(4, 10)]


def test_kuairec_play_ratio(tmp_path: Path) -> None:
    head = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    row = "0,{0},13838,10867,2020-07-05 00:0{0}:43.438,20200705,1593878903.438,{1}\n"
    text = head + "".join(row.format(n, 1.27 if n % 2 else 0.4) for n in range(9))
    data = run(tmp_path / "big_matrix.csv", text, map={"time": "time"}, label="watch_ratio>=1")
    assert (data.facts["events"], data.facts["positives"]) == (9, 4)


def test_steam_purchases_and_hours(tmp_path: Path) -> None:
    games = ("The Elder Scrolls V Skyrim", "Fallout 4", "Spore")
    text = "".join(f'151603712,"{game}",{kind},1.0,0\n' for game in games for kind in ("purchase", "play"))
    mapped = {"user": "1", "item": "2", "behaviour": "3"}
    data = run(tmp_path / "steam-200k.csv", text, map=mapped, behaviours=["play"])
    assert [item for _, item, _ in events(data)] == list(games)
