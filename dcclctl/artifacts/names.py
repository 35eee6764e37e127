"""What an artifact is called, for people: the name that it was given, or what it is."""

from dcclctl.errors import ArtifactError
from dcclctl.store.artifact import Artifact


def label(artifact: Artifact, suffix: str = "") -> str:
    """Name and reference: 'control (cloud@2)', or the reference alone where there is no name."""
    called, ref = short_label(artifact, suffix), artifact.ref
    return called if called.startswith(ref) else f"{called} ({ref})"


def short_label(artifact: Artifact, suffix: str = "") -> str:
    """The name alone, or the reference where there is none."""
    called = next(iter(artifact.home.aliases(artifact)), artifact.ref)
    return f"{called}+{suffix}" if suffix else called


def describe(artifact: Artifact) -> str:
    """What an artifact is and what it stands on, in a few words: 'memory patches on control'."""
    config, facts = artifact.config, artifact.facts
    if artifact.kind == "cloud":
        if "patches" in artifact.inputs:
            return f"distilled from {_input(artifact, 'patches')} ({config['method']}), round {facts['round']}"
        on = "+".join(config["on"])
        if "cloud" in artifact.inputs:
            return f"{_input(artifact, 'cloud')} trained further on {on}"
        return f"{config['model']} trained on {on}"
    if artifact.kind == "patches":
        guarded = ", guarded" if config["guard"] else ""
        return f"{config['method']} patches on {_input(artifact, 'cloud')}{guarded}"
    if artifact.kind == "evaluation":
        return f"{len(facts['subjects'])} models on {facts['on']}"
    if artifact.kind == "bundle":
        what = "patches" if "patches" in artifact.inputs else "cloud"
        return f"bundle of {_input(artifact, what)}: {facts['items']:,} items in {config['precision']}"
    if artifact.kind == "memory":
        return f"memories of {facts['users']:,} users up to {config['counted_through']}"
    return f"{facts['users']:,} users, {facts['items']:,} items, {facts['events']:,} events"


def _input(artifact: Artifact, role: str) -> str:
    """The name of an input, or the start of its id where it is gone or damaged."""
    try:
        return short_label(artifact.input(role))
    except ArtifactError:
        return f"{artifact.inputs[role].kind} {artifact.inputs[role].id[:12]}"
