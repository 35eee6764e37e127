"""`dcclctl artifacts`: what the stages made. Looks, compares, names, deletes, and takes to another store."""

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcclctl.cli.console import plain, print_json, size, table_of
from dcclctl.cli.options import LOOKS, Call, command
from dcclctl.compute import Phase
from dcclctl.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from dcclctl.store.hygiene import Deleted
    from dcclctl.store.lineage import Node
    from dcclctl.store.snapshot import Snapshot
    from dcclctl.store.store import Artifact, Store

SHORT_ID = 12

Reference = Annotated[
    str, typer.Argument(metavar="REF", help="E.g. cloud@7, cloud@3fa9c2d1, cloud@latest, cloud@my-alias.")
]

app = typer.Typer(
    help="List, show, verify, compare, name, delete and hand on what the commands made.\n\n"
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
            "--kind",
            metavar="KIND",
            help="Only dataset, cloud, memory, patches, evaluation, tuning, recommendations or bundle.",
        ),
    ] = None,
) -> None:
    """List what is in the store.

    It says what each artifact is, what it stands on, and what stands on it.

    Oldest first within each kind. "used by" counts the artifacts that were made from it. With --quiet only the references,
    one a line.

    \b
    Example:
      dcclctl artifacts list --kind cloud
    """
    from dcclctl.store.manifest import KINDS
    from dcclctl.store.snapshot import Snapshot

    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", f"Type --kind with one of {', '.join(KINDS)}.")
    reporter = call.reporter
    snapshot = Snapshot(call.store)
    rows = [_row(snapshot, artifact) for artifact in snapshot.artifacts(kind)]
    for (each, number), error in snapshot.damaged.items():
        if kind in (None, each):
            rows.append({"ref": f"{each}@{number}", "kind": each, "number": number, "problem": error.what})
    order = list(KINDS)
    rows.sort(key=lambda row: (order.index(row["kind"]), row["number"]))
    if reporter.as_json:
        print_json({"store": call.root, "artifacts": [_NOTHING | row for row in rows]})
    elif reporter.quiet:
        for row in rows:
            print(row["ref"])
    elif not rows:
        what = kind or "artifact"
        reporter.remark(f"no {what} in the store {call.root} yet; run first: {KINDS[kind or 'dataset']}")
    else:
        for line in _listed(rows):
            reporter.line(line)


#: What JSON says of a version that is damaged.
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("id", "label", "name", "model", "method", "stands_on", "data", "about", "made"), ""),
    "aliases": [],
    "bytes": 0,
    "seed": None,
    "used_by": 0,
    "facts": {},
    "problem": "",
}


def _row(snapshot: "Snapshot", artifact: "Artifact") -> dict[str, Any]:
    """What `list` says of one version."""
    from dcclctl.artifacts.names import describe, identity

    run, problem, about = artifact.run, "", ""
    known: dict[str, Any] = {"ref": artifact.ref, "kind": artifact.kind}
    try:
        known, about = identity(artifact), describe(artifact)
    except ArtifactError as error:
        problem = error.what
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{artifact.ref} is damaged: its facts or configuration are not those of a {artifact.kind}: {error}"
    return {
        **known,
        "id": artifact.id,
        "number": artifact.number,
        "aliases": snapshot.aliases(artifact),
        "about": about,
        "made": run.get("finished") or run.get("imported") or "",
        "bytes": artifact.size_bytes,
        "seed": artifact.seed,
        "used_by": len(snapshot.used_by[artifact.id]),
        "facts": dict(artifact.facts),
        "problem": problem,
    }


def _listed(rows: list[dict[str, Any]]) -> list[str]:
    """A table whose last column goes on below itself on a terminal, and stays on one line in a pipe."""
    head = ("reference", "made (UTC)", "size", "seed", "used by", "what it is")
    cells = [head]
    for row in rows:
        if row["problem"]:
            cells.append((row["ref"], "", "", "", "", "DAMAGED: run dcclctl artifacts verify"))
            continue
        names, data = " ".join(row["aliases"]), row["data"]
        about = (f"{names}: " if names else "") + row["about"] + (f"; data: {data}" if data else "")
        if row["kind"] == "dataset":
            about = row["label"].removesuffix(f" ({row['ref']})") + f": {row['about']}"
        made = row["made"][:16].replace("T", " ")
        cells.append((row["ref"], made, size(row["bytes"]), str(row["seed"]), str(row["used_by"]), plain(about)))
    widths = [max(len(row[at]) for row in cells) for at in range(len(head) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(20, shutil.get_terminal_size().columns - indent) if sys.stdout.isatty() else 100_000
    lines = []
    for cell_row in cells:
        sides = zip(cell_row[:-1], widths, (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust), strict=True)
        start = "".join(f"{put(cell, width)}  " for cell, width, put in sides)
        first, *more = textwrap.wrap(cell_row[-1], room, break_long_words=False) or [""]
        lines += [start + first, *(" " * indent + line for line in more)]
    return lines


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
        print_json({"ref": artifact.ref, **own, "path": artifact.place, "manifest": manifest, "run": run})
        return
    rows = {name: f", {table['rows']:,} rows" for name, table in manifest["tables"].items()}
    sections = {
        "": {
            "id": artifact.id,
            "folder": artifact.place,
            "names": " ".join(own["aliases"]) or "none",
            "stage": manifest["stage"],
            "seed": artifact.seed,
        },
        "made from": {node.role: _node_text(call.store, node) for node in lineage(artifact).inputs},
        "configuration": dotted(artifact.config),
        "facts": dotted(artifact.facts),
        "files": {name: size(file["bytes"]) + rows.get(name, "") for name, file in manifest["files"].items()},
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
        print_json(_node_json(call.store, top))
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


def _node_json(store: "Store", node: "Node") -> dict[str, Any]:
    """A node as fields, with its label as the tree shows it."""
    inputs = [_node_json(store, child) for child in node.inputs]
    return asdict(node) | {"label": _node_text(store, node), "inputs": inputs}


def _node_text(store: "Store", node: "Node") -> str:
    if node.kind == "raw":
        return f"sha256 {node.id}"
    problem = f", not available: {node.problem}" if node.problem else ""
    return _called(store, node.kind, node.id) + (", as above" if node.shown else "") + problem


def _called(store: "Store", kind: str, id: str) -> str:
    """'control (cloud@7, 3fa9…)', 'din (cloud@7, 3fa9…)' without a name, 'cloud 3fa9…' if it is not in the store."""
    from dcclctl.artifacts.names import label

    try:
        return label(store.find(kind, id)).removesuffix(")") + f", {id[:SHORT_ID]})"
    except ArtifactError:
        return f"{kind} {id[:SHORT_ID]}"


@command(app, "verify", shared=LOOKS)
def verify(
    call: Call,
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="The artifact to check. [default: all of the store]")
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
    with call.working():
        phase = Phase(call.progress, "verify", len(versions), "artifacts")
        checked = []
        for kind, number in versions:
            checked.append((kind, number, store.verify(kind, number)))
            phase.add(1, f"{kind}@{number}")
    for kind, number, found in checked:
        ref = f"{kind}@{number}"
        damage += [{"ref": ref, "file": file, "problem": problem} for file, problem in found.items()]
        for file, problem in found.items():
            reporter.line(f"{ref}  DAMAGED  {file} {problem}")
        if found:
            folder = store.disk.shown(store.folder(kind, number))
            remedies.append(f"{ref}: restore {folder}, or run {store.remake(kind, number)} --force, and then")
            remedies.append(f"  dcclctl artifacts rm {ref}")
        else:
            reporter.line(f"{ref}  whole")
    if reporter.as_json:
        print_json({"verified": len(versions), "damage": damage})
    if damage:
        first = damage[0]
        raise ArtifactError(
            f"{len({each['ref'] for each in damage})} of {len(versions)} artifacts are damaged, "
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
    before = call.store.tag(artifact, alias)
    name = f"{artifact.kind}@{alias}"
    if call.reporter.as_json:
        print_json({"ref": artifact.ref, "id": artifact.id, "alias": name})
    else:
        was = f"; it was {before}" if before else ""
        call.reporter.line(f"{name} is now {artifact.ref} ({artifact.id[:SHORT_ID]}){was}")


@command(app, "gc", shared=LOOKS)
def gc(
    call: Call,
    keep: Annotated[
        int, typer.Option("--keep", metavar="K", min=0, help="Newest artifacts of each kind that stay.")
    ] = 3,
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete. Without it, only show what would be deleted.")
    ] = False,
) -> None:
    """Delete what nobody needs any more; without --apply only show it.

    What stays: artifacts with a name, the newest K of each kind, what running commands use, everything that these were made
    from, and damaged ones. What goes: all others, and what killed runs left (their command would continue with it).

    \b
    Example:
      dcclctl artifacts gc
      dcclctl artifacts gc --keep 1 --apply
    """
    from dcclctl.store.hygiene import collect

    with call.working():
        done = collect(call.store, keep, apply)
    _show_deleted(call, done, "deleted" if apply else "would delete")
    if not apply and (done.versions or done.work or done.trash):
        call.reporter.remark("nothing is deleted yet; to delete: dcclctl artifacts gc --apply")


@command(app, "rm", shared=LOOKS)
def rm(
    call: Call,
    references: Annotated[list[str], typer.Argument(metavar="REF", help="What to delete, e.g. cloud@7.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also delete everything that was made from it, and its names.")
    ] = False,
) -> None:
    """Delete artifacts, also damaged ones.

    Refused as long as another artifact was made from it, or it has a name; --force deletes these too. What a running command
    uses is never deleted. A number is never given again.

    \b
    Example:
      dcclctl artifacts rm evaluation@3
      dcclctl artifacts rm cloud@7 --force
    """
    from dcclctl.store.hygiene import remove

    with call.working():
        done = remove(call.store, references, force)
    _show_deleted(call, done, "deleted")


@command(app, "forget", shared=LOOKS)
def forget(
    call: Call,
    users: Annotated[list[str], typer.Argument(metavar="USER", help="Ids of the users, as the log has them.")],
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without it, only show what would be done.")] = False,
) -> None:
    """Take users' ids and events out of all artifacts.

    Without --apply it only shows what would be done. Every artifact that holds something of the users, or was made from one
    that does, is made once more without it, and the old one is deleted: it gets a new number and id, and its names move along. Bundles are deleted, because they hold samples
    of devices; so is what stopped runs left. Patches of other users stay the same to the bit.

    What models, memories and evaluations learned or counted from the users cannot be taken out: it is listed with the command
    that makes it anew. Logs, exported files, archives and backups lie outside the store: delete the users there yourself.

    \b
    Example:
      dcclctl artifacts forget u17
      dcclctl artifacts forget u17 u21 --apply
    """
    from dcclctl.artifacts.names import label

    with call.working():
        from dcclctl.stages.forget import forget as run

        done = run(call.store, users, apply)
    line, made = call.reporter.line, done.artifacts
    left = [each for each in made if each.command]
    if call.reporter.as_json:
        rows = [
            {"old": each.old.ref, "new": each.ref if each.id else None, "id": each.id, "rows": each.rows}
            | {"stays": each.learned, "command": each.command}
            for each in made
        ]
        moved = [{"old": old, "new": new or None} for old, new in done.moved]
        paths = [call.store.disk.shown(path) for path in done.work + done.trash]
        facts = {"artifacts": rows, "moved": moved, "left_by_killed_runs": paths, "unknown": done.unknown}
        print_json({"applied": apply, **facts})
        return
    for each in made:
        becomes = each.ref if each.number else "a new one"
        held = f", {each.rows:,} rows of the users" if each.rows else ""
        old = label(each.old) if not apply else each.old.ref
        line(f"{old} → {becomes}{held}" if each.id else f"{old}: deleted" if apply else f"{old}: would be deleted")
    for old, new in done.moved:
        line(f"{old} → {new or 'a new number'}, the same artifact, so that it stays the newest")
    for path in done.work + done.trash:
        line(f"{'deleted' if apply else 'would delete'} {call.store.disk.shown(path)}")
    if left:
        line("What was learned from the users stays until you make it anew and remove the old one:")
    for each in left:
        line(f"  {each.ref if each.number else each.old.ref}: {each.learned or 'deleted'}")
        line(f"    {each.command}")
    if made:
        line("Not in the store, so not reached: logs, exported files, archives, trackers, devices, backups.")
    for user in done.unknown:
        call.reporter.remark(f"nothing in the store holds a user {plain(user)}")
    if made and not apply:
        call.reporter.remark("nothing is done yet; to do it, add --apply")


@command(app, "export", shared=LOOKS)
def export(
    call: Call,
    references: Annotated[list[str], typer.Argument(metavar="REF", help="What to hand on, e.g. cloud@release.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write, e.g. model.tar.")],
) -> None:
    """Write artifacts and all that they were made from into one file.

    For a colleague or a CI cache. Names go along. Equal artifacts give equal bytes.

    \b
    Example:
      dcclctl artifacts export cloud@release -o release.tar
    """
    from dcclctl.artifacts.names import label
    from dcclctl.store.archive import export_archive

    with call.working():
        found = export_archive(call.store, references, output)
    written = output.stat().st_size
    if call.reporter.as_json:
        print_json({"file": str(output), "bytes": written, "artifacts": [artifact.ref for artifact in found]})
        return
    for artifact in found:
        call.reporter.line(label(artifact))
    call.reporter.line(f"{len(found)} artifacts in {output}, {size(written)}")


@command(app, "import", shared=LOOKS)
def import_(
    call: Call, archive: Annotated[Path, typer.Argument(metavar="FILE", help="What artifacts export wrote.")]
) -> None:
    """Add the artifacts of a file that artifacts export wrote.

    Every byte is compared with the id first. What the store has already is left alone; names are given where they are free.

    \b
    Example:
      dcclctl artifacts import release.tar
    """
    from dcclctl.artifacts.names import label
    from dcclctl.store.archive import import_archive

    with call.working():
        done = import_archive(call.store, archive)
    if call.reporter.as_json:
        new, present = ([artifact.ref for artifact in found] for found in (done.new, done.present))
        print_json({"new": new, "present": present, "names": done.names, "names_taken": done.names_taken})
        return
    for artifact in done.new:
        call.reporter.line(f"new: {label(artifact)}")
    for artifact in done.present:
        call.reporter.line(f"here already: {label(artifact)}")
    for name in done.names_taken:
        call.reporter.remark(f"{name} means another artifact here and stays so; dcclctl artifacts tag moves it")


def _show_deleted(call: Call, done: "Deleted", verb: str) -> None:
    from dcclctl.artifacts.names import label

    refs = [artifact.ref for artifact in done.versions] + done.damaged
    left = [call.store.disk.shown(path) for path in done.work + done.trash]
    if call.reporter.as_json:
        in_use = [artifact.ref for artifact in done.in_use]
        facts = {"names": done.names, "left_by_killed_runs": left, "in_use": in_use, "bytes": done.size_bytes}
        print_json({"deleted": verb == "deleted", "artifacts": refs, **facts})
        return
    for artifact in done.versions:
        call.reporter.line(f"{verb} {label(artifact)}, {size(artifact.size_bytes)}")
    for what in [*done.damaged, *done.names, *left]:
        call.reporter.line(f"{verb} {what}")
    for artifact in done.in_use:
        call.reporter.line(f"stays, because a running command uses it: {label(artifact)}")
    call.reporter.line(f"{verb} {len(refs)} artifacts and {len(left)} remains of killed runs, {size(done.size_bytes)}")


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
