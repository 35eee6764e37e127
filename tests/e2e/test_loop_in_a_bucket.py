"""A store in a bucket: the commands, the same artifacts as on a disk."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from buckets import S3Server
from world import DISTILL, World, dcclctl, done, five_stages, ingest

from dcclctl.store.bucket import Bucket


def test_the_whole_loop_gives_the_artifacts_that_a_disk_has(world: World, bucket: str, tmp_path: Path) -> None:
    assert five_stages(tmp_path / "log", bucket) == world.ids
    for words in (
        ("score", "patches", "--user=u1"),
        ("artifacts", "lineage", "evaluation"),
        ("artifacts", "verify"),
        ("artifacts", "diff", "cloud@1", "cloud@2"),
    ):
        assert done(*words, store=bucket) == done(*words, store=world.root)
    assert done("distill", *DISTILL, store=bucket)["reused"]
    done("artifacts", "tag", "cloud@1", "base", store=bucket)
    listed = done("artifacts", "list", store=bucket)
    assert listed["store"] == bucket
    assert [row["ref"] for row in listed["artifacts"]] == [
        "dataset@1",
        "cloud@1",
        "cloud@2",
        "patches@1",
        "evaluation@1",
    ]
    shown = done("artifacts", "show", "cloud@base", store=bucket)
    assert (shown["id"], shown["path"]) == (world.ids["train"], f"{bucket}/cloud/v/000001")
    done("artifacts", "rm", "evaluation@1", store=bucket)
    assert done("artifacts", "gc", "--keep=1", "--apply", store=bucket)["artifacts"] == []


def holding(user: str, bucket: str, cache: Path) -> list[bytes]:
    """The objects of a store, and the files of this machine's cache, that hold a user."""
    place = Bucket(bucket)
    found = [place.read(place.root / name) for name, size in place.sizes(place.root).items() if size]
    found += [path.read_bytes() for path in cache.rglob("*") if path.is_file()]
    assert len(found) > 15
    return [data for data in found if re.search(rf"\b{user}\b", text_of(data))]


def text_of(data: bytes) -> str:
    return str(pl.read_parquet(data).rows()) if data[:4] == b"PAR1" else data.decode("latin-1")


def test_a_forgotten_user_is_in_no_object_and_no_copy(bucket: str, tmp_path: Path) -> None:
    ingest(tmp_path / "log", bucket)
    done("memory", store=bucket)
    assert len(holding("n3", bucket, tmp_path / "cache")) >= 2
    found = done("artifacts", "forget", "n3", "--apply", store=bucket)
    assert [row["new"] for row in found["artifacts"]] == ["dataset@2", "memory@2"]
    assert [row["ref"] for row in done("artifacts", "list", store=bucket)["artifacts"]] == ["dataset@2", "memory@2"]
    assert holding("n3", bucket, tmp_path / "cache") == []


def test_an_archive_goes_from_a_disk_to_a_bucket_and_back(world: World, bucket: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there.tar", tmp_path / "back.tar"
    done("artifacts", "export", "patches@1", "-o", there, store=world.root)
    done("artifacts", "import", there, store=bucket)
    done("artifacts", "export", "patches@1", "-o", back, store=bucket)
    assert back.read_bytes() == there.read_bytes()


def test_doctor_looks_at_the_bucket(bucket: str, s3_server: S3Server) -> None:
    checks = {check["name"]: check for check in done("doctor", store=bucket)["checks"]}
    assert {"space", "bucket", "artifacts"} <= checks.keys() and "rename" not in checks
    assert checks["bucket"]["said"] == f"{bucket} keeps the conditions of writes"
    s3_server.fault = lambda request: "403 Forbidden" if request["REQUEST_METHOD"] == "PUT" else None
    checks = {check["name"]: check for check in done("doctor", store=bucket)["checks"]}
    assert "only read" in checks["bucket"]["said"]
    failed = dcclctl("doctor", "--json", store="s3://nothing/here")
    assert failed.exit_code == 3
    faults = [check for check in json.loads(failed.stdout)["checks"] if not check["ok"]]
    assert [check["said"] for check in faults] == ["there is no bucket nothing"]


@pytest.mark.parametrize(
    "command", [("train",), ("artifacts", "list"), ("score", "patches", "--user=u1"), ("artifacts", "gc")]
)
def test_a_bucket_that_cannot_be_used_is_a_message(
    bucket: str, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    result = dcclctl(*command, store="s3://nothing/here")
    assert (result.exit_code, result.stderr.splitlines()[-2:]) == (
        3,
        ["error: there is no bucket nothing", "  Make it, or mend --store, AWS_REGION or AWS_ENDPOINT_URL."],
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    result = dcclctl(*command, store=bucket)
    assert result.exit_code == 2
    assert "error: there are no credentials for the bucket models in the environment\n" in result.stderr
