"""Every cell of the page on bad input: what a file holds, and what becomes of it."""

import codecs
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dcclctl.errors import DataError
from dcclctl.logs import rules, sources
from dcclctl.logs.rules import REASONS
from dcclctl.stages.ingest import ingest
from dcclctl.store.store import Artifact, Store

START = 1_600_000_000
HEADER = b"user_id,item_id,timestamp\n"
Build = Callable[[Path], list[Path]]


def rows(count: int = 40, start: int = 0) -> bytes:
    """Clean rows: user u0…u3, one item each, rising times."""
    return b"".join(f"u{n % 4},i{n},{START + n}\n".encode() for n in range(start, start + count))


def csv(extra: bytes = b"", header: bytes = HEADER, tail: bytes = b"", name: str = "log.csv") -> Build:
    """A file: header, 20 clean rows, extra bytes, 20 clean rows, tail."""
    return raw(header + rows(20) + extra + rows(20, 20) + tail, name)


def raw(data: bytes, name: str = "log.csv") -> Build:
    def build(folder: Path) -> list[Path]:
        (folder / name).write_bytes(data)
        return [folder / name]

    return build


def lines(*extra: str) -> Build:
    """A JSON-lines file: 40 clean lines and extra ones before the last."""
    clean = [json.dumps({"user_id": f"u{n % 4}", "item_id": f"i{n}", "timestamp": START + n}) for n in range(40)]
    return raw("\n".join([*clean[:-1], *extra, clean[-1], ""]).encode(), "log.jsonl")


def parquet(**columns: list[Any]) -> Build:
    """A Parquet file of 40 clean rows with some columns replaced."""

    def build(folder: Path) -> list[Path]:
        clean: dict[str, list[Any]] = {
            "user_id": [f"u{n % 4}" for n in range(40)],
            "item_id": [f"i{n}" for n in range(40)],
            "timestamp": [START + n for n in range(40)],
        }
        pl.DataFrame(clean | columns).write_parquet(folder / "log.parquet")
        return [folder / "log.parquet"]

    return build


def files(*builds: Build) -> Build:
    return lambda folder: [path for build in builds for path in build(folder)]


@dataclass
class Case:
    """What a log holds and what is expected.

    `fails`: part of the error (F). Otherwise: rejects by reason (Q), normalised and warned counts (N, W), user ids that
    must be there (K), and how many of the 40 clean rows and the extra ones are kept.
    """

    build: Build
    fails: str = ""
    rejected: dict[str, int] = field(default_factory=dict)
    normalised: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    kept: int = 40
    users: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


T = START + 100
NFC, NFD = "caf\u00e9", "cafe\u0301"
RATED = b"user_id,item_id,timestamp,rating\n"


def rated(*labels: str) -> Build:
    """A file with ratings 1 and 5, and one more row for each label."""
    clean = "".join(f"u{n % 4},i{n},{START + n},{1 + 4 * (n % 2)}\n" for n in range(40))
    return raw(RATED + clean.encode() + "".join(f"u9,x{n},{T},{text}\n" for n, text in enumerate(labels)).encode())


LABEL = {"label": "rating>=4"}

CASES: dict[str, Case] = {
    # bytes
    "bom": Case(raw(codecs.BOM_UTF8 + HEADER + rows()), normalised={"byte-order-mark": 1}),
    "utf-16 not declared": Case(raw((HEADER + rows()).decode().encode("utf-16")), fails="UTF-16"),
    "utf-16 declared": Case(raw((HEADER + rows()).decode().encode("utf-16")), config={"encoding": "utf-16"}),
    "latin-1 not declared": Case(csv(f"{NFC},i,{T}\n".encode("latin-1")), fails="not UTF-8: byte 0xe9 at offset"),
    "latin-1 declared": Case(
        csv(f"{NFC},i,{T}\n".encode("latin-1")), kept=41, users=(NFC,), config={"encoding": "latin-1"}
    ),
    "crlf": Case(raw((HEADER + rows()).replace(b"\n", b"\r\n")), users=("u0",)),
    "cr only": Case(raw((HEADER + rows()).replace(b"\n", b"\r")), fails="CR only"),
    "nul in an id": Case(csv(f"u\0,i,{T}\n".encode()), rejected={"nul-in-id": 1}),
    "field over 64 KiB": Case(csv(b"u" * 70_000 + f",i,{T}\n".encode()), rejected={"field-too-long": 1}),
    "empty file": Case(raw(b""), fails="is empty"),
    "header only": Case(raw(HEADER), fails="has a header and no rows"),
    "header only, allowed": Case(
        files(raw(HEADER, "a.csv"), raw(HEADER + rows(), "b.csv")), config={"allow_empty": True}
    ),
    "plain named gz": Case(raw(HEADER + rows(), "log.csv.gz"), fails="is named .gz and is not compressed by gzip"),
    "rubbish after gzip": Case(raw(gzip.compress(HEADER + rows()) + b"rubbish", "log.csv.gz"), fails="damaged or cut"),
    "cut gzip": Case(raw(gzip.compress(HEADER + rows(4000))[:-2000], "log.csv.gz"), fails="damaged or cut"),
    "flipped bit in gzip": Case(
        raw(gzip.compress(HEADER + rows())[:-8] + b"\0" * 8, "log.csv.gz"), fails="damaged or cut"
    ),
    "gzip of several members": Case(raw(gzip.compress(HEADER + rows(20)) + gzip.compress(rows(20, 20)), "log.csv.gz")),
    # structure
    "quoted newline": Case(
        raw(b"user_id,item_id,timestamp,note\n" + rows().replace(b"\n", b",x\n") + f'u9,i,{T},"two\nlines"\n'.encode()),
        kept=41,
        users=("u9",),
    ),
    "quoted newline in an id": Case(
        csv(f'"two\nlines",i,{T}\n'.encode()), rejected={"line-end-in-id": 1, "stray-quote": 1}
    ),
    "unclosed quote": Case(csv(f'"never,i,{T}\n'.encode()), rejected={"unclosed-quote": 1}),
    "unclosed quote before a quoted field": Case(
        csv(f'"never,i,{T}\n"fine",i,{T}\n'.encode()), rejected={"unclosed-quote": 1}, kept=41, users=("fine",)
    ),
    "stray quote": Case(csv(f'u"9,i,{T}\n'.encode()), rejected={"stray-quote": 1}),
    "wrong delimiter": Case(raw((HEADER + rows()).replace(b",", b"^")), fails="no delimiter"),
    "mixed delimiters": Case(csv(f"u9;i;{T}\n".encode()), rejected={"mixed-delimiters": 1}),
    "extra fields": Case(csv(f"u9,i,{T},more\n".encode()), rejected={"extra-fields": 1}),
    "missing fields": Case(csv(b"u9,i\n"), rejected={"missing-fields": 1}),
    "cut last row": Case(csv(tail=b"u9,i"), rejected={"cut-last-row": 1}),
    "cut last row within the time": Case(csv(tail=b"u9,i,16000"), rejected={"cut-last-row": 1}),
    "blank lines": Case(csv(b"\n\r\n  \n"), normalised={"blank-lines": 3}),
    "header missing": Case(raw(b"1,2,1600000000\n" * 3), fails="has no header"),
    "duplicate header names": Case(csv(header=b"user_id,item_id,item_id\n"), fails="more than once"),
    "header differs in case or spaces": Case(csv(header=b"USER_ID, item_id ,timestamp\n"), fails="looks like the user"),
    "renamed column": Case(csv(header=b"who,item_id,timestamp\n"), fails="no column for user"),
    # JSON lines, Parquet
    "broken json line": Case(lines('{"user_id": '), rejected={"broken-json": 1}),
    "nan literal": Case(lines(f'{{"user_id": "a", "item_id": NaN, "timestamp": {T}}}'), rejected={"nan-literal": 1}),
    "duplicate keys": Case(
        lines(f'{{"user_id": "a", "user_id": "b", "item_id": "i", "timestamp": {T}}}'), rejected={"duplicate-keys": 1}
    ),
    "mixed types": Case(
        lines(f'{{"user_id": 12, "item_id": "i", "timestamp": {T}}}'),
        kept=41,
        normalised={"mixed-types": 1},
        users=("12",),
    ),
    "late column": Case(
        raw(
            b"".join(
                json.dumps(
                    {"user_id": f"u{n % 4}", "item_id": f"i{n}", "timestamp": START + n} | ({"x": 1} if n > 150 else {})
                ).encode()
                + b"\n"
                for n in range(200)
            ),
            "log.jsonl",
        ),
        kept=200,
        warnings={"late-columns": 1},
    ),
    "nesting deeper than 64": Case(lines('{"user_id": ' + "[" * 70 + "]" * 70 + "}"), rejected={"too-deep": 1}),
    "lone surrogate": Case(
        lines(f'{{"user_id": "\\ud800", "item_id": "i", "timestamp": {T}}}'), rejected={"lone-surrogate": 1}
    ),
    "json array": Case(raw(b'[\n{"user_id": "u"}\n]', "log.json"), fails="one JSON array"),
    "nested parquet column": Case(parquet(user_id=[{"id": f"u{n % 4}"} for n in range(40)]), fails="is nested"),
    "nested parquet column, mapped": Case(
        parquet(user_id=[{"id": f"u{n % 4}"} for n in range(40)]), users=("u3",), config={"map": {"user": "user_id.id"}}
    ),
    "cut parquet": Case(
        lambda folder: raw(parquet()(folder)[0].read_bytes()[:-20], "cut.parquet")(folder),
        fails="not a whole Parquet file",
    ),
    "shards whose schemas differ": Case(
        files(raw(HEADER + rows(), "a.csv"), raw(b"item_id,user_id,timestamp\n" + rows(9, 50), "b.csv")),
        fails="do not have the same columns",
    ),
    # ids
    "leading zeros": Case(csv(f"007,i,{T}\n7,i,{T}\n".encode()), kept=42, users=("007", "7")),
    "123.0 verbatim": Case(csv(f"123.0,i,{T}\n123,i,{T}\n".encode()), kept=42, users=("123.0", "123")),
    "123.0 as int": Case(
        csv(f"123.0,i,{T}\n".encode()), kept=41, users=("123",), normalised={"ids-as-int": 1}, config={"ids": "int"}
    ),
    "over 2^53": Case(
        csv(f"9007199254740993.0,i,{T}\n9007199254740993,i,{T}\n99999999999999999999,i,{T}\n".encode()),
        kept=43,
        users=("9007199254740993.0", "9007199254740993", "99999999999999999999"),
    ),
    "over 2^53 in a float column": Case(
        parquet(user_id=[2.0**53 + 2, *(float(n % 4) for n in range(39))]),
        users=("0.0",),
        warnings={"ids-over-2^53": 1},
    ),
    "empty ids": Case(
        csv(f",i,{T}\nNULL,i,{T}\nNA,i,{T}\nu9,,{T}\n".encode()), rejected={"empty-user": 3, "empty-item": 1}
    ),
    "nfc and nfd": Case(
        csv(f"{NFC},i,{T}\n{NFD},i,{T}\n".encode()), kept=42, users=(NFC, NFD), warnings={"lookalike-ids": 2}
    ),
    "padded ids": Case(
        csv(f" u9 ,i,{T}\nu9,j,{T}\n".encode()),
        kept=42,
        users=("u9",),
        normalised={"padded-ids": 1},
        warnings={"padded-ids": 1},
    ),
    "ids that act elsewhere": Case(
        csv("".join(f"{id},i,{T}\n" for id in ("../x", "=cmd", "<script>", "[/red]", "\x1b[31m")).encode()),
        kept=45,
        users=("../x", "=cmd", "<script>", "[/red]", "\x1b[31m"),
    ),
    # time
    "mixed units": Case(csv(f"u9,i,{T}000\n".encode()), fails="is not a time in s"),
    "mixed units, declared": Case(
        csv(f"u9,i,{T}000\n".encode()), rejected={"time-in-future": 1}, config={"time_unit": "s"}
    ),
    "number among iso times": Case(
        raw(HEADER + b"u1,i,2020-01-01T00:00:00Z\nu1,j,1600000000\n"), fails="is not an ISO time"
    ),
    "zero or negative": Case(csv(b"u9,i,0\nu9,j,-5\n"), rejected={"time-not-positive": 2}),
    "future": Case(
        csv(f"u9,i,{T + 90_000}\nu9,j,{T + 80_000}\n".encode()),
        rejected={"time-in-future": 1},
        kept=41,
        config={"now": "2020-09-13T12:28:20Z"},
    ),
    "not integral": Case(
        csv(b"u9,i,1.7e9\nu9,j,1600000000.5\n"),
        kept=42,
        normalised={"times-with-fraction": 2},
        warnings={"rounded-times": 1},
    ),
    "order number that is not whole": Case(
        raw(HEADER + b"".join(b"u%d,i%d,%d\n" % (n % 4, n, n) for n in range(40)) + b"u9,i,1.5\n"),
        rejected={"time-not-integral": 1},
        config={"split": "leave-one-out"},
    ),
    "whole float": Case(csv(f"u9,i,{T}.0\n".encode()), kept=41, normalised={"times-as-float": 1}),
    "unreadable time": Case(csv(b"u9,i,yesterday\nu9,j,\n"), rejected={"bad-time": 2}),
    "local time": Case(raw(HEADER + b"u1,i,2020-01-01 10:00:00\n"), fails="local time without a zone"),
    "out of order": Case(raw(HEADER + rows(20, 20) + rows(20))),
    # meaning
    "exact duplicates": Case(csv(f"u9,i,{T}\nu9,i,{T}\n".encode()), kept=42, dropped={"duplicates": 1}),
    "conflicting labels": Case(
        raw(
            RATED
            + b"".join(f"u{n % 4},i{n},{START + n},{1 + 4 * (n % 2)}\n".encode() for n in range(40))
            + f"u0,i0,{START},5\n".encode()
        ),
        kept=41,
        warnings={"label-conflicts": 1},
        dropped={"label-conflicts": 1},
        config=LABEL,
    ),
    "nan or infinite label": Case(rated("nan", "inf"), rejected={"label-not-finite": 2}, config=LABEL),
    "true label": Case(
        rated("true", "false"), kept=42, normalised={"labels-true-false": 2}, config={"label": "rating>0"}
    ),
    "comma in a label": Case(rated('"1,0"'), rejected={"bad-label": 1}, config=LABEL),
    "all labels equal": Case(rated("5"), kept=41, warnings={"labels-all-equal": 41}, config={"label": "rating>=1"}),
    "users with one event": Case(csv(f"once,i,{T}\n".encode()), kept=41, users=("once",)),
    "overlapping periods": Case(
        csv(), fails="would overlap", config={"periods": [str(START + 20), str(START + 10), str(START + 30)]}
    ),
    "the same file twice": Case(files(raw(HEADER + rows(), "a.csv"), raw(HEADER + rows(), "b.csv")), fails="same file"),
}


def run(paths: list[Path], folder: Path, **config: Any) -> Artifact:
    return ingest(paths, Store(folder / "store"), {"max_reject": 0.2} | config).artifact


@pytest.mark.parametrize("name", CASES)
def test_cell_of_the_page(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    paths = case.build(tmp_path)
    if case.fails:
        with pytest.raises(DataError, match="(?s)" + case.fails.replace("(", r"\(")) as caught:
            run(paths, tmp_path, **case.config)
        assert caught.value.exit_code == 3
        assert caught.value.remedy
        assert Store(tmp_path / "store").numbers("dataset") == []
        return
    dataset = run(paths, tmp_path, **case.config)
    counts = dataset.facts["rows"]
    assert counts["rejected_by_reason"] == case.rejected
    assert counts["normalised_by_reason"] == case.normalised
    assert counts["warnings"] == case.warnings
    assert counts["dropped"] == case.dropped
    assert counts["kept"] == case.kept
    assert counts["read"] == counts["kept"] + counts["rejected"] == case.kept + sum(case.rejected.values())
    assert dataset.facts["events"] == counts["kept"] - sum(counts["dropped"].values())
    assert set(case.users) <= set(dataset.read_table("users.parquet")["user_id"])
    rejects = dataset.read_table("rejects.parquet")
    assert dict(rejects.group_by("reason").len().iter_rows()) == case.rejected
    assert set(rejects["reason"]) <= set(REASONS)
    if paths[0].suffix != ".gz":
        data = paths[0].read_bytes()
        for row in rejects.iter_rows(named=True):
            text = data[row["byte_offset"] :].decode("utf-8", "replace")
            assert text.startswith(row["raw"].rstrip("\n"))


def test_compression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BOMB_BYTES", 1 << 20)
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(HEADER + rows() + b"\n" * (4 << 20)))
    with pytest.raises(DataError, match="compression bomb"):
        run([path], tmp_path)


def test_file_that_grows_while_read(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(HEADER + rows())
    source = sources.identify(path)
    with path.open("ab") as file:
        file.write(rows(1, 50))
    with pytest.raises(DataError, match="changed while it was read"):
        list(sources.ByteStream(source))


def test_heavy_user_warning_and_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "HEAVY_USER_EVENTS", 10)
    path = tmp_path / "log.csv"
    path.write_bytes(HEADER + rows())
    assert run([path], tmp_path).facts["rows"]["warnings"] == {"heavy-users": 4}
    capped = run([path], tmp_path, max_user_events=6)
    assert capped.facts["rows"]["dropped"] == {"max-user-events": 16}
    assert capped.read_table("users.parquet")["events"].to_list() == [6] * 4
    # The newest stay.
    assert capped.read_table("events.parquet")["time_us"].min() == (START + 16) * 1_000_000


def test_ties_stay_in_file_order(tmp_path: Path) -> None:
    first, second = tmp_path / "b.csv", tmp_path / "a.csv"
    first.write_bytes(HEADER + rows() + f"u9,z,{T}\nu9,y,{T}\n".encode())
    second.write_bytes(HEADER + f"u9,x,{T}\n".encode())
    dataset = run([first, second], tmp_path)
    items = dataset.read_table("items.parquet")["item_id"]
    users = dataset.read_table("users.parquet")["user_id"].to_list()
    events = dataset.read_table("events.parquet").filter(pl.col("user_index") == users.index("u9"))
    assert [items[n] for n in events["item_index"]] == ["z", "y", "x"]


def test_too_many_rejects_commit_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(HEADER + rows() + b"u9,i\nu9,j,0\n")
    with pytest.raises(DataError) as caught:
        run([path], tmp_path, max_reject=0.01)
    assert "2 of 42 rows rejected" in caught.value.what
    assert "1 × missing-fields" in caught.value.what
    assert "1 × time-not-positive" in caught.value.what
    assert "log.csv, record 41: missing-fields: u9,i" in caught.value.remedy
    assert Store(tmp_path / "store").numbers("dataset") == []
