"""What helps tail users, and what does not: where the tables of docs/results.md come from. `pipelines/paper.sh` runs it.

    python benchmarks/science.py --out results/ [--logs ml-100k,grocery,…] [--chapters devices,memory,…] [--seeds 0,1,2]

LOGS: ml-100k, grocery, amazon-beauty (folder --data or DCCL_DATA), journey-first, journey-repeats (folder --journey, made
by benchmarks/complete_journey.py), and sample-repeats, the bundled log (not in the default). Chapters:

    paper      the paper's patch on the frozen cloud model on the next block (valid), its placebos, and μ = 0
    devices    what each device method adds to the frozen cloud model on the next block (valid), with placebos
    memory     memory-conditioned patches against the incremental control, on test, with placebos and ablations
    personal   variants of the memory-conditioned patch, on valid
    stronger   the incremental control with six times the negatives, and the memory patch on it, on test
    popularity the memory patch where what it says counts by how popular the item is, with placebos: on valid and on test
    further    the memory patch on the control of `clouds`, on test
    clouds     distilled clouds against the incremental control, on test
    lessons    who may teach, and how much each word counts: variants of both ways of teaching, on test
    rounds     three rounds of keeping fresh, remembering and teaching against one, each beside its control, on test
    baselines  what a reviewer would ask for, and the long window, against the incremental control, on test
    harm       how many users the memory patch and the distilled cloud make worse, noise taken off: valid and test side by side
    sasrec     SASRec kept fresh, and the memory patch on it, on test
    cold       new users served with their first 0, 1, 3, 5, 10 events: on what follows the tenth, and on what comes next
    newcomers  the same with other users made new under every seed, and the memory patch alone

Some chapters have memories without order and track record (WITH_PLAIN): their tables were made when there was nothing else.

Everything goes through the command line, and what is in the store already is reused: a stopped run goes on. Each
(log, chapter) gives a table OUT/<log>.<chapter>.md and the figures behind it as .json. Tail is the less active half.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from pipeline import DATA, Runner, ingest_arguments, plain

from dcclctl.metrics.groups import paired_differences
from dcclctl.metrics.significance import compare, holm

LOGS = ("ml-100k", "grocery", "amazon-beauty", "journey-first", "journey-repeats")
CHAPTERS = (
    "paper",
    "devices",
    "memory",
    "harm",
    "personal",
    "stronger",
    "popularity",
    "further",
    "clouds",
    "lessons",
    "rounds",
    "baselines",
    "sasrec",
    "cold",
    "newcomers",
)
#: a memory that does not count the order of events, and keeps no track record
PLAIN = ["--track", "0", "--lookback", "0"]
#: a patch to which what a memory says counts by how popular the item is
WEIGHED = ["--memory-popularity", "--memory-hidden", "64"]
#: chapters whose memories are plain
WITH_PLAIN = ("devices", "stronger", "lessons", "baselines", "cold")
#: the control: trained until valid AUC rises no more, as `train --continue` does by itself
LONG = ["--epochs", "20", "--patience", "2", "--learning-rate", "0.002"]
#: passes and rate of `distill --lesson unlabelled`, for the control beside it: until it ranks no better, too
LESSON = ["--epochs", "20", "--patience", "5", "--learning-rate", "0.001"]
#: the paper's distillation starts where the control at once does: as fast, and for more passes than that one ever took
PAPER = ["--lesson", "events", "--epochs", "8", "--learning-rate", "0.002"]
ONCE, TWICE = "incremental cloud, at once", "incremental cloud, in two steps"
LONGER = "incremental cloud, in two steps, trained further"
ONE_ROUND = "distilled, one round"
DISTILLED, PAPERS_WAY = "distilled from memories", "the paper's way"
FIRST_ROUND, SECOND_ROUND = "control, after the first of three", "control, after the second"
UNWEIGHED = "memory patch, popularity is nothing"
#: what U(0, u) is put on
UNENCODED = "distilled, the paper's way"
MEAN_PATCH = "metapatch, mean (placebo)"
#: parts of the chapters about new users: judged on what follows the tenth event, and on what comes next
PROTOCOLS = {"cold": ("cold", "next"), "newcomers": ("newcomers-later", "newcomers-next")}
#: the controls with six times the negatives
ONCE_24, TWICE_24 = f"{ONCE}, 24 negatives", f"{TWICE}, 24 negatives"
MORE_NEGATIVES = ["--negatives", "24"]
METRICS = ("gauc", "hr@10", "ndcg@10")
DEVICE_METHODS = (
    "metapatch",
    "linearised",
    "random-basis",
    "item-space",
    "fine-tune",
    "generated",
    "similar-users",
    "label-correction",
)
#: variants of the memory, judged on valid
MEMORIES = {
    "no order": ["--lookback", "0"],
    "no track record": ["--track", "0"],
    "neither": PLAIN,
}
#: variants of the patch on it
PERSONAL = {
    "θ̂ encoded": ["--personal", "encoder"],
    "θ̂ encoded and trained, λ = 10": ["--personal", "device", "--prior", "10"],
    "θ̂ encoded and trained, λ = 100, K = 8": ["--personal", "device", "--prior", "100", "--patch-size", "8"],
    "64 hidden units": ["--memory-hidden", "64"],
    "12 epochs": ["--memory-epochs", "12"],
}
BASELINES = ("popularity", "recent", "item-knn", "ease", "bpr", "fm", "neumf", "gru4rec", "sasrec")


class Study:
    """One log under one seed: the models that the chapters share, made when first asked for."""

    def __init__(self, run: Runner, dataset: str, seed: int, candidates: str, plain: bool) -> None:
        """Args: plain: memories without order and track record."""
        self.run, self.dataset, self.seed, self.candidates, self.plain = run, dataset, seed, candidates, plain

    def made(self, name: str, command: str, *arguments: str) -> str:
        return self.run(f"{name} {self.seed}", command, *arguments, "--seed", str(self.seed))

    @property
    def frozen(self) -> str:
        return self.made("frozen", "train", "--dataset", self.dataset)

    def continued(self, name: str, start: str, on: str, *arguments: str, budget: list[str] = LONG) -> str:
        return self.made(name, "train", "--continue", start, "--on", on, *budget, *arguments)

    @property
    def once(self) -> str:
        """The frozen model trained further on all of the device period at once."""
        return self.continued("long once, 4 negatives", self.frozen, "device")

    @property
    def incremental(self) -> str:
        """The same in two steps of half the period, as a cloud that is kept fresh; patches that need one go on top of it."""
        first = self.continued("long step 1, 4 negatives", self.frozen, "device:1/2")
        return self.continued("long step 2, 4 negatives", first, "device:2/2")

    @property
    def once_more(self) -> str:
        """`once` with more negatives."""
        return self.continued("long once, 24 negatives", self.frozen, "device", *MORE_NEGATIVES)

    @property
    def incremental_more(self) -> str:
        """`incremental` with more negatives."""
        first = self.continued("long step 1, 24 negatives", self.frozen, "device:1/2", *MORE_NEGATIVES)
        return self.continued("long step 2, 24 negatives", first, "device:2/2", *MORE_NEGATIVES)

    @property
    def longer(self) -> str:
        """The control of distillation: `incremental` trained on by the same rule as its student: until it ranks no better."""
        return self.continued("longer", self.incremental, "device", budget=LESSON)

    def memory(self, *arguments: str) -> str:
        flags = [*(PLAIN if self.plain else []), *arguments]
        return self.run("memory " + " ".join(flags), "memory", "--dataset", self.dataset, *flags)

    def remembering(self, name: str, cloud: str, *arguments: str, memory: str = "") -> str:
        """Memory-conditioned patches."""
        chosen = ["--memory", memory or self.memory()]
        return self.made(name, "patch", "--method", "memory", "--cloud", cloud, *chosen, *arguments)

    @property
    def patched(self) -> str:
        """The control in two steps with what devices remember."""
        return self.remembering("memory on long, 4 negatives", self.incremental)

    @property
    def student(self) -> str:
        """`incremental`, taught by devices with a memory about items that nobody has labelled."""
        return self.distilled("memory", self.patched)

    def distilled(self, name: str, patches: str, *flags: str) -> str:
        return self.made(f"distilled, {name}", "distill", "--patches", patches, *flags)

    def evaluated(self, chapter: str, models: dict[str, str], period: str, *arguments: str) -> pl.DataFrame:
        """Per-user metrics of the models, named as in `models`, on one period."""
        sampled = ["--on", period, "--candidates", self.candidates]
        reference = self.made(f"evaluate {chapter}", "evaluate", *models.values(), *sampled, *arguments)
        return plain(self.run.table(reference), models)

    # -- the chapters: model → reference, the first is what the others are compared with

    def paper(self) -> pl.DataFrame:
        models = {"frozen cloud": self.frozen}
        models["metapatch"] = self.metapatch
        models[MEAN_PATCH] = models["metapatch"] + "+mean"
        models["metapatch, shuffled (placebo)"] = models["metapatch"] + "+shuffled"
        models["metapatch, no mean in the prior"] = self.without_a_mean
        models[ONCE] = self.once
        return self.evaluated("paper", models, "valid")

    @property
    def metapatch(self) -> str:
        """The paper's patch on the frozen model."""
        return self.made("metapatch", "patch", "--method", "metapatch", "--cloud", self.frozen)

    @property
    def without_a_mean(self) -> str:
        """MetaPatch whose prior expects the cloud model of every device."""
        flags = ("--prior-mean", "zero", "--prior", "10")
        return self.made("metapatch without a mean", "patch", "--method", "metapatch", "--cloud", self.frozen, *flags)

    def devices(self) -> pl.DataFrame:
        models = {"frozen cloud": self.frozen}
        for method in DEVICE_METHODS:
            models[method] = self.made(method, "patch", "--method", method, "--cloud", self.frozen)
        models["metapatch, no mean in the prior"] = self.without_a_mean
        models[MEAN_PATCH] = models["metapatch"] + "+mean"
        models["metapatch, shuffled (placebo)"] = models["metapatch"] + "+shuffled"
        models["metapatch, guarded"] = self.made(
            "metapatch guarded", "patch", "--method", "metapatch", "--cloud", self.frozen, "--guard"
        )
        models["memory patch"] = self.remembering("memory on frozen", self.frozen)
        models[ONCE] = self.once
        return self.evaluated("devices", models, "valid")

    def memories(self) -> pl.DataFrame:
        control = self.incremental
        memory = self.patched
        short = self.remembering("memory of 20", control, memory=self.memory("--size", "20"))
        plain = self.remembering("neither", control, memory=self.memory(*MEMORIES["neither"]))
        models = {
            TWICE: control,
            ONCE: self.once,
            "frozen cloud": self.frozen,
            "metapatch (paper)": self.metapatch,
            "memory patch": memory,
            "memory patch, shuffled memories (placebo)": memory + "+shuffled",
            "memory patch of the last 20 events": short,
            "memory patch, neither order nor track record": plain,
        }
        return self.evaluated("memory", models, "test")

    def harm(self) -> dict[str, pl.DataFrame]:
        """The same models on two blocks that share no event; neither was learned from, one chose the epochs."""
        models = {TWICE: self.incremental, ONCE: self.once, "memory patch": self.patched}
        models |= {LONGER: self.longer, DISTILLED: self.student}
        return {period: self.evaluated(f"harm {period}", models, period) for period in ("valid", "test")}

    def personal(self) -> pl.DataFrame:
        control = self.incremental
        models = {TWICE: control, "memory patch": self.patched}
        for name, flags in MEMORIES.items():
            models[f"memory patch, {name}"] = self.remembering(name, control, memory=self.memory(*flags))
        for name, flags in PERSONAL.items():
            models[f"memory patch, {name}"] = self.remembering(name, control, *flags)
        return self.evaluated("personal", models, "valid")

    def stronger(self) -> pl.DataFrame:
        """Control and patch where the control is trained with six times the negatives."""
        models = {ONCE: self.once, TWICE: self.incremental, "memory patch": self.patched}
        models |= {ONCE_24: self.once_more, TWICE_24: self.incremental_more}
        more = self.remembering("memory on long, 24 negatives", self.incremental_more)
        models["memory patch, on 24 negatives"] = more
        return self.evaluated("stronger", models, "test")

    def popularity(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Does a rare item prove more? And how much of what that brings is had with another user's memory?"""
        weighed = self.remembering("weighed by popularity", self.incremental, *WEIGHED)
        models = {TWICE: self.incremental}
        for name, patches in ((UNWEIGHED, self.patched), ("memory patch, by popularity", weighed)):
            models |= {name: patches, f"{name}, shuffled memories (placebo)": patches + "+shuffled"}
        for period in ("valid", "test"):
            yield f"popularity-{period}", self.evaluated(f"popularity {period}", models, period)

    def further(self) -> pl.DataFrame:
        """The strictest control, and memories on top of it."""
        models = {LONGER: self.longer, "memory patch on it": self.remembering("memory on longer", self.longer)}
        return self.evaluated("further", models, "test")

    def clouds(self) -> pl.DataFrame:
        shuffled, unpatched = ("--teachers", "shuffled"), ("--teachers", "unpatched")
        models = {LONGER: self.longer, TWICE: self.incremental, ONCE: self.once}
        models["memory teachers themselves"] = self.patched
        models[DISTILLED] = self.student
        models["distilled from shuffled memories (placebo)"] = self.distilled("shuffled", self.patched, *shuffled)
        models["distilled from the unpatched model (placebo)"] = self.distilled("unpatched", self.patched, *unpatched)
        models["the paper's way, from metapatch"] = self.distilled("paper", self.metapatch, *PAPER)
        placebo = self.distilled("paper unpatched", self.metapatch, *PAPER, *unpatched)
        models["the paper's way, from the unpatched model (placebo)"] = placebo
        models["memory patch on distilled"] = self.remembering("memory on distilled", self.student)
        return self.evaluated("clouds", models, "test")

    def lessons(self) -> pl.DataFrame:
        """Other teachers for the paper's lesson, which starts where `once` does, and for ours."""
        models = {LONGER: self.longer, ONCE: self.once}
        taught = {PAPERS_WAY: ("paper", self.metapatch, PAPER), DISTILLED: ("memory", self.patched, [])}
        chosen = {
            "": (),
            ", from another's patch (placebo)": ("--teachers", "shuffled"),
            ", only from users whose patch passed the guard": ("--teachers", "guarded"),
            ", weighted by evidence": ("--evidence",),
        }
        for way, (name, patches, flags) in taught.items():
            for variant, more in chosen.items():
                made = self.distilled(f"{name} {' '.join(more)}".strip(), patches, *flags, *more)
                models[way + variant] = made
        return self.evaluated("lessons", models, "test")

    def rounds(self) -> pl.DataFrame:
        """Three rounds over thirds of the device period against one over all of it, each beside the control that learns as often.

        A round keeps the cloud model fresh on its block, learns from the block what memories are worth, and teaches.
        """
        student = control = self.frozen
        students, controls = [], []
        for number in (1, 2, 3):
            block = f"device:{number}/3"
            fresh = self.continued(f"round {number} fresh", student, block)
            memory = self.memory("--until", block)
            patches = self.remembering(f"round {number} patches", fresh, "--on", block, memory=memory)
            student = self.distilled(f"round {number}", patches, "--on", block)
            control = self.continued(f"round {number} control", control, block)
            control = self.continued(f"round {number} control, longer", control, block, budget=LESSON)
            students.append(student)
            controls.append(control)
        models = {
            "control, three rounds": control,
            "distilled, three rounds": student,
            "control, one round": self.longer,
            ONE_ROUND: self.student,
        }
        for number, after in enumerate((FIRST_ROUND, SECOND_ROUND)):
            models |= {after: controls[number], after.replace("control", "distilled"): students[number]}
        return self.evaluated("rounds", models, "test")

    def baselines(self) -> pl.DataFrame:
        both = ["--on", "cloud,device"]
        models = {TWICE: self.incremental, ONCE: self.once}
        for name in BASELINES:
            models[name] = self.made(name, "train", "--dataset", self.dataset, "--model", name, *both)
        models["DIN, L = 20, cloud and device from scratch"] = self.made(
            "din at once", "train", "--dataset", self.dataset, *both
        )
        long = self.made("long", "train", "--dataset", self.dataset, "--history", "100")
        models["DIN, L = 100, at once"] = self.continued("longer history once", long, "device")
        models[ONCE_24] = self.once_more
        models["memory patch on DIN, L = 20"] = self.patched
        return self.evaluated("baselines", models, "test")

    def sasrec(self) -> pl.DataFrame:
        """Does the memory add to a model that is better than DIN to begin with?"""
        frozen = self.made("sasrec on cloud", "train", "--dataset", self.dataset, "--model", "sasrec")
        first = self.continued("sasrec long step 1", frozen, "device:1/2")
        fresh = self.continued("sasrec long step 2", first, "device:2/2")
        models = {
            "SASRec, in two steps": fresh,
            "SASRec, at once": self.continued("sasrec long once", frozen, "device"),
            "memory patch on SASRec": self.remembering("memory on long sasrec", fresh),
            "DIN, in two steps": self.incremental,
            "memory patch on DIN": self.patched,
        }
        return self.evaluated("sasrec", models, "test")

    def cold(self) -> Iterator[tuple[str, pl.DataFrame]]:
        control = self.incremental
        distilled = self.distilled("paper", self.metapatch, *PAPER)
        models = {
            TWICE: control,
            "memory patch": self.patched,
            DISTILLED: self.student,
            UNENCODED: distilled,
            f"{UNENCODED}, U(0, u)": distilled + "+encoder",
            "memory patch on distilled": self.remembering("memory on distilled", self.student),
        }
        yield from self.with_first_events(models, *PROTOCOLS["cold"])

    def newcomers(self) -> Iterator[tuple[str, pl.DataFrame]]:
        models = {TWICE: self.incremental, "memory patch": self.patched}
        for part, table in self.with_first_events(models, *PROTOCOLS["newcomers"]):
            yield part, table.filter(pl.col("group") == "new")

    def with_first_events(
        self, models: dict[str, str], later: str, following: str
    ) -> Iterator[tuple[str, pl.DataFrame]]:
        """New users after each number of events: judged on what follows the tenth, and on what comes next."""
        for part, after in ((later, "10"), (following, "next")):
            for first in (0, 1, 3, 5, 10):
                served = ["--first-events", str(first), "--targets-after", after]
                yield f"{part}.{first}", self.evaluated(f"{part} {first}", models, "test", *served)


def numbered_together(tables: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Tables of different data sets of one log, with one number for each user of any of them."""
    ids = pl.concat([table.select("user_id") for table in tables]).unique().sort("user_id")
    ids = ids.with_row_index("user_index").cast({"user_index": pl.Int32})
    width = tables[0].columns
    return [
        table.drop("user_index").join(ids, on="user_id", how="left", maintain_order="left").select(width)
        for table in tables
    ]


def mean_over_seeds(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Each user's metrics averaged over seeds; the group is tail for the less active half, head for the other, or new."""
    keys = ["subject", "user_index", "user_id", "group", "activity_group"]
    table = pl.concat(tables).group_by(keys, maintain_order=True).agg(pl.col(*METRICS).mean())
    half = pl.when(pl.col("activity_group") < 10).then(pl.lit("tail")).otherwise(pl.lit("head"))
    return table.with_columns(pl.when(pl.col("group") == "new").then(pl.lit("new")).otherwise(half).alias("group"))


def figures_of(tables: list[pl.DataFrame], against: str = "") -> list[dict[str, object]]:
    """One record per model, group and metric: value, spread over seeds, difference to the first model (or to another one),
    interval, p, users."""
    joint, each = mean_over_seeds(tables), [mean_over_seeds([table]) for table in tables]
    subjects = joint["subject"].unique(maintain_order=True).to_list()
    subjects.sort(key=lambda name: name != against)  # stable: the reference first
    records: list[dict[str, object]] = []
    # where all users are new, "all" says what "new" says: a family of comparisons has each of them once
    repeated = "all" if joint["group"].unique().to_list() == ["new"] else ""

    def values(table: pl.DataFrame, subject: str, group: str, metric: str) -> float | None:
        own = table.filter((pl.col("subject") == subject) & ((pl.col("group") == group) | (group == "all")))
        return own[metric].mean()  # type: ignore[return-value]

    for subject in subjects:
        found = None if subject == subjects[0] else compare(paired_differences(joint, subject, subjects[0]), seed=0)
        # where every seed has users of its own, hardly anyone is judged under more than one
        worse = None if found is None or repeated else harmed(tables, subject, subjects[0])
        for group in ("all", "tail", "head", "new"):
            for metric in METRICS:
                value = values(joint, subject, group, metric)
                if value is None:
                    continue
                spread = [values(table, subject, group, metric) or 0.0 for table in each]
                record = {"model": subject, "group": group, "metric": metric, "value": value}
                record |= {"spread": (max(spread) - min(spread)) / 2, "seeds": len(tables)}
                if found is not None:
                    row = found.filter((pl.col("group") == group) & (pl.col("metric") == metric)).row(0, named=True)
                    record |= {name: row[name] for name in ("users", "difference", "low", "high", "p_value")}
                    record["harmed"] = worse[group] if worse and metric == "gauc" else None
                records.append(record)
    asked = [None if record["group"] == repeated else record.get("p_value") for record in records]
    p_values = pl.Series(asked, dtype=pl.Float64).fill_null(float("nan"))
    for record, corrected in zip(records, holm(p_values.to_numpy().copy()), strict=True):
        record["p_holm"] = None if corrected != corrected else float(corrected)
    return records


def activity_of(tables: list[pl.DataFrame]) -> list[dict[str, object]]:
    """Difference in GAUC to the first model by activity group, 1 the least active of 20, in points with its interval."""
    joint = mean_over_seeds(tables)
    subjects = joint["subject"].unique(maintain_order=True).to_list()
    names = tuple(f"activity-{number:02d}" for number in range(20))
    records: list[dict[str, object]] = []
    for subject in [name for name in subjects[1:] if name in (ONCE, "metapatch (paper)", "memory patch")]:
        found = compare(paired_differences(joint, subject, subjects[0]), names, seed=0).filter(
            pl.col("metric") == "gauc"
        )
        for number, row in enumerate(found.iter_rows(named=True), 1):
            if row["low"] is not None:
                points = {name: 100 * row[name] for name in ("difference", "low", "high")}
                records.append({"model": subject, "group": number, "users": row["users"], **points})
    return records


def lasting_harm(blocks: list[dict[str, pl.DataFrame]], resamples: int = 1000) -> list[dict[str, object]]:
    """How many users are worse off for more than a block: against the control in two steps, the distilled cloud against its own.

    A user's difference on a block is d = δ_u + noise. The noises of two blocks share no test event, so the covariance
    of the two differences over the users is the variance σ² of the lasting δ_u, and their mean is its mean μ. If δ is
    about normal, Φ(−μ/σ) of the users have δ_u < 0. Beside it, free of that assumption: how many are worse off under every
    seed on valid, on test, on both, and on both if the two had nothing to do with each other. Intervals by bootstrap over users.
    """
    records: list[dict[str, object]] = []
    for subject in [
        name for name in blocks[0]["test"]["subject"].unique(maintain_order=True) if name not in (TWICE, LONGER)
    ]:
        control = LONGER if subject == DISTILLED else TWICE
        parts = {}
        for period in ("valid", "test"):
            joint = mean_over_seeds([seed[period] for seed in blocks])
            mean = paired_differences(joint, subject, control).select("user_index", "group", "gauc")
            signs = [
                paired_differences(mean_over_seeds([seed[period]]), subject, control).select("user_index", worse="gauc")
                for seed in blocks
            ]
            every = pl.concat(signs).group_by("user_index").agg((pl.col("worse") < 0).all())
            parts[period] = mean.join(every, on="user_index").drop_nulls()
        both = parts["valid"].join(parts["test"].drop("group"), on="user_index", suffix="_test").sort("user_index")
        for group in ("all", "tail", "head"):
            own = both if group == "all" else both.filter(pl.col("group") == group)
            first, second = (100 * own[name].to_numpy() for name in ("gauc", "gauc_test"))
            worse, worse_test = own["worse"].to_numpy(), own["worse_test"].to_numpy()
            draws = np.random.default_rng(0).integers(0, own.height, (resamples, own.height))
            estimates = [below_zero(first[at], second[at]) for at in (np.arange(own.height), *draws)]
            low, high = np.quantile(estimates[1:], [0.025, 0.975])
            found = {"valid": worse.mean(), "test": worse_test.mean(), "both": (worse & worse_test).mean()}
            found |= {"by chance": worse.mean() * worse_test.mean(), "estimate": estimates[0], "low": low, "high": high}
            sizes = {
                "users": own.height,
                "mean": (first.mean() + second.mean()) / 2,
                "spread": spread_of(first, second),
            }
            records.append(
                {
                    "model": subject,
                    "control": control,
                    "group": group,
                    **sizes,
                    **{k: float(v) for k, v in found.items()},
                }
            )
    return records


def spread_of(first: np.ndarray, second: np.ndarray) -> float:
    """σ: standard deviation over the users of what the two blocks have in common."""
    return math.sqrt(max(float(np.mean((first - first.mean()) * (second - second.mean()))), 0.0))


def below_zero(first: np.ndarray, second: np.ndarray) -> float:
    """Φ(−μ/σ): the share of users whose lasting difference is below zero; all or nothing where σ is 0."""
    mean, spread = (first.mean() + second.mean()) / 2, spread_of(first, second)
    return 0.5 * math.erfc(mean / (spread * math.sqrt(2))) if spread else float(mean < 0)


def harm_table(records: list[dict[str, object]]) -> str:
    """Shares of users, in per cent."""
    title = [
        "model",
        "against",
        "users",
        "worse on valid",
        "on test",
        "on both",
        "both, by chance",
        "lasting harm, estimated",
    ]
    lines = ["| " + " | ".join(title) + " |", "|---" * len(title) + "|"]
    for r in records:
        shares = [f"{100 * r[name]:.1f}" for name in ("valid", "test", "both", "by chance")]  # type: ignore[operator]
        estimate = f"{100 * r['estimate']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"  # type: ignore[operator]
        lines.append(
            f"| {r['model']}, {r['group']} | {r['control']} | {r['users']:,} | "
            + " | ".join(shares)
            + f" | {estimate} |"
        )
    return "\n".join(lines) + "\n"


def harmed(tables: list[pl.DataFrame], subject: str, control: str) -> dict[str, float]:
    """Share of users that are worse off in GAUC under every seed.

    A user with few test events is worse off in one seed by chance as often as not. What holds under all seeds still
    counts the noise of the test events themselves, which the seeds share: read it as an upper bound.
    """
    signs = []
    for table in tables:
        own = mean_over_seeds([table])
        difference = paired_differences(own, subject, control)
        signs.append(difference.select("user_index", "group", (pl.col("gauc") < 0).cast(pl.Int8).alias("worse")))
    joined = (
        pl.concat(signs)
        .drop_nulls("worse")
        .group_by("user_index", "group", maintain_order=True)
        .agg(pl.col("worse").min())
    )
    shares = {"all": float(joined["worse"].mean() or 0.0)}  # type: ignore[arg-type]
    for group in ("tail", "head", "new"):
        mine = joined.filter(pl.col("group") == group)
        shares[group] = float(mine["worse"].mean() or 0.0) if mine.height else 0.0  # type: ignore[arg-type]
    return shares


def markdown(records: list[dict[str, object]]) -> str:
    """A table: models down; value and difference of GAUC and HR@10 for all and tail, and GAUC of the head."""
    by = {(r["model"], r["group"], r["metric"]): r for r in records}
    models = list(dict.fromkeys(r["model"] for r in records))
    groups = [g for g in ("all", "tail", "head", "new") if any(r["group"] == g for r in records)]
    title = ["model", "GAUC", "HR@10", "NDCG@10"]
    title += [f"{g}, {name}" for g in groups for name in ("Δ GAUC", "Δ HR@10")]
    lines = ["| " + " | ".join(title) + " |", "|---" * len(title) + "|"]
    for model in models:
        first = [by[(model, "all", metric)] for metric in METRICS if (model, "all", metric) in by]
        cells = [f"{100 * r['value']:.2f} ±{100 * r['spread']:.2f}" for r in first]  # type: ignore[operator]
        for group in groups:
            for metric in ("gauc", "hr@10"):
                record = by.get((model, group, metric), {})
                cells.append(cell(record))
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against_the_best(tables: list[pl.DataFrame], controls: list[str]) -> str:
    """Every memory patch against the control that it gains least over, group by group and metric by metric.

    The control is chosen on the period that is reported, so against the patch.
    """
    by = {other: {(r["model"], r["group"], r["metric"]): r for r in figures_of(tables, other)} for other in controls}
    keys = list(dict.fromkeys(key for records in by.values() for key in records))
    lines = ["| model | group | metric | best control | its value | difference |", "|---|---|---|---|---|---|"]
    for model, group, metric in keys:
        found = [(records[(model, group, metric)].get("difference"), other) for other, records in by.items()]
        least = min(((d, other) for d, other in found if d is not None), default=None)
        if str(model).startswith("memory patch") and metric in ("gauc", "hr@10") and least is not None:
            records = by[least[1]]
            value = 100 * records[(least[1], group, metric)]["value"]  # type: ignore[operator]
            name = {"gauc": "GAUC", "hr@10": "HR@10"}[str(metric)]
            difference = cell(records[(model, group, metric)])
            lines.append(f"| {model} | {group} | {name} | {least[1]} | {value:.2f} | {difference} |")
    return "\n".join(lines) + "\n"


def cold_table(found: dict[str, list[dict[str, object]]]) -> str:
    """New users: every number of first events down; the first model's values and the others' differences to it across.

    Args:
        found: "….K" → records of `figures_of`.
    """
    lines: list[str] = []
    for part, records in found.items():
        by = {(r["model"], r["metric"]): r for r in records if r["group"] == "new"}
        models = list(dict.fromkeys(model for model, _ in by))
        if not lines:
            title = ["K", "users", *(f"{models[0]}, {name}" for name in ("GAUC", "HR@10"))]
            title += [f"{model}, {name}" for model in models[1:] for name in ("Δ GAUC", "Δ HR@10")]
            lines += ["| " + " | ".join(title) + " |", "|---" * len(title) + "|"]
        base = [by[(models[0], metric)] for metric in ("gauc", "hr@10")]
        cells = [part.rpartition(".")[2], str(by[(models[1], "gauc")]["users"])]
        cells += [f"{100 * r['value']:.2f}" for r in base]  # type: ignore[operator]
        cells += [cell(by[(model, metric)]) for model in models[1:] for metric in ("gauc", "hr@10")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(record: dict[str, object]) -> str:
    """+1.23 [0.90, 1.50], bold where the interval leaves out zero."""
    if record.get("difference") is None:
        return ""
    text = f"{100 * record['difference']:+.2f}"  # type: ignore[operator]
    if record.get("low") is None:
        return text
    low, high = 100 * record["low"], 100 * record["high"]  # type: ignore[operator]
    return f"**{text}** [{low:+.2f}, {high:+.2f}]" if low > 0 or high < 0 else f"{text} [{low:+.2f}, {high:+.2f}]"


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
    arguments = ingest_arguments(options.data, options.journey.resolve())
    given = json.loads(options.given.read_text()) if options.given else {}
    for name in options.logs.split(","):
        for chapter in options.chapters.split(","):
            print(f"{name}, {chapter}", flush=True)
            fresh = chapter in PROTOCOLS  # other data sets: some of the users are new there
            store = options.out / (f"{name}.new.store" if fresh else f"{name}.store")
            run = Runner(store, options.threads, {} if fresh else given.get(name, {}))
            more = ["--new-users", "0.15"] if fresh else []
            tables: dict[str, list[pl.DataFrame]] = {}
            blocks: list[dict[str, pl.DataFrame]] = []
            compared: dict[str, list[dict[str, object]]] = {}
            for seed in map(int, options.seeds.split(",")):
                drawn = ["--seed", str(seed)] if chapter == "newcomers" else []
                if drawn:  # a name means one command for good, and here every seed has a data set of its own
                    run = Runner(store, options.threads)
                dataset = run("ingest", "ingest", *arguments[name], *more, *drawn)
                study = Study(run, dataset, seed, options.candidates, chapter in WITH_PLAIN)
                if chapter == "harm":
                    blocks.append(study.harm())
                    lasting = lasting_harm(blocks)
                    (options.out / f"{name}.harm.json").write_text(json.dumps(lasting, indent=1))
                    (options.out / f"{name}.harm.md").write_text(harm_table(lasting))
                else:
                    made = study.memories() if chapter == "memory" else getattr(study, chapter)()
                    for part, table in [(chapter, made)] if isinstance(made, pl.DataFrame) else made:
                        tables.setdefault(part, []).append(table)
                    if drawn:
                        tables = {part: numbered_together(found) for part, found in tables.items()}
                for part, found in tables.items():
                    records = compared[part] = figures_of(found)
                    (options.out / f"{name}.{part}.json").write_text(json.dumps(records, indent=1))
                    (options.out / f"{name}.{part}.md").write_text(markdown(records))
                    if part == "memory":
                        (options.out / f"{name}.memory.activity.json").write_text(json.dumps(activity_of(found)))
                    if part == "stronger":
                        controls = [ONCE, TWICE, ONCE_24, TWICE_24]
                        (options.out / f"{name}.best.md").write_text(against_the_best(found, controls))
                    others = (
                        *(("once", ONCE), ("twice", TWICE), ("more", ONCE_24), ("mean", MEAN_PATCH)),
                        *(("one", ONE_ROUND), ("first", FIRST_ROUND), ("second", SECOND_ROUND)),
                        *(("paper", PAPERS_WAY), ("taught", DISTILLED), ("own", UNENCODED), ("unweighed", UNWEIGHED)),
                    )
                    for short, other in others:
                        if other in found[0]["subject"].unique(maintain_order=True)[1:]:
                            against = figures_of(found, other)
                            (options.out / f"{name}.{part}.{short}.json").write_text(json.dumps(against, indent=1))
                            (options.out / f"{name}.{part}.{short}.md").write_text(markdown(against))
                if fresh:
                    for protocol in PROTOCOLS[chapter]:
                        own = {part: found for part, found in compared.items() if part.startswith(protocol + ".")}
                        (options.out / f"{name}.{protocol}.md").write_text(cold_table(own))
                (options.out / f"{name}.{chapter}.costs.{seed}.json").write_text(json.dumps(run.costs, indent=1))
    print("see", options.out)


if __name__ == "__main__":
    main()
