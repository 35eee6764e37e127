"""JSON lines and Parquet: values become the text that a person would write."""

import datetime as dt
import json
from pathlib import Path

import polars as pl
import pytest

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.formats import detect_log
from dcclctl.logs.reader import batches
from dcclctl.logs.sources import identify


def texts(path: Path, *columns: str, lists: tuple[str, ...] = ()) -> list[tuple[str | None, ...]]:
    """The wanted columns of a file as text."""
    source = identify(path)
    layout = detect_log(source, IngestConfig())
    return [row for batch, _ in batches(source, layout, list(columns), lists) for row in batch.frame.iter_rows()]


def test_json_numbers_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"user_id": 12345678901234567890123, "item_id": 1.50, "timestamp": 1e9, "x": "\\u00e9"}\n'
        '{"user_id": "a\\tb", "item_id": true, "timestamp": null, "x": "{[\\"]}"}\n'
    )
    assert texts(path, "user_id", "item_id", "timestamp", "x") == [
        ("12345678901234567890123", "1.50", "1e9", "é"),
        ("a\tb", "true", None, '{["]}'),
    ]


def test_json_brackets_in_a_text_are_not_nesting(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"user_id": '["\\' + "[{" * 100, "item_id": "i", "timestamp": 5}) + "\n")
    assert texts(path, "item_id") == [("i",)]


def test_json_object_over_many_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"user_id": "u", "item_id": "i", "timestamp": 5}, indent=1))
    with pytest.raises(DataError, match="over many lines") as caught:
        texts(path, "user_id")
    assert "jq -c" in caught.value.remedy


def test_json_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = {"user_id": "u", "item_id": "i", "timestamp": 5}
    bad = ["[1]", json.dumps(good | {"user_id": {"id": 1}}), json.dumps(good | {"user_id": "u" * 70_000}), "null"]
    path.write_text("\n".join([json.dumps(good), *bad]))
    source = identify(path)
    found = [batch for batch, _ in batches(source, detect_log(source, IngestConfig()), ["user_id"])]
    assert [reject.reason for batch in found for reject in batch.rejects] == [
        *("broken-json", "nested-value", "field-too-long", "broken-json")
    ]


def test_parquet_types_become_text(tmp_path: Path) -> None:
    noon = dt.datetime(2020, 1, 1, 12, 0, 0, 250_000)
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {
            "user_id": [7],
            "item_id": [b"raw"],
            "timestamp": pl.Series([noon]).dt.replace_time_zone("Europe/Paris"),
            "local": [noon],
            "score": [2.5],
            "tags": [["a", "b"]],
        }
    ).write_parquet(path)
    found = texts(path, "user_id", "item_id", "timestamp", "local", "score", "tags", lists=("tags",))[0]
    assert found[:2] == ("7", "raw")
    assert dt.datetime.fromisoformat(str(found[2])) == dt.datetime(2020, 1, 1, 11, 0, 0, 250_000, tzinfo=dt.UTC)
    assert dt.datetime.fromisoformat(str(found[3])) == noon
    assert found[4:] == ("2.5", '["a", "b"]')


def test_parquet_rejects_show_their_row(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [None]}).write_parquet(path)
    source = identify(path)
    batch, _ = next(batches(source, detect_log(source, IngestConfig()), ["user_id", "timestamp"]))
    assert batch.raw(0) == (None, '{"user_id": "u", "timestamp": null}')


def test_a_field_that_the_struct_does_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": [{"id": 1}], "item_id": ["i"], "timestamp": [5]}).write_parquet(path)
    for column in ("user_id.name", "item_id.id"):
        with pytest.raises(UsageError, match=f"no column '{column}'"):
            detect_log(identify(path), IngestConfig(map={"user": column}))
