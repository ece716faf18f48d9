"""Baselines and their exact ranking against slow, obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.baselines import ItemKnn, blocked_items, popularity, segment_scores, top_items


def slow_top(scores: np.ndarray, k: int, blocked: set[int]) -> list[int]:
    order = sorted((i for i in range(len(scores)) if i not in blocked), key=lambda i: (-scores[i], i))
    return (order + [-1] * k)[:k]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 30))
def test_top_items_follows_the_tie_rule(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.array([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3e8], dtype=np.float32), size=(6, 20))
    blocked = rng.random((6, 20)) < 0.3
    fast = top_items(scores, k, blocked)
    for u in range(6):
        assert fast[u].tolist() == slow_top(scores[u], k, set(np.flatnonzero(blocked[u])))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top_items(np.array([[0.0, np.nan]]), 1)


def test_seen_items_are_blocked_but_never_the_target() -> None:
    blocked = blocked_items([np.array([0, 2, 2]), np.array([], dtype=int), np.array([1, 3])], 4, keep_U=np.array([2, 0, 0]))
    assert blocked.tolist() == [[True, False, False, False], [False] * 4, [False, True, False, True]]


def test_popularity_by_segment_prefers_the_segment_then_everybody() -> None:
    segment = np.array([0, 0, 1, 1, 1, 1, 1])
    item = np.array([2, 2, 0, 0, 0, 1, 1])
    scores = segment_scores(segment, item, segments=2, n_items=4)
    assert top_items(scores, 4).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3]]
    assert popularity(item, 4).tolist() == [3, 2, 2, 0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), neighbours=st.integers(1, 12))
def test_item_knn_equals_loops(seed: int, neighbours: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = 15, 10
    user_E, item_E = rng.integers(0, users, 80), rng.integers(0, items, 80)
    knn = ItemKnn.fit(user_E, item_E, users, items, neighbours)
    audience = [{int(u) for u, i in zip(user_E, item_E, strict=True) if i == item} for item in range(items)]
    similar = np.zeros((items, items))
    for a in range(items):
        cosine = [len(audience[a] & audience[b]) / np.sqrt(max(len(audience[a]), 1) * max(len(audience[b]), 1)) if a != b else 0.0 for b in range(items)]
        # equal cosines must be equal floats for the tie rule, so the judge rounds once, from float64, as the product does
        for b in slow_top(np.array(cosine, dtype=np.float32), min(neighbours, items), set()):
            similar[a, b] = cosine[b]
    histories = [np.array([1, 1, 4]), np.array([], dtype=int), np.arange(items)]
    slow = np.array([similar[sorted({int(i) for i in h})].sum(0) for h in histories])
    kept = (knn.similarity_NN.toarray() > 0).sum(1)
    assert kept.max(initial=0) <= neighbours
    assert np.allclose(knn.scores(histories), slow, atol=1e-5)
