"""`python -m tests.reliability`: the long form of the campaign, recorded as JSON and as the table of docs/reliability.md."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dcclctl.version import __version__
from reliability import parts
from reliability.bench import why_not
from reliability.campaign import prepared


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
    given = parser.parse_args()
    if given.table:
        parts.write_table(parts.read_results())
        return 0
    if reason := why_not():
        print(f"the campaign cannot run: {reason}", file=sys.stderr)
        return 2
    with prepared(seed=given.seed) as campaign:
        found = parts.run_all(campaign, given.minutes * 60, given.part, lambda line: print(line, flush=True))
    document = found | {"seed": given.seed, "version": __version__, "minutes": given.minutes}
    if given.json is not None:
        if given.part and given.json.exists():
            # the chosen parts replace what is recorded of them
            known = json.loads(given.json.read_text())
            document |= {key: known[key] | found[key] for key in ("parts", "planted")}
        given.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        if given.json.resolve() == parts.RESULTS:
            parts.write_table(document)
    problems = sum(len(part["problems"]) for part in found["parts"].values())
    missed = [name for name, words in found["planted"].items() if not words]
    print(f"{problems} problems; planted bugs that were not found: {', '.join(missed) or 'none'}")
    return 1 if problems or missed else 0


if __name__ == "__main__":
    sys.exit(main())
