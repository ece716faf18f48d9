"""One user in the files of a home: which rows are theirs, an artifact or a file without them, and where their id still stands as bytes.

Choices: a row is the user's if a column of user ids holds the id, whatever the table; of quarantine, if the raw row begins with it or, where the id is
distinctive, holds it as a word. An array with one row per user (`POSITIONAL`) loses the row that the user has in the histories it was made from.
An artifact is rewritten beside itself (files that don't change are linked, the manifest is written last) and the two folders change places, so readers find
a whole artifact at every moment; what a kill leaves behind is put right by `recover`. Published versions are never rewritten: their checksums are their worth.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ugt.artifacts import MANIFEST, QUARANTINE, Artifact, ArtifactStore, Erasures, Manifest, file_hash, write_text
from ugt.stores.erasure import is_distinctive, raw_patterns, word_of

USER_COLUMNS = ("user_id", "userId", "user")
POSITIONAL = {"baselines": ("segment_of_user.npy",)}  # row u belongs to user u of the step's histories
CATALOGUE_SOURCES = re.compile(r"title\..*|name\.basics|movies|links|texts|titles")  # source tables without users
# no text inside, or packed text, in which bytes say nothing: those with tables are read by their columns
NOT_SEARCHED = {".parquet", ".npy", ".npz", ".safetensors", ".onnx", ".gz", ".zip", ".pt", ".bin", ".png", ".lock"}
ASIDE, OLD = ".erasing", ".erased"


# --- which rows


def rows_in(path: Path, user_id: str) -> int:
    """Rows of a Parquet or CSV file that are about the user, read in full; 0 for any other file and for tables without users."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        columns = _columns(file.schema_arrow)
        return sum(int(_about(file.read_row_group(g, columns), user_id).sum()) for g in range(file.num_row_groups)) if columns else 0
    if path.suffix == ".csv":
        return sum(mine for _, mine in _csv_lines(path, user_id))
    return 0


def _columns(schema: pa.Schema) -> list[str]:
    """The columns that decide whose a row is; none in a table without users."""
    named = [c for c in USER_COLUMNS if c in schema.names]
    return named + (["table", "raw", "reason"] if set(QUARANTINE.names) <= set(schema.names) else [])


def _about(rows: pa.Table, user_id: str) -> np.ndarray:
    mine = np.zeros(rows.num_rows, bool)
    for name in USER_COLUMNS:
        if name in rows.schema.names:
            mine |= np.asarray(pc.fill_null(pc.equal(rows[name].cast(pa.string()), user_id), False))
    if {"table", "raw", "reason"} <= set(rows.schema.names):
        word, anywhere = word_of(user_id), is_distinctive(user_id)
        for i, (table, raw, reason) in enumerate(zip(*(rows[n].to_pylist() for n in ("table", "raw", "reason")), strict=True)):
            text = (raw or "").lstrip("\"' ").encode()
            first = not CATALOGUE_SOURCES.fullmatch(table or "") and word.match(text)
            mine[i] |= bool(first or (anywhere and (word.search(text) or word.search((reason or "").encode()))))
    return mine


def _csv_lines(path: Path, user_id: str) -> Iterator[tuple[bytes, bool]]:
    """Lines of a CSV file and whether each is the user's. A file whose header names no user holds none."""
    name = user_id.encode()
    with open(path, "rb") as f:
        header = f.readline()
        columns = next(csv.reader([header.decode("utf-8-sig", errors="replace")]), [])
        at = next((columns.index(c) for c in USER_COLUMNS if c in columns), None)
        yield header, False
        if at is not None:
            for line in f:
                yield line, name in line and next(csv.reader([line.decode(errors="replace")]), [])[at : at + 1] == [user_id]


def user_row(artifact: Artifact, store: ArtifactStore, user_id: str) -> int | None:
    """The row of the user in the artifact's arrays of users; None if it has none, or if the row is gone already."""
    histories = store.find("histories", artifact.manifest.inputs.get("histories", "-"))
    files = [artifact.path / f for f in POSITIONAL.get(artifact.manifest.step, ()) if (artifact.path / f).is_file()]
    if histories is None or not files:
        return None
    ids = pa.chunked_array(
        [pq.read_table(f, columns=["user_id"])["user_id"].combine_chunks() for f in sorted((histories.path / "histories").glob("*.parquet"))]
    )
    row = pc.index(ids, user_id).as_py()
    # shorter than the histories: the user was taken out of it by an erasure that was stopped before it reached the histories
    return row if row >= 0 and len(np.load(files[0], mmap_mode="r")) == len(ids) else None


# --- without them


def rewrite_file(source: Path, target: Path, user_id: str) -> int:
    """`target` becomes `source` without the user's rows, flushed to disk; returns how many there were."""
    gone = 0
    if source.suffix == ".parquet":
        file = pq.ParquetFile(source)
        packed = file.metadata.row_group(0).column(0).compression if file.num_row_groups and file.metadata.num_columns else "ZSTD"
        with pq.ParquetWriter(target, file.schema_arrow, compression=packed) as writer:
            for g in range(file.num_row_groups):
                rows = file.read_row_group(g)
                mine = _about(rows, user_id)
                gone += int(mine.sum())
                writer.write_table(rows.filter(pa.array(~mine)))
    else:
        with open(target, "wb") as out:
            for line, theirs in _csv_lines(source, user_id):
                gone += theirs
                if not theirs:
                    out.write(line)
    with open(target, "rb") as f:
        os.fsync(f.fileno())
    return gone


def rewrite_loose(path: Path, user_id: str) -> int:
    """A file that belongs to no finished artifact, replaced by itself without the user's rows."""
    aside = path.with_name(f"{path.name}{ASIDE}")
    gone = rewrite_file(path, aside, user_id)
    os.replace(aside, path)
    return gone


def rewrite_artifact(artifact: Artifact, user_id: str, row: int | None) -> int:
    """A finished artifact without the user's rows (and row `row` of its arrays of users), under a manifest that fits; returns how many rows went."""
    path = artifact.path
    aside = path.with_name(path.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    gone, changed = 0, []
    arrays = POSITIONAL.get(artifact.manifest.step, ())
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p != path / MANIFEST):
        name = str(file.relative_to(path))
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        if row is not None and name in arrays:
            np.save(aside / name, np.delete(np.load(file), row, axis=0))
            gone += 1
        elif rows_in(file, user_id):
            gone += rewrite_file(file, aside / name, user_id)
        else:
            _link(file, aside / name)
            continue
        changed.append(name)
    write_text(aside / MANIFEST, _without(artifact.manifest, aside, changed, gone).model_dump_json(indent=1))
    _exchange(aside, path)
    shutil.rmtree(aside)
    return gone


def _without(manifest: Manifest, folder: Path, changed: list[str], rows: int) -> Manifest:
    sizes = {name: (folder / name).stat().st_size for name in changed}
    hashes = {name: file_hash(folder / name) for name in changed} if manifest.hashes else {}
    so_far = manifest.erased or Erasures(users=0, rows=0, last=0)
    erased = Erasures(users=so_far.users + 1, rows=so_far.rows + rows, last=time.time())
    return manifest.model_copy(update={"files": manifest.files | sizes, "hashes": manifest.hashes | hashes, "erased": erased})


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(source, target)  # a file system without hard links


def _exchange(new: Path, path: Path) -> None:
    """`new` and `path` change places: in one operation where the kernel can (renameat2, Linux 3.15), else by two that `recover` puts right."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        call = None
    if call is not None and call(-100, os.fsencode(new), -100, os.fsencode(path), 2) == 0:  # AT_FDCWD, RENAME_EXCHANGE
        return
    old = path.with_name(path.name + OLD)
    os.replace(path, old)
    os.replace(new, path)
    os.replace(old, new)


def recover(home: Path) -> None:
    """Put right what an erasure that was killed left behind: the whole artifact stays, its double goes."""
    for aside in [p for mark in (ASIDE, OLD) for p in home.rglob(f"*{mark}")]:
        path = aside.with_name(aside.name.removesuffix(ASIDE).removesuffix(OLD))
        if aside.is_file():
            aside.unlink()
        elif not path.exists() and (aside / MANIFEST).is_file():
            os.replace(aside, path)
        else:
            shutil.rmtree(aside)


# --- as bytes


def search(files: list[Path], user_id: str) -> tuple[dict[Path, int], int]:
    """(how often each file holds the id as a word, how many files were searched). Files of packed tables and of numbers are not.

    An id that is not distinctive is only searched as Redis writes it to its append-only file: the number 1 stands in every file.
    """
    found: dict[Path, int] = {}
    anywhere = is_distinctive(user_id)
    patterns: list[Any] = [word_of(user_id)] if anywhere else raw_patterns(user_id)
    looked = [f for f in files if f.suffix not in NOT_SEARCHED and f.is_file() and f.stat().st_size and (anywhere or f.suffix == ".aof")]
    for path in looked:
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as view:
            # the plain search is many times faster and finds nothing in nearly every file
            hits = sum(len(p.findall(view)) for p in patterns) if view.find(user_id.encode()) >= 0 else 0
        if hits:
            found[path] = hits
    return found, len(looked)
