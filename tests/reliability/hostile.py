"""Artifacts and bytes as a hostile hand or a failing disk makes them."""

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tampered import rewrite

from dcclctl.store.artifact import OWN_FILES, Artifact
from dcclctl.store.store import Store
from reliability.bench import End
from reliability.campaign import Campaign, Findings
from reliability.plants import planted
from reliability.scenes import look

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

#: kind → the commands that read it; REF stands for the artifact
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dataset": (("train", "--dataset=REF", "--model=popularity"), ("memory", "--dataset=REF")),
    "cloud": (
        ("evaluate", "REF", "--threads=1"),
        ("score", "REF", "--user=u3"),
        ("patch", "--cloud=REF", "--method=memory", "--set=patch.memory.epochs=1", "--threads=1"),
    ),
    "memory": (("patch", "--method=memory", "--cloud=cloud@1", "--memory=REF", "--threads=1"),),
    "patches": (
        ("evaluate", "REF", "--threads=1"),
        ("score", "REF", "--user=u3"),
        ("distill", "--patches=REF", "--epochs=1", "--threads=1"),
    ),
    "evaluation": (("report", "REF", "--output=report.html"), ("artifacts", "show", "REF"), ("audit", "REF")),
    "recommendations": (("artifacts", "show", "REF"),),
    "bundle": (("evaluate", "REF", "--threads=1"), ("score", "REF", "--user=u3")),
}
#: values that stand where others belong
ODD: tuple[Any, ...] = (None, -1, 10**9, "x", [], {}, 1.5, True)


def changed_tensors(artifact: Artifact, name: str) -> "Iterator[tuple[str, dict[str, Tensor]]]":
    """Other tensors for a file, one change at a time."""
    import torch

    own = artifact.read_tensors(name)
    for key, tensor in own.items():
        changes: dict[str, Tensor | None] = {
            "missing": None,
            "one row more": torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor.reshape(1, 1),
            "empty": tensor.new_zeros((0, *tensor.shape[1:])),
            "one dimension more": tensor.unsqueeze(0),
            "halves": tensor.to(torch.float16),
            "whole numbers": tensor.to(torch.int64),
            "huge": torch.full_like(tensor, 120) if tensor.dtype == torch.uint8 else tensor.to(torch.float32) * 1e30,
            "negative": -tensor.to(torch.int64) - 1 if not tensor.is_floating_point() else -tensor,
        }
        if tensor.is_floating_point():
            changes |= {"NaN": torch.full_like(tensor, torch.nan), "infinite": torch.full_like(tensor, torch.inf)}
        for what, new in changes.items():
            others = {each: value for each, value in own.items() if each != key}
            yield f"{key} {what}", others if new is None else others | {key: new}


def changed_tables(artifact: Artifact, name: str) -> "Iterator[tuple[str, pl.DataFrame]]":
    """Other tables for a file, one change at a time."""
    import polars as pl

    own = artifact.read_table(name)
    yield "no rows", own.clear()
    yield "every row twice", pl.concat([own, own])
    for column in own.columns:
        values = own[column]
        yield f"{column} missing", own.drop(column)
        yield f"{column} null", own.with_columns(pl.lit(None, values.dtype).alias(column))
        yield f"{column} text", own.with_columns(pl.lit("x").alias(column))
        yield f"{column} nested", own.with_columns(pl.lit([[1]]).alias(column))
        if values.dtype.is_integer():
            yield (
                f"{column} negative",
                own.with_columns((-pl.col(column).cast(pl.Int64) - 1).cast(values.dtype, strict=False)),
            )
            yield f"{column} huge", own.with_columns(pl.lit(2**31 - 1).cast(values.dtype, strict=False).alias(column))
        if values.dtype.is_float():
            yield f"{column} NaN", own.with_columns(pl.lit(float("nan"), values.dtype).alias(column))


def changed_documents(artifact: Artifact) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other settings and facts, one change at a time."""
    for field, own in (("facts", artifact.facts), ("config", artifact.config)):
        for at, key in enumerate(own):
            yield f"{field} {key} = {ODD[at % len(ODD)]!r}", {field: {key: ODD[at % len(ODD)]}}
            yield f"{field} {key} = {ODD[(at + 3) % len(ODD)]!r}", {field: {key: ODD[(at + 3) % len(ODD)]}}


def variants(artifact: Artifact) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is wrong, arguments of `rewrite`) of everything that can be wrong with an artifact under right hashes."""
    for name in artifact.manifest["files"]:
        yield f"without {name}", {"without": name}
        if name.endswith(".safetensors") and b"__metadata__" in artifact.read(name)[:4096]:
            for what, tensors in changed_tensors(artifact, name):
                yield f"{name}: {what}", {"tensors": {name: tensors}}
        elif name.endswith(".parquet"):
            for what, table in changed_tables(artifact, name):
                yield f"{name}: {what}", {"tables": {name: table}}
    yield from changed_documents(artifact)


def raw_files(artifact: Artifact) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(what is wrong, what makes it so) of files that no parser takes: header bombs, links, FIFOs; hashes are wrong too."""
    bomb = struct.pack("<Q", 2**40) + b"{}"
    wide = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}).encode()
    contents = {
        "a header of a terabyte": bomb,
        "a shape of 2^60 numbers": struct.pack("<Q", len(wide)) + wide + b"\0\0\0\0",
        "a deep document": b"[" * 200_000,
        "nothing": b"",
        "noise": random.Random(1).randbytes(4096),
        "zeros": bytes(4096),
        "the head and the foot of a Parquet file": b"PAR1" + b"\xff" * 64 + b"PAR1",
    }
    for name in artifact.manifest["files"]:
        for what, data in contents.items():
            yield f"{name}: {what}", lambda path, name=name, data=data: (path / name).write_bytes(data)  # type: ignore[misc]
        yield f"{name}: a link to a device", lambda path, name=name: (path / name).symlink_to("/dev/zero")  # type: ignore[misc]
        own = artifact.path / name
        yield f"{name}: a link to the same bytes", lambda path, name=name, own=own: (path / name).symlink_to(own)  # type: ignore[misc]
        yield f"{name}: a FIFO", lambda path, name=name: os.mkfifo(path / name)  # type: ignore[misc]


def complaint(end: End, reference: str, must_fail: bool) -> str:
    """What is wrong with how a command took a hostile artifact; '' if nothing is."""
    if end.problem:
        return end.problem
    if end.code not in (0, 2, 3, 4):
        return f"exit {end.code}: {end.err.strip()[-300:]}"
    if end.code == 3 and reference not in end.err:
        return f"the error does not name {reference}: {end.err.strip()[-300:]}"
    if must_fail and end.code == 0:
        return "is taken without a word"
    return ""


def artifacts(campaign: Campaign, count: int) -> Findings:
    """Hostile artifacts: two of three under right hashes, one with files that nobody may open; every command that reads one."""
    found = Findings()
    wrong = count // 3
    half = replace(campaign, until=min(campaign.until, time.monotonic() + (campaign.until - time.monotonic()) / 3))
    found.add(with_wrong_hashes(half, wrong))
    found.add(with_right_hashes(campaign, count - wrong))
    return found


def last_store(campaign: Campaign) -> Path:
    """The store of the campaign with the most kinds of artifact in it, before the first command that deletes."""
    return max((scene.before for scene in campaign.scenes.values()), key=lambda store: len(list(store.glob("*/v/*"))))


def with_right_hashes(campaign: Campaign, count: int) -> Findings:
    """Read artifacts that have other content than dcclctl writes, under right hashes; drawn evenly over the kinds."""
    found, draw, store = Findings(), campaign.draw, last_store(campaign)
    kinds = [kind for kind in READERS if list(store.glob(f"{kind}/v/*"))]
    for at, kind in campaign.in_time(enumerate(kinds)):
        case = campaign.bench.folder / "hostile" / "store"
        shutil.rmtree(case.parent, ignore_errors=True)
        shutil.copytree(store, case)
        home = Store(case, leases=False)
        artifact = home.load(kind, home.numbers(kind)[0])
        all_of_them = list(variants(artifact))
        share = count * (at + 1) // len(kinds) - count * at // len(kinds)
        for seed, (what, changes) in enumerate(draw.sample(all_of_them, min(share, len(all_of_them))), 1000):
            if campaign.late:
                break
            bad = rewrite(home, artifact, seed, **changes)
            for words in READERS[kind]:
                end = campaign.bench.run(case, [word.replace("REF", bad.ref) for word in words], **campaign.job)
                if problem := complaint(end, bad.ref, must_fail=False):
                    found.wrong(f"{kind}, {what}; {words[0]}: {problem}")
                found.count(f"commands, exit {end.code}")
            found.count("hostile artifacts")
            found.count(f"of the kind {kind}")
            shutil.rmtree(bad.path)
    return found


def with_wrong_hashes(campaign: Campaign, count: int) -> Findings:
    """Put files in the place of others that no parser should see: header bombs, links, FIFOs. Each is found, nothing hangs."""
    found, draw, store = Findings(), campaign.draw, last_store(campaign)
    home = Store(store, leases=False)
    all_cases = [
        (artifact, what, put)
        for kind in READERS
        for artifact in home.artifacts(kind)[:1]
        for what, put in raw_files(artifact)
    ]
    for artifact, what, put in campaign.in_time(draw.sample(all_cases, min(count, len(all_cases)))):
        case = campaign.bench.folder / "hostile" / "store"
        shutil.rmtree(case.parent, ignore_errors=True)
        shutil.copytree(store, case)
        path = case / artifact.path.relative_to(store)
        (path / what.partition(":")[0]).unlink()
        put(path)
        words = draw.choice(READERS[artifact.kind])
        for command, must_fail in (
            (("artifacts", "verify", artifact.ref), True),
            (tuple(word.replace("REF", artifact.ref) for word in words), False),
        ):
            end = campaign.bench.run(case, command, **campaign.job)
            if problem := complaint(end, artifact.ref, must_fail):
                found.wrong(f"{artifact.ref}, {what}; {' '.join(command[:2])}: {problem}")
            found.count(f"commands, exit {end.code}")
        found.count("hostile artifacts")
        found.count(f"of the kind {artifact.kind}")
    return found


def corrupt(data: bytes, draw: random.Random) -> tuple[str, bytes | None]:
    """One corruption: (what it is, the new bytes; None if the file is gone)."""
    kind = draw.choice(("flipped bit", "cut", "gone", "zeros", "longer", "swapped") if data else ("gone", "longer"))
    at = draw.randrange(max(1, len(data)))
    if kind == "flipped bit":
        return kind, data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if kind == "cut":
        return kind, data[:at]
    if kind == "zeros":
        end = min(len(data), at + draw.randrange(1, 4097))
        return kind, data[:at] + bytes(end - at) + data[end:]
    if kind == "longer":
        return kind, data + draw.randbytes(draw.randrange(1, 9))
    if kind == "swapped":
        return kind, data[at:] + data[:at]
    return kind, None


def corruptions(campaign: Campaign, count: int) -> Findings:
    """Corrupt files of a store one at a time: `verify` and reading must both find it, and the store must stay readable."""
    found, draw, store = Findings(), campaign.draw, last_store(campaign)
    folder = campaign.bench.folder / "corrupt"
    shutil.rmtree(folder, ignore_errors=True)
    case = shutil.copytree(store, folder / "store")
    home = Store(case, leases=False)
    own = ("manifest.json", "manifest.sha256")
    files = [(artifact, name) for artifact in home.artifacts() for name in (*artifact.manifest["files"], *own)]
    with planted(campaign.plant):
        while found.phases.get("corruptions", 0) < count and not campaign.late:
            artifact, name = draw.choice(files)
            path = artifact.path / name
            whole = path.read_bytes()
            what, data = corrupt(whole, draw)
            if data == whole:
                continue
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            if not home.verify(artifact.kind, artifact.number):
                found.wrong(f"{artifact.ref}/{name}: {what} is not found by verify")
            if reads(home, artifact, name):
                found.wrong(f"{artifact.ref}/{name}: {what} is read")
            if artifact.ref not in look(case).damaged:
                found.wrong(f"{artifact.ref}/{name}: {what} is no damage; the campaign itself is wrong")
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
            found.count("corruptions")
            found.count(what)
            found.count(f"of {'a manifest' if name in own else path.suffix}")
    return found


def reads(home: Store, artifact: Artifact, name: str) -> bool:
    """Can a damaged file be read through the store?"""
    from dcclctl.errors import ArtifactError

    try:
        loaded = home.load(artifact.kind, artifact.number)
        if name not in OWN_FILES:
            loaded.read(name)
    except ArtifactError:
        return False
    return True
