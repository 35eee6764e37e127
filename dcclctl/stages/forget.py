"""`artifacts forget`: users' ids and events leave every byte of a store.

An artifact is never changed: one that holds something of the users, or was made from one that does, is made once more without
it, under a new number and a new id. Names move to the new one, inputs follow, and the old one is deleted. In the dataset a
forgotten user stays as an empty row, because patches, memories and models number users by row: so what is not the users'
stays the same to the bit. What was learned from the users' events, weights and averages, cannot be taken out again: it is
listed, with the command that makes it anew.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import save

from dcclctl.artifacts import Dataset
from dcclctl.artifacts.patches import USERS_FILE
from dcclctl.compute import Phase
from dcclctl.errors import ArtifactError
from dcclctl.events.periods import ItemPeriods
from dcclctl.store.artifact import METRICS, Artifact
from dcclctl.store.canonical import canonical
from dcclctl.store.contents import plain_tensors, write_table
from dcclctl.store.manifest import KINDS
from dcclctl.store.remake import remake
from dcclctl.store.snapshot import Snapshot
from dcclctl.store.store import Store
from dcclctl.tables import check_table

#: columns of tables that name artifacts by the start of their id
_REFERENCES = ("subject", "artifact", "evaluation")
_REFERENCE = re.compile(rf"\b({'|'.join(KINDS)})@([0-9a-f]{{8,64}})")
_FULL_ID = re.compile(r"\b[0-9a-f]{64}\b")
#: kind → what was learned or counted from the users' events and stays in the artifact
_LEARNED = {
    "cloud": "its weights",
    "memory": "its statistics",
    "patches": "the parameters that its patches share",
    "evaluation": "its averages and intervals over users",
    "tuning": "the values of its trials",
    "recommendations": "the scores of its model",
}


@dataclass(frozen=True)
class Rewritten:
    """An artifact that is made once more without the users, or deleted.

    Attributes:
        old: as it is. id: of the new one; '' for one that is deleted. number: of the new one; 0 before it is made.
        rows: rows of tables that held the users. learned: what of the users stays in it, in words; '' if nothing does.
        command: that makes it anew without the users.
    """

    old: Artifact
    id: str
    rows: int
    learned: str
    command: str
    number: int = 0

    @property
    def ref(self) -> str:
        """Of the new one."""
        return f"{self.old.kind}@{self.number}" if self.number else f"{self.old.kind}@{self.id[:12]}"


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did, or would do.

    Attributes:
        artifacts: in the order in which they are made. moved: [old, new reference] of artifacts that hold nothing of the users
            and only get a new number, so that the newest of their kind stays the newest. unknown: users that nothing holds.
        work: what stopped runs left; it is deleted. trash: what stopped deletions left.
    """

    artifacts: list[Rewritten] = field(default_factory=list)
    moved: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    work: list[Path] = field(default_factory=list)
    trash: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _New:
    """The new form of an artifact: its manifest, and the files that differ."""

    manifest: bytes
    files: dict[str, bytes]

    @property
    def id(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()


DELETED = _New(b"", {})


def forget(store: Store, users: Sequence[str], apply: bool = False) -> Forgotten:
    """Take users' ids and events out of a store.

    If it is stopped, nothing is lost, and the same call does the rest.

    Args:
        users: their ids as the log has them. apply: False only tells.

    Raises:
        ArtifactError: an artifact is damaged, so that it cannot be rewritten; or another command uses one.
    """
    gone = list(dict.fromkeys(users))
    if not store.exists():
        return Forgotten(unknown=gone)
    snapshot = Snapshot(store)
    if snapshot.damaged:
        kind, number = next(iter(snapshot.damaged))
        raise ArtifactError(
            f"{kind}@{number} is damaged, so nobody knows whether it holds the users",
            f"Remove it first: dcclctl artifacts rm {kind}@{number}",
        )
    work, _ = store.dead_work(remove=apply)
    rewriter = _Rewriter(store, snapshot, gone)
    made: list[Rewritten] = []
    moved: list[tuple[str, str]] = []
    first: dict[str, int] = {}
    old: list[Artifact] = []
    order = _in_order(snapshot)
    phase = Phase(store.on_progress, "forget", len(order), "artifacts")
    for artifact in order:
        phase.add(1, artifact.ref)
        new = rewriter.new(artifact)
        if new is None and artifact.number < first.get(artifact.kind, artifact.number + 1):
            continue
        number = 0
        if apply and new is not DELETED:
            number = _commit(store, artifact, new)
        old.append(artifact)
        if new is None:
            moved.append((artifact.ref, f"{artifact.kind}@{number}" if number else ""))
            continue
        first.setdefault(artifact.kind, artifact.number)
        made.append(rewriter.told(artifact, new, number))
    trash = _replace(store, snapshot, made, old) if apply else store.in_trash(set())
    return Forgotten(made, moved, sorted(set(gone) - rewriter.found), work, trash)


def _in_order(snapshot: Snapshot) -> list[Artifact]:
    """All artifacts, each after its inputs, and those of one kind in the order of their numbers; tunings last.

    A tuning names its trials in a table, not as inputs.
    """
    queues = {kind: snapshot.artifacts(kind) for kind in KINDS if kind != "tuning"}
    left = {artifact.id for artifact in snapshot.whole}
    order: list[Artifact] = []
    while any(queues.values()):
        before = len(order)
        for queue in queues.values():
            while queue and not any(given.id in left for given in queue[0].inputs.values()):
                order.append(queue.pop(0))
                left.discard(order[-1].id)
        if len(order) == before:  # numbers that are not in the order of making: a copy under an older number
            rest = [artifact for queue in queues.values() for artifact in queue]
            order += [artifact for artifact in snapshot.below(rest).values() if artifact in rest]
            break
    return order + snapshot.artifacts("tuning")


class _Rewriter:
    """Makes the new form of artifacts, one after the other, each after its inputs.

    Args:
        gone: ids of the users.
    """

    def __init__(self, store: Store, snapshot: Snapshot, gone: list[str]) -> None:
        self.store, self.snapshot, self.gone = store, snapshot, gone
        #: those of the users that something holds
        self.found: set[str] = set()
        #: old id of an artifact or id map → the new one
        self._ids: dict[str, str] = {}
        #: ids of artifacts that are deleted
        self._deleted: set[str] = set()
        #: id → rows that held the users
        self._rows: dict[str, int] = {}
        #: old id of a dataset → numbers of the users
        self._numbers: dict[str, list[int]] = {}
        spellings = {form for id in gone for form in (id, json.dumps(id)[1:-1], id.replace('"', '""'))}
        any_of = "|".join(re.escape(form) for form in sorted(spellings, key=len, reverse=True))
        self._token = rf"(?:^|[^\w])(?:{any_of})(?:[^\w]|$)"

    def new(self, artifact: Artifact) -> _New | None:
        """The new form; None if nothing of it changes. DELETED for bundles, whose golden vectors are of real devices, and for
        evaluations of bundles."""
        affected = any(given.id in self._ids or given.id in self._deleted for given in artifact.inputs.values())
        files: dict[str, bytes] = {}
        tables: dict[str, pl.DataFrame] = {}
        rows = 0
        numbers = self._numbers_in(artifact)
        for name in artifact.manifest["files"]:
            if name.endswith(".parquet"):
                old = artifact.read_table(name)
                tables[name], own = self._table(artifact, name, old, numbers)
                rows += own
                if own or not tables[name].equals(old):
                    check_table(artifact.kind, name, tables[name])
                    files[name] = _parquet(tables[name])
            elif affected and name.endswith(".json"):
                document = artifact.read_json(name)
                if (followed := self._followed(document)) != document:
                    files[name] = canonical(followed, name)
            elif affected and name.endswith(".safetensors"):
                files |= self._tensors(artifact, name, numbers)
        if not affected and not rows:
            return None
        self._rows[artifact.id] = rows
        scored = [given.id for given in artifact.inputs.values() if given.id in self._deleted]
        if artifact.kind == "bundle" or (artifact.kind == "evaluation" and scored):
            self._deleted.add(artifact.id)
            return DELETED
        made = _New(self._manifest(artifact, files, tables, len(numbers)), files)
        self._ids[artifact.id] = made.id
        return made

    def told(self, artifact: Artifact, new: _New, number: int) -> Rewritten:
        rows = self._rows[artifact.id]
        if new is DELETED:
            return Rewritten(artifact, "", rows, "", remake(self._followed(artifact.manifest), artifact.home))
        learned = _LEARNED.get(artifact.kind, "")
        command = remake(json.loads(new.manifest), artifact.home) if learned else ""
        return Rewritten(artifact, new.id, rows, learned, command, number)

    def _numbers_in(self, artifact: Artifact) -> list[int]:
        """Rows of the users in the artifact's dataset."""
        if artifact.kind == "dataset":
            users = artifact.read_table("users.parquet")
            self._numbers[artifact.id] = users.filter(pl.col("user_id").is_in(self.gone))["user_index"].to_list()
        else:
            below = [self._numbers.get(given.id, []) for given in artifact.inputs.values()]
            self._numbers[artifact.id] = max(below, key=len, default=[])
        return self._numbers[artifact.id]

    def _table(
        self, artifact: Artifact, name: str, table: pl.DataFrame, numbers: list[int]
    ) -> tuple[pl.DataFrame, int]:
        """The table without the users, and how many rows held them."""
        height = table.height
        if artifact.kind == "dataset" and name == "users.parquet":
            return self._tombstones(table, numbers), len(numbers)
        if artifact.kind == "dataset" and name.startswith("events"):
            table = table.filter(~pl.col("user_index").is_in(numbers))
        elif artifact.kind == "dataset" and name == "item_periods.parquet" and numbers:
            return _item_periods(Dataset(artifact).events.filter(~pl.col("user_index").is_in(numbers))), 0
        elif artifact.kind == "dataset" and name == "vocabulary.parquet" and numbers:
            return _without_unused(table, artifact.read_table("users.parquet"), numbers), 0
        elif "user_id" in table.columns:
            own = table["user_id"].is_in(self.gone)
            self.found |= set(table["user_id"].filter(own))
            table = table.filter(~own)
        elif name == "rejects.parquet":
            own = table["raw"].str.contains(self._token)
            self.found |= {id for id in self.gone if table["raw"].filter(own).str.contains(id, literal=True).any()}
            table = table.filter(~own)
        for column in _REFERENCES:
            if column in table.columns and table.schema[column] == pl.String:
                named = {old: self._followed(old) for old in table[column].unique()}
                table = table.with_columns(pl.col(column).replace(named))
        return table, height - table.height

    def _tombstones(self, users: pl.DataFrame, numbers: list[int]) -> pl.DataFrame:
        """Rows without id, events, profile and group in the place of the users."""
        if not numbers:
            return users
        own = pl.col("user_index").is_in(numbers)
        self.found |= set(users.filter(own)["user_id"])
        taken = set(users["user_id"])
        names = {number: f"(forgotten {number})" for number in numbers}
        while taken & set(names.values()):
            names = {number: f"({name})" for number, name in names.items()}
        empty = {"user_id": pl.col("user_index").replace_strict(names, default=None), "group": pl.lit("new")}
        zeros = [name for name in users.columns if name.startswith(("events", "profile_"))]
        empty |= {name: pl.lit(0, users.schema[name]) for name in zeros}
        empty["activity_group"] = pl.lit(None, users.schema["activity_group"])
        return users.with_columns(
            pl.when(own).then(value).otherwise(pl.col(name)).alias(name) for name, value in empty.items()
        )

    def _tensors(self, artifact: Artifact, name: str, numbers: list[int]) -> dict[str, bytes]:
        """A file of tensors with zeros in the rows of the users; {} if it has none."""
        if artifact.kind == "patches" and name.startswith("theta-"):
            table = artifact.read_table(USERS_FILE)
            here = pl.col("shard") == int(name.removeprefix("theta-").partition(".")[0])
            rows = table.filter(here & pl.col("user_id").is_in(self.gone))["row"].to_list()
            columns = {"theta": 0, "events": 0, "losses": float("nan"), "kept": False}
        elif artifact.kind == "cloud" and name == "model.safetensors":
            rows, columns = numbers, {"user_table": 0}  # of a factor model
        else:
            return {}
        tensors = artifact.read_tensors(name)
        if not rows or not columns.keys() & tensors.keys():
            return {}
        for each, empty in columns.items():
            if each in tensors:
                tensors[each][torch.tensor(rows)] = empty
        metadata = {"meta": canonical(artifact.tensor_metadata(name), "metadata").decode()}
        return {name: save(plain_tensors(tensors), metadata)}

    def _manifest(
        self, artifact: Artifact, files: dict[str, bytes], tables: dict[str, pl.DataFrame], count: int
    ) -> bytes:
        manifest: dict[str, Any] = self._followed(json.loads(json.dumps(artifact.manifest)))
        facts = manifest["facts"]
        # patches that devices sent back stay, without the bundle that the devices had
        deleted = [role for role, given in manifest["inputs"].items() if given["id"] in self._deleted]
        for role in deleted:
            del manifest["inputs"][role]
        if artifact.kind == "dataset":
            ids = (tables["users.parquet"]["user_id"], tables["items.parquet"]["item_id"])
            id_map = hashlib.sha256("\0\0".join("\0".join(part) for part in ids).encode("utf-8")).hexdigest()
            self._ids[facts["id_map"]] = facts["id_map"] = id_map
            facts |= _counts(facts, tables)
        else:
            # so that the same command does not take what was learned from the users for what it would make
            manifest["config"]["forgotten"] = manifest["config"].get("forgotten", 0) + count
            facts |= _counts_of_users(artifact.kind, tables)
        facts["forgotten"] = facts.get("forgotten", 0) + count
        for name, data in files.items():
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if name in tables:
                manifest["tables"][name]["rows"] = tables[name].height
        return canonical(manifest, "manifest")

    def _followed(self, document: Any) -> Any:
        """A document with new ids in the place of old ones, and without the users where they are quoted."""
        if isinstance(document, dict):
            return {self._text(key): self._followed(value) for key, value in document.items()}
        if isinstance(document, list):
            return [self._followed(value) for value in document]
        return self._text(document) if isinstance(document, str) else document

    def _text(self, text: str) -> str:
        def short(found: re.Match[str]) -> str:
            kind, start = found.groups()
            old = next((id for id in self._ids if id.startswith(start)), start)
            return f"{kind}@{self._ids.get(old, start)[: len(start)]}"

        text = _FULL_ID.sub(lambda found: self._ids.get(found[0], found[0]), text)
        text = _REFERENCE.sub(short, text)
        for id in self.gone if "'" in text or '"' in text else ():
            text = text.replace(repr(id), "'(forgotten)'")
        return text


def _without_unused(vocabulary: pl.DataFrame, users: pl.DataFrame, numbers: list[int]) -> pl.DataFrame:
    """The vocabulary without the text of profile values that only forgotten users have; its codes stay."""
    left = users.filter(~pl.col("user_index").is_in(numbers))
    values = []
    for kind, column, code, value in vocabulary.iter_rows():
        name = f"profile_{column}"
        only_theirs = kind == "profile" and name in users.columns and not (left[name] == code).any()
        values.append(f"(forgotten {code})" if only_theirs else value)
    return vocabulary.with_columns(pl.Series("value", values, dtype=pl.String))


def _item_periods(events: pl.DataFrame) -> pl.DataFrame:
    """An ITEM_PERIODS table of an EVENTS table."""
    columns = (events[name].to_numpy() for name in ("item_index", "period", "share", "label"))
    return ItemPeriods.of_events(*columns).table()


def _counts(facts: dict[str, Any], tables: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Facts of a dataset that follow from its tables."""
    events = pl.concat([table for name, table in sorted(tables.items()) if name.startswith("events")])
    groups = tables["users.parquet"]["group"]
    periods = []
    for number, period in enumerate(facts["periods"]):
        own = events.filter(pl.col("period") == number)
        periods.append({**period, "events": own.height, "users": own["user_index"].n_unique()})
    counted = {group: int((groups == group).sum()) for group in facts["groups"]}
    positives = int((events["label"] > 0).sum())
    return {"events": events.height, "positives": positives, "periods": periods, "groups": counted}


def _counts_of_users(kind: str, tables: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Facts of other artifacts that must agree with their tables."""
    if kind == "patches":
        table = tables[USERS_FILE]
        return {"users": table.height, "kept": int(table["kept"].sum()), "events": int(table["events"].sum())}
    if kind == "memory":
        table = tables["memory.parquet"]
        return {"users": table.height, "events": int(table["seen"].sum())}
    if kind == "evaluation":
        return {"users": tables["per_user.parquet"]["user_index"].n_unique()}
    return {}


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    write_table(buffer, table)
    return buffer.getvalue()


def _commit(store: Store, old: Artifact, new: _New | None) -> int:
    """Commit the new form, or a copy of the old one under a new number; returns the number."""
    manifest, id = canonical(old.manifest, "manifest"), old.id
    files: dict[str, bytes] = {}
    if new is not None:
        manifest, files, id = new.manifest, new.files, new.id
    with store.adding(old.kind, id, again=new is None) as incoming:
        if incoming.there is not None:
            return incoming.there.number
        for name in json.loads(manifest)["files"]:
            data = files[name] if name in files else old.read(name)
            with incoming.new_file(name, len(data)) as file:
                file.write(data)
        try:
            figures = old.disk.read(old.path / METRICS)
        except (FileNotFoundError, ArtifactError):
            figures = b""
        if figures:
            with incoming.new_file(METRICS, len(figures)) as file:
                file.write(figures)
        return incoming.commit(manifest, old.run).number


def _replace(store: Store, snapshot: Snapshot, made: list[Rewritten], old: list[Artifact]) -> list[Path]:
    """Move names to the new artifacts and delete the old ones, which nobody can resolve from here on.

    Returns:
        What stopped deletions had left, which is deleted too.
    """
    with store.leases.hygiene():
        now = {(artifact.kind, artifact.number) for artifact in Snapshot(store).whole}
        known = {(artifact.kind, artifact.number) for artifact in snapshot.whole}
        known |= {(each.old.kind, each.number) for each in made}
        used = store.leases.in_use(by_others=True)
        busy = [artifact.ref for artifact in old if artifact.id in used]
        if busy:
            raise ArtifactError(
                f"a running command uses {', '.join(busy)}", "Wait until it ends, then type the same command again."
            )
        copies = {artifact.id for artifact in old}
        late = [f"{kind}@{number}" for kind, number in now - known if store.load(kind, number).id not in copies]
        if late:
            raise ArtifactError(f"another command has just made {', '.join(late)}", "Type the same command again.")
        for each in made:
            for name in snapshot.aliases(each.old):
                if each.number:
                    store.tag(store.load(each.old.kind, each.number), name)
                else:
                    store.untag(each.old.kind, name)
        left = store.in_trash(used)
        # Each before what it was made from: after a stop, the same call finds what is left by the dataset that has the users.
        moved = [store.trash(artifact.kind, artifact.number) for artifact in reversed(old)]
    store.empty_trash(left + moved)
    return left
