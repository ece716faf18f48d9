"""What a home holds, and what may go: the catalogue of data sets, and retention.

Choices: the catalogue is read from manifests and the footers of Parquet files, never from the rows; `verify` alone reads files in full, against the
checksums of their manifest. Retention keeps what any published version or the newest run of a step needs, by lineage, whatever its age; a day of the event
log stays as long as something kept was made from its files. What goes is renamed first, so that a kill leaves no half artifact.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from data import event_log
from ugt import lineage
from ugt.artifacts import MANIFEST, Artifact, ArtifactStore, Manifest, content_hash, file_hash
from ugt.registry import Registry
from ugt.schema import Record, UGTError
from ugt.settings import RetentionConfig

EVENT_LOG, FEATURES = event_log.FOLDER, "features"


class Table(Record):
    """A Parquet data set: its columns with their Arrow types, rows and bytes."""

    columns: dict[str, str]
    rows: int
    bytes: int
    files: int


class Dataset(Record):
    """One artifact, the event log, or one backfilled feature. `hash` is null where no checksum was stored (older manifests, data without a manifest)."""

    name: str
    kind: str  # artifact, event_log, features
    key: str | None = None
    whole: bool = True
    tables: dict[str, Table] = {}
    rows: int
    bytes: int
    files: int
    hash: str | None = None
    sources: dict[str, str] = {}  # artifact keys and checksums of source files, by name
    created: float | None = None  # Unix seconds
    seconds: float | None = None
    settings: dict[str, Any] = {}
    erased: dict[str, Any] | None = None
    days: list[str] = []  # partitions of the event log and of features


def catalogue(home: Path, step: str | None = None, key: str | None = None) -> list[Dataset]:
    """Every data set under a home, oldest first; of one step (or `event_log`, `features`), or whose key begins with `key`, if given.

    Raises UGTError if `home` is none, or naming the Parquet file that can't be read.
    """
    home = _home(home)
    found = [_artifact(p.parent) for p in (home / "artifacts").glob(f"*/*/{MANIFEST}") if p.parent.suffix == ""]
    found += [_days(home / EVENT_LOG, EVENT_LOG, EVENT_LOG)] if (home / EVENT_LOG).is_dir() else []
    found += [_days(folder, f"{FEATURES}/{folder.name}", FEATURES) for folder in sorted((home / FEATURES).glob("*")) if folder.is_dir()]
    named = [d for d in found if step is None or step in (d.name, d.kind)]
    return sorted((d for d in named if key is None or (d.key or "").startswith(key)), key=lambda d: (d.created or 0, d.name))


def verify(home: Path, step: str | None = None, key: str | None = None) -> dict[str, Any]:
    """Read every file of the artifacts named and compare it with its checksum; `bad` names those that don't fit and why.

    Files of manifests without checksums are compared by size and counted in `by_size`; other data has nothing to be compared with but must be readable.
    """
    home = _home(home)
    report: dict[str, Any] = {"files": 0, "bytes": 0, "by_size": 0, "without_checksum": 0, "bad": {}}
    for dataset in catalogue(home, step, key):
        if dataset.key is None:
            report["without_checksum"] += dataset.files
            continue
        folder = home / "artifacts" / dataset.name / dataset.key
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
        for file, size in manifest.files.items():
            path = folder / file
            report["files"] += 1
            if not path.is_file():
                report["bad"][str(path)] = "is missing"
            elif path.stat().st_size != size:
                report["bad"][str(path)] = f"{path.stat().st_size:,} bytes instead of {size:,}"
            elif file not in manifest.hashes:
                report["by_size"] += 1
            else:
                report["bytes"] += size
                if file_hash(path) != manifest.hashes[file]:
                    report["bad"][str(path)] = "its SHA-256 is not the one of the manifest"
    return report


class Removable(Record):
    what: str
    bytes: int
    age_days: float


def prune(home: Path, registry: Registry, config: RetentionConfig, delete: bool, now: float | None = None) -> dict[str, Any]:
    """What retention lets go, and what it keeps and why; removed if `delete`. Returns names, bytes and the kept.

    Raises UGTError if a step is being made, or if the registry can't be read: without it nothing is known to be free.
    """
    home, now = _home(home), time.time() if now is None else now
    store = ArtifactStore(home)
    with store.exclusively("ugt data catalog --prune"), log_held(home):
        whole = _whole(store)
        newest: dict[str, Artifact] = {}
        for artifact in sorted(whole, key=_created):
            newest[artifact.manifest.step] = artifact
        kept = lineage.needed(store, registry, newest)
        old = [p for p in (home / "artifacts").glob("*/*") if p.is_dir() and now - _time_of(p) > config.days * 86400]
        gone = [p for p in old if f"{p.parent.name}/{p.name}" not in kept]
        sources = {sha for a in whole if f"{a.manifest.step}/{a.key}" in kept for sha in a.manifest.inputs.values()}
        days, held = _old_days(home / EVENT_LOG, config, now, sources)
        freed = [Removable(what=str(p.relative_to(home)), bytes=_size(p), age_days=round((now - _time_of(p)) / 86400, 1)) for p in gone]
        freed += [Removable(what=str(p.relative_to(home)), bytes=_size(p), age_days=round(_age(p, now), 1)) for p in days]
        if delete:
            for path in (*gone, *days):
                doomed = path if path.name.endswith(".partial") else path.with_name(path.name + ".partial")
                shutil.rmtree(doomed, ignore_errors=doomed != path)
                if doomed != path:
                    os.replace(path, doomed)
                    shutil.rmtree(doomed)
    return {
        "deleted": delete,
        "removed": [f.model_dump() for f in freed],
        "bytes": sum(f.bytes for f in freed),
        "kept_though_old": sorted(str(p.relative_to(home)) for p in {*old} - {*gone}) + sorted(str(p.relative_to(home)) for p in held),
        "days": config.days,
        "event_log_days": config.event_log_days,
    }


# --- the parts


def _home(home: Path) -> Path:
    home = Path(home).absolute()
    if not any((home / part).is_dir() for part in ("artifacts", EVENT_LOG, FEATURES)):
        raise UGTError(f"there is no data of UGT in {home}. Make some (ugt demo), or set UGT_HOME to the folder that holds it.")
    return home


def _artifact(folder: Path) -> Dataset:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    except ValidationError:
        return Dataset(name=folder.parent.name, kind="artifact", key=folder.name, whole=False, rows=0, bytes=_size(folder), files=0)
    present = [folder / f for f in manifest.files if (folder / f).is_file()]
    whole = len(present) == len(manifest.files) and all(p.stat().st_size == manifest.files[str(p.relative_to(folder))] for p in present)
    tables = _tables(folder, present) if whole else {}
    return Dataset(
        name=manifest.step,
        kind="artifact",
        key=manifest.key,
        whole=whole,
        tables=tables,
        rows=sum(t.rows for t in tables.values()),
        bytes=sum(manifest.files.values()),
        files=len(manifest.files),
        hash=content_hash(manifest.hashes) if manifest.hashes else None,
        sources=manifest.inputs,
        created=manifest.created or (folder / MANIFEST).stat().st_mtime,
        seconds=manifest.seconds,
        settings=manifest.settings,
        erased=manifest.erased.model_dump() if manifest.erased else None,
    )


def _days(folder: Path, name: str, kind: str) -> Dataset:
    """Data without a manifest, by its footers; its time is the youngest file's."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".tmp"))
    tables = _tables(folder, files, together=True)
    return Dataset(
        name=name,
        kind=kind,
        tables=tables,
        rows=sum(t.rows for t in tables.values()),
        bytes=sum(p.stat().st_size for p in files),
        files=len(files),
        created=max((p.stat().st_mtime for p in files), default=None),
        days=sorted(p.name for p in folder.iterdir() if p.is_dir()),
    )


def _tables(folder: Path, files: Iterable[Path], together: bool = False) -> dict[str, Table]:
    """The Parquet data sets of a folder by name: `items` for `items/part-00000.parquet`, the file's name for one on its own; `together`: all are one."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.suffix == ".parquet":
            parent = path.parent.relative_to(folder)
            groups[folder.name if together else path.name if parent == Path() else str(parent)].append(path)
    found = {}
    for name, paths in sorted(groups.items()):
        try:
            rows = sum(pq.read_metadata(p).num_rows for p in paths)
            schema = pq.read_schema(paths[0])
        except (pa.ArrowInvalid, OSError) as error:
            raise UGTError(f"a Parquet file of {folder / name} can't be read ({error}). Remove that folder and run the step that writes it again.") from error
        columns = {field.name: str(field.type) for field in schema}
        found[name] = Table(columns=columns, rows=rows, bytes=sum(p.stat().st_size for p in paths), files=len(paths))
    return found


def _whole(store: ArtifactStore) -> list[Artifact]:
    paths = (store.home / "artifacts").glob(f"*/*/{MANIFEST}")
    return [a for p in paths if (a := store.find(p.parent.parent.name, p.parent.name)) is not None]


def _created(artifact: Artifact) -> float:
    return artifact.manifest.created or (artifact.path / MANIFEST).stat().st_mtime


def _time_of(folder: Path) -> float:
    """When a finished artifact was made; when an unfinished one was last written to."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
        return manifest.created or (folder / MANIFEST).stat().st_mtime
    except (OSError, ValidationError):
        return max((p.stat().st_mtime for p in (folder, *folder.rglob("*"))), default=0.0)


def log_held(home: Path) -> AbstractContextManager[None]:
    """The event log of a home, if it has one, kept from others who rewrite it (compaction)."""
    log = Path(home) / EVENT_LOG
    return event_log.rewriting(log) if log.is_dir() else nullcontext()


def _old_days(log: Path, config: RetentionConfig, now: float, sources: set[str]) -> tuple[list[Path], list[Path]]:
    """(days of the event log that may go, old days that something kept was made from)."""
    old = sorted(p for p in log.glob("date=*") if p.is_dir() and _age(p, now) > config.event_log_days)
    held = [p for p in old if any(file_hash(f) in sources for f in p.rglob("*.parquet"))]
    return [p for p in old if p not in held], held


def _age(day: Path, now: float) -> float:
    """Days since the end of a day `date=YYYY-MM-DD` (UTC). A folder of another name has age 0."""
    try:
        start = date.fromisoformat(day.name.removeprefix("date="))
    except ValueError:
        return 0.0
    return (now - datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) / 86400 - 1


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
