"""A store in a bucket: commits that meet, deaths in the middle, locks, copies, and what can go wrong outside."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from buckets import LOST, S3Server
from store_worlds import make_cloud, make_dataset

import dcclctl
from dcclctl.errors import ArtifactError, BucketError, DcclError, UsageError
from dcclctl.store import bucket as module
from dcclctl.store import store as place_of_store
from dcclctl.store.bucket import Bucket
from dcclctl.store.disk import LocalDisk
from dcclctl.store.hygiene import collect
from dcclctl.store.snapshot import Snapshot
from dcclctl.store.store import Store


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: str) -> Callable[[str], Bucket]:
    """Name of a machine → the bucket as that machine sees it, with a cache of its own."""

    def of(name: str) -> Bucket:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return Bucket(bucket)

    return of


def on(place: Bucket, **given: Any) -> Store:
    return Store(place.root, place, **given)


def objects(bucket: str) -> dict[str, int]:
    """Every object of the store → its size."""
    place = Bucket(bucket)
    return place.sizes(place.root)


# -- commits


COMMIT_TWO = """
import sys
from dcclctl.store.store import Store
for config in ({"by": sys.argv[2]}, {"common": True}):
    with Store(sys.argv[1]).begin("train", "cloud", config, 0, {}) as work:
        if work.reused:
            continue
        for file in range(3):
            work.write_json(f"part-{file}.json", [config] * 50)
        print(work.commit({"files": 3}).id)
"""


def test_sixteen_processes_commit_while_another_one_reads(bucket: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(dcclctl.__file__).parents[1])}
    committers = [
        subprocess.Popen(
            [sys.executable, "-c", COMMIT_TWO, bucket, str(number)],
            env=environment | {"XDG_CACHE_HOME": str(tmp_path / f"machine-{number}")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(16)
    ]
    seen: set[str] = set()
    while any(committer.poll() is None for committer in committers):
        reader = Store(bucket, leases=False)
        for number in reader.numbers("cloud"):
            artifact = reader.load("cloud", number)
            if artifact.id not in seen:
                assert artifact.verify() == {}, f"{artifact.ref} was seen before it was whole"
                seen.add(artifact.id)
        time.sleep(0.1)  # the server is a thread of this process, and answers the sixteen too
    printed = [line for committer in committers for line in committer.communicate()[0].split()]
    assert [committer.returncode for committer in committers] == [0] * 16
    store = Store(bucket)
    versions = store.artifacts("cloud")
    assert sorted(artifact.id for artifact in versions) == sorted(printed), "a commit was lost, or made by nobody"
    assert len(printed) == len(set(printed)) == 16 + 1, "the common one was computed more than once"
    assert [store.verify("cloud", number) for number in store.numbers("cloud")] == [{}] * len(versions)
    assert seen <= set(printed)


class Mortal(Bucket):
    """Dies instead of its n-th request, from 0; from then on it can ask nothing."""

    def __init__(self, url: str, fatal: int = -1) -> None:
        super().__init__(url)
        self.requests, self.fatal = 0, fatal
        self._counting = threading.Lock()

    @contextmanager
    def _asking(self, path: Path, verb: str) -> Iterator[None]:
        with self._counting:
            self.requests += 1
            if self.requests == self.fatal + 1:
                raise Killed
            if 0 <= self.fatal < self.requests:
                raise BucketError("dead")
        with super()._asking(path, verb):
            yield


def test_dying_at_every_request_leaves_all_or_something_to_make_again(bucket: str, tmp_path: Path) -> None:
    clean = make_dataset(Store(tmp_path / "clean")).id
    store = on(whole := Mortal(f"{bucket}/whole"))
    make_dataset(store)
    requests = whole.requests
    assert requests > 15
    for fatal in range(requests):
        url = f"{bucket}/{fatal}"
        with pytest.raises((Killed, BucketError)):
            make_dataset(on(Mortal(url, fatal)))
        store = Store(url)
        before = store.numbers("dataset")
        assert [store.verify("dataset", number) for number in before] == [{}] * len(before)
        assert make_dataset(store).id == clean, "the same command makes it"
        assert len(store.numbers("dataset")) == 1
        del store
        collect(Store(url), apply=True)
        files = {"events.parquet", "manifest.json", "manifest.sha256", "rejects.json", "run.json"}
        left = {name: size for name, size in objects(url).items() if not name.startswith("leases/")}
        (committed,) = {name.split("/")[2] for name, size in left.items() if size}
        marks = {name for name, size in left.items() if size == 0}
        assert set(left) - marks == {f"dataset/v/{committed}/{name}" for name in files}
        assert marks <= {"dataset/v/000001/manifest.json"}, "gc leaves the mark of the number that the dead one took"


MAKE_A_DATASET = """
import sys
from dcclctl.store.store import Store
with Store(sys.argv[1]).begin("ingest", "dataset", {}, 0, {}) as work:
    for name in ("a", "b", "c"):
        work.write_json(f"{name}.json", [name] * 9)
    print(work.commit({}).ref)
"""


def test_an_upload_that_is_killed_is_seen_by_nobody_and_collected(bucket: str, s3_server: S3Server) -> None:
    def kill(request: dict[str, Any]) -> str | None:
        if request["PATH_INFO"].endswith("/b.json"):
            committer.kill()
            return "500 Nobody listens"
        return None

    command = [sys.executable, "-c", MAKE_A_DATASET, bucket]
    environment = os.environ | {"PYTHONPATH": str(Path(dcclctl.__file__).parents[1])}
    s3_server.fault = kill
    committer = subprocess.Popen(command, env=environment)
    assert committer.wait(60) == -signal.SIGKILL
    s3_server.fault = lambda request: None
    store = Store(bucket)
    assert store.numbers("dataset") == []
    with pytest.raises(UsageError, match="there is no dataset in the store s3://"):
        store.latest("dataset")
    place = store.folder("dataset", 1)
    assert list(store.disk.sizes(place))[:1] == ["a.json"]
    done = collect(store, apply=False)
    assert done.trash == [place]
    assert store.disk.exists(place / "a.json"), "it only tells"
    started = time.monotonic()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout == "dataset@2\n", again.stderr
    assert time.monotonic() - started < module.EXPIRES, "the lock of the dead process of this machine was waited for"
    collect(store, apply=True)
    assert store.disk.sizes(place) == {"manifest.json": 0}
    assert store.verify("dataset", 2) == {}
    del store
    leases = Bucket(bucket).names(Bucket(bucket).root / "leases")
    assert [name for name in leases if name.endswith(".lock")] == [], "each process has given its lease back"


def test_a_commit_that_gc_took_for_dead_gets_another_number(machine: Callable[[str], Bucket]) -> None:
    place, collector = machine("one"), machine("two")

    class Slow(Bucket):
        """Its lease expires during its upload, and another machine collects what it has uploaded."""

        def _upload(self, work: Path, target: Path) -> None:
            super()._upload(work, target)
            if target.name == "000001":
                assert collector.remains(collector.root, set()) == [collector.root / "dataset" / "v" / "000001"]
                collector.remove(collector.root / "dataset" / "v" / "000001")

    made = make_dataset(on(Slow(place.url)))
    assert (made.number, made.verify()) == (2, {})
    assert on(collector).numbers("dataset") == [2]
    assert collector.sizes(collector.root / "dataset" / "v" / "000001") == {"manifest.json": 0}


def test_a_running_commit_is_not_collected(machine: Callable[[str], Bucket]) -> None:
    place, other = machine("one"), machine("two")

    class Watched(Bucket):
        def _upload(self, work: Path, target: Path) -> None:
            super()._upload(work, target)
            found.append(collect(on(other), apply=True))

    found: list[Any] = []
    made = make_dataset(on(Watched(place.url)))
    assert (made.number, made.verify(), found[0].trash) == (1, {}, [])


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "hygiene.lock", "events.parquet"])
def test_an_answer_that_is_lost_commits_nothing_twice(bucket: str, s3_server: S3Server, name: str) -> None:
    lost: list[str] = []

    def lose(request: dict[str, Any]) -> str | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith(name) and not lost:
            lost.append(name)
            return LOST
        return None

    s3_server.fault = lose
    store = Store(bucket)
    made = make_dataset(store)
    assert lost == [name]
    # a claim whose answer was lost is left alone: an equal one may be another process's
    assert store.numbers("dataset") == [2 if name == "manifest.sha256" else 1]
    assert made.verify() == {}


@pytest.mark.parametrize("status", ["409 Conflict", "503 Slow Down"])
def test_a_service_that_is_busy_is_asked_again(bucket: str, s3_server: S3Server, status: str) -> None:
    refused: set[str] = set()

    def refuse(request: dict[str, Any]) -> str | None:
        """Each file that is written on a condition once, whatever its number."""
        name = request["PATH_INFO"].rpartition("/")[2].partition("-")[0]
        if "HTTP_IF_NONE_MATCH" not in request or name in refused or name == "probe":
            return None
        refused.add(name)
        return status

    s3_server.fault = refuse
    store = Store(bucket)
    made = make_dataset(store)
    assert {"manifest.json", "manifest.sha256", "hygiene.lock"} <= refused
    assert store.artifacts() == [made]
    assert made.verify() == {}


def test_the_number_of_the_newest_is_not_given_again_after_it_was_deleted(bucket: str) -> None:
    store = Store(bucket)
    for rows in (1, 2):
        make_dataset(store, rows)
    folder = store.trash("dataset", 2)
    assert (store.numbers("dataset"), store.disk.exists(folder)) == ([1], False)
    store.empty_trash([folder])
    assert store.disk.sizes(folder) == {"manifest.json": 0}
    assert make_dataset(store, 3).number == 3


def test_a_deletion_that_was_killed_is_finished(bucket: str) -> None:
    store = Store(bucket)
    make_dataset(store, 1)
    folder = store.trash("dataset", 1)
    assert store.in_trash(set()) == [folder]
    assert collect(store, apply=True).trash == [folder]
    assert store.in_trash(set()) == []
    assert store.disk.sizes(folder) == {"manifest.json": 0}


# -- locks


def test_a_lock_excludes_another_machine_until_it_is_given_back(machine: Callable[[str], Bucket]) -> None:
    one, two = machine("one"), machine("two")
    held = one.try_lock(one.root / "x.lock")
    assert held is not None
    assert two.try_lock(two.root / "x.lock") is None
    waits: list[str] = []

    def give_back() -> None:
        waits.append("waited")
        held.release()

    with two.lock(two.root / "x.lock", give_back):
        assert one.try_lock(one.root / "x.lock") is None
    assert waits == ["waited"]
    assert not one.exists(one.root / "x.lock")


def test_a_lock_is_renewed_and_only_one_that_is_not_is_taken_over(
    machine: Callable[[str], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPIRES", 2.0)
    monkeypatch.setattr(module, "RENEWED", 0.3)
    one, two = machine("one"), machine("two")
    held = one.try_lock(one.root / "x.lock")
    assert held is not None
    time.sleep(3.5)
    assert two.try_lock(two.root / "x.lock") is None, "it was renewed"
    monkeypatch.setattr(one, "replace", lambda *_: one._wait_forever())  # its machine falls asleep
    one._wait_forever = threading.Event().wait  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    taken = None
    while taken is None and time.monotonic() < deadline:
        time.sleep(0.2)
        taken = two.try_lock(two.root / "x.lock")
    assert taken is not None
    held.release()
    assert two.exists(two.root / "x.lock"), "a late holder must not give back what another one holds"
    taken.release()
    assert not two.exists(two.root / "x.lock")


def test_an_artifact_in_use_on_another_machine_is_kept(machine: Callable[[str], Bucket]) -> None:
    user, collector = on(machine("one")), on(machine("two"))
    cloud = make_cloud(user, make_dataset(user, 1))
    make_cloud(user, make_dataset(user, 2))
    done = collect(collector, keep=1, apply=True)
    assert (done.versions, [artifact.ref for artifact in done.in_use]) == ([], ["dataset@1", "cloud@1"])
    del user, cloud
    done = collect(collector, keep=1, apply=True)
    assert [artifact.ref for artifact in done.versions] == ["dataset@1", "cloud@1"]


# -- copies on this machine


def test_a_file_is_fetched_once(machine: Callable[[str], Bucket], s3_server: S3Server) -> None:
    make_dataset(on(machine("one")))
    name = "/events.parquet"
    for reader, expected in ((on(machine("two")), 1), (on(machine("two")), 0), (on(machine("one")), 0)):
        asked = len(s3_server.requests)
        artifact = reader.latest("dataset")
        artifact.read_table("events.parquet")
        assert artifact.file("events.parquet").is_file()
        gets = [path for method, path in s3_server.requests[asked:] if method == "GET" and path.endswith(name)]
        assert len(gets) == expected


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_an_error(machine: Callable[[str], Bucket]) -> None:
    store = on(machine("one"))
    made = make_dataset(store)
    copy = made.file("events.parquet")
    copy.chmod(0o644)
    copy.write_bytes(b"x" * copy.stat().st_size)
    assert made.verify() == {}, "verify looks at the bucket"
    assert made.read_table("events.parquet").height == 5
    data = bytearray(copy.read_bytes())
    data[30] ^= 1
    store.disk.put(made.path / "events.parquet", bytes(data))
    assert made.verify() == {"events.parquet": "does not have the SHA-256 that was recorded for it"}
    assert made.read_table("events.parquet").height == 5, "the copy of this machine is whole"
    other = on(machine("two")).latest("dataset")
    with pytest.raises(ArtifactError, match=r"dataset@1 is damaged: events\.parquet does not have .* \(in s3://"):
        other.read_table("events.parquet")
    assert not (other.folder / "events.parquet").exists()


def test_small_files_that_are_huge_are_not_read(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(bucket)
    made = make_dataset(store)
    store.disk.put(made.path / "run.json", b"{}" + b" " * 2**21)
    assert Snapshot(store).artifacts()[0].run == {}
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    monkeypatch.setattr(place_of_store, "MAX_BYTES", 100)
    (error,) = Snapshot(Store(bucket)).damaged.values()
    assert "manifest.json is larger than 100 bytes" in error.what


def test_a_large_file_is_read_in_parts(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PART", 1000)
    data = bytes(range(256)) * 50
    place = Bucket(bucket)
    path = place.root / "cloud" / "v" / "000001"
    place.put(path / "x.bin", data)
    with place.open(path, "x.bin") as file:
        assert file.read() == data
        assert file.seek(-300, os.SEEK_END) == len(data) - 300
        assert file.read(7) == data[-300:-293]
        assert file.tell() == len(data) - 293
    place.fetch(path, "x.bin", "f" * 64)
    assert (place.copies(path, "f" * 64) / "x.bin").read_bytes() == data


# -- what can go wrong outside


def without(*headers: str) -> Callable[[dict[str, Any]], None]:
    """A service that does not know these headers."""

    def fault(request: dict[str, Any]) -> None:
        for header in headers:
            request.pop(header, None)

    return fault


@pytest.mark.parametrize("header", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_bucket_that_ignores_conditions_is_refused(bucket: str, s3_server: S3Server, header: str) -> None:
    s3_server.fault = without(header)
    with pytest.raises(BucketError, match=r"ignores the conditions of writes") as caught:
        make_dataset(Store(bucket))
    assert "MinIO" in caught.value.remedy
    assert objects(bucket) == {}


def test_a_bucket_that_refuses_conditions_is_refused(bucket: str, s3_server: S3Server) -> None:
    s3_server.fault = lambda request: "501 Not Implemented" if "HTTP_IF_NONE_MATCH" in request else None
    with pytest.raises(BucketError, match=r"refuses conditional writes: .*501 Not Implemented"):
        make_dataset(Store(bucket))


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    for use in (Store.exists, make_dataset, lambda store: store.numbers("cloud")):
        with pytest.raises(BucketError, match="there is no bucket nothing") as caught:
            use(Store("s3://nothing/here"))
        assert "AWS_ENDPOINT_URL" in caught.value.remedy


def test_a_service_that_does_not_answer(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BucketError, match=r"cannot list s3://models/x: no answer at http://127.0.0.1:9") as caught:
        Store("s3://models/x").exists()
    assert "network" in caught.value.remedy


def test_wrong_credentials(bucket: str, s3_server: S3Server) -> None:
    s3_server.fault = lambda request: "403 Forbidden"
    with pytest.raises(BucketError, match=r"cannot list .*: 403 Forbidden") as caught:
        Store(bucket).exists()
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy


def test_credentials_that_only_read(bucket: str, s3_server: S3Server) -> None:
    made = make_dataset(Store(bucket))
    s3_server.fault = lambda request: (
        "403 Forbidden" if request["REQUEST_METHOD"] != "GET" and request["REQUEST_METHOD"] != "HEAD" else None
    )
    store = Store(bucket)
    assert store.resolve("dataset@1") == made
    assert store.resolve("dataset").read_table("events.parquet").height == 5
    with pytest.raises(BucketError, match="403 Forbidden"):
        make_dataset(store, 9)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/../x", "names no bucket"),
        ("s3://bucket/x?acl", "names no bucket"),
    ],
)
def test_what_is_no_url(bucket: str, url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Store(url)


def test_no_credentials_and_no_package(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(UsageError, match="no credentials for the bucket models") as caught:
            Store(bucket)
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match="a package that is not installed") as caught:
        Store(bucket)
    assert caught.value.remedy == "pip install 'dcclctl[s3]'"


def test_what_is_said_and_written_holds_no_secret(
    bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wholly-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half-secret")
    store = Store(bucket)
    make_cloud(store, make_dataset(store))
    place = Bucket(bucket)
    written = [place.read(place.root / name) for name in place.sizes(place.root)]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 15
    assert [data for data in written if b"-secret" in data] == []
    s3_server.fault = lambda request: "400 Bad Request"
    with pytest.raises(DcclError) as caught:
        Store(bucket).exists()
    assert "-secret" not in f"{caught.value} {caught.value.__cause__} {place.scratch} {vars(place)}"


def test_another_process_opens_the_same_store(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(bucket)
    made = make_dataset(store)
    assert Store(store.address).latest("dataset") == made
    with pytest.raises(RuntimeError), store.begin("train", "cloud", {}, 0, {}) as work:
        Store(store.address, leases=False).join(work.kind, work.key).write_json("by-another.json", 1)
        assert work.finished("by-another.json")
        raise RuntimeError
    assert Store("here").address == str(tmp_path / "here")


def test_a_url_as_a_path_names_the_same_store(bucket: str) -> None:
    assert Store(Path(bucket)).name == Store(bucket).name == bucket
    assert isinstance(Store("s3").disk, LocalDisk)
