"""Make the files of a bundle from a cloud model or from patches on it.

Shapes: U users, I items, J shipped items, K numbers in θ̂, R features in the profile of recent events, W its window.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from dcclctl.artifacts import CloudModel, PatchSet
from dcclctl.artifacts.bundle import BUNDLE_FILE
from dcclctl.config import ExportConfig
from dcclctl.devices.basis import SharedBasis
from dcclctl.devices.basis_files import read_basis, read_prior_mean
from dcclctl.devices.bundle import learn
from dcclctl.devices.bundle.device import Graphs, user_bytes
from dcclctl.devices.bundle.golden import GOLDEN_FILE, golden_vectors
from dcclctl.devices.bundle.graph import Array, Graph, Precision
from dcclctl.devices.bundle.score import Basis, DeviceMemory, DinGraph, Inputs, MemoryGraph, SasrecGraph, array
from dcclctl.devices.bundle.serving import ReplayedDevices
from dcclctl.devices.bundle.spec import SCHEMA_FILE, SPEC, BundleSpec, schema
from dcclctl.devices.bundle.table import BASIS_FILE, ITEMS_FILE, Table, TableValues
from dcclctl.devices.learner import NEGATIVES
from dcclctl.devices.memory.features import STEPS
from dcclctl.devices.memory.method import patch_of, tables_of
from dcclctl.devices.memory.patch import prior_shift
from dcclctl.devices.method import method_of
from dcclctl.devices.settings import LocalSettings
from dcclctl.errors import UsageError
from dcclctl.events.log import CLOUD, DEVICE, Block, EventLog
from dcclctl.events.sampling import Ints, stream
from dcclctl.logs.id_file import ids_in
from dcclctl.models.din import Din
from dcclctl.models.kind import open_backbone
from dcclctl.models.sequence import Sasrec

RUNNER = Path(__file__).with_name("device.py")
WEB = Path(__file__).with_name("web")
#: events that a ring holds without a memory, for a model that reads baskets: several a basket
_EVENTS_OF_BASKET = 4


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of.

    Attributes:
        cloud: the model. patches: None for the cloud model alone. shipped: (J,) item numbers, ascending.
        number: (I,) each item's number in the bundle; −1 where it is not shipped.
    """

    cloud: CloudModel
    patches: PatchSet | None
    shipped: Ints
    number: Ints

    @classmethod
    def of(cls, cloud: CloudModel, patches: PatchSet | None, items: str) -> "Parts":
        """Args: items: as `--items` has it.

        Raises:
            UsageError: no such items.
        """
        shipped = chosen_items(cloud, items)
        number = np.full(cloud.dataset.no_events.n_items, -1, dtype=np.int64)
        number[shipped] = np.arange(len(shipped))
        return cls(cloud, patches, shipped, number)

    def logs(self) -> Iterator[EventLog]:
        """The events of one part of the users after the other."""
        return map(self.cloud.dataset.log_part, self.cloud.dataset.parts)

    @cached_property
    def users(self) -> dict[str, Array]:
        """What the cloud sends to each device alone: (U, …) profile codes, θ̂, and whether it is patched and counted."""
        patches, profile = self.patches, self.cloud.dataset.no_events.profile
        codes, patched = (
            (torch.zeros(len(profile), 0), torch.zeros(len(profile), dtype=torch.bool))
            if patches is None
            else patches.codes()
        )
        counted = np.zeros(len(profile), dtype=bool)
        if patches is not None and patches.memory is not None:
            last = Block.parse(patches.memory.counted_through)
            for log in self.logs():
                counted[log.user[log.up_to(last) & (log.label > 0)]] = True
        return {"profile": array(profile), "theta": array(codes), "patched": array(patched), "counted": counted}

    @cached_property
    def basis(self) -> SharedBasis[Any] | None:
        """Θ of patches with θ̂."""
        if self.patches is None or not self.patches.facts["patch_size"]:
            return None
        return read_basis(self.patches.artifact)


def build(parts: Parts, config: ExportConfig) -> dict[str, bytes]:
    """The files that every device gets: name → content.

    Raises:
        UsageError: a model or a method that has no graph, or ExecuTorch is not installed.
        DataError: ExecuTorch gives other numbers than ONNX Runtime.
    """
    if config.target == "executorch":
        from dcclctl.devices.bundle.executorch import PROGRAM_FILE, program
    cloud, patches, shipped = parts.cloud, parts.patches, parts.shipped
    model = _module(cloud)
    if patches is not None and patches.memory is None and patches.method != "metapatch":
        raise UsageError(
            f"{patches.ref}: patches by {patches.method} have no graph",
            "Export patches made with --method memory or --method metapatch.",
        )
    columns = {"embedding": array(model.catalogue()[shipped])}
    if isinstance(model, Sasrec):
        columns["bias"] = array(model.item_bias[shipped])
    memory = None if patches is None or patches.memory is None else _memory(parts)
    if memory is not None:
        columns |= _memory_columns(parts, memory, config.neighbours)
    table = Table.of(columns, config.precision, falling=("similarity", "transition_score"))
    basis = None if parts.basis is None else Basis.table(parts.basis, config.precision)
    files = {SCHEMA_FILE: schema(), ITEMS_FILE: table.bytes()}
    graphs = {"score.onnx": _score_graph(parts, model, table, basis, memory, config.precision)}
    if basis is not None:
        files[BASIS_FILE] = basis.bytes()
        graphs["learn.onnx"] = _learn_graph(parts, model, table, basis, config.precision)
    files |= {name: graph.bytes() for name, graph in graphs.items()}
    items = cloud.dataset.items
    catalogue = {"items": items["item_id"].gather(shipped).to_list(), "names": items["name"].gather(shipped).to_list()}
    if parts.basis is not None and patches is not None:
        drawn = parts.number[next(parts.logs()).catalogue(Block.parse(patches.config["on"]))]
        catalogue["drawn"] = drawn[drawn >= 0].tolist()
    files["catalogue.json"] = _json(catalogue)
    files["runner/python/device.py"] = RUNNER.read_bytes()
    files |= {f"runner/web/{page.name}": page.read_bytes() for page in sorted(WEB.iterdir()) if page.is_file()}
    spec = _specification(parts, model, memory, config, table, files)
    spec["graphs"] = {name: {"tables": graph.files, **graph.signature()} for name, graph in graphs.items()}
    with TemporaryDirectory() as folder:
        write_folder(Path(folder), files | {BUNDLE_FILE: bundle_json(spec, files)})
        graphs_of_files = Graphs(folder)
        golden = golden_vectors(
            ReplayedDevices(graphs_of_files, log, parts.number, parts.users) for log in parts.logs()
        )
        files[GOLDEN_FILE] = save(golden)
        if config.target == "executorch":
            files[PROGRAM_FILE], spec["program"] = program(Path(folder), spec, golden)
    files[BUNDLE_FILE] = bundle_json(spec, files)
    return files


def bundle_json(spec: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The content of bundle.json: what is known of the bundle, and size and hash of its files."""
    return _json(BundleSpec(**spec, files=_listed(files)).model_dump(exclude_unset=True))


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, whose names may hold folders, into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _identity(files: Mapping[str, bytes]) -> str:
    """A hash of all that gives a state on a device its meaning: graphs, tables and ids of the items."""
    named = (name for name in sorted(files) if name.endswith((".onnx", ".safetensors")) or name == "catalogue.json")
    return hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in named)).hexdigest()


def _listed(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Size and hash of every file."""
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }


def chosen_items(cloud: CloudModel, items: str) -> Ints:
    """(J,) numbers of the items that `--items` means, ascending.

    Raises:
        UsageError: no such items, or an unreadable file.
    """
    dataset = cloud.dataset
    n_items = dataset.no_events.n_items
    if items == "all":
        return np.arange(n_items)
    if items.startswith("top:") and items[4:].isdecimal() and int(items[4:]):
        counts = np.zeros(n_items, dtype=np.int64)
        for log in map(dataset.log_part, dataset.parts):
            counts += np.bincount(log.item[log.events_in(CLOUD, DEVICE)], minlength=n_items)
        return np.sort(np.argsort(-counts, kind="stable")[: int(items[4:])])
    if not items.startswith("@"):
        raise UsageError(f"--items {items}: not understood", "Use all, top:5000, or @FILE with one id a line.")
    wanted = ids_in("items", items, "item")
    ids = {item: at for at, item in enumerate(dataset.items["item_id"])}
    missing = [item for item in wanted if item not in ids]
    if missing or not wanted:
        raise UsageError(
            f"--items {items}: {dataset.ref} has no item {', '.join(missing[:5])}"
            if wanted
            else f"--items {items} is empty",
            "Give ids of the dataset's items, one a line.",
        )
    return np.array(sorted({ids[item] for item in wanted}))


def _module(cloud: CloudModel) -> Din | Sasrec:
    backbone = open_backbone(cloud, torch.device("cpu"), cloud.dataset.no_events)
    model = getattr(backbone, "model", None)
    if not isinstance(model, Din | Sasrec):
        raise UsageError(
            f"{cloud.ref} is a {cloud.model} model, which has no graph for devices",
            "Export a model made with dcclctl train --model din or --model sasrec.",
        )
    return model.eval()


def _memory(parts: Parts) -> DeviceMemory:
    assert parts.patches is not None and parts.patches.memory is not None
    patches, memory = parts.patches, parts.patches.memory
    tables, profiles = tables_of(memory)
    typical = array(profiles) if memory.profile_window else np.zeros((1, 0), dtype=np.float32)
    return DeviceMemory(
        patch_of(patches),
        tables.statistics,
        typical,
        memory.size,
        int(patches.facts["smallest_memory"]),
        prior_shift(patches.cloud.negatives, int(patches.config["negatives"])),
    )


def _memory_columns(parts: Parts, memory: DeviceMemory, neighbours: int) -> dict[str, Array]:
    """The item table's columns that memory features read; a related item that is not shipped is number J, with score 0.

    Args:
        neighbours: related items of each kind, at most; 0: all.
    """
    statistics, shipped = memory.statistics, parts.shipped
    columns = {
        "categories": array(parts.cloud.dataset.item_categories[shipped]),
        "share": array(statistics.item_share[shipped]),
        # in units of the scale: the raw numbers are of very different sizes, which one factor for a row would blur
        "mean": array(statistics.mean[shipped] / statistics.scale),
    }
    if statistics.factors.shape[1]:
        columns["factors"] = array(statistics.factors[shipped])
    pairs = {"similarity": ("neighbours", statistics.neighbours, statistics.similarity)}
    if statistics.predecessors.shape[1]:
        pairs["transition_score"] = ("predecessors", statistics.predecessors, statistics.transition_score)
    for name, (others, related, score) in pairs.items():
        most = neighbours or related.shape[1]
        numbers, scores = parts.number[array(related[shipped][:, :most])], array(score[shipped][:, :most])
        there = (numbers >= 0) & (scores > 0)
        columns[others] = np.where(there, numbers, len(shipped))
        columns[name] = np.where(there, scores, 0).astype(np.float32)
    return columns


def _score_graph(
    parts: Parts,
    model: Din | Sasrec,
    table: Table,
    basis: Table | None,
    memory: DeviceMemory | None,
    precision: Precision,
) -> Graph:
    graph = Graph("score", precision)
    inputs = Inputs(graph)
    items = TableValues(graph, table)
    below = DinGraph(inputs, items, model) if isinstance(model, Din) else SasrecGraph(inputs, items, model)
    logits = below.logits(_basis(graph, parts, basis))
    if memory is not None:
        remembered = MemoryGraph(inputs, items, memory)
        logits = remembered.logits(logits)
        graph.output("features", remembered.features, np.float32, "C", len(memory.statistics.features))
    if parts.basis is not None:
        shape = ("C", model.hidden_2.in_features) if isinstance(model, Din) else (model.embedding_size,)
        graph.output("activations", below.activations, np.float32, *shape)
    graph.output("logits", logits, np.float32, "C")
    return graph


def _basis(graph: Graph, parts: Parts, table: Table | None) -> Basis | None:
    return None if table is None or parts.basis is None else Basis(graph, table, parts.basis.shape.parts)


def _learn_graph(parts: Parts, model: Din | Sasrec, table: Table, basis: Table, precision: Precision) -> Graph:
    graph = Graph("learn", precision)
    inside = _basis(graph, parts, basis)
    assert parts.patches is not None and inside is not None
    settings, mean = local_settings(parts.patches), array(read_prior_mean(parts.patches.artifact))
    if isinstance(model, Din):
        return learn.din_step(model, inside, mean, settings)
    return learn.state_step(TableValues(graph, table, ("embedding", "bias")), inside, mean, settings)


def local_settings(patches: PatchSet) -> LocalSettings:
    """The settings that patches with θ̂ were learned with."""
    known = method_of(patches.method).Settings(**patches.settings)
    assert isinstance(known, LocalSettings)
    return known


def _specification(
    parts: Parts,
    model: Din | Sasrec,
    memory: DeviceMemory | None,
    config: ExportConfig,
    table: Table,
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """bundle.json: what a runner must know."""
    cloud, patches, log = parts.cloud, parts.patches, parts.cloud.dataset.no_events
    baskets = isinstance(model, Sasrec)
    window = model.sizes.history * (_EVENTS_OF_BASKET if baskets else 1)
    basis = parts.basis
    sizes = {
        # events of one time are no history of one another: beside them there is room for a whole history
        "ring": max(window, 0 if memory is None else memory.size) + max(map(_largest_basket, parts.logs())),
        "history": model.sizes.history,
        "profile": 0 if baskets else log.profile.shape[1],
        "theta": 0 if basis is None else basis.size,
        # events from which on a memory patch serves its user
        "smallest": 0 if memory is None else memory.smallest,
        "kept": 0 if memory is None else memory.typical.shape[0] - 1,
        "kept_features": 0 if memory is None else memory.typical.shape[1],
    }
    return {
        "spec": SPEC,
        "id": _identity(files),
        "model": cloud.model,
        "method": "" if patches is None else patches.method,
        "parents": {
            "cloud": cloud.id,
            "dataset": cloud.dataset.id,
            **({} if patches is None else {"patches": patches.id}),
        },
        "precision": config.precision,
        "repeats": log.repeats,
        "items": {"shipped": len(parts.shipped), "of": log.n_items},
        "sizes": sizes,
        "short_rings": sum(users_with_short_rings(own, sizes["ring"], model.sizes.history) for own in parts.logs())
        if baskets
        else 0,
        "constants": {"steps": STEPS},
        "learning": None if patches is None or basis is None else _learning(patches, baskets),
        "bytes": {
            "shared": sum(len(data) for name, data in files.items() if name.endswith(".onnx") or name == BASIS_FILE),
            "item": table.bytes_per_row,
            "items": len(files[ITEMS_FILE]),
            "user": user_bytes(sizes, len(parts.shipped), sizes["ring"]),
        },
        "fallback": "Items that are not shipped are never shown; events with them are counted and otherwise forgotten.",
    }


def _learning(patches: PatchSet, states: bool) -> dict[str, Any]:
    """What a device needs to know to learn θ̂, see spec.Learning."""
    mean = read_prior_mean(patches.artifact)
    return {
        "states": states,
        "steps": local_settings(patches).steps,
        "negatives": int(patches.config["negatives"]),
        # of the draws of negatives, see events/sampling.py
        "stream": stream(patches.artifact.seed, NEGATIVES),
        "stream_left": stream(patches.artifact.seed, f"{NEGATIVES}/left"),
        "start": array(mean).tolist(),
        # θ̂ that came back with noise says little of the usual distance: it stays that of the first round
        "clip": patches.facts.get("clip") or usual_distance(patches, mean),
    }


def users_with_short_rings(log: EventLog, ring: int, history: int) -> int:
    """Users whose newest baskets do not all fit into a ring, so that a device knows less than the cloud model reads.

    Args:
        ring: events in it. history: L, baskets that the model reads.
    """
    rows = np.flatnonzero(log.label > 0)
    user, basket = log.user[rows], log.history_end[rows]
    begins, ends = (np.searchsorted(user, np.arange(log.n_users), side) for side in ("left", "right"))
    full = ends - begins > ring
    first = ends[full] - ring
    number = np.cumsum(np.diff(basket, prepend=-1) != 0)
    whole = number[ends[full] - 1] - number[first] + (number[first] != number[first - 1])
    return int((whole < history).sum())


def _largest_basket(log: EventLog) -> int:
    """Most positive events of one user at one time."""
    return int(np.bincount(log.history_end[log.label > 0]).max(initial=0))


def usual_distance(patches: PatchSet, mean: torch.Tensor) -> float:
    """The median distance of users' θ̂ to the mean μ; 0 if there is no θ̂."""
    codes, patched = patches.codes()
    return float((codes[patched].double() - mean).norm(dim=1).median()) if patched.any() else 0.0


def _json(document: Any) -> bytes:
    return (
        json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
    ).encode()
