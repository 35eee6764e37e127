"""A cloud model f, and after a distillation its patch basis Θ and encoder U."""

from functools import cached_property
from typing import Any

from dcclctl.artifacts.dataset import Dataset
from dcclctl.artifacts.handle import Handle, check_same
from dcclctl.store.store import Artifact

BASIS_FILE, ENCODER_FILE = "basis.safetensors", "encoder.safetensors"


class CloudModel(Handle):
    """A cloud model.

    Raises:
        ArtifactError: the model and its dataset do not belong together.
    """

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.dataset = Dataset(artifact.input("dataset"))
        check_same("the id map", artifact, artifact.facts["id_map"], self.dataset.artifact, self.dataset.id_map)

    @cached_property
    def _model_file(self) -> dict[str, Any]:
        return dict(self.artifact.read_json("model.json"))

    @property
    def model(self) -> str:
        """Its kind, e.g. 'din'."""
        return str(self._model_file["model"])

    @property
    def sizes(self) -> dict[str, Any]:
        """The settings that fix the shape of its weights."""
        return {name: value for name, value in self._model_file.items() if name != "model"}

    @property
    def history(self) -> int:
        """L, how many of a user's last events it sees; 0 if it sees none, or all of them."""
        return int(self.sizes.get("history", 0))

    @property
    def negatives(self) -> int:
        """Negatives for each positive event in its training: they set the mean of its logits."""
        return int(self.facts["negatives"])

    @property
    def shared_negatives(self) -> int:
        """Negatives that the events of a batch shared in its training; 0 if each event had its own."""
        return int(self.facts.get("shared_negatives", 0))

    @property
    def parent(self) -> "CloudModel | None":
        """The cloud model that it was trained further from, or distilled into."""
        return CloudModel(self.artifact.input("cloud")) if "cloud" in self.artifact.inputs else None

    @property
    def round(self) -> int:
        """How many distillations led to it."""
        if "round" in self.facts:
            return int(self.facts["round"])
        return self.parent.round if self.parent is not None else 0

    @property
    def basis_id(self) -> str:
        """SHA-256 of the file that holds Θ; empty if the model has none yet."""
        return self.artifact.file_id(BASIS_FILE)

    @property
    def has_encoder(self) -> bool:
        """Can U(0, u) serve users without a patch?"""
        return bool(self.artifact.file_id(ENCODER_FILE))
