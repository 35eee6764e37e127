"""Flags that several commands share. A flag's help and default come from its configuration field."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dcclctl.config import Section

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="DCCL_STORE", metavar="DIR", help="Where artifacts are kept.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Settings; a flag wins over the file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables; errors only.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Compute again even if this artifact exists already.")]
LogOption = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="TRACKER[:PLACE]",
        help="Also send figures, configuration and lineage to tensorboard[:DIR] or mlflow[:URI]; may be repeated.",
    ),
]
DEFAULT_STORE = Path(".dccl")


def setting(section: type[Section], name: str, *flags: str, metavar: str | None = None) -> Any:
    """The option of one configuration field: its description and its default, in one place.

    Args:
        section: configuration section that owns the field.
        name: the field's name; the flag is the same with dashes unless `flags` names it.
        flags: other spellings, e.g. "-k".
        metavar: what stands for the value in the help.
    """
    field = section.model_fields[name]
    shown = _shown(field.get_default(call_default_factory=True))
    own: dict[str, list[str]] = {}
    for decided, defaults in section.OWN.items():
        if name in defaults:
            own.setdefault(_shown(defaults[name]), []).append(decided)
    shown += "".join(f"; {value} for {', '.join(whose)}" for value, whose in own.items())
    help_text = (field.description or "") + (f" [default: {shown}]" if shown else "")
    return typer.Option(
        *(flags or (f"--{name.replace('_', '-')}",)), metavar=metavar, help=help_text, show_default=False
    )


def _shown(default: Any) -> str:
    """A default for people; nothing where there is nothing to say."""
    if isinstance(default, list | tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if isinstance(default, dict) or default == "" else str(default)


def split_commas(text: str | None) -> list[str] | None:
    """'a, b' → ['a', 'b']; None stays None (flag not given)."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
