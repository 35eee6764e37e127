"""What a bundle costs a device: bytes, milliseconds on this machine with one thread, memory, and an estimate of energy."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from dcclctl.devices.bundle.device import Device, Graphs
from dcclctl.devices.bundle.spec import Measured, Percentiles
from dcclctl.devices.bundle.table import BASIS_FILE

#: candidates of a ranking
_SIZES = (20, 300)
_RUNS = 200
#: energy of one multiplication with addition in float32, and of one byte from DRAM, in picojoules. Source: Horowitz,
#: Computing's energy problem, ISSCC 2014, table 1.1.9, at 45 nm: 3.7 + 0.9 pJ, and 1.3 nJ for 64 bits (the least given)
MAC_PICOJOULES, BYTE_PICOJOULES = 4.6, 1300 / 8
#: prints the largest resident memory of a process that only imports, or that also opens a bundle and ranks
_RESIDENT = """
import re, sys
sys.path.insert(0, sys.argv[1])
device = __import__("device")
def peak():
    try:
        text = open("/proc/self/status").read()
    except OSError:
        return 0
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", text)[1])
before = peak()
found = device.Device(sys.argv[2])
found.items = [at % len(found.graphs.item_ids) for at in range(found.capacity)]
found.later = [True] * found.capacity
found.logits(device.np.arange(int(sys.argv[3])) % len(found.graphs.item_ids))
print(peak(), peak() - before)
"""


def measure(graphs: Graphs) -> Measured:
    """Rank and learn on a device whose ring is full, some hundred times."""
    spec, draw = graphs.spec, np.random.default_rng(0)
    started = time.perf_counter()
    device = Device(Graphs(graphs.folder))
    device.logits(np.arange(1))
    cold = 1000 * (time.perf_counter() - started)
    n_items = len(graphs.item_ids)
    for place, item in enumerate(draw.integers(0, n_items, spec["sizes"]["ring"])):
        device.observe_number(int(item), float(place))
    found = {}
    for size in _SIZES:
        candidates = draw.integers(0, n_items, size)
        found[str(size)] = _percentiles(partial(device.logits, candidates))
    macs, moved = operations(graphs.folder / "score.onnx", device.inputs(candidates))
    moved += spec["files"].get(BASIS_FILE, {"bytes": 0})["bytes"]
    resident, own = _resident(graphs.folder)
    step = None
    if graphs.learn is not None:
        candidates = draw.integers(0, n_items, 10)
        labels = (np.arange(10) == 0).astype(np.float32)
        rows = [device.rows_of(candidates, labels, np.ones_like(labels)) for _ in range(5)]
        step = _percentiles(lambda: device.learn(rows, 1)).p50
    return Measured(
        download_bytes=spec["bytes"]["shared"] + spec["bytes"]["items"],
        shared_bytes=spec["bytes"]["shared"],
        item_bytes=spec["bytes"]["item"],
        user_bytes=spec["bytes"]["user"],
        uplink_bytes=device.theta.nbytes,
        written_bytes=len(json.dumps(device.state())),
        ram_bytes=resident,
        ram_own_bytes=own,
        macs=macs,
        moved_bytes=moved,
        microjoules=round((MAC_PICOJOULES * macs + BYTE_PICOJOULES * moved) / 1e6, 1),
        open_milliseconds=round(cold, 2),
        milliseconds=found,
        learning_step_milliseconds=step,
    )


def operations(graph: Path, inputs: dict[str, Any]) -> tuple[int, int]:
    """Multiplications with addition in the matrix products of one run, and bytes that its operators read and write.

    The shapes are those that ONNX Runtime reports of a run without optimisation; it leaves weights out, so the bytes of the
    graph are added once. Of an operator that gathers rows only the rows count, not the table that they are taken from.
    """
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        records = json.loads(Path(session.end_profiling()).read_bytes())
    model = onnx.load(graph, load_external_data=False).graph
    weights = {weight.name: list(weight.dims) for weight in model.initializer}
    macs, moved = 0, graph.stat().st_size
    for record in records:
        of = record.get("args", {})
        if "input_type_shape" not in of:
            continue
        given, made = (_shapes(of[f"{side}_type_shape"]) for side in ("input", "output"))
        kind = of["op_name"]
        if kind == "MatMul":
            first = model.node[int(of["node_index"])].input[0]
            macs += math.prod(made[0][1]) * weights.get(first, given[0][1])[-1]
        read = made if kind in ("Gather", "Slice") else given
        moved += sum(_BYTES[name] * math.prod(shape) for name, shape in (*read, *made))
    return macs, moved


#: ONNX Runtime's name of a type → bytes of a number
_BYTES = {"float": 4, "float16": 2, "double": 8, "int64": 8, "int32": 4, "uint16": 2, "int8": 1, "bool": 1}


def _shapes(tensors: list[dict[str, list[int]]]) -> list[tuple[str, list[int]]]:
    return [(name, shape) for each in tensors for name, shape in each.items()]


def _resident(folder: Path) -> tuple[int | None, int | None]:
    """Largest resident memory of a process of the runner, and what the bundle adds to it."""
    command = [sys.executable, "-c", _RESIDENT, str(Path(__file__).parent), str(folder), str(max(_SIZES))]
    total, own = (int(value) for value in subprocess.run(command, capture_output=True, check=True).stdout.split())
    return (total, own) if total else (None, None)


def _percentiles(run: Callable[[], Any]) -> Percentiles:
    """Of the milliseconds of processor time of a call, which other programs on the machine hardly change."""
    spent = []
    for _ in range(_RUNS):
        started = time.process_time()
        run()
        spent.append(1000 * (time.process_time() - started))
    return Percentiles(p50=round(float(np.quantile(spent, 0.5)), 3), p95=round(float(np.quantile(spent, 0.95)), 3))
