"""`ugt bench semantic-ids` on the smallest catalogue: no collisions, figures that hang together, both sides judged on the same neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from ray_app.bench import semantic_ids as bench


def test_the_report_puts_our_codes_beside_those_of_faiss_and_new_items_beside_old_ones():
    report = bench.run(items=3000, width=16, seed=0, threads=1, say=lambda text: None)
    ours, theirs, new = report["ours"], report["faiss"], report["new_items"]
    assert report["collisions"] == new["collisions"] == 0
    assert report["error_ratio"] == pytest.approx(ours["error"] / theirs["beam"]["error"], abs=1e-4)
    assert theirs["beam"]["error"] <= theirs["greedy"]["error"]  # a beam can only find better pairs
    assert report["error_ratio"] < 1.05
    assert 1 < ours["l1_perplexity"] <= report["codes"][0]
    assert 0 < new["l1_l2_agreement"] < new["l1_agreement"] < 1
    assert new["l1_agreement_difference"] == pytest.approx(new["l1_agreement"] - ours["l1_agreement"], abs=1e-4)
    assert new["items"] == report["queries"] == 300


def test_neighbours_are_the_nearest_and_never_the_item_itself(monkeypatch):
    monkeypatch.setattr(bench, "BLOCK", 70)  # blocks that end in the middle
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    own = np.array([3, 150])
    slow = ((x[own][:, None] - x[None]) ** 2).sum(-1)
    slow[np.arange(2), own] = np.inf
    assert (bench._neighbours(x, x[own], own) == np.argsort(slow, axis=1)[:, : bench.NEIGHBOURS]).all()


def test_agreement_counts_pairs():
    codes = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0]])
    found = bench._agreement(codes, np.array([[1, 2]]), codes[:1])
    assert found == {"l1_agreement": 0.5, "l1_l2_agreement": 0.0}
