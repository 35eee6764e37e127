"""Turns outside ids into numbers while the log is read, with one dictionary for each column.

A text that is a plain whole number ('123', not '007', '+1' or '123.0') is its own code, so the usual numeric ids need no
dictionary; every other text gets a negative code. No two texts share a code.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import polars as pl

from dcclctl.logs.batch import Codes, Flags, Ints
from dcclctl.logs.rules import EMPTY_IDS

#: For a smaller range of codes, a table indexed by code is cheaper than sorting the codes.
TABLE_CODES = 1 << 28

_DECIMAL = re.compile(r"([0-9]+)\.0+")

#: What is wrong with a code: nothing, an empty id, an id with a NUL, an id with a line end.
FINE, EMPTY, NUL, LINE_END = 0, 1, 2, 3


def whole_numbers(texts: pl.Series) -> tuple[Ints, Flags | None]:
    """Convert texts that are the decimal form of a number, digit for digit.

    Returns:
        The numbers, and which rows are such texts; None if all rows are.
    """
    cast = texts.cast(pl.Int64, strict=False)
    whole = cast.null_count() == 0
    values = (cast if whole else cast.fill_null(-1)).to_numpy()
    if len(values) == 0:
        return values, None
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    if values.min() >= 0:
        # No text is shorter than its number's decimal form, so equal sums mean that all lengths are equal.
        largest, digits, power = int(values.max()), len(values), 10
        while power <= largest:
            digits += int(np.count_nonzero(values >= power))
            power *= 10
        if digits == int(lengths.sum(dtype=np.int64)):
            return values, None
    valid = np.ones(len(values), np.bool_) if whole else cast.is_not_null().to_numpy()
    if not valid.any():
        return values, valid
    powers = 10 ** np.arange(1, 19, dtype=np.int64)
    same = valid & (values >= 0) & (lengths == np.searchsorted(powers, values, side="right") + 1)
    return values, same


class _Id(NamedTuple):
    """What the rules make of one text."""

    code: int
    problem: int = FINE
    padded: bool = False
    decimal: bool = False


class IdColumn:
    """The ids of one column.

    Args:
        as_int: turn '123.0' into '123'.
        empty_is_value: keep empty texts as a value of their own (code of ''), for columns that are not ids.
    """

    def __init__(self, as_int: bool = False, empty_is_value: bool = False) -> None:
        self._as_int = as_int
        self._empty_is_value = empty_is_value
        self._ids: dict[str, _Id] = {}
        #: The text of code -1, -2, …
        self._texts: list[str] = []

    def encode(self, texts: pl.Series) -> tuple[Ints, dict[int, Flags], Flags | None, Flags | None]:
        """Turn texts into codes.

        Returns:
            The codes; EMPTY, NUL or LINE_END → the rows that cannot be used, only where there are such rows; the rows with spaces
            around the id, and the rows with a '.0' (None: no row).
        """
        texts = texts.fill_null("")
        values, same = whole_numbers(texts)
        if same is None:
            return values, {}, None, None
        other = np.flatnonzero(~same)
        rest = texts.gather(other) if len(other) < len(texts) else texts
        distinct = rest.unique(maintain_order=True)
        ids = [self._id(text) for text in distinct.to_list()]
        place = rest.replace_strict(distinct, pl.Series(range(len(ids)), dtype=pl.Int64)).to_numpy()
        codes = values.copy()
        codes[other] = np.array([each.code for each in ids], np.int64)[place]

        def rows(flags: list[bool]) -> Flags | None:
            if not any(flags):
                return None
            spread = np.zeros(len(codes), np.bool_)
            spread[other] = np.array(flags)[place]
            return spread

        problems = {problem: rows([each.problem == problem for each in ids]) for problem in (EMPTY, NUL, LINE_END)}
        bad = {problem: found for problem, found in problems.items() if found is not None}
        return codes, bad, rows([each.padded for each in ids]), rows([each.decimal for each in ids])

    def _id(self, text: str) -> _Id:
        """What the rules make of a text that is not a plain whole number; remembered."""
        known = self._ids.get(text)
        if known is None:
            self._texts.append(text)
            known = self._ids[text] = self._new_id(text, -len(self._texts))
        return known

    def _new_id(self, text: str, code: int) -> _Id:
        clean = text.strip(" \t\r\n\u00a0\u3000\ufeff")
        padded = clean != text
        if clean in EMPTY_IDS and not self._empty_is_value:
            return _Id(code, EMPTY)
        if "\0" in text:
            return _Id(code, NUL)
        if ("\n" in clean or "\r" in clean) and not self._empty_is_value:
            return _Id(code, LINE_END)
        decimal = _DECIMAL.fullmatch(clean) if self._as_int else None
        if decimal:
            clean = str(int(decimal[1]))
        return _Id(code if clean == text else self._code(clean), FINE, padded, decimal is not None)

    def _code(self, text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 18 and str(int(text)) == text:
            return int(text)
        return self._id(text).code

    def texts(self, codes: Iterable[int]) -> list[str]:
        """The ids that codes stand for."""
        return [str(code) if code >= 0 else self._texts[-code - 1] for code in codes]

    def dense(self, codes: Ints) -> tuple[Codes, list[str]]:
        """Number the codes that occur from 0, in the sorted order of their texts.

        Returns:
            The dense number of each row; the texts by dense number.
        """
        distinct, of_row = distinct_codes(codes)
        numbers_only = len(distinct) == 0 or distinct[0] >= 0
        texts = pl.Series(distinct if numbers_only else self.texts(distinct.tolist())).cast(pl.String)
        order = texts.arg_sort().to_numpy()
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        return of_row(rank), texts.gather(order).to_list()


def distinct_codes(codes: Ints) -> tuple[Ints, Callable[[Codes], Codes]]:
    """Sorted distinct codes, and a function from one value a distinct code to one value a row."""
    lowest, highest = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
    if highest - lowest >= min(TABLE_CODES, 64 * len(codes) + 1024):
        distinct, inverse = np.unique(codes, return_inverse=True)
        return distinct, lambda values: values[inverse]
    table = np.full(highest - lowest + 1, -1, np.int32)
    table[codes - lowest if lowest else codes] = 0
    present = np.flatnonzero(table == 0)

    def of_rows(values: Codes) -> Codes:
        table[present] = values
        return table[codes - lowest if lowest else codes]

    return present + lowest, of_rows


def lookalikes(texts: Iterable[str]) -> int:
    """How many ids differ from another one only in their Unicode form (composed or decomposed)."""
    seen: dict[str, int] = {}
    for text in texts:
        if not text.isascii():
            form = unicodedata.normalize("NFC", text)
            seen[form] = seen.get(form, 0) + 1
    return sum(count for count in seen.values() if count > 1)
