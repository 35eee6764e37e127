"""Outside ids → numbers, one dictionary a column, made while the log streams by.

A text that is a plain whole number ('123', not '007', '+1' or '123.0') is its own code, so the usual numeric ids need no
dictionary at all; every other text gets a negative code. No two texts share a code: ids stay text in meaning.
"""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.logs.batch import Codes, Flags, Ints
from dcclctl.logs.rules import EMPTY_IDS

#: Below this largest code a table indexed by code is cheaper than sorting the codes.
TABLE_CODES = 1 << 28

_DECIMAL = re.compile(r"(\d+)\.0+")

#: What is wrong with a code: nothing, an empty id, an id with a NUL.
FINE, EMPTY, NUL = 0, 1, 2


def whole_numbers(texts: pl.Series) -> tuple[Ints, Flags | None]:
    """Texts as numbers where the number's decimal form is the text itself, digit for digit.

    Returns:
        The numbers, and which rows are such texts; None if all are.
    """
    cast = texts.cast(pl.Int64, strict=False)
    whole = cast.null_count() == 0
    values = (cast if whole else cast.fill_null(-1)).to_numpy()
    if len(values) == 0:
        return values, None
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    if values.min() >= 0:
        # No text is shorter than its number's decimal form, so equal sums mean equal lengths everywhere.
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


class IdColumn:
    """The ids of one column.

    Args:
        as_int: turn '123.0' into '123'.
        empty_is_value: keep empty texts as a value of their own (code of ''), for columns that are not ids.
    """

    def __init__(self, as_int: bool = False, empty_is_value: bool = False) -> None:
        self._as_int = as_int
        self._empty_is_value = empty_is_value
        self._codes: dict[str, int] = {}
        self._texts: list[str] = []
        #: By row of the text in `_texts`: what is wrong, the code to use instead, whether spaces or '.0' were cut.
        self._state: list[int] = []
        self._instead: list[int] = []
        self._padded: list[bool] = []
        self._decimal: list[bool] = []

    def encode(self, texts: pl.Series) -> tuple[Ints, dict[int, Flags]]:
        """Codes of the texts, and the rows that cannot be used.

        Returns:
            Codes; and EMPTY or NUL → which rows, only where there are such rows.
        """
        codes, _, _, bad = self._encode(texts)
        return codes, bad

    def encode_counted(self, texts: pl.Series) -> tuple[Ints, dict[int, Flags], Flags | None, Flags | None]:
        """Like `encode`, and which rows had spaces around the id, and which a '.0' (None: none)."""
        codes, padded, decimal, bad = self._encode(texts)
        return codes, bad, padded, decimal

    def _encode(self, texts: pl.Series) -> tuple[Ints, Flags | None, Flags | None, dict[int, Flags]]:
        texts = texts.fill_null("")
        values, same = whole_numbers(texts)
        if same is None:
            return values, None, None, {}
        other = np.flatnonzero(~same)
        rest = texts.gather(other) if len(other) < len(texts) else texts
        distinct = rest.unique(maintain_order=True)
        rows = [self._row(text) for text in distinct.to_list()]
        row = rest.replace_strict(distinct, pl.Series(rows, dtype=pl.Int64), return_dtype=pl.Int64).to_numpy()
        codes = values.copy()
        codes[other] = np.array(self._instead, np.int64)[row]
        bad = {}
        state = np.array(self._state, np.int8)[row]
        for problem in (EMPTY, NUL):
            if (state == problem).any():
                bad[problem] = _spread(state == problem, other, len(codes))
        padded = np.array(self._padded, np.bool_)[row]
        decimal = np.array(self._decimal, np.bool_)[row]
        return (
            codes,
            _spread(padded, other, len(codes)) if padded.any() else None,
            _spread(decimal, other, len(codes)) if decimal.any() else None,
            bad,
        )

    def _row(self, text: str) -> int:
        """Row of a text that is not a plain number, with its rules applied once."""
        known = self._codes.get(text)
        if known is not None:
            return known
        row = len(self._texts)
        self._codes[text] = row
        self._texts.append(text)
        self._instead.append(-row - 1)
        self._padded.append(False)
        self._decimal.append(False)
        self._state.append(FINE)
        trimmed = text.strip(" \t\r\n\u00a0\u3000\ufeff")
        if trimmed in EMPTY_IDS and not self._empty_is_value:
            self._state[row] = EMPTY
            return row
        if "\0" in text:
            self._state[row] = NUL
            return row
        clean = trimmed
        if self._as_int and (match := _DECIMAL.fullmatch(trimmed)):
            clean = str(int(match[1]))
            self._decimal[row] = True
        self._padded[row] = trimmed != text
        if clean != text:
            self._instead[row] = self._code(clean)
        return row

    def _code(self, text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 18 and str(int(text)) == text:
            return int(text)
        return self._instead[self._row(text)]

    def texts(self, codes: Iterable[int]) -> list[str]:
        """The ids that codes stand for."""
        return [str(code) if code >= 0 else self._texts[-code - 1] for code in codes]

    def dense(self, codes: Ints) -> tuple[Codes, list[str]]:
        """Number the codes that occur 0, 1, … in the sorted order of their texts.

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


def _spread(flags: Flags, rows: npt.NDArray[np.intp], height: int) -> Flags:
    spread = np.zeros(height, np.bool_)
    spread[rows] = flags
    return spread


class _RowLookup:
    """Row → value of its code, through a table or through positions."""

    def __init__(self, codes: Ints, lowest: int, table: Codes | None, inverse: npt.NDArray[np.intp] | None) -> None:
        self._codes, self._lowest, self._table, self._inverse = codes, lowest, table, inverse

    def __call__(self, value_of_distinct: Codes) -> Codes:
        if self._inverse is not None:
            return value_of_distinct[self._inverse]
        assert self._table is not None
        self._table[self._table >= 0] = value_of_distinct
        return self._table[self._codes - self._lowest if self._lowest else self._codes]


def distinct_codes(codes: Ints) -> tuple[Ints, _RowLookup]:
    """Sorted distinct codes, and a function that spreads one value a distinct code over the rows."""
    if len(codes) == 0:
        return codes, _RowLookup(codes, 0, None, np.zeros(0, np.intp))
    lowest, highest = int(codes.min()), int(codes.max())
    if highest - lowest < min(TABLE_CODES, 64 * len(codes) + 1024):
        table = np.full(highest - lowest + 1, -1, np.int32)
        table[codes - lowest if lowest else codes] = 0
        return np.flatnonzero(table >= 0).astype(np.int64) + lowest, _RowLookup(codes, lowest, table, None)
    distinct, inverse = np.unique(codes, return_inverse=True)
    return distinct, _RowLookup(codes, lowest, None, inverse)


def lookalikes(texts: Iterable[str]) -> int:
    """How many ids differ from another one only in their Unicode form (composed or decomposed)."""
    seen: dict[str, int] = {}
    for text in texts:
        if not text.isascii():
            form = unicodedata.normalize("NFC", text)
            seen[form] = seen.get(form, 0) + 1
    return sum(count for count in seen.values() if count > 1)
