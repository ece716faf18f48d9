"""Baselines every model must beat: popularity, popularity by user segment, item-kNN. Scores for the whole catalogue, ranked exactly.

Choices: all are fitted on the training part of the histories, as the model is, and answer from the same history as the model.
Item-kNN is cosine over the users two items share in training, the best `neighbours` per item kept, summed over the distinct items
of the history. Rankings follow the protocol of the evaluation: higher score first, then lower item index; scores are float32.

Shapes: U users, N items, K places of a ranking (-1 where nothing is left), E events as pairs (user row, item index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


def top_items(score_UN: np.ndarray, k: int, blocked_UN: np.ndarray | None = None) -> np.ndarray:
    """The k best items of each row: int64 [U, k], higher score first, equal scores by lower item index, -1 where nothing is left.

    `blocked_UN` bool marks items that may not appear. Exact: score and index are packed into one integer key, so no tie is
    left to the partition. Raises ValueError for NaN. O(U N) time, 8 bytes per cell.
    """
    score_UN = np.ascontiguousarray(score_UN, dtype=np.float32)
    if np.isnan(score_UN).any():
        raise ValueError("scores hold NaN")
    n_items = score_UN.shape[1]
    # + 0.0 makes -0.0 and 0.0 equal; flipping the lower bits of negative floats makes their bit pattern ordered as integers
    bits_UN = (score_UN + np.float32(0.0)).view(np.int32).astype(np.int64)
    key_UN = np.where(bits_UN < 0, bits_UN ^ 0x7FFFFFFF, bits_UN) << 32
    key_UN += n_items - 1 - np.arange(n_items)
    if blocked_UN is not None:
        key_UN[blocked_UN] = np.iinfo(np.int64).min
    keep = min(k, n_items)
    top_UK = np.partition(key_UN, n_items - keep, axis=1)[:, n_items - keep :]
    top_UK = np.sort(top_UK, axis=1)[:, ::-1]
    item_UK = n_items - 1 - (top_UK & 0xFFFFFFFF)
    item_UK[top_UK == np.iinfo(np.int64).min] = -1
    return np.pad(item_UK, ((0, 0), (0, k - keep)), constant_values=-1)


def blocked_items(seen: Sequence[np.ndarray], n_items: int, keep_U: np.ndarray | None = None) -> np.ndarray:
    """bool [U, N]: the items each user has seen, except `keep_U` (the target, which stays rankable even if it is a repeat)."""
    blocked_UN = np.zeros((len(seen), n_items), dtype=bool)
    row_E = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
    if len(row_E):
        blocked_UN[row_E, np.concatenate([np.asarray(s) for s in seen])] = True
    if keep_U is not None:
        blocked_UN[np.arange(len(seen)), keep_U] = False
    return blocked_UN


def popularity(item_E: np.ndarray, n_items: int) -> np.ndarray:
    """Training events per item: int64 [N]."""
    return np.bincount(np.asarray(item_E), minlength=n_items)


def segment_scores(segment_E: np.ndarray, item_E: np.ndarray, segments: int, n_items: int) -> np.ndarray:
    """Popularity inside each segment of users, equal counts by popularity overall: float32 scores [segments, N].

    `segment_E` is the segment of each event's user, 0 <= segment < segments. The scores are places counted from the end, not
    counts, because a count and its tie-break do not fit into a float32 together.
    """
    counts_SN = np.bincount(segment_E.astype(np.int64) * n_items + item_E, minlength=segments * n_items).reshape(segments, n_items)
    overall_N = popularity(item_E, n_items)
    # dense rank of (count in segment, count overall): equal pairs share a score and fall to the tie rule
    key_SN = counts_SN * (int(overall_N.max(initial=0)) + 1) + overall_N
    return np.stack([np.unique(row, return_inverse=True)[1] for row in key_SN]).astype(np.float32)


@dataclass(frozen=True)
class ItemKnn:
    """Item-to-item cosine neighbours: `similarity_NN` (CSR, float32, zero diagonal), at most `neighbours` per row."""

    similarity_NN: sp.csr_matrix

    @classmethod
    def fit(cls, user_E: np.ndarray, item_E: np.ndarray, n_users: int, n_items: int, neighbours: int = 200) -> ItemKnn:
        """Neighbours from training pairs; a pair that occurs twice counts once. O(pairs of items of each user) time.

        Source: Sarwar et al. (2001), item-based collaborative filtering with cosine, without shrinkage.
        """
        seen_UN = _incidence(user_E, item_E, n_users, n_items)
        seen_NU = seen_UN.T.tocsr()
        size_N = np.maximum(np.asarray(seen_UN.sum(0), dtype=np.float64).ravel(), 1.0)
        rows = []
        for start in range(0, n_items, 512):
            shared_BN = (seen_NU[start : start + 512] @ seen_UN).toarray()  # whole numbers: exact in any order of summation
            cosine_BN = (shared_BN / np.sqrt(size_N[start : start + 512, None] * size_N)).astype(np.float32)
            width = len(cosine_BN)
            cosine_BN[np.arange(width), np.arange(start, start + width)] = 0.0
            best_BK = top_items(cosine_BN, min(neighbours, n_items))
            row_B1 = np.arange(width)[:, None]
            value_BK = cosine_BN[row_B1, best_BK]
            kept_BK = value_BK > 0
            index = (np.broadcast_to(row_B1, best_BK.shape)[kept_BK], best_BK[kept_BK])
            rows.append(sp.csr_matrix((value_BK[kept_BK], index), shape=(width, n_items), dtype=np.float32))
        return cls(sp.vstack(rows, format="csr"))

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [U, N]: for each item, the sum of its similarity to the distinct items of the history."""
        n_items = self.similarity_NN.shape[0]
        row_E = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        item_E = np.concatenate([np.asarray(h) for h in histories]) if len(row_E) else np.empty(0, dtype=np.int64)
        return (_incidence(row_E, item_E, len(histories), n_items) @ self.similarity_NN).toarray()


def _incidence(row_E: np.ndarray, item_E: np.ndarray, n_rows: int, n_items: int) -> sp.csr_matrix:
    """Binary float32 [rows, N]."""
    matrix = sp.csr_matrix((np.ones(len(row_E), dtype=np.float32), (row_E, item_E)), shape=(n_rows, n_items))
    matrix.data[:] = 1.0
    return matrix
