"""Which rows are good: declarative column rules, quarantine with reasons, and the balance every table must keep.

rows in = rows out + filtered + duplicate + quarantined, for every table of every source (`Tally.figures` asserts it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from ugt.schema import UGTError

Kind = Literal["text", "int", "float"]


RAW_CHARACTERS = 1000  # of a bad row that are kept


@dataclass(frozen=True)
class Column:
    """A rule for one column: its type, whether it may be null, its range and its pattern."""

    name: str
    kind: Kind = "text"
    required: bool = False
    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    longest: int = 10_000  # bytes of a text; what is longer is no title, whatever the column says


# one source row that didn't make it: table, row number in its file, why, its text
BAD: dict[str, Any] = {"table": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String}


def typed(raw: pl.DataFrame, table: str, columns: tuple[Column, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(good, bad): the rows of `table` with typed columns and `row`; the rest as BAD rows, the first broken rule as the reason."""
    raw = raw.filter(pl.col("table") == table)
    unread = raw.filter(pl.col("reason").is_not_null())
    good, bad = checked(raw.filter(pl.col("reason").is_null()).rename({f"c{i}": c.name for i, c in enumerate(columns)}), table, columns)
    return good, pl.concat([unread.select(*BAD), bad])


def checked(rows: pl.DataFrame, table: str, columns: tuple[Column, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same for rows that were read: `row` and the columns as text."""
    values = {c.name: _value(c) for c in columns}
    marked = rows.with_columns(**{f"typed_{name}": value for name, value in values.items()})
    marked = marked.with_columns(sound=pl.all_horizontal([~broken.fill_null(False) for c in columns for broken, _ in _rules(c, pl.col(f"typed_{c.name}"))]))
    good = marked.filter("sound").select("row", *(pl.col(f"typed_{c.name}").alias(c.name) for c in columns))
    worse = marked.filter(~pl.col("sound"))
    if not worse.height:
        return good, pl.DataFrame(schema=BAD)
    reason: Any = pl
    for c in columns:
        for broken, why in _rules(c, pl.col(f"typed_{c.name}")):
            reason = reason.when(broken.fill_null(False)).then(why)
    text = pl.concat_str([pl.col(c.name).fill_null("\\N") for c in columns], separator="\t").str.slice(0, RAW_CHARACTERS)
    return good, worse.select(table=pl.lit(table), row=pl.col("row").cast(pl.Int64), reason=reason.otherwise(None), raw=text)


def _value(c: Column) -> pl.Expr:
    if c.kind == "text":
        return pl.col(c.name)
    return pl.col(c.name).replace("", None).cast(pl.Int64 if c.kind == "int" else pl.Float64, strict=False)  # an empty number is no number


def _rules(c: Column, value: pl.Expr) -> list[tuple[pl.Expr, pl.Expr]]:
    """(where the rule is broken, why) of a column; `value` is its typed form. Null where the rule does not apply."""
    text = pl.col(c.name)
    given = text.is_not_null() & (text != "")
    start = text.str.slice(0, 80)
    rules: list[tuple[pl.Expr, pl.Expr]] = []
    if c.kind != "text":
        number = value.is_null() if c.kind == "int" else value.is_null() | value.is_infinite() | value.is_nan()
        rules.append((given & number, pl.concat_str([pl.lit(f"{c.name} is not a number: "), start])))
    else:
        rules.append((text.str.len_bytes() > c.longest, pl.lit(f"{c.name} is longer than {c.longest:,} bytes")))
    if c.required:
        rules.append((~given, pl.lit(f"{c.name} is missing")))
    if c.low is not None:
        rules.append((value < c.low, pl.concat_str([pl.lit(f"{c.name} is below {c.low:g}: "), start])))
    if c.high is not None:
        rules.append((value > c.high, pl.concat_str([pl.lit(f"{c.name} is above {c.high:g}: "), start])))
    if c.pattern is not None:
        rules.append((~text.str.contains(c.pattern), pl.concat_str([pl.lit(f"{c.name} is malformed: "), start])))
    return rules


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
