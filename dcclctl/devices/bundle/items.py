"""The table of the items that a bundle ships, in full precision or in few bytes, and its values inside a graph.

Shapes: J shipped items, W numbers of one column of the table.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dcclctl.devices.bundle.graph import Array, Graph, Value

Precision = Literal["fp32", "fp16", "int8"]
ITEMS_FILE = "items.safetensors"
#: name of the factors that a column of bytes is multiplied with, one for each row
_SCALE = ".scale"
#: with fewer items, their numbers fit into two bytes
_SHORT = 1 << 16


@dataclass(frozen=True)
class ItemTable:
    """Columns as they are stored: floats in one precision, numbers of items and categories in as few bytes as fit.

    Attributes:
        columns: name → (J, W) or (J,).
    """

    columns: Mapping[str, Array]

    @classmethod
    def of(cls, columns: Mapping[str, Array], precision: Precision) -> "ItemTable":
        """The table in a precision.

        A float column of several numbers becomes bytes with a factor for each row (int8), one of a single number
        float16 at least.
        """
        stored: dict[str, Array] = {}
        for name, column in columns.items():
            if not np.issubdtype(column.dtype, np.floating):
                stored[name] = column.astype(np.uint16 if column.max(initial=0) < _SHORT else np.int32)
            elif precision == "fp32":
                stored[name] = column.astype(np.float32)
            elif precision == "fp16" or column.ndim == 1:
                stored[name] = column.astype(np.float16)
            else:
                # the factor is rounded first, so that what is stored is what the graph multiplies with
                scale = (np.abs(column).max(1) / 127).astype(np.float16)
                factor = np.maximum(scale.astype(np.float32), 1e-7)[:, None]
                stored[name] = np.clip(np.rint(column / factor), -127, 127).astype(np.int8)
                stored[name + _SCALE] = scale
        return cls(stored)

    @property
    def bytes_per_item(self) -> int:
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

    def file(self) -> bytes:
        """The content of items.safetensors: equal tables have equal bytes."""
        header = self.header()
        data = [np.ascontiguousarray(column).tobytes() for column in self.columns.values()]
        return b"".join([len(header).to_bytes(8, "little"), header, *data])


_SAFETENSORS = {"f4": "F32", "f2": "F16", "i1": "I8", "u2": "U16", "i4": "I32"}


class ItemValues:
    """The table inside a graph: its bytes stay in items.safetensors, and a row is read when it is needed.

    Args:
        table: the whole table of the file. names: columns that the graph reads; None: all.
    """

    def __init__(self, graph: Graph, table: ItemTable, names: Collection[str] | None = None) -> None:
        self.graph, self.table = graph, table
        at = 8 + len(table.header())
        self._values: dict[str, Value] = {}
        for name, column in table.columns.items():
            if names is None or name.removesuffix(_SCALE) in names:
                self._values[name] = graph.external(f"items.{name}", column, ITEMS_FILE, at)
            at += column.nbytes

    def rows(self, name: str, items: Value) -> Value:
        """A column's rows of the items, float32 or int64."""
        found = self._values[name].rows(items)
        column = self.table.columns[name]
        if column.dtype.kind != "f" and column.dtype != np.int8:
            return found.cast(np.int64)
        found = found if column.dtype == np.float32 else found.cast(np.float32)
        if name + _SCALE not in self._values:
            return found
        scale = self._values[name + _SCALE].rows(items).cast(np.float32)
        return found * self.graph.op("Max", scale, 1e-7).unsqueeze(-1)
