"""`dcclctl artifacts`: what the stages made. Looks, compares and names; only `tag` writes."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import Reporter, plain
from dcclctl.cli.options import DEFAULT_STORE, JsonOption, QuietOption, StoreOption
from dcclctl.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from dcclctl.store.lineage import Node
    from dcclctl.store.store import Artifact, Store

SHORT_ID = 12
#: facts that `list` shows where an artifact has them, with their labels
KEY_FACTS = {
    "users": "users",
    "items": "items",
    "events": "events",
    "split": "split",
    "parameters": "weights",
    "trained_on_events": "trained on events",
    "round": "round",
    "best_valid_loss": "valid loss",
    "on": "on",
    "candidates": "candidates",
    "improved_share": "improved",
}

Reference = Annotated[
    str, typer.Argument(metavar="REF", help="E.g. cloud@7, cloud@3fa9c2d1, cloud@latest, cloud@my-alias.")
]

app = typer.Typer(
    help="List, show, verify, compare and tag what the stages made.\n\n"
    "An artifact is named by kind and number (cloud@7), by the first digits of its id (cloud@3fa9c2d1), "
    "as the newest of its kind (cloud@latest, or just cloud), or by an alias (cloud@my-alias).",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
)


@app.command("list")
def list_artifacts(
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="Only dataset, cloud, memory, patches or evaluation."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List what is in the store.

    Oldest first within each kind. With --quiet only the references, one a line.

    \b
    Example:
      dcclctl artifacts list --kind cloud
    """
    from dcclctl.store.manifest import KINDS
    from dcclctl.store.store import Store

    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", f"Type --kind with one of {', '.join(KINDS)}.")
    reporter, shelf = Reporter(as_json, quiet), Store(store)
    rows = [_row(shelf, each, number) for each in ([kind] if kind else KINDS) for number in shelf.numbers(each)]
    if as_json:
        _print_json({"store": str(store), "artifacts": rows})
    elif quiet:
        for row in rows:
            print(row["ref"])
    elif not rows:
        reporter.remark(f"no {kind or 'artifact'} in the store {store} yet; run first: {KINDS[kind or 'dataset']}")
    else:
        table = _table("reference", "id", "aliases", "made (UTC)", "size", "facts")
        for row in rows:
            facts = "DAMAGED: run dcclctl artifacts verify" if row["problem"] else _key_facts(row["facts"])
            made = str(row["made"] or "")[:16].replace("T", " ")
            cells = (row["ref"], row["id"][:SHORT_ID], " ".join(row["aliases"]), made, _size(row["bytes"]), facts)
            table.add_row(*(_text(cell) for cell in cells))
        reporter.table(table)


def _row(shelf: "Store", kind: str, number: int) -> dict[str, Any]:
    """What `list` says of one version, damaged or not."""
    try:
        artifact = shelf.load(kind, number)
    except ArtifactError as error:
        nothing: dict[str, Any] = {"id": "", "aliases": [], "made": None, "bytes": 0, "facts": {}}
        return {"ref": f"{kind}@{number}", **nothing, "problem": error.what}
    return {
        "ref": artifact.ref,
        "id": artifact.id,
        "aliases": shelf.aliases(artifact),
        "made": artifact.run.get("finished"),
        "bytes": artifact.size_bytes,
        "facts": artifact.facts,
        "problem": "",
    }


@app.command()
def show(
    reference: Reference,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show all that is known of one artifact.

    \b
    Example:
      dcclctl artifacts show cloud@latest
    """
    from dcclctl.store.lineage import dotted, lineage
    from dcclctl.store.store import Store

    reporter, shelf = Reporter(as_json, quiet), Store(store)
    artifact = shelf.resolve(reference)
    if as_json:
        _print_json(
            {
                "ref": artifact.ref,
                "id": artifact.id,
                "path": str(artifact.path),
                "aliases": shelf.aliases(artifact),
                "manifest": artifact.manifest,
                "run": artifact.run,
            }
        )
        return
    tables, files = artifact.manifest["tables"], artifact.manifest["files"]
    sections = {
        "": {
            "id": artifact.id,
            "folder": str(artifact.path),
            "aliases": " ".join(shelf.aliases(artifact)) or "none",
            "stage": artifact.manifest["stage"],
            "seed": artifact.seed,
        },
        "made from": {node.role: _node_text(node) for node in lineage(artifact).inputs},
        "configuration": dotted(artifact.config),
        "facts": dotted(artifact.facts),
        "files": {
            name: _size(file["bytes"]) + (f", {tables[name]['rows']:,} rows" if name in tables else "")
            for name, file in files.items()
        },
        "run (not part of the id)": artifact.run,
        "packages": artifact.manifest["packages"],
    }
    reporter.line(artifact.ref)
    for title, values in sections.items():
        if title and values:
            reporter.line(title)
        width = max(map(len, values), default=0)
        for key, value in values.items():
            reporter.line(f"  {key:{width}}  {_value(value)}")


@app.command("lineage")
def show_lineage(
    reference: Reference,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the inputs as a tree, down to the raw logs.

    Raw logs are shown by file name and SHA-256, artifacts by reference and the start of their id.

    \b
    Example:
      dcclctl artifacts lineage evaluation@latest
    """
    from dcclctl.store.lineage import lineage
    from dcclctl.store.store import Store

    shelf = Store(store)
    top = lineage(shelf.resolve(reference))
    if as_json:
        _print_json(asdict(top))
    else:
        for line in (_node_text(top), *_tree_lines(top)):
            Reporter(as_json, quiet).line(line)


def _tree_lines(node: "Node", indent: str = "") -> list[str]:
    """A tree as lines that are never wrapped, so that a hash can be searched for."""
    lines = []
    for child in node.inputs:
        last = child is node.inputs[-1]
        lines.append(f"{indent}{'└─' if last else '├─'} {child.role}: {_node_text(child)}")
        lines += _tree_lines(child, indent + ("   " if last else "│  "))
    return lines


def _node_text(node: "Node") -> str:
    if node.kind == "raw":
        return f"sha256 {node.id}"
    if node.problem:
        return f"{node.kind} {node.id[:SHORT_ID]}, not to be had: {node.problem}"
    return f"{node.ref} ({node.id[:SHORT_ID]})" + (", as above" if node.shown else "")


@app.command()
def verify(
    reference: Annotated[str | None, typer.Argument(metavar="[REF]", help="One artifact; all without it.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every byte of one artifact, or of all.

    Reads the files and compares them with what was committed. Exit code 3 if anything is damaged, missing or does not belong.

    \b
    Example:
      dcclctl artifacts verify
      dcclctl artifacts verify cloud@7
    """
    from dcclctl.store.manifest import KINDS
    from dcclctl.store.store import Store

    reporter, shelf = Reporter(as_json, quiet), Store(store)
    if reference is None:
        versions = [(kind, number) for kind in KINDS for number in shelf.numbers(kind)]
    else:
        artifact = shelf.resolve(reference)
        versions = [(artifact.kind, artifact.number)]
    damage: list[dict[str, str]] = []
    remedies = []
    for kind, number in versions:
        ref, found = f"{kind}@{number}", shelf.verify(kind, number)
        damage += [{"ref": ref, "file": file, "problem": problem} for file, problem in found.items()]
        for file, problem in found.items():
            reporter.line(f"{ref}  DAMAGED  {file} {problem}")
        if found:
            folder = shelf.folder(kind, number)
            remedies.append(f"{ref}: restore {folder}, or run {KINDS[kind]} --force and delete that folder.")
        else:
            reporter.line(f"{ref}  whole")
    if as_json:
        _print_json({"verified": len(versions), "damage": damage})
    if damage:
        first = damage[0]
        raise ArtifactError(
            f"{len(remedies)} of {len(versions)} artifacts are damaged, "
            f"e.g. {first['ref']}: {first['file']} {first['problem']}",
            "\n".join(remedies),
        )
    reporter.line(f"{len(versions)} of {len(versions)} artifacts whole")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The one artifact, e.g. cloud@1.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one, of the same kind, e.g. cloud@2.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what changed from A to B.

    Compares configuration, inputs, facts, metrics and package versions; what is equal is not shown.

    \b
    Example:
      dcclctl artifacts diff cloud@1 cloud@2
    """
    from dcclctl.store.lineage import difference
    from dcclctl.store.store import Store

    reporter, shelf = Reporter(as_json, quiet), Store(store)
    left, right = shelf.resolve(a), shelf.resolve(b)
    sections = difference(left, right)
    if as_json:
        _print_json({"a": left.ref, "b": right.ref, "same": left.id == right.id, **sections})
    elif not sections:
        same = "the same artifact" if left.id == right.id else "no change in what diff compares"
        reporter.line(f"{left.ref} and {right.ref}: {same}")
    else:
        table = _table("", "key", left.ref, right.ref)
        for section, changes in sections.items():
            for key, values in changes.items():
                cells = [_input_ref(shelf, value) if section == "inputs" else _value(value) for value in values]
                table.add_row(*(_text(cell) for cell in (section, key, *cells)))
        reporter.table(table)


def _input_ref(shelf: "Store", value: str | None) -> str:
    """'cloud 3fa9…' → 'cloud@7 (3fa9…)' where it is still in the store."""
    if value is None:
        return _value(value)
    kind, id = value.split()
    try:
        return f"{shelf.find(kind, id).ref} ({id[:SHORT_ID]})" if kind != "raw" else f"sha256 {id[:SHORT_ID]}"
    except ArtifactError:
        return f"{kind} {id[:SHORT_ID]}"


@app.command()
def tag(
    reference: Reference,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="A name, e.g. release or in-test.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give an artifact a name of your own.

    An alias that exists already moves to this artifact.

    \b
    Example:
      dcclctl artifacts tag cloud@7 release
      dcclctl evaluate cloud@release
    """
    from dcclctl.store.store import Store

    shelf = Store(store)
    artifact: Artifact = shelf.resolve(reference)
    shelf.tag(artifact, alias)
    if as_json:
        _print_json({"ref": artifact.ref, "id": artifact.id, "alias": f"{artifact.kind}@{alias}"})
    else:
        Reporter(as_json, quiet).line(f"{artifact.kind}@{alias} is now {artifact.ref} ({artifact.id[:SHORT_ID]})")


def _print_json(document: Any) -> None:
    print(json.dumps(document, allow_nan=False))


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("reference", "id", "size"))
    return table


def _text(cell: str) -> Any:
    from rich.text import Text

    return Text(plain(cell))


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _key_facts(facts: dict[str, Any]) -> str:
    """What tells artifacts of a kind apart, in a line; of a kind without known facts, the first few there are."""
    single = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    labels = {key: label for key, label in KEY_FACTS.items() if key in single} or {key: key for key in list(single)[:4]}
    return ", ".join(f"{label} {_short(single[key])}" for key, label in labels.items())


def _short(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _value(value)


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
