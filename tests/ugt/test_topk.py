"""Exact rankings and places against slow, obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.topk import blocked_items, target_places, top_items, unblocked

VALUES = np.array([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3e8], dtype=np.float32)


def slow_top(scores: np.ndarray, k: int, blocked: set[int]) -> list[int]:
    order = sorted((i for i in range(len(scores)) if i not in blocked), key=lambda i: (-scores[i], i))
    return (order + [-1] * k)[:k]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 30), rare=st.sampled_from([0.02, 0.1, 1.0]))
def test_rankings_and_places_follow_the_tie_rule(seed: int, k: int, rare: float) -> None:
    """Also where nearly all items share one score, which is ranked another way."""
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random((6, 24)) < rare, rng.choice(VALUES, size=(6, 24)), rng.choice(VALUES))
    blocked = rng.random((6, 24)) < 0.3
    target = rng.integers(0, 24, 6)
    blocked[np.arange(6), target] = False
    deep = top_items(scores, k + int(blocked.sum(1).max()))
    filtered, place = unblocked(deep, blocked, k), target_places(scores, target, blocked)
    for u in range(6):
        assert top_items(scores, k)[u].tolist() == slow_top(scores[u], k, set())
        allowed = slow_top(scores[u], 24, set(np.flatnonzero(blocked[u])))
        assert filtered[u].tolist() == (allowed + [-1] * 30)[:k]
        assert place[u] == allowed.index(target[u]) + 1


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top_items(np.array([[0.0, np.nan]]), 1)


def test_seen_items_are_blocked_but_never_the_target() -> None:
    blocked = blocked_items([np.array([0, 2, 2]), np.array([], dtype=int), np.array([1, 3])], 4, keep_U=np.array([2, 0, 0]))
    assert blocked.tolist() == [[True, False, False, False], [False] * 4, [False, True, False, True]]
