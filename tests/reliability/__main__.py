"""`python -m tests.reliability`: the long form of the campaign, recorded as JSON and as the table of docs/reliability.md."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from reliability import parts
from reliability.bench import why_not
from reliability.campaign import prepared

#: bytes that the stores of the campaign may take, with room to spare
ROOM = 2 << 30


def in_memory() -> None:
    """Put the campaign's files into memory where there is room: what is lost is decided by the campaign, not by a disk."""
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free > ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(memory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="time for all parts together, without atheris [60]")
    parser.add_argument(
        "--part", action="append", default=[], choices=list(parts.PARTS), help="only this part; repeat for more"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw [0]")
    parser.add_argument("--json", type=Path, help="where the result is recorded; and the table of the page is written")
    parser.add_argument(
        "--table", action="store_true", help="only write the table of the page from the recorded result"
    )
    parser.add_argument(
        "--add", action="store_true", help="add to what is recorded, with another --seed; no planted bugs"
    )
    given = parser.parse_args()
    if given.table:
        parts.write_table(parts.read_results())
        return 0
    if reason := why_not():
        print(f"the campaign cannot run: {reason}", file=sys.stderr)
        return 2
    document: dict[str, Any] = {}
    if given.json is not None and given.json.exists() and (given.part or given.add):
        document = json.loads(given.json.read_text())
    in_memory()
    with prepared(seed=given.seed) as campaign:
        steps = parts.run_all(
            campaign, given.minutes * 60, given.part, lambda line: print(line, flush=True), not given.add
        )
        for step in steps:
            document = parts.recorded(document, step, given.seed)
            if given.json is not None:  # after each step: a run that is stopped keeps what it has
                given.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
                if given.json.resolve() == parts.RESULTS:
                    parts.write_table(document)
    problems = sum(len(part["problems"]) for part in document["parts"].values())
    missed = [name for name, words in document["planted"].items() if not words]
    print(f"{problems} problems; planted bugs that were not found: {', '.join(missed) or 'none'}")
    return 1 if problems or missed else 0


if __name__ == "__main__":
    sys.exit(main())
