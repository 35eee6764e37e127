"""Load artifacts, compute, commit one artifact."""

from typing import TYPE_CHECKING

from dcclctl.store.remake import Manifest, tell_with

if TYPE_CHECKING:
    from dcclctl.store.artifact import Home


def _command_again(manifest: Manifest, home: "Home") -> str:
    from dcclctl.stages.remake import command_again

    return command_again(manifest, home)


tell_with(_command_again)
