"""Which new item a user may want, and whether it is worth a place of the list: the rule that gives one slot to new items.

Choices: nobody has chosen a new item yet, so each signal speaks of its neighbours: the dense head's logit of its row, the probability its content
neighbours have, likeness of content to the history, the neighbours' co-occurrence and transitions. A conditional logit mixes them. The best new item takes the
last place of the list: always (TIGER's share of .1 in a list of ten), or only where the chance of a hit exceeds, by a factor, the chance that the item it
drives out is one: the best choice of users for a given loss (Neyman and Pearson). All weights are fitted on validation; there are a few dozen.

Shapes: I items with the new ones last, N of them old, M new, H events of a history, S signals, U users, K items of a list, E columns of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ugt.insertion import Near
from ugt.memory import RECENCY_NEAREST

SIGNALS = ("dense", "inherited", "content_nearest", "content_mean", "cooccurrence", "transitions")
PENALTY = 0.01  # of the squared weights of a chance
RECENCY = 0.8  # weight of an event against the one after it, in a mean
RARE = 1e-3  # added to inherited transitions before the logarithm: what a pair never seen counts


@dataclass(frozen=True)
class Signals:
    """What is known of each pair of a user and a new item."""

    content_IC: NDArray[np.float32]  # unit rows
    company_IW: NDArray[np.float32]  # unit rows: co-occurrence vectors, of new items the mean of their neighbours'
    transitions_II: Any  # csr: how often one item followed or preceded another; of a new item, its neighbours by their weights
    item_ID: NDArray[np.float32]  # rows of the dense head without that of "no item"
    near: Near

    def of(self, items_H: NDArray, user_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """[M, S] for a history (item indices, oldest first; new items may be among them) and the user vector of the dense head. O(H M C + I D)."""
        new = len(self.near.item_MB)
        logit_I = self.item_ID @ user_D
        old_N = logit_I[:-new] - logit_I.max()
        old_N = old_N - np.log(np.exp(old_N).sum())
        columns = np.zeros((new, len(SIGNALS)), np.float32)
        columns[:, 0] = logit_I[-new:]
        columns[:, 1] = np.log(np.einsum("mb,mb->m", self.near.weight_MB, np.exp(old_N[self.near.item_MB])) + 1e-12)
        if len(items_H):
            age_H = np.arange(len(items_H))[::-1]
            mean_H, nearest_H = RECENCY**age_H, RECENCY_NEAREST**age_H
            columns[:, 2] = ((self.content_IC[items_H] @ self.content_IC[-new:].T) * nearest_H[:, None]).max(0)
            columns[:, 3] = self.content_IC[-new:] @ _unit(mean_H @ self.content_IC[items_H])
            columns[:, 4] = self.company_IW[-new:] @ _unit(mean_H @ self.company_IW[items_H])
            columns[:, 5] = self._transitions(items_H)[-new:]
        columns[:, 5] = np.log(columns[:, 5] + RARE)
        return columns

    def _transitions(self, items_H: NDArray) -> NDArray:
        """From the history to every item, [I], older events less."""
        rows = self.transitions_II[items_H]
        weight_E = np.repeat(RECENCY ** np.arange(len(items_H))[::-1], np.diff(rows.indptr))
        return np.bincount(rows.indices, weights=rows.data * weight_E, minlength=rows.shape[1])


def inherited_transitions(counts_NN: Any, near: Near) -> Any:
    """Counts between old items (csr) as those between all items, the new ones last, [I, I]: a new item has its neighbours' by their weights."""
    import scipy.sparse as sp

    new, count = near.item_MB.shape
    rows = np.repeat(np.arange(new), count)
    share_MN = sp.csr_matrix((near.weight_MB.ravel(), (rows, near.item_MB.ravel())), shape=(new, counts_NN.shape[0]))
    all_IN = sp.vstack([counts_NN, share_MN @ counts_NN]).tocsr()
    return sp.hstack([all_IN, all_IN @ share_MN.T]).tocsr()


def evidence(score_M: NDArray, signal_MS: NDArray, list_scores_K: NDArray, events: int) -> NDArray[np.float64]:
    """What the gate knows of a request, [E]: how sure the mix is of its winner, and how sure the list is of its last item."""
    best = int(np.argmax(score_M))
    log_total = score_M[best] + np.log(np.exp(score_M - score_M[best]).sum())
    second = np.partition(score_M, -2)[-2] if len(score_M) > 1 and np.isfinite(np.partition(score_M, -2)[-2]) else score_M[best]
    sure = [score_M[best], score_M[best] - log_total, score_M[best] - second, log_total, *signal_MS[best]]
    known = list_scores_K[np.isfinite(list_scores_K)]
    last, middle, first = (float(known[i]) if len(known) else 0.0 for i in (-1, len(known) // 2, 0))
    return np.array([*sure, last, first - last, middle - last, np.log1p(events)])


@dataclass(frozen=True)
class Chance:
    """A logistic regression on evidence in units of its spread."""

    mean_E: NDArray[np.float64]
    spread_E: NDArray[np.float64]
    weight_E: NDArray[np.float64]
    start: float

    @classmethod
    def fit(cls, evidence_UE: NDArray, happened_U: NDArray[np.bool_]) -> Chance:
        from scipy.optimize import minimize

        mean_E, spread_E = evidence_UE.mean(0), evidence_UE.std(0)
        x_UE = (evidence_UE - mean_E) / np.where(spread_E > 0, spread_E, 1)
        sign_U = np.where(happened_U, 1.0, -1.0)
        rate = max(float(happened_U.mean()), 1.0 / len(happened_U))

        def loss(b: NDArray) -> tuple[float, NDArray]:
            margin_U = sign_U * (x_UE @ b[:-1] + b[-1])
            pull_U = -sign_U / (1 + np.exp(np.clip(margin_U, -500, 500)))
            # per event and not per user, so that the penalty means the same for rare events
            slope = np.append(x_UE.T @ pull_U, pull_U.sum()) / (rate * len(sign_U))
            value = np.logaddexp(0, -margin_U).sum() / (rate * len(sign_U)) + PENALTY * (b[:-1] ** 2).sum()
            return float(value), slope + np.append(2 * PENALTY * b[:-1], 0.0)

        found = minimize(loss, np.append(np.zeros(x_UE.shape[1]), np.log(rate / (1 - rate + 1e-9))), jac=True, method="L-BFGS-B")
        return cls(mean_E, np.where(spread_E > 0, spread_E, 1), found.x[:-1], float(found.x[-1]))

    def log_odds(self, evidence_UE: NDArray) -> NDArray[np.float64]:
        return ((evidence_UE - self.mean_E) / self.spread_E) @ self.weight_E + self.start


@dataclass(frozen=True)
class Gate:
    """Who gets the new item: those where its chance exceeds the last item's by a factor, both in log odds."""

    gain: Chance
    loss: Chance
    threshold: float

    @classmethod
    def fit(cls, evidence_UE: NDArray, gained_U: NDArray[np.bool_], lost_U: NDArray[np.bool_], hits: int, most: float, folds: int = 5, seed: int = 0) -> Gate:
        """`gained_U`: the new item is what the user took; `lost_U`: the list's last item is. The threshold is the lowest at which no more than
        `most` of the list's `hits` are lost; each user is judged by chances fitted on the others, or the fit would flatter the threshold."""
        fold_U = np.random.default_rng(seed).integers(0, folds, len(evidence_UE))
        value_U = np.zeros(len(evidence_UE))
        for fold in range(folds):
            rest_U = fold_U != fold
            gain, loss = Chance.fit(evidence_UE[rest_U], gained_U[rest_U]), Chance.fit(evidence_UE[rest_U], lost_U[rest_U])
            value_U[~rest_U] = gain.log_odds(evidence_UE[~rest_U]) - loss.log_odds(evidence_UE[~rest_U])
        order_U = np.argsort(-value_U, kind="stable")
        allowed = int(np.searchsorted(np.cumsum(lost_U[order_U]), most * hits, side="right"))
        threshold = np.inf if allowed == 0 else float(value_U[order_U[allowed - 1]])
        return cls(Chance.fit(evidence_UE, gained_U), Chance.fit(evidence_UE, lost_U), threshold)

    def opens(self, evidence_UE: NDArray) -> NDArray[np.bool_]:
        return self.gain.log_odds(evidence_UE) - self.loss.log_odds(evidence_UE) >= self.threshold


def with_slot(list_UK: NDArray[np.int64], new_U: NDArray[np.int64], opens_U: NDArray[np.bool_], places: int = 10) -> NDArray[np.int64]:
    """The first `places` of each list, the last of them (or the first free one, -1) taken by the user's new item where the gate opens."""
    out_UK = list_UK[:, :places].copy()
    free_U = (out_UK >= 0).sum(1)
    rows = np.flatnonzero(opens_U & (new_U >= 0))
    out_UK[rows, np.minimum(free_U[rows], places - 1)] = new_U[rows]
    return out_UK


def _unit(x_C: NDArray) -> NDArray:
    norm = np.linalg.norm(x_C)
    return x_C / norm if norm > 0 else x_C
