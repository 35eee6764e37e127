"""Models that bundles are made of in the tests."""

from world import PATCH, TRAIN, sets

SASREC = (
    "--model=sasrec",
    *sets("train.sasrec", item_size=8, category_size=4, history=6),
    "--epochs=2",
    "--batch-size=32",
    "--threads=1",
)
MEMORY = ("--threads=1", *sets("patch.memory", hidden_size=8, epochs=2))
#: name → commands that make the model; the last one's reference is exported
KINDS = {
    "din": [("train", *TRAIN)],
    "din-metapatch": [("train", *TRAIN), ("patch", "--cloud=cloud@1", *PATCH)],
    "din-memory": [("train", *TRAIN), ("patch", "--cloud=cloud@1", *MEMORY)],
    "sasrec-metapatch": [("train", *SASREC), ("patch", *PATCH)],
    "sasrec-memory": [("train", *SASREC), ("patch", *MEMORY)],
}
