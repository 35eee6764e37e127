"""Settings that several cloud models share. A model's own section stands beside its code."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dcclctl.config import Count, Positive, Rate, Section, tuned

#: dropout: a share below 1
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
#: description of `patience`
PATIENCE = "Epochs without a better ranking of valid after which training stops; 0 never stops early."


class ModelSettings(Section):
    negatives: Positive = Field(
        4, description="Sampled negatives for each positive event; a logit of 0 means one click among that many items."
    )


class TrainedSettings(ModelSettings):
    epochs: Positive = Field(20, description="Passes over the training events, at most.")
    patience: Count = Field(2, description=PATIENCE)
    batch_size: Positive = Field(1024, description="Events per step, each with its negatives.")
    learning_rate: Rate = tuned(0.002, "Adam's step size.", search="3e-4..2e-2")
    weight_decay: Annotated[float, Field(ge=0.0)] = tuned(
        1e-5, "L2 penalty on the embeddings in a batch.", search="1e-7..1e-3"
    )


class PatientSettings(TrainedSettings):
    """Settings of models that learn item popularity first, and so need more epochs and more patience than DIN."""

    epochs: Positive = Field(60, description="Passes over the training events, at most.")
    patience: Count = Field(5, description=PATIENCE)


@dataclass(frozen=True)
class FitSettings:
    """Settings of one training; `purpose` names the random draws, so that two stages with one seed draw differently."""

    negatives: int
    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    dropout: float
    seed: int
    purpose: str = "train"
    #: negatives that all events of a batch share, in a softmax; 0: each event has its own, in a binary loss
    shared_negatives: int = 0

    @classmethod
    def of(cls, settings: Section, seed: int, purpose: str) -> "FitSettings":
        """From a section that has these settings; `dropout` and `shared_negatives` may be missing and are then 0."""
        names = ("negatives", "epochs", "patience", "batch_size", "learning_rate", "weight_decay")
        given = {name: getattr(settings, name) for name in names}
        shared = getattr(settings, "shared_negatives", 0)
        dropout = getattr(settings, "dropout", 0.0)
        return cls(**given, dropout=dropout, seed=seed, purpose=purpose, shared_negatives=shared)
