"""Delimited text: the fast and the careful way are one, wherever chunks and pieces end."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcclctl.logs import text
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import ByteStream, identify
from dcclctl.logs.text import read_text

COLUMNS = ("user", "item", "time")
Row = tuple[int, tuple[int | None, str], tuple[str, ...]]


def read(path: Path, layout: Layout) -> tuple[list[Row], list[tuple[int, int | None, str, str]], int]:
    """Rows with record number, offset and raw text; rejects; blank lines."""
    rows: list[Row] = []
    rejects, blank = [], 0
    for batch in read_text(ByteStream(identify(path)), layout, list(layout.columns)):
        for place, values in enumerate(batch.frame.iter_rows()):
            rows.append((int(batch.records[place]), batch.raw(place), values))
        rejects += [(each.record, each.offset, each.reason, each.raw) for each in batch.rejects]
        blank += batch.normalised.get("blank-lines", 0)
    return rows, rejects, blank


def careful_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_fast", lambda *_: None)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_line_end", [True, False])
def test_both_ways_agree_on_clean_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_end: str, last_line_end: bool
) -> None:
    lines = ["user,item,time"] + [f"é{n},,{n}" if n % 7 == 0 else f"{n}, i{n} ,{n * n}" for n in range(500)]
    path = tmp_path / "log.csv"
    path.write_bytes((line_end.join(lines) + line_end * last_line_end).encode())
    layout = Layout("csv", "text", COLUMNS)
    fast = read(path, layout)
    careful_only(monkeypatch)
    assert read(path, layout) == fast
    assert len(fast[0]) == 500
    assert fast[0][7] == (8, fast[0][7][1], ("é7", "", "7"))


def test_a_dirty_chunk_costs_only_its_dirty_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{n},i{n},{n}" for n in range(3000)]
    lines[1000] = "1000,i1000"
    lines[2000] = '"20\n00","i""2000",2000'
    lines[2500] = '"2500,i2500,2500'
    data = "\n".join(["user,item,time", *lines, ""]).encode()
    path = tmp_path / "log.csv"
    path.write_bytes(data)
    monkeypatch.setattr(text, "PIECE_BYTES", 4096)
    layout = Layout("csv", "text", COLUMNS)
    rows, rejects, _ = read(path, layout)
    assert len(rows) == 2998
    assert [(record, reason) for record, _, reason, _ in rejects] == [
        (1001, "missing-fields"),
        (2501, "unclosed-quote"),
    ]
    assert [values for record, _, values in rows if record == 2001] == [("20\n00", 'i"2000', "2000")]
    for _, (offset, raw), _ in rows:
        assert data[offset:].startswith(raw.encode())
    for _, offset, _, raw in rejects:
        assert data[offset:].startswith(raw.encode())


def test_a_quoted_record_may_cross_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dcclctl.logs.sources as sources

    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text, "PIECE_BYTES", 16)
    monkeypatch.setattr(text.chunks, "__defaults__", (64,))
    long = "\n".join("abcdefgh" for _ in range(60))
    path = tmp_path / "log.csv"
    path.write_bytes(f'user,item,time\n1,a,1\n"{long}",b,2\n3,c,3\n'.encode())
    rows, rejects, _ = read(path, Layout("csv", "text", COLUMNS))
    assert [values for *_, values in rows] == [("1", "a", "1"), (long, "b", "2"), ("3", "c", "3")]
    assert rejects == []


def test_without_quoting_a_quote_is_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(b'user\titem\ttime\n"a\tb"c\t3\n')
    rows, rejects, _ = read(path, Layout("recbole", "text", COLUMNS, delimiter="\t", quoting=False))
    assert rows == [(1, (15, '"a\tb"c\t3'), ('"a', 'b"c', "3"))]
    assert rejects == []


FIELD = st.text(alphabet=st.sampled_from('ab,"\n é'), max_size=6)


@given(st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=12), st.integers(8, 64))
def test_whatever_a_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list, piece: int
) -> None:
    # Blank records cannot be told from blank lines, whoever reads them.
    rows = [row for row in rows if any(field.strip() for field in row)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", piece)
        found, rejects, _ = read(path, Layout("csv", "text", COLUMNS))
    assert [values for *_, values in found] == rows
    assert rejects == []


@given(
    st.lists(
        st.sampled_from(["1,2,3", "1,2", "1,2,3,4", '"', 'a"b,1,2', "1;2;3", '"x\ny",1,2', "", "\0,1,2"]), max_size=30
    )
)
def test_no_record_is_lost(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    """Offsets of rows and rejects rise, and every non-blank byte of the file belongs to exactly one of them."""
    data = "".join(line + "\n" for line in ["user,item,time", *lines]).encode()
    path = tmp_path_factory.mktemp("dirty") / "log.csv"
    path.write_bytes(data)
    rows, rejects, _ = read(path, Layout("csv", "text", COLUMNS))
    found = sorted([(number, *place) for number, place, _ in rows] + [(n, at, raw) for n, at, _, raw in rejects])
    assert [number for number, *_ in found] == list(range(1, len(found) + 1))
    position = len("user,item,time\n")
    for _, offset, raw in found:
        assert offset is not None
        assert data[position:offset].strip() == b""
        position = offset + len(raw.encode())
    assert data[position:].strip() == b""


def test_polars_keeps_every_text_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,item,time\n007,1e5,+3\n null,NA,-0\n")
    rows, *_ = read(path, Layout("csv", "text", COLUMNS))
    assert [values for *_, values in rows] == [("007", "1e5", "+3"), (" null", "NA", "-0")]
