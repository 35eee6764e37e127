"""Options of commands: generated from the sections, and those that all commands share."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from dcclctl.cli.console import Reporter
from dcclctl.config import CommandSection, ComputeSection, VariantSection
from dcclctl.errors import UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dcclctl.artifacts.handle import Handle
    from dcclctl.stages.run import RunOptions
    from dcclctl.store.store import Store

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="DCCL_STORE", metavar="DIR", help="Where artifacts are kept.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the reference only: no progress, no tables.")]
DEFAULT_STORE = Path(".dccl")

#: options that every command that makes an artifact has: name → (type, default, option)
_SHARED: dict[str, tuple[Any, Any, Any]] = {
    "set": (
        list[str] | None,
        None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting, e.g. train.din.item_size=64; may be repeated. dcclctl settings lists them.",
        ),
    ),
    "config": (
        Path | None,
        None,
        typer.Option("--config", metavar="FILE.toml", help="Settings; a flag wins over the file."),
    ),
    "name": (
        str,
        "",
        typer.Option("--name", metavar="NAME", help="A name for the artifact: control makes it cloud@control."),
    ),
    "log": (
        list[str] | None,
        None,
        typer.Option(
            "--log",
            metavar="TRACKER[:PLACE]",
            help="Also send figures, configuration and lineage to tensorboard[:DIR] or mlflow[:URI]; may be repeated.",
        ),
    ),
    "store": (Path, DEFAULT_STORE, get_args(StoreOption)[1]),
    "as_json": (bool, False, get_args(JsonOption)[1]),
    "quiet": (bool, False, get_args(QuietOption)[1]),
    "force": (bool, False, typer.Option("--force", help="Compute again even if this artifact exists already.")),
}
#: letters of a list of names that still stands beside its flag
_WIDEST_CHOICE = 40
#: of the shared options, those of a command that makes no artifact
_READING = ("set", "config", "store", "as_json", "quiet")


@dataclass
class Call:
    """One call of a command: where its output goes, its store, and what was set.

    Attributes:
        settings: flags that were given, and --set, by name. config: TOML file. force, name: see RunOptions. log: trackers.
    """

    reporter: Reporter
    root: Path
    settings: dict[str, Any]
    config: Path | None = None
    force: bool = False
    name: str = ""
    log: list[str] = field(default_factory=list)

    @cached_property
    def store(self) -> "Store":
        from dcclctl.store.store import Store

        return Store(self.root, remark=self.reporter.remark)

    @contextmanager
    def run(self) -> Iterator["RunOptions"]:
        """Options for a stage, with a progress display for as long as it runs."""
        from dcclctl.stages.run import RunOptions

        with self.reporter.progress() as progress:
            yield RunOptions(progress, self.force, self.name, self.config)

    def finish(self, made: "Handle", **facts: Any) -> None:
        """Close the command with the artifact that it made."""
        if self.name:
            self.reporter.line(f"{made.artifact.kind}@{self.name} is {made.ref}")
            facts["name"] = self.name
        self.reporter.finish(made.ref, made.id, made.reused, **facts)


def command(
    app: typer.Typer, name: str, section: type[CommandSection] | None = None, reads: bool = False
) -> Callable[[Any], Any]:
    """Register a command of the form function(call, …its own options…).

    In the help stand its own options, then the command's settings, those that its variants share, seed, device and threads,
    and last the options that all commands share.

    Args:
        name: of the command, as in stages/settings.py. section: of a command that has none there.
        reads: does it make no artifact?
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        from dcclctl.stages.settings import COMMANDS, Command

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        spec = COMMANDS[name] if section is None else Command(section)
        fields = spec.section.model_fields
        choice = spec.section.VARIANT if issubclass(spec.section, VariantSection) else ""
        taken = {parameter.name.rstrip("_") for parameter in own}
        settings = {
            key: _option(
                key,
                value,
                f"set by --{choice}" if key not in fields else shown_default(value),
                list(spec.variants) if key == choice else [],
            )
            for key, value in sorted(spec.flags().items(), key=lambda item: item[0] in ComputeSection.model_fields)
            if key not in taken
        }
        common = {key: value for key, value in _SHARED.items() if not reads or key in _READING}

        def called(**given: Any) -> None:
            flags = {key: given.pop(key) for key in settings}
            own_settings = {parameter.name.rstrip("_"): given.get(parameter.name) for parameter in own}
            flags |= {key: value for key, value in own_settings.items() if key in fields}
            values = {key: given.pop(key) for key in common}
            call = Call(
                Reporter(values["as_json"], values["quiet"]),
                values["store"],
                _merged({key: value for key, value in flags.items() if value is not None}, _parse_sets(values["set"])),
                values["config"],
                values.get("force", False),
                _checked_name(values.get("name", "")),
                values.get("log") or [],
            )
            function(call, **given)

        parameters = [
            *own,
            *(_parameter(key, kind, None, option) for key, (kind, option) in settings.items()),
            *(_parameter(key, kind, default, option) for key, (kind, default, option) in common.items()),
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        called.__doc__, called.__name__ = function.__doc__, function.__name__
        app.command(name)(called)
        return function

    return register


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _option(name: str, setting: "FieldInfo", default: str, variants: list[str]) -> tuple[Any, Any]:
    """Type and option of one setting.

    Args:
        default: as it is shown; '' shows none. variants: the names that it takes; none for a setting that chooses no variant.
    """
    kind, metavar = kind_of(setting)
    help_text = setting.description or ""
    if variants:
        names = "|".join(variants)
        if len(names) <= _WIDEST_CHOICE:
            metavar = names
        else:
            metavar, help_text = "NAME", f"{help_text.rstrip('.')}: {', '.join(variants)}."
    help_text += f" [default: {default}]" if default else ""
    flag = f"--{name.replace('_', '-')}"
    flags = [flag, "-k"] if name == "k" else [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    return kind | None, typer.Option(*flags, metavar=metavar, help=help_text, show_default=False)


def kind_of(field: "FieldInfo") -> tuple[Any, str | None]:
    """What a setting's option takes (text is split where a list is wanted), and what stands for it in the help."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return str, "|".join(get_args(annotation))
    if annotation in (bool, int, float):
        return annotation, {bool: None, int: "N", float: "NUMBER"}[annotation]
    if get_origin(annotation) in (list, tuple):
        return str, "VALUE,…"
    if get_origin(annotation) is dict:
        return str, "NAME=COLUMN,…"
    return str, "VALUE"


def shown_default(field: "FieldInfo") -> str:
    """A default for people; nothing where there is nothing to say."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, list | tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if isinstance(default, dict) or default == "" else str(default)


def _parse_sets(texts: list[str] | None) -> dict[str, str]:
    """--set KEY=VALUE, several → key → value.

    Raises:
        UsageError: without '=', or a key twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not KEY=VALUE", "Write e.g. --set train.din.item_size=64")
        if key.strip() in found:
            raise UsageError(f"--set {key.strip()} is given twice", "Give it once.")
        found[key.strip()] = value
    return found


def _merged(flags: dict[str, Any], sets: dict[str, str]) -> dict[str, Any]:
    """What was given by flag and by --set.

    Raises:
        UsageError: a setting that was given by both.
    """
    for key in flags:
        if key in sets:
            raise UsageError(f"--{key.replace('_', '-')} and --set {key} are the same setting", "Give it once.")
    return flags | sets


def _checked_name(name: str) -> str:
    if name:
        from dcclctl.store.references import check_alias

        check_alias(name)
    return name
