"""The command line that makes an artifact again, from its manifest: for the report, and for errors about damage.

A manifest is input from outside: whatever it holds, each word here is one harmless word for the shell.
"""

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dcclctl.artifacts.evaluation import SEED_ROLE
from dcclctl.config import Section
from dcclctl.devices.serving import split_suffix
from dcclctl.errors import ArtifactError, UsageError
from dcclctl.models.kind import size_fields
from dcclctl.report.text import plain
from dcclctl.stages.settings import COMMANDS, variant_section
from dcclctl.stages.space import own_space
from dcclctl.store.artifact import Artifact, Home
from dcclctl.store.lineage import SUBJECT_ROLE
from dcclctl.store.remake import Manifest

#: stage → role of an input → the flag that names it; what is not here is found from the others
_FLAGS = {
    "train": {"dataset": "--dataset"},
    "memory": {"dataset": "--dataset"},
    "patch": {"cloud": "--cloud", "memory": "--memory", "learn_with": "--learn-with"},
    "distill": {"patches": "--patches", "cloud": "--cloud"},
    "tune": {"dataset": "--dataset", "cloud": "--cloud", "patches": "--patches"},
}
#: stage → the input that is named first, without a flag
_FIRST = {"export": ("patches", "cloud"), "recommend": ("model",), "collect": ("bundle",)}

#: input and suffix ('' or e.g. encoder) → the word that names it
Name = Callable[[Mapping[str, str], str], str]
#: finds an input, or nothing
Find = Callable[[Mapping[str, str]], Artifact | None]


def command_again(manifest: Manifest, home: Home) -> str:
    """The command line, with its inputs by their ids."""

    def find(given: Mapping[str, str]) -> Artifact | None:
        with suppress(ArtifactError):
            return home.find(given["kind"], given["id"])
        return None

    def name(given: Mapping[str, str], suffix: str) -> str:
        return shlex.quote(plain(f"{given['kind']}@{given['id'][:12]}{suffix and '+'}{suffix}"))

    return " ".join(["dcclctl", *command_words(manifest, name, find)])


def command_words(manifest: Manifest, name: Name, find: Find) -> list[str]:
    """The words after `dcclctl`. Settings with their default value are left out.

    Files are called by their names, because no manifest holds a folder. Of ids that were given in a file, or one by one, and
    of what devices sent, it holds a hash: there stands @FILE or UPLINKS.

    Args:
        name: of an input. find: an input; what is not found is named in full.
    """
    stage, inputs = str(manifest["stage"]), manifest["inputs"]
    if stage not in COMMANDS:
        return [stage]
    make = {"ingest": _of_files, "evaluate": _of_subjects, "tune": _of_trials}.get(stage, _of_inputs)
    words, left_out = make(manifest, name, find)
    config = manifest["config"]
    if stage == "collect":  # beside its own, it records the settings of the patches that devices started from
        config = config["collect"] if isinstance(config.get("collect"), dict) else {}
    elif stage == "distill" and isinstance(config.get("method"), str) and "method" not in left_out:
        words, left_out = [*words, "--method", shlex.quote(plain(config["method"]))], left_out | {"method"}
    if stage == "train" and "cloud" in inputs:
        left_out = left_out | {"model"}
    return [stage, *words, *_settings_given(stage, config, manifest["seed"], left_out)]


def _of_files(manifest: Manifest, name: Name, find: Find) -> tuple[list[str], set[str]]:
    """Of `ingest`, whose roles are 'log:events.csv', 'items:names.csv', and 'log:events.csv#2' for a second one."""
    files = [role.partition(":")[::2] for role in manifest["inputs"]]
    words = {
        kind: [shlex.quote(plain(name)) for each, name in files if each == kind] for kind in ("log", "users", "items")
    }
    sides = [word for kind in ("users", "items") for file in words[kind] for word in (f"--{kind}", file)]
    return [*words["log"], *sides], set()


def _of_subjects(manifest: Manifest, name: Name, find: Find) -> tuple[list[str], set[str]]:
    """Of `evaluate`: the models, those of several seeds with commas between them."""
    inputs, against = manifest["inputs"], manifest["config"].get("against")
    subjects = _subjects(inputs, name)
    of_seeds = [find(given) for role, given in inputs.items() if role.startswith(SEED_ROLE)]
    rows = [list(_subjects(each.manifest["inputs"], name).values()) for each in of_seeds if each is not None]
    words: list[str] = []
    if rows and all(len(row) == len(subjects) for row in rows):
        together = [one[0] if len({*one}) == 1 else ",".join(one) for one in zip(*rows, strict=True)]
        subjects = dict(zip(subjects, together, strict=True))
    if of_seeds:
        words = ["--seeds", shlex.quote(plain(_text(manifest["config"].get("seeds"))))]
    if isinstance(against, str) and against in subjects:
        words = ["--against", subjects[against], *words]
    return [*subjects.values(), *words], {"against"}


def _subjects(inputs: Mapping[str, Mapping[str, str]], name: Name) -> dict[str, str]:
    """Name in the tables → word, of the models that an evaluation scored."""
    given = {role.partition(":")[2]: each for role, each in inputs.items() if role.startswith(SUBJECT_ROLE)}
    return {each: name(given[each], split_suffix(each)[1]) for each in given}


def _of_inputs(manifest: Manifest, name: Name, find: Find) -> tuple[list[str], set[str]]:
    """Of all other commands."""
    stage, inputs, config = manifest["stage"], manifest["inputs"], manifest["config"]
    flags, left_out = dict(_FLAGS.get(stage, {})), set[str]()
    if stage == "train" and "cloud" in inputs:
        flags = {"cloud": "--continue"}
        with suppress(KeyError, TypeError):
            left_out = set(size_fields(config["model"]))
    patches = find(inputs["patches"]) if stage == "distill" and "patches" in inputs else None
    if patches is not None:
        if inputs.get("cloud") == patches.manifest["inputs"].get("cloud"):
            del flags["cloud"]
        if config.get("method") == ("from-memory" if "memory" in patches.manifest["inputs"] else "momodistill"):
            left_out = {"method"}
    suffix = config.get("suffix", "")
    words = [name(inputs[role], str(suffix)) for role in _FIRST.get(stage, ()) if role in inputs][:1]
    words += [word for role, flag in flags.items() if role in inputs for word in (flag, name(inputs[role], ""))]
    words += [
        word
        for role in inputs
        if role.startswith("log-")
        for word in ("--log", shlex.quote(plain(role.partition(":")[2])))
    ]
    return words + (["UPLINKS"] if stage == "collect" else []), left_out


def _of_trials(manifest: Manifest, name: Name, find: Find) -> tuple[list[str], set[str]]:
    """Of `tune`: the command that it tries, its variants, and their settings and values as far as they were changed."""
    words: list[str] = []
    with suppress(
        UsageError, KeyError, TypeError, AttributeError, StopIteration
    ):  # a configuration that tune never wrote
        config, inputs = manifest["config"], _of_inputs(manifest, name, find)[0]
        command, bases = config["command"], config["base"]
        spec = COMMANDS[command]
        words = [command, *inputs, f"--{spec.choice}", shlex.quote(plain(",".join(bases)))]
        common, usual = dict(next(iter(bases.values()))), spec.section().model_dump(mode="json")
        for variant, base in bases.items():
            searched, section = config["space"][variant], variant_section(command, variant)
            words += _searched(f"{command}.{variant}", section, base[variant], searched)
            for key in (key for key in searched if key.startswith(".")):  # of the command's own settings
                words += ["--space", shlex.quote(plain(f"{command}{key}={searched[key]}"))]
                common.pop(key[1:], None)
        for key in spec.own.keys() - {"seed", "device", "threads", spec.choice}:  # these are those of tune itself
            if common.get(key, usual[key]) != usual[key]:
                words += _set(f"{command}.{key}", common[key])
    return words, set()


def _searched(prefix: str, section: type[Section], base: Mapping[str, Any], searched: Mapping[str, str]) -> list[str]:
    """--space for values that are not those beside a setting, and --set for settings that are not searched."""
    words: list[str] = []
    usual, own = own_space(prefix, section), section().model_dump(mode="json")
    for key, value in base.items():
        if key in searched and (key not in usual or searched[key] != usual[key].text):
            words += ["--space", shlex.quote(plain(f"{prefix}.{key}={searched[key]}"))]
        elif key not in searched and (key in usual or value != own[key]):
            words += _set(f"{prefix}.{key}", value)
    return words


def _settings_given(stage: str, config: Mapping[str, Any], seed: int, left_out: set[str]) -> list[str]:
    """Flags and --set for all settings that differ from their defaults."""
    command = COMMANDS[stage]
    words: list[str] = []
    defaults = command.section().model_dump(mode="json")
    for key in command.own:
        value = seed if key == "seed" else config.get(key, defaults[key])
        if key not in left_out and value != defaults[key]:
            words += _flag(stage, key, value)
    variant = config.get(command.choice)
    if not isinstance(variant, str) or variant not in command.variants or not isinstance(config.get(variant), dict):
        return words
    own = variant_section(stage, variant)().model_dump(mode="json")
    for key, value in config[variant].items():
        if key not in left_out and value != own.get(key):
            words += _set(f"{stage}.{variant}.{key}", value)
    return words


def _flag(stage: str, key: str, value: object) -> list[str]:
    """A setting of the command's own section: as a flag if it has one, else by --set."""
    words = key.replace("_", "-")
    if key not in COMMANDS[stage].flags():
        return _set(f"{stage}.{key}", value)
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    if str(value).startswith("@sha256:"):
        return [f"--{words}", "@FILE"]
    return [f"--{words}", shlex.quote(plain(_text(value)))]


def _set(key: str, value: object) -> list[str]:
    return ["--set", shlex.quote(plain(f"{key}={_text(value)}"))]


def _text(value: object) -> str:
    """A value as a flag takes it."""
    if isinstance(value, dict):
        return ",".join(f"{key}={column}" for key, column in value.items())
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value)
