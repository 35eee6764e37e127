"""Generated logs, whose every record was made to be kept or to be rejected for one reason, and an independent count of both."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from reliability.campaign import Campaign, Findings
from reliability.plants import planted

T = 1_600_000_000
#: logs before the clock is looked at, and problems after which there is nothing more to learn
ROUND, MOST = 200, 50
#: what no reader may mistake for something else
ODD_IDS = (
    "007",
    "123.0",
    "../x",
    "=cmd()",
    "<script>",
    "[/red]",
    "ü",
    "u\u0308",
    "9007199254740993",
    "日本",
    "\x1b[31m",
    "a b",
    "'",
    "-1",
)


@dataclass(frozen=True)
class Record:
    """One record of a log.

    Attributes:
        text: its bytes, without the line end. kept: (user, item, second) if it is to be kept. reason: else why not; '' for a
            blank line, which is no record.
    """

    text: str
    kept: tuple[str, str, int] | None = None
    reason: str = ""


IDS = st.sampled_from(ODD_IDS) | st.integers(0, 99).map(lambda number: f"x{number}")
SECONDS = st.integers(T, T + 10_000_000)


@st.composite
def delimited(draw: st.DrawFn, delimiter: str) -> Record:
    """A record of delimited text with the columns user, item, time, note."""
    user, item, second = draw(IDS), draw(IDS), draw(SECONDS)
    kind = draw(st.sampled_from(("good",) * 6 + DELIMITED))
    fields = [user, item, str(second), draw(st.sampled_from(("n", "", "αβγ", "1e400", " ")))]
    rare = kind == "field-too-long" and draw(st.integers(0, 9))
    if kind == "good" or rare or (kind == "quoted" and delimiter == "\t"):  # with tabs, quotes are letters
        return Record(delimiter.join(fields), (user, item, second))
    if kind == "quoted":
        # a delimiter, a doubled quote and a line end inside one field
        note = draw(st.sampled_from((f"a{delimiter}b", 'say ""x""', "two\nlines", "", "two\r\nlines")))
        return Record(delimiter.join([f'"{user}"', item, str(second), f'"{note}"']), (user, item, second))
    if kind == "padded":
        return Record(delimiter.join([f" {user}", f"{item}  ", *fields[2:]]), (user.strip(), item.strip(), second))
    if kind == "decimal":
        return Record(delimiter.join([user, item, f"{second}.0", "n"]), (user, item, second))
    if kind == "blank":
        return Record("")
    changed: dict[str, list[str]] = {
        "missing-fields": fields[: draw(st.integers(1, 3))],
        "extra-fields": [*fields, "x"],
        "empty-user": [draw(st.sampled_from(("", "NULL", "NA", "nan", "\\N", "  "))), *fields[1:]],
        "empty-item": [user, draw(st.sampled_from(("", "null", "None"))), *fields[2:]],
        "nul-in-id": [f"{user}\0", *fields[1:]],
        "bad-time": [
            user,
            item,
            draw(st.sampled_from(("", "never", "1_600_000_000", "0x5f5e1000", "١٦٠٠٠٠٠٠٠٠", "nan"))),
            "n",
        ],
        "time-not-positive": [user, item, draw(st.sampled_from(("0", "-5", "-1600000000", "0.0"))), "n"],
        "time-in-future": [user, item, "9999999999", "n"],
        "field-too-long": [user, item, str(second), "y" * 65_537],
        "mixed-delimiters": [draw(st.sampled_from([each for each in ";,|\t" if each != delimiter])).join(fields)],
    }
    return Record(delimiter.join(changed[kind]), reason=kind)


DELIMITED = (
    *(
        "quoted",
        "padded",
        "decimal",
        "blank",
        "missing-fields",
        "extra-fields",
        "empty-user",
        "empty-item",
        "nul-in-id",
    ),
    *("bad-time", "time-not-positive", "time-in-future", "field-too-long", "mixed-delimiters"),
)


@st.composite
def json_line(draw: st.DrawFn) -> Record:
    """A JSON line with the keys user, item, time."""
    import json

    user, item, second = draw(IDS), draw(IDS), draw(SECONDS)
    kind = draw(st.sampled_from(("good",) * 5 + JSON))
    whole = json.dumps({"user": user, "item": item, "time": second}, ensure_ascii=draw(st.booleans()))
    if kind == "good":
        return Record(whole, (user, item, second))
    if kind == "number":
        number = draw(st.integers(0, 2**60))
        return Record(f'{{"user":{number},"item":"i","time":{second}}}', (str(number), "i", second))
    if kind == "blank":
        return Record("")
    texts = {
        "broken-json": draw(st.sampled_from((whole[:-1], whole + "}", "[1]", "3", '"x"', "{'user': 1}", whole[:5]))),
        "nan-literal": f'{{"user":"u","item":"i","time":{draw(st.sampled_from(("NaN", "Infinity", "-Infinity")))}}}',
        "duplicate-keys": f'{{"user":"u","user":"v","item":"i","time":{second}}}',
        "too-deep": f'{{"user":"u","item":"i","time":{second},"x":{"[" * 70}{"]" * 70}}}',
        "lone-surrogate": f'{{"user":"\\ud800","item":"i","time":{second}}}',
        "nested-value": f'{{"user":{draw(st.sampled_from(("[]", "{}", "[1]")))},"item":"i","time":{second}}}',
        "empty-user": f'{{"user":{draw(st.sampled_from(("null", chr(34) * 2)))},"item":"i","time":{second}}}',
        "bad-time": '{"user":"u","item":"i","time":"never"}',
    }
    return Record(texts[kind], reason=kind)


JSON = (
    *("number", "blank", "broken-json", "nan-literal", "duplicate-keys", "too-deep", "lone-surrogate", "nested-value"),
    *("empty-user", "bad-time"),
)


@st.composite
def logs(draw: st.DrawFn) -> tuple[str, bytes, list[Record]]:
    """(name, bytes, records) of a log; its first record is a good one, as the unit of time is that of the first."""
    name = draw(st.sampled_from(("log.csv", "log.csv", "log.jsonl")))
    end = draw(st.sampled_from(("\n", "\n", "\r\n")))
    if name == "log.jsonl":
        first = Record(f'{{"user":"u","item":"i","time":{T}}}', ("u", "i", T))
        records, head = [first, *draw(st.lists(json_line(), max_size=30))], []
    else:
        delimiter = draw(st.sampled_from((",", ";", "\t", "|")))
        first = Record(delimiter.join(("u", "i", str(T), "n")), ("u", "i", T))
        records, head = (
            [first, *draw(st.lists(delimited(delimiter), max_size=30))],
            [delimiter.join(("user", "item", "time", "note"))],
        )
    last = "" if records[-1].reason == "missing-fields" or not draw(st.booleans()) else end
    data = (end.join([*head, *(record.text for record in records)]) + (last or end)).encode()
    return name, data, records


def counted(records: list[Record]) -> tuple[int, list[tuple[str, str, int]], Counter[str]]:
    """(records, kept in order, rejects by reason) of a log, without any code of the program."""
    real = [record for record in records if record.text]
    kept = [record.kept for record in real if record.kept is not None]
    return len(real), kept, Counter(record.reason for record in real if record.kept is None)


def read(path: Path) -> tuple[int, list[tuple[str, str, int]], Counter[str]]:
    """The same, as the program reads it."""
    from dcclctl.config import IngestConfig
    from dcclctl.logs.formats import detect_log
    from dcclctl.logs.quarantine import Quarantine
    from dcclctl.logs.reader import LogReader
    from dcclctl.logs.sources import identify

    config = IngestConfig(map={"user": "user", "item": "item", "time": "time"}, now="2026-01-01")
    source, quarantine = identify(path), Quarantine()
    log = LogReader(config, quarantine, lambda *_: None).read([(source, detect_log(source, config))])
    users, items = log.user_ids.texts(log.users.tolist()), log.item_ids.texts(log.items.tolist())
    kept = [(user, item, time // 1_000_000) for user, item, time in zip(users, items, log.times.tolist(), strict=True)]
    return sum(log.read.values()), kept, +quarantine.counts


def generated(campaign: Campaign, count: int) -> Findings:
    """Read generated logs and compare what is kept and what is rejected, and why, with the independent count."""
    found, number = Findings(), campaign.seed
    with tempfile.TemporaryDirectory() as folder, planted(campaign.plant):
        while found.phases.get("logs", 0) < count and not campaign.late and len(found.problems) < MOST:
            round_of(min(ROUND, count), number, Path(folder), found)
            number += 1_000_003
    return found


def round_of(count: int, number: int, folder: Path, found: Findings) -> None:
    """So many logs, drawn from a seed."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(logs())
    def check(log: tuple[str, bytes, list[Record]]) -> None:
        name, data, records = log
        path = folder / name
        path.write_bytes(data)
        wanted = counted(records)
        try:
            got = read(path)
        except Exception as error:
            found.wrong(f"{type(error).__name__} {str(error)[:200]} on {data[:300]!r}")
            return
        if got != wanted:
            differing = [f"{one} instead of {other}" for one, other in zip(got, wanted, strict=True) if one != other]
            found.wrong(f"{'; '.join(differing)[:400]} of {data[:600]!r}")
        found.count("logs")
        found.count(f"of {name}")
        found.count("records", wanted[0])
        for reason, many in wanted[2].items():
            found.count(f"rejected: {reason}", many)

    check()
