"""From candidates with scores to one ranking: the fusion of both heads and of transitions, the same in evaluation and in serving.

Choices: the union of the candidates of all is ranked. `log_probability` mixes log p of the beam with the dense logit (a constant per request, the
dense normaliser, changes no order) and adds the logarithm of transition counts; a candidate the beam did not reach counts as probable as the last one it did,
which is an upper bound of the truth. `reciprocal_rank` needs no scale and no weight. A list by another strategy than the beam keeps to what was generated: the
union would bring back just what the strategy left out for the sake of diversity. Ties: higher score first, then lower item index.

Shapes: W generated items, C dense candidates, P proposed by transitions, M of all, N items, D width. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugt.schema import DecodingStrategy
from ugt.transitions import NOTHING, Followed

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

RANK_OFFSET = 60.0  # of reciprocal rank fusion: Cormack et al. 2009
RARE = 0.05  # added to a transition count before the logarithm: what a pair never seen counts
PROPOSED = 50  # candidates that transitions propose
WEIGHTS = tuple(w / 10 for w in range(11))  # of the generative head, tried on validation
TRANSITIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)  # of the logarithm of transition counts, tried on validation


@dataclass(frozen=True)
class Fusion:
    """How one ranking is made of both heads and transitions; chosen on validation (`choose`) and kept with the checkpoint."""

    method: Literal["log_probability", "reciprocal_rank"] = "log_probability"
    weight: float = 0.5  # share of the generative head, the rest is the dense one's
    transitions: float = 0.0  # what the logarithm of transition counts weighs beside the heads; of reciprocal_rank: their list. 0: the heads alone


class Candidates(NamedTuple):
    """What is proposed to one user. Each list best first, without repeats; `dense_of_*` are dense logits (user vector . item vector)."""

    items: Ints  # generated, [W]
    log_probs: Floats
    dense_of_items: Floats
    dense_items: Ints  # [C]
    dense_scores: Floats
    followed: Followed = NOTHING
    proposed: Ints = NOTHING.items  # by transitions, [P]
    dense_of_proposed: Floats = NOTHING.counts


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


def proposals(followed: Followed, k: int = PROPOSED) -> Ints:
    """The k items with the largest counts, best first."""
    return top(followed.counts, followed.items, k)[0]


def fuse(given: Candidates, fusion: Fusion, k: int) -> tuple[Ints, Floats]:
    """The k best of the union of all candidates: (items, fused scores). Where one head proposes nothing the other's order stands."""
    if fusion.method == "reciprocal_rank" and len(given.items):
        lists = [(given.items, 1.0), (given.dense_items if len(given.dense_items) else given.items, 1.0), (given.proposed, fusion.transitions)]
        lists = [(ranked, weight) for ranked, weight in lists if weight > 0]
        items = np.unique(np.concatenate([ranked for ranked, _ in lists]))
        score = np.zeros(len(items), np.float32)
        for ranked, weight in lists:
            score[np.searchsorted(items, ranked)] += (weight / (RANK_OFFSET + np.arange(1, len(ranked) + 1))).astype(np.float32)
        return top(score, items, k)
    every = _union(given)
    score = _mix(every, [fusion if len(given.items) else replace(fusion, weight=0.0)])[0]
    known = len(every.items) - every.only_proposed * (fusion.transitions == 0)
    return top(score[:known], every.items[:known], k)


def page(strategy: DecodingStrategy, given: Candidates, fusion: Fusion, k: int) -> tuple[Ints, Floats]:
    """A page of k items, best first, and their fused scores.

    `beam`: the best of the union (`fuse`). Any other strategy: the first k items it generated; only where those are fewer, the best others of the union.
    """
    if strategy == "beam":
        return fuse(given, fusion, k)
    items, scores = fuse(given, fusion, len(given.items) + len(given.dense_items) + len(given.proposed))
    kept = np.isin(items, given.items[:k])
    others = np.flatnonzero(~np.isin(items, given.items))
    kept[others[: max(0, k - len(given.items))]] = True
    return items[kept], scores[kept]


def choose(found: Sequence[Candidates], targets: NDArray) -> tuple[Fusion, float]:
    """The mix with the best NDCG@10 over validation users, and that NDCG; of equals the one tried first. Transitions are tried where there are any."""
    some = any(len(c.proposed) for c in found)
    options = [Fusion("log_probability", w, t) for t in (TRANSITIONS if some else (0.0,)) for w in WEIGHTS]
    options += [Fusion("reciprocal_rank", transitions=t) for t in ((0.0, 1.0) if some else (0.0,))]
    gain_O = np.zeros(len(options))
    for c, target in zip(found, targets, strict=True):
        gain_O += _gains(c, int(target), options)
    gain_O /= max(1, len(found))
    chosen = int(np.argmax(gain_O))
    return options[chosen], float(gain_O[chosen])


def ndcg(ranking: NDArray, target: int) -> float:
    """NDCG of one ranking with one relevant item."""
    place = np.flatnonzero(ranking == target)
    return float(1.0 / np.log2(place[0] + 2)) if len(place) else 0.0


class _Union(NamedTuple):
    """All candidates once, those that only transitions propose last, and what each signal says of them, [M] each."""

    items: Ints
    log_probs: Floats
    logits: Floats
    log_counts: Floats
    only_proposed: int


def _union(given: Candidates) -> _Union:
    dense_items, dense_scores = (given.dense_items, given.dense_scores) if len(given.dense_items) else (given.items, given.dense_of_items)
    new_C = ~np.isin(dense_items, given.items)
    new_P = ~(np.isin(given.proposed, given.items) | np.isin(given.proposed, dense_items))
    items = np.concatenate([given.items, dense_items[new_C], given.proposed[new_P]])
    last = given.log_probs.min() if len(given.log_probs) else np.float32(0)
    log_probs = np.concatenate([given.log_probs, np.full(len(items) - len(given.items), last, np.float32)])
    logits = np.concatenate([given.dense_of_items, dense_scores[new_C], given.dense_of_proposed[new_P]])
    return _Union(items, log_probs, logits, np.log(given.followed.of(items) + np.float32(RARE)), int(new_P.sum()))


def _mix(every: _Union, options: Sequence[Fusion]) -> Floats:
    """Scores under each option, [O, M]."""
    weight_O1, transitions_O1 = np.array([(o.weight, o.transitions) for o in options], np.float32).T[..., None]
    heads_OM = weight_O1 * every.log_probs + (1 - weight_O1) * every.logits
    return (heads_OM + transitions_O1 * every.log_counts).astype(np.float32)


def _gains(given: Candidates, target: int, options: Sequence[Fusion]) -> NDArray[np.float64]:
    """NDCG@10 of the fused list under each option: of mixes at once, or choosing would take longer than ranking."""
    if len(given.items) == 0:
        return np.array([ndcg(fuse(given, option, 10)[0], target) for option in options])
    every = _union(given)
    at = np.flatnonzero(every.items == target)
    mixes = [o for o in options if o.method == "log_probability"]
    gain_O = np.zeros(len(mixes))
    if len(at):
        score_OM = _mix(every, mixes)
        alone_O = np.array([o.transitions == 0 for o in mixes])
        score_OM[alone_O, len(every.items) - every.only_proposed :] = -np.inf
        own_O1 = score_OM[:, at]
        before_O = ((score_OM > own_O1) | ((score_OM == own_O1) & (every.items < target))).sum(1)
        gain_O = np.where((before_O < 10) & np.isfinite(own_O1[:, 0]), 1.0 / np.log2(before_O + 2), 0.0)
    others = [ndcg(fuse(given, o, 10)[0], target) for o in options if o.method != "log_probability"]
    return np.concatenate([gain_O, others])  # in the order of the options: mixes come first
