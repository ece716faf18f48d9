"""Exact rankings of score matrices: the k best items of each row, without seen ones, and the place of a target. One tie rule, here.

Choices: higher score first, then lower item index; scores are float32. A row is ranked once, as deep as its user's seen items ask for, and
the filtered list is what remains of it: a filter changes no score, so both lists come out of one pass.

Shapes: U users, N items, K places of a ranking (-1 where nothing is left).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def top_items(score_UN: np.ndarray, k: int) -> np.ndarray:
    """The k best items of each row: int64 [U, k], -1 where the catalogue is smaller. Raises ValueError for NaN. O(U N) time, 5 bytes a cell of memory."""
    score_UN = np.asarray(score_UN, dtype=np.float32)
    users, n_items = score_UN.shape
    keep = min(k, n_items)
    lowest_U1 = score_UN.min(axis=1, keepdims=True)
    if np.isnan(lowest_U1).any():  # a row with NaN has NaN as its minimum
        raise ValueError("scores hold NaN")
    above_UN = score_UN > lowest_U1
    above_U = np.count_nonzero(above_UN, axis=1)
    width = int(above_U.max(initial=0))
    if width > n_items // 4:
        top_UK = _partitioned(score_UN, keep)
    else:
        # mostly one value (an item-kNN knows few neighbours): rank the few others, which also spares the partition its worst case, then the first of the rest
        row_E, item_E = np.nonzero(above_UN)
        place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(above_U) - above_U, above_U)
        few_UC, few_item_UC = np.full((users, max(width, keep)), -np.inf, np.float32), np.full((users, max(width, keep)), -1)
        few_UC[row_E, place_E], few_item_UC[row_E, place_E] = score_UN[row_E, item_E], item_E
        top_UK = np.take_along_axis(few_item_UC, _partitioned(few_UC, keep), 1)
        # of the first `keep` items at least keep - above_U have the lowest score
        rest_UK = np.argsort(above_UN[:, :keep], axis=1, kind="stable")
        missing_UK = np.arange(keep) - above_U[:, None]
        top_UK = np.where(missing_UK < 0, top_UK, np.take_along_axis(rest_UK, np.maximum(missing_UK, 0), 1))
    return np.pad(top_UK, ((0, 0), (0, k - keep)), constant_values=-1)


def _partitioned(score_UN: np.ndarray, keep: int) -> np.ndarray:
    """`top_items` by a partition of every row."""
    threshold_U1 = np.partition(score_UN, score_UN.shape[1] - keep, axis=1)[:, [score_UN.shape[1] - keep]]
    chosen_UN = score_UN >= threshold_U1
    # more items tie with the last place than there is room for: the tie rule takes the first of them
    surplus_U = np.count_nonzero(chosen_UN, axis=1) - keep
    for row in np.flatnonzero(surplus_U):
        tied = np.flatnonzero(score_UN[row] == threshold_U1[row])
        chosen_UN[row, tied[len(tied) - surplus_U[row] :]] = False
    item_UK = np.nonzero(chosen_UN)[1].reshape(len(score_UN), keep)
    order_UK = np.argsort(-np.take_along_axis(score_UN, item_UK, 1), axis=1, kind="stable")  # items ascend, so equal scores stay in order of index
    return np.take_along_axis(item_UK, order_UK, 1)


def blocked_items(seen: Sequence[np.ndarray], n_items: int, keep_U: np.ndarray | None = None) -> np.ndarray:
    """bool [U, N]: the items each user has seen, except `keep_U` (the target, which stays rankable even if it is a repeat)."""
    blocked_UN = np.zeros((len(seen), n_items), dtype=bool)
    row_E = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
    if len(row_E):
        blocked_UN[row_E, np.concatenate([np.asarray(s) for s in seen])] = True
    if keep_U is not None:
        blocked_UN[np.arange(len(seen)), keep_U] = False
    return blocked_UN


def unblocked(ranking_UK: np.ndarray, blocked_UN: np.ndarray, k: int) -> np.ndarray:
    """The first k of each ranking that are not blocked: int64 [U, k], -1 where none is left. Exact if a ranking holds k places more than are blocked."""
    live_UK = (ranking_UK >= 0) & ~np.take_along_axis(blocked_UN, np.maximum(ranking_UK, 0), 1)
    first_UK = np.argsort(~live_UK, axis=1, kind="stable")[:, :k]
    kept_UK = np.where(np.take_along_axis(live_UK, first_UK, 1), np.take_along_axis(ranking_UK, first_UK, 1), -1)
    return np.pad(kept_UK, ((0, 0), (0, k - kept_UK.shape[1])), constant_values=-1)


def target_places(score_UN: np.ndarray, target_U: np.ndarray, blocked_UN: np.ndarray) -> np.ndarray:
    """Place of each target among the items that are not blocked, from 1: int64 [U]. O(U N)."""
    own_U1 = np.take_along_axis(score_UN, target_U[:, None], 1)
    ahead_UN = score_UN > own_U1
    ahead_UN |= (score_UN == own_U1) & (np.arange(score_UN.shape[1]) < target_U[:, None])
    ahead_UN &= ~blocked_UN
    return np.count_nonzero(ahead_UN, axis=1) + 1
