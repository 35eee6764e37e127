"""Times: units, ISO texts and zones."""

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from dcclctl.errors import DataError, UsageError
from dcclctl.logs.batch import Batch
from dcclctl.logs.times import TimeColumn, parse_iso, remark_on_unit

NOW = "2100-01-01T00:00:00Z"


def read(
    texts: list[str], unit: str = "auto", timezone: str = ""
) -> tuple[TimeColumn, list[int], dict[str, list[int]]]:
    """The column, its times, and reason → rows."""
    column = TimeColumn(unit, timezone, NOW, "log.csv, column 'time'")
    batch = Batch(pl.DataFrame(), np.arange(1, len(texts) + 1), lambda row: (None, ""))
    times, refused = column.read(pl.Series(texts, dtype=pl.String), batch)
    return (
        column,
        times.tolist(),
        {reason: rows.nonzero()[0].tolist() for reason, rows in refused.items() if rows.any()},
    )


@pytest.mark.parametrize(
    ("text", "unit"),
    [("881250949", "s"), ("881250949000", "ms"), ("881250949000000", "us"), ("881250949000000000", "ns")],
)
def test_unit_is_inferred_from_the_size(text: str, unit: str) -> None:
    column, times, refused = read([text])
    assert column.unit == unit
    assert times == [881250949_000_000]
    assert refused == {}


def test_small_numbers_are_an_order() -> None:
    column, times, refused = read(["3", "1", "0"])
    assert (column.unit, times, refused) == ("ordinal", [3, 1, 0], {})


def test_declared_seconds_may_be_small() -> None:
    assert read(["5"], "s")[1] == [5_000_000]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-03-01T12:30:00Z", "2020-03-01T12:30:00+00:00"),
        ("2020-03-01 12:30:00.25+02:00", "2020-03-01T12:30:00.25+02:00"),
        ("2020-03-01T12:30:00-0530", "2020-03-01T12:30:00-05:30"),
        ("2020-03-01 12:30:00 UTC", "2020-03-01T12:30:00+00:00"),
        ("2020-03-01T12:30Z", "2020-03-01T12:30:00+00:00"),
    ],
)
def test_iso_with_a_zone(text: str, moment: str) -> None:
    expected = round(datetime.fromisoformat(moment).timestamp() * 1_000_000)
    assert read([text])[1] == [expected]


def test_local_times_take_the_zone_that_is_named() -> None:
    texts = ["2020-07-01 12:00:00", "2020-01-01", "2020-03-29 02:30:00", "2020-10-25 02:30:00", "2020-07-01T12:00:00Z"]
    _, times, refused = read(texts, timezone="Europe/Paris")
    zone = ZoneInfo("Europe/Paris")
    moments = [datetime(2020, 7, 1, 12, tzinfo=zone), datetime(2020, 1, 1, tzinfo=zone)]
    assert times[:2] == [round(moment.timestamp() * 1_000_000) for moment in moments]
    # Skipped by the clock change in March; in October the earlier of the two.
    assert refused == {"time-does-not-exist": [2]}
    assert times[3] == round(datetime.fromisoformat("2020-10-25T02:30:00+02:00").timestamp() * 1_000_000)
    assert times[4] - times[0] == 2 * 3600 * 1_000_000


def test_unreadable_iso_times_are_refused() -> None:
    assert read(["2020-01-01T00:00:00Z", "2020-13-01T00:00:00Z", "soon", ""])[2] == {"bad-time": [1, 2, 3]}


def test_huge_numbers_do_not_wrap_around() -> None:
    _, _, refused = read(["9223372036854775807", "-9223372036854775807", "99999999999999999999"], "s")
    assert refused == {"time-in-future": [0, 2], "time-not-positive": [1]}


def test_the_message_names_the_record() -> None:
    with pytest.raises(DataError, match="record 2: '1600000000000' is not a time in s"):
        read(["1600000000", "1600000000000"])


def test_settings_that_are_no_times() -> None:
    with pytest.raises(UsageError, match="no zone is called"):
        TimeColumn("auto", "Mars/Olympus", NOW, "")
    with pytest.raises(UsageError, match="is not a time"):
        parse_iso("tomorrow", "", "--now")
    assert parse_iso("1970-01-02", "", "--now") == 86_400_000_000
    assert parse_iso("1970-01-01T01:00:00", "Europe/Paris", "--periods") == 0


@pytest.mark.parametrize("first", ["2020-08-31T17:32:39Z", "20200831", "1600000000", "31 Aug 2020 10:00:00 GMT"])
def test_digits_of_other_scripts_are_no_time(first: str) -> None:
    # ٠٨/٣١/٢٠٢٠, an offset of ٠٢:٠٠, and a number
    odd = [
        "\u0660\u0668/\u0663\u0661/\u0662\u0660\u0662\u0660",
        "2020-08-31T17:32:39+\u0660\u0662:\u0660\u0660",
        "\u0661e9",
    ]
    assert read([first, *odd], timezone="UTC")[2] == {"bad-time": [1, 2, 3]}


@pytest.mark.parametrize(
    ("unit", "latest_us", "likely"),
    [
        ("ms", 1_600_000_000_000, "the times look like --time-unit s"),
        ("us", 1_600_000_000, "the times look like --time-unit s"),
        ("us", 1_600_000_000_000, "the times look like --time-unit ms"),
        (
            "s",
            4_000_000,
            "right if the times count from a start of their own; for order numbers say --time-unit ordinal",
        ),
    ],
)
def test_a_unit_that_puts_every_event_into_early_1970_is_remarked_on(unit: str, latest_us: int, likely: str) -> None:
    said = remark_on_unit(unit, latest_us)
    assert said.startswith(f"with --time-unit {unit} every event is before 1970-01-")
    assert said.endswith(f": {likely}")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "iso", "auto", "ordinal"])
def test_a_unit_that_fits_is_not_remarked_on(unit: str) -> None:
    assert remark_on_unit(unit, 1_600_000_000_000_000) == ""
    assert unit in ("s", "ms", "us", "ns") or remark_on_unit(unit, 5) == ""
