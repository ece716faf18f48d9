"""`ugt data quality`: finds the run of the ETL that the tables are compared with, and tells what the rules found."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from ugt.artifacts import MANIFEST, Artifact, Manifest
from ugt.schema import UGTError
from ugt.settings import Settings

SHOWN = 5  # columns that drifted, on the screen; the page has all


def find(settings: Settings) -> Artifact | None:
    """The ETL run that `quality.against` names, by key or folder; None where it names none. Raises UGTError if there is no such run."""
    against = settings.quality.against
    if not against:
        return None
    folder = Path(against) if Path(against).is_dir() else settings.home / "artifacts" / "etl" / against
    found = _artifact(folder.absolute())
    if found is None:
        kept = sorted(path.parent.name for path in (settings.home / "artifacts" / "etl").glob(f"*/{MANIFEST}"))
        raise UGTError(
            f"--against: {against} is neither a key of an ETL run in {settings.home} nor the folder of one. "
            f"The keys there are: {', '.join(kept) or 'none'}. A folder is one under artifacts/etl."
        )
    return found


def reference(settings: Settings, etl: Artifact) -> Artifact | None:
    """What `etl` is compared with: the run that is named, else the newest one older than it of the same source and the same files; None if there is none.

    A run never changes its own answer: what was made after it is not looked at.
    """
    named = find(settings)
    if named is not None:
        return named
    own = (etl.path / MANIFEST).stat().st_mtime_ns
    older = []
    for path in etl.path.parent.glob(f"*/{MANIFEST}"):
        made, found = path.stat().st_mtime_ns, _artifact(path.parent)
        if found is not None and found.key != etl.key and made < own and _files(found) == _files(etl):
            older.append((made, found.key, found))
    return max(older, key=lambda entry: entry[:2])[2] if older else None


def tell(folder: Path, console: Console) -> None:
    """Failed rules with the first row that breaks each, and the columns that drifted most."""
    report = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    for rule in report["rules"]:
        if rule["verdict"] == "failed":
            line = f" {rule['severity']:<13} {rule['name']}: {rule['meaning']}; {rule['failed']:,} of {rule['rows']:,} rows break it"
            first = ", ".join(f"{key} {value}" for key, value in rule["examples"][0].items()) if rule["examples"] else ""
            console.print(line + (f", the first: {first}" if first else ""), highlight=False, markup=False, soft_wrap=True)
    if report["drift"] is not None:
        moved = [row for row in report["drift"]["columns"] if row["verdict"] != "stable"]
        console.print(f" drift         {len(moved)} of {len(report['drift']['columns'])} columns moved since {report['drift']['against']}", highlight=False)
        for row in moved[:SHOWN]:
            distance = "" if row["ks"] is None else f" · KS {row['ks']:.3f}"
            console.print(f" {row['verdict']:<13} {row['column']}: PSI {row['psi']:.3f}{distance}", highlight=False, markup=False, soft_wrap=True)


def _artifact(folder: Path) -> Artifact | None:
    """A whole ETL run in any folder."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((folder / name).is_file() for name in manifest.files)
    return Artifact(path=folder, manifest=manifest, skipped=True) if manifest.step == "etl" and whole else None


def _files(etl: Artifact) -> tuple[str, frozenset[str]]:
    """What an ETL run was made of: the source and the names of its files."""
    return str(etl.manifest.figures.get("source")), frozenset(etl.manifest.inputs)
