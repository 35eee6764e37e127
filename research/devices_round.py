"""One round of devices for studies: patches with θ̂, the bundle made of them, and uplinks as the devices would send them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pipeline import Runner

from dcclctl.artifacts import Bundle, PatchSet
from dcclctl.stages.export import token_of
from dcclctl.store.store import Store


@dataclass(frozen=True)
class Round:
    """What devices have learned, which `patch --method metapatch` learns in their place.

    Attributes:
        cloud, patches, exported: references. bundle, learned: the artifacts.
        users: (U,) their numbers. theta: (U, K) their θ̂. mean: (K,) μ. tokens: of the users.
    """

    cloud: str
    patches: str
    exported: str
    bundle: Bundle
    learned: PatchSet
    users: np.ndarray
    theta: np.ndarray
    mean: np.ndarray
    tokens: list[str]

    @classmethod
    def run(cls, run: Runner, dataset: str, seed: int) -> "Round":
        """Train, patch and export."""
        s = ["--seed", str(seed)]
        cloud = run("train", "train", "--dataset", dataset, *s)
        patches = run("patch", "patch", "--method", "metapatch", "--cloud", cloud, *s)
        exported = run("export", "export", patches)
        store = Store(run.store)
        bundle, learned = Bundle(store.resolve(exported)), PatchSet(store.resolve(patches))
        users = learned.users["user_index"].to_numpy()
        theta, mean = learned.codes()[0].numpy()[users].astype(float), np.array(bundle.spec["learning"]["start"])
        tokens = [token_of(bundle, int(user)) for user in users]
        return cls(cloud, patches, exported, bundle, learned, users, theta, mean, tokens)

    def uplinks(self, path: Path, sent: np.ndarray, **more: float) -> str:
        """Write what the devices send, (U, K) and the same more of each, for `collect`; returns the path."""
        lines = (
            {"bundle": self.bundle.spec["id"], "token": token, "theta": theta.tolist(), **more}
            for token, theta in zip(self.tokens, sent, strict=True)
        )
        path.write_text("\n".join(map(json.dumps, lines)))
        return str(path.resolve())
