"""An evaluation, part by part of the users: what scoring one part leaves in files, and all parts together.

A part's events, candidates, ranks and rows need the events of its users alone, so memory depends on the size of a part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from dcclctl.artifacts import Dataset
from dcclctl.compute import torch_device
from dcclctl.config import EvaluateConfig
from dcclctl.devices.method import method_of
from dcclctl.devices.serving import Subject, serve
from dcclctl.evaluation.candidates import Candidates, number_to_rank
from dcclctl.evaluation.scores import Scores, whole_users
from dcclctl.evaluation.targets import targets_of
from dcclctl.events.log import Block
from dcclctl.events.sampling import Ints
from dcclctl.metrics.beyond import coverage, gini, novelty
from dcclctl.metrics.calibration import Reliability
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import Backbone, score
from dcclctl.scale.task import OnShard
from dcclctl.store.store import Store
from dcclctl.store.work import Work
from dcclctl.tables import PER_USER

#: of one part: values of its users, and what is summed over users; the table is empty where no event is scored
FILES = TABLE_FILE, SUMS_FILE = "scored-{:05d}.parquet", "scored-{:05d}.safetensors"


def parts_of(subjects: list[Subject]) -> list[range]:
    """The users of each part."""
    dataset = subjects[0].cloud.dataset
    return [range(int(dataset.facts["users"]))] if any(map(exchanges_histories, subjects)) else dataset.parts


def exchanges_histories(subject: Subject) -> bool:
    """Whether it is a placebo that gives every user another one's history: it needs the events of all users at once."""
    patches = subject.patches
    return subject.suffix == "shuffled" and patches is not None and method_of(patches.method).uses_memory


def count_targets(dataset: Dataset, block: Block, config: EvaluateConfig) -> tuple[int, int]:
    """How many events are scored, and by how many `--candidates auto` goes."""
    periods = {number: int(each["events"]) for number, each in enumerate(dataset.facts["periods"])}
    if block.parts == 1 and not config.first_events and config.targets == "all":
        return periods[block.period], periods[block.period]
    scored = to_rank = 0
    for users in dataset.parts:
        log = dataset.log_part(users)
        scored += len(targets_of(dataset, log, log.events_in(block), config))
        to_rank += number_to_rank(dataset, log, block, config)
    return scored, to_rank


def part_scorer(store: Store, work: Work, arguments: dict[str, Any]) -> OnShard:
    """Open models to score part after part; see scale.ShardTask.

    Args:
        arguments: `subjects`: references by full id. `config`: an EvaluateConfig. `to_rank`: see Candidates.
    """
    subjects = [Subject.of(reference, store) for reference in arguments["subjects"]]
    config = EvaluateConfig(**arguments["config"])
    return PartScorer(work, subjects, config, int(arguments["to_rank"]))


class PartScorer:
    """Scores models on the events of one part of the users after the other.

    Args:
        work: gets the files. to_rank: see Candidates.
    """

    def __init__(self, work: Work, subjects: list[Subject], config: EvaluateConfig, to_rank: int) -> None:
        self.work, self.subjects, self.config, self.to_rank = work, subjects, config, to_rank
        self.dataset, self.parts = subjects[0].cloud.dataset, parts_of(subjects)
        self._backbones: dict[str, Backbone] = {}

    def __call__(self, part: int, on_done: Callable[[float], None]) -> None:
        """Score one part and write its files."""
        log = self.dataset.log_part(self.parts[part])
        candidates = Candidates(self.dataset, Block.parse(self.config.on), self.config, log, self.to_rank)
        names = [subject.name for subject in self.subjects]
        tensors = {"events": torch.tensor(len(candidates.events))}
        table = pl.DataFrame(schema=PER_USER.schema())
        if len(candidates.events):
            scores, served = self._scores(candidates, on_done)
            tables = [scores[name].per_user(self.dataset, name, served[name]) for name in names]
            table = pl.concat(tables)
            for number, name in enumerate(names):
                own = scores[name]
                tensors[f"bins-{number}"] = torch.from_numpy(own.bins.sums())
                tensors[f"few-{number}"] = torch.tensor(own.few_candidates())
                if own.shown is not None:
                    tensors[f"shown-{number}"] = torch.from_numpy(own.shown)
        self.work.write_table(TABLE_FILE.format(part), table)
        self.work.write_tensors(SUMS_FILE.format(part), tensors)

    def _scores(
        self, candidates: Candidates, on_done: Callable[[float], None]
    ) -> tuple[dict[str, Scores], dict[str, npt.NDArray[np.character]]]:
        """Score all subjects; those over one cloud model share everything below the patches."""
        config = self.config
        scores = {subject.name: Scores(candidates) for subject in self.subjects}
        served: dict[str, npt.NDArray[np.character]] = {}
        for cloud_id in dict.fromkeys(subject.cloud.id for subject in self.subjects):
            group = [subject for subject in self.subjects if subject.cloud.id == cloud_id]
            backbone = self._backbone(group[0], candidates)
            found = [serve(subject, backbone, config.unpatched, config.seed) for subject in group]
            served |= {
                subject.name: each.by_user(candidates.log, candidates.events)
                for subject, each in zip(group, found, strict=True)
            }
            heads = [each.head for each in found]
            for users in whole_users(candidates.log.user[candidates.events], candidates.events_at_once):
                events = candidates.events[users]
                for batch, logits in score(
                    backbone, heads, events, candidates.batch, candidates.width, config.batch_events
                ):
                    for subject, values in zip(group, logits, strict=True):
                        scores[subject.name].add(batch, values.numpy())
                    on_done(len(batch.events))
                for subject in group:
                    scores[subject.name].reduce()
        return scores, served

    def _backbone(self, subject: Subject, candidates: Candidates) -> Backbone:
        """The cloud model with the histories of a part; its weights are read once."""
        cloud = subject.cloud
        known = self._backbones.get(cloud.id)
        self._backbones[cloud.id] = (
            open_backbone(cloud, torch_device(self.config), candidates.seen)
            if known is None
            else known.with_log(candidates.seen)
        )
        return self._backbones[cloud.id]


@dataclass(frozen=True)
class Scored:
    """All parts together.

    Attributes:
        per_user: a PER_USER table, model after model. events: scored. bins: model → of calibration.
        shown: model → (I,) see Scores; empty where candidates are sampled. few: see Scores.few_candidates.
    """

    per_user: pl.DataFrame
    events: int
    bins: dict[str, Reliability]
    shown: dict[str, Ints]
    few: tuple[int, int]

    @classmethod
    def of(cls, work: Work, names: list[str], parts: int) -> "Scored":
        """Read the files of all parts, in the order of the parts, and leave them out of the artifact."""
        tables: list[pl.DataFrame] = []
        bins = {name: Reliability() for name in names}
        shown: dict[str, Ints] = {}
        few, events = np.zeros(2, dtype=np.int64), 0
        for part in range(parts):
            sums, table = work.read_tensors(SUMS_FILE.format(part)), work.read_table(TABLE_FILE.format(part))
            for name in FILES:
                work.leave_out(name.format(part))
            events += int(sums["events"])
            if not int(sums["events"]):
                continue
            tables.append(table)
            few += sums["few-0"].numpy()
            for number, name in enumerate(names):
                bins[name].add_sums(sums[f"bins-{number}"].numpy())
                if (own := sums.get(f"shown-{number}")) is not None:
                    shown[name] = shown.get(name, np.zeros(len(own), dtype=np.int64)) + own.numpy()
        whole = pl.concat(tables) if len(tables) > 1 else tables[0]
        if len(tables) > 1:
            whole = pl.concat([whole.filter(pl.col("subject") == name) for name in names])
        return cls(whole, events, bins, shown, (int(few[0]), int(few[1])))

    def reliability(self, name: str) -> pl.DataFrame:
        """A RELIABILITY table of one model, see tables.py."""
        return self.bins[name].table().select(pl.lit(name).alias("subject"), pl.all())

    def beyond_accuracy(self, name: str, dataset: Dataset, block: Block, catalogue: Ints) -> dict[str, float | None]:
        """Coverage, Gini of exposure and novelty of a model's top lists; None where candidates are sampled.

        Args:
            catalogue: (I',) items that may stand in a ranking.
        """
        if name not in self.shown:
            return {"coverage": None, "gini": None, "novelty": None}
        counts = self.shown[name]
        past = dataset.log_part(dataset.parts[0]).positives_before(block.period)
        return {
            "coverage": coverage(counts[catalogue]),
            "gini": gini(counts[catalogue]),
            "novelty": novelty(counts, past),
        }
