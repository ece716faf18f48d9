"""Long lists of the fused ranking."""

from __future__ import annotations

import numpy as np

from ugt.ranking import Candidates, Fusion, page
from ugt.scoring import pages


def test_a_long_list_of_a_diversity_strategy_is_pages_of_ten() -> None:
    rng = np.random.default_rng(0)
    items = rng.permutation(60)[:35]
    found = Candidates(items, *(rng.normal(size=35).astype(np.float32) for _ in range(2)), *(x[::-1] for x in (np.arange(60), np.arange(60.0))))
    for fusion in (Fusion("log_probability", 0.3), Fusion("reciprocal_rank")):
        listed = pages(found, fusion, 50, "nucleus")
        assert len(set(listed.tolist())) == 50
        for end in (10, 20, 30):
            assert set(listed[:end].tolist()) == set(items[:end].tolist()) == set(page("nucleus", found, fusion, end)[0].tolist())
        assert listed[:10].tolist() == page("nucleus", found, fusion, 10)[0].tolist()
        assert set(items.tolist()) <= set(listed.tolist())
        assert pages(found, fusion, 50, "beam").tolist() == page("beam", found, fusion, 50)[0].tolist()
