"""Delimited files as raw rows of text: the reader under every source. Rows that can't be cut into columns carry the reason instead.

A raw row is (part, table, row, reason, raw, c0..c8): the columns a loader asked for, still text, and the number of the data row in its
file (1 = first after the header). `part` is a hash of the row's key, so that rows of one key meet in one block after a shuffle.

Choices: a file is streamed in chunks of whole lines and each chunk is parsed by Arrow; a chunk that Arrow can't take as one row
per line (broken UTF-8, a quote that swallows line ends, `::`) goes line by line, with the same result. A file that ends in the middle
gives one row of the table FATAL: the step that reads it fails with a sentence instead of a trace from a worker.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from ugt.schema import UGTError

FATAL = "!fatal"
MAX_CELLS = 9
RAW = pa.schema(
    [("part", pa.int32()), ("table", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())]
    + [(f"c{i}", pa.string()) for i in range(MAX_CELLS)]
)
CHUNK = 8 << 20
CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
RAW_LIMIT = 1000  # characters of a bad row that are kept
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)

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
    key_of: dict[str, str] = field(default_factory=dict)  # replaces a key by the one it is joined on

    @property
    def name(self) -> str:
        return f"{Path(self.path).name}/{self.member}" if self.member else Path(self.path).name

    def open(self) -> IO[bytes]:
        if self.member:
            return zipfile.ZipFile(self.path).open(self.member)
        with open(self.path, "rb") as f:
            packed = f.read(2) == b"\x1f\x8b"
        return gzip.open(self.path, "rb") if packed else open(self.path, "rb")  # type: ignore[return-value]


def file_columns(source: SourceFile) -> list[str]:
    """The columns of the file, by its header or by definition.

    Raises UGTError naming the file if it isn't there, is empty, is cut off or lacks a column.
    """
    try:
        with source.open() as f:
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


def read(source: SourceFile, parts: int) -> Iterator[pa.Table]:
    """The file's rows as tables of RAW. The header must have been checked (`file_columns`)."""
    columns = file_columns(source)
    done = 0
    try:
        with source.open() as f:
            if source.header:
                f.readline()
            for chunk in _chunks(f):
                lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
                table = None if source.dialect in ("colons", "sequence") else _parse_fast(source, columns, chunk, lines)
                if table is None:
                    table = _parse_slow(source, columns, chunk)
                yield _finish(source, table, done, parts)
                done += lines
    except BROKEN as error:
        message = f"{source.name} ends in the middle of a record after row {done:,} ({error}): a cut-off download? Fetch it again."
        yield pa.table(
            {"part": [0], "table": [FATAL], "row": [done], "reason": [message], "raw": [None]} | {f"c{i}": [None] for i in range(MAX_CELLS)}, schema=RAW
        )


def _chunks(f: IO[bytes]) -> Iterator[bytes]:
    """Pieces of about CHUNK bytes that end with a line. A file that is cut off gives its whole lines first, then the error."""
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            block = f.read1(1 << 20)  # type: ignore[attr-defined]
        except BROKEN:
            whole = b"".join(pieces)
            if b"\n" in whole:
                yield whole[: whole.rfind(b"\n") + 1]
            raise
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


def _parse_fast(source: SourceFile, columns: list[str], chunk: bytes, lines: int) -> pl.DataFrame | None:
    """(row, reason, raw, c...) by Arrow, or None where Arrow doesn't see one row per line."""
    bad: list[tuple[int, str, str]] = []

    def on_bad(row: pyarrow.csv.InvalidRow) -> str:
        bad.append((row.number or 0, f"{row.actual_columns} columns instead of {row.expected_columns}", row.text))
        return "skip"

    tsv = source.dialect == "tsv"
    if tsv and b"\r" in chunk.replace(b"\r\n", b""):
        return None  # Arrow takes a bare carriage return for a line end
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(chunk),
            read_options=pyarrow.csv.ReadOptions(column_names=columns, use_threads=False, block_size=len(chunk) + 1, encoding=source.encoding),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if tsv else ",", quote_char=False if tsv else '"', double_quote=not tsv, ignore_empty_lines=True, invalid_row_handler=on_bad
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={c: pa.string() for c in columns},
                null_values=["\\N"] if tsv else [""],
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
    good = pl.DataFrame(pl.from_arrow(table.rename_columns([f"c{i}" for i in range(len(source.columns))]))).with_columns(row=pl.Series(good_rows))
    worse = pl.DataFrame(bad, schema={"row": pl.Int64, "reason": pl.String, "raw": pl.String}, orient="row")
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
            rows += _sequence(text, number)
            continue
        cells = _cut(source.dialect, text)
        if len(cells) != len(columns):
            reason = "empty line" if not text else f"{len(cells or [''])} columns instead of {len(columns)}"
            rows.append({"row": number, "reason": reason, "raw": text})
            continue
        null = "\\N" if source.dialect == "tsv" else ""
        rows.append({"row": number, **{f"c{i}": None if cells[a] == null else cells[a] for i, a in enumerate(at)}})
    schema = {"row": pl.Int64, "reason": pl.String, "raw": pl.String} | {f"c{i}": pl.String for i in range(len(source.columns))}
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


def _sequence(text: str, line: int) -> list[dict[str, Any]]:
    """`user item item ...`: one row per interaction (user, item, position)."""
    user, *items = text.split() or [""]
    if not user or not items:
        return [{"row": line, "reason": "a line must be a user and at least one item" if user else "empty line", "raw": text}]
    return [{"row": line, "c0": user, "c1": item, "c2": str(position)} for position, item in enumerate(items)]


def _finish(source: SourceFile, frame: pl.DataFrame, before: int, parts: int) -> pa.Table:
    """Row numbers of the file, control characters as a reason, the partition."""
    names = [f"c{i}" for i in range(len(source.columns))]
    frame = frame.with_columns(pl.lit(None, pl.String).alias(c) for c in ("reason", "raw") if c not in frame.columns)
    cells = pl.concat_str([pl.col(n).fill_null("\\N") for n in names], separator="\t")
    control = pl.any_horizontal([pl.col(n).str.contains(CONTROL).fill_null(False) for n in names])
    empty = (pl.col(f"c{source.columns.index(source.key)}").fill_null("") == "") & pl.col("reason").is_null()
    frame = frame.with_columns(
        reason=pl.when(control).then(pl.lit("control characters")).when(empty).then(pl.lit(f"{source.key} is missing")).otherwise(pl.col("reason")),
        raw=pl.when(control | empty).then(cells).otherwise(pl.col("raw")).str.slice(0, RAW_LIMIT),
    )
    key = pl.col(f"c{source.columns.index(source.key)}").fill_null("")
    if source.key_of:
        key = key.replace(list(source.key_of), list(source.key_of.values()))
    frame = frame.with_columns(part=(key.hash(seed=0) % parts).cast(pl.Int32), table=pl.lit(source.table), row=pl.col("row") + before)
    frame = frame.with_columns(pl.lit(None, pl.String).alias(f"c{i}") for i in range(len(names), MAX_CELLS))
    return frame.select(RAW.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(RAW)
