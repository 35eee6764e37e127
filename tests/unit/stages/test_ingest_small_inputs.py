"""Layouts that published logs have: each is read right, or refused with what to type instead."""

import datetime as dt
import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, DcclError, UsageError
from dcclctl.logs import parquet, sources
from dcclctl.stages.ingest import Sides, ingest
from dcclctl.store.store import Artifact, Store

T = 1_598_895_159  # 2020-08-31T17:32:39Z
HALF_DAY = 43_200
#: (user, item, second) of 40 events
EVENTS = [(n % 6 + 1, n % 9 + 1, T + HALF_DAY * n) for n in range(40)]


def run(folder: Path, log: Path, users: Path | None = None, items: Path | None = None, **config: Any) -> Artifact:
    return ingest([log], Store(folder / "store"), {"repeats": "keep"} | config, sides=Sides(users, items)).artifact


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(delimiter: str = ",", header: bool = True, row: str = "{u}{d}{i}{d}{t}") -> str:
    names = delimiter.join(("user_id", "item_id", "timestamp"))
    lines = [row.format(u=u, i=i, t=t, d=delimiter) for u, i, t in EVENTS]
    return "\n".join([names, *lines] if header else lines) + "\n"


def events_of(dataset: Artifact) -> list[tuple[str, str, int]]:
    """(user id, item id, microsecond) of every event."""
    users, items = (dataset.read_table(f"{role}s.parquet")[f"{role}_id"] for role in ("user", "item"))
    rows = dataset.read_table("events.parquet").select("user_index", "item_index", "time_us").iter_rows()
    return sorted((users[user], items[item], time) for user, item, time in rows)


CLEAN = sorted((str(u), str(i), t * 1_000_000) for u, i, t in EVENTS)


# positions


@pytest.mark.parametrize("name", ["log.csv", "log.tsv.gz"])
def test_digits_in_map_are_positions(tmp_path: Path, name: str) -> None:
    """The first row holds a 1, as MovieLens' u1.base does, or each of 1, 2 and 3."""
    delimiter = "\t" if "tsv" in name else ","
    log = write(tmp_path / name, table(delimiter, header=False))
    found = run(tmp_path, log, map={"user": "1", "item": "2", "time": "3"})
    assert events_of(found) == CLEAN
    rows = [(1, 3, 2), *((u, i, n + 3) for n, (u, i, _) in enumerate(EVENTS))]
    log = write(tmp_path / "swap.csv", "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    found = run(tmp_path, log, map={"user": "1", "item": "2", "time": "3"}, split="leave-one-out")
    assert events_of(found) == sorted((str(u), str(i), t) for u, i, t in rows)


def test_positions_under_a_header_do_not_make_it_a_row(tmp_path: Path) -> None:
    found = run(tmp_path, write(tmp_path / "log.csv", table()), map={"user": "1", "item": "2", "time": "3"})
    assert (events_of(found), found.facts["rows"]["rejected"]) == (CLEAN, 0)


@pytest.mark.parametrize("start", [0, 1])
def test_a_header_that_counts_the_columns_is_a_header(tmp_path: Path, start: int) -> None:
    text = table().replace("user_id,item_id,timestamp", f"{start},{start + 1},{start + 2}")
    places = {"user": str(start), "item": str(start + 1), "time": str(start + 2)}
    assert events_of(run(tmp_path, write(tmp_path / "log.csv", text), map=places)) == CLEAN


@pytest.mark.parametrize(
    "mapped", [{"item": "user_id"}, {"user": "timestamp"}, {"user": "1", "item": "1", "time": "3"}]
)
def test_one_column_for_two_roles_is_refused(tmp_path: Path, mapped: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="is given for both"):
        run(tmp_path, write(tmp_path / "log.csv", table()), map=mapped)


# times


def written(form: str) -> str:
    moments = [(u, i, dt.datetime.fromtimestamp(t, dt.UTC).strftime(form)) for u, i, t in EVENTS]
    return "user_id\titem_id\ttimestamp\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in moments)


@pytest.mark.parametrize(("form", "second"), [("%Y%m%d", 86_400), ("%Y%m%d%H", 3600), ("%Y%m%d%H%M%S", 1)])
@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz", "jsonl", "parquet"])
def test_calendar_numbers_are_dates(tmp_path: Path, form: str, second: int, suffix: str) -> None:
    log = write(tmp_path / f"log.{suffix}", written(form))
    frame = pl.read_csv(written(form).encode(), separator="\t")
    if suffix == "jsonl":
        frame.write_ndjson(log)
    elif suffix == "parquet":
        frame.write_parquet(log)
    with pytest.raises(DataError, match="local time without a zone"):
        run(tmp_path, log)
    assert events_of(run(tmp_path, log, timezone="UTC")) == sorted(
        (str(u), str(i), t // second * second * 1_000_000) for u, i, t in EVENTS
    )


def test_calendar_numbers_in_periods(tmp_path: Path) -> None:
    log = write(tmp_path / "log.tsv", written("%Y%m%d"))
    found = run(tmp_path, log, timezone="UTC", periods=["20200905", "20200910", "20200915"])
    assert [each["at"] for each in found.facts["cuts"]] == [f"2020-09-{day}T00:00:00Z" for day in ("05", "10", "15")]


@pytest.mark.parametrize(
    ("row", "factor"),
    [
        ("{u}{d}{i}{d}{t}.137", 1_000_000),
        ("{u}{d}{i}{d}{t}137.5", 1_000),
        ("{u}{d}{i}{d}{t}137250.5e0", 1),
        ("{u}{d}{i}{d}{t:.9E}", 1_000_000),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl"])
def test_parts_of_a_second_are_microseconds(tmp_path: Path, row: str, factor: int, suffix: str) -> None:
    log = write(tmp_path / f"log.{suffix}", table(row=row))
    if suffix == "jsonl":
        lines = [
            '{{"user_id":{u},"item_id":{i},"timestamp":{t}}}'.format(u=u, i=i, t=row.format(u="", i="", d="", t=t))
            for u, i, t in EVENTS
        ]
        write(log, "\n".join(lines))
    found = run(tmp_path, log)
    part = (
        round((float(row.format(u="", i="", d="", t=1)) if factor > 1 and "E" not in row else 0) % 1 * factor)
        if "137.5" not in row
        else 137_500
    )
    part = 137_250 if "137250" in row else part
    assert [time for *_, time in events_of(found)] == [time + part for *_, time in CLEAN]
    assert found.facts["rows"]["normalised_by_reason"]["times-with-fraction"] == 40
    assert found.facts["rows"]["warnings"] == {}


def test_parts_of_a_second_in_a_float_column(tmp_path: Path) -> None:
    columns = list(zip(*EVENTS, strict=True))
    frame = pl.DataFrame({"user_id": columns[0], "item_id": columns[1], "timestamp": [t + 0.137 for t in columns[2]]})
    frame.write_parquet(tmp_path / "log.parquet")
    found = run(tmp_path, tmp_path / "log.parquet")
    assert [time for *_, time in events_of(found)] == [time + 137_000 for *_, time in CLEAN]


def test_times_that_lost_their_digits_are_counted(tmp_path: Path) -> None:
    found = run(tmp_path, write(tmp_path / "log.csv", table(row="{u},{i},{t:.6E}")))
    assert found.facts["rows"]["warnings"] == {"rounded-times": 40}


FORMS = {
    "MIND": ("%m/%d/%Y %I:%M:%S %p", 1),
    "Foursquare": ("%a %b %d %H:%M:%S +0000 %Y", 1),
    "Tianchi": ("%Y-%m-%d %H", 3600),
    "Postgres": ("%Y-%m-%d %H:%M:%S+00", 1),
    "slashes": ("%Y/%m/%d %H:%M", 60),
    "dots": ("%d.%m.%Y %H:%M", 60),
    "basic ISO": ("%Y%m%dT%H%M%SZ", 1),
    "day first": ("%d/%m/%Y %H:%M:%S", 1),
    "dashes": ("%d-%m-%Y", 86_400),
    "mail": ("%a, %d %b %Y %H:%M:%S GMT", 1),
    "web server": ("%d/%b/%Y:%H:%M:%S +0000", 1),
    "words": ("%B %d, %Y %I:%M %p", 60),
    "Go": ("%Y-%m-%d %H:%M:%S +0000 UTC", 1),
    "Amazon": ("%m %d, %Y", 86_400),
}


@pytest.mark.parametrize("name", FORMS)
def test_published_forms_of_times(tmp_path: Path, name: str) -> None:
    form, second = FORMS[name]
    found = run(tmp_path, write(tmp_path / "log.tsv", written(form)), timezone="UTC")
    assert events_of(found) == sorted((str(u), str(i), t // second * second * 1_000_000) for u, i, t in EVENTS)


def test_a_day_that_may_be_a_month_is_asked_about(tmp_path: Path) -> None:
    rows = "".join(f"{n % 4},{n},0{n % 9 + 1}/0{n % 7 + 1}/2020\n" for n in range(40))
    log = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + rows)
    with pytest.raises(DataError, match="the day or the month first") as caught:
        run(tmp_path, log, timezone="UTC")
    assert "--time-format" in caught.value.remedy
    found = run(tmp_path, log, timezone="UTC", time_format="%d/%m/%Y")
    assert found.facts["periods"][0]["start"] == "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("form", "second"),
    [("%H:%M:%S on %d.%m.%y", 1), ("%y%m%d/%H", 3600), ("%j of %Y", 86_400), ("%Y-%m-%d %H:%M:%S %z", 1)],
)
def test_any_form_can_be_declared(tmp_path: Path, form: str, second: int) -> None:
    config = {"time_format": form} | ({} if "%z" in form else {"timezone": "UTC"})
    found = run(tmp_path, write(tmp_path / "log.tsv", written(form)), **config)
    assert events_of(found) == sorted((str(u), str(i), t // second * second * 1_000_000) for u, i, t in EVENTS)


@pytest.mark.parametrize("config", [{"time_format": "%d %Q"}, {"time_format": "%d", "time_unit": "s"}])
def test_a_form_that_cannot_be(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--time-format"):
        run(tmp_path, write(tmp_path / "log.csv", table()), **config)


def test_a_time_that_is_not_read_shows_what_is(tmp_path: Path) -> None:
    log = write(tmp_path / "log.tsv", written("week %W of %Y"))
    with pytest.raises(DataError, match="40 × bad-time") as caught:
        run(tmp_path, log)
    assert "2020-08-31 17:32:39+00" in caught.value.remedy and "--time-format" in caught.value.remedy


# side tables


def sides_of(folder: Path, suffix: str, id: str) -> Path:
    """An items table whose ids are written like `id`."""
    rows = [{"item_id": id.format(n=n), "title": f"Thing {n}", "category": f"c{n % 3}"} for n in range(1, 10)]
    path = folder / f"items.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif suffix == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        write(path, "item_id,title,category\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "parquet"])
def test_side_tables_say_how_many_rows_match(tmp_path: Path, suffix: str) -> None:
    log = write(tmp_path / "log.csv", table())
    good = run(tmp_path, log, items=sides_of(tmp_path, suffix, "{n}"))
    assert good.facts["sources"][1]["matched"] == 9
    assert good.facts["categories"] == 3
    assert f"items.{suffix}: a row for 9 of 9 items" in good.facts["remarks"]
    bad = run(tmp_path, log, items=sides_of(tmp_path, suffix, "{n}.0"))
    assert bad.facts["rows"]["warnings"] == {"unmatched-items": 9}
    (remark,) = [line for line in bad.facts["remarks"] if "a row for 0 of 9 items" in line]
    assert "the log has '1', the table has '1.0'" in remark and "--ids int" in remark
    mended = run(tmp_path, log, items=sides_of(tmp_path, suffix, "{n}.0"), ids="int")
    assert (mended.facts["categories"], mended.facts["rows"]["warnings"]) == (3, {})


def test_ids_int_holds_for_the_table_of_users_too(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", table(row="{u}.0,{i},{t}"))
    users = write(tmp_path / "users.csv", "user_id,sex\n" + "".join(f"{n},{'fm'[n % 2]}\n" for n in range(1, 7)))
    assert run(tmp_path, log, users=users).facts["rows"]["warnings"] == {"unmatched-users": 6}
    assert run(tmp_path, log, users=users, ids="int").facts["profiles"] == {"sex": 3}


def test_a_side_table_without_a_header_says_so(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "1,2,3\n2,3,4\n")
    with pytest.raises(DataError, match="has no header") as caught:
        run(tmp_path, write(tmp_path / "log.csv", table()), items=items)
    assert "--map" not in caught.value.remedy


# quotes and delimiters


def songs() -> list[tuple[int, str, int]]:
    names = {5: '"Heroes', 12: 'Low"', 20: 'Say "Hi"', 21: '"Weird Al" Yankovic'}
    return [(u, names.get(n, f"Song {n}"), t) for n, (u, _, t) in enumerate(EVENTS)]


@pytest.mark.parametrize(("delimiter", "quote"), [("\t", "auto"), (",", "none"), ("\x01", "auto"), ("::", "auto")])
def test_quotes_that_are_letters(tmp_path: Path, delimiter: str, quote: str) -> None:
    rows = "".join(f"{u}{delimiter}{i}{delimiter}{t}\n" for u, i, t in songs())
    log = write(tmp_path / "songs.txt", delimiter.join(("user_id", "item_id", "timestamp")) + "\n" + rows)
    found = run(tmp_path, log, quote=quote)
    assert events_of(found) == sorted((str(u), i, t * 1_000_000) for u, i, t in songs())


def test_a_quote_that_opens_nothing_costs_its_own_lines_only(tmp_path: Path) -> None:
    rows = "".join(f"{u},{i},{t}\n" for u, i, t in songs() if "Weird" not in i and "Say" not in i)
    log = write(tmp_path / "songs.csv", "user_id,item_id,timestamp\n" + rows)
    with pytest.raises(DataError, match=r"line-end-in-id|unclosed-quote"):
        run(tmp_path, log)
    found = run(tmp_path, log, max_reject=0.1)
    assert found.facts["rows"]["read"] == 38
    assert found.facts["rows"]["rejected"] == 2


def test_quotes_are_letters_in_a_known_layout_too(tmp_path: Path) -> None:
    rows = "".join(f"{u},{i},77,pv,{t}\n" for u, i, t in songs())
    found = run(tmp_path, write(tmp_path / "UserBehavior.csv", rows), quote="none")
    assert found.facts["sources"][0]["format"] == "taobao"
    assert events_of(found) == sorted((str(u), i, t * 1_000_000) for u, i, t in songs())


def test_a_tab_separated_file_of_quoted_fields_is_unquoted(tmp_path: Path) -> None:
    text = table("\t").replace("user_id\titem_id\ttimestamp", '"user_id"\t"item_id"\t"timestamp"')
    text = "\n".join(
        line if line.startswith('"') else '"' + line.replace("\t", '"\t"') + '"' for line in text.splitlines()
    )
    assert events_of(run(tmp_path, write(tmp_path / "log.tsv", text))) == CLEAN


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_id_with_a_line_end_is_rejected(tmp_path: Path, suffix: str) -> None:
    rows = [{"user_id": str(u), "item_id": str(i), "timestamp": t} for u, i, t in EVENTS] + [
        {"user_id": "a\nb", "item_id": "x", "timestamp": T}
    ]
    log = tmp_path / f"log.{suffix}"
    frame = pl.DataFrame(rows)
    frame.write_ndjson(log) if suffix == "jsonl" else frame.write_parquet(log)
    found = run(tmp_path, log, max_reject=0.1)
    assert found.facts["rows"]["rejected_by_reason"] == {"line-end-in-id": 1}
    assert events_of(found) == CLEAN


@pytest.mark.parametrize("delimiter", ["::", " ", "\x01", "|", ";"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("suffix", ["dat", "dat.gz"])
def test_delimiters_that_are_found(tmp_path: Path, delimiter: str, header: bool, suffix: str) -> None:
    log = write(tmp_path / f"log.{suffix}", table(delimiter, header))
    if not header:
        with pytest.raises(DataError, match="has no header"):
            run(tmp_path, log)
    places = {} if header else {"user": "1", "item": "2", "time": "3"}
    assert events_of(run(tmp_path, log, map=places)) == CLEAN


@pytest.mark.parametrize(
    ("given", "delimiter"), [("^", "^"), ("\\x02", "\x02"), ("tab", "\t"), ("§", "§"), ("||", "||")]
)
def test_delimiters_that_are_named(tmp_path: Path, given: str, delimiter: str) -> None:
    log = write(tmp_path / "log.txt", table(delimiter))
    items = write(tmp_path / "items.csv", "item_id,shelf\n" + "".join(f"{n},{n % 2}\n" for n in range(1, 10)))
    found = run(tmp_path, log, items=items, delimiter=given)
    assert (events_of(found), found.facts["categories"]) == (CLEAN, 2)


def test_a_delimiter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not in its first line"):
        run(tmp_path, write(tmp_path / "log.csv", table()), delimiter="^")
    with pytest.raises(UsageError, match="delimiter"):
        run(tmp_path, tmp_path / "log.csv", delimiter="\\n")


# encodings


@pytest.mark.parametrize("name", ["gbk", "GB18030", "Shift_JIS", "UTF-8", "utf8", "UTF-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("mark", [True, False])
def test_encodings_of_any_name(tmp_path: Path, name: str, mark: bool) -> None:
    text = (
        table(row="用户{u},商品{i},{t}").replace("用户", "日本") if "JIS" in name else table(row="用户{u},商品{i},{t}")
    )
    text = text.replace("商品", "品")
    codec = (
        name
        if mark or not name.lower().startswith("utf")
        else {"UTF-16": "utf-16-le", "utf-32": "utf-32-le"}.get(name, name)
    )
    log = write(tmp_path / "log.csv", text.encode(codec))
    user = "日本" if "JIS" in name else "用户"
    assert events_of(run(tmp_path, log, encoding=name)) == sorted((user + u, "品" + i, t) for u, i, t in CLEAN)


def test_an_encoding_is_not_guessed_but_shown(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", table(row="用户{u},商品{i},{t}").encode("gbk"))
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        run(tmp_path, log)
    assert "gbk       用户1,商品1" in caught.value.remedy
    assert "latin-1" not in caught.value.remedy


@pytest.mark.parametrize("name", ["klingon", "hex", "utf\0", ""])
def test_an_encoding_that_does_not_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="encoding"):
        run(tmp_path, write(tmp_path / "log.csv", table()), encoding=name)


def test_a_byte_order_mark_says_more_than_the_flag(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", b"\xef\xbb\xbf" + table(row="é{u},{i},{t}").encode())
    assert {user[0] for user, *_ in events_of(run(tmp_path, log, encoding="latin-1"))} == {"é"}


# columns that nobody asked for


def with_category(folder: Path, suffix: str, value: Any) -> Path:
    rows = [{"user_id": u, "item_id": i, "timestamp": t, "category": value(i)} for u, i, t in EVENTS]
    log = folder / f"log.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(log)
    elif suffix == "jsonl":
        write(log, "\n".join(map(json.dumps, rows)))
    else:
        write(
            log,
            "user_id\titem_id\ttimestamp\tcategory\n"
            + "".join("\t".join(map(str, row.values())) + "\n" for row in rows),
        )
    return log


LISTS = {
    "jsonl": lambda i: ["a", f"c{i % 3}"],
    "parquet": lambda i: ["a", f"c{i % 3}"],
    "tsv": lambda i: f"a|c{i % 3}",
    "tsv.gz": lambda i: ["a", f"c{i % 3}"],  # as Python writes a list
}


@pytest.mark.parametrize("suffix", LISTS)
def test_lists_of_categories_in_the_log(tmp_path: Path, suffix: str) -> None:
    log = with_category(tmp_path, suffix, LISTS[suffix])
    found = run(tmp_path, log)
    values = found.read_table("vocabulary.parquet").filter(pl.col("kind") == "category")
    assert values["value"].to_list() == ["a", "c0", "c1", "c2"]
    assert found.read_table("items.parquet")["category_indices"].to_list()[0] == [0, 2]
    off = run(tmp_path, log, map={"category": ""})
    assert (off.facts["categories"], off.facts["unused_columns"]) == (0, ["category"])


def test_the_same_lists_in_the_log_and_in_the_table(tmp_path: Path) -> None:
    inside = run(tmp_path, with_category(tmp_path, "tsv", lambda i: f"{i % 2} {i % 3}"))
    items = write(
        tmp_path / "items.tsv", "item_id\tcategory\n" + "".join(f"{i}\t{i % 2} {i % 3}\n" for i in range(1, 10))
    )
    beside = run(tmp_path, write(tmp_path / "bare.csv", table()), items=items)
    for name in ("vocabulary", "items"):
        assert inside.read_table(f"{name}.parquet").equals(beside.read_table(f"{name}.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_object_that_nobody_asked_for_rejects_nothing(tmp_path: Path, suffix: str) -> None:
    found = run(tmp_path, with_category(tmp_path, suffix, lambda i: {"id": i % 3}))
    assert (events_of(found), found.facts["rows"]["rejected"]) == (CLEAN, 0)


def test_required_roles_cannot_be_switched_off(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column ''"):
        run(tmp_path, write(tmp_path / "log.csv", table()), map={"user": ""})


def odd_table(path: Path, role: str, count: int) -> Path:
    ids = [str(n + 1) for n in range(count)]
    columns = {
        f"{role}_id": pa.array(ids),
        "group": pa.array([f"g{n % 2}" for n in range(count)]),
        "struct": pa.array([{"a": n} for n in range(count)]),
        "runtime": pa.array([dt.timedelta(minutes=n) for n in range(count)]),
        "map": pa.array([[("a", n)] for n in range(count)], pa.map_(pa.string(), pa.int64())),
        "structs": pa.array([[{"a": n}] for n in range(count)]),
        "bytes": pa.array([b"\xff\xfe%d" % n for n in range(count)], pa.binary()),
        "none": pa.nulls(count),
        "pair": pa.array([[0.5, 1.5]] * count, pa.list_(pa.float64(), 2)),
        "kind": pa.array([f"k{n % 3}" for n in range(count)]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_odd_columns_of_parquet_are_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", table())
    users, items = odd_table(tmp_path / "u.parquet", "user", 6), odd_table(tmp_path / "i.parquet", "item", 9)
    found = run(tmp_path, log, users=users, items=items)
    values = found.read_table("vocabulary.parquet").filter(pl.col("kind") == "category")
    assert set(values["column"]) == {"group", "pair", "kind"}
    assert set(found.facts["profiles"]) >= {"group", "kind"}
    left_out = " ".join(line for line in found.facts["remarks"] if "left out" in line)
    for column in ("struct", "runtime", "map", "structs"):
        assert f"i.parquet: column {column!r} is left out" in left_out
    assert found.facts["rows"]["warnings"] == {"binary-values": 15}


def test_odd_columns_of_a_parquet_log(tmp_path: Path) -> None:
    columns = list(zip(*EVENTS, strict=True))
    log = tmp_path / "log.parquet"
    clean = {"user_id": columns[0], "item_id": columns[1], "timestamp": columns[2]}
    odd = {"event": pa.array([dt.timedelta(n) for n in range(40)]), "struct": pa.array([{"a": n} for n in range(40)])}
    pq.write_table(pa.table(clean | odd), log)
    found = run(tmp_path, log)
    assert (events_of(found), found.facts["unused_columns"]) == (CLEAN, ["event", "struct"])
    for column, problem in (("event", "duration"), ("struct", "is nested")):
        with pytest.raises(DataError, match=problem):
            run(tmp_path, log, map={"behaviour": column})
    for ids in ([b"\xff%d" % n for n in range(40)], [dt.timedelta(n) for n in range(40)]):
        pq.write_table(pa.table(clean | {"user_id": pa.array(ids)}), log)
        with pytest.raises(DataError, match="column 'user_id'"):
            run(tmp_path, log)


def test_a_long_id_in_parquet_is_rejected(tmp_path: Path) -> None:
    columns = list(zip(*EVENTS, strict=True))
    ids = [*map(str, columns[0][:-1]), "x" * 10_000_000]
    pl.DataFrame({"user_id": ids, "item_id": columns[1], "timestamp": columns[2]}).write_parquet(
        tmp_path / "log.parquet"
    )
    found = run(tmp_path, tmp_path / "log.parquet", max_reject=0.1)
    assert found.facts["rows"]["rejected_by_reason"] == {"field-too-long": 1}
    assert found.facts["events"] == 39
    assert found.read_table("rejects.parquet")["raw"].str.len_bytes().max() <= 65_536


def test_many_equal_rows_in_a_tiny_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BOMB_BYTES", 1 << 20)
    row = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [T]})
    pl.concat([row] * 300_000).write_parquet(tmp_path / "log.parquet", compression="zstd")
    with pytest.raises(DataError, match="compression bomb"):
        run(tmp_path, tmp_path / "log.parquet")


# what the log says besides


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_names_behaviours_and_unused_columns(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "user_id": u,
            "item_id": i,
            "timestamp": t,
            "event": ("view", "buy")[n % 4 == 0],
            "title": f"Thing {i}" if n > 4 else "",
            "colour": "red",
        }
        for n, (u, i, t) in enumerate(EVENTS)
    ]
    log = tmp_path / f"log.{suffix}"
    frame = pl.DataFrame(rows)
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[suffix](log)
    found = run(tmp_path, log, map={"name": "title"}, behaviours=["view"])
    assert found.facts["columns"]["name"] == "title"
    assert found.facts["unused_columns"] == ["colour"]
    assert found.facts["behaviours"] == {"view": 30, "buy": 10}
    assert found.read_table("items.parquet")["name"].to_list() == [f"Thing {i}" for i in range(1, 10)]
    items = write(tmp_path / "items.csv", "item_id,title\n1,Best\n2,\n")
    assert run(tmp_path, log, items=items, map={"name": "title"}).read_table("items.parquet")["name"].to_list()[:3] == [
        *("Best", "Thing 2", "Thing 3")
    ]
    assert run(tmp_path, log).read_table("items.parquet")["name"].null_count() == 9


# files that are none


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_pipe_is_read_like_a_file(tmp_path: Path, suffix: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = write(tmp_path / f"log.csv{suffix}", table()).read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    found = run(tmp_path, pipe)
    writer.join()
    assert events_of(found) == CLEAN
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(data)
    found = run(tmp_path, write(tmp_path / "log.csv", table()), items=Path(f"/dev/fd/{reading}"))
    os.close(reading)
    assert found.facts["sources"][1] | {"sha256": ""} == {
        "role": "items",
        "name": "pipe",
        "sha256": "",
        "bytes": len(data),
        "rows": 40,
        "rejected": 0,
        "matched": 9,
    }


def test_a_pipe_without_a_writer_or_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIPE_WAIT_SECONDS", 0.0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="nobody writes into the pipe"):
        run(tmp_path, pipe)
    reading, writing = os.pipe()
    os.write(writing, table().encode())
    monkeypatch.setattr(sources, "PIPE_BYTES", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        run(tmp_path, Path(f"/dev/fd/{reading}"))
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_devices_are_refused(tmp_path: Path, device: str) -> None:
    log = write(tmp_path / "log.csv", table())
    for paths in ({"log": Path(device)}, {"log": log, "items": Path(device)}):
        with pytest.raises(DataError, match="is not a file"):
            run(tmp_path, **paths)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"BZh91AY&SY", b"\xfd7zXZ\x00"])
def test_archives_are_refused(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, write(tmp_path / "log.csv", start + b"\0" * 50))
    assert "dcclctl ingest <(" in caught.value.remedy


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_file_names_are_no_patterns(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(EVENTS, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [str(n) for n in range(1, 10)], "shelf": [f"s{n % 2}" for n in range(1, 10)]})
    for folder, prefix in (("a[1]*?", ""), ("a1xx", "other")):
        (tmp_path / folder).mkdir()
        for name, each in (("log", frame), ("items", items.with_columns(pl.col("shelf") + prefix))):
            path = tmp_path / folder / f"{name}[1].{suffix}"
            with path.open("wb") as file:
                (each.write_csv if suffix == "csv" else each.write_ndjson if suffix == "jsonl" else each.write_parquet)(
                    file
                )
    at = tmp_path / "a[1]*?"
    found = run(tmp_path, at / f"log[1].{suffix}", items=at / f"items[1].{suffix}")
    assert events_of(found) == CLEAN
    assert set(found.read_table("vocabulary.parquet")["value"]) == {"s0", "s1"}


# blank and long lines


@pytest.mark.parametrize("blank", ["\n", "\r\n", " \n", "\n \r\n\n"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "jsonl"])
def test_blank_lines_anywhere(tmp_path: Path, blank: str, suffix: str) -> None:
    lines = table("\t" if suffix == "tsv" else ",").splitlines()
    if suffix == "jsonl":
        lines = [json.dumps({"user_id": u, "item_id": i, "timestamp": t}) for u, i, t in EVENTS]
    many = blank * 1000
    log = write(tmp_path / f"log.{suffix}", many + f"\n{blank}".join(lines) + "\n" + many)
    found = run(tmp_path, log)
    assert events_of(found) == CLEAN
    count = (2000 + len(lines) - 1) * blank.count("\n")
    assert found.facts["rows"]["normalised_by_reason"] == {"blank-lines": count}


@pytest.mark.parametrize("count", [100_000, 3_000_000])
def test_a_long_first_line(tmp_path: Path, count: int) -> None:
    for name in ("log.csv", "log.jsonl", "log.inter", "u.user"):
        with pytest.raises(DcclError) as caught:
            run(tmp_path, write(tmp_path / name, "x" * count))
        assert len(str(caught.value)) < 400


# periods


@pytest.mark.parametrize("periods", ["80,10,10", "0.8,.1,0.1"])
@pytest.mark.parametrize("split", ["global", "per-user"])
def test_three_shares_are_not_three_times(tmp_path: Path, periods: str, split: str) -> None:
    with pytest.raises(UsageError, match="is three shares, and there are four periods"):
        run(tmp_path, write(tmp_path / "log.csv", table()), periods=periods.split(","), split=split)


def test_settings_keep_the_delimiter_that_is_meant() -> None:
    names = {"tab": "\t", "space": " ", "\\t": "\t", "\\x01": "\x01", ",": ",", "": ""}
    assert {given: IngestConfig(delimiter=given).delimiter for given in names} == names


# logs that nothing can be learned from


def test_a_log_without_a_positive_event_says_so(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", table(row="{u}{d}{i}{d}{t}{d}2").replace("timestamp", "timestamp,rating"))
    said = " ".join(run(tmp_path, log, label="rating>=4").facts["remarks"])
    assert "warning: no event is positive" in said and "--label" in said
    assert "no event is positive" not in " ".join(run(tmp_path, log, label="rating>=2").facts["remarks"])


def test_a_log_of_one_moment_says_that_nobody_has_a_history(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", table(row="{u}{d}{i}{d}2024-02-03"))
    said = " ".join(run(tmp_path, one, split="per-user", timezone="UTC").facts["remarks"])
    assert "warning: no user has events at two times" in said
    assert "at two times" not in " ".join(run(tmp_path, write(tmp_path / "log.csv", table())).facts["remarks"])


def test_a_time_unit_that_the_times_do_not_have_is_doubted(tmp_path: Path) -> None:
    dates = write(tmp_path / "dates.csv", table(row="{u}{d}{i}{d}2024-02-03"))
    late = write(tmp_path / "late.csv", table(row="{u}{d}{i}{d}{t}000"))
    for log in (dates, late):
        with pytest.raises(DataError) as error:
            run(tmp_path, log, time_unit="s")
        assert "Perhaps the times are not in --time-unit s" in error.value.remedy
    with pytest.raises(DataError, match="--max-reject"):
        run(tmp_path, write(tmp_path / "bad.csv", table(row="{u}{d}{i}{d}never")))
