"""Which rows are good: declarative column rules, quarantine with reasons, and the balance every table must keep.

rows in = rows out + filtered + duplicate + quarantined, for every table of every source (`Tally.figures` asserts it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from ugt.schema import UGTError

Kind = Literal["text", "int", "float"]


@dataclass(frozen=True)
class Column:
    """A rule for one column: its type, whether it may be null, its range and its pattern."""

    name: str
    kind: Kind = "text"
    required: bool = False
    low: float | None = None
    high: float | None = None
    pattern: str | None = None


# one source row that didn't make it: table, row number in its file, why, its text
BAD: dict[str, Any] = {"table": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String}


def typed(raw: pl.DataFrame, table: str, columns: tuple[Column, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(good, bad): the rows of `table` with typed columns and `row`; the rest as BAD rows, the first broken rule as the reason."""
    raw = raw.filter(pl.col("table") == table)
    names = {f"c{i}": c.name for i, c in enumerate(columns)}
    frame = raw.rename(names)
    reason: Any = pl.when(pl.col("reason").is_not_null()).then(pl.col("reason"))
    casts = []
    for c in columns:
        text = pl.col(c.name) if c.kind == "text" else pl.col(c.name).replace("", None)  # an empty number is no number
        value = text
        if c.kind != "text":
            value = text.cast(pl.Int64 if c.kind == "int" else pl.Float64, strict=False)
            broken = value.is_null() | value.is_infinite() | value.is_nan() if c.kind == "float" else value.is_null()
            reason = reason.when(text.is_not_null() & broken).then(pl.concat_str([pl.lit(f"{c.name} is not a number: "), text.str.slice(0, 80)]))
            casts.append(value.alias(c.name))
        if c.required:
            reason = reason.when(text.is_null()).then(pl.lit(f"{c.name} is missing"))
        if c.low is not None:
            reason = reason.when(value < c.low).then(pl.concat_str([pl.lit(f"{c.name} is below {c.low:g}: "), text]))
        if c.high is not None:
            reason = reason.when(value > c.high).then(pl.concat_str([pl.lit(f"{c.name} is above {c.high:g}: "), text]))
        if c.pattern is not None:
            reason = reason.when(~text.str.contains(c.pattern)).then(pl.concat_str([pl.lit(f"{c.name} is malformed: "), text.str.slice(0, 80)]))
    frame = frame.with_columns(reason=reason.otherwise(None))
    rejoined = pl.concat_str([pl.col(c.name).fill_null("\\N") for c in columns], separator="\t")
    bad = frame.filter(pl.col("reason").is_not_null()).with_columns(raw=pl.coalesce("raw", rejoined)).select(*BAD)
    good = frame.filter(pl.col("reason").is_null()).with_columns(casts).select("row", *names.values())
    return good, bad


def reject(frame: pl.DataFrame, table: str, where: pl.Expr, reason: pl.Expr, columns: tuple[Column, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(kept, bad): the rows of a typed frame where `where` holds become BAD rows."""
    text = pl.concat_str([pl.col(c.name).cast(pl.String).fill_null("\\N") for c in columns], separator="\t")
    bad = frame.filter(where).select(table=pl.lit(table), row=pl.col("row"), reason=reason, raw=text)
    return frame.filter(~where), bad


@dataclass
class Tally:
    """How many rows of each table came in and what became of them."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, table: str, **numbers: int) -> None:
        row = self.counts.setdefault(table, dict.fromkeys(("rows_in", "rows_out", "rows_filtered", "rows_duplicate", "rows_quarantined"), 0))
        for name, number in numbers.items():
            row[f"rows_{name}"] += int(number)

    def merge(self, other: dict[str, dict[str, int]]) -> None:
        for table, numbers in other.items():
            self.add(table, **{name.removeprefix("rows_"): n for name, n in numbers.items()})

    def figures(self) -> dict[str, dict[str, int]]:
        """The counts, balanced. Raises UGTError naming the table whose rows don't add up (a bug, never bad data)."""
        for table, n in self.counts.items():
            if n["rows_in"] != n["rows_out"] + n["rows_filtered"] + n["rows_duplicate"] + n["rows_quarantined"]:
                raise UGTError(f"rows of {table} don't add up: {n}. This is a fault of the loader; please report it with the file.")
        return dict(sorted(self.counts.items()))
