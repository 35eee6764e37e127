"""`artifacts forget`: 50 planted users are in no byte of the store afterwards, and nobody else notices."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from world import DISTILL, EVALUATE, PATCH, SMALL, START, TRAIN, dcclctl, done, sets, write_log

from dcclctl.artifacts import Dataset, PatchSet
from dcclctl.stages.forget import forget
from dcclctl.store.store import Artifact, Store

N_PLANTED = 50
#: with letters that JSON and CSV write in another way
PLANTED = [f'plänted"{number:02d}' for number in range(N_PLANTED)]
#: an odd second, which no other event has
ODD = 1


def plant(folder: Path) -> Path:
    """The world's log with 50 more users: events, profiles that only they have, and records that are rejected."""
    log = write_log(folder)
    draw = random.Random(3)
    rows, profiles = [], []
    for user in PLANTED:
        quoted = '"' + user.replace('"', '""') + '"'
        days = sorted(draw.uniform(0, 40) for _ in range(12))
        times = [START + int(day * 24) * 3600 + ODD for day in days]
        rows += [f"{quoted},i{draw.randrange(76)},{time},5" for time in times]
        profiles.append(f"{quoted},plänted age,north")
    rows += [f'"{PLANTED[0].replace(chr(34), chr(34) * 2)}",i3,never,5']
    with log.open("a") as file:
        file.write("\n".join(rows) + "\n")
    with (folder / "users.csv").open("a") as file:
        file.write("\n".join(profiles) + "\n")
    return log


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every stage has run on the planted log, with names and with what stopped runs leave."""
    folder = tmp_path_factory.mktemp("planted")
    log, store = plant(folder / "log"), folder / "store"
    own = sets("patch.memory", epochs=1, hidden_size=4)
    users, items = folder / "log" / "users.csv", folder / "log" / "items.csv"
    parts = "--set=ingest.shard_users=40"  # three, and the planted users are in the last two
    done("ingest", log, "--users", users, "--items", items, "--max-reject=0.5", parts, store=store)
    done("train", *TRAIN, "--name=base", store=store)
    done("memory", store=store)
    done("patch", *PATCH, store=store)
    done("patch", "--method=memory", "--cloud=cloud@base", *own, "--threads=1", store=store)
    done("distill", "--patches=patches@1", *DISTILL, "--name=release", store=store)
    done("train", "--model=bpr", "--epochs=5", "--learning-rate=0.05", "--threads=1", store=store)
    done("export", "patches@1", store=store)
    done("evaluate", "cloud@base", "patches@1", "--against=cloud@base", *EVALUATE, store=store)
    done("evaluate", "bundle@1", *EVALUATE, store=store)
    done("recommend", "patches@1", "--threads=1", store=store)
    small = [flag for flag in sets("train.din", **SMALL)]
    done("tune", "train", "--model=din", "--trials=1", *small, "--threads=1", store=store)
    made = Store(store)
    with pytest.raises(RuntimeError), made.begin("train", "cloud", {"x": 1}, 0, {}) as work:
        work.write_json("half.json", PLANTED)
        raise RuntimeError("stopped")
    left = store / "trash" / "cloud-9-abcd"
    left.mkdir(parents=True)
    (left / "model.json").write_text(json.dumps(PLANTED))
    return store


def bytes_of(store: Path) -> dict[str, bytes]:
    """Every file of the store, and what a compressed one holds."""
    found = {}
    for path in sorted(store.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            table = pl.read_parquet(data)
            data += "\n".join(str(row) for row in table.iter_rows()).encode()
            data += b"".join(
                value.encode() for name in table.columns for value in sorted(map(str, table[name].unique()))
            )
        found[str(path.relative_to(store))] = data
    return found


def traces(store: Path) -> list[str]:
    """Files that hold an id or a profile value of a planted user, in any spelling."""
    forms = ("plänted", "pl\\u00e4nted", "pl\\xe4nted", "plänted".encode("utf-16-le").decode("latin-1"))
    return [name for name, data in bytes_of(store).items() if any(form.encode() in data for form in forms)]


def all_of(store: Store) -> dict[str, Artifact]:
    return {artifact.ref: artifact for artifact in store.artifacts()}


@pytest.fixture
def forgotten(planted: Path, tmp_path: Path) -> tuple[Store, Store, dict[str, Any]]:
    """(the store as it was, the store without the planted users, what the command said)."""
    shutil.copytree(planted, tmp_path / "store")
    said = done("artifacts", "forget", *PLANTED, "--apply", store=tmp_path / "store")
    return Store(planted), Store(tmp_path / "store"), said


def test_no_byte_of_the_store_holds_an_id_or_an_event(forgotten: tuple[Store, Store, dict[str, Any]]) -> None:
    before, after, _ = forgotten
    assert len(traces(before.root)) > 10  # the search finds them where they are
    assert traces(after.root) == []
    for artifact in after.artifacts("dataset"):
        times = Dataset(artifact).events["time_us"]
        assert not (times % 3_600_000_000 == ODD * 1_000_000 + START % 3600 * 1_000_000).any()
        assert artifact.read_table("rejects.parquet").height == 0
    number = {artifact.read_table("users.parquet").filter(events=0).height for artifact in after.artifacts("dataset")}
    assert number == {N_PLANTED}
    for artifact in after.artifacts("cloud"):
        if artifact.config.get("model") == "bpr":
            gone = Dataset(artifact.input("dataset")).users.filter(events=0)["user_index"].to_list()
            table = artifact.read_tensors("model.safetensors")["user_table"]
            assert not table[gone].any() and table.any()


def test_others_patches_and_weights_stay_to_the_bit(forgotten: tuple[Store, Store, dict[str, Any]]) -> None:
    before, after, said = forgotten
    new = {row["old"]: row["new"] for row in said["artifacts"]}
    old, own = PatchSet(before.resolve("patches@1")), PatchSet(after.resolve(new["patches@1"]))
    others = torch.tensor(old.cloud.dataset.users.filter(~pl.col("user_id").is_in(PLANTED))["user_index"].to_list())
    for was, now in zip(old.codes(), own.codes(), strict=True):
        assert torch.equal(was[others], now[others])
    assert old.codes()[1].sum() > own.codes()[1].sum() == own.facts["kept"]
    kept = old.users.filter(~pl.col("user_id").is_in(PLANTED))
    assert own.users.equals(kept)
    for name in ("cloud@1", "cloud@2"):
        assert before.resolve(name).read("model.safetensors") == after.resolve(new[name]).read("model.safetensors")


def test_names_references_and_lineage_follow(forgotten: tuple[Store, Store, dict[str, Any]]) -> None:
    before, after, said = forgotten
    new = {row["old"]: row["new"] for row in said["artifacts"]}
    assert all(problem == {} for problem in (artifact.verify() for artifact in after.artifacts()))
    for name, old in (("cloud@base", "cloud@1"), ("cloud@release", "cloud@2")):
        assert after.resolve(name).ref == new[old]
    assert new.pop("evaluation@2") is None  # of the bundle
    for kind in ("dataset", "cloud", "patches", "memory", "recommendations", "tuning"):
        assert new[before.latest(kind).ref] == after.latest(kind).ref
        assert len(after.numbers(kind)) == len(before.numbers(kind))
        assert min(after.numbers(kind)) > max(before.numbers(kind))  # a number is never given again
    assert after.numbers("bundle") == [] and new["bundle@1"] is None
    ids = {artifact.id for artifact in after.artifacts()}
    for artifact in after.artifacts():
        given = [one for one in artifact.inputs.values() if one.kind not in ("raw", "bundle")]
        assert all(one.id in ids for one in given), artifact.ref
    trials = after.latest("tuning").read_table("trials.parquet")
    for reference in (*trials["artifact"], *trials["evaluation"]):
        assert after.resolve(reference)
    listed = done("artifacts", "list", store=after.root)
    assert not any(row["problem"] for row in listed["artifacts"])


def test_every_stage_goes_on_and_makes_what_it_makes_anew(forgotten: tuple[Store, Store, dict[str, Any]]) -> None:
    _, after, said = forgotten
    root = after.root
    assert not done("train", *TRAIN, store=root)["reused"]  # weights that learned from them are no answer
    made = done("recommend", "patches@latest", "--threads=1", store=root)
    assert "(forgotten" not in str(after.resolve(made["ref"]).read_table("lists-00000.parquet")["user_id"].to_list())
    done("evaluate", "cloud@base", "patches@latest", *EVALUATE, store=root)
    done("patch", *PATCH, "--cloud=cloud@base", store=root)
    assert dcclctl("audit", "dataset@latest", store=root).exit_code == 0
    audited = dcclctl("audit", "cloud@base", store=root)
    assert audited.exit_code == 0 and "forgotten since" in audited.output, audited.output
    assert dcclctl("audit", "memory@latest", store=root).exit_code == 0
    for row in said["artifacts"]:
        assert not row["stays"] or row["command"].startswith("dcclctl ")
    assert {row["old"].partition("@")[0] for row in said["artifacts"] if row["stays"]} >= {"cloud", "memory", "patches"}
    # the same log gives the dataset without them
    again = done("artifacts", "forget", *PLANTED, "--apply", store=root)
    assert again["artifacts"] == [] and again["unknown"] == sorted(PLANTED)
    assert traces(root) == []


def test_nothing_is_done_without_apply(planted: Path) -> None:
    before = bytes_of(planted)
    said = done("artifacts", "forget", PLANTED[3], "u5", "nobody", store=planted)
    assert said["unknown"] == ["nobody"] and not said["applied"] and len(said["artifacts"]) > 8
    own = {name: data for name, data in bytes_of(planted).items() if not name.startswith("leases/")}
    assert own == {name: data for name, data in before.items() if not name.startswith("leases/")}
    assert "to do it, add --apply" in dcclctl("artifacts", "forget", "u5", store=planted).stderr


def test_a_stopped_one_is_finished_by_the_same_call(planted: Path, tmp_path: Path, monkeypatch: Any) -> None:
    commit = Store.adding
    for stop in (1, 4, 9):
        root = tmp_path / f"store{stop}"
        shutil.copytree(planted, root)
        calls = iter(range(1, 100))

        def adding(self: Store, *given: Any, calls: Any = calls, stop: int = stop, **more: Any) -> Any:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return commit(self, *given, **more)

        with monkeypatch.context() as patching, pytest.raises(KeyboardInterrupt):
            patching.setattr(Store, "adding", adding)
            forget(Store(root), PLANTED, apply=True)
        assert all(not artifact.verify() for artifact in Store(root).artifacts())
        forget(Store(root), PLANTED, apply=True)
        assert traces(root) == []
        assert Store(root).resolve("cloud@release").facts["forgotten"] == N_PLANTED


@pytest.mark.parametrize("stop", [2, 5, 10])
def test_one_that_is_stopped_while_it_deletes_is_finished_too(
    stop: int, planted: Path, forgotten: tuple[Store, Store, dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(planted, tmp_path / "stopped")
    trash, calls = Store.trash, iter(range(1, 100))

    def stopping(self: Store, *given: Any) -> Path:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return trash(self, *given)

    with monkeypatch.context() as patching, pytest.raises(KeyboardInterrupt):
        patching.setattr(Store, "trash", stopping)
        forget(Store(tmp_path / "stopped"), PLANTED, apply=True)
    forget(Store(tmp_path / "stopped"), PLANTED, apply=True)
    # what holds the users by number only, a memory or a factor model, is not left behind
    ids = [{artifact.id for artifact in store.artifacts()} for store in (Store(tmp_path / "stopped"), forgotten[1])]
    assert ids[0] == ids[1]
    assert traces(tmp_path / "stopped") == []


def test_what_another_command_uses_is_not_deleted_under_it(planted: Path, tmp_path: Path) -> None:
    shutil.copytree(planted, tmp_path / "store")
    other = Store(tmp_path / "store")
    used = other.resolve("patches@1")
    result = dcclctl("artifacts", "forget", "u5", "--apply", store=other.root)
    assert result.exit_code == 3 and "patches@1" in result.stderr
    assert used.verify() == {}


def test_other_datasets_stay_and_the_newest_stays_the_newest(planted: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(planted, root)
    other = write_log(tmp_path / "other")
    made = done("ingest", other, store=root)
    model = done("train", "--dataset", made["ref"], *TRAIN, store=root)
    said = done("artifacts", "forget", *PLANTED, "--apply", store=root)
    store = Store(root)
    assert store.latest("dataset").id == made["id"] and store.latest("cloud").id == model["id"]
    assert [row["old"] for row in said["moved"]] == [made["ref"], model["ref"]]


def test_a_damaged_artifact_stops_it_before_anything_is_done(planted: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(planted, root)
    path = Store(root).resolve("memory@1").path / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(b"{}")
    result = dcclctl("artifacts", "forget", "u5", "--apply", store=root)
    assert result.exit_code == 3 and "artifacts rm memory@1" in result.stderr
    assert Store(root).numbers("dataset") == [1]
