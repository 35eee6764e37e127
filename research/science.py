"""What helps tail users, and what does not: where the tables of docs/results.md and research/results/ come from. `pipelines/paper.sh` runs it.

    python research/science.py --out results/ [--logs ml-100k,grocery,…] [--chapters devices,memory,…] [--seeds 0,1,2]

LOGS: ml-100k, grocery, amazon-beauty (folder --data or DCCL_DATA), journey-first, journey-repeats (folder --journey, made
by research/complete_journey.py), and sample-repeats, the bundled log (not in the default). Chapters:

    paper      the paper's patch on the frozen cloud model on the next block (valid), its placebos, and μ = 0
    devices    what each device method adds to the frozen cloud model on the next block (valid), with placebos
    strong     the memory patch on the strong cloud model, SASRec, kept fresh in two ways: trained further, and from scratch; on
               test: the table of the front page. All items are ranked in all chapters of the strong model
    strong_metapatch, strong_placebo   the paper's patch on the frozen strong model, and the memory patch, beside placebos, on test
    strong_taught   the strong model taught by devices with a memory, on test (these three are not in the default)
    memory     memory-conditioned patches against the incremental control, on test, with placebos and ablations
    ablations  the memory patch without order, without the profile of recent events, and without both, on valid
    stronger   the incremental control with six times the negatives, and the memory patch on it, on test
    further    the memory patch on the control of `clouds`, on test
    clouds     distilled clouds against the incremental control, on test
    teachers   who may teach: variants of both ways of teaching, on test
    rounds     three rounds of keeping fresh, remembering and teaching against one, each beside its control, on test
    baselines  what a reviewer would ask for, and the long window, against the incremental control, on test
    counted    those of them in closed form alone, and the memory patch; with repeats also apart for what users come back to and
               what is new to them, on test (not in the default)
    harm       how many users the memory patch and the distilled cloud make worse, noise taken off: valid and test side by side
    sasrec     SASRec kept fresh, and the memory patch on it, on test
    cold       new users served with their first 0, 1, 3, 5, 10 events: on what follows the tenth, and on what comes next
    newcomers  the same with other users made new under every seed, and the memory patch alone

The memories of `cold` have no order and no profile (WITH_PLAIN): its tables were made when there was nothing else.

Everything goes through the command line, and what is in the store already is reused: a stopped run goes on. Each
(log, chapter) gives a table OUT/<log>.<chapter>.md and the figures behind it as .json; beside it .favours.md, the gain of
the tail minus that of the head. Tail is the less active half.
"""

import argparse
import json
from pathlib import Path

import polars as pl
from figures import (
    Records,
    activity_of,
    against_the_best,
    best_table,
    cold_table,
    favour_table,
    figures_of,
    harm_table,
    lasting_harm,
    markdown,
    numbered_together,
    tail_minus_head,
)
from pipeline import DATA, Runner, ingest_arguments
from study import (
    DISTILLED,
    FIRST_ROUND,
    HABIT,
    MEAN_PATCH,
    ONCE,
    ONCE_24,
    ONE_ROUND,
    PAPERS_WAY,
    PROTOCOLS,
    SASREC,
    SECOND_ROUND,
    SOME_NEW,
    STRONG,
    STRONG_FROZEN,
    STRONG_LONGER,
    STRONG_SCRATCH,
    STRONG_UNTAUGHT,
    TWICE,
    TWICE_24,
    UNENCODED,
    WIDE,
    Study,
)

LOGS = ("ml-100k", "grocery", "amazon-beauty", "journey-first", "journey-repeats")
CHAPTERS = (
    "strong",
    "paper",
    "devices",
    "memory",
    "harm",
    "ablations",
    "stronger",
    "further",
    "clouds",
    "teachers",
    "rounds",
    "baselines",
    "sasrec",
    "cold",
    "newcomers",
)
#: chapters whose memories are plain: `newcomers` has newer ones
WITH_PLAIN = ("cold",)
#: the controls of which all other models have to beat the best
CONTROLS = {
    "memory": [ONCE, TWICE],
    "stronger": [ONCE, TWICE, ONCE_24, TWICE_24],
    "strong": [STRONG_SCRATCH, STRONG],
    "strong_taught": [STRONG, STRONG_LONGER, STRONG_UNTAUGHT],
}
#: models that a table is made against as well, beside its first one, and what that table is called
REFERENCES = {
    "once": ONCE,
    "twice": TWICE,
    "more": ONCE_24,
    "mean": MEAN_PATCH,
    "one": ONE_ROUND,
    "first": FIRST_ROUND,
    "second": SECOND_ROUND,
    "paper": PAPERS_WAY,
    "taught": DISTILLED,
    "own": UNENCODED,
    "wide": WIDE,
    "sasrec": SASREC,
    "habit": HABIT,
    "further": STRONG,
    "frozen": STRONG_FROZEN,
}


class Chapter:
    """One chapter on one log: asks a study of every seed for its tables, and writes what they say together so far."""

    def __init__(
        self, log: str, name: str, options: argparse.Namespace, ingest: list[str], given: dict[str, str]
    ) -> None:
        """Args: ingest: arguments of the command. given: models that exist, see `Runner`."""
        self.log, self.name, self.options = log, name, options
        self.fresh = name in PROTOCOLS  # other data sets: some of the users are new there
        self.store = options.out / (f"{log}.new.store" if self.fresh else f"{log}.store")
        self.ingest = [*ingest, *(SOME_NEW if self.fresh else [])]
        self.run = Runner(self.store, options.threads, {} if self.fresh else given)
        self.tables: dict[str, list[pl.DataFrame]] = {}
        self.blocks: list[dict[str, pl.DataFrame]] = []
        self.clouds: dict[str, list[float]] = {}  # NDCG@10 on valid of the strong models, one a seed

    def add(self, seed: int) -> None:
        """One more seed."""
        drawn = ["--seed", str(seed)] if self.name == "newcomers" else []
        if drawn:  # a name means one command for good, and here every seed has a data set of its own
            self.run = Runner(self.store, self.options.threads)
        dataset = self.run("ingest", "ingest", *self.ingest, *drawn)
        repeats = "keep" in self.ingest
        study = Study(self.run, dataset, seed, self.options.candidates, self.name in WITH_PLAIN, repeats)
        if self.name == "harm":
            self.blocks.append(study.harm())
            self.write("harm", lasting := lasting_harm(self.blocks), harm_table(lasting))
        else:
            made = study.memories() if self.name == "memory" else getattr(study, self.name)()
            if self.name == "strong":
                for model, cloud in {STRONG_SCRATCH: study.strong_scratch, STRONG: study.strong_fresh}.items():
                    self.clouds.setdefault(model, []).append(self.run.facts(cloud)["best_valid_ndcg"])
            for part, table in [(self.name, made)] if isinstance(made, pl.DataFrame) else made:
                self.tables.setdefault(part, []).append(table)
            if drawn:
                self.tables = {part: numbered_together(found) for part, found in self.tables.items()}
            compared = {part: self.compared(part, found) for part, found in self.tables.items()}
            for protocol in PROTOCOLS.get(self.name, ()):
                own = {part: records for part, records in compared.items() if part.startswith(protocol + ".")}
                self.path(f"{protocol}.md").write_text(cold_table(own))
        self.path(f"{self.name}.costs.{seed}.json").write_text(json.dumps(self.run.costs, indent=1))

    def compared(self, part: str, found: list[pl.DataFrame]) -> Records:
        """Writes one part's table and the tables beside it; gives the figures of the first."""
        records = figures_of(found)
        self.write(part, records, markdown(records))
        if not self.fresh:
            self.write(f"{part}.favours", favours := tail_minus_head(found), favour_table(favours))
        if part == "strong":
            self.path("strong.activity.json").write_text(json.dumps(activity_of(found)))
            self.path("strong.clouds.json").write_text(json.dumps(self.clouds, indent=1))
        if part in CONTROLS:
            best = against_the_best(found, CONTROLS[part])
            self.write(f"{part}.best", best, best_table(best))
        others = found[0]["subject"].unique(maintain_order=True)[1:]
        for short, other in REFERENCES.items():
            if other in others:
                against = figures_of(found, other)
                self.write(f"{part}.{short}", against, markdown(against))
        return records

    def write(self, part: str, records: Records, table: str) -> None:
        self.path(f"{part}.json").write_text(json.dumps(records, indent=1))
        self.path(f"{part}.md").write_text(table)

    def path(self, name: str) -> Path:
        return Path(self.options.out / f"{self.log}.{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", default=",".join(LOGS))
    parser.add_argument("--chapters", default=",".join(CHAPTERS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--candidates", default="300", help="ranked for each event; all is exact and slow")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--journey", type=Path, default=Path("complete_journey"))
    parser.add_argument(
        "--given", type=Path, help='models that exist in the store: {"ml-100k": {"frozen 0": "cloud@1"}}'
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ingest = ingest_arguments(options.data, options.journey.resolve())
    given = json.loads(options.given.read_text()) if options.given else {}
    for log in options.logs.split(","):
        for name in options.chapters.split(","):
            print(f"{log}, {name}", flush=True)
            chapter = Chapter(log, name, options, ingest[log], given.get(log, {}))
            for seed in map(int, options.seeds.split(",")):
                chapter.add(seed)
    print("see", options.out)


if __name__ == "__main__":
    main()
