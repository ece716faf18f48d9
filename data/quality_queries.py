"""What is asked of a whole table: its columns, unique keys, keys of another table, order, and the counts of the run that wrote it.

Choices: a table is a folder of Parquet parts, in order of file name, and no query holds all of it. Each is a lazy polars query over the parts, run
by the streaming engine on the columns it names. Unique keys are sought by 64-bit hashes, and a hash that occurs twice is settled by the keys themselves,
so the answer is exact. Memory: 8 bytes a row for a unique key, the referred-to key columns for a foreign key, one column for an order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow.parquet as pq

from ugt.artifacts import CREDITS, EVENTS, ITEMS, PEOPLE, QUARANTINE, USERS

SCHEMAS = {"items": ITEMS, "people": PEOPLE, "credits": CREDITS, "users": USERS, "events": EVENTS, "quarantine": QUARANTINE}
CANONICAL = ("items", "people", "credits", "users", "events")
EXAMPLES = 5
ROW = "row"  # the row's number in its table, from 0


@dataclass(frozen=True)
class Finding:
    """What a rule found: rows (or tables) looked at, those that break it, and the first of them."""

    rows: int
    failed: int
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Tables:
    """The canonical tables of one run of the ETL, and its figures."""

    folder: Path
    figures: Mapping[str, Any]

    def parts(self, table: str) -> list[Path]:
        return sorted((self.folder / table).glob("*.parquet"))

    def scan(self, table: str) -> pl.LazyFrame:
        """All rows, with their number in the table as ROW."""
        return pl.scan_parquet(self.parts(table), row_index_name=ROW, glob=False)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows of each table, from the files' footers."""
        return {table: sum(pq.read_metadata(part).num_rows for part in self.parts(table)) for table in SCHEMAS}


class Query(Protocol):
    """A question about a table as a whole."""

    def ask(self, tables: Tables, table: str) -> Finding: ...


@dataclass(frozen=True)
class HasRows:
    def ask(self, tables: Tables, table: str) -> Finding:
        rows = tables.rows[table]
        return Finding(rows, int(rows == 0))


@dataclass(frozen=True)
class Unique:
    """No two rows have the same key; a key with a null is none. `where`: only these rows."""

    columns: tuple[str, ...]
    where: pl.Expr | None = None

    def ask(self, tables: Tables, table: str) -> Finding:
        frame = tables.scan(table).drop_nulls(list(self.columns))
        if self.where is not None:
            frame = frame.filter(self.where)
        hashed = pl.struct(self.columns).hash(seed=0).alias("hash")
        # sorted, equal hashes are neighbours: no table of 8-byte groups beside the 8 bytes a row
        hashes = frame.select(hashed).collect(engine="streaming")["hash"].sort()
        twice = hashes.filter(hashes == hashes.shift(1)).unique()
        if twice.is_empty():
            return Finding(len(hashes), 0)
        suspects = frame.filter(hashed.is_in(twice.implode())).select(ROW, *self.columns).collect(engine="streaming").sort(ROW)
        again = suspects.filter(~pl.struct(self.columns).is_first_distinct())
        both = suspects.join(again.head(EXAMPLES).select(self.columns).unique(), on=list(self.columns), how="semi", maintain_order="left")
        return Finding(len(hashes), again.height, shown(both))


@dataclass(frozen=True)
class Refers:
    """The columns of every row are a row of another table (`to`); a key that is null throughout refers to nothing and is let pass."""

    columns: tuple[str, ...]
    to: str

    def ask(self, tables: Tables, table: str) -> Finding:
        columns = list(self.columns)
        given = tables.scan(table).filter(~pl.all_horizontal(pl.col(columns).is_null()))
        lost = given.select(ROW, *columns).join(tables.scan(self.to).select(columns), on=columns, how="anti")
        counted, first = pl.collect_all([lost.select(pl.len()), lost.bottom_k(EXAMPLES, by=ROW).sort(ROW)], engine="streaming")
        return Finding(tables.rows[table], int(counted.item()), shown(first))


@dataclass(frozen=True)
class Ascending:
    """Each row's value is above the one before, across parts too."""

    column: str

    def ask(self, tables: Tables, table: str) -> Finding:
        column = pl.col(self.column)
        out = tables.scan(table).select(ROW, self.column).filter(column <= column.shift(1)).collect(engine="streaming")
        return Finding(tables.rows[table], out.height, shown(out))


@dataclass(frozen=True)
class Balanced:
    """Each source table: rows in = rows out + filtered + duplicate + quarantined."""

    def ask(self, tables: Tables, table: str) -> Finding:
        counts = tables.figures["tables"]
        off = [
            {"source": name} | n
            for name, n in counts.items()
            if n["rows_in"] != n["rows_out"] + n["rows_filtered"] + n["rows_duplicate"] + n["rows_quarantined"]
        ]
        return Finding(len(counts), len(off), off[:EXAMPLES])


@dataclass(frozen=True)
class Written:
    """Each canonical table holds as many rows as the run says it wrote."""

    def ask(self, tables: Tables, table: str) -> Finding:
        said = {name: tables.figures[name] for name in CANONICAL if name in tables.figures}
        off = [{"table": name, "said": n, "in_files": tables.rows[name]} for name, n in said.items() if n != tables.rows[name]]
        return Finding(len(said), len(off), off)


@dataclass(frozen=True)
class QuarantineKept:
    """The quarantine holds every row that the accounting says went there."""

    def ask(self, tables: Tables, table: str) -> Finding:
        said = sum(n["rows_quarantined"] for n in tables.figures["tables"].values())
        missing = abs(said - tables.rows["quarantine"])
        return Finding(said, missing, [{"said": said, "in_files": tables.rows["quarantine"]}] if missing else [])


@dataclass(frozen=True)
class FewQuarantined:
    """No source table lost more than this share of its rows to quarantine."""

    share: float

    def ask(self, tables: Tables, table: str) -> Finding:
        counts = tables.figures["tables"]
        off = [
            {"source": name, "quarantined": n["rows_quarantined"], "of": n["rows_in"]}
            for name, n in counts.items()
            if n["rows_quarantined"] > self.share * n["rows_in"]
        ]
        return Finding(len(counts), len(off), off[:EXAMPLES])


def shown(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """The first rows as plain values, long texts cut."""
    return [{name: _short(value) for name, value in row.items()} for row in rows.head(EXAMPLES).iter_rows(named=True)]


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= 120 else value[:117] + "..."
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)  # JSON has neither NaN nor infinity
    return [_short(x) for x in value[:10]] if isinstance(value, list) else value
