"""Nothing in the package runs what it reads, and what it writes has the permissions that the user asked for."""

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dcclctl.store.store import Store

PACKAGE = Path(__file__).resolve().parents[2] / "dcclctl"
#: modules that make objects of a file's content by running it
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
NAMES = {"eval", "exec", "compile", "__import__"}
#: functions of modules, as they are called
CALLS = {
    *(f"torch.{name}" for name in ("load", "jit.load", "package.PackageImporter")),
    *(f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "full_load")),
    *(f"{module}.{name}" for module in ("pd", "pandas") for name in ("read_pickle", "eval")),
    *("os.system", "os.popen", "np.load", "numpy.load"),
}


def forbidden(source: str) -> Iterator[str]:
    """What must not be in a file of the package, as 'line: what'."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module] if module.partition(".")[0] in MODULES else []
            names += [f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in CALLS]
        elif isinstance(node, ast.Name) and node.id in NAMES:
            names = [node.id]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in CALLS:
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            flag = (node.arg, node.value.value)
            names = [f"{node.arg}=True"] if flag in (("shell", True), ("allow_pickle", True)) else []
        for name in names:
            yield f"{getattr(node, 'lineno', 0)}: {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_runs_what_it_reads(path: Path) -> None:
    assert list(forbidden(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "load = torch.load",
        "eval('1')",
        "exec(text)",
        "call = eval",
        "yaml.load(text)",
        "from yaml import unsafe_load",
        "np.load('x', allow_pickle=False)",
        "read('x', allow_pickle=True)",
        "run('ls', shell=True)",
    ],
)
def test_the_search_finds_it(source: str) -> None:
    assert len(list(forbidden(source))) >= 1


def test_what_only_sounds_like_it_is_allowed() -> None:
    assert list(forbidden("model.eval()\nre.compile('x')\nyaml.safe_load(x)\njson.load(f)\nload(data)")) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022])
def test_the_umask_holds_for_every_file_and_folder(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        store = Store(tmp_path / "store")
        with store.begin("train", "cloud", {}, 0, {}) as work:
            work.write_json("model.json", {"x": 1})
            work.write_tensors("model.safetensors", {"weight": torch.ones(2)})
            work.record({"epoch": 0})
            made = work.commit({})
        store.tag(made, "release")
        store.resolve("cloud@release")
    finally:
        os.umask(before)
    wrong = {
        str(path.relative_to(tmp_path)): oct(mode)
        for path in (tmp_path / "store").rglob("*")
        if (mode := stat.S_IMODE(path.stat().st_mode)) & mask
    }
    assert wrong == {}
    # and no less than the umask allows: a group that shares a store reads weights too
    assert stat.S_IMODE((made.path / "model.safetensors").stat().st_mode) == 0o444 & ~mask
