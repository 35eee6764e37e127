"""bundle.json: what a runner must know of a bundle. The one place that says which fields there are.

`schema()` is the JSON Schema of it, which every bundle carries as bundle.schema.json; the Python runner checks
bundle.json against it.
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_FILE = "bundle.schema.json"
#: version of the layout; the runners refuse every other one
SPEC = 2
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Part):
    """Size and hash of one file."""

    bytes: Count
    sha256: Sha256


class TensorRecord(_Part):
    """An input or output of a graph; a dimension that is text has any length, and equal texts are equal lengths."""

    name: str
    type: str = Field(description="As numpy calls it.")
    shape: list[Annotated[int, Field(ge=0)] | str]


class GraphRecord(_Part):
    """One .onnx file."""

    tables: list[str] = Field(description="Files that it reads in place.")
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]


class MethodRecord(_Part):
    """One method of a program: a graph, whose inputs and outputs have no names here but an order."""

    inputs: list[str]
    outputs: list[str]
    lengths: dict[str, Positive] = Field(
        description="Dimension → its largest length; M, the ring's, is always as long, and events beyond `held` do not count."
    )


class ProgramRecord(_Part):
    """device.pte, a program of ExecuTorch."""

    version: str = Field(description="Of ExecuTorch, which made it.")
    methods: dict[str, MethodRecord]


class Shipped(_Part):
    """How many items of the dataset are in the bundle."""

    shipped: Count
    of: Count


class Sizes(_Part):
    """Lengths that a runner needs."""

    ring: Positive = Field(description="Newest events that a device holds.")
    history: Positive = Field(description="Events, or baskets of a sequence model, that the cloud model reads.")
    profile: Count = Field(description="Codes of a user's profile.")
    theta: Count = Field(description="Numbers in θ̂; 0 without.")
    smallest: Count = Field(description="Events from which on a memory patch serves its user.")
    kept: Count = Field(description="Newest events whose features are kept.")
    kept_features: Count = Field(description="Bytes of features that are kept of each.")


class Constants(_Part):
    steps: Positive = Field(description="A kept feature is rounded to one of this many steps a unit.")


class Learning(_Part):
    """How a device learns θ̂."""

    states: bool = Field(description="The learning graph reads one state an event, not a row for each candidate.")
    steps: Positive = Field(description="Steps of Adam in one round.")
    negatives: Count = Field(description="Drawn for each event.")
    stream: Count = Field(description="Names the draws of negatives.")
    stream_left: Count = Field(description="Names the order of the items that are left when nearly all are excluded.")
    start: list[float] = Field(description="μ, the θ̂ that learning starts at.")
    clip: Annotated[float, Field(ge=0)] = Field(
        description="Largest distance to μ of a θ̂ that is sent under differential privacy."
    )


class Bytes(_Part):
    """Sizes in bytes."""

    shared: Count = Field(description="Graphs, and the basis of the patches.")
    item: Count = Field(description="Of one shipped item.")
    items: Count = Field(description="The item table.")
    user: Count = Field(description="What a device keeps of its user, with full rings.")


class Percentiles(_Part):
    """Of 200 rankings."""

    p50: float
    p95: float


class Aged(_Part):
    """What patches gain above the cloud model under them when they are some blocks old, see evaluation/staleness.py."""

    blocks_old: Count
    on: str = Field(description="Block of the log.")
    metric: str
    users: Count
    gain: float | None
    low: float | None = Field(description="Of the 95 % interval over users; none for few users.")
    high: float | None
    change: float | None = Field(None, description="Against new patches, over the users that have events at both ages.")
    change_low: float | None = None
    change_high: float | None = None


class Measured(_Part):
    """What a bundle costs a device, and what it is worth when it grows old; times are of the machine that measured."""

    download_bytes: Count = Field(description="Graphs and item table.")
    shared_bytes: Count = Field(description="Graphs alone, with what patches share.")
    item_bytes: Count = Field(description="Of one shipped item.")
    user_bytes: Count = Field(description="What a device keeps of its user, with full rings.")
    uplink_bytes: Count = Field(description="θ̂ of one round; 0 without θ̂.")
    written_bytes: Count = Field(description="Of the file of the device's state, which the runner writes whole.")
    ram_bytes: int | None = Field(
        description="Largest resident memory of a process with Python, numpy and ONNX Runtime that ranks 300 candidates; "
        "none where the system does not tell."
    )
    ram_own_bytes: int | None = Field(description="What of it the bundle adds.")
    macs: Count = Field(
        description="Multiplications with addition in matrix products of one ranking of 300 candidates with a full ring."
    )
    moved_bytes: Count = Field(
        description="Bytes that all its operators read and write; none is fused, and no byte is found in a cache."
    )
    microjoules: float = Field(description="An estimate from both with published constants, for comparing bundles.")
    open_milliseconds: float = Field(description="Opening the graphs and the first ranking, cold.")
    milliseconds: dict[str, Percentiles] = Field(
        description="Candidates → of a ranking with a full ring, processor time of one thread."
    )
    learning_step_milliseconds: float | None = Field(
        description="One step on 50 rows; none if nothing is learned on the device."
    )
    staleness: list[Aged] = Field([], description="One for each age and metric; none for a cloud model alone.")


class BundleSpec(_Part):
    """All of bundle.json."""

    spec: Literal[2]
    id: Sha256 = Field(
        description="Of graphs, tables and ids of the items; a state of another bundle has another meaning."
    )
    model: str
    method: str = Field(description="Of the patches; empty for a cloud model alone.")
    parents: dict[str, str] = Field(description="Kind of artifact → its id.")
    precision: Literal["fp32", "fp16", "int8"]
    repeats: bool = Field(description="A user may come back to an item, so known items are shown.")
    items: Shipped
    sizes: Sizes
    short_rings: Count = Field(description="Users whose newest baskets do not all fit into a ring.")
    constants: Constants
    learning: Learning | None = Field(description="None: nothing is learned on the device.")
    bytes: Bytes
    fallback: str = Field(description="What happens with items that are not shipped.")
    graphs: dict[str, GraphRecord]
    program: ProgramRecord | None = Field(None, description="With --target executorch: the graphs as device.pte.")
    files: dict[str, FileRecord] = Field(description="Every other file.")
    measured: Measured | None = Field(None, description="What dcclctl export --measure found.")


def schema() -> bytes:
    """The content of bundle.schema.json."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **BundleSpec.model_json_schema()}
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
