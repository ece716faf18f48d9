"""From candidates with scores to one ranking: the fusion of both heads and of what the training saw, the same in evaluation and in serving.

Choices: the union of the candidates of all is ranked. `log_probability` mixes log p of the beam with the dense logit (a constant per request, the dense
normaliser, changes no order) and adds the signals of `ugt.memory`; a candidate the beam did not reach counts as probable as the last one it did, which is an
upper bound of the truth. `reciprocal_rank` needs no scale and no weight. A list by another strategy than the beam keeps to what was generated: the union would
bring back just what the strategy left out for the sake of diversity. Ties: higher score first, then lower item index.

Shapes: W generated items, C dense candidates, P proposed by memory, M of all, N items, D width, O options. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugt.conditional_logit import ConditionalLogit
from ugt.memory import SIGNALS, Recall
from ugt.schema import DecodingStrategy

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

RANK_OFFSET = 60.0  # of reciprocal rank fusion: Cormack et al. 2009
PROPOSED = 50  # candidates that memory proposes
WEIGHTS = tuple(w / 10 for w in range(11))  # of the generative head, tried on validation
LEAST_HEADS = 0.05  # share of all weights that the heads keep at least
LEAST_TARGETS = 30  # among the candidates of validation users, below which weights of signals are not fitted

NO_ITEMS, NO_SCORES = np.empty(0, np.int64), np.empty(0, np.float32)


@dataclass(frozen=True)
class Fusion:
    """How one ranking is made of both heads and the signals of memory; chosen on validation (`choose`) and kept with the checkpoint."""

    method: Literal["log_probability", "reciprocal_rank"] = "log_probability"
    weight: float = 0.5  # share of the generative head, the rest is the dense one's
    followed: float = 0.0  # what the signals of memory weigh beside the heads; all 0: the heads alone, and memory proposes nothing
    likeness: float = 0.0

    @property
    def remembers(self) -> bool:
        return self.followed != 0 or self.likeness != 0


class Candidates(NamedTuple):
    """What is proposed to one user. Each list best first, without repeats; `dense_of_*` are dense logits (user vector . item vector)."""

    items: Ints  # generated, [W]
    log_probs: Floats
    dense_of_items: Floats
    dense_items: Ints  # [C]
    dense_scores: Floats
    recall: Recall | None = None
    proposed: Ints = NO_ITEMS  # by memory, [P]
    dense_of_proposed: Floats = NO_SCORES


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


def proposals(recall: Recall, k: int = PROPOSED) -> Ints:
    """The k items that most often followed those of the history, best first."""
    return top(recall.count_F, recall.items_F, k)[0]


def fuse(given: Candidates, fusion: Fusion, k: int) -> tuple[Ints, Floats]:
    """The k best of the union of all candidates: (items, fused scores). Where one head proposes nothing the other speaks for both."""
    dense_items = given.dense_items if len(given.dense_items) else given.items
    if fusion.method == "reciprocal_rank" and len(given.items):
        items = np.union1d(given.items, dense_items)
        score = np.zeros(len(items), np.float32)
        for ranked in (given.items, dense_items):
            score[np.searchsorted(items, ranked)] += (1.0 / (RANK_OFFSET + np.arange(1, len(ranked) + 1))).astype(np.float32)
        return top(score, items, k)
    every = _union(given)
    score_M = _mix(every, [fusion if len(given.items) else replace(fusion, weight=0.0)])[0]
    known = len(every.items) if fusion.remembers else every.of_heads
    return top(score_M[:known], every.items[:known], k)


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


class Choice(NamedTuple):
    """What validation says: the mix with the best NDCG@10, that NDCG, and the best mix of the heads alone."""

    fusion: Fusion
    ndcg: float
    without_memory: Fusion


def choose(found: Sequence[Candidates], targets: NDArray) -> Choice:
    """The mix with the best NDCG@10 over validation users; of equals the simplest.

    Tried are shares of the two heads, reciprocal rank, and, where there is a memory, the mix under which the targets among the candidates are most probable.
    """
    unions = [_union(c) for c in found]
    options = [Fusion("log_probability", w) for w in WEIGHTS] + [Fusion("reciprocal_rank")] + _fitted(unions, targets)
    gain_O = np.zeros(len(options))
    for given, every, target in zip(found, unions, targets, strict=True):
        gain_O += _gains(given, every, int(target), options)
    gain_O /= max(1, len(found))
    chosen, alone = int(np.argmax(gain_O)), int(np.argmax([-1.0 if o.remembers else g for o, g in zip(options, gain_O, strict=True)]))
    return Choice(options[chosen], float(gain_O[chosen]), options[alone])


def ndcg(ranking: NDArray, target: int) -> float:
    """NDCG of one ranking with one relevant item."""
    place = np.flatnonzero(ranking == target)
    return float(1.0 / np.log2(place[0] + 2)) if len(place) else 0.0


class _Union(NamedTuple):
    """All candidates once, those of the heads first, and what each signal says of them."""

    items: Ints  # [M]
    signals: Floats  # log p, dense logit, and those of memory, [M, 2 + S]
    of_heads: int


def _union(given: Candidates) -> _Union:
    dense_items, dense_scores = (given.dense_items, given.dense_scores) if len(given.dense_items) else (given.items, given.dense_of_items)
    new_C = ~np.isin(dense_items, given.items)
    new_P = ~(np.isin(given.proposed, given.items) | np.isin(given.proposed, dense_items))
    items = np.concatenate([given.items, dense_items[new_C], given.proposed[new_P]])
    signals = np.zeros((len(items), 2 + len(SIGNALS)), np.float32)
    signals[:, 0] = given.log_probs.min() if len(given.log_probs) else 0
    signals[: len(given.items), 0] = given.log_probs
    signals[:, 1] = np.concatenate([given.dense_of_items, dense_scores[new_C], given.dense_of_proposed[new_P]])
    if given.recall is not None:
        signals[:, 2:] = given.recall.signals(items)
    return _Union(items, signals, len(items) - int(new_P.sum()))


def _mix(every: _Union, options: Sequence[Fusion]) -> Floats:
    """Scores under each option, [O, M]."""
    weight_OS = np.array([(o.weight, 1 - o.weight, *(getattr(o, name) for name in SIGNALS)) for o in options], np.float32)
    return weight_OS @ every.signals.T


def _fitted(unions: Sequence[_Union], targets: NDArray) -> list[Fusion]:
    """The conditional logit of the targets among the candidates, the heads' weights scaled to a sum of one; nothing where too few targets are among them."""
    at = [(every, np.flatnonzero(every.items == target)) for every, target in zip(unions, targets, strict=True)]
    at = [(every, place) for every, place in at if len(place)]
    if len(at) < LEAST_TARGETS or not any(every.signals[:, 2:].any() for every, _ in at):
        return []
    size = max(len(every.items) for every, _ in at)
    signal_UMS, beyond_UM = np.zeros((len(at), size, 2 + len(SIGNALS)), np.float32), np.ones((len(at), size), bool)
    for u, (every, _) in enumerate(at):
        signal_UMS[u, : len(every.items)], beyond_UM[u, : len(every.items)] = every.signals, False
    logit = ConditionalLogit.fit(signal_UMS, np.array([int(place[0]) for _, place in at]), beyond_UM)
    weight_S = logit.weight_S / logit.spread_S
    least = LEAST_HEADS * float(np.abs(weight_S).sum())
    if weight_S[:2].sum() <= least:  # heads that say nothing still order what memory does not tell apart
        weight_S[:2] = least / 2
    heads = max(float(weight_S[:2].sum()), 1e-9)
    generative, _, followed, likeness = (round(float(w), 4) for w in weight_S / heads)
    return [Fusion("log_probability", min(1.0, max(0.0, generative)), followed, likeness)]


def _gains(given: Candidates, every: _Union, target: int, options: Sequence[Fusion]) -> NDArray[np.float64]:
    """NDCG@10 of the fused list under each option: of all mixes at once, or choosing would take longer than ranking."""
    gain_O, at = np.zeros(len(options)), np.flatnonzero(every.items == target)
    if len(at) == 0:
        return gain_O
    mixes = [o for o, option in enumerate(options) if option.method == "log_probability" and len(given.items)]
    for o in set(range(len(options))) - set(mixes):
        gain_O[o] = ndcg(fuse(given, options[o], 10)[0], target)
    if mixes:
        score_OM = _mix(every, [options[o] for o in mixes])
        alone_O = np.array([not options[o].remembers for o in mixes])
        score_OM[alone_O, every.of_heads :] = -np.inf
        own_O1 = score_OM[:, at]
        before_O = ((score_OM > own_O1) | ((score_OM == own_O1) & (every.items < target))).sum(1)
        gain_O[mixes] = np.where((before_O < 10) & np.isfinite(own_O1[:, 0]), 1.0 / np.log2(before_O + 2), 0.0)
    return gain_O
