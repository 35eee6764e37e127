"""Typed settings, one section per command. Name, type, default, range, unit and meaning of a setting stand here only.

A command may have variants (`train --model`, `patch --method`, `distill --method`); each variant's own section stands
beside its code. `stages/settings.py` merges sections, a TOML file and flags.
"""

import codecs
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator
from pydantic.fields import FieldInfo

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
#: a step size; a larger one than this would not fit into 32 bits
Rate = Annotated[float, Field(gt=0.0, le=1e30)]
#: a period, or part k of n of one, e.g. device:2/3
BlockName = Annotated[str, Field(pattern=r"^(cloud|device|valid|test)(:[1-9][0-9]*/[1-9][0-9]*)?$")]
LearningBlock = Annotated[str, Field(pattern=r"^(cloud|device|valid)(:[1-9][0-9]*/[1-9][0-9]*)?$")]
PERIODS = ("cloud", "device", "valid", "test")


def tuned(default: Any, description: str, search: str, **extra: bool) -> Any:
    """A setting with the values that `dcclctl tune` tries.

    Args:
        search: a range such as '1e-4..1e-2', or choices such as '16,32,64', see stages/space.py; '' for one that tune
            leaves alone. extra: more about the setting, see `size` and `rarely`.
    """
    known: dict[str, Any] = {**extra, "search": search} if search else {**extra}
    return Field(default, description=description, json_schema_extra=known)


def size(default: Any, description: str, search: str = "") -> Any:
    """A setting that fixes the shape of the weights; further training keeps it. `search`: see `tuned`."""
    return tuned(default, description, search, size=True)


def rarely(default: Any, description: str, search: str = "") -> Any:
    """A setting without a flag of its own: `--set` and the TOML file change it. `search`: see `tuned`."""
    return tuned(default, description, search, flag=False)


def has_flag(setting: FieldInfo) -> bool:
    """May a setting have a flag of its own?"""
    extra = setting.json_schema_extra
    return not isinstance(extra, dict) or not ({"flag", "size"} & extra.keys())


@dataclass(frozen=True)
class Variant:
    """One row in a table of variants.

    Attributes:
        path: 'module:class' of its code, imported when it is chosen. about: one line for people.
    """

    path: str
    about: str

    def load(self) -> Any:
        """The class; it has its section as `Settings`."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Presets:
    """Settings from outside a call: those of a file, and over them those of environment variables.

    Only the command line looks for them. A Python program says itself which file it wants.

    Attributes:
        file: TOML, or None. environment: DCCL_COMMAND_SETTING → its value as text.
    """

    file: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Section(BaseModel):
    """Some settings. Unknown keys are an error, and values are checked when the object is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _split_text(cls, given: Any) -> Any:
        """'a,b' is a list of two where a list is wanted, and 'a=b,c=d' a mapping."""
        # a section that is made already comes here whole
        return {name: cls._split(name, value) for name, value in given.items()} if isinstance(given, dict) else given

    @classmethod
    def _split(cls, name: str, value: Any) -> Any:
        kind = get_origin(cls.model_fields[name].annotation) if name in cls.model_fields else None
        if not isinstance(value, str) or kind not in (list, tuple, dict):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if kind is not dict:
            return parts
        pairs = [part.partition("=") for part in parts]
        # text that is no mapping stays as it is: the error says so
        return {key.strip(): column.strip() for key, _, column in pairs} if all(each[1] for each in pairs) else value


class CommandSection(Section):
    """Settings of one command."""

    seed: Count = Field(0, description="Seed of every random draw of this stage.")

    def recorded(self) -> dict[str, Any]:
        """The settings that become part of an artifact's id: all but the seed, which is recorded beside them."""
        return self.model_dump(mode="json", exclude={"seed"})


class ComputeSection(CommandSection):
    """Settings of a command that computes with torch."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to compute; auto is the first of cuda, mps and cpu that is there."
    )
    threads: Count = Field(0, description="CPU threads; 0: one per processor. Part of the artifact's id.")


class VariantSection(ComputeSection):
    """Settings of a command with variants: those that all variants read, and the section of the chosen one."""

    #: the field that names the variant
    VARIANT: ClassVar[str]

    settings: SerializeAsAny[Section] = Field(default_factory=Section, description="The chosen variant's settings.")

    @property
    def variant(self) -> str:
        return str(getattr(self, self.VARIANT))

    def recorded(self) -> dict[str, Any]:
        """The settings that all variants read, and those of the chosen one under its name."""
        common = self.model_dump(mode="json", exclude={"seed", "settings"})
        return common | {self.variant: self.settings.model_dump(mode="json")}


def recorded_settings(config: Mapping[str, Any], variant_field: str) -> dict[str, Any]:
    """The chosen variant's settings in an artifact's recorded configuration."""
    return dict(config[config[variant_field]])


class IngestConfig(CommandSection):
    """`dcclctl ingest`: outside log → dataset."""

    format: str = Field("auto", description="Layout of the log; auto looks at names and headers.")
    map: dict[str, str] = Field(
        default_factory=dict,
        description="Your columns under our names, e.g. user=uid,item=sku,time=ts,category=cat,behaviour=event,label=score,"
        "name=title; without a header 1, 2, … for the first column, the second, …; category= leaves a column unused.",
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns", "iso", "ordinal"] = Field(
        "auto", description="Unit of the time column; ordinal means that only each user's order is known."
    )
    time_format: str = Field(
        "", description="How times are written, e.g. '%d/%m/%Y %H:%M', where that is not found by itself."
    )
    timezone: str = Field("", description="Zone of local times without one, e.g. Europe/Paris.")
    now: str = Field(
        "2100-01-01T00:00:00Z", description="Events more than a day after this time are rejected as in the future."
    )
    label: str = Field(
        "", description="Condition that makes an event positive, e.g. 'rating>=4'. Empty: every event is (--implicit)."
    )
    label_conflicts: Literal["last", "first", "max"] = Field(
        "last", description="Which label to keep when one (user, item, time) has several."
    )
    behaviours: list[str] = Field(
        default_factory=list, description="Keep these behaviours only, e.g. buy,cart. Empty: all."
    )
    ids: Literal["text", "int"] = Field(
        "text", description="int turns '123.0' into '123', in logs and side tables; text keeps ids verbatim."
    )
    encoding: str = Field("utf-8", description="Encoding of text files, e.g. gbk, utf-16 or latin-1.")
    delimiter: str = Field(
        "", description="What stands between the fields of a text file, e.g. ';', '::', tab, space or '\\x01'."
    )
    quote: Literal["auto", "none", "double"] = Field(
        "auto", description='Whether "…" is one field: none (auto with tabs), or double (auto otherwise).'
    )
    allow_empty: bool = Field(False, description="Accept a file that has a header and no rows.")
    min_user_events: Positive = Field(
        1, description="Leave out users with fewer events (repeated with items until stable)."
    )
    min_item_events: Positive = Field(
        1, description="Leave out items with fewer events (repeated with users until stable)."
    )
    max_user_events: Count = Field(0, description="Keep only the newest N events of a user; 0 keeps all.")
    repeats: Literal["keep", "first"] = Field(
        "first", description="Several events of one user with one item: keep them all, or the first only."
    )
    split: Literal["global", "per-user", "leave-one-out"] = Field(
        "global",
        description="Where the four periods begin: at the same time for all users, at each user's own, or last event = test.",
    )
    periods: list[str] = Field(
        default_factory=lambda: ["60", "20", "10", "10"],
        description="Shares of events in cloud,device,valid,test; or the three cut times between them.",
    )
    new_users: Fraction = Field(
        0.0,
        description="Share of users made new: their events before test are left out (per-user, leave-one-out: become test).",
    )
    head_fraction: Fraction = Field(
        0.2,
        description="Share of the users with an event before test, the most active ones, that are called head; the others "
        "of them (80 %) are tail.",
    )
    max_reject: Fraction = Field(0.01, description="Fail if a larger share of the rows is rejected.")
    shard_users: Positive = rarely(
        8192, "Users in one file of events; memory and executors work with so many users at a time."
    )

    @field_validator("encoding")
    @classmethod
    def _codec(cls, name: str) -> str:
        """The name by which Python knows the codec, whatever its case and spelling."""
        try:
            sample = "user_id,1\n"
            known = sample.encode(name).decode(name) == sample
        except (LookupError, UnicodeError, ValueError):
            known = False
        if not known:
            raise ValueError("no encoding of text has this name; write e.g. utf-8, utf-16, gbk, shift_jis, cp1252")
        found = codecs.lookup(name).name
        return "utf-8" if found == "utf-8-sig" else found  # a byte-order mark is skipped anyway

    @field_validator("delimiter")
    @classmethod
    def _one_delimiter(cls, text: str) -> str:
        """The delimiter itself, of a name or an escape like \\t and \\x01."""
        named = {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "bar": "|"}.get(text.lower(), text)
        if "\\" in named and named.isascii():
            try:
                named = codecs.decode(named, "unicode_escape")
            except UnicodeError:
                named = "\0"
        if set(named) & set('\n\r"\0') or (not named.isprintable() and len(named) > 1):
            raise ValueError("write the delimiter itself, or tab, space, '\\x01'")
        return named


class TrainConfig(VariantSection):
    """`dcclctl train`: dataset → cloud model."""

    VARIANT: ClassVar[str] = "model"

    model: str = Field("din", description="Kind of cloud model.")
    on: list[LearningBlock] = Field(
        default=["cloud"],
        min_length=1,
        description="Periods to train on, e.g. cloud,device; device:2/3 is the second third of one.",
    )


class MemoryConfig(CommandSection):
    """`dcclctl memory`: dataset → every device's memory, and statistics that the cloud sends with it."""

    counted_through: LearningBlock = Field(
        "device", description="Last period (or part, e.g. device:2/3) whose events are kept and counted."
    )
    size: Positive = Field(500, description="M: newest events that a device keeps, 4 bytes each.")
    profile_window: Count = Field(
        20,
        description="T: newest events whose features a device keeps, to see how well the memory predicts this user; at "
        "most 18 bytes each. 0 keeps none.",
    )
    neighbours: Positive = Field(
        50, description="How many nearest items, and how many preceding items, the cloud sends with every item."
    )
    transition_window: Annotated[int, Field(ge=0, le=1000)] = Field(
        10, description="Events before an item that count as preceding it; 0 ignores the order of events."
    )
    factors: Count = Field(
        32, description="D: numbers in the factor that the cloud sends with every item; 0: no factors."
    )
    shrinkage: Annotated[float, Field(ge=0.0)] = rarely(
        10.0, "Added to the denominators of similarity and transition score; it lowers chance pairs of rare items."
    )


class PatchConfig(VariantSection):
    """`dcclctl patch`: cloud model × each user's own log → patches."""

    VARIANT: ClassVar[str] = "method"

    users: str = Field(
        "all",
        description="Who gets a patch: all; head: the most active users (20 %, see ingest --head-fraction); tail: the others "
        "with an event before test (80 %); new: those without; @FILE with one id a line; or ID,ID,…",
    )
    on: LearningBlock = Field(
        "device", description="Period (or part, e.g. device:2/3) whose events the patches learn from."
    )
    method: str = Field("memory", description="How a patch is learned.")
    guard: bool = Field(
        False, description="Keep a user's patch only if it lowers the loss on that user's held-back events."
    )
    held_back: Fraction = Field(
        0.2, description="Newest share of a user's events, held back to see whether the patch helps."
    )
    negatives: Count = rarely(
        0,
        "Sampled negatives for each positive event; 0: as many as the cloud model was trained with, so that patched and "
        "unpatched logits are on one scale.",
    )


class DistillConfig(VariantSection):
    """`dcclctl distill`: cloud model + patches → better cloud model."""

    VARIANT: ClassVar[str] = "method"

    on: LearningBlock = Field(
        "device", description="Period (or part, e.g. device:2/3) whose events train the cloud model."
    )
    method: str = Field("momodistill", description="Which items the teachers score.")
    teachers: Literal["patched", "unpatched", "shuffled", "guarded"] = Field(
        "patched",
        description="The teacher on a user's events: the model with the user's patch; the cloud model without it "
        "(unpatched); the model with another user's patch (shuffled, a placebo); or the patched model where it lowers the "
        "loss on held-back events, and the labels alone elsewhere (guarded).",
    )


class TuneConfig(ComputeSection):
    """`dcclctl tune`: a dataset or a model → the best settings found on valid."""

    trials: Positive = Field(20, description="Settings tried for each model or method; the first are the defaults.")
    metric: str = Field(
        "all.ndcg@10", description="GROUP.METRIC on valid that the best trial has the best value of, e.g. tail.hr@20."
    )
    candidates: str = Field(
        "auto", description="Items ranked for each event of valid, as in evaluate; the same for all trials."
    )
    prune: bool = Field(
        True,
        description="Stop a training early that ranks valid worse than the median of earlier trials at the same epoch.",
    )


class ScoreSettings(ComputeSection):
    """How a model serves users."""

    unpatched: Literal["encoder", "cloud"] = Field(
        "cloud",
        description="How to serve users without a patch: by the cloud model, or with the patch of the encoder U(0, u).",
    )


class ListSettings(ScoreSettings):
    """Which items a user's list of recommendations may hold."""

    top: Positive = Field(10, description="Items in a user's list.")
    candidates: str = Field(
        "", description="@FILE with the ids of the items that may be shown, one a line. Empty: all items."
    )
    exclude: Literal["auto", "seen", "none"] = Field(
        "auto",
        description="Items to leave out of a user's list: seen, those that the user interacted with; auto: seen, unless the "
        "log keeps repeated events.",
    )


class RecommendConfig(ListSettings):
    """`dcclctl recommend`: a cloud model or patches → the lists of many users."""

    users: str = Field("all", description="Who gets a list: all, tail, head, new, @FILE with one id a line, or ID,ID,…")
    as_of: Literal["end", "test"] = Field(
        "end", description="The moment of the lists: after each user's last event, or the start of the test period."
    )
    shard_users: Positive = rarely(2048, "Users in a file of lists; a killed run resumes at the first missing file.")


class ScoreConfig(ListSettings):
    """`dcclctl score`: one user's list, and what came after it."""

    as_of: Literal["end", "test"] = Field(
        "test", description="The moment of the list: the start of the test period, or after the user's last event."
    )


class EvaluateConfig(ScoreSettings):
    """`dcclctl evaluate`: cloud models and patches → per-user metrics."""

    on: BlockName = Field("test", description="Period (or part, e.g. device:2/3) to score.")
    k: list[Positive] = Field(
        default_factory=lambda: [5, 10, 20], min_length=1, description="Cut-offs of HR@k and NDCG@k."
    )
    candidates: str = Field(
        "auto",
        description="Items ranked for each event: all, or N sampled ones; auto: all if that is fast enough, else 1000.",
    )
    auc_negatives: Positive = rarely(100, "Sampled negatives per event for AUC, log loss and calibration.")
    first_events: list[Count] = Field(
        default_factory=list,
        description="Score new users only, as if each had made only its first K events; several K: one evaluation each.",
    )
    targets_after: Count | Literal["next"] = Field(
        10,
        description="With --first-events: score the events after a user's first N, the same for every K (N is at least "
        "the largest K); next: score what comes right after the first K.",
    )
    targets: Literal["all", "repeat", "explore"] = Field(
        "all",
        description="Which events are scored: all; repeat: of items that the user interacted with before; explore: of "
        "items that are new to the user.",
    )
    batch_events: Positive = rarely(256, "Events scored at once; changes memory and speed, not results.")
    against: str = Field(
        "", description="The baseline, e.g. cloud@1: every other model is compared with it, user by user."
    )


class ExportConfig(CommandSection):
    """`dcclctl export`: patches or a cloud model → a bundle that devices run."""

    items: str = Field(
        "all", description="Items to ship: all; top:N, those with the most events so far; or @FILE with one id a line."
    )
    precision: Literal["fp32", "fp16", "int8"] = Field(
        "fp32", description="Numbers of the item table, and of large weights; all is calculated in float32."
    )
    neighbours: Count = Field(
        0,
        description="Nearest items, and preceding ones, that are shipped with each item, at most; 0: all of the memory.",
    )
    target: Literal["onnx", "executorch"] = Field(
        "onnx", description="Runtime: ONNX Runtime, or also ExecuTorch, for which device.pte is added."
    )


class CollectConfig(CommandSection):
    """`dcclctl collect`: what devices sent → patches."""

    max_norm: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Largest distance of θ̂ to the mean μ; 0: learned from all that was sent."
    )
    deviations: Annotated[float, Field(ge=0.0)] = rarely(
        4.0, "Median absolute deviations that the learned bound stands above the median distance."
    )
