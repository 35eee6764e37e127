"""Typed handles: what a stage gets when it opens an artifact.

A handle checks, when it is made, that its artifacts belong together (same dataset, cloud model, basis, id map).
"""

from dcclctl.artifacts.bundle import Bundle as Bundle
from dcclctl.artifacts.cloud import CloudModel as CloudModel
from dcclctl.artifacts.dataset import Dataset as Dataset
from dcclctl.artifacts.evaluation import Evaluation as Evaluation
from dcclctl.artifacts.memory import Memory as Memory
from dcclctl.artifacts.patches import PatchSet as PatchSet
from dcclctl.artifacts.recommendations import Recommendations as Recommendations
from dcclctl.artifacts.tuning import Tuning as Tuning
