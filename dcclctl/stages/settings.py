"""The settings of a command: defaults, which a TOML file replaces, which environment variables replace, which flags,
`--set` or keyword arguments replace.

In TOML, `seed` may stand at the top (for all commands) or in a command's table; a variant's settings stand in a table of
their own::

    seed = 1
    [train]
    on = ["cloud", "device"]
    [train.din]
    epochs = 5

An environment variable names a setting in capitals: DCCL_SEED, DCCL_TRAIN_ON, DCCL_TRAIN_EPOCHS (of whatever model is
chosen, if it has epochs) or DCCL_TRAIN_DIN_EPOCHS.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from dcclctl.config import (
    CollectConfig,
    CommandSection,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    IngestConfig,
    MemoryConfig,
    PatchConfig,
    Presets,
    RecommendConfig,
    ScoreConfig,
    Section,
    TrainConfig,
    TuneConfig,
    Variant,
    VariantSection,
    has_flag,
)
from dcclctl.devices.method import METHODS as PATCH_METHODS
from dcclctl.devices.settings import LocalSettings
from dcclctl.distillation.method import METHODS as DISTILL_METHODS
from dcclctl.distillation.method import TeachingSettings
from dcclctl.errors import UsageError, nearest
from dcclctl.models.kind import MODELS
from dcclctl.models.settings import TrainedSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Command:
    """A command that has settings.

    Attributes:
        section: what all of its variants read. variants: name → code; none for a command without variants.
        shared: settings that several variants have, and that have a flag therefore. The settings of one variant have none.
    """

    section: type[CommandSection]
    variants: Mapping[str, Variant] = field(default_factory=dict)
    shared: type[Section] = Section

    @property
    def own(self) -> dict[str, "FieldInfo"]:
        """The command's own settings, which all of its variants read."""
        return {name: each for name, each in self.section.model_fields.items() if name != "settings"}

    @property
    def choice(self) -> str:
        """The setting that names the variant; '' for a command without variants."""
        return self.section.VARIANT if issubclass(self.section, VariantSection) else ""

    def flags(self) -> dict[str, "FieldInfo"]:
        """Every setting that has a flag: the command's own first, then those that variants share."""
        return {name: each for name, each in (self.own | self.shared.model_fields).items() if has_flag(each)}

    def readers(self, key: str) -> list[str]:
        """The variants that have a setting of this name."""
        return [name for name, variant in self.variants.items() if key in variant.load().Settings.model_fields]


COMMANDS: Mapping[str, Command] = {
    "ingest": Command(IngestConfig),
    "train": Command(TrainConfig, MODELS, TrainedSettings),
    "memory": Command(MemoryConfig),
    "patch": Command(PatchConfig, PATCH_METHODS, LocalSettings),
    "distill": Command(DistillConfig, DISTILL_METHODS, TeachingSettings),
    "evaluate": Command(EvaluateConfig),
    "tune": Command(TuneConfig),
    "recommend": Command(RecommendConfig),
    "score": Command(ScoreConfig),
    "export": Command(ExportConfig),
    "collect": Command(CollectConfig),
}

#: how an environment variable with a setting begins
PREFIX = "DCCL_"
#: variables that are no settings: the store's folder, and that of real logs for tests
NO_SETTINGS = ("DCCL_STORE", "DCCL_DATA")
#: the file that the command line finds by itself in the working directory
FILE = Path("dccl.toml")

S = TypeVar("S", bound=CommandSection)


def resolve(
    section: type[S], given: Mapping[str, Any], config: Path | Presets | None = None, default_variant: str = ""
) -> S:
    """Merge defaults, the TOML file, environment variables and what is given into one checked section.

    Args:
        section: the command's section class.
        given: name → value; None means "not given". A name is one of the section's own, one of the chosen variant's, or in
            full COMMAND.KEY or COMMAND.VARIANT.KEY.
        config: TOML file, or a file with environment variables; without them the environment is not looked at.
        default_variant: in place of the section's own, where it depends on what the command was given.

    Raises:
        UsageError: an unknown key, a setting that the chosen variant does not read, or a value out of its range.
    """
    name = next(name for name, command in COMMANDS.items() if command.section is section)
    presets = config if isinstance(config, Presets) else Presets(config)
    environment = from_environment(name, presets.environment)
    try:
        return _merged(section, name, given, presets.file, environment, default_variant)
    except UsageError as error:
        if not environment:
            raise
        variables = ", ".join(variable for variable, _ in environment.values())
        raise UsageError(error.what, f"{error.remedy}\nAlso read: {variables}".lstrip()) from error


def _merged(
    section: type[S],
    name: str,
    given: Mapping[str, Any],
    file: Path | None,
    environment: Mapping[str, tuple[str, str]],
    default_variant: str,
) -> S:
    command = COMMANDS[name]
    document = {} if file is None else read_toml(file)
    values = {key: document[key] for key in ("seed",) if key in document} | document.get(name, {})
    short = _short_names(given, name)
    preset = {key: value for key, (_, value) in environment.items()}
    if not command.variants:
        return cast(S, _checked(section, name, values | preset | short))
    values |= {key: value for key, value in preset.items() if key in command.own}
    default = default_variant or section.model_fields[command.choice].default
    variant = str(short.get(command.choice) or values.get(command.choice) or default)
    settings = variant_section(name, variant)
    own = dict(values.get(variant, {}))
    # a file may hold settings for several variants
    values = {key: value for key, value in values.items() if key not in command.variants}
    # like a file, the environment may set what the chosen variant does not read
    own |= {key: value for key, value in preset.items() if key in settings.model_fields and key not in command.own}
    own |= {key.removeprefix(f"{variant}."): value for key, value in preset.items() if key.startswith(f"{variant}.")}
    for key, value in short.items():
        target, _, last = key.rpartition(".")
        if target == variant or (not target and key in settings.model_fields):
            if not target and f"{variant}.{key}" in short:
                raise _twice(key)
            own[last] = value
        elif key in command.own:
            values[key] = value
        else:
            raise _unread(name, variant, key)
    checked = _checked(settings, f"{name}.{variant}", own)
    return cast(S, _checked(section, name, values | {command.choice: variant, "settings": checked}))


def from_environment(command: str, environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """A command's settings in environment variables: short name → variable and value; an empty one counts as not set.

    Raises:
        UsageError: a variable that begins like the command's settings, but none has this name.
    """
    spec, found = COMMANDS[command], {}
    if environment.get(f"{PREFIX}SEED"):
        found["seed"] = (f"{PREFIX}SEED", environment[f"{PREFIX}SEED"])
    start = f"{PREFIX}{command.upper()}_"
    for variable, value in sorted(environment.items()):
        if not variable.startswith(start) or not value:
            continue
        key = variable.removeprefix(start).lower()
        known = {*spec.own, *spec.shared.model_fields}
        if key not in known:
            of = next((name for name in spec.variants if key.startswith(_spelt(name))), None)
            inner = key.removeprefix(_spelt(of)) if of else ""
            if of and inner in variant_section(command, of).model_fields:
                key = f"{of}.{inner}"
            elif not spec.readers(key):
                names = [start + name.upper() for name in sorted(known)]
                names += (
                    [start + f"{_spelt(of)}{name}".upper() for name in variant_section(command, of).model_fields]
                    if of
                    else []
                )
                raise UsageError(f"{variable} is set, but {command} has no such setting", nearest(variable, names))
        found[key] = (variable, value)
    return found


def _spelt(variant: str) -> str:
    """How the settings of a variant begin in an environment variable, in small letters: from_memory_"""
    return variant.replace("-", "_") + "_"


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that begin like a setting, but with no command: DCCL_TRIAN_EPOCHS."""
    starts = (f"{PREFIX}SEED", *(f"{PREFIX}{command.upper()}_" for command in COMMANDS))
    return sorted(name for name in environment if not name.startswith(starts))


def _short_names(given: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Settings as 'din.epochs', not 'train.din.epochs', without None; refuses two names of one, or another command's."""
    short: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        first, _, rest = key.partition(".")
        if first in COMMANDS and first not in (command, *COMMANDS[command].variants):
            raise UsageError(f"--set {key}: this command is {command}", f"Write {command}.KEY=VALUE.")
        name = rest if first == command and rest else key
        if name in short:
            raise _twice(name)
        short[name] = value
    return short


def _twice(key: str) -> UsageError:
    return UsageError(f"the setting {key} is given twice, under two names", "Give it once.")


def variant_section(command: str, variant: str) -> type[Section]:
    """The section of one variant.

    Raises:
        UsageError: there is no such variant.
    """
    spec = COMMANDS[command]
    if variant not in spec.variants:
        raise UsageError(
            f"--{spec.choice} {variant!r}: there is no such {spec.choice}", nearest(variant, list(spec.variants))
        )
    return cast(type[Section], spec.variants[variant].load().Settings)


def _unread(command: str, variant: str, key: str) -> UsageError:
    """The error of a setting that the chosen variant does not read: it names the variants that do."""
    spec = COMMANDS[command]
    target, _, last = key.rpartition(".")
    readers = spec.readers(last)
    if readers and variant not in readers:
        return UsageError(
            f"the setting {last} is read by --{spec.choice} {', '.join(readers)} only, not by {variant}",
            f"Leave it out, or choose --{spec.choice} {readers[0]}.",
        )
    if target in spec.variants:
        return UsageError(
            f"--set {command}.{key}: the chosen {spec.choice} is {variant}",
            f"Write {command}.{variant}.{last}, or choose --{spec.choice} {target}.",
        )
    own, of_variant = list(spec.own), list(variant_section(command, variant).model_fields)
    known = [*own, *of_variant]
    if target:  # the mistake may be in the variant's name
        known = [f"{command}.{name}" for name in own] + [f"{command}.{variant}.{name}" for name in of_variant]
        key = f"{command}.{key}"
    return UsageError(f"{command} has no setting {key!r}", nearest(key, known))


def _checked(section: type[Any], where: str, values: Mapping[str, Any]) -> Any:
    """The section with these values; refuses an unknown key, or a value out of its range."""
    for key in values:
        if key not in section.model_fields:
            raise UsageError(f"{where} has no setting {key!r}", nearest(key, list(section.model_fields)))
    try:
        return section(**values)
    except ValidationError as error:
        wants: dict[tuple[str, str], list[str]] = {}  # a setting of two types has a problem with each
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"][:1])
            wanted = problem["msg"].removeprefix("Value error, ").lower()
            if problem["type"] == "string_pattern_mismatch":  # a block's name: the pattern itself explains nothing
                wanted = "give cloud, device, valid (or test, to evaluate only), or a part of one such as device:2/3"
            elif problem["type"] == "dict_type":
                wanted = "give NAME=COLUMN, several with a comma between them"
            wants.setdefault((place, repr(problem["input"])), []).append(wanted)
        command, _, variant = where.partition(".")
        flags, choice = COMMANDS[command].flags(), COMMANDS[command].choice
        shown = {key: f"--{key.replace('_', '-')}" if key in flags else f"{where}.{key}" for key, _ in wants}
        lines = [f"{shown[key]}: {', or '.join(wanted)} (got {got})" for (key, got), wanted in wants.items()]
        option = f" --{choice} {variant}" if variant else ""
        raise UsageError("; ".join(lines), f"See: dcclctl settings {command}{option}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file and check its tables and keys.

    Raises:
        UsageError: no such file, not TOML, or a key that no command has (with the nearest known one).
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"cannot read the configuration {path}: {error.strerror}", "Check the path after --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "See docs/cli.md for an example.") from error
    for key, table in document.items():
        if key in COMMANDS and isinstance(table, dict):
            _check_table(path, key, table)
        elif key != "seed" or isinstance(table, dict):
            raise UsageError(f"{path}: unknown table or key {key!r}", nearest(key, [*COMMANDS, "seed"]))
    return document


def _check_table(path: Path, command: str, table: Mapping[str, Any]) -> None:
    """Refuse keys that neither the command nor one of its variants has."""
    spec = COMMANDS[command]
    for name, value in table.items():
        if name in spec.variants and isinstance(value, dict):
            fields = list(variant_section(command, name).model_fields)
            for key in value:
                if key not in fields:
                    raise UsageError(f"{path}: unknown key {key!r} in [{command}.{name}]", nearest(key, fields))
        elif name not in spec.own:
            readers = spec.readers(name)
            hint = f"It is a setting of a variant: write it in [{command}.{readers[0]}]." if readers else ""
            hint = hint or nearest(name, [*spec.own, *spec.variants])
            raise UsageError(f"{path}: unknown key {name!r} in [{command}]", hint)
