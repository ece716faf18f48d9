"""Delimited files as raw rows of text: the reader under every source. Rows that can't be cut into columns carry the reason instead.

A raw row is (part, table, row, reason, raw, c0..c8): the columns a loader asked for, still text, and the number of the data row in its
file (1 = first after the header). `part` is a hash of the row's key, so that rows of one key meet in one block after a shuffle.

Choices: a file is streamed in chunks of whole lines. Of a TSV chunk the lines that are no rows (broken UTF-8, control characters, tabs missing or too
many) are found by looking at its bytes at once and taken out; the rest is parsed by polars. A CSV chunk that Arrow can't take as one row per line (a quote that
swallows line ends) and the other dialects go line by line, with the same result. A file that ends in the middle or changes while it is read gives one
row of the table FATAL: the step that reads it fails with a sentence instead of a trace from a worker.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
from isal import igzip, isal_zlib

from ugt.schema import UGTError

FATAL = "!fatal"
MAX_CELLS = 9
RAW = pa.schema(
    [("part", pa.int32()), ("table", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())]
    + [(f"c{i}", pa.string()) for i in range(MAX_CELLS)]
)
CHUNK = 16 << 20
CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
BAD_ROW: dict[str, Any] = {"row": pl.Int64, "reason": pl.String, "raw": pl.String}
RAW_LIMIT = 1000  # characters of a bad line that are kept
BROKEN = (EOFError, zlib.error, cast("type[Exception]", isal_zlib.IsalError), gzip.BadGzipFile, zipfile.BadZipFile)


class Unreadable(UGTError):
    """A file that could not be read to its end; `row` is the last one that was."""

    def __init__(self, message: str, row: int):
        super().__init__(message)
        self.row = row


Dialect = Literal["tsv", "csv", "colons", "sequence"]


@dataclass(frozen=True)
class SourceFile:
    """One file of a source and how to read it. `columns` are the ones wanted, in the order of the cells; `key` is one of them."""

    table: str
    path: str
    columns: tuple[str, ...]
    key: str
    dialect: Dialect
    member: str | None = None  # inside a zip
    header: bool = True
    encoding: str = "utf-8"

    @property
    def name(self) -> str:
        return f"{Path(self.path).name}/{self.member}" if self.member else Path(self.path).name

    def open(self, unpack: Any = igzip.open) -> IO[bytes]:
        if self.member:
            return zipfile.ZipFile(self.path).open(self.member)
        with open(self.path, "rb") as f:
            packed = f.read(2) == b"\x1f\x8b"
        return unpack(self.path, "rb") if packed else open(self.path, "rb")  # type: ignore[return-value]


def file_columns(source: SourceFile) -> list[str]:
    """The columns of the file, by its header or by definition.

    Raises UGTError naming the file if it isn't there, is empty, is cut off or lacks a column.
    """
    try:
        with source.open(gzip.open) as f:
            if not source.header:
                return list(source.columns)
            first = f.readline()
    except FileNotFoundError as error:
        raise UGTError(f"{source.path} does not exist. Check --data-dir and --imdb-dir.") from error
    except BROKEN as error:
        raise UGTError(f"{source.name} can't be unpacked ({error}): it is cut off or not what its name says. Fetch it again.") from error
    text = first.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    columns = text.split("\t") if source.dialect == "tsv" else next(csv.reader([text]), [])
    missing = [c for c in source.columns if c not in columns]
    if missing:
        found = ", ".join(columns)[:200] or "nothing (the file is empty)"
        raise UGTError(
            f"{source.name} has other columns: {', '.join(missing)} missing, found {found}. Check that the file is what its name says ({source.path})."
        )
    return columns


def chunks(source: SourceFile) -> Iterator[tuple[int, bytes]]:
    """(rows before it, bytes) of each piece of about CHUNK bytes, whole lines without the header, which must have been checked (`file_columns`).

    Raises Unreadable naming the file and the last good row if it ends in the middle of a record or is changed while it is read.
    """
    before, done = _stamp(source.path), 0
    try:
        with source.open() as f:
            if source.header:
                f.readline()
            for chunk in _chunks(f):
                yield done, chunk
                done += chunk.count(b"\n") + (not chunk.endswith(b"\n"))
    except BROKEN as error:
        done = _whole_rows(source)
        raise Unreadable(f"{source.name} ends in the middle of a record after row {done:,} ({error}): a cut-off download? Fetch it again.", done) from error
    if _stamp(source.path) != before:
        raise Unreadable(f"{source.name} was changed while it was read, up to row {done:,}. Wait until it is whole, then run the command again.", done)


def _whole_rows(source: SourceFile) -> int:
    """Rows in front of the place where a file breaks off; the fast unpacker gives less of its last block than there is."""
    lines = 0
    with contextlib.suppress(*BROKEN), source.open(gzip.open) as f:
        while block := f.read1(1 << 16):  # type: ignore[attr-defined]
            lines += block.count(b"\n")
    return max(0, lines - source.header)


def _stamp(path: str) -> tuple[int, int, int]:
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def parse(source: SourceFile, columns: list[str], chunk: bytes, before: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(good, bad) rows of a chunk: `row` and the wanted columns as text, null where the dialect says so; the others as `row, reason, raw`.

    columns: all of the file. before: rows of the file in front of the chunk.
    """
    if source.dialect == "tsv":
        good, bad = _parse_tsv(source, columns, chunk)
    else:
        table = _parse_fast(source, columns, chunk) if source.dialect == "csv" else None
        good, bad = _apart(source, table if table is not None else _parse_slow(source, columns, chunk))
    number = (pl.col("row") + before).cast(pl.Int64)
    return good.with_columns(row=number), bad.select(row=number, reason="reason", raw=pl.col("raw").str.slice(0, RAW_LIMIT))


def whole(source: SourceFile) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(good, bad) of a file that is small by its nature, such as a list of movies. Raises UGTError as `file_columns` and `chunks`."""
    columns = file_columns(source)
    parts = [parse(source, columns, chunk, before) for before, chunk in chunks(source)]
    parts.append((pl.DataFrame(schema={"row": pl.Int64} | dict.fromkeys(source.columns, pl.String)), pl.DataFrame(schema=BAD_ROW)))
    return pl.concat([good.select(parts[-1][0].columns) for good, _ in parts]), pl.concat([bad for _, bad in parts])


def read(source: SourceFile, parts: int) -> Iterator[pa.Table]:
    """The file's rows as tables of RAW. The header must have been checked (`file_columns`)."""
    columns = file_columns(source)
    cells, key = {name: f"c{i}" for i, name in enumerate(source.columns)}, pl.col(source.key)
    try:
        for before, chunk in chunks(source):
            good, bad = parse(source, columns, chunk, before)
            lost = good.filter(key.is_null() | (key == "")).select("row", reason=pl.lit(f"{source.key} is missing"), raw=_rejoined(source))
            good = good.filter(key.is_not_null() & (key != ""))
            yield _finish(source, pl.concat([good.rename(cells), bad, lost], how="diagonal"), parts)
    except Unreadable as error:
        why = {"part": [0], "table": [FATAL], "row": [error.row], "reason": [str(error)], "raw": [None]}
        yield pa.table(why | {f"c{i}": [None] for i in range(MAX_CELLS)}, schema=RAW)


def _chunks(f: IO[bytes]) -> Iterator[bytes]:
    """Pieces of about CHUNK bytes that end with a line."""
    pieces: list[bytes] = []
    size = 0
    while True:
        block = f.read1(1 << 20)  # type: ignore[attr-defined]
        if not block:
            break
        cut = block.rfind(b"\n") + 1
        if cut and size + cut >= CHUNK:
            yield b"".join([*pieces, block[:cut]])
            pieces, size, block = [], 0, block[cut:]
        pieces.append(block)
        size += len(block)
    if size:
        yield b"".join(pieces)


def _parse_tsv(source: SourceFile, columns: list[str], chunk: bytes) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(good, bad) by looking at the bytes: lines are ended by LF or CRLF, a row has one tab less than columns."""
    if b"\r" in chunk:
        chunk = chunk.replace(b"\r\n", b"\n")
    data = np.frombuffer(chunk, np.uint8)
    low = np.flatnonzero(data < 32)  # tabs, line ends and control characters, in one look at all bytes
    kind = data[low]
    last = np.flatnonzero(kind == 10)  # of each line, as a place in `low`
    ends = low[last]
    if not chunk.endswith(b"\n"):
        last, ends = np.append(last, len(low)), np.append(ends, len(chunk))
    starts = np.concatenate([[0], ends[:-1] + 1])
    tabs = np.diff(last, prepend=-1) - 1  # control characters count as well; their lines are told apart below
    reasons = {int(i): f"{tabs[i] + 1} columns instead of {len(columns)}" for i in np.flatnonzero(tabs != len(columns) - 1)}
    reasons |= {int(i): "empty line" for i in np.flatnonzero(ends == starts)}
    control = low[(kind != 9) & (kind != 10)]
    if b"\x7f" in chunk:
        control = np.concatenate([control, np.flatnonzero(data == 127)])
    reasons |= {int(i): "control characters" for i in np.unique(np.searchsorted(ends, control))}
    reasons |= dict.fromkeys(_undecodable(chunk, starts, source.encoding), f"not {source.encoding}")
    order = sorted(reasons)
    raw = [chunk[starts[i] : min(int(ends[i]), int(starts[i]) + 4 * RAW_LIMIT)].decode(source.encoding, errors="replace") for i in order]
    bad = pl.DataFrame({"row": [i + 1 for i in order], "reason": [reasons[i] for i in order], "raw": raw}, schema=BAD_ROW)
    rows = np.setdiff1d(np.arange(1, len(ends) + 1), np.array(order, np.int64) + 1, assume_unique=True)
    if not len(rows):
        return pl.DataFrame(schema={"row": pl.Int64} | dict.fromkeys(source.columns, pl.String)), bad
    if order:
        cuts = [0, *(x for i in order for x in (int(starts[i]), min(int(ends[i]) + 1, len(chunk)))), len(chunk)]
        chunk = b"".join(chunk[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True))
    frame = pl.read_csv(
        chunk if source.encoding == "utf-8" else chunk.decode(source.encoding).encode(),
        has_header=False,
        separator="\t",
        quote_char=None,
        null_values="\\N",
        empty_string_is_null=False,
        schema=dict.fromkeys(columns, pl.String),
        columns=[columns.index(c) for c in source.columns],
    )
    return frame.select(*source.columns).with_columns(row=pl.Series(rows)), bad


def _undecodable(chunk: bytes, starts: np.ndarray, encoding: str) -> list[int]:
    """The lines of a chunk that are not text in this encoding."""
    if encoding != "utf-8":  # the others that a source may name take every byte
        return []
    offsets = pa.py_buffer(np.append(starts, len(chunk)).astype(np.int64))
    lines = pa.Array.from_buffers(pa.large_binary(), len(starts), [None, offsets, pa.py_buffer(chunk)])
    found: list[int] = []
    step = -(-len(starts) // 256)
    for first in range(0, len(starts), step):  # Arrow judges many lines at once but does not say which is wrong
        some = lines.slice(first, step)
        try:
            some.cast(pa.large_string())
        except pa.ArrowInvalid:
            found += [first + i for i, line in enumerate(some.to_pylist()) if not _decodes(line)]
    return found


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _apart(source: SourceFile, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(good, bad) of rows (row, reason, raw, wanted columns); control characters are one more reason."""
    control = pl.any_horizontal([pl.col(c).str.contains(CONTROL).fill_null(False) for c in source.columns])
    frame = frame.with_columns(pl.lit(None, pl.String).alias(c) for c in ("reason", "raw") if c not in frame.columns)
    worse = frame.filter(control & pl.col("reason").is_null())
    bad = pl.concat(
        [frame.filter(pl.col("reason").is_not_null()).select(*BAD_ROW), worse.select("row", reason=pl.lit("control characters"), raw=_rejoined(source))]
    )
    return frame.filter(pl.col("reason").is_null() & ~control).select("row", *source.columns), bad


def _rejoined(source: SourceFile) -> pl.Expr:
    return pl.concat_str([pl.col(c).fill_null("\\N") for c in source.columns], separator="\t")


def _parse_fast(source: SourceFile, columns: list[str], chunk: bytes) -> pl.DataFrame | None:
    """(row, reason, raw, wanted columns) of a CSV chunk by Arrow, or None where Arrow doesn't see one row per line."""
    lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
    bad: list[tuple[int, str, str]] = []

    def on_bad(row: pyarrow.csv.InvalidRow) -> str:
        bad.append((row.number or 0, f"{row.actual_columns} columns instead of {row.expected_columns}", row.text))
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(chunk),
            read_options=pyarrow.csv.ReadOptions(column_names=columns, use_threads=False, block_size=len(chunk) + 1, encoding=source.encoding),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=True, invalid_row_handler=on_bad),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={c: pa.string() for c in columns},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                include_columns=list(source.columns),
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows + len(bad) != lines or any(number == 0 for number, *_ in bad):
        return None
    bad_rows = np.array([number for number, *_ in bad], np.int64)
    good_rows = np.setdiff1d(np.arange(1, lines + 1), bad_rows)
    good = pl.DataFrame(pl.from_arrow(table)).with_columns(row=pl.Series(good_rows))
    worse = pl.DataFrame(bad, schema=BAD_ROW, orient="row")
    return pl.concat([good, worse], how="diagonal")


def _parse_slow(source: SourceFile, columns: list[str], chunk: bytes) -> pl.DataFrame:
    """The same by hand, line by line."""
    at = [columns.index(c) for c in source.columns]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(chunk.removesuffix(b"\n").split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        try:
            text = line.decode(source.encoding)
        except UnicodeDecodeError:
            rows.append({"row": number, "reason": f"not {source.encoding}", "raw": line.decode(source.encoding, errors="replace")})
            continue
        if source.dialect == "sequence":
            rows += _sequence(source, text, number)
            continue
        cells = _cut(source.dialect, text)
        if len(cells) != len(columns):
            reason = "empty line" if not text else f"{len(cells or [''])} columns instead of {len(columns)}"
            rows.append({"row": number, "reason": reason, "raw": text})
            continue
        null = "\\N" if source.dialect == "tsv" else ""
        rows.append({"row": number, **{name: None if cells[a] == null else cells[a] for name, a in zip(source.columns, at, strict=True)}})
    schema = BAD_ROW | dict.fromkeys(source.columns, pl.String)
    return pl.DataFrame(rows, schema=schema)


def _cut(dialect: Dialect, text: str) -> list[str]:
    if dialect == "tsv":
        return text.split("\t")
    if dialect == "colons":
        return text.split("::")
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error:
        return []


def _sequence(source: SourceFile, text: str, line: int) -> list[dict[str, Any]]:
    """`user item item ...`: one row per interaction (user, item, position)."""
    user, *items = text.split() or [""]
    if not user or not items:
        return [{"row": line, "reason": "a line must be a user and at least one item" if user else "empty line", "raw": text}]
    return [{"row": line, **dict(zip(source.columns, (user, item, str(position)), strict=True))} for position, item in enumerate(items)]


def _finish(source: SourceFile, frame: pl.DataFrame, parts: int) -> pa.Table:
    """The partition of each row, and every column of RAW."""
    key = pl.col(f"c{source.columns.index(source.key)}").fill_null("")
    frame = frame.with_columns(part=(key.hash(seed=0) % parts).cast(pl.Int32), table=pl.lit(source.table))
    frame = frame.with_columns(pl.lit(None, pl.String).alias(f"c{i}") for i in range(len(source.columns), MAX_CELLS))
    return frame.select(RAW.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(RAW)
