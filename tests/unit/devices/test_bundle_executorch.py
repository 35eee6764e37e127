"""The graphs of a bundle in torch and in ExecuTorch: the golden vectors, and θ̂ as torch learns it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import KINDS
from safetensors.numpy import load_file
from world import World, dcclctl, done

from dcclctl.devices.bundle.device import Graphs
from dcclctl.devices.bundle.golden import golden_cases
from dcclctl.devices.bundle.torch_graph import TorchGraph

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="ExecuTorch is not installed: pip install 'dcclctl[executorch]'",
)


@pytest.fixture(scope="module")
def stores(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """A store for each kind, and the reference of the model to export."""
    found = {}
    for kind, commands in KINDS.items():
        store = world.copy(tmp_path_factory.mktemp(kind) / "store")
        for command in commands:
            made = done(*command, store=store)
        found[kind] = store, made["ref"]
    return found


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_the_graphs(
    kind: str, precision: str, stores: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    store, reference = stores[kind]
    done("export", reference, f"--precision={precision}", "-o", tmp_path / "bundle", store=store)
    spec = Graphs(tmp_path / "bundle").spec
    for case, (given, wanted) in golden_cases(load_file(tmp_path / "bundle" / "golden.safetensors")).items():
        name = "learn.onnx" if case == "learn" else "score.onnx"
        graph = TorchGraph(tmp_path / "bundle" / name, spec["sizes"]["history"])
        inputs = [torch.from_numpy(given[each["name"]]) for each in spec["graphs"][name]["inputs"]]
        found = dict(zip(graph.outputs, graph(*inputs), strict=True))
        assert found.keys() == wanted.keys()
        for output, expected in wanted.items():
            np.testing.assert_allclose(found[output].numpy(), expected, rtol=1e-5, atol=1e-5)


@needs_executorch
@pytest.mark.parametrize(
    ("kind", "precision"), [*((kind, "fp32") for kind in KINDS), ("sasrec-metapatch", "int8"), ("din-memory", "int8")]
)
def test_a_program_gives_the_golden_vectors(
    kind: str, precision: str, stores: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    from dcclctl.devices.bundle.executorch import Methods

    store, reference = stores[kind]
    flags = ("--target=executorch", f"--precision={precision}", "-o", tmp_path / "bundle")
    done("export", reference, *flags, store=store)
    graphs = Graphs(tmp_path / "bundle")
    program = Methods((tmp_path / "bundle" / "device.pte").read_bytes(), graphs.spec["program"])
    cases = golden_cases(load_file(tmp_path / "bundle" / "golden.safetensors"))
    assert len(cases) == 4 + ("learn" in graphs.spec["program"]["methods"])
    for case, (given, wanted) in cases.items():
        found = program.run("learn" if case == "learn" else "score", given)
        assert found.keys() == wanted.keys()
        for output, expected in wanted.items():
            np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-5)
    # one candidate, and as many as the program takes
    given = cases["full"][0]
    for count in (1, graphs.spec["program"]["methods"]["score"]["lengths"]["C"]):
        given = given | {"candidates": np.arange(count) % len(graphs.item_ids)}
        wanted = graphs.score.run(["logits"], given)[0]
        np.testing.assert_allclose(program.run("score", given)["logits"], wanted, atol=1e-5)


@needs_executorch
@pytest.mark.parametrize("kind", ["din-metapatch", "sasrec-metapatch"])
def test_executorch_learns_what_torch_does(kind: str, stores: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    """Fifty steps on rows of the golden case, each from where the last one ended."""
    from dcclctl.devices.bundle.executorch import Methods

    store, reference = stores[kind]
    done("export", reference, "--target=executorch", "-o", tmp_path / "bundle", store=store)
    graphs = Graphs(tmp_path / "bundle")
    program = Methods((tmp_path / "bundle" / "device.pte").read_bytes(), graphs.spec["program"])
    given, _ = golden_cases(load_file(tmp_path / "bundle" / "golden.safetensors"))["learn"]
    torch_graph = TorchGraph(tmp_path / "bundle" / "learn.onnx", graphs.spec["sizes"]["history"])
    states = [{name: given[name] for name in ("theta", "first", "second")} for _ in range(2)]
    for step in range(1, 51):
        for runtime, state in enumerate(states):
            inputs = given | state | {"step": np.array(step, dtype=np.float32)}
            if runtime:
                tensors = torch_graph(*(torch.from_numpy(inputs[name]) for name in torch_graph.inputs))
                found = {name: tensor.numpy() for name, tensor in zip(torch_graph.outputs, tensors, strict=True)}
            else:
                found = program.run("learn", inputs)
            state.update({name.removeprefix("new_"): value for name, value in found.items()})
    np.testing.assert_allclose(states[0]["theta"], states[1]["theta"], atol=1e-6)
    assert np.abs(states[0]["theta"] - given["theta"]).max() > 0.1


@needs_executorch
def test_a_program_with_other_numbers_is_refused(stores: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    from dcclctl.devices.bundle import executorch
    from dcclctl.errors import DataError

    store, reference = stores["din"]
    done("export", reference, "-o", tmp_path / "bundle", store=store)
    golden = load_file(tmp_path / "bundle" / "golden.safetensors")
    spec = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    executorch.program(tmp_path / "bundle", spec, golden)
    golden["full/out/logits"] += np.float32(1e-3)
    with pytest.raises(DataError, match=r"differs from ONNX Runtime by 1\.0e-03 in logits of the golden case full"):
        executorch.program(tmp_path / "bundle", spec, golden)


def test_without_executorch_the_package_is_named(
    stores: dict[str, tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "executorch" else find(name, *more)
    )
    monkeypatch.delitem(sys.modules, "dcclctl.devices.bundle.executorch", raising=False)
    store, reference = stores["din"]
    result = dcclctl("export", reference, "--target=executorch", "--items=top:9", store=store)
    assert result.exit_code == 2 and "pip install 'dcclctl[executorch]'" in result.stderr
