"""Baselines and their exact ranking against slow, obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.baselines import ItemKnn, NearestVectors, Popularity, Request, Transitions, popularity, segment_scores


def slow_top(scores: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_popularity_by_segment_prefers_the_segment_then_everybody() -> None:
    segment = np.array([0, 0, 1, 1, 1, 1, 1])
    item = np.array([2, 2, 0, 0, 0, 1, 1])
    scores = segment_scores(segment, item, segments=2, n_items=4)
    ranked = Popularity(scores).rank(Request([np.array([0])] * 3, np.array([1, 0, 1])), 4)
    assert ranked.tolist() == [[0, 1, 2, 3], [2, 0, 1, 3], [0, 1, 2, 3]]
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
        for b in slow_top(np.array(cosine, dtype=np.float32), min(neighbours, items)):
            similar[a, b] = cosine[b]
    histories = [np.array([1, 1, 4]), np.array([], dtype=int), np.arange(items)]
    slow = np.array([similar[sorted({int(i) for i in h})].sum(0) for h in histories])
    kept = (knn.similarity_NN.toarray() > 0).sum(1)
    assert kept.max(initial=0) <= neighbours
    assert np.allclose(knn.scores(histories), slow, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), damping=st.sampled_from([0.0, 0.5, 1.0]))
def test_transitions_equal_loops(seed: int, damping: float) -> None:
    rng = np.random.default_rng(seed)
    items, lags, last, lag_decay, recency = 9, 3, 6, 0.5, 0.7
    lists = [rng.integers(0, items, int(rng.integers(1, 12))) for _ in range(12)]
    user_E = np.repeat(np.arange(len(lists)), [len(x) for x in lists])
    fitted = Transitions.fit(user_E, np.concatenate(lists), items, lags)
    chain = Transitions(fitted.count_LNN, fitted.popularity_N, last, lag_decay, recency, damping)
    mixed = np.zeros((items, items))
    for seen in lists:
        for i in range(len(seen)):
            for lag in range(1, lags + 1):
                if i + lag < len(seen):
                    mixed[seen[i], seen[i + lag]] += lag_decay ** (lag - 1)
    mixed /= np.maximum(mixed.sum(1, keepdims=True), 1e-12) ** damping
    histories = [np.array([2]), rng.integers(0, items, 4), rng.integers(0, items, 10)]
    scores, popular = chain.scores(histories), popularity(np.concatenate(lists), items)
    for row, history in zip(scores, histories, strict=True):
        slow = sum(recency**age * mixed[item] for age, item in enumerate(history[::-1][:last]))
        assert np.allclose(row, slow, atol=2e-3 * mixed[mixed > 0].min())
        # what no transition reaches comes last, the more popular first
        reached = {int(i) for i in np.flatnonzero(slow > 0)}
        rest = [i for i in slow_top(row, items) if i not in reached]
        assert slow_top(row, items)[: len(reached)] == [i for i in slow_top(row, items) if i in reached]
        assert [popular[i] for i in rest] == sorted((popular[i] for i in rest), reverse=True)


def test_nearest_vectors_pool_the_last_items_and_let_the_older_ones_fade() -> None:
    vectors = np.eye(4, dtype=np.float32)
    histories = [np.array([0, 1, 2, 2])]
    assert NearestVectors(vectors).scores(histories)[0] == pytest.approx([1, 1, 2, 0])
    assert NearestVectors(vectors, last=2, decay=0.5).scores(histories)[0] == pytest.approx([0, 0, 1.5, 0])
    assert NearestVectors(vectors, decay=0.5).rank(Request(histories, np.zeros(1, int)), 4).tolist() == [[2, 1, 0, 3]]
