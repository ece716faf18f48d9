"""Files of IMDb's size and form for benchmarks of the ETL: written piece by piece, with broken rows whose number is known.

Genuine format (tabs, `\\N`, no quoting, UTF-8, header, sorted as IMDb sorts), rows from `synthetic_imdb_tables`; gzip level 1 by ISA-L. One
piece is 100,000 titles (or people), made and written by a generator seeded with (seed, table, piece): memory does not grow with the scale.

Broken rows: 0.1% of the rows of each table, the kinds of `KINDS` in turn, and at least one of each kind if the table has 1,000 rows.
Most are good rows that were spoilt; `duplicate`, `duplicate_far` (at the end of the file) and `empty_line` are added ones. So
rows = good + all broken, where rows are the lines after the header.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from ugt.artifacts import write_text
from ugt.schema import UGTError
from ugt.synthetic import IMDB_HEADERS

VERSION = 1  # of what the files hold
FIGURES = "generated.json"
PIECE = 100_000
BROKEN_SHARE = 0.001
BYTES = 3_200_000_000  # of the seven files at scale 1: 2.9 GB (ten times what was written at .1), and some room
ORDER = ("title.principals", "title.akas", "title.basics", "name.basics", "title.crew", "title.episode", "title.ratings")  # the longest first
TEXT = {"title.basics": 2, "title.akas": 2, "name.basics": 1, "title.principals": 5}  # column of free text; the key where there is none
NUMBER = {"title.basics": 5, "title.ratings": 2, "title.principals": 1, "title.akas": 1, "title.episode": 2, "name.basics": 2}
MINUTES = {"title.basics": 7}

Cells = list[bytes]


def write_at_scale(scale: float, seed: int, out_dir: Path, processes: int = 2) -> dict[str, Any]:
    """The seven TSVs in `out_dir` at `scale` times IMDb's size (1 = 12 million titles, 93 million principals, 10 GB of text).

    Returns {scale, seed, version, titles, people, seconds, kept, files: {table: {rows, good, broken: {kind: rows}, bytes}}}. A folder that holds
    these files already is kept (`kept` true). Equal (scale, seed) give equal bytes, whatever the number of processes. One run at a time in a folder.
    More than one process are spawned: a script that calls this needs its `if __name__ == "__main__"`.
    Raises UGTError for a scale outside .0001 to 1, and if the disk is too small.
    """
    if not 0.0001 <= scale <= 1:
        raise UGTError(f"a scale of {scale:g} cannot be generated: between 0.0001 (1,200 titles) and 1 (IMDb's 12 million). Change --scale.")
    out_dir = Path(out_dir)
    done = out_dir / FIGURES
    found = _kept(out_dir, scale, seed)
    if found is not None:
        return found | {"kept": True}
    start = time.monotonic()
    out_dir.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for stale in out_dir.glob("*.tsv.gz.*.tmp"):  # of a run that was killed
        stale.unlink(missing_ok=True)
    free, needed = shutil.disk_usage(out_dir).free, int(BYTES * scale)
    if free < needed:
        raise UGTError(f"the disk of {out_dir} has {free / 1e9:.1f} GB left and the files at scale {scale:g} take {needed / 1e9:.1f} GB. Free some space.")
    try:
        if processes == 1:
            results = [write_table(table, scale, seed, out_dir) for table in ORDER]
        else:
            with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
                results = list(pool.map(write_table, ORDER, [scale] * len(ORDER), [seed] * len(ORDER), [out_dir] * len(ORDER)))
    except BrokenProcessPool as error:
        raise UGTError(
            f"a process that generated files in {out_dir} was killed (out of memory? each takes 0.5 GB). Run it again, or with one process."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UGTError(f"the disk of {out_dir} is full while the files at scale {scale:g} are generated. Free some space.") from error
        raise
    from ugt.synthetic_imdb_tables import World

    world = World(scale, seed)
    files = dict(zip(ORDER, results, strict=True))
    figures: dict[str, Any] = {"scale": scale, "seed": seed, "version": VERSION, "titles": world.titles, "people": world.people}
    figures |= {"seconds": round(time.monotonic() - start, 1), "kept": False, "files": {table: files[table] for table in IMDB_HEADERS}}
    write_text(done, json.dumps(figures, indent=1))
    return figures


def write_table(table: str, scale: float, seed: int, out_dir: Path) -> dict[str, Any]:
    """One file, whole or not at all; returns its {rows, good, broken, bytes}."""
    from isal import igzip

    from ugt.synthetic_imdb_tables import TABLES, World

    world = World(scale, seed)
    total = world.people if table == "name.basics" else world.titles
    number = list(IMDB_HEADERS).index(table)
    kinds = kinds_of(table)
    path = out_dir / f"{table}.tsv.gz"
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rows, broken = 0, Counter(dict.fromkeys(kinds, 0))
    far: list[bytes] = []
    try:
        with open(aside, "wb") as raw, igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as f:
            f.write("\t".join(IMDB_HEADERS[table].split()).encode() + b"\n")
            for piece, start in enumerate(range(0, total, PIECE)):
                rng = np.random.default_rng([seed, 41, number, piece])
                frame = TABLES[table](world, start, min(start + PIECE, total), rng)
                lines = frame.write_csv(include_header=False, separator="\t", quote_style="never", null_value="\\N").encode()
                count = round(frame.height * BROKEN_SHARE)
                if piece == 0 and frame.height >= 1000:
                    count = max(count, len(kinds))
                spoilt_rows = np.sort(rng.choice(frame.height, count, replace=False))
                asked = [kinds[(piece + k) % len(kinds)] for k in range(count)]
                rows += frame.height
                broken.update(asked)
                for part in spoilt(table, lines, spoilt_rows.tolist(), asked, far):
                    f.write(part)
            f.writelines(far)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    added = sum(broken[kind] for kind in ADDED)
    return {"rows": rows + added, "good": rows + added - broken.total(), "broken": dict(broken), "bytes": path.stat().st_size}


def spoilt(table: str, lines: bytes, rows: list[int], kinds: list[str], far: list[bytes]) -> list[memoryview | bytes]:
    """The lines in parts, with `rows` (ascending) spoilt by `kinds`; what belongs to the file's end goes to `far`."""
    ends = np.flatnonzero(np.frombuffer(lines, dtype=np.uint8) == 10)
    view, done = memoryview(lines), 0
    parts: list[memoryview | bytes] = []
    for row, kind in zip(rows, kinds, strict=True):
        start, end = int(ends[row - 1]) + 1 if row else 0, int(ends[row]) + 1
        line = lines[start:end]
        parts.append(view[done:start])
        if kind == "duplicate_far":
            far.append(line)
            parts.append(line)
        elif kind in ADDED:
            parts += [line, line] if kind == "duplicate" else [b"\n", line]
        else:
            parts.append(b"\t".join(SPOILERS[kind](table, line[:-1].split(b"\t"))) + b"\n")
        done = end
    return [*parts, view[done:]]


def kinds_of(table: str) -> list[str]:
    """The kinds of broken rows a table can have (title.crew has no number, only title.basics has a runtime)."""
    return [k for k in KINDS if not (k == "not_a_number" and table not in NUMBER) and not (k == "negative_runtime" and table not in MINUTES)]


def _put(cells: Cells, column: int, value: bytes) -> Cells:
    return [*cells[:column], value, *cells[column + 1 :]]


def _in_text(byte: bytes) -> Callable[[str, Cells], Cells]:
    def spoil(table: str, cells: Cells) -> Cells:
        column = TEXT.get(table, 0)
        text = b'["Self"]' if cells[column] == b"\\N" else cells[column]
        at = 1 if len(text.decode()) == len(text) else 0  # never inside a character of several bytes
        return _put(cells, column, text[:at] + byte + text[at:])

    return spoil


# kind of a spoilt row -> how the cells of a good one become it
SPOILERS: dict[str, Callable[[str, Cells], Cells]] = {
    "missing_column": lambda table, cells: cells[:-1],
    "extra_tab": lambda table, cells: [cells[0], b"", *cells[1:]],
    "not_utf8": _in_text(b"\xff"),
    "key_empty": lambda table, cells: _put(cells, 0, b""),
    "key_null": lambda table, cells: _put(cells, 0, b"\\N"),
    "key_malformed": lambda table, cells: _put(cells, 0, cells[0][:2] + b"XYZ"),
    "not_a_number": lambda table, cells: _put(cells, NUMBER[table], b"19x4"),
    "negative_runtime": lambda table, cells: _put(cells, MINUTES[table], b"-90"),
    "nul": _in_text(b"\x00"),
    "control_character": _in_text(b"\x1b"),
}
ADDED = ("duplicate", "duplicate_far", "empty_line")
KINDS = (*SPOILERS, *ADDED)


def _kept(out_dir: Path, scale: float, seed: int) -> dict[str, Any] | None:
    """The figures of a folder that holds these very files, or None."""
    try:
        figures: dict[str, Any] = json.loads((out_dir / FIGURES).read_text())
        same = [figures[name] for name in ("scale", "seed", "version")] == [scale, seed, VERSION]
        whole = same and all((out_dir / f"{table}.tsv.gz").stat().st_size == figures["files"][table]["bytes"] for table in IMDB_HEADERS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return figures if whole else None


def _one_thread() -> None:
    """Polars in a worker process: read when its pool of threads is first used."""
    os.environ["POLARS_MAX_THREADS"] = "1"
