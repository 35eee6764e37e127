"""`export`: patches or a cloud model → a bundle, the files that a device needs to rank, remember and learn."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcclctl.artifacts import Bundle, CloudModel, PatchSet
from dcclctl.artifacts.bundle import BUNDLE_FILE, USERS_FILE
from dcclctl.config import ExportConfig
from dcclctl.devices.bundle.build import Parts, build, write_folder
from dcclctl.devices.bundle.device import Graphs
from dcclctl.devices.bundle.measure import measure
from dcclctl.devices.bundle.spec import Aged, Measured
from dcclctl.devices.bundle.web_server import page_files, server, web_runtime
from dcclctl.devices.serving import Subject
from dcclctl.errors import DataError, GateError, UsageError
from dcclctl.evaluation.staleness import BLOCKS, gains
from dcclctl.events.log import TEST, Block
from dcclctl.stages.chosen import find_users
from dcclctl.stages.evaluate import evaluate
from dcclctl.stages.run import DEFAULT_RUN, NO_SETTINGS, RunOptions, Settings, named
from dcclctl.stages.settings import resolve
from dcclctl.store.disk import whole_file
from dcclctl.store.store import Input

#: of every entry of a zip file, so that equal bundles are equal files: the earliest time that the format has
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def export(model: CloudModel | PatchSet, settings: Settings = NO_SETTINGS, run: RunOptions = DEFAULT_RUN) -> Bundle:
    """Export patches, or a cloud model without patches, for devices.

    Args:
        model: what to ship. settings: see ExportConfig. run: how to run.

    Raises:
        UsageError: a model or a method that has no graph, or items that do not exist.
    """
    config = resolve(ExportConfig, settings, run.config)
    patches, cloud = (model, model.cloud) if isinstance(model, PatchSet) else (None, model)
    parts = Parts.of(cloud, patches, config.items)
    inputs = {"dataset": cloud.dataset.artifact.as_input()}
    inputs |= {"cloud": cloud.artifact.as_input()} if patches is None else {"patches": patches.artifact.as_input()}
    if config.items.startswith("@"):
        ids = "\n".join(cloud.dataset.items["item_id"].gather(parts.shipped))
        digest = hashlib.sha256(ids.encode()).hexdigest()
        inputs["items"] = Input("raw", digest)
        config = config.model_copy(update={"items": f"@sha256:{digest}"})
    with cloud.store.begin(
        "export", "bundle", config.recorded(), config.seed, inputs, run.force, len(parts.shipped)
    ) as work:
        if work.reused is not None:
            return named(Bundle(work.reused), run)
        files = build(parts, config)
        for name, data in files.items():
            with work.new_file(name, len(data)) as path:
                path.write_bytes(data)
        users = {name: torch.from_numpy(value) for name, value in parts.users.items()}
        work.write_tensors(USERS_FILE, users | {"number": torch.from_numpy(parts.number)})
        spec = json.loads(files[BUNDLE_FILE])
        facts = {
            "id_map": cloud.dataset.id_map,
            "items": len(parts.shipped),
            "model": cloud.model,
            "method": spec["method"],
            "bytes_shared": spec["bytes"]["shared"],
            "bytes_per_item": spec["bytes"]["item"],
            "bytes_per_user": spec["bytes"]["user"],
        }
        return named(Bundle(work.commit(facts)), run)


def measured(
    bundle: Bundle, max_bytes: int = 0, max_ms: float = 0.0, staleness: bool = True, run: RunOptions = DEFAULT_RUN
) -> Measured:
    """Measure what a bundle costs on this machine, on one thread, and what it is worth when it grows old.

    Args:
        max_bytes: of all that a device downloads; 0: any. max_ms: of ranking 300 candidates, 95th percentile; 0: any.
        staleness: also evaluate the patches on four blocks of the test period; the evaluations are kept in the store.

    Raises:
        GateError: it costs more.
    """
    found = measure(Graphs(bundle.folder()))
    over = []
    if max_bytes and found.download_bytes > max_bytes:
        over.append(f"a device downloads {found.download_bytes:,} bytes, {max_bytes:,} are allowed")
    if max_ms and found.milliseconds["300"].p95 > max_ms:
        over.append(
            f"300 candidates take {found.milliseconds['300'].p95:.2f} ms (95th percentile), {max_ms:g} are allowed"
        )
    if over:
        raise GateError(
            f"{bundle.ref} is over its budget: {'; '.join(over)}",
            "Ship fewer items (--items top:N) or --precision int8, or make a memory with fewer --neighbours.",
        )
    return found.model_copy(update={"staleness": _staleness(bundle, run)}) if staleness else found


def _staleness(bundle: Bundle, run: RunOptions) -> list[Aged]:
    """What the bundle's patches gain when they are some blocks old; [] where there are no patches, or no blocks."""
    if bundle.patches is None:
        return []
    subjects = [Subject.of(each.ref, bundle.cloud.store) for each in (bundle.cloud, bundle.patches)]
    quiet, tables = RunOptions(run.on_progress, config=run.config), {}
    for age, block in BLOCKS.items():
        try:
            tables[age] = evaluate(subjects, {"on": block, "k": [10]}, quiet).per_user
        except DataError:  # no event in this block
            continue
    cloud, patches = (subject.name for subject in subjects)
    if 0 not in tables or len(tables) == 1:
        return []
    return [Aged(**row) for row in gains(tables, patches, cloud, bundle.artifact.seed)]


def write_bundle(bundle: Bundle, target: Path, user_id: str = "", budget: Measured | None = None) -> None:
    """Write a bundle into a folder, or into one .zip file, to hand over.

    Args:
        target: a new or empty folder, or a file that ends in .zip. user_id: also write user.json, what the cloud sends to
            this user's device alone, with the user's events before the test period. budget: is added to bundle.json.

    Raises:
        UsageError: the target exists, or there is no such user.
    """
    check_target(target)
    files = _contents(bundle, user_id)
    if budget is not None:
        files[BUNDLE_FILE] = _json(json.loads(files[BUNDLE_FILE]) | {"measured": budget.model_dump()})
    try:
        if target.suffix == ".zip":
            _write_zip(target, files)
        else:
            write_folder(target, files)
    except OSError as error:
        raise DataError(f"-o {target}: cannot write ({error})", "Choose another place.") from error


def check_target(target: Path) -> None:
    """Refuse to write over something.

    Raises:
        UsageError: a file or a folder that is not empty is there.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"-o {target}: it exists already", "Name a new folder or file, or remove it first.")


def web_page(bundle: Bundle, user_id: str = "", port: int = 0, runtime: Path | None = None) -> ThreadingHTTPServer:
    """A server of the bundle's web page on the loopback address; its caller runs it.

    Args:
        user_id: start with this user's events; '' starts without any. port: 0 takes any that is free.
        runtime: the npm package onnxruntime-web; None: from the cache, or fetched by npm.

    Raises:
        UsageError: no such user, a port that is taken, or no runtime.
    """
    return server(page_files(_contents(bundle, user_id), web_runtime(runtime)), port)


def user_document(bundle: Bundle, user_id: str) -> dict[str, Any]:
    """What one user's device alone is sent: profile, θ̂, flags, and [item, time] of the events before the test period.

    Raises:
        UsageError: no such user.
    """
    dataset = bundle.cloud.dataset
    user = int(find_users(dataset.users, dataset.ref, [user_id])["user_index"][0])
    log, times = dataset.log_part(range(user, user + 1)), dataset.times(range(user, user + 1)).astype(np.float64)
    if dataset.facts["time_kind"] != "ordinal":
        times /= 1e6
    own = {name: value[user] for name, value in bundle.users().items() if name != "number"}
    rows = log.events_of(user)
    rows = rows[(log.period[rows] < TEST) & (log.label[rows] > 0)]
    ids = dataset.items["item_id"].gather(log.item[rows]).to_list()
    document: dict[str, Any] = {
        "bundle": bundle.spec["id"],
        "token": token_of(bundle, user),
        "profile": own["profile"].tolist()[: bundle.spec["sizes"]["profile"]],
        "theta": own["theta"].tolist(),
        "patched": bool(own["patched"]),
        "counted": bool(own["counted"]),
        "events": [[item, float(time)] for item, time in zip(ids, times[rows], strict=True)],
    }
    if bundle.patches is not None and bundle.spec["learning"]:
        block = log.events_in(Block.parse(bundle.patches.config["on"]))
        if len(block):
            since, until = times[block[0]], np.nextafter(times[block[-1]], np.inf)
            row = int(log.places(log.events_of(user))[0])
            document["learn"] = {"since": float(since), "until": float(until), "row": row}
    return document


def token_of(bundle: Bundle, user: int) -> str:
    """The name of a user's device in one round; it says nothing of the user, and is another one in every bundle."""
    return hashlib.sha256(f"{bundle.id}/{bundle.artifact.file_id(USERS_FILE)}/{user}".encode()).hexdigest()


def _contents(bundle: Bundle, user_id: str) -> dict[str, bytes]:
    """The bundle's files, and user.json where a user is named."""
    files = {name: path.read_bytes() for name, path in bundle.files().items()}
    if user_id:
        files["user.json"] = _json(user_document(bundle, user_id))
    return files


def _write_zip(target: Path, files: Mapping[str, bytes]) -> None:
    with whole_file(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data, zipfile.ZIP_DEFLATED)


def _json(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
