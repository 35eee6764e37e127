"""One typed section a stage. Defaults and the help text of every flag live here and nowhere else.

Precedence: default < TOML file (`--config`) < flag. In TOML, `seed` may stand at the top (for all stages) or in a section::

    seed = 1
    [train]
    epochs = 5
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dcclctl.errors import UsageError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
#: a step size; a larger one than this would not fit into 32 bits
Rate = Annotated[float, Field(gt=0.0, le=1e30)]
#: a period, or part k of n of one, e.g. device:2/3
BlockName = Annotated[str, Field(pattern=r"^(cloud|device|valid|test)(:[1-9][0-9]*/[1-9][0-9]*)?$")]
LearningBlock = Annotated[str, Field(pattern=r"^(cloud|device|valid)(:[1-9][0-9]*/[1-9][0-9]*)?$")]
Criterion = Annotated[
    Literal["loss", "auc"],
    Field(
        description="What makes an epoch the best on valid: auc (each event's item above its sampled negatives), or loss "
        "(cross-entropy), which turns earlier: better probabilities, worse rankings."
    ),
]
_PATIENCE = "Stop after so many epochs without a better one on valid; 0 never stops early."
PERIODS = ("cloud", "device", "valid", "test")


class Section(BaseModel):
    """Settings of one stage; unknown keys are an error, values are checked when the object is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: the setting, if there is one, that the defaults of others depend on
    DECIDES: ClassVar[str] = ""
    #: value of that setting → defaults where they differ from those that stand at the fields
    OWN: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: settings that are read under some values of that setting only → those values
    ONLY: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    seed: Count = Field(0, description="Seed of every random draw of this stage.")

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, given: Any) -> Any:
        """Settings that are not given take the defaults that go with the deciding one."""
        if not cls.DECIDES or not isinstance(given, dict):
            return given
        decided = given.get(cls.DECIDES, cls.model_fields[cls.DECIDES].default)
        return {**cls.OWN.get(str(decided), {}), **given}

    @classmethod
    def unread_with(cls, config: Mapping[str, Any]) -> set[str]:
        """Settings that nothing reads under the deciding one of a configuration."""
        decided = config.get(cls.DECIDES, cls.model_fields[cls.DECIDES].default) if cls.ONLY else ""
        return {name for name, readers in cls.ONLY.items() if decided not in readers}

    def unread(self) -> set[str]:
        """Settings that nothing reads under the deciding one."""
        return self.unread_with(self.__dict__)

    def recorded(self) -> dict[str, Any]:
        """What an artifact is known by: the settings, without those that are another kind's only."""
        return self.model_dump(mode="json", exclude=self.unread())

    @classmethod
    def default_of(cls, name: str, config: Mapping[str, Any]) -> Any:
        """What a setting is where nothing is given but the one that decides about defaults."""
        decided = cls.DECIDES in config and name != cls.DECIDES
        return getattr(cls(**({cls.DECIDES: config[cls.DECIDES]} if decided else {})), name)


class ComputeSection(Section):
    """Settings of a stage that runs torch."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to compute: auto takes cuda, then mps, then cpu."
    )
    threads: Count = Field(0, description="CPU threads; 0 takes one per core. Part of the artifact's identity.")


class IngestConfig(Section):
    """`dcclctl ingest`: outside log → dataset."""

    format: Literal["auto", "csv", "jsonl", "parquet", "recbole", "movielens", "amazon", "taobao"] = Field(
        "auto", description="Layout of the log; auto looks at names and headers."
    )
    map: dict[str, str] = Field(
        default_factory=dict,
        description="Your columns under our names, e.g. user=uid,item=sku,time=ts,category=cat,behaviour=event,label=score.",
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns", "iso", "ordinal"] = Field(
        "auto", description="Unit of the time column; ordinal means that only each user's order is known."
    )
    timezone: str = Field("", description="Zone of local times without one, e.g. Europe/Paris.")
    now: str = Field(
        "2100-01-01T00:00:00Z",
        description="The frozen clock: an event more than a day after it is rejected as in the future.",
    )
    label: str = Field(
        "", description="Condition that makes an event positive, e.g. 'rating>=4'. Empty: every event is (--implicit)."
    )
    label_conflicts: Literal["last", "first", "max"] = Field(
        "last", description="Which label stays when one (user, item, time) has several."
    )
    behaviours: list[str] = Field(
        default_factory=list, description="Keep these behaviours only, e.g. buy,cart. Empty: all."
    )
    ids: Literal["text", "int"] = Field("text", description="int turns '123.0' into '123'; text keeps ids verbatim.")
    encoding: Literal["utf-8", "utf-16", "latin-1"] = Field("utf-8", description="Encoding of text files.")
    allow_empty: bool = Field(False, description="Accept a file that has a header and no rows.")
    min_user_events: Positive = Field(
        1, description="Leave out users with fewer events (repeated with items until stable)."
    )
    min_item_events: Positive = Field(
        1, description="Leave out items with fewer events (repeated with users until stable)."
    )
    max_user_events: Count = Field(0, description="Keep only the newest N events of a user; 0 keeps all.")
    repeats: Literal["keep", "first"] = Field(
        "first", description="An item that a user comes back to: keep every event, or the first one only."
    )
    split: Literal["global", "per-user", "leave-one-out"] = Field(
        "global", description="How the four periods are cut: on one timeline, on each user's own, or last event = test."
    )
    periods: list[str] = Field(
        default_factory=lambda: ["60", "20", "10", "10"],
        description="Shares of events in cloud,device,valid,test; or the three cut times between them.",
    )
    new_users: Fraction = Field(
        0.0,
        description="Share of users that lose all before test (per-user, leave-one-out: all of theirs becomes test).",
    )
    head_fraction: Fraction = Field(0.2, description="Share of the most active users called head; the rest are tail.")
    max_reject: Fraction = Field(0.01, description="Fail if a larger share of the rows is rejected.")


#: budget of models that learn what is popular first, and for some epochs nothing else
_PATIENT = {"epochs": 60, "patience": 5}
#: `train --model` → its defaults where they differ from those that stand in TrainConfig, which are din's
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "bpr": {"item_size": 64, "learning_rate": 0.005, "weight_decay": 1e-4, **_PATIENT},
    "fm": _PATIENT,
    "neumf": _PATIENT,
    # history counts moments
    "sasrec": {"history": 50, "negatives": 32, **_PATIENT},
    "gru4rec": {"history": 50, "item_size": 64, "dropout": 0.4, **_PATIENT},
}


class TrainConfig(ComputeSection):
    """`dcclctl train`: dataset → cloud model."""

    DECIDES: ClassVar[str] = "model"
    OWN: ClassVar[Mapping[str, Mapping[str, Any]]] = MODEL_DEFAULTS
    ONLY: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "category_size": ("din", "sasrec", "gru4rec"),
        **dict.fromkeys(("profile_size", "attention_size"), ("din",)),
        "newest": ("recent",),
        **dict.fromkeys(("neighbours", "shrinkage"), ("item-knn",)),
        "ridge": ("ease",),
    }

    model: Literal[
        "din", "popularity", "recent", "gp-topfreq", "item-knn", "ease", "bpr", "fm", "neumf", "sasrec", "gru4rec"
    ] = Field(
        "din",
        description="The cloud model: din (Deep Interest Network), or a baseline: popularity, recent, gp-topfreq (what the user had most often first), item-knn, ease, bpr, fm, neumf, sasrec, gru4rec.",
    )
    on: list[LearningBlock] = Field(
        default=["cloud"],
        min_length=1,
        description="Periods to train on, e.g. cloud,device; device:2/3 is the second third of one.",
    )
    history: Positive = Field(20, description="L: how many of the user's last events the model sees.")
    item_size: Positive = Field(32, description="Size of an item embedding.")
    category_size: Positive = Field(16, description="Size of a category embedding.")
    profile_size: Positive = Field(8, description="Size of each profile embedding.")
    attention_size: Positive = Field(32, description="Hidden units of the attention network.")
    hidden_sizes: tuple[Positive, Positive] = Field((64, 32), description="Units of the two hidden layers.")
    negatives: Positive = Field(4, description="Sampled negatives for each positive event.")
    epochs: Positive = Field(20, description="At most so many passes over the training events.")
    patience: Count = Field(2, description=_PATIENCE)
    criterion: Criterion = "auc"
    batch_size: Positive = Field(1024, description="Events per step (each with its negatives).")
    learning_rate: Rate = Field(0.002, description="Adam's step size.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(1e-5, description="L2 penalty on the embeddings in a batch.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.2, description="Dropout on the hidden layers.")
    newest: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.2, description="recent: newest share of the training events that is counted."
    )
    neighbours: Positive = Field(500, description="item-knn: neighbours kept for each item.")
    shrinkage: Annotated[float, Field(ge=0.0)] = Field(
        100.0, description="item-knn: added below the fraction of the cosine, against chance pairs of rare items."
    )
    ridge: Annotated[float, Field(gt=0.0)] = Field(100.0, description="ease: λ, L2 penalty on the item weights.")


class MemoryConfig(Section):
    """`dcclctl memory`: dataset → what every device remembers, and what the cloud ships beside it."""

    until: LearningBlock = Field(
        "device", description="Last period (or part, e.g. device:2/3) that is remembered and counted."
    )
    size: Positive = Field(500, description="M: newest events that a device keeps, 4 bytes each.")
    track: Count = Field(
        20,
        description="T: newest events of which a device also keeps how near they were to its memory, 14 bytes each (12 without order).",
    )
    neighbours: Positive = Field(
        50, description="Nearest items by co-occurrence, and items usually had before, that come with every item."
    )
    lookback: Annotated[int, Field(ge=0, le=1000)] = Field(
        10, description="Events before an item that may have led to it; 0: the order of events does not count."
    )
    shrinkage: Annotated[float, Field(ge=0.0)] = Field(
        10.0, description="Added to the denominators of similarity and order: how little a shared user or two proves."
    )


_WITHOUT_MEAN: dict[str, Any] = {"prior": 10.0, "prior_mean": "zero"}
#: `patch --method` → defaults that are its own
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "item-space": _WITHOUT_MEAN | {"newton_steps": 5},
    "fine-tune": _WITHOUT_MEAN | {"learning_rate": 0.005, "prior": 1.0},
    **dict.fromkeys(("linearised", "generated", "random-basis", "memory"), _WITHOUT_MEAN),
}

#: methods of `patch` whose prior may have a learned mean
WITH_MEAN = ("metapatch", "similar-users", "label-correction")


class PatchConfig(ComputeSection):
    """`dcclctl patch`: cloud model × each user's own log → patches."""

    DECIDES: ClassVar[str] = "method"
    OWN: ClassVar[Mapping[str, Mapping[str, Any]]] = METHOD_DEFAULTS
    ONLY: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "newton_steps": ("linearised", "item-space"),
        **dict.fromkeys(("generator_size", "generator_history"), ("generated",)),
        **dict.fromkeys(("similar_users", "similar_events", "similar_weight"), ("similar-users",)),
        "personal": ("memory",),
        **dict.fromkeys(("memory_hidden", "memory_epochs", "memory_learning_rate", "memory_weight_decay"), ("memory",)),
        **dict.fromkeys(("memory_short", "memory_floor", "memory_order", "memory_popularity"), ("memory",)),
    }

    users: str = Field(
        "all", description="Who gets a patch: tail, head, all, new, @FILE with one id a line, or ID,ID,…"
    )
    on: LearningBlock = Field(
        "device", description="Period (or part, e.g. device:2/3) whose events the devices learn from."
    )
    method: Literal[
        "memory",
        "metapatch",
        "linearised",
        "random-basis",
        "label-correction",
        "similar-users",
        "generated",
        "item-space",
        "fine-tune",
    ] = Field(
        "memory",
        description="What makes a patch personal: memory (what the device remembers; the one that proved worth having); or a θ̂ and "
        "how it is found: metapatch (the paper's, exact), linearised (Newton steps), random-basis (Θ not learned), "
        "label-correction, similar-users (their events too), generated (in the cloud, from the history and the profile); "
        "or item-space (a direction among the items), fine-tune (the last layers).",
    )
    patch_size: Positive = Field(16, description="K: numbers in a user's θ̂.")
    bottleneck: Positive = Field(8, description="Width of the bottleneck of each patch.")
    steps: Positive = Field(15, description="Gradient steps on a device.")
    learning_rate: Rate = Field(0.03, description="Adam's step size on a device.")
    prior: Annotated[float, Field(ge=0.0)] = Field(
        30.0, description="λ: weight of ‖θ̂ − μ‖² against the sum of a user's losses."
    )
    prior_mean: Literal["learned", "zero"] = Field(
        "learned",
        description="μ, what is expected of a device before its own events are seen: learned from everybody's events together "
        "with Θ (metapatch, similar-users, label-correction), or zero, the cloud model.",
    )
    newton_steps: Positive = Field(1, description="linearised, item-space: Newton steps on a device.")
    generator_size: Positive = Field(32, description="generated: hidden units of the generator.")
    generator_history: Positive = Field(50, description="generated: newest events that θ̂ is made from.")
    similar_users: Positive = Field(5, description="similar-users: how many users lend their events.")
    similar_events: Positive = Field(5, description="similar-users: newest events of each of them.")
    similar_weight: Annotated[float, Field(ge=0.0)] = Field(
        0.3, description="similar-users: weight of a lent event at similarity 1; an own event has 1."
    )
    negatives: Count = Field(
        0,
        description="Sampled negatives for each positive event; 0: as many as the cloud model was trained with, so that a "
        "patched logit means what the cloud model's does.",
    )
    basis_epochs: Positive = Field(
        15, description="Passes of auto-decoding when the cloud model has no Θ yet; for M and the generator too."
    )
    basis_learning_rate: Rate = Field(0.01, description="Adam's step size for Θ, M and the generator.")
    held_back: Fraction = Field(
        0.2, description="Newest share of a user's events kept back to see whether the patch helps."
    )
    guard: bool = Field(False, description="Keep a user's patch only if it wins on that user's held-back events.")
    personal: Literal["none", "encoder", "device"] = Field(
        "none",
        description="Method memory: whose θ̂ bends the patch: nobody's (the memory alone makes it personal), one encoded from profile "
        "and memory, or that and one trained on the device.",
    )
    memory_hidden: Positive = Field(32, description="Method memory: hidden units of the patch.")
    memory_epochs: Positive = Field(8, description="Method memory: passes over the events.")
    memory_learning_rate: Rate = Field(0.003, description="Method memory: AdamW's step size.")
    memory_weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        0.01, description="Method memory: AdamW's weight decay."
    )
    memory_short: Fraction = Field(
        0.5,
        description="Method memory: share of the events that the patch is learned from a second time, with a memory cut to a few "
        "events, as a new device has.",
    )
    memory_order: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Method memory: does it count what came soon after what? auto: unless held-back events are foretold better without.",
    )
    memory_popularity: bool = Field(
        False,
        description="Method memory: does what a memory says of an item count by how popular the item is? Best with --memory-hidden 64.",
    )
    memory_floor: Fraction = Field(
        0.01,
        description="Method memory: who remembers less than this share of what the patch was learned from is served by the cloud model.",
    )
    shard_users: Positive = Field(
        2048, description="Users in a shard; a killed run resumes at the first missing shard."
    )
    batch_rows: Positive = Field(
        8192, description="Padded rows held at once; the default suits a CPU's cache, a GPU is faster with more."
    )

    @field_validator("prior_mean")
    @classmethod
    def _has_a_mean(cls, value: str, about: ValidationInfo) -> str:
        method = about.data.get("method")
        if value == "learned" and method is not None and method not in WITH_MEAN:
            raise ValueError(f"method {method} has no mean to learn, which is for {', '.join(WITH_MEAN)}")
        return value


#: `distill --lesson` → defaults that are its own
LESSON_DEFAULTS: dict[str, dict[str, Any]] = {
    "unlabelled": {"beta": 10.0, "epochs": 20, "patience": 5, "learning_rate": 0.001},
}


class DistillConfig(ComputeSection):
    """`dcclctl distill`: cloud model + patches → better cloud model."""

    DECIDES: ClassVar[str] = "lesson"
    OWN: ClassVar[Mapping[str, Mapping[str, Any]]] = LESSON_DEFAULTS
    ONLY: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(("unlabelled", "lesson_short"), ("unlabelled",))

    lesson: Literal["events", "unlabelled"] = Field(
        "events",
        description="What the teachers are asked about in step 1: each event's own item and its negatives, as the labels are (events, the "
        "paper's way); or other items, which nobody has labelled (unlabelled; for teachers who have counted the events themselves).",
    )
    unlabelled: Positive = Field(
        12,
        description="--lesson unlabelled: items an event; half of them near the user's history where the teachers remember.",
    )
    lesson_short: Fraction = Field(
        0.25,
        description="--lesson unlabelled: share of the events that are taught with a history cut to a few events or to none, as new users have, and by the teachers alone.",
    )
    beta: Annotated[float, Field(ge=0.0)] = Field(0.1, description="β: weight of the teachers against the labels.")
    on: LearningBlock = Field("device", description="Period (or part, e.g. device:2/3) whose events are distilled.")
    teachers: Literal["patched", "unpatched", "shuffled", "guarded"] = Field(
        "patched",
        description="Who teaches a user's events: the user as served with the patches; the cloud model under them (unpatched); "
        "another user's patch (shuffled, a placebo); or only patches that won on held-back events, labels alone elsewhere (guarded).",
    )
    evidence: bool = Field(
        False,
        description="Weigh β by n/(n+10) for each user, n: events that the user's patch learned from, 0 without one.",
    )
    epochs: Positive = Field(3, description="At most so many passes over the events for the cloud weights (step 1).")
    patience: Count = Field(0, description=_PATIENCE)
    criterion: Criterion = "auc"
    learning_rate: Rate = Field(0.002, description="Adam's step size for the cloud weights.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(1e-5, description="L2 penalty on the embeddings in a batch.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.2, description="Dropout on the hidden layers in step 1.")
    basis_epochs: Count = Field(5, description="Passes for Θ and the encoder U (step 2); 0 leaves both as they are.")
    basis_learning_rate: Rate = Field(0.01, description="Adam's step size for Θ and the encoder.")
    encoder_size: Positive = Field(32, description="Hidden units of the encoder U.")
    negatives: Count = Field(
        0,
        description="Sampled negatives for each positive event; 0: as many as the student was trained with.",
    )
    batch_size: Positive = Field(1024, description="Events per step.")


class EvaluateConfig(ComputeSection):
    """`dcclctl evaluate`: cloud models and patches → per-user metrics."""

    on: BlockName = Field("test", description="Period (or part, e.g. device:2/3) to score.")
    k: list[Positive] = Field(
        default_factory=lambda: [5, 10, 20], min_length=1, description="Cut-offs of HR@k and NDCG@k."
    )
    candidates: str = Field(
        "auto",
        description="Items ranked for each event: all, or a number N of sampled ones; auto: all while affordable, else 1000.",
    )
    auc_negatives: Positive = Field(100, description="Sampled negatives per event for AUC, log loss and calibration.")
    unpatched: Literal["encoder", "cloud"] = Field(
        "cloud", description="Who scores a user without a patch: the cloud model, or the encoder's patch U(0, u)."
    )
    first_events: list[Count] = Field(
        default_factory=list,
        description="Only new users, each with a history of exactly its first K events; several K: one evaluation each.",
    )
    targets_after: Count | Literal["next"] = Field(
        10,
        description="With --first-events: score what follows a user's first N events, the same for every K (at least the "
        "largest K); next: what comes right after the first K, as a device meets it.",
    )
    targets: Literal["all", "repeat", "explore"] = Field(
        "all",
        description="Which events are scored: all; repeat: of items that the user had before; explore: of items that "
        "are new to the user.",
    )
    batch_events: Positive = Field(256, description="Events scored at once; changes memory and speed, not results.")
    against: str = Field("", description="Baseline that every other model is compared with, user by user.")


SECTIONS: dict[str, type[Section]] = {
    "ingest": IngestConfig,
    "train": TrainConfig,
    "memory": MemoryConfig,
    "patch": PatchConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
}

S = TypeVar("S", bound=Section)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file and check its section names and keys.

    Raises:
        UsageError: no such file, not TOML, or a key that no stage has (with the nearest known one).
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read the configuration {path}: {error.strerror}", "Check the path after --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", "See 'Configuration' in the README for an example."
        ) from error
    for key, value in document.items():
        if key == "seed" and not isinstance(value, dict):
            continue
        if key not in SECTIONS or not isinstance(value, dict):
            raise UsageError(f"{path}: unknown section or key {key!r}", _nearest(key, [*SECTIONS, "seed"]))
        for name in value:
            if name not in SECTIONS[key].model_fields:
                raise UsageError(
                    f"{path}: unknown key {name!r} in [{key}]", _nearest(name, list(SECTIONS[key].model_fields))
                )
    return document


def _refuse_unread(settings: Section, given: Mapping[str, Any]) -> None:
    """Refuse flags that would do nothing; a file may hold settings for several methods.

    Raises:
        UsageError: such a flag was given.
    """
    unread = settings.unread()
    for name in given:
        if name in unread:
            wanted, decided = " or ".join(settings.ONLY[name]), getattr(settings, settings.DECIDES)
            raise UsageError(
                f"--{name.replace('_', '-')} is read with --{settings.DECIDES} {wanted} only, not with {decided}",
                f"Leave it out, or give --{settings.DECIDES} {settings.ONLY[name][0]}.",
            )


def resolve(
    section: type[S], config_file: Path | None = None, defaults: Mapping[str, Any] | None = None, /, **flags: Any
) -> S:
    """Merge defaults, the TOML file and the flags that were given into one checked section.

    Args:
        section: the stage's section class.
        config_file: TOML file, or None.
        defaults: in place of the section's own, where they depend on what the command was given.
        flags: values from the command line; None means "not given".

    Raises:
        UsageError: an unknown key, or a value out of its range.
    """
    name = next(key for key, value in SECTIONS.items() if value is section)
    values: dict[str, Any] = dict(defaults or {})
    if config_file is not None:
        document = read_toml(config_file)
        if "seed" in document:
            values["seed"] = document["seed"]
        values |= document.get(name, {})
    given = {key: value for key, value in flags.items() if value is not None}
    values |= given
    try:
        settings = section(**values)
        _refuse_unread(settings, given)
        return settings
    except ValidationError as error:
        wants: dict[tuple[str, str], list[str]] = {}  # a setting of two types has a problem with each
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"][:1])
            wanted = problem["msg"].removeprefix("Value error, ").lower()
            if problem["type"] == "string_pattern_mismatch":  # a block's name: the pattern itself explains nothing
                wanted = "give cloud, device, valid (or test, to evaluate only), or a part of one such as device:2/3"
            wants.setdefault((where.replace("_", "-"), repr(problem["input"])), []).append(wanted)
        lines = [f"--{flag}: {', or '.join(wanted)} (got {got})" for (flag, got), wanted in wants.items()]
        raise UsageError("; ".join(lines), f"See: dcclctl {name} --help") from error
