"""What the training saw, item by item, kept beside the model: which items followed which, and what each is like. No small vector remembers a pair seen once.

Choices: counts of the next three events, summed over the last events of a history; likeness of content to the one event of the history that is nearest (late
interaction), where a user vector can only be near to their mean. Both are signals of the fused ranking (`ugt.ranking`), weighed on validation; the model
itself never reads the counts, because in training they would tell it the target. An item keeps its largest counts, so a request costs O(LAST (ROW + M C))
whatever the catalogue.

Shapes: E events as pairs (user row, item index), N items, P pairs kept, C width of a content vector, H events of a history, F items followed from it,
M items asked about. numpy and scipy only.
Sources: sequential rules with weights by distance (Ludewig and Jannach, 2018, "SR"); late interaction (Khattab and Zaharia, 2020, "ColBERT", section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ugt.insertion import unit_rows
from ugt.schema import UGTError

FILE = "memory.npz"  # of a checkpoint and of an exported version
SIGNALS = ("followed", "likeness")
LAGS, LAG_DECAY = (1, 2, 3), 0.5  # how many events apart a pair is counted, and what each step further counts
LAST, RECENCY, RECENCY_NEAREST = 20, 0.6, 0.9  # events of a history that count; weight of one against the one after it, in the sum and where the nearest counts
RARE = 0.05  # added to a sum of counts before its logarithm: what a pair never seen counts
ROW = 100  # largest counts kept of an item


def lag_counts(user_E: NDArray, item_E: NDArray, items: int, lag: int) -> Any:
    """How often one item came `lag` events after another, csr float32 [N, N]; `user_E` ascends and each user's events are in order."""
    import scipy.sparse as sp

    same_E = user_E[lag:] == user_E[:-lag]
    pairs = (np.ones(int(same_E.sum()), np.float32), (item_E[:-lag][same_E], item_E[lag:][same_E]))
    return sp.csr_matrix(pairs, shape=(items, items))


def transition_counts(user_E: NDArray, item_E: NDArray, items: int) -> Any:
    """How often one item stood up to three events before another, by distance, csr float32 [N, N]."""
    return sum(np.float32(LAG_DECAY ** (lag - 1)) * lag_counts(user_E, item_E, items, lag) for lag in LAGS).tocsr()


@dataclass(frozen=True)
class Memory:
    """Item i owns start_N[i]:start_N[i + 1] of the pairs, its largest counts."""

    start_N: NDArray[np.int64]  # [N + 1]
    item_P: NDArray[np.int32]
    count_P: NDArray[np.float32]
    content_NC: NDArray[np.float16]  # unit rows; C = 0 where the run has no content vectors

    @classmethod
    def fit(cls, user_E: NDArray, item_E: NDArray, content_NC: NDArray, row: int = ROW) -> Memory:
        """From the events training may see (`user_E` ascends, each user's events are in order) and the content vectors. Equal counts: lower index first."""
        items = len(content_NC)
        counts = transition_counts(user_E, item_E, items)
        row_P = np.repeat(np.arange(items), np.diff(counts.indptr))
        order_P = np.lexsort((counts.indices, -counts.data, row_P))
        kept_P = order_P[np.arange(len(row_P)) - counts.indptr[row_P] < row]
        start_N = np.concatenate([[0], np.cumsum(np.minimum(np.diff(counts.indptr), row))]).astype(np.int64)
        unit_NC = unit_rows(content_NC - content_NC.mean(0)).astype(np.float16)
        return cls(start_N, counts.indices[kept_P].astype(np.int32), counts.data[kept_P].astype(np.float32), unit_NC)

    @classmethod
    def empty(cls, items: int) -> Memory:
        """Of a catalogue nobody has touched, and of which nothing is known."""
        return cls.fit(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((items, 0), np.float32))

    def recall(self, history: Sequence[int] | NDArray) -> Recall:
        """What this says to a history: item indices, oldest first. Of items that came after the training nothing is known."""
        history = np.asarray(history, np.int64)
        items_H = history[history < len(self.start_N) - 1][-LAST:]
        starts, lengths = self.start_N[items_H], self.start_N[items_H + 1] - self.start_N[items_H]
        pairs = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        age_H = np.arange(len(items_H))[::-1]
        items_F, place = np.unique(self.item_P[pairs], return_inverse=True)
        count_F = np.bincount(place, self.count_P[pairs] * np.repeat(RECENCY**age_H, lengths), len(items_F)).astype(np.float32)
        near_HC = self.content_NC[items_H].astype(np.float32) * (RECENCY_NEAREST**age_H).astype(np.float32)[:, None]
        return Recall(self, history, items_F.astype(np.int64), count_F, near_HC).without(history)

    def save(self, folder: Path) -> None:
        np.savez(Path(folder) / FILE, allow_pickle=False, start=self.start_N, item=self.item_P, count=self.count_P, content=self.content_NC)

    @classmethod
    def load(cls, folder: Path) -> Memory:
        """Raises UGTError if the file is not there."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise UGTError(f"no {FILE} in {folder}. Train again with `ugt train ugt`, and export with `ugt export onnx`.")
        with np.load(path) as f:
            return cls(f["start"], f["item"], f["count"], f["content"])


@dataclass(frozen=True)
class Recall:
    """What a memory says to one history. What is in the history already counts as never followed and like nothing: where things are taken again that speaks
    against them, and validation gives memory no weight if it hurts; how often that happens is the model's to learn (`ugt.model.repeats`)."""

    memory: Memory
    history: NDArray[np.int64]
    items_F: NDArray[np.int64]  # that followed one of the history's in training, ascending
    count_F: NDArray[np.float32]
    near_HC: NDArray[np.float32]  # content of the last events, older ones shorter

    def without(self, forbidden: NDArray) -> Recall:
        """The same with some items no longer followed."""
        legal_F = ~np.isin(self.items_F, forbidden)
        return replace(self, items_F=self.items_F[legal_F], count_F=self.count_F[legal_F])

    def signals(self, items_M: NDArray) -> NDArray[np.float32]:
        """[M, 2] of any items, in the order of SIGNALS: the logarithm of the sum of counts, and the likeness to the nearest event (0 where none is known)."""
        count_M, likeness_M = np.zeros((2, len(items_M)), np.float32)
        if len(self.items_F):
            at_M = np.minimum(np.searchsorted(self.items_F, items_M), len(self.items_F) - 1)
            count_M = np.where(self.items_F[at_M] == items_M, self.count_F[at_M], np.float32(0))
        if self.near_HC.size:
            known_M = (items_M < len(self.memory.content_NC)) & ~np.isin(items_M, self.history)
            content_MC = self.memory.content_NC[items_M[known_M]].astype(np.float32)
            likeness_M[known_M] = (content_MC @ self.near_HC.T).max(1)
        return np.stack([np.log(count_M + np.float32(RARE)), likeness_M], axis=1)
