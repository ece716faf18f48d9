"""Baselines every model must beat: popularity (also by user segment), item-kNN, Word2Vec, transition counts. Each ranks the whole catalogue exactly.

Choices: all are fitted on the training part of the histories, as the model is, and answer from the same history as the model; what is to be
chosen (pooling, decays) is chosen on validation by `train/baselines.py`. Rankings follow the one tie rule of `ugt/topk.py`. SASRec is in `ugt/sasrec.py`.

Shapes: U users, N items, K places of a ranking, S segments, W width of a vector, E events as pairs (user row, item index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from ugt.memory import lag_counts
from ugt.topk import top_items

POPULARITY_SHARE = 1e-3  # of the most popular item in `Transitions`: less than the weakest transition, so it only orders what no transition reaches


class Request(NamedTuple):
    """A block of users as a baseline sees it: item indices of each history, oldest first, and the segment of each user."""

    histories: Sequence[np.ndarray]
    segment_U: np.ndarray


class Ranker(Protocol):
    def rank(self, request: Request, k: int) -> np.ndarray:
        """The k best items of each user, seen ones included: int64 [U, k]."""
        ...


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
class Popularity:
    """The same list for everybody, or, with a row per segment, for everybody of a segment: `score_SN` float32."""

    score_SN: np.ndarray

    def rank(self, request: Request, k: int) -> np.ndarray:
        row_U = request.segment_U if len(self.score_SN) > 1 else np.zeros(len(request.histories), np.int64)
        return top_items(self.score_SN, k)[row_U]


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

    def rank(self, request: Request, k: int) -> np.ndarray:
        return top_items(self.scores(request.histories), k)


@dataclass(frozen=True)
class NearestVectors:
    """Items by the cosine of their vector with the mean of the last items' vectors: `vector_NW` float32, unit rows.

    `last` events are pooled (0: all), each weighing `decay` times the one after it. Source: item2vec (Barkan and Koenigstein, 2016) for the vectors.
    """

    vector_NW: np.ndarray
    last: int = 0
    decay: float = 1.0

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [U, N], up to a positive factor per user, which no ranking sees."""
        pooled_UW = recent(histories, len(self.vector_NW), self.last, self.decay) @ self.vector_NW
        return pooled_UW @ self.vector_NW.T

    def rank(self, request: Request, k: int) -> np.ndarray:
        return top_items(self.scores(request.histories), k)


@dataclass(frozen=True)
class Transitions:
    """Items by decayed counts of what followed the last items in training: a Markov chain that looks a few events back and skips a few ahead.

    `count_LNN` hold, for lag 1, 2, ..., how often j came that many events after i (CSR). They are added with weights `lag_decay` ** (lag - 1), a row
    divided by its sum to the power `damping` (0: counts, 1: probabilities), and summed over the last `last` events, each weighing `recency` times the
    one after it. What no transition reaches follows in order of popularity. Sources: Markov chains for sequences (Rendle et al., 2010), sequential
    rules with weights by distance (Ludewig and Jannach, 2018, "SR").
    """

    count_LNN: tuple[sp.csr_matrix, ...]
    popularity_N: np.ndarray
    last: int = 6
    lag_decay: float = 0.5
    recency: float = 0.5
    damping: float = 0.0

    @classmethod
    def fit(cls, user_E: np.ndarray, item_E: np.ndarray, n_items: int, lags: int = 3) -> Transitions:
        """Counts of the training part; `user_E` ascends and each user's events are in order."""
        return cls(tuple(lag_counts(user_E, item_E, n_items, lag) for lag in range(1, lags + 1)), popularity(item_E, n_items))

    @cached_property
    def mixed_NN(self) -> sp.csr_matrix:
        """The one matrix that answers, CSR float32."""
        total = sum(float(self.lag_decay**lag) * count_NN for lag, count_NN in enumerate(self.count_LNN)).tocsr()
        sum_N = np.asarray(total.sum(1), dtype=np.float64).ravel()
        return sp.diags(np.maximum(sum_N, 1e-12) ** -self.damping).dot(total).tocsr().astype(np.float32)

    @cached_property
    def rest_N(self) -> np.ndarray:
        """Scores of what no transition reaches, float32: popularity, scaled below the weakest transition."""
        data = self.mixed_NN.data
        weakest = float(data[data > 0].min(initial=1.0)) * self.recency ** (self.last - 1)
        return (POPULARITY_SHARE * weakest * self.popularity_N / max(int(self.popularity_N.max(initial=0)), 1)).astype(np.float32)

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [U, N]."""
        followed_UN = (recent(histories, len(self.popularity_N), self.last, self.recency) @ self.mixed_NN).toarray()
        followed_UN += self.rest_N
        return followed_UN

    def rank(self, request: Request, k: int) -> np.ndarray:
        return top_items(self.scores(request.histories), k)


def recent(histories: Sequence[np.ndarray], n_items: int, last: int, decay: float) -> sp.csr_matrix:
    """Weights of the last events of each history, CSR float32 [U, N]: `decay` ** age, age 0 the newest; repeats add up. `last` 0 takes them all."""
    kept = [h[-last:] if last else h for h in histories]
    lengths = np.array([len(h) for h in kept])
    row_E = np.repeat(np.arange(len(kept)), lengths)
    age_E = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(row_E))
    item_E = np.concatenate([np.asarray(h) for h in kept]) if len(row_E) else np.empty(0, np.int64)
    return sp.csr_matrix(((decay**age_E).astype(np.float32), (row_E, item_E)), shape=(len(kept), n_items))


def _incidence(row_E: np.ndarray, item_E: np.ndarray, n_rows: int, n_items: int) -> sp.csr_matrix:
    """Binary float32 [rows, N]."""
    matrix = sp.csr_matrix((np.ones(len(row_E), dtype=np.float32), (row_E, item_E)), shape=(n_rows, n_items))
    matrix.data[:] = 1.0
    return matrix
