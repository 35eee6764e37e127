"""What an artifact is called, for people: the name that it was given, or what it is."""

from collections.abc import Mapping

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


def group_reference(artifacts: Mapping[int, Artifact], suffix: str = "") -> str:
    """The reference of one model's trainings with several seeds: 'cloud@base' for base-0, base-1, …, else all of them.

    Args:
        artifacts: seed → artifact, of one kind.
    """
    stems = [
        {name.removesuffix(f"-{seed}") for name in artifact.home.aliases(artifact) if name.endswith(f"-{seed}")}
        for seed, artifact in artifacts.items()
    ]
    common, end = sorted(set.intersection(*stems)), suffix and f"+{suffix}"
    if common:
        return f"{next(iter(artifacts.values())).kind}@{common[0]}{end}"
    return ",".join(artifact.ref + end for artifact in artifacts.values())


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
        seeds = f", {len(config['seeds'])} seeds" if "seeds" in config else ""
        several = "s" if len(facts["subjects"]) > 1 else ""
        return f"{len(facts['subjects'])} model{several} on {facts['on']}{seeds}"
    if artifact.kind == "tuning":
        best = ", ".join(f"{name} {found['value']:.4f}" for name, found in facts["best"].items())
        return f"{config['trials']} trials of {config['command']} by {facts['group']}.{facts['metric']}: {best}"
    if artifact.kind == "memory":
        return f"memories of {facts['users']:,} users up to {config['counted_through']}"
    return f"{facts['users']:,} users, {facts['items']:,} items, {facts['events']:,} events"


def _input(artifact: Artifact, role: str) -> str:
    """The name of an input, or the start of its id where it is gone or damaged."""
    try:
        return short_label(artifact.input(role))
    except ArtifactError:
        return f"{artifact.inputs[role].kind} {artifact.inputs[role].id[:12]}"
