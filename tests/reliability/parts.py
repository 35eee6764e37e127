"""The parts of the campaign, what each promises, and how they are run and recorded."""

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcclctl.version import __version__
from reliability import crowds, errors, hostile, logs, power, readers, sequences, stops
from reliability.campaign import Campaign, Findings
from reliability.plants import PLANTS

ROOT = Path(__file__).resolve().parents[2]
#: what the last long form found, from which the table of the page is made
RESULTS = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: python -m tests.reliability --table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        promise: what holds, in a sentence. how: what is done. run: does a number of cases. unit: what a case is called in the
            phases that `run` counts. long, short: cases of the long and of the short form. share: of the time of the long form.
    """

    promise: str
    how: str
    run: Callable[[Campaign, int], Findings]
    unit: str
    long: int
    short: int
    share: float


PARTS: dict[str, Part] = {
    "kills": Part(
        "A killed command loses nothing and leaves nothing half made; typed again, it makes the same artifacts.",
        "SIGKILL before operations on files that are spread over all of every command, or in the middle of a write",
        *(stops.kills, "kills", 600, 6, 0.19),
    ),
    "signals": Part(
        "Ctrl-C and SIGTERM say so in one line, lose nothing, and the same command continues.",
        "SIGINT and SIGTERM at operations spread over all of every command",
        *(stops.signals, "signals", 200, 4, 0.06),
    ),
    "power losses": Part(
        "After a power failure everything is there that a command has said to be there, and nothing that it deleted.",
        "a recorded run is replayed to a moment; unsynchronised bytes and names are dropped, kept, or half of them, in any order",
        *(power.power_losses, "power losses", 2000, 40, 0.12),
    ),
    "refusals": Part(
        "An error of the system ends with a message and a remedy, or does not matter; it never loses anything.",
        "the nth creating, writing, fsync, rename, deletion, lock, opening or reading fails, once or from then on, with each errno",
        *(errors.refusals, "refusals", 400, 6, 0.17),
    ),
    "full disks": Part(
        "On a full disk a command stops with a message, and continues when there is room.",
        "a disk with room for 0 to 60,000 bytes, which it says beforehand or does not",
        *(errors.full_disks, "full disks", 60, 1, 0.04),
    ),
    "crowds": Part(
        "Equal commands at once compute once; different ones, `gc` and `forget` among them, do not disturb each other.",
        "16 equal or 16 different commands started together",
        *(crowds.crowds, "crowds", 8, 1, 0.02),
    ),
    "corruptions": Part(
        "No damage inside an artifact goes unnoticed, by `verify` or by reading.",
        "flipped bits, cuts, zeros, swaps, longer and missing files",
        *(hostile.corruptions, "corruptions", 1000, 40, 0.01),
    ),
    "hostile artifacts": Part(
        "An artifact that somebody else made ends in a message with its name: no traceback, no hang, nothing broadcast.",
        "other shapes, types, numbers and settings under right hashes; header bombs, links, FIFOs in the place of files",
        *(hostile.artifacts, "hostile artifacts", 150, 3, 0.09),
    ),
    "logs": Part(
        "Every record of a log is kept or rejected for the right reason, and the counts add up.",
        "generated logs, whose records are counted independently (Hypothesis)",
        *(logs.generated, "logs", 20_000, 60, 0.15),
    ),
    "readers": Part(
        "Every reader of outside bytes reads them or refuses them with a message.",
        "mutations of good files for 17 readers",
        *(readers.readers, "inputs", 20_000, 510, 0.05),
    ),
    "guided readers": Part(
        "The same, with bytes that coverage guides.",
        "atheris, each reader for the same time; in seconds",
        *(readers.guided, "seconds", 340, 0, 0.0),
    ),
    "sequences": Part(
        "Whatever order commits, crashes, names, deletions, forgetting and damage come in, the store is what a model says.",
        "a state machine of 14 steps a sequence (Hypothesis)",
        *(sequences.sequences, "sequences", 2000, 6, 0.1),
    ),
}


def run_all(
    campaign: Campaign, seconds: float, only: list[str], say: Callable[[str], None], plants: bool = True
) -> Iterator[dict[str, Any]]:
    """Try every planted bug and run the long form.

    Args:
        seconds: for all parts together; a part that has done its count leaves its rest to the next ones. only: parts; [] for all.
        say: called with one line after each part. plants: whether to try the planted bugs.

    Yields:
        {'planted': …}, then {'parts': {name: …}} of each part when it is done.
    """
    chosen = {name: part for name, part in PARTS.items() if not only or name in only}
    for name, plant in PLANTS.items() if plants else ():
        if not only or plant.part in only:
            words = catches(campaign, name)
            say(f"planted: {plant.what}: {'found by' if words else 'NOT found by'} {plant.part}")
            yield {"planted": {name: words}, "parts": {}}
    # later parts get what earlier ones leave
    left, shares = seconds, sum(part.share for part in chosen.values())
    for name, part in chosen.items():
        limit = left * part.share / shares if part.share else part.long * 1.5 + 600
        shares = max(1e-9, shares - part.share)
        began = time.monotonic()
        result = part.run(replace(campaign, until=began + limit), part.long)
        took = time.monotonic() - began
        left -= took if part.share else 0
        done = result.phases.get(part.unit, 0)
        found = {
            "count": done,
            "asked": part.long,
            "unit": part.unit,
            "problems": result.problems,
            "seconds": round(took),
            "phases": dict(sorted(result.phases.items())),
        }
        say(f"{name}: {done:,} of {part.long:,} {part.unit}, {len(result.problems)} problems, {took:.0f} s")
        for problem in result.problems[:20]:
            say(f"  {problem[:1500]}")
        yield {"planted": {}, "parts": {name: found}}


def recorded(before: dict[str, Any], new: dict[str, Any], seed: int) -> dict[str, Any]:
    """What is recorded, with the results of one more part or planted bug. A part that ran before with other seeds adds up."""
    parts = dict(before.get("parts", {}))
    for name, found in new["parts"].items():
        old = parts.get(name)
        parts[name] = found | {"seeds": [seed]} if old is None or seed in old["seeds"] else _sum(old, found, seed)
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    order = [name for name in PARTS if name in parts]
    planted = before.get("planted", {}) | new["planted"]
    return {
        "version": __version__,
        "machine": machine,
        "parts": {name: parts[name] for name in order},
        "planted": {name: planted[name] for name in PLANTS if name in planted},
    }


def _sum(old: dict[str, Any], new: dict[str, Any], seed: int) -> dict[str, Any]:
    phases = Counter(old["phases"]) + Counter(new["phases"])
    both = {key: old[key] + new[key] for key in ("count", "seconds", "problems")}
    return old | both | {"phases": dict(sorted(phases.items())), "seeds": [*old["seeds"], seed]}


def catches(campaign: Campaign, name: str) -> str:
    """The first problem that a part finds in a program with a planted bug; '' if it finds none."""
    plant = PLANTS[name]
    narrow = campaign.only(*plant.scenes) if plant.scenes else campaign
    found = PARTS[plant.part].run(narrow.with_bug(name), plant.count)
    return found.problems[0][:200] if found.problems else ""


def table(results: dict[str, Any]) -> str:
    """The table of docs/reliability.md."""
    lines = ["| part | promise | test | count (asked) | problems | seconds |", "|---|---|---|---:|---:|---:|"]
    for name, found in results["parts"].items():
        part = PARTS[name]
        lines.append(
            f"| {name} | {part.promise} | {part.how} | {found['count']:,} ({found['asked']:,}) {part.unit} "
            f"| {len(found['problems'])} | {found['seconds']:,} |"
        )
    lines += ["", "| planted bug | found by | its first words |", "|---|---|---|"]
    for name, words in results["planted"].items():
        said = words.replace("|", "/").replace("\n", " ")[:90] or "not found"
        lines.append(f"| {PLANTS[name].what} | {PLANTS[name].part} | `{said.replace('`', '')}` |")
    lines += ["", f"{results['machine']}; version {results['version']}."]
    return "\n".join(lines)


def write_table(results: dict[str, Any]) -> None:
    """Put the table between its marks on the page."""
    page = PAGE.read_text()
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}")


def read_results() -> dict[str, Any]:
    """What is recorded."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found
