"""How far the tables of one run are from those of another: PSI and the Kolmogorov-Smirnov distance of each column.

Choices: numbers (and the lengths of texts and lists) are put into bins by the deciles of the reference, with a bin of their own for what is missing;
numbers of at most FEW distinct values, categories and the elements of lists are compared value by value, those beyond the FEW commonest of the reference as
"other". PSI = sum (q - p) ln(q / p) over the bins, a share below FLOOR counted as FLOOR. KS is scipy's two-sample distance of the values that are
there. A column of more than SAMPLE rows is represented by every k-th. The thresholds .1 and .25 are the custom of credit scoring (Siddiqi 2006);
between two samples of one source PSI is about (bins - 1)(1/n + 1/m) by chance alone, .09 for 200 rows each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from data.quality_profile import KINDS, Kind, numbers_of
from data.quality_queries import CANONICAL, ROW, Tables

MODERATE, LARGE = 0.1, 0.25
SAMPLE, FEW, FLOOR = 200_000, 30, 1e-4
MISSING, OTHER = "(missing)", "(other)"
# what a run does with ids: how often users act and items are met
COUNTED = {"events per user": ("events", "user_id"), "events per item": ("events", "item_id"), "credits per item": ("credits", "item_id")}


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of two counts over the same bins; 0 if they have the same shares."""
    p, q = (np.maximum(counts / max(counts.sum(), 1), FLOOR) for counts in (np.asarray(reference, float), np.asarray(current, float)))
    return float(((q - p) * np.log(q / p)).sum())


def ks(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """(greatest distance of the two distribution functions, p-value that both are samples of one), asymptotic."""
    from scipy.stats import ks_2samp  # seconds of import that a first run has no use for

    result = ks_2samp(reference, current, method="asymp")
    return float(result.statistic), float(result.pvalue)


def verdict(distance: float) -> str:
    return "stable" if distance < MODERATE else "moderate" if distance < LARGE else "large"


def drift(reference: Tables, current: Tables) -> dict[str, Any]:
    """`tables`: rows of each in both runs; `columns`: the distances of each column, the greatest first, with the shares of each bin.

    A column that either run has no rows of is left out.
    """
    found = []
    for table in CANONICAL:
        if not reference.rows[table] or not current.rows[table]:
            continue
        for column, kind in KINDS[table].items():
            if kind == "id":
                continue
            name = f"{table}.{column}"
            if kind not in ("category", "list"):
                found.append(_numeric(name if kind != "text" else f"{name} length", *(_values(t, table, column, kind) for t in (reference, current))))
            else:
                old, new = (_elements(t, table, column, kind) for t in (reference, current))
                found.append(_categories(name, old, new))
                if kind == "list":
                    found.append(_numeric(f"{name} length", *(_values(t, table, column, kind) for t in (reference, current))))
    for name, (table, column) in COUNTED.items():
        if reference.rows[table] and current.rows[table]:
            found.append(_numeric(name, *(_sample(t.scan(table).group_by(column).agg(n=pl.len()).select("n")) for t in (reference, current))))
    rows = {table: {"reference": reference.rows[table], "current": current.rows[table]} for table in CANONICAL}
    return {"tables": rows, "columns": sorted(found, key=lambda row: (-row["distance"], row["column"]))}


def _values(tables: Tables, table: str, column: str, kind: Kind) -> pl.Series:
    return _every(numbers_of(_thinned(tables, table), column, kind))


def _elements(tables: Tables, table: str, column: str, kind: Kind) -> pl.Series:
    frame = _thinned(tables, table).select(column)
    return _every(frame.explode(column, empty_as_null=True) if kind == "list" else frame)


def _thinned(tables: Tables, table: str) -> pl.LazyFrame:
    step = -(-tables.rows[table] // SAMPLE)
    return tables.scan(table).filter(pl.col(ROW) % step == 0) if step > 1 else tables.scan(table)


def _every(frame: pl.LazyFrame) -> pl.Series:
    return frame.collect(engine="streaming").to_series()


def _sample(frame: pl.LazyFrame) -> pl.Series:
    values = _every(frame).sort()  # sorted first: groups come in any order
    return values.gather_every(-(-len(values) // SAMPLE))


def _numeric(name: str, reference: pl.Series, current: pl.Series) -> dict[str, Any]:
    old, new = (series.drop_nulls().to_numpy().astype(np.float64) for series in (reference, current))
    old, new = old[np.isfinite(old)], new[np.isfinite(new)]
    distance, p_value = ks(old, new) if old.size and new.size else (None, None)
    if len(np.unique(old)) <= FEW:
        row = _categories(name, reference.cast(pl.Float64), current.cast(pl.Float64), ordered=True)
    else:
        edges = np.unique(np.quantile(old, np.arange(1, 10) / 10))
        counts = [
            np.append(np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1), len(series) - x.size)
            for x, series in ((old, reference), (new, current))
        ]
        labels = [f"below {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges)), f"from {edges[-1]:g}", MISSING]
        row = _record(name, labels, *counts)
    row |= {"ks": distance, "ks_p": p_value, "distance": max(row["psi"], distance or 0.0)}
    return row | {"verdict": verdict(row["distance"])}


def _categories(name: str, reference: pl.Series, current: pl.Series, ordered: bool = False) -> dict[str, Any]:
    """Value by value: the commonest of the reference, then what is common only now, then the rest together."""
    old, new = (dict(series.drop_nulls().value_counts().iter_rows()) for series in (reference, current))
    kept = sorted(old, key=lambda v: (-old[v], v))[:FEW]
    kept += sorted((v for v in new if v not in old), key=lambda v: (-new[v], v))[: FEW // 3]
    if ordered:
        kept.sort()
    counts = [
        np.array([*(values.get(v, 0) for v in kept), sum(n for v, n in values.items() if v not in set(kept)), series.null_count()])
        for values, series in ((old, reference), (new, current))
    ]
    return _record(name, [f"{v:g}" if isinstance(v, float) else str(v) for v in kept] + [OTHER, MISSING], *counts)


def _record(name: str, labels: list[str], old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    used = (old + new) > 0
    distance = psi(old[used], new[used])
    shares = [(counts[used] / max(counts.sum(), 1)).tolist() for counts in (old, new)]
    return {
        "column": name,
        "psi": distance,
        "ks": None,
        "ks_p": None,
        "distance": distance,
        "verdict": verdict(distance),
        "bins": [label for label, u in zip(labels, used, strict=True) if u],
        "reference": shares[0],
        "current": shares[1],
    }
