"""How the columns of a bundle's tables are stored, and what a graph reads of them."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dcclctl.devices.bundle.graph import Array, Graph, Precision
from dcclctl.devices.bundle.table import Table, TableValues

PLACES = np.arange(1, 9)


def read(table: Table, name: str, folder: Path) -> Array:
    """All rows of a column, as a graph gives them."""
    graph = Graph("read")
    numbers = graph.input("numbers", np.int64, "C")
    graph.output("found", TableValues(graph, table).rows(name, numbers), np.float32, "C", 8)
    (folder / table.file).write_bytes(table.bytes())
    (folder / "read.onnx").write_bytes(graph.bytes())
    rows = len(next(iter(table.columns.values())))
    session = onnxruntime.InferenceSession(folder / "read.onnx", providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"numbers": np.arange(rows)})[0]
    return found


def test_falling_scores_are_stored_as_two_numbers(tmp_path: Path) -> None:
    falling = np.stack([0.3 * PLACES**-0.5, 0.02 * PLACES**-1.0, np.full(8, 0.1), 0.05 * PLACES**-0.2])
    falling[3, 5:] = 0  # related to five items only
    falling = np.concatenate([falling, np.zeros((1, 8)), np.eye(1, 8) * 0.07]).astype(np.float32)
    table = Table.of({"score": falling}, "int8", falling=("score",))
    assert table.bytes_per_row == 4
    found = read(table, "score", tmp_path)
    # where a score was 0 the number of the item is one that no device holds
    np.testing.assert_allclose(found[falling > 0], falling[falling > 0], rtol=4e-3)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("precision", "bytes_per_row"), [("fp32", 32), ("fp16", 16), ("int8", 10)])
def test_other_columns_are_near_what_they_were(precision: Precision, bytes_per_row: int, tmp_path: Path) -> None:
    column = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    table = Table.of({"mean": column}, precision, falling=("score",))
    assert table.bytes_per_row == bytes_per_row
    largest = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.51 / 127}[precision]
    away = np.abs(read(table, "mean", tmp_path) - column) / np.abs(column).max(1, keepdims=True)
    assert away.max() <= largest


@pytest.mark.parametrize(
    ("precision", "size"), [("fp32", 4 * 64 * 32), ("fp16", 2 * 64 * 32), ("int8", 64 * 32 + 2 * 64)]
)
def test_large_matrices_of_a_graph_are_stored_in_its_precision(precision: Precision, size: int, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    graph = Graph("product", precision)
    graph.output("found", graph.input("left", np.float32, 64) @ graph.constant(matrix), np.float32, 32)
    content = graph.bytes()
    assert size < len(content) < size + 500
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = np.stack([session.run(None, {"left": each})[0] for each in np.eye(64, dtype=np.float32)])
    largest = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.51 / 127}[precision]
    assert (np.abs(found - matrix) / np.abs(matrix).max(1, keepdims=True)).max() <= largest
