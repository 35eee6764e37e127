"""Converts times, whole numbers in one unit or ISO texts with a zone, to microseconds since 1970 UTC."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import polars as pl

from dcclctl.errors import DataError, UsageError
from dcclctl.logs.batch import Batch, Flags, Ints

DAY_US = 86_400_000_000
_MICROSECONDS = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
#: Smallest number of each unit. Seconds below 1e7 would be in early 1970, so such numbers are order numbers.
_FLOORS = (("ordinal", 1), ("s", 10**7), ("ms", 10**11), ("us", 10**14), ("ns", 10**17))
_FLOOR_VALUES = np.array([floor for _, floor in _FLOORS], np.int64)

_WHOLE_FLOAT = r"^[+-]?\d+\.0*$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2})?([.,]\d{1,9})?)? ?(Z|z|UTC|GMT|[+-]\d{2}:?\d{2})?$"


def parse_iso(text: str, timezone: str, what: str) -> int:
    """The time of a setting in microseconds. Without a zone it is in `timezone`, or in UTC. `what` names the setting.

    Raises:
        UsageError: not a time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{what}: {text!r} is not a time", "Write an ISO time like 2017-12-01 or 2017-12-01T00:00:00Z."
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=_zone(timezone) if timezone else UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"--timezone: no zone is called {name!r}", "Write it like Europe/Paris, or UTC.") from error


def unit_of(number: int) -> str:
    """The unit of a positive number, judged by its size."""
    return [unit for unit, floor in _FLOORS if number >= floor][-1]


def number_to_us(number: int, unit: str) -> int:
    """Convert a number in a unit to microseconds; an order number stays as it is."""
    factor, divisor = _MICROSECONDS.get(unit, (1, 1))
    return number * factor // divisor


class TimeColumn:
    """The times of one file, read batch by batch.

    Args:
        unit: auto, or what --time-unit declares; auto takes the unit of the file's first time for the whole file.
        timezone: zone of local times; '' if none is declared.
        now: the present as an ISO time; no event may be more than a day after it.
        where: the file and its column, for messages.

    Attributes:
        unit: auto until the first time is read, then the unit.
    """

    def __init__(self, unit: str, timezone: str, now: str, where: str) -> None:
        self.unit = unit
        self._declared = unit != "auto"
        self._timezone = timezone
        if timezone:
            _zone(timezone)
        self._latest_us = parse_iso(now, "", "--now") + DAY_US
        self._where = where

    def read(self, texts: pl.Series, batch: Batch) -> tuple[Ints, dict[str, Flags]]:
        """Read the times of a batch.

        Returns:
            Microseconds (order numbers as they are); and reason → rejected rows.

        Raises:
            DataError: two units in one file, or local times without a zone.
        """
        texts = texts.fill_null("")
        numbers = texts.cast(pl.Int64, strict=False)
        refused: dict[str, Flags] = {}
        if numbers.null_count():
            trimmed = texts.str.strip_chars()
            whole = trimmed.str.contains(_WHOLE_FLOAT)
            floats = trimmed.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
            numbers = numbers.zip_with(numbers.is_not_null() | ~whole, floats)
            numbers = numbers.zip_with(numbers.is_not_null(), trimmed.cast(pl.Int64, strict=False))
            if count := int((whole & numbers.is_not_null()).sum()):
                batch.normalised["times-as-float"] = batch.normalised.get("times-as-float", 0) + count
            self._settle(numbers, trimmed)
            if self.unit == "iso":
                return self._iso(trimmed, numbers, batch)
            unreadable = numbers.is_null()
            number_like = unreadable & trimmed.str.contains(_NUMBER)
            refused["time-not-integral"] = number_like.to_numpy()
            refused["bad-time"] = (unreadable & ~number_like).to_numpy()
            if not self._declared and (iso := unreadable & trimmed.str.contains(_ISO)).any():
                raise self._mixed(batch, int(iso.arg_max() or 0), texts)
        else:
            self._settle(numbers, texts)
            if self.unit == "iso":
                return self._iso(texts, numbers, batch)
        return self._numbers(numbers.fill_null(0).to_numpy(), numbers.is_null().to_numpy(), texts, batch, refused)

    def _settle(self, numbers: pl.Series, texts: pl.Series) -> None:
        """Take the unit from the first readable time, if it is not known yet."""
        if self.unit != "auto":
            return
        positive = (numbers > 0).fill_null(False)
        readable = positive | texts.str.contains(_ISO)
        if readable.any():
            first = int(readable.arg_max() or 0)
            self.unit = unit_of(int(numbers[first])) if positive[first] else "iso"

    def _numbers(
        self, numbers: Ints, missing: Flags, texts: pl.Series, batch: Batch, refused: dict[str, Flags]
    ) -> tuple[Ints, dict[str, Flags]]:
        lowest = 0 if self.unit == "ordinal" else 1
        if len(numbers) and numbers.min() < lowest:
            refused["time-not-positive"] = (numbers < lowest) & ~missing
        if not self._declared and self.unit != "auto" and len(numbers):
            self._check_one_unit(numbers, texts, batch, refused)
        if self.unit == "ordinal":
            return numbers, refused
        factor, divisor = _MICROSECONDS.get(self.unit, (1, 1))
        limit = self._latest_us * divisor // factor
        if len(numbers) and numbers.max() > limit:
            refused["time-in-future"] = numbers > limit
            numbers = np.minimum(numbers, limit)
        if factor > 1:
            # Numbers below zero are rejected already, but a large one must not overflow here.
            return np.maximum(numbers, 0) * factor, refused
        return (numbers // divisor if divisor > 1 else numbers), refused

    def _check_one_unit(self, numbers: Ints, texts: pl.Series, batch: Batch, refused: dict[str, Flags]) -> None:
        place = [unit for unit, _ in _FLOORS].index(self.unit)
        floor = int(_FLOOR_VALUES[place])
        ceiling = int(_FLOOR_VALUES[place + 1]) if place + 1 < len(_FLOORS) else np.iinfo(np.int64).max
        if numbers.min() >= floor and numbers.max() < ceiling:
            return
        other = (numbers > 0) & ((numbers < floor) | (numbers >= ceiling))
        if batch.cut and other[-1] and not other[:-1].any():
            refused["cut-last-row"] = other
        elif other.any():
            raise self._mixed(batch, int(other.argmax()), texts)

    def _mixed(self, batch: Batch, row: int, texts: pl.Series) -> DataError:
        unit = {"ordinal": "an order number", "iso": "an ISO time"}.get(self.unit, f"a time in {self.unit}")
        return DataError(
            f"{self._where}, record {int(batch.records[row])}: {texts[row]!r} is not {unit} like those before it",
            "Split the file by unit, or declare one for all of it with --time-unit (s, ms, us, ns, iso, ordinal).",
        )

    def _iso(self, texts: pl.Series, numbers: pl.Series, batch: Batch) -> tuple[Ints, dict[str, Flags]]:
        if not self._declared and (mixed := (numbers > 0).fill_null(False)).any():
            raise self._mixed(batch, int(mixed.arg_max() or 0), texts)
        parts = texts.str.extract_groups(_ISO).struct.unnest()
        date, minutes, seconds, fraction, zone = parts.get_columns()
        text = date + "T" + minutes.fill_null("00:00") + seconds.fill_null(":00")
        text += fraction.fill_null(".0").str.replace(",", ".", literal=True)
        zoned = zone.is_not_null()
        if not self._timezone and (local := date.is_not_null() & ~zoned).any():
            row = int(local.arg_max() or 0)
            raise DataError(
                f"{self._where}, record {int(batch.records[row])}: {texts[row]!r} is a local time without a zone",
                "Name its zone, e.g. --timezone UTC or --timezone Europe/Paris.",
            )
        local_us = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
        readable = local_us.is_not_null()
        east = zone.str.replace(r"(?i)^(Z|UTC|GMT)$", "+00:00").str.extract_groups(r"^([+-])(\d{2}):?(\d{2})$")
        sign, hours, offset_minutes = east.struct.unnest().get_columns()
        offset_us = (hours.cast(pl.Int64) * 60 + offset_minutes.cast(pl.Int64)) * 60_000_000
        offset_us = offset_us.zip_with((sign == "+").fill_null(False), -offset_us)
        moments = local_us.cast(pl.Int64) - offset_us
        refused: dict[str, Flags] = {"bad-time": (~readable).to_numpy()}
        if self._timezone:
            placed = local_us.dt.replace_time_zone(self._timezone, ambiguous="earliest", non_existent="null")
            moments = moments.zip_with(zoned, placed.dt.convert_time_zone("UTC").cast(pl.Int64))
            refused["time-does-not-exist"] = (readable & ~zoned & placed.is_null()).to_numpy()
        times = moments.fill_null(1).to_numpy()
        refused["time-not-positive"] = times <= 0
        refused["time-in-future"] = times > self._latest_us
        return times, refused
