"""The graphs of a bundle as one program of ExecuTorch: its methods `score` and `learn` are score.onnx and learn.onnx.

Weights and tables are in the program once for both methods. ExecuTorch's portable operators compute it; nothing is
delegated.

Raises:
    UsageError: at import, without the package of the extra `executorch`.
"""

import importlib.metadata
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcclctl.devices.bundle.golden import TOLERANCE, golden_cases
from dcclctl.devices.bundle.graph import Array
from dcclctl.devices.bundle.torch_graph import TorchGraph
from dcclctl.errors import DataError, UsageError

if importlib.util.find_spec("executorch") is None:
    raise UsageError(
        "--target executorch needs the package executorch, which is not installed here",
        "pip install 'dcclctl[executorch]'",
    )

PROGRAM_FILE = "device.pte"
#: largest lengths of the dimensions; ExecuTorch plans its memory for them
_CANDIDATES, _ROWS, _EVENTS, _CANDIDATES_OF_EVENT = 512, 4096, 1024, 32
#: length of a dimension in the example that a method is traced with; any but 0 and 1
_EXAMPLE = 7


def program(folder: Path, spec: Mapping[str, Any], golden: Mapping[str, Array]) -> tuple[bytes, dict[str, Any]]:
    """The program of a bundle, checked against its golden vectors, and what bundle.json says of it.

    Args:
        folder: with the graphs and tables. spec: of bundle.json. golden: tensors of golden.safetensors.

    Raises:
        DataError: ExecuTorch gives other numbers than ONNX Runtime.
    """
    methods: dict[str, dict[str, Any]] = {}
    exported = {}
    for name in (each.removesuffix(".onnx") for each in spec["graphs"]):
        graph = spec["graphs"][f"{name}.onnx"]
        inputs, lengths = graph["inputs"], _lengths(name, graph["inputs"], spec["sizes"]["ring"])
        methods[name] = {side: [each["name"] for each in graph[side]] for side in ("inputs", "outputs")}
        methods[name]["lengths"] = lengths
        exported[name] = _exported(TorchGraph(folder / f"{name}.onnx", spec["sizes"]["history"]), inputs, lengths)
    with _quiet():
        from executorch.exir import to_edge

        data = bytes(to_edge(exported).to_executorch().buffer)
    found = {"version": importlib.metadata.version("executorch"), "methods": methods}
    _check(Methods(data, found), golden)
    return data, found


def _lengths(name: str, inputs: Sequence[Mapping[str, Any]], ring: int) -> dict[str, int]:
    """Length of each dimension that is named: M is always as given, the others are at most so long."""
    named = {size for each in inputs for size in each["shape"] if isinstance(size, str)}
    if name == "score":
        return {"M": ring, "C": _CANDIDATES}
    return {"N": _EVENTS, "C": _CANDIDATES_OF_EVENT} if "C" in named else {"N": _ROWS}


def _exported(graph: TorchGraph, inputs: Sequence[Mapping[str, Any]], lengths: Mapping[str, int]) -> Any:
    dims = {name: torch.export.Dim(name, min=1, max=size) for name, size in lengths.items() if name != "M"}
    given, dynamic = [], []
    for each in inputs:
        shape = [_EXAMPLE if size in dims else lengths.get(size, size) for size in each["shape"]]
        given.append(torch.zeros(shape, dtype=getattr(torch, each["type"])))
        dynamic.append({place: dims[size] for place, size in enumerate(each["shape"]) if size in dims})
    return torch.export.export(graph, tuple(given), dynamic_shapes=(tuple(dynamic),), strict=False)


def _check(methods: "Methods", golden: Mapping[str, Array]) -> None:
    for case, (given, wanted) in golden_cases(dict(golden)).items():
        found = methods.run("learn" if case == "learn" else "score", given)
        for name, expected in wanted.items():
            if not np.allclose(found[name], expected, rtol=TOLERANCE, atol=TOLERANCE):
                raise DataError(
                    f"ExecuTorch {methods.version} differs from ONNX Runtime by {np.abs(found[name] - expected).max():.1e} in "
                    f"{name} of the golden case {case}",
                    "Export without --target executorch, or install another version of it.",
                )


class Methods:
    """A program, opened by ExecuTorch's runtime.

    Args:
        data: the program. described: what bundle.json says of it.
    """

    def __init__(self, data: bytes, described: Mapping[str, Any]) -> None:
        self.version, self._described = described["version"], described["methods"]
        with _quiet():
            from executorch.runtime import Runtime

            self._program = Runtime.get().load_program(data)
            self._methods = {name: self._program.load_method(name) for name in self._described}

    def run(self, name: str, given: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of a method. A ring is filled up with events that do not exist."""
        described = self._described[name]
        arrays = [np.asarray(given[each]) for each in described["inputs"]]
        ring = described["lengths"].get("M", 0)
        padded = {"ring", "baskets"}
        arrays = [
            np.pad(array, (0, ring - len(array))) if each in padded else array
            for each, array in zip(described["inputs"], arrays, strict=True)
        ]
        with _quiet():
            found = self._methods[name].execute([torch.from_numpy(array) for array in arrays])
        return {each: value.numpy().copy() for each, value in zip(described["outputs"], found, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what ExecuTorch and its packages say of themselves, by logging, as warnings, and from C++."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        logging.disable(before)
