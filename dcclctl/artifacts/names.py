"""What an artifact is called, for people: the name that it was given, and what it is."""

from collections.abc import Mapping
from typing import Any

from dcclctl.errors import ArtifactError
from dcclctl.store.artifact import Artifact

#: prefix of the roles of the files that a dataset was made from
_LOG_ROLE = "log:"


def label(artifact: Artifact, suffix: str = "") -> str:
    """Name, or what it is, and the reference: 'control (cloud@2)', 'din (cloud@2)', 'memory on fresh (patches@1)'."""
    return f"{_name(artifact) or what(artifact)}{suffix and f'+{suffix}'} ({artifact.ref})"


def short_label(artifact: Artifact, suffix: str = "") -> str:
    """The name alone, or the label where there is none."""
    name = _name(artifact)
    return f"{name}{suffix and f'+{suffix}'}" if name else label(artifact, suffix)


def what(artifact: Artifact) -> str:
    """What an artifact is, in as few words as can be: 'din', 'din round 1', 'memory on fresh', 'clicks.csv'."""
    config, facts, inputs = artifact.config, artifact.facts, artifact.inputs
    if artifact.kind == "cloud":
        model = model_of(artifact) or "cloud model"
        if "patches" in inputs:
            return f"{model} round {facts.get('round', '?')}"
        return f"{model} continued" if "cloud" in inputs else model
    if artifact.kind == "patches":
        return f"{config.get('method', 'patches')} on {_input(artifact, 'cloud')}"
    if artifact.kind == "dataset":
        logs = sorted(_printable(role.removeprefix(_LOG_ROLE)) for role in inputs if role.startswith(_LOG_ROLE))
        return (logs[0] if logs else "log") + (f" and {len(logs) - 1} more" if len(logs) > 1 else "")
    if artifact.kind == "bundle":
        return f"bundle of {_input(artifact, 'patches' if 'patches' in inputs else 'cloud')}"
    on = _input(artifact, "dataset") if "dataset" in inputs else ""
    return f"{artifact.kind} of {on}" if on else artifact.kind


def model_of(artifact: Artifact) -> str:
    """The model of a cloud model or of the one that an artifact stands on, e.g. 'din'; '' if none can be found."""
    seen: set[str] = set()
    while artifact.id not in seen:
        seen.add(artifact.id)
        if artifact.kind == "cloud" and "model" in artifact.config:
            return str(artifact.config["model"])
        below = next((role for role in ("cloud", "patches") if role in artifact.inputs), "")
        if not below:
            break
        try:
            artifact = artifact.input(below)
        except ArtifactError:
            break
    return ""


def identity(artifact: Artifact, suffix: str = "") -> dict[str, Any]:
    """What JSON says of an artifact wherever one stands.

    Returns:
        ref, label, name ('' without one), kind, model, method, stands_on (label of the cloud model or dataset that it was
        made from), data (label of the dataset).
    """
    below = next((role for role in ("cloud", "patches", "dataset") if role in artifact.inputs), "")
    return {
        "ref": artifact.ref + (suffix and f"+{suffix}"),
        "label": label(artifact, suffix),
        "name": _name(artifact),
        "kind": artifact.kind,
        "model": model_of(artifact),
        "method": str(artifact.config.get("method", "")),
        "stands_on": _labelled(artifact, below) if below else "",
        "data": data_of(artifact),
    }


def data_of(artifact: Artifact) -> str:
    """Label of the dataset that an artifact was made from; '' for a dataset."""
    while "dataset" not in artifact.inputs:
        if "cloud" not in artifact.inputs:
            return ""
        try:
            artifact = artifact.input("cloud")
        except ArtifactError:
            return _labelled(artifact, "cloud")
    return _labelled(artifact, "dataset")


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
            model = model_of(artifact) or "model"
            return f"{model} distilled from {_input(artifact, 'patches')} ({config['method']}), round {facts['round']}"
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
    if artifact.kind == "recommendations":
        model = _input(artifact, "model") + (config["suffix"] and f"+{config['suffix']}")
        return f"top {config['top']} of {facts['users']:,} users by {model}"
    if artifact.kind == "bundle":
        what = "patches" if "patches" in artifact.inputs else "cloud"
        return f"bundle of {_input(artifact, what)}: {facts['items']:,} items in {config['precision']}"
    if artifact.kind == "memory":
        return f"memories of {facts['users']:,} users up to {config['counted_through']}"
    return f"{facts['users']:,} users, {facts['items']:,} items, {facts['events']:,} events"


def _printable(text: str) -> str:
    """A file's name without characters that act on a terminal: labels stand in tables, pages and charts."""
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def _name(artifact: Artifact) -> str:
    return next(iter(artifact.home.aliases(artifact)), "")


def log_in_words(dataset: Artifact, on: str = "") -> str:
    """The logs that a dataset was made from, and the days of a period: 'clicks.csv, 2017-11-15 to 2017-12-30'.

    Args:
        dataset: its artifact. on: a period, or a part of one; '' for all of them. A log without times has no days.
    """
    names = ", ".join(_printable(source["name"]) for source in dataset.facts["sources"] if source["role"] == "log")
    wanted = on.partition(",")[0].partition(":")[0]
    periods = [each for each in dataset.facts["periods"] if wanted in ("", each["name"]) and each["events"]]
    if dataset.facts["time_kind"] != "timestamp" or not periods:
        return names
    return f"{names}, {min(each['start'] for each in periods)[:10]} to {max(each['end'] for each in periods)[:10]}"


def _input(artifact: Artifact, role: str) -> str:
    """The name of an input or what it is, or the start of its id where it is gone or damaged."""
    try:
        given = artifact.input(role)
        return _name(given) or what(given)
    except ArtifactError:
        return _gone(artifact, role)
    except KeyError:
        return "?"


def _labelled(artifact: Artifact, role: str) -> str:
    try:
        return label(artifact.input(role))
    except ArtifactError:
        return _gone(artifact, role)


def _gone(artifact: Artifact, role: str) -> str:
    return f"{artifact.inputs[role].kind} {artifact.inputs[role].id[:12]}"
