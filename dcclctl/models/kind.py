"""The interface of a kind of cloud model, and the table of all kinds. A new kind is one file and one row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from dcclctl.config import Section, Variant
from dcclctl.models.settings import ModelSettings

if TYPE_CHECKING:
    import torch

    from dcclctl.artifacts.cloud import CloudModel
    from dcclctl.artifacts.dataset import Dataset
    from dcclctl.compute import OnProgress
    from dcclctl.events.log import Block, EventLog
    from dcclctl.models.scoring import Backbone
    from dcclctl.models.world import World
    from dcclctl.store.work import Work

#: `train --model` → the code, and one line about the model
MODELS: Mapping[str, Variant] = {
    "din": Variant("dcclctl.models.din:DinKind", "Deep Interest Network: target attention over the last events"),
    "sasrec": Variant("dcclctl.models.sequence:SasrecKind", "self-attention over the sequence of events"),
    "gru4rec": Variant("dcclctl.models.sequence:Gru4recKind", "recurrent network over the sequence of events"),
    "popularity": Variant(
        "dcclctl.models.counts:PopularityKind", "the same ranking for all users, by number of events"
    ),
    "recent": Variant("dcclctl.models.counts:RecentKind", "popularity among the newest events"),
    "gp-topfreq": Variant("dcclctl.models.counts:GpTopfreqKind", "the user's own most frequent items, then popularity"),
    "item-knn": Variant("dcclctl.models.counts:ItemKnnKind", "nearest items by co-occurrence"),
    "ease": Variant("dcclctl.models.counts:EaseKind", "linear autoencoder in closed form"),
    "ials": Variant("dcclctl.models.ials:IalsKind", "implicit matrix factorisation by alternating least squares"),
    "tifu-knn": Variant(
        "dcclctl.models.user_neighbours:TifuKnnKind", "the user's item frequencies over time, and the nearest users'"
    ),
    "up-cf": Variant(
        "dcclctl.models.user_neighbours:UpCfKind", "popularity in the user's newest baskets, and in similar users'"
    ),
    "bpr": Variant("dcclctl.models.factors:BprKind", "matrix factorisation learned from pairs"),
    "fm": Variant("dcclctl.models.factors:FmKind", "factorisation machine over user, profile, history and item"),
    "neumf": Variant("dcclctl.models.factors:NeumfKind", "neural matrix factorisation"),
}

SettingsT = TypeVar("SettingsT", bound=ModelSettings)


@dataclass(frozen=True)
class FitTask(Generic[SettingsT]):
    """One training run.

    Attributes:
        dataset: the log. blocks: what to train on. settings: of the model. seed: of every draw. device: that computes.
        work: gets the model's files. on_progress: see compute.OnProgress. start: the model to train further, if any.
        world: the processes that train it together.
    """

    dataset: "Dataset"
    blocks: "list[Block]"
    settings: SettingsT
    seed: int
    device: "torch.device"
    work: "Work"
    on_progress: "OnProgress"
    start: "CloudModel | None" = None
    world: "World | None" = None


class CloudModelKind(ABC, Generic[SettingsT]):
    """How one kind of cloud model is trained, saved and opened.

    Attributes:
        Settings: its section. can_be_taught: whether it can be the student of a distillation.
        can_be_shared: whether several processes can train it together.
    """

    Settings: ClassVar[type[Section]]
    can_be_shared: ClassVar[bool] = False
    can_be_taught: ClassVar[bool] = False

    @abstractmethod
    def fit(self, task: FitTask[SettingsT]) -> dict[str, Any]:
        """Train, write `model.safetensors`, and return the facts for the manifest."""

    @abstractmethod
    def open(self, cloud: "CloudModel", device: "torch.device", log: "EventLog") -> "Backbone":
        """A backbone that scores candidates, with histories from the log."""


def kind_of(model: str) -> CloudModelKind[Any]:
    """The kind with this name."""
    kind: CloudModelKind[Any] = MODELS[model].load()()
    return kind


def open_backbone(cloud: "CloudModel", device: "torch.device", log: "EventLog | None" = None) -> "Backbone":
    """The cloud model's backbone, with histories from `log`; None: from its dataset's own log."""
    return kind_of(cloud.model).open(cloud, device, log or cloud.dataset.log)


def size_fields(model: str) -> tuple[str, ...]:
    """Settings that fix the shape of the weights; model.json holds them, and further training keeps them."""
    settings = MODELS[model].load().Settings
    return tuple(name for name, field in settings.model_fields.items() if (field.json_schema_extra or {}).get("size"))
