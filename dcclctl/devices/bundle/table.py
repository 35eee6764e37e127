"""Tables that a bundle's graphs read in place: the shipped items, and the basis of the patches; in full precision or few bytes.

Shapes: J rows, W numbers of one column of a table.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from dcclctl.devices.bundle.graph import Array, Graph, Precision, Value, in_bytes

#: one row for each shipped item; one row for each weight of a patch
ITEMS_FILE, BASIS_FILE = "items.safetensors", "basis.safetensors"
#: name of the factors that a column of bytes is multiplied with, one for each row
_SCALE = ".scale"
#: name of the two numbers that stand for a row of falling scores, see `_curves`
_CURVE = ".curve"
#: with fewer items, their numbers fit into two bytes
_SHORT = 1 << 16


@dataclass(frozen=True)
class Table:
    """Columns as they are stored: floats in one precision, numbers of items and categories in as few bytes as fit.

    Attributes:
        columns: name → (J, W) or (J,). file: its name. widths: name of a column that is stored as curves → its W.
    """

    columns: Mapping[str, Array]
    file: str = ITEMS_FILE
    widths: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, columns: Mapping[str, Array], precision: Precision, file: str = ITEMS_FILE, falling: Collection[str] = ()
    ) -> "Table":
        """The table in a precision.

        A float column of several numbers becomes bytes with a factor for each row (int8), one of a single number
        float16 at least.

        Args:
            falling: columns of scores ≥ 0 that fall in each row,
                of which a curve is stored where others are bytes.
        """
        stored: dict[str, Array] = {}
        widths: dict[str, int] = {}
        for name, column in columns.items():
            if not np.issubdtype(column.dtype, np.floating):
                stored[name] = column.astype(np.uint16 if column.max(initial=0) < _SHORT else np.int32)
            elif precision == "fp32":
                stored[name] = column.astype(np.float32)
            elif precision == "fp16" or column.ndim == 1:
                stored[name] = column.astype(np.float16)
            elif name in falling:
                stored[name + _CURVE], widths[name] = _curves(column), column.shape[1]
            else:
                stored[name + _SCALE], stored[name] = in_bytes(column)
        return cls(stored, file, widths)

    @property
    def bytes_per_row(self) -> int:
        return sum(column[:1].nbytes for column in self.columns.values())

    def header(self) -> bytes:
        """The head of the safetensors file: name, type, shape and place of every column."""
        header, at = {}, 0
        for name, column in self.columns.items():
            kind = _SAFETENSORS[column.dtype.str[1:]]
            header[name] = {"dtype": kind, "shape": list(column.shape), "data_offsets": [at, at + column.nbytes]}
            at += column.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    def bytes(self) -> bytes:
        """The content of its file: equal tables have equal bytes."""
        header = self.header()
        data = [np.ascontiguousarray(column).tobytes() for column in self.columns.values()]
        return b"".join([len(header).to_bytes(8, "little"), header, *data])


def _curves(scores: Array) -> Array:
    """(J, 2) height and slope of the straight line that is nearest to the logarithms of a row's scores over the logarithm of
    their place; a score of 0 does not count."""
    place = np.log(np.arange(1, scores.shape[1] + 1))
    there = scores > 0
    count = np.maximum(there.sum(1), 1)
    y = np.log(np.where(there, scores, 1))
    mean_x, mean_y = (there * place).sum(1) / count, y.sum(1) / count
    away = there * (place - mean_x[:, None])
    slope = (away * y).sum(1) / np.maximum((away * away).sum(1), 1e-9)
    return np.stack([mean_y - slope * mean_x, slope], axis=1).astype(np.float16)


_SAFETENSORS = {"f4": "F32", "f2": "F16", "i1": "I8", "u2": "U16", "i4": "I32"}


class TableValues:
    """A table inside a graph: its bytes stay in the table's file, and a row is read when it is needed.

    Args:
        table: the whole table. names: columns that the graph reads; None: all.
    """

    def __init__(self, graph: Graph, table: Table, names: Collection[str] | None = None) -> None:
        self.graph, self.table = graph, table
        at = 8 + len(table.header())
        self._values: dict[str, Value] = {}
        for name, column in table.columns.items():
            if names is None or name.removesuffix(_SCALE).removesuffix(_CURVE) in names:
                self._values[name] = graph.external(f"{table.file.partition('.')[0]}.{name}", column, table.file, at)
            at += column.nbytes

    def rows(self, name: str, numbers: Value | None = None) -> Value:
        """A column's rows with these numbers, float32 or int64; None: all rows."""

        def read(stored: Value) -> Value:
            return stored if numbers is None else stored.rows(numbers)

        if name in self.table.widths:
            place = np.log(np.arange(1, self.table.widths[name] + 1)).astype(np.float32)
            curve = read(self._values[name + _CURVE]).cast(np.float32)
            return self.graph.op("Exp", curve @ self.graph.constant(np.stack([np.ones_like(place), place])))
        found = read(self._values[name])
        column = self.table.columns[name]
        if column.dtype.kind != "f" and column.dtype != np.int8:
            return found.cast(np.int64)
        found = found if column.dtype == np.float32 else found.cast(np.float32)
        if name + _SCALE not in self._values:
            return found
        scale = read(self._values[name + _SCALE]).cast(np.float32)
        return found * self.graph.op("Max", scale, 1e-7).unsqueeze(-1)
