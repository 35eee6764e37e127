"""`dcclctl artifacts`: what the stages made. Looks, compares and names; only `tag` writes."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import print_json, table_of
from dcclctl.cli.options import LOOKS, Call, command
from dcclctl.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from dcclctl.store.lineage import Node
    from dcclctl.store.store import Store

SHORT_ID = 12

Reference = Annotated[
    str, typer.Argument(metavar="REF", help="E.g. cloud@7, cloud@3fa9c2d1, cloud@latest, cloud@my-alias.")
]

app = typer.Typer(
    help="List, show, verify, compare and name what the commands made.\n\n"
    "An artifact is named by kind and number (cloud@7), by the first digits of its id (cloud@3fa9c2d1), "
    "as the newest of its kind (cloud@latest, or just cloud), or by an alias (cloud@my-alias).",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
)


@command(app, "list", shared=LOOKS)
def list_artifacts(
    call: Call,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="KIND", help="Only dataset, cloud, memory, patches, evaluation or recommendations."
        ),
    ] = None,
) -> None:
    """List what is in the store: names, size and what each artifact is.

    Oldest first within each kind. With --quiet only the references, one a line.

    \b
    Example:
      dcclctl artifacts list --kind cloud
    """
    from dcclctl.store.manifest import KINDS

    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", f"Type --kind with one of {', '.join(KINDS)}.")
    reporter = call.reporter
    rows = [_row(call.store, each, at) for each in ([kind] if kind else KINDS) for at in call.store.numbers(each)]
    if reporter.as_json:
        print_json({"store": str(call.root), "artifacts": rows})
    elif reporter.quiet:
        for row in rows:
            print(row["ref"])
    elif not rows:
        what = kind or "artifact"
        reporter.remark(f"no {what} in the store {call.root} yet; run first: {KINDS[kind or 'dataset']}")
    else:
        cells = (
            (
                row["ref"],
                row["id"][:SHORT_ID],
                " ".join(row["aliases"]),
                str(row["made"] or "")[:16].replace("T", " "),
                _size(row["bytes"]),
                "DAMAGED: run dcclctl artifacts verify" if row["problem"] else row["about"],
            )
            for row in rows
        )
        reporter.table(table_of(("reference", "id", "names", "made (UTC)", "size", "what it is"), cells))


def _row(store: "Store", kind: str, number: int) -> dict[str, Any]:
    """What `list` says of one version, damaged or not."""
    from dcclctl.artifacts.names import describe

    try:
        artifact = store.load(kind, number)
    except ArtifactError as error:
        nothing: dict[str, Any] = {"id": "", "aliases": [], "made": None, "bytes": 0, "about": "", "facts": {}}
        return {"ref": f"{kind}@{number}", **nothing, "problem": error.what}
    return {
        "ref": artifact.ref,
        "id": artifact.id,
        "aliases": store.aliases(artifact),
        "made": artifact.run.get("finished"),
        "bytes": artifact.size_bytes,
        "about": describe(artifact),
        "facts": artifact.facts,
        "problem": "",
    }


@command(app, "show", shared=LOOKS)
def show(call: Call, reference: Reference) -> None:
    """Show all that is known of one artifact.

    \b
    Example:
      dcclctl artifacts show cloud@latest
    """
    from dcclctl.store.lineage import dotted, lineage

    artifact = call.store.resolve(reference)
    own = {"id": artifact.id, "aliases": call.store.aliases(artifact)}
    manifest, run = artifact.manifest, artifact.run
    if call.reporter.as_json:
        print_json({"ref": artifact.ref, **own, "path": str(artifact.path), "manifest": manifest, "run": run})
        return
    rows = {name: f", {table['rows']:,} rows" for name, table in manifest["tables"].items()}
    sections = {
        "": {
            "id": artifact.id,
            "folder": str(artifact.path),
            "names": " ".join(own["aliases"]) or "none",
            "stage": manifest["stage"],
            "seed": artifact.seed,
        },
        "made from": {node.role: _node_text(call.store, node) for node in lineage(artifact).inputs},
        "configuration": dotted(artifact.config),
        "facts": dotted(artifact.facts),
        "files": {name: _size(file["bytes"]) + rows.get(name, "") for name, file in manifest["files"].items()},
        "run (not part of the id)": run,
        "packages": manifest["packages"],
    }
    call.reporter.line(artifact.ref)
    for title, values in sections.items():
        if title and values:
            call.reporter.line(title)
        width = max(map(len, values), default=0)
        for key, value in values.items():
            call.reporter.line(f"  {key:{width}}  {_value(value)}")


@command(app, "lineage", shared=LOOKS)
def show_lineage(call: Call, reference: Reference) -> None:
    """Show the inputs as a tree, down to the raw logs.

    Raw logs are shown by file name and SHA-256, artifacts by name, reference and the start of their id.

    \b
    Example:
      dcclctl artifacts lineage evaluation@latest
    """
    from dcclctl.store.lineage import lineage

    top = lineage(call.store.resolve(reference))
    if call.reporter.as_json:
        print_json(asdict(top))
    else:
        for line in (_node_text(call.store, top), *_tree_lines(call.store, top)):
            call.reporter.line(line)


def _tree_lines(store: "Store", node: "Node", indent: str = "") -> list[str]:
    """A tree as lines that are never wrapped, so that a hash can be searched for."""
    lines = []
    for child in node.inputs:
        last = child is node.inputs[-1]
        lines.append(f"{indent}{'└─' if last else '├─'} {child.role}: {_node_text(store, child)}")
        lines += _tree_lines(store, child, indent + ("   " if last else "│  "))
    return lines


def _node_text(store: "Store", node: "Node") -> str:
    if node.kind == "raw":
        return f"sha256 {node.id}"
    problem = f", not available: {node.problem}" if node.problem else ""
    return _called(store, node.kind, node.id) + (", as above" if node.shown else "") + problem


def _called(store: "Store", kind: str, id: str) -> str:
    """'control (cloud@7, 3fa9…)', 'cloud@7 (3fa9…)' without a name, 'cloud 3fa9…' if it is not in the store."""
    try:
        artifact = store.find(kind, id)
    except ArtifactError:
        return f"{kind} {id[:SHORT_ID]}"
    name = next(iter(store.aliases(artifact)), "")
    return f"{name} ({artifact.ref}, {id[:SHORT_ID]})" if name else f"{artifact.ref} ({id[:SHORT_ID]})"


@command(app, "verify", shared=LOOKS)
def verify(
    call: Call,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="The artifact to check. [default: all of the store]")
    ] = None,
) -> None:
    """Check every byte of one artifact, or of all.

    Reads the files and compares them with what was committed. Exit code 3 if a file is damaged or missing, or does not
    belong to the artifact.

    \b
    Example:
      dcclctl artifacts verify
      dcclctl artifacts verify cloud@7
    """
    from dcclctl.store.manifest import KINDS

    store, reporter = call.store, call.reporter
    if reference is None:
        versions = [(kind, number) for kind in KINDS for number in store.numbers(kind)]
    else:
        artifact = store.resolve(reference)
        versions = [(artifact.kind, artifact.number)]
    damage: list[dict[str, str]] = []
    remedies = []
    for kind, number in versions:
        ref, found = f"{kind}@{number}", store.verify(kind, number)
        damage += [{"ref": ref, "file": file, "problem": problem} for file, problem in found.items()]
        for file, problem in found.items():
            reporter.line(f"{ref}  DAMAGED  {file} {problem}")
        if found:
            folder = store.folder(kind, number)
            remedies.append(f"{ref}: restore {folder}, or run {KINDS[kind]} --force and delete that folder.")
        else:
            reporter.line(f"{ref}  whole")
    if reporter.as_json:
        print_json({"verified": len(versions), "damage": damage})
    if damage:
        first = damage[0]
        raise ArtifactError(
            f"{len(remedies)} of {len(versions)} artifacts are damaged, "
            f"e.g. {first['ref']}: {first['file']} {first['problem']}",
            "\n".join(remedies),
        )
    reporter.line(f"{len(versions)} of {len(versions)} artifacts whole")


@command(app, "diff", shared=LOOKS)
def diff(
    call: Call,
    a: Annotated[str, typer.Argument(metavar="A", help="The one artifact, e.g. cloud@1.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one, of the same kind, e.g. cloud@2.")],
) -> None:
    """Show what changed from A to B.

    Compares configuration, inputs, facts, metrics and package versions; what is equal is not shown.

    \b
    Example:
      dcclctl artifacts diff cloud@1 cloud@2
    """
    from dcclctl.artifacts.names import label
    from dcclctl.store.lineage import difference

    left, right = call.store.resolve(a), call.store.resolve(b)
    sections = difference(left, right)
    if call.reporter.as_json:
        print_json({"a": left.ref, "b": right.ref, "same": left.id == right.id, **sections})
    elif not sections:
        same = "the same artifact" if left.id == right.id else "no change in what diff compares"
        call.reporter.line(f"{left.ref} and {right.ref}: {same}")
    else:
        rows = [
            (section, key, *(_changed(call.store, section, value) for value in values))
            for section, changes in sections.items()
            for key, values in changes.items()
        ]
        call.reporter.table(table_of(("", "key", label(left), label(right)), rows))


def _changed(store: "Store", section: str, value: Any) -> str:
    """A value of a difference; an input, 'cloud 3fa9…', by its name."""
    if section != "inputs" or value is None:
        return _value(value)
    kind, id = value.split()
    return f"sha256 {id[:SHORT_ID]}" if kind == "raw" else _called(store, kind, id)


@command(app, "tag", shared=LOOKS)
def tag(
    call: Call,
    reference: Reference,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="A name, e.g. release or in-test.")],
) -> None:
    """Give an artifact a name of your own.

    An alias that exists already moves to this artifact.

    \b
    Example:
      dcclctl artifacts tag cloud@7 release
      dcclctl evaluate cloud@release
    """
    artifact = call.store.resolve(reference)
    call.store.tag(artifact, alias)
    name = f"{artifact.kind}@{alias}"
    if call.reporter.as_json:
        print_json({"ref": artifact.ref, "id": artifact.id, "alias": name})
    else:
        call.reporter.line(f"{name} is now {artifact.ref} ({artifact.id[:SHORT_ID]})")


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"
