"""The memories of all devices of one dataset, and the statistics that the cloud sends with them."""

from dcclctl.artifacts.dataset import Dataset
from dcclctl.artifacts.handle import Handle, check_recorded
from dcclctl.config import MemoryConfig
from dcclctl.store.store import Artifact

STATISTICS_FILE, TYPICAL_FILE = "statistics.safetensors", "typical.safetensors"


class Memory(Handle):
    """The memories of all devices of one dataset."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        check_recorded(artifact, MemoryConfig)
        self.dataset = Dataset(artifact.input("dataset"))

    @property
    def size(self) -> int:
        """M, newest events that a device keeps."""
        return int(self.config["size"])

    @property
    def profile_window(self) -> int:
        """T, newest events whose features a device keeps."""
        return int(self.config["profile_window"])

    @property
    def counted_through(self) -> str:
        """Last period, or part of one, in the memories and statistics."""
        return str(self.config["counted_through"])
