"""The kinds of cloud models: one module each (or one for several kinds), with two functions and nothing else in common.

fit(dataset, config, work, on_progress, parent) -> facts     trains, writes the model's files into `work`
backbone(cloud, config, log) -> Backbone                     what scores candidates (algorithm/scoring.py)
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from dcclctl.algorithm.eventlog import EventLog
    from dcclctl.algorithm.scoring import Backbone
    from dcclctl.config import ComputeSection, TrainConfig
    from dcclctl.stages.compute import OnProgress
    from dcclctl.stages.handles import CloudModel, Dataset
    from dcclctl.store.store import Work

#: `train --model` → module of this package
MODULES: Mapping[str, str] = {
    "din": "din",
    **dict.fromkeys(("popularity", "recent", "gp-topfreq", "item-knn", "ease"), "counts"),
    **dict.fromkeys(("bpr", "fm", "neumf"), "factors"),
    **dict.fromkeys(("sasrec", "gru4rec"), "sequence"),
}


class ModelModule(Protocol):
    """What a module of this package offers."""

    #: settings that stand in model.json, and that a continued model takes over from its parent
    SIZES: tuple[str, ...]

    @staticmethod
    def fit(
        dataset: "Dataset",
        config: "TrainConfig",
        work: "Work",
        on_progress: "OnProgress",
        parent: "CloudModel | None",
    ) -> dict[str, object]:
        """Train on the events of `config.on`, from the parent's weights if there is one; write the files; return facts."""
        ...

    @staticmethod
    def backbone(cloud: "CloudModel", config: "ComputeSection", log: "EventLog") -> "Backbone":
        """What scores candidates, below any patch."""
        ...


def module_of(model: str) -> ModelModule:
    """The module of one kind of model."""
    return cast(ModelModule, importlib.import_module(f"dcclctl.stages.models.{MODULES[model]}"))
