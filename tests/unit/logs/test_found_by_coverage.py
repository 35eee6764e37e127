"""Files that coverage-guided bytes found, which ended with a traceback."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclctl.config import IngestConfig
from dcclctl.errors import DataError
from dcclctl.logs.parquet import schema_of
from dcclctl.logs.quarantine import Quarantine
from dcclctl.logs.sides import read_side
from dcclctl.logs.sources import identify
from dcclctl.stages.ingest import ingest
from dcclctl.store.store import Store


def test_a_column_beside_the_ids_that_is_called_id(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,id,age\nu1,7,old\nu2,8,young\n")
    table = read_side(identify(tmp_path / "users.csv"), IngestConfig(), "user", Quarantine())
    assert table.frame.columns == ["id", "age"]
    assert table.frame["id"].to_list() == ["u1", "u2"]
    assert table.remarks == ["users.csv: column 'id' is left out: the ids are in 'user_id'"]


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"usxr": ["u1"], "item": ["i1"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"usxr", b"us\x9dr"))
    with pytest.raises(DataError, match="not a whole Parquet file"):
        schema_of(identify(path))


def test_text_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    rows = {"user_id": ["uaaa", "u2"], "item_id": ["i1", "i2"], "timestamp": [1_600_000_000, 1_600_000_100]}
    pq.write_table(pa.table(rows), path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"uaaa", b"u\xff\xfea"))
    with pytest.raises(DataError, match="not a whole Parquet file"):
        ingest([path], Store(tmp_path / "store"))


def test_notes_on_a_column_that_are_no_text(tmp_path: Path) -> None:
    """polars would panic on them."""
    path = tmp_path / "log.parquet"
    user = pa.field("user_id", pa.string(), metadata={b"note": b"\xff\xfe"})
    others = [pa.field("item_id", pa.string()), pa.field("timestamp", pa.int64())]
    columns = [["u1", "u2"] * 10, [f"i{at}" for at in range(20)], [1_600_000_000 + at for at in range(20)]]
    pq.write_table(pa.table(columns, schema=pa.schema([user, *others])), path)
    assert ingest([path], Store(tmp_path / "store")).facts["events"] == 20
