"""`ugt data catalog`, `lineage` and `erase`: what there is, where it came from, and one user gone from all of it. No Ray is started."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.tree import Tree

from ray_app.cli_options import ConfigPath, JsonPath, console, settings_of, writable, write_json
from ugt.schema import UGTError
from ugt.settings import Settings


def add_to(group: typer.Typer) -> None:
    """Put the commands of governance into `ugt data`."""
    group.command("catalog")(catalog)
    group.command("lineage")(lineage)
    group.command("erase")(erase)


def catalog(
    config: ConfigPath = None,
    step: Annotated[str | None, typer.Option(help="Only this step's data (etl, histories, ...), or event_log, or features.")] = None,
    key: Annotated[str | None, typer.Option(help="Only the artifact whose key begins with this; its tables are shown by column.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file in full and compare it with its checksum.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Show what retention lets go (settings: retention). Nothing is removed without --yes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --prune: remove it.")] = False,
    json_path: JsonPath = None,
) -> None:
    """Every data set: tables, rows, bytes, hash, sources and run. From manifests and file footers."""
    from data import governance

    settings = settings_of(config)
    writable(json_path, "--json")
    if yes and not prune:
        raise UGTError("--yes belongs to --prune. Say `ugt data catalog --prune --yes` to remove what retention lets go.")
    if prune and (step or key or verify):
        raise UGTError("--prune looks at the whole home: give it without --step, --key and --verify.")
    if prune:
        return _prune(settings, yes, json_path)
    found = governance.catalogue(settings.home, step, key)
    table = Table(box=None, pad_edge=False)
    for column in ("made", "data set", "key", "tables (rows)", "bytes", "hash", "made from", "s"):
        table.add_column(column, justify="right" if column in ("bytes", "s") else "left")
    for d in found:
        tables = " · ".join(f"{name} {t.rows:,}" for name, t in d.tables.items()) or f"{d.files} files"
        sources = " ".join(f"{name}:{value[:8]}" for name, value in d.sources.items())
        state = "" if d.whole else " [red]not whole[/red]"
        days = f" ({d.days[0]} to {d.days[-1]})" if d.days else ""
        table.add_row(_moment(d.created), d.name, (d.key or "") + state, tables + days, f"{d.bytes:,}", (d.hash or "-")[:8], sources, f"{d.seconds or 0:.1f}")
    console.print(table)
    if key and len(found) == 1:
        for name, t in found[0].tables.items():
            console.print(f" {name}: " + ", ".join(f"{c} {kind}" for c, kind in t.columns.items()), highlight=False, soft_wrap=True)
    total = sum(d.bytes for d in found)
    console.print(f" {len(found)} data sets, {total:,} bytes", highlight=False)
    report: dict[str, Any] = {"home": str(settings.home), "datasets": [d.model_dump() for d in found], "bytes": total}
    if verify:
        checked = report["verify"] = governance.verify(settings.home, step, key)
        console.print(
            f" verified      {checked['files']:,} files, {checked['bytes']:,} bytes read · by size only (older manifests) {checked['by_size']} · "
            f"without a checksum {checked['without_checksum']}",
            highlight=False,
            soft_wrap=True,
        )
    write_json(json_path, report)
    if verify and report["verify"]["bad"]:
        bad = "; ".join(f"{path} {why}" for path, why in report["verify"]["bad"].items())
        raise UGTError(f"{len(report['verify']['bad'])} files are not what was written: {bad}. Remove their folder and run the step again.")


def _prune(settings: Settings, yes: bool, json_path: Path | None) -> None:
    from data import governance
    from ugt.registry import Registry

    report = governance.prune(settings.home, Registry(settings.registry_location), settings.retention, delete=yes)
    for row in report["removed"]:
        console.print(
            f" {'removed' if yes else 'would go'}  {row['what']}  {row['bytes']:,} bytes, {row['age_days']:.0f} days old", highlight=False, soft_wrap=True
        )
    for what in report["kept_though_old"]:
        console.print(f" kept     {what}: a version or the newest run needs it", highlight=False, soft_wrap=True)
    console.print(
        f" {'freed' if yes else 'to be freed'} {report['bytes']:,} bytes in {len(report['removed'])} folders (artifacts older than {report['days']:g} days, "
        f"event log older than {report['event_log_days']:g}){'' if yes or not report['removed'] else '   remove them: ugt data catalog --prune --yes'}",
        highlight=False,
        soft_wrap=True,
    )
    write_json(json_path, report)


def lineage(
    what: Annotated[str, typer.Argument(help="A version, production, or the key of an artifact (step/key, or its beginning).")] = "production",
    config: ConfigPath = None,
    json_path: JsonPath = None,
) -> None:
    """From a served version, or any artifact, back through every step to the checksums of the source files."""
    from ugt import lineage as lineages
    from ugt.artifacts import ArtifactStore
    from ugt.registry import Registry

    settings = settings_of(config)
    writable(json_path, "--json")
    found = lineages.of(what, ArtifactStore(settings.home), Registry(settings.registry_location), settings.serve.model_name)
    branches: list[Tree] = []
    for depth, node, shown in lineages.lines(found):
        text = node.id if node.state == "whole" else f"[red]{node.id}  {node.state}[/red]"
        made = "" if shown else f"  {_moment(node.created)}" if node.created else ""
        branch = Tree(text + made + ("  (above)" if shown else ""), highlight=False)
        if depth:
            branches[depth - 1].add(branch)
        branches[depth:] = [branch]
        if not shown:
            for name, sha in node.sources.items():
                branch.add(f"{name}  sha256 {sha}")
            if node.state == "whole" and not node.inputs and not node.sources:  # the end of the chain is of our own making
                branch.add("generated from its settings, no source file" if "/" in node.id else "no step recorded in its card")
                for name, sha in node.hashes.items():
                    branch.add(f"{name}  sha256 {sha}")
    console.print(branches[0])
    if found.broken:
        console.print(f" broken: {', '.join(found.broken)} (removed or damaged; the keys are those recorded)", highlight=False, soft_wrap=True)
    write_json(json_path, {**found.model_dump(), "sources": found.sources, "broken": found.broken})


def erase(user: Annotated[str, typer.Argument(help="The user's id.")], config: ConfigPath = None, json_path: JsonPath = None) -> None:
    """One user gone from every table, log, feature and store, proved by a fresh scan. Works while servers run or are stopped."""
    from data import erasure
    from ugt.registry import Registry

    settings = settings_of(config)
    writable(json_path, "--json")
    registry = Path(settings.registry_location) if Registry(settings.registry_location).is_local and "://" not in settings.registry_location else None
    report = erasure.erase(user, settings.home, settings.stores, registry, lambda line: console.print(f" {line}", highlight=False))
    write_json(json_path, report)
    if not report["found"] and report["erased_before"] is None and not report["places"]:
        console.print(f" user {user} is nowhere in {settings.home}: nothing to erase", highlight=False, soft_wrap=True)
        return
    if not report["places"]:
        console.print(f" user {user} was erased on {_moment(report['erased_before'])} and is nowhere in {settings.home} now", highlight=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("place", "found", "removed", "left"):
        table.add_column(column, justify="left" if column == "place" else "right")
    for place in report["places"]:
        table.add_row(place["place"], *(f"{place[n]:,}" for n in ("found", "removed", "left")))
    console.print(table)
    scanned = report["scanned"]
    only = "" if scanned["id_is_distinctive"] else " (the append-only file only: a plain number stands everywhere)"
    console.print(
        f" proof         read again: {scanned['tables']:,} tables, {scanned['redis_keys']:,} Redis keys; "
        f"{scanned['files_searched_as_bytes']:,} files searched as bytes{only}",
        highlight=False,
        soft_wrap=True,
    )
    for source in report["source_files"]:
        console.print(f" source file   {source['name']}  sha256 {source['sha256']}  is yours and was not changed", highlight=False, soft_wrap=True)
    console.print(f" remains       {report['remains']}", highlight=False, soft_wrap=True)
    if not report["proven"]:
        left = ", ".join(p["place"] for p in report["places"] if p["left"])
        raise UGTError(f"user {user} is still in: {left}. Something wrote there meanwhile, or it can't be rewritten; look at it and run this again.")
    console.print(f" erased        {sum(p['removed'] for p in report['places']):,} rows and keys; nothing is left   {report['seconds']:.1f} s", highlight=False)


def _moment(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")[:16] if seconds else ""
