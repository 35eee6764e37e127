"""Artifacts as a careless or hostile hand makes them: other content under right hashes."""

from typing import TYPE_CHECKING, Any

import pytest

from dcclctl.store.contents import write_table
from dcclctl.store.store import Artifact, Store

if TYPE_CHECKING:
    from dcclctl.artifacts import CloudModel, PatchSet


def rewrite(store: Store, artifact: Artifact, seed: int = 99, **changes: Any) -> Artifact:
    """The same artifact with some of its parts replaced and all hashes right.

    Args:
        changes: `inputs`; `facts` or `config`, merged into its own; `tables`: name → table; `tensors`: name → tensors;
            `without`: name of a file to leave out.
    """
    config = artifact.config | changes.get("config", {})
    with store.begin(
        artifact.manifest["stage"], artifact.kind, config, seed, changes.get("inputs", artifact.inputs)
    ) as work:
        for name in artifact.manifest["files"]:
            if name == changes.get("without"):
                continue
            if name in changes.get("tables", {}):
                with work.new_file(name) as path:  # not checked: a hostile hand does not ask tables.py
                    write_table(path, changes["tables"][name])
            elif name in changes.get("tensors", {}):
                work.write_tensors(name, changes["tensors"][name], artifact.tensor_metadata(name))
            else:
                with work.new_file(name) as path:
                    path.write_bytes(artifact.file(name).read_bytes())
        return work.commit(artifact.facts | changes.get("facts", {}))


def patched_on(period: str, cloud: "CloudModel", **settings: Any) -> "PatchSet":
    """Patches that learned from a period which the settings refuse."""
    from dcclctl.stages import patch as stage

    def without_asking(*arguments: Any) -> Any:
        return resolve(*arguments).model_copy(update={"on": period})

    resolve = stage.resolve
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(stage, "resolve", without_asking)
        return stage.patch(cloud, {"threads": 1} | settings)
