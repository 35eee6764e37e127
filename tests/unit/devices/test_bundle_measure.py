"""The operations that a graph takes."""

from pathlib import Path

import numpy as np

from dcclctl.devices.bundle.graph import Graph
from dcclctl.devices.bundle.measure import operations


def test_operations_of_a_product_of_two_matrices(tmp_path: Path) -> None:
    graph = Graph("product")
    left, rows = graph.input("left", np.float32, "N", 3), graph.input("rows", np.int64, 2)
    weight = graph.constant(np.ones((3, 5), dtype=np.float32))
    graph.output("found", (left @ weight).rows(rows), np.float32, 2, 5)
    (tmp_path / "graph.onnx").write_bytes(graph.bytes())
    given = {"left": np.ones((4, 3), dtype=np.float32), "rows": np.array([0, 2])}
    macs, moved = operations(tmp_path / "graph.onnx", given)
    assert macs == 4 * 3 * 5
    product, gathered, copied = 4 * (4 * 3 + 4 * 5), 4 * 2 * (2 * 5), 4 * 2 * (2 * 5)
    weights = (tmp_path / "graph.onnx").stat().st_size
    assert moved == product + gathered + copied + weights


def test_a_weight_may_be_the_first_matrix(tmp_path: Path) -> None:
    graph = Graph("product")
    right = graph.input("right", np.float32, 3, "N")
    graph.output("found", graph.constant(np.ones(3, dtype=np.float32)) @ right, np.float32, "N")
    (tmp_path / "graph.onnx").write_bytes(graph.bytes())
    assert operations(tmp_path / "graph.onnx", {"right": np.ones((3, 7), dtype=np.float32)})[0] == 3 * 7
