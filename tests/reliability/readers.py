"""Every reader of outside bytes, fed with bytes that a machine makes up: each is read, or refused with a message.

With atheris (an environment of its own, see docs/reliability.md) the bytes are guided by the coverage of the package;
without it they are mutations of good files. Guided, each reader has a process of its own, see guided.py.
"""

import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability.campaign import Campaign, Findings
from reliability.plants import planted

CSV = b'user,item,time,rating\nu1,i1,1600000000,5\nu2,i2,1600003600.0,nan\n"u,3",i3,1600007200,\nu1,i9,2020-09-13T12:26:40Z,1\n'
TSV = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"
JSONL = b'{"user":"u1","item":1,"time":1600000000,"x":{"y":[]}}\n{"user":"u2","item":"i2","time":1600003600}\n'
MIND = b"1\tU1\t11/13/2019 8:36:57 AM\tN1 N2\tN3-0 N4-1\n"
TOML = b'[train]\nmodel = "din"\nepochs = 3\n[train.din]\nhidden_sizes = [8, 4]\n[evaluate]\nk = [3, 10]\n'
UPLINK = b'{"bundle": "b", "token": "t", "theta": [0.5, -1e3, 2], "events": 3, "noise": 0.1}'
#: pieces that readers take for something
TOKENS = (
    *(
        b'"',
        b'""',
        b",",
        b"\t",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"::",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"{",
        b"}",
        b"[[",
        b":[]",
        b"null",
        b"NaN",
    ),
    *(
        b"1e999",
        b"-0",
        b"9223372036854775808",
        b"\\ud800",
        b"\xd9\xa1",
        b"2020-02-30",
        b"12/31/2020",
        b"/../",
        b"\x1b[2J",
        b"%s",
    ),
    *(
        b"PAR1",
        b"__metadata__",
        b'"shape"',
        b"F32",
        b"-1",
        b"@",
        b"timestamp",
        b"category",
        b"= {",
        b"'''",
        b"0x",
        b"\x01",
    ),
)


class Target:
    """One reader. `seeds` are good inputs; `read` raises DcclError on bad ones and nothing else."""

    def __init__(self, seeds: Callable[[Path], list[bytes]], read: Callable[[bytes, Path], object]) -> None:
        self.seeds, self.read = seeds, read


def _log(name: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        from dcclctl.config import IngestConfig
        from dcclctl.logs.events import select_events
        from dcclctl.logs.formats import detect_log
        from dcclctl.logs.quarantine import Quarantine
        from dcclctl.logs.reader import LogReader
        from dcclctl.logs.sources import identify

        path = folder / name
        path.write_bytes(data)
        config = IngestConfig(now="2030-01-01", timezone="Europe/Paris", label="")
        source, quarantine = identify(path), Quarantine()
        log = LogReader(config, quarantine, lambda *_: None).read([(source, detect_log(source, config))])
        if len(log) + sum(quarantine.counts.values()) != sum(log.read.values()):
            raise AssertionError(f"{len(log)} kept and {dict(quarantine.counts)} of {log.read}")
        return select_events(log, config)

    return read


def _side(role: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        from dcclctl.config import IngestConfig
        from dcclctl.logs.quarantine import Quarantine
        from dcclctl.logs.sides import categories, profiles, read_side
        from dcclctl.logs.sources import identify

        path = folder / f"{role}s.csv"
        path.write_bytes(data)
        table = read_side(identify(path), IngestConfig(max_reject=1.0), role, Quarantine())
        return profiles(["u1", "u2"], table) if role == "user" else categories(["i1", "i2"], table, None, None)

    return read


def _look(data: bytes, folder: Path) -> object:
    from dcclctl.logs.sources import identify
    from dcclctl.stages.init import look_at

    path = folder / "log.csv"
    path.write_bytes(data)
    return look_at(identify(path), {})


def _ids(data: bytes, folder: Path) -> object:
    from dcclctl.logs.id_file import ids_in

    path = folder / "ids.txt"
    path.write_bytes(data)
    return ids_in("users", f"@{path}", "user")


def _toml(data: bytes, folder: Path) -> object:
    from dcclctl.stages import settings

    path = folder / "dccl.toml"
    path.write_bytes(data)
    return [settings.resolve(command.section, {}, path) for command in settings.COMMANDS.values()]


def _manifest(data: bytes, folder: Path) -> object:
    from dcclctl.stages.remake import command_again
    from dcclctl.store.manifest import read_manifest, work_key
    from dcclctl.store.store import Store

    manifest = read_manifest(data, "cloud", "cloud@1")
    return command_again(manifest, Store(folder)), work_key(manifest)


def _of_artifact(method: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        from dcclctl.errors import ArtifactError
        from dcclctl.store.contents import Files

        class Given(Files):
            def read(self, name: str) -> bytes:
                return data

            def unreadable(self, name: str, problem: str) -> ArtifactError:
                return ArtifactError(problem, "again")

        return getattr(Given(), method)("file")

    return read


def _archive(data: bytes, folder: Path) -> object:
    from dcclctl.store.archive import import_archive
    from dcclctl.store.store import Store

    path = folder / "a.tar"
    path.write_bytes(data)
    return import_archive(Store(folder / "store", leases=False), path)


def _uplink(data: bytes, folder: Path) -> object:
    from dcclctl.stages.collect import _checked

    return _checked(data, "b", {"t": 0}, 3)


def _reference(data: bytes, folder: Path) -> object:
    from dcclctl.store.references import parse_reference

    return parse_reference(data.decode("utf-8", "surrogateescape"))


def _parquet_seeds(folder: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    columns: dict[str, list[Any]] = {
        "user": ["u1", None, "u2"],
        "item": [1, 2, 3],
        "time": [1600000000, 1600000001, 1600000002],
    }
    pq.write_table(pa.table(columns | {"x": [[1], [], None]}), out)
    return [out.getvalue()]


def _tensor_seeds(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save

    return [save({"w": torch.ones(2, 3), "n": torch.arange(4)}, {"meta": "{}"})]


def _manifest_seeds(folder: Path) -> list[bytes]:
    return [(_store(folder).folder("cloud", 1) / "manifest.json").read_bytes()]


def _archive_seeds(folder: Path) -> list[bytes]:
    from dcclctl.store.archive import export_archive

    export_archive(_store(folder), ["cloud@1"], folder / "seed.tar")
    return [(folder / "seed.tar").read_bytes()]


def _store(folder: Path) -> Any:
    from dcclctl.store.store import Store

    store = Store(folder / "seed", leases=False)
    with store.begin("train", "cloud", {"model": "din"}, 0, {}) as work:
        if work.reused is None:
            work.write_json("model.json", {"x": 1})
            work.commit({"loss": 0.5})
    return store


TARGETS: dict[str, Target] = {
    "delimited log": Target(lambda folder: [CSV, TSV, MIND], _log("log.csv")),
    "JSON lines": Target(lambda folder: [JSONL], _log("log.jsonl")),
    "Parquet log": Target(_parquet_seeds, _log("log.parquet")),
    "packed log": Target(lambda folder: [gzip.compress(CSV, mtime=0)], _log("log.csv.gz")),
    "users": Target(lambda folder: [b"user_id,age,city\nu1,old,a|b\nu2,,\n"], _side("user")),
    "items": Target(lambda folder: [b'item_id,name,category\ni1,A,x|y\ni2,"B",1 2\n'], _side("item")),
    "init": Target(lambda folder: [CSV], _look),
    "ids": Target(lambda folder: [b"u1\nu2\n"], _ids),
    "settings": Target(lambda folder: [TOML], _toml),
    "manifest": Target(_manifest_seeds, _manifest),
    "table of an artifact": Target(_parquet_seeds, _of_artifact("read_table")),
    "tensors of an artifact": Target(_tensor_seeds, _of_artifact("read_tensors")),
    "metadata of tensors": Target(_tensor_seeds, _of_artifact("tensor_metadata")),
    "JSON of an artifact": Target(lambda folder: [b'{"a": [1, 2.5, "x", null]}'], _of_artifact("read_json")),
    "archive": Target(_archive_seeds, _archive),
    "uplink": Target(lambda folder: [UPLINK], _uplink),
    "reference": Target(lambda folder: [b"cloud@7", b"patches@release+shuffled"], _reference),
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Some changes of good bytes: bits, pieces that mean something, repeats, cuts."""
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at, how = draw.randrange(len(data) + 1), draw.randrange(6)
        end = min(len(data), at + draw.choice((1, 2, 8, 64)))
        if how == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + draw.choice(TOKENS) + data[at:]
        elif how == 2:
            data = data[:at] + draw.choice(TOKENS) + data[end:]
        elif how == 3:
            data = data[:at] + data[end:]
        elif how == 4:
            data = data[:end] + data[at:end] * draw.choice((1, 2, 50)) + data[end:]
        else:
            data = data[:at] + draw.randbytes(draw.choice((1, 4))) + data[end:]
    return data[: 1 << 16]


class Fed:
    """Feeds one reader and keeps what it raised."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.counts: Counter[str] = Counter()
        self.problems: dict[str, str] = {}

    def one(self, data: bytes) -> None:
        from dcclctl.errors import DcclError

        try:
            self.target.read(data, self.folder)
            self.counts["read"] += 1
        except DcclError:
            self.counts["refused"] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.counts["raised"] += 1
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            place = f"{type(error).__name__} in {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else ""
            self.problems.setdefault(place, f"{place}: {str(error)[:200]} on {data[:400]!r}")


def run_target(name: str, seconds: float, number: int, plant: str, out: Path) -> None:
    """Feed one reader for so long (0: `number` times without guidance); the result goes into a file."""
    import warnings

    guided = seconds > 0
    if guided:
        import atheris
    import_readers()
    # what numpy or polars warns about would be on somebody's stderr
    warnings.simplefilter("error", RuntimeWarning)
    with tempfile.TemporaryDirectory() as temporary, planted(plant):
        folder = Path(temporary)
        fed = Fed(TARGETS[name], folder)
        seeds = TARGETS[name].seeds(folder)

        def save() -> None:
            out.write_text(json.dumps({"counts": fed.counts, "problems": list(fed.problems.values())}))

        if not guided:
            draw = random.Random(name)
            for data in [*seeds, *(mutated(draw.choice(seeds), draw) for _ in range(number))]:
                fed.one(data)
            save()
            return
        corpus = folder / "corpus"
        corpus.mkdir()
        (folder / "tokens").write_text(
            "".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in token)}"\n' for token in TOKENS)
        )
        for at, data in enumerate(seeds):
            (corpus / str(at)).write_bytes(data)
        last = [time.monotonic()]
        end = last[0] + seconds

        def one(data: bytes) -> None:
            fed.one(data)
            if time.monotonic() - last[0] > 1 or time.monotonic() > end:
                last[0] = time.monotonic()
                save()
            if time.monotonic() > end:
                os._exit(0)  # no further: libraries would wait for threads of theirs that this fork does not have

        flags = ["-max_len=8192", "-timeout=20", "-rss_limit_mb=4096", f"-dict={folder / 'tokens'}"]
        flags += [f"-artifact_prefix={folder}/", f"-seed={number + 1}", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
        save()
        atheris.Fuzz()


def import_readers() -> None:
    import dcclctl.logs.events
    import dcclctl.logs.format
    import dcclctl.logs.formats
    import dcclctl.logs.id_file
    import dcclctl.logs.reader
    import dcclctl.logs.sides
    import dcclctl.stages.collect
    import dcclctl.stages.init
    import dcclctl.stages.settings
    import dcclctl.store.archive
    import dcclctl.store.contents  # noqa: F401


def why_not_guided() -> str:
    """Why coverage cannot guide here; '' if it can."""
    try:
        import atheris  # noqa: F401
    except ImportError as error:
        return f"atheris is not installed ({error})"
    return ""


def readers(campaign: Campaign, count: int) -> Findings:
    """Feed every reader with mutations of good files, `count` in all, in this process."""
    import warnings

    found = Findings()
    each = max(1, count // len(TARGETS))
    with warnings.catch_warnings(), planted(campaign.plant):
        warnings.simplefilter("error", RuntimeWarning)
        for name, target in TARGETS.items():
            if campaign.late:
                break
            with tempfile.TemporaryDirectory() as temporary:
                fed, draw = Fed(target, Path(temporary)), random.Random(f"{campaign.seed} {name}")
                seeds = target.seeds(Path(temporary))
                for data in [*seeds, *(mutated(draw.choice(seeds), draw) for _ in range(each))]:
                    fed.one(data)
                collect(found, name, fed.counts, list(fed.problems.values()))
    return found


def collect(found: Findings, name: str, counts: dict[str, int], problems: list[str]) -> None:
    """Add what one reader did."""
    found.count("inputs", sum(counts.values()))
    found.count(f"inputs of {name}", sum(counts.values()))
    for how in ("read", "refused"):
        found.count(how, counts.get(how, 0))
    for problem in problems:
        found.wrong(f"{name}: {problem}")


def guided(campaign: Campaign, seconds: int) -> Findings:
    """Feed every reader with bytes that coverage guides, for so many seconds in all."""
    found = Findings()
    if reason := why_not_guided():
        found.count(f"skipped: {reason}")
        return found
    here, each = Path(__file__).parent, max(1, seconds // len(TARGETS))
    folder = campaign.bench.folder / "guided"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # libFuzzer ends its process without cleaning up, so what the readers are fed with is made where the campaign deletes it
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent.parent), str(here.parent), *sys.path]),
        "TMPDIR": str(folder),
    }
    words = [sys.executable, "-m", "reliability.guided", str(each), str(campaign.seed), campaign.plant, str(folder)]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, errors="replace") as running:
        try:
            said = running.communicate(timeout=seconds * 4 + 900)[1]
        except subprocess.TimeoutExpired:
            running.kill()
            said = "it takes too long"
    for number, name in enumerate(TARGETS):
        result, log, code = (folder / f"{number}.{end}" for end in ("json", "err", "code"))
        answer = json.loads(result.read_text()) if result.exists() else {"counts": {}, "problems": ["it did not start"]}
        collect(found, name, answer["counts"], answer["problems"])
        if not code.exists() or code.read_text() != "0":
            last = log.read_text(errors="replace")[-600:] if log.exists() else said[-600:]
            found.wrong(f"{name}: exit {code.read_text() if code.exists() else 'never'}: {last}")
            continue
        found.count("seconds", each)
        covered = re.findall(r"cov: (\d+)", log.read_text(errors="replace"))
        found.count(f"covered by {name}", int(covered[-1]) if covered else 0)
    return found
