"""Ids: text in meaning, numbers in memory."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from dcclctl.logs.ids import EMPTY, NUL, IdColumn, distinct_codes, lookalikes, whole_numbers

TEXT = st.one_of(
    st.integers(0, 10**20).map(str),
    st.sampled_from(["007", "0", "00", "+1", "-1", "-0", "1.0", " 1", "1e3", "٣", "9223372036854775807", "a", "é"]),
)


@given(st.lists(TEXT, max_size=30))
def test_whole_numbers_are_exactly_the_texts_that_str_gives_back(texts: list[str]) -> None:
    values, same = whole_numbers(pl.Series(texts, dtype=pl.String))
    flags = [True] * len(texts) if same is None else same.tolist()
    for text, value, flag in zip(texts, values.tolist(), flags, strict=True):
        plain = text.isascii() and text.isdigit() and str(int(text)) == text and int(text) < 2**63
        assert flag == plain
        if flag:
            assert str(value) == text


@given(st.lists(st.lists(TEXT.filter(lambda text: text == text.strip()), max_size=10), max_size=4))
def test_dense_numbers_follow_the_sorted_texts(batches: list[list[str]]) -> None:
    column = IdColumn()
    codes = [column.encode(pl.Series(batch, dtype=pl.String))[0] for batch in batches]
    rows = np.concatenate([np.zeros(0, np.int64), *codes])
    dense, texts = column.dense(rows)
    flat = [text for batch in batches for text in batch]
    assert texts == sorted(set(flat))
    assert [texts[number] for number in dense.tolist()] == flat


def test_unusable_ids_and_padding() -> None:
    column = IdColumn()
    codes, bad, padded, decimal = column.encode(pl.Series(["a", None, " a", "NA", "x\0", " 7 ", "7", "1.0"]))
    assert bad[EMPTY].tolist() == [False, True, False, True, False, False, False, False]
    assert bad[NUL].tolist() == [False] * 4 + [True] + [False] * 3
    assert padded is not None
    assert padded.tolist() == [False, False, True, False, False, True, False, False]
    assert decimal is None
    assert codes[0] == codes[2]
    assert codes[5] == codes[6] == 7
    assert column.texts([int(codes[7])]) == ["1.0"]


def test_ids_as_int() -> None:
    codes, bad, _, decimal = IdColumn(as_int=True).encode(pl.Series(["123.0", "123", "007", "1.5"]))
    assert codes[0] == codes[1] == 123
    assert len(set(codes.tolist())) == 3
    assert decimal is not None
    assert decimal.tolist() == [True, False, False, False]
    assert bad == {}


def test_sparse_codes_use_positions() -> None:
    codes = np.array([10**17, 3, 10**17, -1], np.int64)
    distinct, spread = distinct_codes(codes)
    assert distinct.tolist() == [-1, 3, 10**17]
    assert spread(np.array([5, 6, 7], np.int32)).tolist() == [7, 6, 7, 5]


def test_lookalikes() -> None:
    assert lookalikes(["caf\u00e9", "cafe\u0301", "cafe", "ab"]) == 2
