"""The stage: layouts of the field, what the dataset says, filters, side tables."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from dcclctl.errors import DataError, DcclError, UsageError
from dcclctl.stages.audit import audit
from dcclctl.stages.ingest import Sides, ingest
from dcclctl.store.store import Artifact, Store
from dcclctl.tables import EVENTS, ITEMS, REJECTS, USERS, VOCABULARY

T = 1_600_000_000


def run(
    folder: Path, *logs: Path, users: Path | None = None, items: Path | None = None, store: str = "store", **config: Any
) -> Artifact:
    return ingest(list(logs), Store(folder / store), config, sides=Sides(users, items)).artifact


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def small_log(folder: Path) -> Path:
    """Six users, ten items, 60 events of one user-item pair each, rising times."""
    lines = [f"u{n % 6},i{n % 10},{T + n},{n % 5 + 1},{'ab'[n % 2]}" for n in range(30)]
    return write(folder / "log.csv", "user_id,item_id,timestamp,rating,category\n" + "\n".join(lines) + "\n")


TRIPLES = [(f"{n % 5 + 1}", f"{n}", T + n, n % 5 + 1) for n in range(40)]
ASINS = [(f"A{n % 5:012d}", f"B{n:09d}", T + n, n % 5 + 1) for n in range(40)]
LAYOUTS = {
    "csv": ("log.csv", "user_id,item_id,rating,timestamp\n", "{u},{i},{r},{t}\n", "csv", TRIPLES),
    "semicolons": ("log.csv", "uid;sku;ts\n", "{u};{i};{t}\n", "csv", TRIPLES),
    "bars": ("log.txt", "userId|itemId|time\n", "{u}|{i}|{t}\n", "csv", TRIPLES),
    "recbole": ("a.inter", "user_id:token\titem_id:token\ttimestamp:float\n", "{u}\t{i}\t{t}.0\n", "recbole", TRIPLES),
    "ml-100k": ("u.data", "", "{u}\t{i}\t{r}\t{t}\n", "movielens", TRIPLES),
    "ml-1m": ("ratings.dat", "", "{u}::{i}::{r}::{t}\n", "movielens", TRIPLES),
    "ml-25m": ("ratings.csv", "userId,movieId,rating,timestamp\n", "{u},{i},{r}.5,{t}\n", "movielens", TRIPLES),
    "amazon 2014 csv": ("ratings.csv", "", "{u},{i},{r}.0,{t}\n", "amazon", ASINS),
    "amazon 2018 csv": ("ratings.csv", "", "{i},{u},{r}.0,{t}\n", "amazon", ASINS),
    "amazon 2023 csv": (
        "a.csv",
        "user_id,parent_asin,rating,timestamp,history\n",
        "{u},{i},{r}.0,{t}000,B1 B2\n",
        "csv",
        ASINS,
    ),
    "amazon 2014 json": (
        *("reviews.json", "", '{{"reviewerID": "{u}", "asin": "{i}", "overall": {r}.0, "unixReviewTime": {t}}}\n'),
        *("jsonl", ASINS),
    ),
    "amazon 2023 json": (
        "reviews.jsonl",
        "",
        '{{"rating": {r}.0, "asin": "X{i}", "parent_asin": "{i}", "user_id": "{u}", "timestamp": {t}000}}\n',
        *("jsonl", ASINS),
    ),
    "taobao": ("UserBehavior.csv", "", "{u},{i},77,pv,{t}\n", "taobao", TRIPLES),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_layouts_give_the_same_events(name: str, packed: str, tmp_path: Path) -> None:
    file, header, row, format, triples = LAYOUTS[name]
    text = header + "".join(row.format(u=u, i=i, t=t, r=r) for u, i, t, r in triples)
    path = tmp_path / (file + packed)
    data = text.encode()
    path.write_bytes({"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[packed])
    dataset = run(tmp_path, path)
    assert dataset.facts["sources"][0]["format"] == format
    events = dataset.read_table("events.parquet")
    users = dataset.read_table("users.parquet")["user_id"]
    items = dataset.read_table("items.parquet")["item_id"]
    found = [(users[u], items[i], t) for u, i, t in events.select("user_index", "item_index", "time_us").iter_rows()]
    assert sorted(found) == sorted((u, i, t * 1_000_000) for u, i, t, _ in triples)


def test_cut_zst_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.zst"
    path.write_bytes(zstandard.compress(small_log(tmp_path).read_bytes() * 50)[:-10])
    with pytest.raises(DataError, match="damaged or cut"):
        run(tmp_path, path)


def test_tables_are_as_declared(tmp_path: Path) -> None:
    dataset = run(tmp_path, small_log(tmp_path))
    for name, table in {
        "events": EVENTS,
        "users": USERS,
        "items": ITEMS,
        "vocabulary": VOCABULARY,
        "rejects": REJECTS,
    }.items():
        table.check(name, dataset.read_table(f"{name}.parquet"))
    events = dataset.read_table("events.parquet")
    assert events.equals(events.sort("user_index", "time_us", maintain_order=True))


def test_the_id_depends_on_content_not_on_places(tmp_path: Path) -> None:
    first = run(tmp_path, small_log(tmp_path / "a"), store="one")
    second = run(tmp_path, small_log(tmp_path / "b"), store="two")
    assert first.id == second.id
    assert str(tmp_path) not in json.dumps(first.manifest)
    assert run(tmp_path, small_log(tmp_path / "a"), store="one", repeats="keep").id != first.id
    again = ingest([tmp_path / "a" / "log.csv"], Store(tmp_path / "one"))
    assert (again.id, again.reused) == (first.id, True)


def test_labels_and_repeats(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,rating\n" + "".join(f"u,{'ab'[n % 2]},{T + n},{n % 5 + 1}\n" for n in range(10)),
    )
    kept = run(tmp_path, log, repeats="keep", label="rating>=4", split="per-user")
    assert kept.read_table("events.parquet")["label"].to_list() == [0, 0, 0, 1, 1] * 2
    assert (kept.facts["labels"], kept.facts["label_expression"], kept.facts["positives"]) == (
        "observed",
        "rating>=4",
        4,
    )
    first = run(tmp_path, log, split="per-user")
    assert first.facts["rows"]["dropped"] == {"repeats": 8}
    assert first.read_table("events.parquet")["time_us"].to_list() == [T * 1_000_000, (T + 1) * 1_000_000]
    assert first.facts["labels"] == "implicit"


def ads_shown_and_clicked(folder: Path) -> Path:
    """An ad is shown and, half a minute later, shown again and clicked; the layout of Taobao's raw_sample.csv."""
    rows = []
    for n in range(40):
        user, ad, shown = n % 8, n // 8 + 10 * (n % 2), T + 1800 * n
        rows.append(f"{user},{shown},{ad},430548_1007,1,0")
        if n % 4 != 3:  # every fourth ad is only shown, twice
            rows.append(f"{user},{shown + 30},{ad},430548_1007,0,1")
        rows.append(f"{user},{shown + 60},{ad},430548_1007,{'0,1' if n == 0 else '1,0'}")
    return write(folder / "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk\n" + "\n".join(rows) + "\n")


CLICKS = {"user": "user", "item": "adgroup_id", "time": "time_stamp", "label": "clk"}


def test_an_impression_does_not_hide_the_later_click(tmp_path: Path) -> None:
    dataset = run(tmp_path, ads_shown_and_clicked(tmp_path), map=CLICKS)
    events = dataset.read_table("events.parquet")
    assert (dataset.facts["labels"], dataset.facts["events"], dataset.facts["positives"]) == ("observed", 40, 30)
    assert not events.select("user_index", "item_index").is_duplicated().any()
    seconds = (events["time_us"] // 1_000_000 - T) % 1800
    assert seconds.to_list() == [30 if label else 0 for label in events["label"]]
    assert dataset.facts["rows"]["dropped"] == {"repeats": 70}
    (remark,) = [remark for remark in dataset.facts["remarks"] if "repeated" in remark]
    assert remark.startswith(
        "70 repeated events left out, 1 of them positive; of each user and item the first positive"
    )
    findings = audit(dataset)
    assert not [finding for finding in findings if finding.kind == "leak"]
    assert "each user has an item once" in " ".join(finding.text for finding in findings)
    kept = run(tmp_path, tmp_path / "raw_sample.csv", map=CLICKS, repeats="keep")
    assert (kept.facts["events"], kept.facts["positives"]) == (110, 31)


def test_a_click_that_a_label_at_the_same_moment_hides_is_told(tmp_path: Path) -> None:
    rows = [f"u,a{n},{T + n},{label}" for n in range(20) for label in ((1, 0) if n < 3 else (0, 1) if n < 5 else (1,))]
    log = write(tmp_path / "log.csv", "user_id,item_id,timestamp,label\n" + "\n".join(rows) + "\n")
    told = [run(tmp_path, log, map={"label": "label"}, label_conflicts=way).facts for way in ("last", "max")]
    assert [facts["positives"] for facts in told] == [17, 20]
    assert [facts["rows"]["warnings"]["label-conflicts"] for facts in told] == [5, 5]
    (remark,) = [remark for remark in told[0]["remarks"] if "at one time" in remark]
    assert remark.startswith("3 events had a positive and a negative label") and "--label-conflicts max" in remark
    assert not [remark for remark in told[1]["remarks"] if "at one time" in remark]


@pytest.mark.parametrize(("policy", "label"), [("last", 0), ("first", 0), ("max", 1)])
def test_conflicting_labels(tmp_path: Path, policy: str, label: int) -> None:
    log = write(
        tmp_path / "log.csv",
        f"user_id,item_id,timestamp,rating\nu,a,{T},1\nu,a,{T},5\nu,a,{T},2\nu,b,{T + 1},5\nu,c,{T + 2},5\nu,d,{T + 3},1\n",
    )
    dataset = run(tmp_path, log, label="rating>=4", label_conflicts=policy, split="leave-one-out")
    assert dataset.read_table("events.parquet")["label"].to_list() == [label, 1, 1, 0]
    assert dataset.facts["rows"]["warnings"] == {"label-conflicts": 1}


def test_minimum_counts_agree_with_a_plain_loop(tmp_path: Path) -> None:
    pairs = sorted({((n * 7) % 23, (n * n) % 31) for n in range(220)})
    text = "".join(f"u{u},i{i},{T + place}\n" for place, (u, i) in enumerate(pairs))
    log = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + text)
    left = set(pairs)
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        smaller = {(u, i) for u, i in left if users[u] >= 6 and items[i] >= 5}
        if smaller == left:
            break
        left = smaller
    dataset = run(tmp_path, log, min_user_events=6, min_item_events=5)
    users_table, items_table = dataset.read_table("users.parquet"), dataset.read_table("items.parquet")
    events = dataset.read_table("events.parquet")
    found = {(users_table["user_id"][u], items_table["item_id"][i]) for u, i, *_ in events.iter_rows()}
    assert found == {(f"u{u}", f"i{i}") for u, i in left}
    assert 0 < len(left) < len(pairs)
    assert dataset.facts["rows"]["dropped"] == {"min-events": len(pairs) - len(left)}
    assert users_table["events"].min() >= 6
    assert sorted(users_table["user_id"]) == users_table["user_id"].to_list()


def test_behaviours(tmp_path: Path) -> None:
    text = "".join(f"{n % 4},{n},9,{('pv', 'buy')[n % 2]},{T + n}\n" for n in range(40))
    log = write(tmp_path / "UserBehavior.csv", text)
    dataset = run(tmp_path, log, behaviours=["buy"])
    assert dataset.facts["rows"]["dropped"] == {"behaviours": 20}
    with pytest.raises(UsageError, match="has no 'sell'") as caught:
        run(tmp_path, log, behaviours=["sell"])
    assert "'buy', 'pv'" in caught.value.remedy
    with pytest.raises(UsageError, match="no behaviour column"):
        run(tmp_path, small_log(tmp_path), behaviours=["buy"])


def test_side_tables(tmp_path: Path) -> None:
    users = write(
        tmp_path / "people.csv",
        "user_id,age,town,zip\n" + "".join(f"u{n},{20 + n % 2},{'' if n else 'Oslo'},{n}\n" for n in range(40)),
    )
    items = write(
        tmp_path / "things.csv",
        "item_id,title,genres,shelf,ean\n"
        + "".join(f"i{n},Thing {n},{'x|y' if n else ''},{n % 3},{n}\n" for n in range(40)),
    )
    log = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,category\n"
        + "".join(f"u{n % 39},i{n % 37},{T + n},c{n % 2}\n" for n in range(39))
        + f"new,unknown,{T + 39},\n",
    )
    dataset = run(tmp_path, log, users=users, items=items)
    table = dataset.read_table("users.parquet")
    assert [name for name in table.columns if name.startswith("profile_")] == ["profile_age", "profile_town"]
    codes = {row["user_id"]: (row["profile_age"], row["profile_town"]) for row in table.iter_rows(named=True)}
    assert (codes["u0"], codes["u1"], codes["new"]) == ((1, 1), (2, 0), (0, 0))
    assert dataset.facts["profiles"] == {"age": 3, "town": 2}
    assert any("'zip'" in remark for remark in dataset.facts["remarks"])
    assert any("'ean'" in remark for remark in dataset.facts["remarks"])
    vocabulary = dataset.read_table("vocabulary.parquet")
    values = vocabulary.filter(pl.col("kind") == "category").sort("code")
    assert values.select("column", "value").rows() == [
        *(("category", "c0"), ("category", "c1"), ("genres", "x"), ("genres", "y")),
        *(("shelf", "0"), ("shelf", "1"), ("shelf", "2")),
    ]
    by_id = {row["item_id"]: row for row in dataset.read_table("items.parquet").iter_rows(named=True)}
    assert by_id["i4"]["name"] == "Thing 4"
    assert by_id["i4"]["category_indices"] == [0, 2, 3, 5]
    assert by_id["unknown"]["name"] is None
    assert by_id["unknown"]["category_indices"] == []


def test_movielens_sides_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "ml-100k"
    write(folder / "u.data", "".join(f"{n % 4 + 1}\t{n + 1}\t3\t{T + n}\n" for n in range(40)))
    write(folder / "u.user", "".join(f"{n}|{20 + n}|M|artist|12345\n" for n in range(1, 5)))
    flags = ["0|1" + "|0" * 16 + "|1" if n == 1 else "1" + "|0" * 18 for n in range(1, 41)]
    text = "".join(f"{n}|Amélie {n}|01-Jan-1995||http://x/{n}|{flags[n - 1]}\n" for n in range(1, 41))
    (folder / "u.item").write_bytes(text.encode("latin-1"))
    dataset = run(tmp_path, folder)
    assert [source["name"] for source in dataset.facts["sources"]] == ["u.data", "u.user", "u.item"]
    item = dataset.read_table("items.parquet").row(0, named=True)
    assert item["name"] == "Amélie 1"
    vocabulary = dataset.read_table("vocabulary.parquet").filter(pl.col("kind") == "category")
    names = dict(vocabulary.select("code", "value").iter_rows())
    assert {names[code] for code in item["category_indices"]} == {"Action", "Western", "01-Jan-1995"}
    assert set(dataset.facts["profiles"]) == {"age", "gender", "occupation", "zip_code"}


def test_nested_categories_of_json_items(tmp_path: Path) -> None:
    items = write(
        tmp_path / "meta.jsonl",
        "".join(
            json.dumps({"asin": f"i{n}", "title": f"t{n}", "categories": [["A", "B"], ["C"]]}) + "\n" for n in range(10)
        ),
    )
    dataset = run(tmp_path, small_log(tmp_path), items=items)
    vocabulary = dataset.read_table("vocabulary.parquet")
    assert vocabulary.filter(pl.col("column") == "categories")["value"].to_list() == ["A", "B", "C"]


def test_columns_by_position(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "".join(f"{T + n},i{n},u{n % 3}\n" for n in range(40)))
    dataset = run(tmp_path, log, map={"user": "3", "item": "2", "time": "1"})
    assert (dataset.facts["users"], dataset.facts["items"]) == (3, 40)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"map": {"user": "nobody"}}, "no column 'nobody' for user"),
        ({"map": {"user": "user_id.id"}}, "no column 'user_id.id' for user"),
        ({"map": {"who": "user_id"}}, "no role 'who'"),
        ({"label": "rating~4"}, "cannot read 'rating~4'"),
        ({"label": "stars>=4"}, "no column 'stars'"),
        ({"periods": ["60", "40"]}, "not four shares"),
        ({"min_user_events": 99}, "no event is left"),
        ({"format": "recbole"}, "no RecBole header"),
        ({"format": "taobao"}, "does not have the taobao layout"),
        ({"format": "parquet"}, "not a whole Parquet file"),
        ({"timezone": "Nowhere"}, "no zone is called"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(DcclError, match=problem) as caught:
        run(tmp_path, small_log(tmp_path), **config)
    assert caught.value.remedy


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        run(tmp_path, tmp_path / "none-*.csv")
    with pytest.raises(UsageError, match="no such file"):
        run(tmp_path, small_log(tmp_path), users=tmp_path / "none.csv")
    with pytest.raises(UsageError, match="no log with a known name"):
        run(tmp_path, tmp_path)


def test_globs_and_two_files(tmp_path: Path) -> None:
    for part in range(2):
        text = "".join(f"u{n % 4},i{n},{T + n}\n" for n in range(20 * part, 20 * part + 20))
        write(tmp_path / f"part-{part}.csv", "user_id,item_id,timestamp\n" + text)
    dataset = run(tmp_path, tmp_path / "part-*.csv")
    assert [source["rows"] for source in dataset.facts["sources"]] == [20, 20]
    assert set(dataset.inputs) == {"log:part-0.csv", "log:part-1.csv"}


def test_periods_and_cuts_count_everybody(tmp_path: Path) -> None:
    facts = run(tmp_path, small_log(tmp_path)).facts
    assert sum(period["events"] for period in facts["periods"]) == facts["events"]
    assert sum(period["new_users"] for period in facts["periods"]) == facts["users"]
    assert sum(facts["groups"].values()) == facts["users"]
    assert facts["cuts"][0]["events_left_out"] == facts["events"] - facts["periods"][0]["events"]


def test_ml_100k(real_data: Path, tmp_path: Path) -> None:
    dataset = run(tmp_path, real_data / "ml-100k" / "ml-100k.inter", split="per-user")
    facts = dataset.facts
    assert (facts["users"], facts["items"], facts["events"]) == (943, 1682, 100_000)
    assert set(facts["profiles"]) == {"age", "gender", "occupation"}
    assert facts["groups"] == {"head": 189, "tail": 754, "new": 0}


def test_amazon_beauty_is_an_order(real_data: Path, tmp_path: Path) -> None:
    log = real_data / "amazon-beauty" / "events.csv.gz"
    with pytest.raises(UsageError, match="only the order of each user's events"):
        run(tmp_path, log)
    facts = run(tmp_path, log, items=real_data / "amazon-beauty" / "items.csv", split="leave-one-out").facts
    assert (facts["users"], facts["items"], facts["time_kind"]) == (22_363, 12_101, "ordinal")
    assert [period["events"] for period in facts["periods"]][2:] == [22_363, 22_363]


def test_grocery(real_data: Path, tmp_path: Path) -> None:
    facts = run(tmp_path, real_data / "grocery" / "events.tsv", items=real_data / "grocery" / "items.tsv").facts
    # Days are its clock, so the cuts move to the next day and the shares are not exact.
    assert facts["users"] == 14_681
    assert facts["rows"]["read"] == 121_892
    assert facts["periods"][0]["end"] < facts["periods"][1]["start"]
