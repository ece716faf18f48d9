"""The mix of the heads is chosen by the NDCG it gives."""

from __future__ import annotations

import numpy as np
import pytest

from ugt.scoring import Candidates, Fusion, choose_fusion, ndcg


def candidates(items: list[int], dense_items: list[int]) -> Candidates:
    """Two heads that each rank a few items, with scores that fall by one per place."""
    place = {item: -float(i) for i, item in enumerate(dense_items)}
    return Candidates(
        np.array(items, np.int64),
        -np.arange(len(items), dtype=np.float32),
        np.array([place.get(i, -9.0) for i in items], np.float32),
        np.array(dense_items, np.int64),
        -np.arange(len(dense_items), dtype=np.float32),
    )


def test_ndcg_of_one_target() -> None:
    assert ndcg(np.array([4, 2, 7]), 4) == 1.0
    assert ndcg(np.array([4, 2, 7]), 7) == pytest.approx(0.5)
    assert ndcg(np.array([4, 2, 7]), 9) == 0.0


def test_the_head_that_is_right_gets_the_weight() -> None:
    found = [candidates([1, 2, 3], [3, 2, 1])] * 4
    assert choose_fusion(found, np.array([3, 3, 3, 3])) == (Fusion("log_probability", 0.0), 1.0)
    fusion, score = choose_fusion(found, np.array([1, 1, 1, 1]))
    assert fusion.weight >= 0.5  # at .5 all tie, and the lower index is the right one
    assert score == 1.0


def test_a_long_list_of_a_diversity_strategy_is_pages_of_ten() -> None:
    rng = np.random.default_rng(0)
    items = rng.permutation(60)[:35]
    found = Candidates(items, *(rng.normal(size=35).astype(np.float32) for _ in range(2)), *(x[::-1] for x in (np.arange(60), np.arange(60.0))))
    for fusion in (Fusion("log_probability", 0.3), Fusion("reciprocal_rank")):
        listed = found.pages(fusion, 50, "nucleus")
        assert len(set(listed.tolist())) == 50
        for end in (10, 20, 30):
            assert set(listed[:end].tolist()) == set(items[:end].tolist()) == set(found.fused(fusion, end, "nucleus").tolist())
        assert listed[:10].tolist() == found.fused(fusion, 10, "nucleus").tolist()
        assert set(items.tolist()) <= set(listed.tolist())
        assert found.pages(fusion, 50, "beam").tolist() == found.fused(fusion, 50).tolist()
