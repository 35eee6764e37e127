"""`dcclctl settings`: every setting of a command and of one of its variants."""

from typing import Annotated, Any

import typer

from dcclctl.cli.console import print_json
from dcclctl.cli.options import Call, shown_default
from dcclctl.cli.options import command as register
from dcclctl.config import Section
from dcclctl.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _offer_commands(incomplete: str) -> list[str]:
    from dcclctl.stages.settings import COMMANDS

    return list(COMMANDS)


def _offer_models(incomplete: str) -> list[str]:
    return _variants("model")


def _offer_methods(incomplete: str) -> list[str]:
    return _variants("method")


def _variants(choice: str) -> list[str]:
    """All models, or all methods."""
    from dcclctl.stages.settings import COMMANDS

    return list(dict.fromkeys(name for spec in COMMANDS.values() if spec.choice == choice for name in spec.variants))


@register(app, "settings", shared=("as_json",))
def settings(
    call: Call,
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            help="ingest, train, memory, patch, distill, tune, evaluate, recommend, score, export or collect.",
            autocompletion=_offer_commands,
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="With train: the model.", autocompletion=_offer_models)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="NAME", help="With patch and distill: the method.", autocompletion=_offer_methods
        ),
    ] = None,
) -> None:
    """List all settings of a command, a model or a method.

    Each line shows a setting's full name, its default and the values that it takes; the next line says what it means, and
    which values are tried in tuning. The
    settings of one model or method are shown with --model or --method. Change a setting with --set NAME=VALUE, or in the
    file of --config.

    \b
    Examples:
      dcclctl settings train
      dcclctl settings train --model sasrec
      dcclctl settings patch --method metapatch
    """
    from dcclctl.errors import nearest
    from dcclctl.stages.settings import COMMANDS, variant_section

    if command not in COMMANDS:
        raise UsageError(f"there is no command {command!r} with settings", nearest(command, list(COMMANDS)))
    spec, chosen = COMMANDS[command], model or method
    field = spec.choice
    given = "model" if model else "method"
    if chosen and given != field:
        raise UsageError(
            f"--{given}: {command} has no {given}", f"Use --{field}." if field else f"Type: dcclctl settings {command}"
        )
    rows = listed(command, spec.section)
    if chosen:
        rows += listed(f"{command}.{chosen}", variant_section(command, chosen))
    variants = {name: variant.about for name, variant in spec.variants.items()}
    if call.reporter.as_json:
        print_json({"command": command, "settings": rows, "variants": variants})
    for row in rows:
        call.reporter.line(f"{row['key']} = {row['default'] or '(empty)'}    [{row['values']}]")
        tried = f" Tried by tune: {row['tune']}." if row["tune"] else ""
        call.reporter.line(f"    {row['meaning']}{tried}")
    if variants and not chosen:
        call.reporter.line("")
        call.reporter.line(f"Each {field} has settings of its own: dcclctl settings {command} --{field} NAME")
        for name, about in variants.items():
            call.reporter.line(f"  {name:12} {about}")


def listed(prefix: str, section: type[Section]) -> list[dict[str, Any]]:
    """Every setting of a section: key, default, values that it takes, and meaning."""
    from dcclctl.stages.space import search_text

    schema = section.model_json_schema()["properties"]
    return [
        {
            "key": f"{prefix}.{name}",
            "default": shown_default(field),
            "values": values_of(schema[name]),
            "meaning": field.description or "",
            "tune": search_text(field),
        }
        for name, field in section.model_fields.items()
        if name != "settings"
    ]


def values_of(schema: dict[str, Any]) -> str:
    """Type and range of a setting, for people."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(values_of(each) for each in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    kind = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "array": "list, comma-separated",
        "object": "NAME=COLUMN, comma-separated",
        "string": "text",
    }[schema.get("type", "object")]
    bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {schema[name]:g}" for name, sign in bounds if name in schema]
    return " ".join([kind, *limits])
