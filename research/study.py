"""The models of one log under one seed, made by commands of dcclctl, and which of them each chapter compares."""

from collections.abc import Iterator

import polars as pl
from pipeline import Runner, plain

# Flags of dcclctl that the studies use: here alone, and in pipeline.ingest_arguments.
#: memories that leave something out
NO_ORDER, NO_PROFILE, LAST_20 = ["--transition-window", "0"], ["--profile-window", "0"], ["--size", "20"]
PLAIN = [*NO_PROFILE, *NO_ORDER]
#: methods of `patch`
METAPATCH, FINE_TUNE, REMEMBERING = ["--method", "metapatch"], ["--method", "fine-tune"], ["--method", "memory"]
NO_MEAN = ["--set", "patch.metapatch.prior_mean=zero", "--prior", "10"]
GUARDED = ["--guard"]
#: methods of `distill`; the second one is the default for patches that remember
MOMODISTILL, FROM_MEMORY = ["--method", "momodistill"], ["--method", "from-memory"]
SHUFFLED_TEACHERS, UNPATCHED_TEACHERS = ["--teachers", "shuffled"], ["--teachers", "unpatched"]
GUARDED_TEACHERS = ["--teachers", "guarded"]
#: the control: trained until valid AUC rises no more, as `train --continue` does by itself
LONG = ["--epochs", "20", "--patience", "2", "--learning-rate", "0.002"]
#: passes and rate of teaching from memories, for the control beside it: until it ranks no better, too
LONGEST = ["--epochs", "20", "--patience", "5", "--learning-rate", "0.001"]
#: the paper's distillation starts where the control at once does: as fast, and for more passes than that one ever took
PAPER = [*MOMODISTILL, "--epochs", "8", "--learning-rate", "0.002"]
MORE_NEGATIVES = ["--negatives", "24"]
HISTORY_100 = ["--set", "train.din.history=100"]
SOME_NEW = ["--new-users", "0.15"]
#: the student's recipe without teachers
LABELS_ALONE = ["--beta", "0"]
#: of `memory`: the last block whose events the shipped counts have counted
COUNTED_THROUGH = "--counted-through"

# Names of models in the tables.
ONCE, TWICE = "incremental cloud, at once", "incremental cloud, in two steps"
LONGER = "incremental cloud, in two steps, trained further"
ONE_ROUND = "distilled, one round"
DISTILLED, PAPERS_WAY = "distilled from memories", "the paper's way"
FROM_METAPATCH = f"{PAPERS_WAY}, from metapatch"
FROM_UNPATCHED = f"{PAPERS_WAY}, from the unpatched model (placebo)"
FIRST_ROUND, SECOND_ROUND = "control, after the first of three", "control, after the second"
#: what U(0, u) is put on
UNENCODED = "distilled, the paper's way"
MEAN_PATCH = "metapatch, mean (placebo)"
#: parts of the chapters about new users: judged on what follows the tenth event, and on what comes next
PROTOCOLS = {"cold": ("cold", "next"), "newcomers": ("newcomers-later", "newcomers-next")}
#: the controls with six times the negatives
ONCE_24, TWICE_24 = f"{ONCE}, 24 negatives", f"{TWICE}, 24 negatives"
#: the memory without one of its parts, judged on valid
WITHOUT = {"no order": NO_ORDER, "no profile": NO_PROFILE, "neither": PLAIN}
#: what a memory competes with: the cloud model that sees five times as much, and the best baseline
WIDE, SASREC = "DIN, L = 100, at once", "sasrec"
#: the strong cloud model, in the chapters that rank all items
STRONG = "SASRec, trained further"
STRONG_FROZEN = "SASRec, frozen"
STRONG_SCRATCH = "SASRec, from scratch"
#: the memory patch on either
ON_FURTHER, ON_SCRATCH = "memory patch", "memory patch on the one from scratch"
STRONG_LONGER = "SASRec, trained further, then longer"
STRONG_TAUGHT = "SASRec, taught by memories"
#: the devices that teach
TEACHERS = "memory teachers themselves"
STRONG_UNTAUGHT = "SASRec, trained further as the student, on labels alone"
#: and where users come back to what they had
HABIT = "gp-topfreq"
#: the memory patch among the baselines
ON_DIN = "memory patch on DIN, L = 20"
#: baselines in closed form; where nobody has anything again, the second is the first
COUNTED = ("popularity", HABIT, "recent", "item-knn", "ease")
LEARNED = ("bpr", "fm", "neumf", "gru4rec", SASREC)


class Study:
    """One log under one seed: the models that the chapters share, made when first asked for."""

    def __init__(self, run: Runner, dataset: str, seed: int, candidates: str, plain: bool, repeats: bool) -> None:
        """Args: plain: memories without order and profile. repeats: does the log have what a user had again?"""
        self.run, self.dataset, self.seed, self.candidates = run, dataset, seed, candidates
        self.plain, self.repeats = plain, repeats

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
        return self.continued("longer", self.incremental, "device", budget=LONGEST)

    def memory(self, *arguments: str) -> str:
        flags = [*(PLAIN if self.plain else []), *arguments]
        return self.run("memory " + " ".join(flags), "memory", "--dataset", self.dataset, *flags)

    def remembering(self, name: str, cloud: str, *arguments: str, memory: str = "") -> str:
        """Memory-conditioned patches."""
        chosen = ["--memory", memory or self.memory()]
        return self.made(name, "patch", *REMEMBERING, "--cloud", cloud, *chosen, *arguments)

    @property
    def patched(self) -> str:
        """The control in two steps with what devices remember."""
        return self.remembering("memory on long, 4 negatives", self.incremental)

    @property
    def student(self) -> str:
        """`incremental`, taught by devices with a memory about items that nobody has labelled."""
        return self.distilled("memory", self.patched, *FROM_MEMORY)

    def distilled(self, name: str, patches: str, *flags: str) -> str:
        return self.made(f"distilled, {name}", "distill", "--patches", patches, *flags)

    def evaluated(
        self, chapter: str, models: dict[str, str], period: str, *arguments: str, exact: bool = False
    ) -> pl.DataFrame:
        """Per-user metrics of the models, named as in `models`, on one period; exact: all items are ranked."""
        ranked = ["--on", period, "--candidates", "all" if exact else self.candidates]
        reference = self.made(f"evaluate {chapter}", "evaluate", *models.values(), *ranked, *arguments)
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

    def on_frozen(self, name: str, *arguments: str) -> str:
        """Patches on the frozen model."""
        return self.made(name, "patch", *arguments, "--cloud", self.frozen)

    @property
    def metapatch(self) -> str:
        """The paper's patch on the frozen model."""
        return self.on_frozen("metapatch", *METAPATCH)

    @property
    def without_a_mean(self) -> str:
        """MetaPatch whose prior expects the cloud model of every device."""
        return self.on_frozen("metapatch without a mean", *METAPATCH, *NO_MEAN)

    def devices(self) -> pl.DataFrame:
        models = {"frozen cloud": self.frozen, "metapatch": self.metapatch}
        models["fine-tune"] = self.on_frozen("fine-tune", *FINE_TUNE)
        models["metapatch, no mean in the prior"] = self.without_a_mean
        models[MEAN_PATCH] = models["metapatch"] + "+mean"
        models["metapatch, shuffled (placebo)"] = models["metapatch"] + "+shuffled"
        models["metapatch, guarded"] = self.on_frozen("metapatch guarded", *METAPATCH, *GUARDED)
        models["memory patch"] = self.remembering("memory on frozen", self.frozen)
        models[ONCE] = self.once
        return self.evaluated("devices", models, "valid")

    def memories(self) -> pl.DataFrame:
        control = self.incremental
        memory = self.patched
        short = self.remembering("memory of 20", control, memory=self.memory(*LAST_20))
        plain = self.remembering("neither", control, memory=self.memory(*PLAIN))
        models = {
            TWICE: control,
            ONCE: self.once,
            "frozen cloud": self.frozen,
            "metapatch (paper)": self.metapatch,
            "memory patch": memory,
            "memory patch, shuffled memories (placebo)": memory + "+shuffled",
            "memory patch of the last 20 events": short,
            "memory patch, neither order nor profile": plain,
        }
        return self.evaluated("memory", models, "test")

    def harm(self) -> dict[str, pl.DataFrame]:
        """The same models on two blocks that share no event; neither was learned from, one chose the epochs."""
        models = {TWICE: self.incremental, ONCE: self.once, "memory patch": self.patched}
        models |= {LONGER: self.longer, DISTILLED: self.student}
        return {period: self.evaluated(f"harm {period}", models, period) for period in ("valid", "test")}

    def ablations(self) -> pl.DataFrame:
        models = {TWICE: self.incremental, "memory patch": self.patched}
        for name, flags in WITHOUT.items():
            models[f"memory patch, {name}"] = self.remembering(name, self.incremental, memory=self.memory(*flags))
        return self.evaluated("ablations", models, "valid")

    def stronger(self) -> pl.DataFrame:
        """Control and patch where the control is trained with six times the negatives."""
        models = {ONCE: self.once, TWICE: self.incremental, "memory patch": self.patched}
        models |= {ONCE_24: self.once_more, TWICE_24: self.incremental_more}
        more = self.remembering("memory on long, 24 negatives", self.incremental_more)
        models["memory patch, on 24 negatives"] = more
        return self.evaluated("stronger", models, "test")

    def further(self) -> pl.DataFrame:
        """The strictest control, and memories on top of it."""
        models = {LONGER: self.longer, "memory patch on it": self.remembering("memory on longer", self.longer)}
        return self.evaluated("further", models, "test")

    def clouds(self) -> pl.DataFrame:
        models = {LONGER: self.longer, TWICE: self.incremental, ONCE: self.once}
        models[TEACHERS] = self.patched
        models[DISTILLED] = self.student
        for name, chosen in (("shuffled memories", SHUFFLED_TEACHERS), ("the unpatched model", UNPATCHED_TEACHERS)):
            made = self.distilled(chosen[-1], self.patched, *FROM_MEMORY, *chosen)
            models[f"distilled from {name} (placebo)"] = made
        models[FROM_METAPATCH] = self.distilled("paper", self.metapatch, *PAPER)
        models[FROM_UNPATCHED] = self.distilled("paper unpatched", self.metapatch, *PAPER, *UNPATCHED_TEACHERS)
        models["memory patch on distilled"] = self.remembering("memory on distilled", self.student)
        return self.evaluated("clouds", models, "test")

    def teachers(self) -> pl.DataFrame:
        """Other teachers for the paper's distillation, which starts where `once` does, and for ours."""
        models = {LONGER: self.longer, ONCE: self.once}
        taught = {PAPERS_WAY: ("paper", self.metapatch, PAPER), DISTILLED: ("memory", self.patched, FROM_MEMORY)}
        chosen = {
            "": [],
            ", from another's patch (placebo)": SHUFFLED_TEACHERS,
            ", only from users whose patch passed the guard": GUARDED_TEACHERS,
        }
        for way, (name, patches, flags) in taught.items():
            for variant, more in chosen.items():
                made = self.distilled(f"{name} {' '.join(more)}".strip(), patches, *flags, *more)
                models[way + variant] = made
        return self.evaluated("teachers", models, "test")

    def rounds(self) -> pl.DataFrame:
        """Three rounds over thirds of the device period against one over all of it, each beside the control that learns as often.

        A round keeps the cloud model fresh on its block, learns from the block what memories are worth, and teaches.
        """
        student = control = self.frozen
        students, controls = [], []
        for number in (1, 2, 3):
            block = f"device:{number}/3"
            fresh = self.continued(f"round {number} fresh", student, block)
            memory = self.memory(COUNTED_THROUGH, block)
            patches = self.remembering(f"round {number} patches", fresh, "--on", block, memory=memory)
            student = self.distilled(f"round {number}", patches, *FROM_MEMORY, "--on", block)
            control = self.continued(f"round {number} control", control, block)
            control = self.continued(f"round {number} control, longer", control, block, budget=LONGEST)
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

    def baseline(self, name: str) -> str:
        """A model that learns from everything at once."""
        return self.made(name, "train", "--dataset", self.dataset, "--model", name, "--on", "cloud,device")

    def counts(self) -> dict[str, str]:
        """The baselines in closed form that this log tells apart."""
        return {name: self.baseline(name) for name in COUNTED if self.repeats or name != HABIT}

    def counted(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """How much of what the memory brings is had by counting what a user had? For all, and for what is new to the user alone."""
        models = {TWICE: self.incremental, **self.counts(), ON_DIN: self.patched}
        for targets in ("all", "repeat", "explore") if self.repeats else ("all",):
            part = "counted" if targets == "all" else f"counted-{targets}"
            yield part, self.evaluated(part, models, "test", "--targets", targets)

    def baselines(self) -> pl.DataFrame:
        models = {TWICE: self.incremental, ONCE: self.once, **self.counts()}
        models |= {name: self.baseline(name) for name in LEARNED}
        models["DIN, L = 20, cloud and device from scratch"] = self.made(
            "din at once", "train", "--dataset", self.dataset, "--on", "cloud,device"
        )
        long = self.made("long", "train", "--dataset", self.dataset, *HISTORY_100)
        models[WIDE] = self.continued("longer history once", long, "device")
        models[ONCE_24] = self.once_more
        models[ON_DIN] = self.patched
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

    @property
    def strong_frozen(self) -> str:
        """SASRec with the softmax over shared negatives, on `cloud`."""
        return self.made("strong", "train", "--dataset", self.dataset, "--model", "sasrec")

    @property
    def strong_fresh(self) -> str:
        """The same trained further on `device` by the same recipe, at once."""
        return self.made("strong fresh", "train", "--continue", self.strong_frozen, "--on", "device")

    @property
    def strong_scratch(self) -> str:
        """The same from scratch on `cloud` and `device` at once."""
        return self.made(
            "strong scratch", "train", "--dataset", self.dataset, "--model", "sasrec", "--on", "cloud,device"
        )

    @property
    def strong_patched(self) -> str:
        return self.remembering("memory on strong", self.strong_fresh)

    def strong(self) -> pl.DataFrame:
        """The claim of the front page: the memory patch over the two ways to keep a strong cloud model fresh.

        Both patches are learned with the frozen model, which has not seen `device`.
        """
        models = {
            STRONG_SCRATCH: self.strong_scratch,
            STRONG: self.strong_fresh,
            ON_FURTHER: self.strong_patched,
            ON_SCRATCH: self.remembering("memory on scratch", self.strong_scratch, "--learn-with", self.strong_frozen),
            STRONG_FROZEN: self.strong_frozen,
        }
        return self.evaluated("strong", models, "test", exact=True)

    def strong_harm(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """The memory patch over the model trained further on two blocks that share no event: what gates are judged by."""
        models = {STRONG: self.strong_fresh, ON_FURTHER: self.strong_patched}
        for part, period in (("strong-test", "test"), ("strong-valid", "valid")):
            yield part, self.evaluated(part, models, period, exact=True)

    def strong_metapatch(self) -> pl.DataFrame:
        """The paper's patch on the frozen model, and its placebos."""
        patches = self.made("metapatch on strong", "patch", *METAPATCH, "--cloud", self.strong_frozen)
        models = {
            STRONG: self.strong_fresh,
            STRONG_FROZEN: self.strong_frozen,
            "metapatch on the frozen one": patches,
            "metapatch on the frozen one, mean (placebo)": patches + "+mean",
            "metapatch on the frozen one, shuffled (placebo)": patches + "+shuffled",
        }
        return self.evaluated("strong metapatch", models, "test", exact=True)

    def strong_placebo(self) -> pl.DataFrame:
        """The memory patch with another user's memory."""
        models = {STRONG: self.strong_fresh, ON_FURTHER: self.strong_patched}
        models["memory patch, shuffled memories (placebo)"] = self.strong_patched + "+shuffled"
        return self.evaluated("strong placebo", models, "test", exact=True)

    @property
    def strong_longer(self) -> str:
        """The control of teaching: trained on by the rule of its student."""
        return self.continued("strong longer", self.strong_fresh, "device", budget=LONGEST)

    def strong_taught(self) -> pl.DataFrame:
        """The strong model taught by memories on it, against the same trained as long."""
        models = {STRONG: self.strong_fresh, STRONG_LONGER: self.strong_longer}
        taught = {
            STRONG_UNTAUGHT: LABELS_ALONE,
            STRONG_TAUGHT: [],
            f"{STRONG_TAUGHT}, unpatched teachers (placebo)": UNPATCHED_TEACHERS,
        }
        for name, flags in taught.items():
            models[name] = self.distilled(
                f"strong {' '.join(flags)}".strip(), self.strong_patched, *FROM_MEMORY, *flags
            )
        models[TEACHERS] = self.strong_patched
        return self.evaluated("strong taught", models, "test", exact=True)

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
