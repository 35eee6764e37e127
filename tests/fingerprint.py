"""Print the SHA-256 of every tensor that a run of all stages on the tests' small log makes.

A change that should not change any result prints the same lines before and after::

    OMP_NUM_THREADS=1 python tests/fingerprint.py > before.txt
    OMP_NUM_THREADS=1 python tests/fingerprint.py | diff before.txt -
"""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from world import DISTILL, EVALUATE, PATCH, TRAIN, done, ingest

#: other models than DIN, and whether they have epochs
OTHERS = {"popularity": False, "gp-topfreq": False, "item-knn": False, "ease": False}
OTHERS |= dict.fromkeys(("bpr", "fm", "neumf", "sasrec", "gru4rec"), True)


def stages(folder: Path) -> None:
    """Every kind of model, device method and distillation once."""
    store = folder / "store"

    def run(*words: str) -> str:
        return str(done(*words, store=store)["ref"])

    ingest(folder / "log", store)
    frozen = run("train", *TRAIN)
    fresh = run("train", "--continue", frozen, "--on", "device", "--epochs", "2", "--threads", "1")
    metapatch = run("patch", "--cloud", frozen, *PATCH)
    remembering = run("patch", "--cloud", fresh, "--threads", "1")
    fine_tuned = run("patch", "--cloud", frozen, "--method", "fine-tune", "--threads", "1")
    taught = run("distill", "--patches", metapatch, *DISTILL)
    run("distill", "--patches", remembering, "--epochs", "1", "--threads", "1")
    again = run("patch", "--cloud", taught, *PATCH)
    others = []
    for name, has_epochs in OTHERS.items():
        others.append(run("train", "--model", name, *(("--epochs", "2") if has_epochs else ()), "--threads", "1"))
    sasrec = next(ref for ref, name in zip(others, OTHERS, strict=True) if name == "sasrec")
    on_states = run("patch", "--cloud", sasrec, *PATCH)
    models = [
        frozen,
        fresh,
        metapatch,
        f"{metapatch}+mean",
        f"{metapatch}+shuffled",
        remembering,
        f"{remembering}+shuffled",
    ]
    models += [fine_tuned, taught, f"{taught}+encoder", again, *others, on_states]
    run("evaluate", *models, "--against", fresh, *EVALUATE)
    run("evaluate", *models, "--candidates", "20", *EVALUATE)


def fingerprints(store: Path) -> list[str]:
    """'artifact file tensor sha256' of every tensor, and of every metric table."""
    import polars as pl

    from dcclctl.store.store import Store

    lines = []
    for artifact in Store(store).artifacts():
        for name in sorted(artifact.manifest["files"]):
            if name.endswith(".safetensors"):
                for key, tensor in sorted(artifact.read_tensors(name).items()):
                    lines.append(f"{artifact.ref} {name} {key} {_sha(tensor.numpy().tobytes(), tensor.shape)}")
            elif name == "per_user.parquet":
                table: Any = artifact.read_table(name)
                for column in table.select(pl.selectors.float().round(6)).fill_null(-1.0).iter_columns():
                    values = column.to_numpy()
                    lines.append(f"{artifact.ref} {name} {column.name} {_sha(values.tobytes(), values.shape)}")
    return lines


def _sha(data: bytes, shape: Any) -> str:
    return hashlib.sha256(repr(tuple(shape)).encode() + data).hexdigest()[:16]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        stages(Path(folder))
        sys.stdout.write("\n".join(fingerprints(Path(folder) / "store")) + "\n")
