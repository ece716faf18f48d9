"""Ranking metrics of whole item lists, beyond-accuracy metrics, and bootstrap intervals over users.

Choices: a ranking is a list of *items*. No function here takes codes, and none ranks a level on its own: an item counts as found
only where the list names that very item. Values stay per user until the last moment, because an interval over users and a paired
comparison of two models both need them. Resampling draws the same users for every column, so any two columns are paired.

Shapes: U users, K places of a list (-1 where a list is shorter), T targets of a user (-1 pads), N items, D width, M columns, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

CUTOFFS = (5, 10, 20, 50)
MEASURES = ("recall", "ndcg", "hit", "mrr", "map")
_RESAMPLE_CELLS = 4_000_000  # of one block of resamples x users; 32 MB


class Interval(NamedTuple):
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float


def ranking_metrics(ranking_UK: np.ndarray, target_UT: np.ndarray, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, np.ndarray]:
    """Per-user recall, NDCG, hit, MRR and MAP at each cutoff: `{"recall@10": float64 [U], ...}`.

    `ranking_UK` holds item indices, best first; `target_UT` the items to be found, `[U]` where each user has one. Repeated
    targets of a user count once. With R targets: recall = found / R, NDCG divides by the best list of min(R, k) finds, MRR is 1 / place
    of the first find within k, MAP = sum of the precision at each find / min(R, k). With one target recall equals hit, and MAP equals MRR.
    Raises ValueError for a list that names an item twice and for a user without a target.
    """
    ranking_UK = np.asarray(ranking_UK, dtype=np.int64)
    target_UT = np.asarray(target_UT, dtype=np.int64)
    target_UT = target_UT[:, None] if target_UT.ndim == 1 else target_UT
    if len(ranking_UK) != len(target_UT):
        raise ValueError(f"{len(ranking_UK)} rankings for {len(target_UT)} users' targets")
    _refuse_repeats(ranking_UK)
    places = max(cutoffs)
    ranking_UK = np.pad(ranking_UK[:, :places], ((0, 0), (0, max(0, places - ranking_UK.shape[1]))), constant_values=-1)

    target_UT = np.sort(target_UT, axis=1)
    target_UT[:, 1:][target_UT[:, 1:] == target_UT[:, :-1]] = -1
    targets_U = (target_UT >= 0).sum(1)
    if (targets_U == 0).any():
        raise ValueError(f"user row {int(np.argmin(targets_U))} has no target; leave such users out of the evaluation")

    # one key per (user, item) makes "is this place a find" a single set look-up for any number of targets
    stride = max(int(ranking_UK.max(initial=0)), int(target_UT.max(initial=0))) + 1
    rows_U1 = np.arange(len(ranking_UK), dtype=np.int64)[:, None] * stride
    found_UK = np.isin(rows_U1 + ranking_UK, (rows_U1 + target_UT)[target_UT >= 0]) & (ranking_UK >= 0)

    place_K = np.arange(1, places + 1)
    discount_K = 1.0 / np.log2(place_K + 1)
    found_count_UK = found_UK.cumsum(1)
    dcg_UK = (found_UK * discount_K).cumsum(1)
    ideal_K = discount_K.cumsum()
    precision_UK = (found_UK * found_count_UK / place_K).cumsum(1)
    first_U = np.where(found_UK.any(1), found_UK.argmax(1), places)

    values: dict[str, np.ndarray] = {}
    for k in cutoffs:
        reachable_U = np.minimum(targets_U, k)
        values[f"recall@{k}"] = found_count_UK[:, k - 1] / targets_U
        values[f"ndcg@{k}"] = dcg_UK[:, k - 1] / ideal_K[reachable_U - 1]
        values[f"hit@{k}"] = (found_count_UK[:, k - 1] > 0).astype(np.float64)
        values[f"mrr@{k}"] = np.where(first_U < k, 1.0 / (first_U + 1), 0.0)
        values[f"map@{k}"] = precision_UK[:, k - 1] / reachable_U
    return values


def places(ranking_UK: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    """Place of each user's one target in the list, from 1; 0 where it isn't there: int64 [U]. With one target, every figure follows from it.

    Raises ValueError for a list that names an item twice.
    """
    _refuse_repeats(ranking_UK)
    found_UK = ranking_UK == target_U[:, None]
    return np.where(found_UK.any(1), found_UK.argmax(1) + 1, 0)


def of_places(place_U: np.ndarray, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, np.ndarray]:
    """`ranking_metrics` from the places of one target per user."""
    gain_U, inverse_U = 1.0 / np.log2(np.maximum(place_U, 1) + 1), 1.0 / np.maximum(place_U, 1)
    values: dict[str, np.ndarray] = {}
    for k in cutoffs:
        found_U = (place_U > 0) & (place_U <= k)
        recall_U, mrr_U = found_U.astype(np.float64), found_U * inverse_U
        values |= {f"recall@{k}": recall_U, f"ndcg@{k}": found_U * gain_U, f"hit@{k}": recall_U, f"mrr@{k}": mrr_U, f"map@{k}": mrr_U}
    return values


def beyond_accuracy(ranking_UK: np.ndarray, count_N: np.ndarray, vector_ND: np.ndarray, cutoffs: tuple[int, ...] = (10,)) -> dict[str, float]:
    """Coverage, Gini, novelty, intra-list diversity and distinct items of the lists at each cutoff.

    `count_N` are training events per item, `vector_ND` the item vectors that distance is measured in. coverage = share of the catalogue that
    appears in any list; gini of exposure over the whole catalogue (0 equal, 1 all on one item); novelty = mean self-information in bits
    of a listed item, p = (count + 1) / (events + N); diversity = mean of 1 - cosine over the pairs of a list (lists of two or more).
    Source: Vargas and Castells (2011) for novelty, Ziegler et al. (2005) for diversity.
    """
    n_items = len(count_N)
    bits_N = -np.log2((count_N + 1.0) / (count_N.sum() + n_items))
    unit_ND = vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)
    figures: dict[str, float] = {}
    for k in cutoffs:
        top_UK = np.asarray(ranking_UK)[:, :k]
        exposure_N = np.bincount(top_UK[top_UK >= 0], minlength=n_items)
        distinct = int((exposure_N > 0).sum())
        figures[f"coverage@{k}"] = distinct / n_items
        figures[f"distinct@{k}"] = float(distinct)
        figures[f"gini@{k}"] = gini(exposure_N)
        figures[f"novelty@{k}"] = float(bits_N[top_UK[top_UK >= 0]].mean()) if distinct else 0.0
        figures[f"diversity@{k}"] = _intra_list_diversity(top_UK, unit_ND)
    return figures


def gini(exposure_N: np.ndarray) -> float:
    """Gini coefficient of counts over all items, items never shown included; 0.0 if nothing was shown."""
    x_N = np.sort(np.asarray(exposure_N, dtype=np.float64))
    total, n = x_N.sum(), len(x_N)
    if total == 0:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * x_N).sum() / (n * total) - (n + 1) / n)


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean over users of each per-user metric."""
    return {name: float(v.mean()) for name, v in values.items()}


def bootstrap_means(values_UM: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Column means of `samples` resamples of the users with replacement: float64 [S, M].

    Every column of one resample holds the same users, so differences and ratios of columns are paired. O(S U M) time; memory is
    bounded by blocks of resamples. Equal seeds give equal draws. Source: Efron and Tibshirani (1993), percentile method.
    """
    values_UM = np.asarray(values_UM, dtype=np.float64)
    users = len(values_UM)
    if users == 0:
        raise ValueError("no users to resample")
    rng = np.random.default_rng(seed)
    block = max(1, _RESAMPLE_CELLS // users)
    parts = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn_SU = rng.integers(0, users, size=(size, users)) + np.arange(size)[:, None] * users
        weight_SU = np.bincount(drawn_SU.ravel(), minlength=size * users).reshape(size, users)
        parts.append(weight_SU @ values_UM / users)
    return np.concatenate(parts)


def paired_difference(a_U: np.ndarray, b_U: np.ndarray, samples: int, seed: int, level: float = 0.95) -> Interval:
    """Mean of a - b over the same users with its percentile interval. An interval above 0 says that a is better."""
    drawn_S2 = bootstrap_means(np.stack([a_U, b_U], 1), samples, seed)
    return _interval(float(np.mean(a_U) - np.mean(b_U)), drawn_S2[:, 0] - drawn_S2[:, 1], level)


def bounds(drawn_SM: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Percentile interval of each column of resampled figures: float64 [M, 2]."""
    return np.moveaxis(_quantiles(drawn_SM, level), 0, -1)


def ratio(a: np.ndarray | np.floating, b: np.ndarray | np.floating) -> np.ndarray:
    """a / b; infinite where only b is 0, 1.0 where both are."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), np.where(a > 0, np.inf, 1.0))


def _interval(value: float, drawn_S: np.ndarray, level: float) -> Interval:
    low, high = _quantiles(drawn_S, level)
    return Interval(value, float(low), float(high))


def _quantiles(drawn_SM: np.ndarray, level: float) -> np.ndarray:
    # no interpolation: between a finite ratio and an infinite one it would be undefined
    return np.quantile(drawn_SM, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest")


def _intra_list_diversity(top_UK: np.ndarray, unit_ND: np.ndarray) -> float:
    """Mean over lists of 1 - mean pairwise cosine, by |sum of unit vectors|^2 = n + sum over ordered pairs."""
    distances = []
    for start in range(0, len(top_UK), 1024):
        block_UK = top_UK[start : start + 1024]
        listed_UK = block_UK >= 0
        vector_UKD = unit_ND[np.maximum(block_UK, 0)] * listed_UK[:, :, None]
        squares_U = (vector_UKD**2).sum((1, 2))
        n_U = listed_UK.sum(1)
        pairs_U = (vector_UKD.sum(1) ** 2).sum(1) - squares_U
        some_U = n_U >= 2
        distances.append(1.0 - pairs_U[some_U] / (n_U[some_U] * (n_U[some_U] - 1)))
    distance = np.concatenate(distances) if distances else np.empty(0)
    return float(distance.mean()) if len(distance) else 0.0


def _refuse_repeats(ranking_UK: np.ndarray) -> None:
    ordered_UK = np.sort(ranking_UK, axis=1)
    repeat_U = ((ordered_UK[:, 1:] == ordered_UK[:, :-1]) & (ordered_UK[:, 1:] >= 0)).any(1)
    if repeat_U.any():
        raise ValueError(f"the ranking of user row {int(np.argmax(repeat_U))} names an item twice")
