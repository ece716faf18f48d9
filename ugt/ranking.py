"""From candidates with scores to one ranking: the fusion of the generative and the dense head, the same in evaluation and in serving.

Choices: the union of both heads' candidates is ranked. `log_probability` mixes log p of the beam with the dense logit (a constant per request, the
dense normaliser, changes no order); a candidate the beam did not reach counts as probable as the last one it did, which is an upper bound of the truth.
`reciprocal_rank` needs no scale and no weight. A list by another strategy than the beam keeps to what was generated: the union would bring back, from the
dense head, just what the strategy left out for the sake of diversity. Ties: higher score first, then lower item index.

Shapes: W generated items, C dense candidates, N items, D width. numpy only.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ugt.schema import DecodingStrategy

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

RANK_OFFSET = 60.0  # of reciprocal rank fusion: Cormack et al. 2009


def top(score: NDArray, items: Ints, k: int) -> tuple[Ints, NDArray]:
    """The k best items and their scores: higher score first, then lower item index."""
    order = np.lexsort((items, -score))[:k]
    return items[order], score[order]


def dense_candidates(
    user_vector_D: Floats,
    item_vectors_ND: Floats,
    k: int,
    forbidden: NDArray | None = None,
    read: NDArray | None = None,
    repeat: float | np.float32 = 0.0,
) -> tuple[Ints, Floats]:
    """The k best items of the dense head. `forbidden` are item indices that must not appear, or a bool per item; `repeat` is the model's bias for the
    item indices `read`, those of the history, each once. O(N D)."""
    score_N = item_vectors_ND @ user_vector_D
    if read is not None:
        score_N[read] += repeat
    if forbidden is not None and len(forbidden):
        score_N[forbidden] = -np.inf
    allowed = int(np.isfinite(score_N).sum())
    k = min(k, allowed)
    if k == 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    # every item that ties with the k-th is kept until the tie rule has spoken
    threshold = np.partition(score_N, -k)[-k]
    items = np.flatnonzero(score_N >= threshold).astype(np.int64)
    return top(score_N[items], items, k)


def fuse(
    generated_items: Ints,
    generated_log_probs: Floats,
    generated_dense: Floats,
    dense_items: Ints,
    dense_scores: Floats,
    weight: float,
    k: int,
    method: Literal["log_probability", "reciprocal_rank"] = "log_probability",
) -> tuple[Ints, Floats]:
    """The k best of the union of both heads' candidates.

    `generated_dense` are the dense logits of the generated items (user vector . item vector); `weight` is the share of the generative head, 0..1.
    Both candidate lists come best first and hold no item twice. Returns (items, fused scores). If one list is empty the other's order stands.
    """
    if len(generated_items) == 0:
        return dense_items[:k], dense_scores[:k]
    if len(dense_items) == 0:
        dense_items, dense_scores = generated_items, generated_dense
    if method == "reciprocal_rank":
        items = np.union1d(generated_items, dense_items)
        score = np.zeros(len(items), np.float32)
        for ranked in (generated_items, dense_items):
            score[np.searchsorted(items, ranked)] += (1.0 / (RANK_OFFSET + np.arange(1, len(ranked) + 1))).astype(np.float32)
        return top(score, items, k)
    new = ~np.isin(dense_items, generated_items)
    items = np.concatenate([generated_items, dense_items[new]])
    log_probs = np.concatenate([generated_log_probs, np.full(int(new.sum()), generated_log_probs.min(), np.float32)])
    logits = np.concatenate([generated_dense, dense_scores[new]])
    return top((weight * log_probs + (1.0 - weight) * logits).astype(np.float32), items, k)


def page(
    strategy: DecodingStrategy,
    generated_items: Ints,
    generated_log_probs: Floats,
    generated_dense: Floats,
    dense_items: Ints,
    dense_scores: Floats,
    weight: float,
    k: int,
    method: Literal["log_probability", "reciprocal_rank"] = "log_probability",
) -> tuple[Ints, Floats]:
    """A page of k items, best first, and their fused scores.

    `beam`: the best of the union (`fuse`). Any other strategy: the first k items it generated; only where those are fewer, the best others of the union.
    """
    given = (generated_items, generated_log_probs, generated_dense, dense_items, dense_scores, weight)
    if strategy == "beam":
        return fuse(*given, k, method)
    items, scores = fuse(*given, len(generated_items) + len(dense_items), method)
    kept = np.isin(items, generated_items[:k])
    others = np.flatnonzero(~np.isin(items, generated_items))
    kept[others[: max(0, k - len(generated_items))]] = True
    return items[kept], scores[kept]
