"""Options of commands: generated from the sections, and those that all commands share."""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from dcclctl.cli.completion import completer
from dcclctl.cli.console import Progress, Reporter
from dcclctl.cli.timeline import START, Timeline, profiled
from dcclctl.config import CommandSection, ComputeSection, Presets
from dcclctl.errors import GateError, UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dcclctl.artifacts.handle import Handle
    from dcclctl.stages.run import RunOptions
    from dcclctl.stages.settings import Command
    from dcclctl.store.store import Artifact, Store
    from dcclctl.tracking import Tracker

#: options that several commands have: name → (type, default, option)
_SHARED: dict[str, tuple[Any, Any, Any]] = {
    "set": (
        list[str] | None,
        None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change any setting, e.g. train.din.item_size=64; may be repeated. dcclctl settings lists them.",
        ),
    ),
    "config": (
        Path | None,
        None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            help="File with settings; a flag wins over it. [default: dccl.toml, if there]",
        ),
    ),
    "name": (
        str,
        "",
        typer.Option("--name", metavar="NAME", help="Name the artifact: a cloud model named control is cloud@control."),
    ),
    "track": (
        list[str] | None,
        None,
        typer.Option(
            "--track",
            metavar="TRACKER[:PLACE]",
            help="Also send metrics, settings and lineage to tensorboard[:DIR] or mlflow[:URI]; may be repeated.",
        ),
    ),
    "store": (
        str,
        ".dccl",
        typer.Option(
            "--store",
            envvar="DCCL_STORE",
            metavar="DIR",
            help="Folder where artifacts are kept, or s3://BUCKET/PREFIX.",
        ),
    ),
    "as_json": (bool, False, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")),
    "quiet": (
        bool,
        False,
        typer.Option(
            "--quiet",
            "-q",
            help="Print the references only, or nothing if there are none: no progress, remarks or tables.",
        ),
    ),
    "profile": (
        Path | None,
        None,
        typer.Option(
            "--profile",
            metavar="FILE.json",
            help="Write where the time goes: phases, functions, memory. ui.perfetto.dev opens it.",
        ),
    ),
    "force": (bool, False, typer.Option("--force", help="Compute again even if the store has the same artifact.")),
    "plan": (
        bool,
        False,
        typer.Option("--plan", help="Only say what would be reused and made, with estimated time and memory."),
    ),
    "executor": (
        str,
        "local",
        typer.Option(
            "--executor",
            metavar="local|local:N|ray|ray://HOST:PORT",
            help="Who works on the users, part by part: this process, N processes, or a Ray cluster. The result is the same.",
        ),
    ),
}
#: of the commands that train with several seeds
_SEEDS = typer.Option(
    "--seeds",
    metavar="N..M",
    help="Run once for each seed, e.g. 0..4 or 0,1,7. With --name base the artifacts are base-0, base-1, …; @base then "
    "means those of the same seeds wherever --seeds is given.",
)
#: the shared options of a command that makes an artifact; that scores; and that only looks at artifacts
LOOKS = ("store", "as_json", "quiet", "profile")
MAKES, SCORES = tuple(_SHARED)[:-1], ("set", "config", *LOOKS)
#: of a command whose work is done part by part of the users
SHARDS = tuple(_SHARED)
#: seconds from which on a command that makes no artifact says where they went
_SAID_FROM = 2.0
#: a longer list of names stands in the help text, not beside the flag
_WIDEST_CHOICE = 40


class PlainCommand(TyperCommand):
    """A command whose arguments are plain words in its help: REF, REF... for several, in [ ] if they may be left out."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [each for each in self.get_params(ctx) if each.param_type_name == "argument"]
        return [
            self.options_metavar or "",
            *(_word(each) if each.required else f"[{_word(each)}]" for each in arguments),
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records = [(each, each.get_help_record(ctx)) for each in self.get_params(ctx)]
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            rows = [
                (_word(each) if kind == "argument" else record[0], record[1])
                for each, record in records
                if record and each.param_type_name == kind
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _word(argument: Any) -> str:
    return f"{argument.metavar}{'...' if argument.nargs != 1 else ''}"


@dataclass
class Call:
    """One call of a command: where its output goes, its store, and what was set.

    Attributes:
        reporter: prints. root: folder or URL of the store. settings: name → value, of the flags that were given and of --set.
        config: settings from a file and the environment. force, name: see RunOptions. track: trackers.
        plan: only say what would be done. executor: see RunOptions. seeds: of --seeds. timeline: where the time goes.
    """

    reporter: Reporter
    root: str
    settings: dict[str, Any]
    config: Presets | None
    force: bool
    name: str
    track: list[str]
    plan: bool = False
    executor: str = "local"
    seeds: list[int] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)

    @cached_property
    def store(self) -> "Store":
        import dcclctl.stages  # noqa: F401 (an error of the store names the command that mends it)
        from dcclctl.store.store import Store

        return Store(self.root, remark=self.reporter.remark, leases=not self.plan, on_progress=self.progress)

    @cached_property
    def progress(self) -> "Progress":
        """The progress display."""
        return self.reporter.progress(self.timeline)

    @cached_property
    def _trackers(self) -> "list[Tracker]":
        from dcclctl.tracking import open_trackers

        return open_trackers(self.track)

    @contextmanager
    def run(self) -> Iterator["RunOptions"]:
        """Options for a stage, with a progress display for as long as it runs.

        A tracker whose package is missing is refused before the stage starts. With --plan the command ends here.
        """
        from dcclctl.stages.run import RunOptions

        _ = self._trackers
        if self.plan:
            from dcclctl.cli.plan import show_plan

            with self.store.plan() as steps:
                yield RunOptions(force=self.force, name=self.name, config=self.config)
            show_plan(self.reporter, self.store, steps)
            raise typer.Exit
        with self.progress:
            yield RunOptions(
                self.progress, self.force, self.name, self.config, self.reporter.remark, executor=self.executor
            )

    @contextmanager
    def working(self) -> Iterator["Progress"]:
        """Show progress from here on, because importing torch alone may take seconds. Results are printed after the body, or
        after `run` in it."""
        with self.progress:
            self.progress(START, 0, 0)
            yield self.progress

    @contextmanager
    def naming_what_is_made(self) -> Iterator[None]:
        """An error after the commit names what is there all the same."""
        try:
            yield
        except Exception as error:
            # a gate says what it found after everything else is said
            if not isinstance(error, GateError) and "store" in self.__dict__ and self.store.committed:
                error.add_note(f"{', '.join(self.store.committed)} is made and stays; the same command finds it.")
            raise

    def send(self, made: "Handle | Artifact") -> None:
        """Send an artifact to the trackers that --track names."""
        if self._trackers:
            from dcclctl.artifacts.handle import Handle
            from dcclctl.stages.track import record_of

            record = record_of(made.artifact if isinstance(made, Handle) else made)
            for tracker in self._trackers:
                self.reporter.remark(tracker(record))

    def finish(self, made: "Handle | Artifact", **facts: Any) -> None:
        """Close the command with the artifact that it made or looked at."""
        self.send(made)
        if self.name:
            self.reporter.line(f"{made.ref.partition('@')[0]}@{self.name} is {made.ref}")
            facts["name"] = self.name
        self.reporter.finish(made.ref, made.id, made.reused, **facts)


def command(
    app: typer.Typer,
    name: str,
    section: type[CommandSection] | None = None,
    shared: tuple[str, ...] = MAKES,
    seeded: Mapping[str, bool] | None = None,
) -> Callable[[Any], Any]:
    """Register a command of the form function(call, …its own options…).

    The help shows its own options first, then the command's settings, those that its variants share, seed, device and
    threads, and last the shared options.

    Args:
        section: settings that are not in stages/settings.py under the command's name. shared: names of shared options.
        seeded: its parameters that hold a reference → whether --seeds needs it; the function is then called for each seed,
            with that seed's references. {}: it has --seeds and reads `call.seeds` itself.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        for parameter in own:
            (info,) = parameter.annotation.__metadata__
            if info.autocompletion is None:
                info.autocompletion = completer(parameter.name.rstrip("_"), info.metavar or "")
        names = {parameter.name: parameter.name.rstrip("_") for parameter in own}
        fields: set[str] = set()
        settings: dict[str, tuple[Any, Any]] = {}
        if "set" in shared:
            from dcclctl.stages.settings import COMMANDS, Command

            spec = COMMANDS[name] if section is None else Command(section)
            fields, settings = set(spec.own), _settings(spec, names.values())
        common = {key: _SHARED[key] for key in shared}

        def called(**given: Any) -> None:
            flags = {key: given.pop(key) for key in settings}
            flags |= {key: given.get(option) for option, key in names.items() if key in fields}
            # a command may have an option of its own with the name of a shared one
            values = {key: given.pop(key) if key in shared else default for key, (_, default, _) in _SHARED.items()}
            # of the processes that torchrun has started, one speaks
            reporter = Reporter(values["as_json"], values["quiet"], os.environ.get("RANK", "0") != "0")
            call = Call(
                reporter,
                values["store"],
                _with_sets({key: value for key, value in flags.items() if value is not None}, values["set"] or []),
                _presets(name, values["config"], reporter) if "config" in shared else None,
                values["force"],
                _checked_name(values["name"]),
                values["track"] or [],
                values["plan"],
                values["executor"],
            )
            text = given.pop("seeds", None)
            if text is not None:
                from dcclctl.stages.seeds import parse_seeds

                call.seeds = parse_seeds(text)
            with profiled(call.timeline, values["profile"]):
                if call.seeds and seeded:
                    _for_each_seed(function, call, given, seeded)
                elif call.plan or "plan" not in shared:
                    with call.naming_what_is_made():
                        function(call, **given)
                else:
                    with call.naming_what_is_made(), call.working():
                        function(call, **given)
            if call.timeline.seconds and ("plan" in shared or call.timeline.passed() >= _SAID_FROM):
                sys.stdout.flush()  # this is the last line
                reporter.remark(call.timeline.summary())

        parameters = [
            *own,
            *([] if seeded is None else [_parameter("seeds", str | None, None, _SEEDS)]),
            *(_parameter(key, kind, None, option) for key, (kind, option) in settings.items()),
            *(_parameter(key, kind, default, option) for key, (kind, default, option) in common.items()),
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        called.__doc__, called.__name__ = function.__doc__, function.__name__
        app.command(name, cls=PlainCommand)(called)
        return function

    return register


def _for_each_seed(
    function: Callable[..., None], call: Call, given: dict[str, Any], seeded: Mapping[str, bool]
) -> None:
    """Call a command's function once for each seed; prints all results as one."""
    from dcclctl.stages.seeds import seeded as of_seeds

    if "seed" in call.settings:
        raise UsageError("--seed and --seeds are the same setting", "Give one of them.")
    if not call.name:
        raise UsageError(
            "--seeds makes several artifacts, which need a common name", "Add e.g. --name base: base-0, base-1, …"
        )
    for key, needed in seeded.items():
        if needed and given[key] is None:
            raise UsageError(
                f"--seeds: say what each seed starts from with --{key.rstrip('_')}",
                f"E.g. --{key.rstrip('_')} {'patches' if key == 'patches' else 'cloud'}@base, a group made with --seeds.",
            )
    references = {key: of_seeds(given[key], call.seeds, call.store) for key in seeded if given[key] is not None}
    made: list[dict[str, Any]] = []
    for at, seed in enumerate(call.seeds):
        own = replace(
            call,
            reporter=call.reporter.part(made),
            settings={**call.settings, "seed": seed},
            name=_checked_name(f"{call.name}-{seed}"),
        )
        call.reporter.line(f"seed {seed}")
        # a plan ends its command
        with own.naming_what_is_made(), suppress(typer.Exit) if call.plan else nullcontext():
            function(own, **{**given, **{key: each[at] for key, each in references.items()}})
    if call.plan:
        return
    group = f"{made[0]['ref'].partition('@')[0]}@{call.name}"
    call.reporter.finish_group(group, call.seeds, made)


def _presets(command: str, given: Path | None, reporter: Reporter) -> Presets:
    """Settings of --config or else of dccl.toml, and of environment variables; says where they are from."""
    from dcclctl.stages.settings import COMMANDS, FILE, NO_SETTINGS, PREFIX, from_environment, unknown_variables

    file = given or (FILE if FILE.is_file() else None)
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(PREFIX) and name not in NO_SETTINGS
    }
    read = from_environment(command, environment).values() if command in COMMANDS else ()
    found = [str(FILE)] if file and not given else []
    if sources := found + [variable for variable, _ in read]:
        reporter.remark(f"settings from {', '.join(sources)}")
    for name in unknown_variables(environment):
        reporter.remark(f"warning: {name} is set, but no setting has this name (DCCL_COMMAND_SETTING is the form)")
    return Presets(file, environment)


def _settings(spec: "Command", taken: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Type and option of every setting that has a flag; those that a command declares itself are `taken`."""
    return {
        key: _option(
            key,
            setting,
            shown_default(setting) if key in spec.own else f"set by --{spec.choice}",
            list(spec.variants) if key == spec.choice else [],
        )
        for key, setting in sorted(spec.flags().items(), key=lambda item: item[0] in ComputeSection.model_fields)
        if key not in taken
    }


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _option(name: str, setting: "FieldInfo", default: str, variants: list[str]) -> tuple[Any, Any]:
    """Type and option of one setting; `default` is as it is shown, `variants` are the names that it takes."""
    kind, metavar = _kind_of(setting)
    help_text = setting.description or ""
    if variants and len("|".join(variants)) <= _WIDEST_CHOICE:
        metavar = "|".join(variants)
    elif variants:
        metavar, help_text = "NAME", f"{help_text.rstrip('.')}: {', '.join(variants)}."
    help_text += f" [default: {default}]" if default else ""
    flag = f"--{name.replace('_', '-')}"
    offers = None if kind is bool else completer(name, metavar or "", variants)
    flags = [flag, "-k"] if name == "k" else [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    return kind | None, typer.Option(*flags, metavar=metavar, help=help_text, show_default=False, autocompletion=offers)


def _kind_of(field: "FieldInfo") -> tuple[Any, str | None]:
    """What a setting's option takes (text is split where a list is wanted), and what stands for it in the help."""
    annotation: Any = field.annotation
    origin = get_origin(annotation)
    if origin is Literal:
        return str, "|".join(get_args(annotation))
    if annotation in (bool, int, float):
        return annotation, {bool: None, int: "N", float: "NUMBER"}[annotation]
    return str, {list: "VALUE,…", tuple: "VALUE,…", dict: "NAME=COLUMN,…"}.get(origin, "VALUE")


def shown_default(field: "FieldInfo") -> str:
    """A default for people; '' where it is empty."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, list | tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if isinstance(default, dict) else str(default)


def _with_sets(flags: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """The settings of flags and of --set; refuses one without '=' and one that is given twice."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--set {text!r} is not KEY=VALUE", "Write e.g. --set train.din.item_size=64")
        if key in found:
            raise UsageError(f"--set {key} is given twice", "Give it once.")
        if key in flags:
            raise UsageError(f"--{key.replace('_', '-')} and --set {key} are the same setting", "Give it once.")
        found[key] = value
    return flags | found


def _checked_name(name: str) -> str:
    if name:
        from dcclctl.store.references import check_alias

        check_alias(name)
    return name
