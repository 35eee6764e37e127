"""Tables are what tables.py says, or they are not written."""

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from world import World

from dcclctl import tables
from dcclctl.store.manifest import KINDS
from dcclctl.store.store import Store
from dcclctl.tables import EVENTS, PER_USER, SERVED_BY, TABLES, USERS, Column, Table, check_table

PACKAGE = Path(tables.__file__).parent


def per_user(**changes: object) -> pl.DataFrame:
    row = {"subject": "a", "user_index": 0, "user_id": "u0", "group": "tail", "activity_group": 3, "events": 2}
    values = {**row, "served_by": "cloud", "ndcg@10": 0.5, "auc": None} | changes
    frame = pl.DataFrame({name: [value] for name, value in values.items()})
    return frame.cast({**PER_USER.schema(), "ndcg@10": pl.Float64, "auc": pl.Float64})


@pytest.mark.parametrize("by", ["patch", "memory", "encoder", "cloud"])
def test_a_table_that_fits_is_written(by: str, tmp_path: Path) -> None:
    table = per_user(served_by=by, activity_group=None)
    with Store(tmp_path).begin("evaluate", "evaluation", {}, 0, {}) as work:
        work.write_table("per_user.parquet", table)
        assert work.commit({}).read_table("per_user.parquet").equals(table)


WRONG = {
    "another type": (per_user().cast({"user_index": pl.Int64}), "'user_index' is Int64, not Int32"),
    "a missing column": (per_user().drop("served_by"), "has the columns"),
    "another order": (per_user().select("user_index", "subject", pl.exclude("user_index", "subject")), "starts with"),
    "a missing value": (per_user(user_id=None), "'user_id' has 1 nulls"),
    "another word": (per_user(served_by="toaster"), "'served_by' has 'toaster', which is none of patch, memory"),
    "another number": (per_user(activity_group=20), "'activity_group' has 20"),
    "NaN": (per_user(auc=float("nan")), "'auc' has NaN"),
    "infinity": (per_user(auc=float("inf")), "'auc' has NaN or infinity"),
    "an unknown column": (per_user().with_columns(pl.lit(1.0).alias("My Metric")), "'My Metric' is not in its schema"),
    "a metric of another type": (per_user().with_columns(pl.lit(1).alias("hr@5/1000")), "'hr@5/1000' is Int32, not"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_does_not_fit_is_not_written(name: str, tmp_path: Path) -> None:
    table, said = WRONG[name]
    with Store(tmp_path).begin("evaluate", "evaluation", {}, 0, {}) as work:
        with pytest.raises(ValueError, match=rf"evaluation's per_user\.parquet.*{re.escape(said)}"):
            work.write_table("per_user.parquet", table)
        assert not work.finished("per_user.parquet")


@pytest.mark.parametrize(("kind", "name"), [("evaluation", "x.parquet"), ("cloud", "per_user.parquet")])
def test_a_table_that_nobody_described_is_not_written(kind: str, name: str, tmp_path: Path) -> None:
    with (
        Store(tmp_path).begin("train", kind, {}, 0, {}) as work,
        pytest.raises(ValueError, match=f"{name} is no table of kind {kind}"),
    ):
        work.write_table(name, per_user())


def test_columns_by_pattern_may_be_any_number() -> None:
    row = {"user_index": 0, "user_id": "u", "events": 1, "events_before_test": 1, "group": "head", "activity_group": 0}
    users = pl.DataFrame([row], schema=USERS.schema())
    USERS.check("users", users)
    profile = pl.Series("profile_age band", [2], dtype=pl.Int32)
    USERS.check("users", users.with_columns(profile, profile.alias("profile_x")))
    with pytest.raises(ValueError, match="'profil_x'"):
        USERS.check("users", users.with_columns(profile.alias("profil_x")))
    with pytest.raises(ValueError, match=r"'profile_age band' has 1 nulls"):
        USERS.check("users", users.with_columns(profile.replace(2, None)))
    EVENTS.check("events", pl.DataFrame(schema=EVENTS.schema()))


@pytest.mark.parametrize("name", [name for name, value in vars(tables).items() if isinstance(value, Table)])
def test_every_schema_can_be_made(name: str) -> None:
    """Its types exist under these names, and what may be in a column is of the column's type."""
    table: Table = getattr(tables, name)
    empty = pl.DataFrame(schema=table.schema())
    table.check(name, empty)
    columns: list[Column] = [*table.columns.values(), *table.more.values()]
    for column in columns:
        assert pl.Series(column.values, dtype=tables.polars_type(column.type)).to_list() == list(column.values)


def test_the_registry_has_the_tables_that_the_program_writes_and_no_others() -> None:
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    names = set(re.findall(r"\bwork\.write_table[(,]\s*(\S+?),", source))
    files = {name.strip('"').replace("shard_name(shard)", "lists-*.parquet") for name in names}
    files = files - {"name", "TABLE_FILE.format(part)"} | {"events.parquet", "events-*.parquet", "scored-*.parquet"}
    assert files == {name for _, name in TABLES}
    assert {kind for kind, _ in TABLES} <= set(KINDS)


def test_what_a_pipeline_has_written_fits(world: World) -> None:
    written = [(artifact, name) for artifact in world.store.artifacts() for name in artifact.manifest["tables"]]
    assert len(written) > 8
    for artifact, name in written:
        check_table(artifact.kind, name, artifact.read_table(name))


def test_what_serves_users_is_named_in_one_place() -> None:
    source = "\n".join(path.read_text() for path in (PACKAGE / "devices").rglob("*.py"))
    named = set(re.findall(r'\bby\[.*\] = "(\w+)"|np\.full\([\w.()]+, "(\w+)"', source))
    assert {name for pair in named for name in pair if name} == set(SERVED_BY)


def test_importing_the_tables_loads_no_polars() -> None:
    code = "import sys, dcclctl.tables, dcclctl.store.work; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
