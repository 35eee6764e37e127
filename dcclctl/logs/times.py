"""Converts times, numbers in one unit or written dates, to microseconds since 1970 UTC."""

import re
from datetime import UTC, datetime, timedelta
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
#: Beyond every time, and not at the end of 64 bits.
_HUGE = 9.2e18

_WHOLE_FLOAT = r"^[+-]?[0-9]+\.0*$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_ISO = (
    r"^([0-9]{4})[-/.]([0-9]{1,2})[-/.]([0-9]{1,2})(?:(?:T|,? +)([0-9]{1,2})(?::([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?)?"
    r"(?: ?([AaPp])[Mm])?)? ?(Z|z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?(?: UTC)?$"
)
#: 20200831, 2020083117, 202008311732, 20200831173239 and with milliseconds. As numbers of a unit they would be times of
#: 1970 to 1976, or after 2032.
_CALENDAR = (
    r"^(19[7-9][0-9]|20[0-9][0-9])(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"
    r"(?:([01][0-9]|2[0-3])(?:([0-5][0-9])(?:([0-5][0-9])([0-9]{3})?)?)?)?(?:\.0*)?$"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]*\.?"
#: Written dates → the same in the order of ISO 8601.
_REWRITTEN = (
    # Mon Aug 31 17:32:39 +0000 2020
    (
        rf"(?i)^(?:[a-z]{{3,9}},? )?{_MONTH} +([0-9]{{1,2}}),? ([0-9]{{1,2}}:[0-9:]+) ?([+-][0-9]{{4}}|UTC|GMT)? ?([0-9]{{4}})$",
        "5-1-2T3 4",
    ),
    # Mon, 31 Aug 2020 17:32:39 GMT; 31/Aug/2020:17:32:39 +0000
    (rf"(?i)^(?:[a-z]{{3,9}},? )?([0-9]{{1,2}})[ /-]{_MONTH}[ ,/-]+([0-9]{{4}})(?:[ :,T]+([0-9].*))?$", "3-2-1 4"),
    # Aug 31, 2020 5:32 PM
    (rf"(?i)^(?:[a-z]{{3,9}},? )?{_MONTH} +([0-9]{{1,2}}),? +([0-9]{{4}})(?:[ ,]+([0-9].*))?$", "3-1-2 4"),
    (r"^([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})(.*)$", "3-2-14"),  # 31.08.2020 17:32
    (r"^([0-9]{4})([0-9]{2})([0-9]{2})[T ]([0-9]{2})([0-9]{2})([0-9]{2})(.*)$", "1-2-3T4:5:67"),  # 20200831T173239Z
    (r"^([0-9]{4})([0-9]{2})([0-9]{2})[T ]([0-9]{2})([0-9]{2})(.*)$", "1-2-3T4:56"),
    (r"^([0-9]{1,2}) ([0-9]{1,2}), ([0-9]{4})$", "3-1-2"),  # 08 31, 2020, as Amazon writes it
)
#: 08/31/2020 or 31/08/2020: which part is the day only shows where one is above 12.
_DAY_OR_MONTH = r"^([0-9]{1,2})[/-]([0-9]{1,2})[/-]([0-9]{4})(.*)$"


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


def calendar_time(text: str) -> str:
    """The ISO text of a number like 20200831 or 2020083117; '' if it is not one."""
    found = re.match(_CALENDAR, text)
    if found is None:
        return ""
    year, month, day, hour, minute, second, milli = found.groups()
    return f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}.{milli or '000'}"


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"--timezone: no zone is called {name!r}", "Write it like Europe/Paris, or UTC.") from error


def unit_of(number: int) -> str:
    """The unit of a positive number, judged by its size."""
    return [unit for unit, floor in _FLOORS if number >= floor][-1]


def remark_on_unit(unit: str, latest_us: int) -> str:
    """A warning where a declared unit puts all events into early 1970; '' elsewhere.

    Args:
        unit: what --time-unit says. latest_us: time of the last event, microseconds.
    """
    factor, divisor = _MICROSECONDS.get(unit, (0, 1))
    if not factor or not 0 < latest_us < 10**7 * 1_000_000:
        return ""
    day = datetime.fromtimestamp(latest_us / 1e6, UTC).date()
    likely = unit_of(max(1, latest_us * divisor // factor))
    if likely == "ordinal":
        means = "right if the times count from a start of their own; for order numbers say --time-unit ordinal"
    else:
        means = f"the times look like --time-unit {likely}"
    return f"with --time-unit {unit} every event is before {day + timedelta(days=1)}: {means}"


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
        form: how times are written, as --time-format says; '' if it does not.

    Attributes:
        unit: auto until the first time is read; then the unit, iso for written dates, calendar for numbers like 20200831.
        remarks: how dates were understood, in sentences.
    """

    def __init__(self, unit: str, timezone: str, now: str, where: str, form: str = "") -> None:
        self.unit = unit
        self._declared = unit != "auto"
        self._timezone = timezone
        if timezone:
            _zone(timezone)
        self._latest_us = parse_iso(now, "", "--now") + DAY_US
        self._where = where
        self._form = form
        if form:
            self._declare_form(form)
        self._day_first: bool | None = None
        self.remarks: list[str] = []

    def _declare_form(self, form: str) -> None:
        if self.unit not in ("auto", "iso"):
            raise UsageError(f"--time-format and --time-unit {self.unit} contradict each other", "Give one of them.")
        self.unit, self._declared = "iso", True
        try:
            example = pl.Series([datetime(2020, 8, 31, 17, 32, 39, tzinfo=UTC).strftime(form)])
            readable = _parse(example, form)[0].null_count() == 0
        except (pl.exceptions.PolarsError, ValueError):
            readable = False
        if not readable:
            raise UsageError(
                f"--time-format: {form!r} is not a form of a time",
                "Write it like '%d/%m/%Y %H:%M:%S' (as in strptime); it needs year, month and day.",
            )

    def read(self, texts: pl.Series, batch: Batch) -> tuple[Ints, dict[str, Flags]]:
        """Read the times of a batch.

        Returns:
            Microseconds (order numbers as they are); and reason → rejected rows.

        Raises:
            DataError: two units in one file, local times without a zone, or dates whose day and month look alike.
        """
        texts = texts.fill_null("")
        if self._form:
            return self._moments(*_parse(texts.str.strip_chars(), self._form), texts, batch)
        numbers = texts.cast(pl.Int64, strict=False)
        if not numbers.null_count():
            self._settle(numbers, texts)
            if self.unit in ("iso", "calendar"):
                return self._written(texts, numbers, batch)
            return self._numbers(numbers.to_numpy(), np.zeros(len(numbers), np.bool_), texts, batch, {})
        trimmed = texts.str.strip_chars()
        whole = trimmed.str.contains(_WHOLE_FLOAT)
        floats = trimmed.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        numbers = numbers.zip_with(numbers.is_not_null() | ~whole, floats)
        numbers = numbers.zip_with(numbers.is_not_null(), trimmed.cast(pl.Int64, strict=False))
        fraction = np.zeros(len(numbers))
        decimal = numbers.is_null() & trimmed.str.contains(_NUMBER)
        if decimal.any():
            values = trimmed.cast(pl.Float64, strict=False).clip(-_HUGE, _HUGE)
            floor = values.floor()
            numbers = numbers.zip_with(~decimal, floor.cast(pl.Int64, strict=False))
            fraction = (values - floor).zip_with(decimal, pl.repeat(0.0, len(values), eager=True)).to_numpy()
        self._settle(numbers, trimmed)
        if self.unit in ("iso", "calendar"):
            return self._written(trimmed, numbers, batch)
        _count(batch.normalised, "times-as-float", int((whole & numbers.is_not_null()).sum()))
        missing = numbers.is_null()
        refused: dict[str, Flags] = {"bad-time": missing.to_numpy()}
        if self.unit == "ordinal":
            refused["time-not-integral"] = decimal.to_numpy()
        elif decimal.any():
            _count(batch.normalised, "times-with-fraction", int(decimal.sum()))
            _count(batch.warnings, "rounded-times", _rounded(trimmed.filter(decimal)))
        if not self._declared and (dates := missing & trimmed.str.contains(_ISO)).any():
            raise self._mixed(batch, int(dates.arg_max() or 0), texts)
        times, refused = self._numbers(numbers.fill_null(0).to_numpy(), missing.to_numpy(), texts, batch, refused)
        factor, divisor = _MICROSECONDS.get(self.unit, (0, 1))
        return times + np.rint(fraction * factor / divisor).astype(np.int64), refused

    def _settle(self, numbers: pl.Series, texts: pl.Series) -> None:
        """Take the unit from the first readable time, if it is not known yet."""
        if self.unit != "auto":
            return
        positive = (numbers > 0).fill_null(False)
        readable = positive
        if not positive.all():
            readable = positive | _in_iso_order(texts).str.contains(_ISO) | texts.str.contains(_DAY_OR_MONTH)
        if readable.any():
            first = int(readable.arg_max() or 0)
            self.unit = unit_of(int(numbers[first])) if positive[first] else "iso"
            if positive[first] and calendar_time(texts[first]):
                dates = texts.filter(positive).str.contains(_CALENDAR)
                self.unit = "calendar" if dates.all() else self.unit

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
        named = {"ordinal": "an order number", "iso": "an ISO time", "calendar": "a date like 20200831"}
        return DataError(
            f"{self._where}, record {int(batch.records[row])}: {texts[row]!r} is not "
            f"{named.get(self.unit, f'a time in {self.unit}')} like those before it",
            "Split the file by unit, or declare one for all of it with --time-unit (s, ms, us, ns, iso, ordinal).",
        )

    def _written(self, texts: pl.Series, numbers: pl.Series, batch: Batch) -> tuple[Ints, dict[str, Flags]]:
        """Read dates of the forms that are found by themselves."""
        calendar = texts.str.contains(_CALENDAR) if self.unit == "calendar" or self._declared else None
        mixed = (numbers > 0).fill_null(False)
        if calendar is not None:
            mixed &= ~calendar
        if not self._declared and mixed.any():
            if batch.cut and mixed[-1] and not mixed[:-1].any():
                return np.ones(len(texts), np.int64), {"cut-last-row": mixed.to_numpy()} | self._written(
                    texts.set(mixed, ""), numbers.set(mixed, None), batch
                )[1]
            raise self._mixed(batch, int(mixed.arg_max() or 0), texts)
        parts = self._ordered(texts).str.extract_groups(_ISO).struct.unnest()
        if calendar is not None and calendar.any():
            numbered = texts.str.extract_groups(_CALENDAR).struct.unnest().get_columns()
            parts = pl.DataFrame(
                [
                    part if place >= len(numbered) else part.zip_with(~calendar, numbered[place])
                    for place, part in enumerate(parts)
                ]
            )
        year, month, day, hour, minute, second, fraction, half, zone = parts.get_columns()
        if half.drop_nulls().len():
            late = (half.str.to_lowercase() == "p").cast(pl.Int64) * 12
            hour = hour.zip_with(half.is_null(), (hour.cast(pl.Int64) % 12 + late).cast(pl.String))
        text = year + "-" + month.str.zfill(2) + "-" + day.str.zfill(2) + "T"
        text += hour.fill_null("00").str.zfill(2) + ":" + minute.fill_null("00") + ":" + second.fill_null("00")
        text += "." + fraction.fill_null("0")
        local_us = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
        east = zone.str.replace(r"(?i)^(Z|UTC|GMT)$", "+00:00").str.extract_groups(r"^([+-])([0-9]{2}):?([0-9]{2})?$")
        sign, hours, offset_minutes = east.struct.unnest().get_columns()
        offset_us = hours.cast(pl.Int64) * 60 + offset_minutes.fill_null("0").cast(pl.Int64)
        offset_us = (offset_us * 60_000_000).zip_with((sign == "+").fill_null(False), offset_us * -60_000_000)
        return self._moments(local_us, local_us.cast(pl.Int64) - offset_us, texts, batch)

    def _ordered(self, texts: pl.Series) -> pl.Series:
        """Texts with year, month and day in the order of ISO 8601.

        Raises:
            DataError: dates whose day and month look alike.
        """
        texts = _in_iso_order(texts)
        parts = texts.str.extract_groups(_DAY_OR_MONTH).struct.unnest()
        if parts.to_series(0).null_count() == len(texts):
            return texts
        if self._day_first is None:
            first, second = (parts.to_series(place).cast(pl.Int64).max() or 0 for place in (0, 1))
            if (first > 12) == (second > 12):  # type: ignore[operator]
                example = texts.filter(parts.to_series(0).is_not_null())[0]
                raise DataError(
                    f"{self._where}: it does not show whether dates like {example!r} have the day or the month first",
                    "Say it: --time-format '%d/%m/%Y %H:%M:%S', or '%m/%d/%Y …', exactly as the times are written.",
                )
            self._day_first = bool(first > 12)  # type: ignore[operator]
            self.remarks.append(f"{self._where}: dates have the {'day' if self._day_first else 'month'} first")
        return texts.str.replace(_DAY_OR_MONTH, "${3}-${2}-${1}${4}" if self._day_first else "${3}-${1}-${2}${4}")

    def _moments(
        self, local_us: pl.Series, zoned_us: pl.Series, texts: pl.Series, batch: Batch
    ) -> tuple[Ints, dict[str, Flags]]:
        """Times and rejects of moments that are local, and where a zone is known in UTC, both in microseconds."""
        readable, zoned = local_us.is_not_null() | zoned_us.is_not_null(), zoned_us.is_not_null()
        if not self._timezone and (local := readable & ~zoned).any():
            row = int(local.arg_max() or 0)
            raise DataError(
                f"{self._where}, record {int(batch.records[row])}: {texts[row]!r} is a local time without a zone",
                "Name its zone, e.g. --timezone UTC or --timezone Europe/Paris.",
            )
        refused: dict[str, Flags] = {"bad-time": (~readable).to_numpy()}
        moments = zoned_us
        if self._timezone:
            placed = local_us.dt.replace_time_zone(self._timezone, ambiguous="earliest", non_existent="null")
            moments = moments.zip_with(zoned, placed.dt.convert_time_zone("UTC").cast(pl.Int64))
            refused["time-does-not-exist"] = (readable & ~zoned & placed.is_null()).to_numpy()
        times = moments.fill_null(1).to_numpy()
        refused["time-not-positive"] = times <= 0
        refused["time-in-future"] = times > self._latest_us
        return times, refused


def _count(counts: dict[str, int], name: str, count: int) -> None:
    if count:
        counts[name] = counts.get(name, 0) + count


def _rounded(texts: pl.Series) -> int:
    """How many numbers with an exponent have fewer digits than it needs."""
    parts = texts.str.extract_groups(r"^[+-]?[0-9]+(?:\.([0-9]*))?[eE]\+?([0-9]+)$").struct.unnest()
    digits, exponent = parts.to_series(0).fill_null("").str.len_bytes(), parts.to_series(1).cast(pl.Int64, strict=False)
    return int((digits.cast(pl.Int64) < exponent).fill_null(False).sum())


def _in_iso_order(texts: pl.Series) -> pl.Series:
    """Written dates in the order of ISO 8601; other texts, and dates of numbers alone, as they are."""
    other = ~texts.str.contains(_ISO)
    if not other.any():
        return texts
    found = texts
    for pattern, order in _REWRITTEN:
        found = found.str.replace(pattern, re.sub(r"[0-9]", r"${\g<0>}", order))
    if found.equals(texts):
        return texts
    names = [f"-{name}-" for name in _MONTHS]
    numbers = [f"-{number:02d}-" for number in range(1, 13)]
    found = found.str.replace_many(names, numbers, ascii_case_insensitive=True).str.strip_chars()
    return texts.zip_with(~other, found)


def _parse(texts: pl.Series, form: str) -> tuple[pl.Series, pl.Series]:
    """Local times of a declared form, and the same in UTC microseconds where the form has a zone."""
    hour = any(mark in form for mark in ("%H", "%I", "%k", "%l", "%T", "%R", "%X", "%c", "%r", "%s", "%+"))
    minute = any(mark in form for mark in ("%M", "%T", "%R", "%X", "%c", "%r", "%s", "%+"))
    # polars wants an hour and a minute
    more, filled = ("", "") if minute else (" %M", " 00") if hour else (" %H:%M", " 00:00")
    found = (texts + filled).str.to_datetime(form + more, time_unit="us", strict=False)
    none = pl.Series([None] * len(texts), dtype=pl.Int64)
    if found.dtype == pl.Datetime("us"):
        return found, none
    return found.dt.convert_time_zone("UTC").dt.replace_time_zone(None), found.cast(pl.Int64)
