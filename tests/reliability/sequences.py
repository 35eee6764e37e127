"""A state machine over the store: sequences of commits, crashes, names, deletions, forgetting and damage, against a model.

Each sequence forks a worker that does the operations with the program's own functions, so that it can be killed in the
middle of one; this process keeps the model and looks at the store with code of its own. It runs in a process that has
imported everything and started no thread, because forks of threads do not work: `python -m reliability.sequences`.
"""

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from reliability.campaign import Campaign, Findings
from reliability.plants import PLANTS
from reliability.scenes import look

KINDS = ("cloud", "recommendations")
USERS = ("ann%", "bob", "ümit", "d'arc")
NAMES = ("a", "b")
STEPS = 14
#: of prctl(2): the signal that comes when the parent ends
PR_SET_PDEATHSIG = 1
#: sequences before the clock is looked at
ROUND = 50
#: operations of a command at which it is killed; a number beyond its last one lets it end
KILL_AT = st.integers(1, 45)
MAYBE = st.one_of(st.just(0), st.just(0), st.just(0), KILL_AT)


def sequences(campaign: Campaign, count: int) -> Findings:
    """Run that many sequences in a process of their own."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent.parent), str(here.parent)])}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    left = min(36_000.0, campaign.until - time.monotonic())
    words = [
        sys.executable,
        "-m",
        "reliability.sequences",
        str(count),
        str(campaign.seed),
        campaign.plant,
        f"{left:.0f}",
    ]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=36_000)
    found = Findings()
    if ran.returncode:
        found.wrong(f"exit {ran.returncode}: {ran.stderr.strip()[-1000:]}")
        return found
    answer = json.loads(ran.stdout.splitlines()[-1])
    return Findings(answer["phases"], answer["problems"])


# -- the worker


def killing_disk(at: int) -> Any:
    """A file system that kills the process before its `at`-th operation; 0 never does."""
    from dcclctl.store.disk import LocalDisk

    class KillingDisk(LocalDisk):
        count = 0

    def counted(name: str) -> Any:
        def operation(self: Any, *arguments: Any) -> Any:
            KillingDisk.count += 1
            if KillingDisk.count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return getattr(LocalDisk, name)(self, *arguments)

        return operation

    for name in ("rename", "sync", "write", "append", "remove", "make_folder", "freeze", "give"):
        setattr(KillingDisk, name, counted(name))
    return KillingDisk()


class Worker:
    """Does operations on a store, one line of JSON each."""

    def __init__(self, root: str) -> None:
        self.root, self.held = root, {}  # type: ignore[var-annotated]

    def store(self, kill_at: int) -> Any:
        from dcclctl.store.store import Store

        return Store(self.root, killing_disk(kill_at))

    def commit(self, kill_at: int, kind: str, value: int, users: list[str], below: str | None) -> dict[str, Any]:
        import polars as pl

        from dcclctl.store.contents import write_table
        from dcclctl.tables import RECOMMENDATIONS

        store = self.store(kill_at)
        inputs = {"model": store.resolve(below).as_input()} if below else {}
        stage = "train" if kind == "cloud" else "recommend"
        with store.begin(stage, kind, {"value": value, "users": len(users)}, value, inputs) as work:
            if work.reused:
                return {"ref": work.reused.ref, "id": work.reused.id, "reused": True}
            work.write_json("model.json", {"value": value})
            if kind == "recommendations":
                rows = [(user, 1, f"i{value}", None, 0.5, "patch") for user in users]
                table = pl.DataFrame(rows, schema=RECOMMENDATIONS.schema(), orient="row")
                with work.new_file("lists-00000.parquet") as path:
                    write_table(path, table)
            made = work.commit({"value": value})
        return {"ref": made.ref, "id": made.id, "reused": False}

    def tag(self, kill_at: int, ref: str, name: str) -> None:
        store = self.store(kill_at)
        store.tag(store.resolve(ref), name)

    def gc(self, kill_at: int, keep: int) -> list[str]:
        from dcclctl.store.hygiene import collect

        return [artifact.ref for artifact in collect(self.store(kill_at), keep, apply=True).versions]

    def rm(self, kill_at: int, ref: str) -> list[str]:
        from dcclctl.store.hygiene import remove

        done = remove(self.store(kill_at), [ref], force=True)
        return [artifact.ref for artifact in done.versions] + done.damaged

    def forget(self, kill_at: int, user: str) -> list[str]:
        from dcclctl.stages.forget import forget

        return [made.ref for made in forget(self.store(kill_at), [user], apply=True).artifacts]

    def verify(self, kill_at: int, ref: str) -> bool:
        kind, _, number = ref.partition("@")
        return not self.store(kill_at).verify(kind, int(number))

    def hold(self, kill_at: int, ref: str) -> None:
        store = self.store(kill_at)
        self.held[ref] = (store, store.resolve(ref))

    def release(self, kill_at: int) -> None:
        self.held.clear()

    def users(self, kill_at: int) -> dict[str, list[str]]:
        """Whose rows the tables hold: file → users."""
        import pyarrow.parquet

        return {
            str(path): pyarrow.parquet.read_table(path, memory_map=False)["user_id"].to_pylist()
            for path in Path(self.root).rglob("*.parquet")
        }

    def serve(self, asked: int, answers: int) -> NoReturn:
        from dcclctl.errors import DcclError

        with os.fdopen(asked, "r") as lines, os.fdopen(answers, "w") as out:
            for line in lines:
                name, arguments = json.loads(line)
                try:
                    answer = {"done": getattr(self, name)(**arguments)}
                except DcclError as error:
                    answer = {"refused": str(error)}
                except BaseException as error:
                    answer = {"raised": f"{type(error).__name__}: {error}"}
                out.write(json.dumps(answer) + "\n")
                out.flush()
        os._exit(0)


# -- the model


@dataclass(frozen=True)
class Spec:
    """What an artifact was made of."""

    kind: str
    value: int
    users: tuple[str, ...]
    below: str


NOTHING = Spec("", 0, (), "")


@dataclass
class Model:
    """What must be in the store.

    Attributes:
        ids: reference → id of whole versions. below: id → id of what it was made from. specs: id → what it was made of.
        damaged: references of versions that were damaged. names: 'cloud@a' → id. last: kind → highest number that was given.
        held: references that the worker uses.
    """

    ids: dict[str, str] = field(default_factory=dict)
    below: dict[str, str] = field(default_factory=dict)
    specs: dict[str, Spec] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)

    def newest(self, id: str) -> str | None:
        """The reference that an id means."""
        found = [ref for ref, each in self.ids.items() if each == id]
        return max(found, key=number_of, default=None)

    def needed(self, refs: set[str]) -> set[str]:
        """The versions and the newest ones of all that they were made from."""
        found, waiting = set(), list(refs)
        while waiting:
            ref = waiting.pop()
            if ref not in found:
                found.add(ref)
                inner = self.below.get(self.ids[ref], "")
                newest = self.newest(inner) if inner else None
                waiting += [newest] if newest else []
        return found

    def kept_by_gc(self, keep: int) -> set[str]:
        """Whole versions that gc must keep; all others it must delete."""
        recent = {
            ref
            for kind in KINDS
            for ref in sorted((each for each in self.ids if each.startswith(f"{kind}@")), key=number_of)[
                len(self.of(kind)) - keep if keep else len(self.of(kind)) :
            ]
        }
        named = {newest for id in self.names.values() if (newest := self.newest(id))}
        roots = recent | named | {ref for ref in self.held if ref in self.ids}
        # a name or an input means the newest copy; an older copy stays if it is recent or used
        return self.needed(roots) | {newest for ref in roots if (newest := self.newest(self.ids[ref]))}

    def of(self, kind: str) -> list[str]:
        return [ref for ref in self.ids if ref.startswith(f"{kind}@")]


def number_of(ref: str) -> int:
    return int(ref.partition("@")[2])


COUNTS: Counter[str] = Counter()


class StoreMachine(RuleBasedStateMachine):
    """Operations on one store, each compared with the model."""

    plant = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="dcclctl-sequences-"))
        self.root = self.folder / "store"
        self.model = Model()
        self.process = 0
        self.start()
        COUNTS["sequences"] += 1

    def start(self) -> None:
        asked, ask = os.pipe()
        answer, answers = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(ask)
            os.close(answer)
            # a worker that outlived its parent would keep the parent's pipes open
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for each in PLANTS[self.plant].patches() if self.plant else []:
                each.start()
            Worker(str(self.root)).serve(asked, answers)
        os.close(asked)
        os.close(answers)
        self.ask, self.answer = os.fdopen(ask, "w"), os.fdopen(answer, "r")

    def do(self, name: str, /, kill_at: int = 0, **arguments: Any) -> dict[str, Any] | None:
        """What the worker answers; None if it was killed on its way."""
        note(f"{name} {arguments}{f', killed at {kill_at}' if kill_at else ''}")
        self.ask.write(json.dumps([name, {"kill_at": kill_at, **arguments}]) + "\n")
        self.ask.flush()
        line = self.answer.readline()
        if not line:
            os.waitpid(self.process, 0)
            self.close()
            self.model.held.clear()
            self.start()
            COUNTS[f"killed in {name}"] += 1
            return None
        found: dict[str, Any] = json.loads(line)
        assert "raised" not in found, found["raised"]
        COUNTS[f"{name} refused" if "refused" in found else name] += 1
        return found

    def close(self) -> None:
        for pipe in (self.ask, self.answer):
            with suppress(OSError):
                pipe.close()

    def teardown(self) -> None:
        self.close()
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.process, 0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, gone: set[str] = frozenset(), maybe: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Compare the store with the model.

        Args:
            gone: versions that must have left. maybe: versions that may have left; the rest must be there unchanged.
        """
        model, now = self.model, look(self.root)
        for ref in now.damaged:
            assert ref in model.damaged, f"{ref} is damaged: {now.damaged[ref]}"
        for ref, id in model.ids.items():
            if ref in gone:
                assert ref not in now.ids, f"{ref} is still there"
            elif ref not in maybe:
                assert now.ids.get(ref) == id, f"{ref} is lost"
        for ref in now.ids.keys() - model.ids.keys():
            kind = ref.partition("@")[0]
            assert number_of(ref) > model.last.get(kind, 0), f"the number of {ref} is given again"
        for name, id in now.names.items():
            if id not in now.ids.values():
                assert any(model.ids.get(ref) == id for ref in ()) or self.was_damaged(id), f"{name} means nothing"
        model.ids = now.ids
        model.damaged = {ref for ref in model.damaged if ref in now.damaged}
        model.names = now.names
        for ref in [*now.ids, *now.damaged]:
            kind = ref.partition("@")[0]
            model.last[kind] = max(model.last.get(kind, 0), number_of(ref))

    def was_damaged(self, id: str) -> bool:
        """Is it the id of a version that was damaged? Then a name of it may stay."""
        return id in self.damaged_ids

    @property
    def damaged_ids(self) -> set[str]:
        return self._damaged_ids

    _damaged_ids: set[str] = set()

    @rule(
        kind=st.sampled_from(KINDS),
        value=st.integers(0, 2),
        users=st.lists(st.sampled_from(USERS), unique=True, max_size=3).map(sorted),
        on_newest=st.booleans(),
        kill_at=MAYBE,
    )
    def commit(self, kind: str, value: int, users: list[str], on_newest: bool, kill_at: int) -> None:
        model = self.model
        clouds = sorted((ref for ref in model.of("cloud") if ref not in model.damaged), key=number_of)
        below = clouds[-1] if kind == "recommendations" and on_newest and clouds else None
        users = users if kind == "recommendations" else []
        spec = Spec(kind, value, tuple(users), model.ids[below] if below else "")
        there = {id for id in model.ids.values() if model.specs.get(id) == spec}
        # equal settings find the artifact whatever users are in its table: the number of users is a setting here
        alike = {id for id in model.ids.values() if (old := model.specs.get(id)) and key_of(old) == key_of(spec)}
        answer = self.do("commit", kill_at, kind=kind, value=value, users=users, below=below)
        before = dict(model.ids)
        if answer is None:
            self.check()
            assert len(model.ids.keys() - before.keys()) <= 1
            self.learn(spec, before)
            return
        made = answer["done"]
        self.check()
        assert model.ids.get(made["ref"]) == made["id"], "it printed what is not there"
        assert made["reused"] == bool(alike), "an artifact that is there is made again" if alike else "it is not there"
        assert not made["reused"] or made["id"] in alike | there
        self.learn(spec, before)

    def learn(self, spec: Spec, before: dict[str, str]) -> None:
        for ref in self.model.ids.keys() - before.keys():
            id = self.model.ids[ref]
            self.model.specs[id] = spec
            self.model.below[id] = spec.below

    def whole(self) -> list[str]:
        return sorted(self.model.ids.keys() - self.model.damaged)

    @precondition(lambda self: self.whole())
    @rule(data=st.data(), name=st.sampled_from(NAMES), kill_at=MAYBE)
    def tag(self, data: st.DataObject, name: str, kill_at: int) -> None:
        ref = data.draw(st.sampled_from(self.whole()))
        id, label = self.model.ids[ref], f"{ref.partition('@')[0]}@{name}"
        before = self.model.names.get(label)
        answer = self.do("tag", kill_at, ref=ref, name=name)
        self.check()
        assert self.model.names.get(label) in ((id,) if answer else (id, before)), "the name means something else"

    @precondition(lambda self: self.model.ids)
    @rule(keep=st.sampled_from((1, 1, 0, 2)), kill_at=MAYBE)
    def gc(self, keep: int, kill_at: int) -> None:
        kept = self.model.kept_by_gc(keep)
        free = self.model.ids.keys() - kept
        answer = self.do("gc", kill_at, keep=keep)
        if answer is not None:
            assert "done" in answer, answer
        self.check(gone=set(free) if answer else set(), maybe=set(free))

    @precondition(lambda self: self.model.ids)
    @rule(data=st.data(), kill_at=MAYBE)
    def rm(self, data: st.DataObject, kill_at: int) -> None:
        ref = data.draw(st.sampled_from(sorted(self.model.ids)))
        answer = self.do("rm", kill_at, ref=ref)
        stays = self.model.needed({each for each in self.model.held if each in self.model.ids})
        maybe = set(self.model.ids) - {each for each in stays if each in self.model.held}
        if answer is not None and "refused" in answer:
            maybe = set()
        only_copy = list(self.model.ids.values()).count(self.model.ids[ref]) == 1
        assert answer is None or "refused" in answer or not (ref in self.model.held and only_copy), "it was in use"
        self.check(gone={ref} if answer and "done" in answer else set(), maybe=maybe)

    @precondition(lambda self: any(self.model.specs.get(id, NOTHING).users for id in self.model.ids.values()))
    @rule(user=st.sampled_from(USERS), kill_at=MAYBE)
    def forget(self, user: str, kill_at: int) -> None:
        model, before = self.model, dict(self.model.ids)
        answer = self.do("forget", kill_at, user=user)
        held = {ref for ref in model.held if ref in model.ids}
        self.check(maybe=set(before) - held)
        if answer is None or "refused" in answer:
            assert answer is None or model.damaged or held, answer
            answer = self.do("forget", user=user) if not (model.damaged or model.held) else None
            if answer is None:
                return
            self.check(maybe=set(model.ids))
        assert "done" in answer, answer
        for path, users in self.do("users")["done"].items():  # type: ignore[index]
            assert user not in users, f"{path} holds {user}"
        for path in self.root.rglob("*"):
            assert not path.is_file() or user.encode() not in path.read_bytes(), f"{path} holds {user}"
        untouched = [
            id for id in before.values() if (spec := model.specs.get(id)) and user not in spec.users and not spec.below
        ]
        for id in untouched:
            assert id in model.ids.values(), "an artifact without the user has changed"

    @precondition(lambda self: self.whole())
    @rule(data=st.data(), flips=st.integers(1, 3), numbers=st.randoms(use_true_random=False))
    def corrupt(self, data: st.DataObject, flips: int, numbers: random.Random) -> None:
        ref = data.draw(st.sampled_from(self.whole()))
        kind, _, number = ref.partition("@")
        folder = self.root / kind / "v" / f"{int(number):06d}"
        path = data.draw(
            st.sampled_from(sorted(p for p in folder.iterdir() if p.name not in ("run.json", "metrics.jsonl")))
        )
        content = bytearray(path.read_bytes())
        at = numbers.randrange(len(content))
        content[at] ^= 1 << numbers.randrange(8)
        path.chmod(0o644)
        path.write_bytes(bytes(content))
        note(f"corrupt {path.relative_to(self.root)}")
        self._damaged_ids = self._damaged_ids | {self.model.ids.pop(ref)}
        self.model.damaged.add(ref)
        COUNTS["corrupt"] += 1

    @precondition(lambda self: self.model.ids or self.model.damaged)
    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(sorted(self.model.ids.keys() | self.model.damaged)))
        answer = self.do("verify", ref=ref)
        assert answer is not None
        assert answer["done"] == (ref not in self.model.damaged), f"verify is wrong about {ref}"

    @precondition(lambda self: self.whole() and len(self.model.held) < 2)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(self.whole()))
        answer = self.do("hold", ref=ref)
        if answer and "done" in answer:
            self.model.held.add(ref)

    @precondition(lambda self: self.model.held)
    @rule()
    def release(self) -> None:
        self.do("release")
        self.model.held.clear()


def key_of(spec: Spec) -> tuple[Any, ...]:
    """What the program reuses an artifact by."""
    return (spec.kind, spec.value, len(spec.users), spec.below)


def main() -> None:
    """COUNT SEED PLANT SECONDS: print what was done and found as JSON."""
    count, number, StoreMachine.plant = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    until = time.monotonic() + float(sys.argv[4])
    import polars as pl  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import dcclctl.stages.forget
    import dcclctl.store.hygiene  # noqa: F401

    problems: list[str] = []
    while not problems and COUNTS["sequences"] < count and time.monotonic() < until:
        bounded = settings(
            max_examples=min(ROUND, count - COUNTS["sequences"]),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_state_machine_as_test(seed(number)(StoreMachine), settings=bounded)
        except AssertionError as error:
            steps = getattr(error, "__notes__", [])
            problems.append(f"{error}; steps: {' | '.join(steps)[-2500:]}")
        number += 1_000_003
    print(json.dumps({"phases": dict(sorted(COUNTS.items())), "problems": problems}))


if __name__ == "__main__":
    main()
