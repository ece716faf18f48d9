"""Figures of groups of users: by length of the history, by popularity of the target, by whether training ever saw the target.

Every dimension divides all users: the sizes of its slices sum to the number of users. Resampling is within a slice, so an interval says how
sure the figure of *this* group is.

Shapes: U users, M columns of per-user values, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ugt import metrics

LENGTHS = (1, 4, 6, 11, 21, 51)  # of the history: where each group begins
COUNTS = (0, 1, 6, 21, 101, 501)  # training events of the target

Dimensions = Mapping[str, Mapping[str, np.ndarray]]  # dimension -> slice -> bool [U]


def dimensions(length_U: np.ndarray, count_U: np.ndarray) -> Dimensions:
    """Who is in which slice. `length_U`: events before the target; `count_U`: training events of the target. Empty slices are left out."""
    cold_U = count_U == 0
    found = {
        "history_length": _ranges(length_U, LENGTHS),
        "target_popularity": _ranges(count_U, COUNTS),
        "cold_items": {"seen in training": ~cold_U, "never seen in training": cold_U},
    }
    return {name: {label: mask_U for label, mask_U in parts.items() if mask_U.any()} for name, parts in found.items()}


def figures(values_UM: np.ndarray, sliced: Dimensions, samples: int, seed: int) -> dict[str, dict[str, tuple[int, np.ndarray]]]:
    """For each slice its number of users and, per column, mean and 95% interval: float64 [M, 3]."""
    found: dict[str, dict[str, tuple[int, np.ndarray]]] = {}
    for name, parts in sliced.items():
        found[name] = {}
        for label, mask_U in parts.items():
            mine_UM = values_UM[mask_U]
            interval_M2 = metrics.bounds(metrics.bootstrap_means(mine_UM, samples, seed))
            found[name][label] = len(mine_UM), np.concatenate([mine_UM.mean(0)[:, None], interval_M2], axis=1)
    return found


def table(found: Mapping[str, Mapping[str, tuple[int, np.ndarray]]], columns: list[tuple[str, bool, str]]) -> dict[str, list[dict[str, Any]]]:
    """`figures` as JSON: {dimension: [{"slice", "users", "filtered": {name: {metric: [value, low, high]}}, "unfiltered": ...}]}.

    `columns` name (head or baseline, filtered, metric) of each column.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    for dimension, parts in found.items():
        result[dimension] = []
        for label, (users, figure_M3) in parts.items():
            row: dict[str, Any] = {"slice": label, "users": users, "filtered": {}, "unfiltered": {}}
            for (name, filtered, metric), figure_3 in zip(columns, figure_M3, strict=True):
                row["filtered" if filtered else "unfiltered"].setdefault(name, {})[metric] = figure_3.tolist()
            result[dimension].append(row)
    return result


def _ranges(value_U: np.ndarray, starts: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Slices [start, next start); the last one is open, the first one takes whatever is below it too."""
    group_U = np.maximum(np.searchsorted(starts, value_U, side="right") - 1, 0)
    ends = [*(s - 1 for s in starts[1:]), None]
    labels = [f"{s} and more" if e is None else str(s) if s == e else f"{s} to {e}" for s, e in zip(starts, ends, strict=True)]
    return {label: group_U == i for i, label in enumerate(labels)}
