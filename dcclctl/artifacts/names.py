"""What an artifact is called, for people: the name that it was given, or what it is."""

from dcclctl.store.artifact import Artifact


def label(artifact: Artifact, suffix: str = "") -> str:
    """Name and reference: 'control (cloud@2)', or the reference alone where there is no name."""
    end = f"+{suffix}" if suffix else ""
    names = artifact.home.aliases(artifact)
    return f"{names[0]}{end} ({artifact.ref})" if names else f"{artifact.ref}{end}"


def short_label(artifact: Artifact, suffix: str = "") -> str:
    """The name alone, or the reference where there is none."""
    names = artifact.home.aliases(artifact)
    return (names[0] if names else artifact.ref) + (f"+{suffix}" if suffix else "")


def describe(artifact: Artifact) -> str:
    """What an artifact is and what it stands on, in a few words: 'memory patches on control'."""
    config = artifact.config
    if artifact.kind == "cloud" and "patches" in artifact.inputs:
        teachers = short_label(artifact.input("patches"))
        return f"distilled from {teachers} ({config['method']}), round {artifact.facts['round']}"
    if artifact.kind == "cloud":
        on = "+".join(config["on"])
        if "cloud" in artifact.inputs:
            return f"{short_label(artifact.input('cloud'))} trained further on {on}"
        return f"{config['model']} trained on {on}"
    if artifact.kind == "patches":
        guarded = ", guarded" if config["guard"] else ""
        return f"{config['method']} patches on {short_label(artifact.input('cloud'))}{guarded}"
    if artifact.kind == "evaluation":
        return f"{len(artifact.facts['subjects'])} models on {artifact.facts['on']}"
    if artifact.kind == "memory":
        return f"memories of {artifact.facts['users']:,} users up to {config['counted_through']}"
    return f"{artifact.facts['users']:,} users, {artifact.facts['items']:,} items, {artifact.facts['events']:,} events"
