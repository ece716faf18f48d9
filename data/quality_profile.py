"""What is in the canonical tables: per column its nulls, distinct values, range, quantiles, lengths, and the values that occur most.

Choices: one column at a time, read by polars' streaming engine, so the largest thing held is one column of numbers (8 bytes a row). Distinct values are
counted exactly up to EXACT rows and estimated beyond (HyperLogLog), and the report says which. Histograms have BINS equal bins between the .5% and the 99.5%
quantile, of log(1 + x) where the numbers are too skewed to see otherwise; what lies beyond is in the end bins.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from data.quality_queries import CANONICAL, Tables

Kind = Literal["id", "category", "number", "time", "text", "list"]
BINS, TOP, EXACT = 24, 12, 2_000_000
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
KINDS: dict[str, dict[str, Kind]] = {
    "items": {
        "item_index": "id",
        "item_id": "id",
        "item_type": "category",
        "title": "text",
        "original_title": "text",
        "year": "number",
        "runtime_minutes": "number",
        "genres": "list",
        "countries": "list",
        "rating": "number",
        "votes": "number",
        "description": "text",
        "imdb_id": "id",
    },
    "people": {"person_id": "id", "name": "text", "birth_year": "number", "professions": "list"},
    "credits": {"item_index": "id", "item_id": "id", "person_id": "id", "role": "category", "ordering": "number"},
    "users": {"user_id": "id", "gender": "category", "age": "number", "occupation": "category"},
    "events": {
        "event_id": "id",
        "user_id": "id",
        "item_id": "id",
        "item_index": "id",
        "action": "category",
        "value": "number",
        "timestamp": "time",
        "order": "id",
    },
}


def profile(tables: Tables) -> dict[str, dict[str, dict[str, Any]]]:
    """By table and column: kind, rows, nulls, distinct (`estimated` or not), and by kind `numbers` or `lengths` (with `histogram`), `top` values."""
    return {table: {column: _column(tables, table, column, kind) for column, kind in KINDS[table].items()} for table in CANONICAL}


def numbers_of(frame: pl.LazyFrame, column: str, kind: Kind) -> pl.LazyFrame:
    """The column as numbers: itself, or the length of a text or a list; times of 0 are none."""
    value = pl.col(column)
    if kind == "text":
        value = value.str.len_chars()
    elif kind == "list":
        value = value.list.len()
    elif kind == "time":
        value = pl.when(value != 0).then(value)
    return frame.select(value.alias(column))


def _column(tables: Tables, table: str, column: str, kind: Kind) -> dict[str, Any]:
    rows = tables.rows[table]
    found: dict[str, Any] = {"kind": kind, "rows": rows, "nulls": 0, "distinct": 0, "estimated": rows > EXACT, "numbers": None, "lengths": None, "top": []}
    if not rows:
        return found
    frame = tables.scan(table)
    values = frame.select(column).explode(column, empty_as_null=True) if kind == "list" else frame.select(column)
    distinct = pl.col(column).drop_nulls().approx_n_unique() if found["estimated"] else pl.col(column).drop_nulls().n_unique()
    nulls, unlike = pl.collect_all([frame.select(pl.col(column).null_count()), values.select(distinct)], engine="streaming")
    found |= {"nulls": int(nulls.item()), "distinct": int(unlike.item())}
    if found["nulls"] == rows or kind == "id":
        return found
    if kind != "category":
        numbers = numbers_of(frame, column, kind).drop_nulls().collect(engine="streaming")[column]
        found["numbers" if kind in ("number", "time") else "lengths"] = _numbers(numbers)
    if kind in ("category", "list"):
        counts = values.drop_nulls().group_by(column).len().top_k(TOP, by=["len", column]).collect(engine="streaming")
        found["top"] = [{"value": value, "rows": n} for value, n in counts.sort("len", column, descending=[True, False]).iter_rows()]
    return found


def _numbers(values: pl.Series) -> dict[str, Any] | None:
    x = values.to_numpy()
    x = np.sort(x[np.isfinite(x)])
    if not x.size:
        return None
    at = {f"{100 * q:g}%": float(x[int(q * (x.size - 1))]) for q in QUANTILES}  # values that occur, the lower of two
    return {"min": float(x[0]), "max": float(x[-1]), "mean": float(x.mean(dtype=np.float64)), "quantiles": at, "histogram": histogram(x)}


def histogram(x: np.ndarray) -> dict[str, Any]:
    """Counts in equal bins of sorted numbers: `edges` (one more than `counts`), `log` where bins are equal in log(1 + x)."""
    low, middle, high = (float(x[int(q * (x.size - 1))]) for q in (0.005, 0.5, 0.995))
    if low == high:
        return {"edges": [low, high], "counts": [int(x.size)], "log": False}
    log = low >= 0 and high > 20 * max(middle, 1.0)
    edges = np.expm1(np.linspace(np.log1p(low), np.log1p(high), BINS + 1)) if log else np.linspace(low, high, BINS + 1)
    counts, _ = np.histogram(np.clip(x.astype(np.float64), edges[0], edges[-1]), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "log": log}
