"""What stood next to what in training, kept beside the model: pairs that occurred once or twice, which no small vector remembers.

Choices: counts of the next three events and, for less, of the three before; the last events of a history add up, older ones less. A row keeps its largest
counts, so a request costs O(LAST x ROW) whatever the catalogue. The counts are a signal of the fused ranking (`ugt.ranking`), whose weight is chosen on
validation; the model itself never reads them, because in training they would tell it the target.

Shapes: E events as pairs (user row, item index), N items, P pairs kept, F items that are followed from a history. numpy and scipy only.
Sources: sequential rules with weights by distance (Ludewig and Jannach, 2018, "SR"); Markov chains beside factors (Rendle et al., 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugt.schema import UGTError

FILE = "transitions.npz"  # of a checkpoint and of an exported version
LAGS, LAG_DECAY, BACKWARD = (1, 2, 3), 0.6, 0.5  # how far apart, what each step further counts, what the other direction counts
LAST, RECENCY = 20, 0.8  # events of a history that count, and the weight of one against the one after it
ROW = 100  # largest counts kept of an item


class Followed(NamedTuple):
    """The items that stood next to those of a history, ascending, and how often, by weight; both [F]."""

    items: NDArray[np.int64]
    counts: NDArray[np.float32]

    def without(self, forbidden: NDArray) -> Followed:
        """Less the items of a list."""
        legal = ~np.isin(self.items, forbidden)
        return Followed(self.items[legal], self.counts[legal])

    def of(self, items: NDArray) -> NDArray[np.float32]:
        """The counts of given items, 0 where there is none."""
        if len(self.items) == 0:
            return np.zeros(len(items), np.float32)
        at = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        return np.where(self.items[at] == items, self.counts[at], np.float32(0))


NOTHING = Followed(np.empty(0, np.int64), np.empty(0, np.float32))


def lag_counts(user_E: NDArray, item_E: NDArray, items: int, lag: int) -> Any:
    """How often one item came `lag` events after another, csr float32 [N, N]; `user_E` ascends and each user's events are in order."""
    import scipy.sparse as sp

    same_E = user_E[lag:] == user_E[:-lag]
    pairs = (np.ones(int(same_E.sum()), np.float32), (item_E[:-lag][same_E], item_E[lag:][same_E]))
    return sp.csr_matrix(pairs, shape=(items, items))


def transition_counts(user_E: NDArray, item_E: NDArray, items: int) -> Any:
    """How often one item stood up to three events before another, by distance, and half of the other direction, csr [N, N]."""
    forward = sum(np.float32(LAG_DECAY ** (lag - 1)) * lag_counts(user_E, item_E, items, lag) for lag in LAGS)
    return (forward + np.float32(BACKWARD) * forward.T).tocsr()


@dataclass(frozen=True)
class TransitionTable:
    """The largest counts of each item: item i owns start_N[i]:start_N[i + 1] of the pairs."""

    start_N: NDArray[np.int64]  # [N + 1]
    item_P: NDArray[np.int32]
    count_P: NDArray[np.float32]

    @classmethod
    def fit(cls, user_E: NDArray, item_E: NDArray, items: int, row: int = ROW) -> TransitionTable:
        """From the events training may see; `user_E` ascends and each user's events are in order. Equal counts: lower item index first."""
        counts = transition_counts(user_E, item_E, items)
        row_P = np.repeat(np.arange(items), np.diff(counts.indptr))
        order_P = np.lexsort((counts.indices, -counts.data, row_P))
        place_P = np.arange(len(row_P)) - counts.indptr[row_P]
        kept_P = order_P[place_P < row]
        start_N = np.concatenate([[0], np.cumsum(np.minimum(np.diff(counts.indptr), row))]).astype(np.int64)
        return cls(start_N, counts.indices[kept_P].astype(np.int32), counts.data[kept_P].astype(np.float32))

    @classmethod
    def empty(cls, items: int) -> TransitionTable:
        """Of a catalogue nobody has touched."""
        return cls(np.zeros(items + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))

    def after(self, history: Sequence[int] | NDArray) -> Followed:
        """What is followed from the last LAST items of a history (item indices, oldest first), but its own: whether a thing is taken again is the model's to
        say (`ugt.model.repeats`)."""
        items = np.asarray(history, np.int64)
        items = items[items < len(self.start_N) - 1][-LAST:]  # of items that came after the training nothing was counted
        starts, lengths = self.start_N[items], self.start_N[items + 1] - self.start_N[items]
        pairs_F = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        weight_F = np.repeat(RECENCY ** np.arange(len(items))[::-1], lengths)
        found, place_F = np.unique(self.item_P[pairs_F], return_inverse=True)
        count = np.bincount(place_F, self.count_P[pairs_F] * weight_F, len(found)).astype(np.float32)
        new = ~np.isin(found, history)
        return Followed(found[new].astype(np.int64), count[new])

    def save(self, folder: Path) -> None:
        np.savez(Path(folder) / FILE, allow_pickle=False, start=self.start_N, item=self.item_P, count=self.count_P)

    @classmethod
    def load(cls, folder: Path) -> TransitionTable:
        """Raises UGTError if the file is not there."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise UGTError(f"no {FILE} in {folder}. Train again with `ugt train ugt`, and export with `ugt export onnx`.")
        with np.load(path) as f:
            return cls(f["start"], f["item"], f["count"])
