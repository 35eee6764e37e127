"""Splits the events into the four periods cloud, device, valid and test."""

import hashlib
import re
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dcclctl.config import PERIODS, IngestConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.logs.batch import Codes, Flags, Ints
from dcclctl.logs.times import calendar_time, number_to_us, parse_iso, unit_of

Periods = npt.NDArray[np.int8]

TEST = PERIODS.index("test")

#: In leave-one-out, the share of `device` among the events before valid and test.
DEVICE_SHARE = Fraction(3, 10)


def split(users: Codes, times: Ints, time_kind: str, config: IngestConfig) -> tuple[Periods, list[int] | None]:
    """Period (0 … 3) of every event, and the three cut times of a global split (None otherwise).

    Args:
        users: dense numbers, ascending; within a user oldest first.
        times: microseconds, or order numbers. time_kind: 'timestamp' or 'ordinal'.
        config: split and periods.

    Raises:
        UsageError: the log does not allow this split, or the periods cannot be read.
        DataError: a period of a global split is empty.
    """
    if time_kind == "ordinal" and config.split == "global":
        raise UsageError(
            "this log has only the order of each user's events, but a global split needs times",
            "Split by user: --split per-user or --split leave-one-out   (if the column does hold times, declare "
            "--time-unit)",
        )
    if config.split == "leave-one-out":
        return leave_one_out(users), None
    if config.split == "per-user":
        return per_user(users, shares_of(config.periods)), None
    cuts = _cuts_of(times, config)
    periods = np.searchsorted(np.array(cuts, np.int64), times, side="right").astype(np.int8)
    _check_filled(periods, times, cuts)
    return periods, cuts


def shares_of(periods: list[str]) -> list[Fraction]:
    """Three cumulative shares, between 0 and 1, of four shares like 60,20,10,10 or 0.6,0.2,0.1,0.1.

    Raises:
        UsageError: not four numbers that add up to 100 or 1.
    """
    try:
        shares = [Fraction(text) for text in periods]
    except (ValueError, ZeroDivisionError):
        shares = []
    if len(shares) == len(PERIODS) - 1 and min(shares) >= 0 and sum(shares) in (1, 100):
        raise UsageError(
            f"--periods: {','.join(periods)!r} is three shares, and there are four periods: {', '.join(PERIODS)}",
            "Write e.g. --periods 60,20,10,10.",
        )
    if len(shares) != len(PERIODS) or min(shares) < 0 or sum(shares) not in (1, 100):
        raise UsageError(
            f"--periods: {','.join(periods)!r} is not four shares that add up to 100 (or 1)",
            "Write e.g. --periods 60,20,10,10; a global split also takes three cut times.",
        )
    total = sum(shares)
    return [sum(shares[: place + 1], Fraction(0)) / total for place in range(len(PERIODS) - 1)]


def _are_shares(periods: list[str]) -> bool:
    """Whether all are numbers of at most 100: no time is so small."""
    return all(re.fullmatch(r"[0-9]{1,3}(\.[0-9]*)?|\.[0-9]+", text) and float(text) <= 100 for text in periods)


def _round_half_up(numbers: Ints, share: Fraction) -> Ints:
    """numbers × share in exact arithmetic, rounded half up."""
    return (2 * numbers * share.numerator + share.denominator) // (2 * share.denominator)


def _cuts_of(times: Ints, config: IngestConfig) -> list[int]:
    if len(config.periods) == len(PERIODS) - 1 and not _are_shares(config.periods):
        cuts = [_cut_time(text, config) for text in config.periods]
        if cuts != sorted(set(cuts)):
            raise DataError(
                f"--periods: the cut times {', '.join(config.periods)} do not rise: the periods would overlap",
                "Write the starts of device, valid and test, oldest first.",
            )
        return cuts
    ordered = np.sort(times)
    last = len(ordered) - 1
    places = [int(_round_half_up(np.int64(len(ordered)), share)) for share in shares_of(config.periods)]  # type: ignore[arg-type]
    return [int(ordered[place]) if place <= last else int(ordered[last]) + 1 for place in places]


def _cut_time(text: str, config: IngestConfig) -> int:
    if config.time_unit in ("auto", "iso") and (date := calendar_time(text)):
        return parse_iso(date, config.timezone, "--periods")
    if text.lstrip("+-").isdigit():
        number = int(text)
        declared = config.time_unit if config.time_unit not in ("auto", "iso") else ""
        return number_to_us(number, declared or unit_of(max(number, 1)))
    return parse_iso(text, config.timezone, "--periods")


def _check_filled(periods: Periods, times: Ints, cuts: list[int]) -> None:
    counts = np.bincount(periods, minlength=len(PERIODS))
    bounds = [int(times.min()), *cuts, int(times.max())]
    for number, name in enumerate(PERIODS):
        if counts[number] == 0:
            start, end = bounds[number : number + 2]
            when = f"begins {iso(start)}" if start > end else f"{iso(start)} to {iso(end)}"
            raise DataError(
                f"the period {name!r} ({when}) holds no event; the log runs from {iso(bounds[0])} to {iso(bounds[-1])}",
                "Choose other shares or three cut times (--periods), or another split (--split per-user, leave-one-out).",
            )


def iso(time_us: int) -> str:
    """A time as ISO text in UTC, to the second, or to the microsecond if it is not whole seconds."""
    return str(np.datetime64(time_us, "us")).removesuffix(".000000") + "Z"


def _positions(users: Codes) -> tuple[Ints, Ints]:
    """Each event's place in its user's timeline, from 0, and the user's number of events."""
    counts = np.bincount(users).astype(np.int64)
    starts = np.cumsum(counts) - counts
    return np.arange(len(users), dtype=np.int64) - starts[users], counts[users]


def per_user(users: Codes, shares: list[Fraction]) -> Periods:
    """Split each user's own timeline by position; users with few events may have empty periods.

    Args:
        users: ascending; within a user oldest first. shares: three cumulative shares.
    """
    place, count = _positions(users)
    periods = np.zeros(len(users), np.int8)
    for share in shares:
        periods += place >= _round_half_up(count, share)
    return periods


def leave_one_out(users: Codes) -> Periods:
    """A user's last event is test, the one before it valid, and the newest 30 % of the rest device.

    A single event is cloud; of two events the second is test.
    """
    place, count = _positions(users)
    from_end = count - 1 - place
    rest = np.maximum(count - 2, 0)
    device = _round_half_up(rest, DEVICE_SHARE)
    periods = np.zeros(len(users), np.int8)
    periods[(from_end >= 2) & (from_end < 2 + device)] = 1
    periods[(from_end == 1) & (count >= 3)] = 2
    periods[(from_end == 0) & (count >= 2)] = 3
    return periods


def new_users(user_ids: list[str], fraction: float, seed: int) -> Flags:
    """Choose the users who will be new at the start of test. Only the seed and the user's own id decide.

    Args:
        user_ids: the outside ids. fraction: share of them that is chosen. seed: of the ingest.

    Returns:
        (U,) flags.
    """
    if not fraction:
        return np.zeros(len(user_ids), np.bool_)
    below = Fraction(str(fraction)) * 2**64

    def drawn(user_id: str) -> int:
        digest = hashlib.sha256(f"{seed}/ingest/new-users/{user_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    return np.array([drawn(user_id) < below for user_id in user_ids], np.bool_)


def make_new(users: Codes, periods: Periods, chosen: Flags, one_timeline: bool) -> tuple[Periods, Flags]:
    """Make the chosen users new: a model cannot learn about them before test.

    In a global split their events before test are dropped; chosen users without an event in test keep all their events.
    In a split by user, all events of the chosen users become test.

    Args:
        users, periods: of each event. chosen: (U,) from `new_users`. one_timeline: whether the split is global.

    Returns:
        The periods, and which events stay.

    Raises:
        DataError: a period is left without any event.
    """
    after, keep = periods, np.ones(len(users), np.bool_)
    if one_timeline:
        tested = np.bincount(users[periods == TEST], minlength=len(chosen)) > 0
        keep = ~((chosen & tested)[users] & (periods < TEST))
    else:
        after = np.where(chosen[users], np.int8(TEST), periods)
    before, left = (np.bincount(each, minlength=len(PERIODS)) for each in (periods, after[keep]))
    for number, name in enumerate(PERIODS):
        if before[number] and not left[number]:
            raise DataError(
                f"--new-users leaves the period {name!r} without any event: nearly every user would be new",
                "Choose a smaller share, e.g. --new-users 0.1",
            )
    return after, keep
