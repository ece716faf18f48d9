"""Ranking metrics against plain Python loops, and intervals against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.metrics import CUTOFFS, beyond_accuracy, bootstrap_means, bounds, gini, of_places, paired_difference, places, ranking_metrics, ratio


def slow_metrics(ranking: list[int], targets: set[int], k: int) -> dict[str, float]:
    """The definitions, one place after the other."""
    found, dcg, precisions, first = 0, 0.0, 0.0, 0.0
    for place, item in enumerate(ranking[:k], start=1):
        if item in targets:
            found += 1
            dcg += 1 / math.log2(place + 1)
            precisions += found / place
            first = first or 1 / place
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(targets), k) + 1))
    return {
        f"recall@{k}": found / len(targets),
        f"ndcg@{k}": dcg / ideal,
        f"hit@{k}": float(found > 0),
        f"mrr@{k}": first,
        f"map@{k}": precisions / min(len(targets), k),
    }


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 60), targets=st.integers(1, 8))
def test_fast_metrics_equal_the_slow_definitions(seed: int, width: int, targets: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = 7, 70
    ranking = np.stack([rng.permutation(items)[:width] for _ in range(users)])
    for row, length in zip(ranking, rng.integers(0, width + 1, users), strict=True):
        row[length:] = -1
    wanted = rng.integers(0, items, (users, targets))  # may repeat an item
    wanted[:, 1:][rng.random((users, targets - 1)) < 0.3] = -1
    fast = ranking_metrics(ranking, wanted)
    for u in range(users):
        listed = [int(x) for x in ranking[u] if x >= 0]
        for k in CUTOFFS:
            for name, value in slow_metrics(listed, {int(x) for x in wanted[u] if x >= 0}, k).items():
                assert fast[name][u] == pytest.approx(value, abs=1e-12), (name, u)


def test_one_target_makes_recall_equal_hit_and_map_equal_mrr() -> None:
    ranking = np.array([[3, 1, 2], [0, 4, 5], [7, 8, 9]])
    values = ranking_metrics(ranking, np.array([1, 0, 2]))
    assert values["recall@5"].tolist() == values["hit@5"].tolist() == [1.0, 1.0, 0.0]
    assert values["map@5"].tolist() == values["mrr@5"].tolist() == [0.5, 1.0, 0.0]
    assert values["ndcg@5"].tolist() == pytest.approx([1 / math.log2(3), 1.0, 0.0])


def test_a_ranking_that_repeats_an_item_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 names an item twice"):
        ranking_metrics(np.array([[1, 2, -1, -1], [3, 4, 3, -1]]), np.array([1, 3]))


def test_a_user_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has no target"):
        ranking_metrics(np.array([[1, 2], [3, 4]]), np.array([[1, 5], [-1, -1]]))


def test_beyond_accuracy_equals_loops_over_lists() -> None:
    rng = np.random.default_rng(5)
    users, items = 30, 40
    ranking = np.stack([rng.permutation(items)[:10] for _ in range(users)])
    ranking[3, 4:] = -1
    ranking[4, 1:] = -1
    counts, vectors = rng.integers(0, 20, items), rng.normal(size=(items, 6))
    figures = beyond_accuracy(ranking, counts, vectors)

    lists = [[int(x) for x in row if x >= 0] for row in ranking]
    shown = [x for row in lists for x in row]
    distances = []
    for row in lists:
        pairs = [(a, b) for i, a in enumerate(row) for b in row[i + 1 :]]
        if pairs:
            distances.append(np.mean([1 - vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b]) for a, b in pairs]))
    exposure = [shown.count(i) for i in range(items)]
    slow_gini = sum(abs(a - b) for a in exposure for b in exposure) / (2 * items * sum(exposure))
    assert figures["coverage@10"] == len(set(shown)) / items
    assert figures["distinct@10"] == len(set(shown))
    assert figures["gini@10"] == pytest.approx(slow_gini)
    assert figures["novelty@10"] == pytest.approx(np.mean([-math.log2((counts[i] + 1) / (counts.sum() + items)) for i in shown]))
    assert figures["diversity@10"] == pytest.approx(np.mean(distances))


def test_gini_knows_its_ends() -> None:
    assert gini(np.full(10, 3)) == pytest.approx(0.0)
    assert gini(np.array([0] * 99 + [7])) == pytest.approx(0.99)
    assert gini(np.zeros(5)) == 0.0


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).binomial(1, 0.2, 400).astype(float)
    ours = bounds(bootstrap_means(values[:, None], 4000, seed=0))[0]
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    # two independent draws of 4,000: their quantiles differ by a few percent of the standard error of .02
    assert tuple(ours) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_resampling_is_seeded_and_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(50, 3))
    whole = bootstrap_means(values, 64, seed=9)
    monkeypatch.setattr("ugt.metrics._RESAMPLE_CELLS", 50 * 7)
    assert np.allclose(bootstrap_means(values, 64, seed=9), whole)
    assert not np.allclose(bootstrap_means(values, 64, seed=10), whole)


def test_paired_comparison_sees_a_small_but_constant_gain() -> None:
    rng = np.random.default_rng(3)
    b = rng.binomial(1, 0.3, 500).astype(float)
    a = b.copy()
    a[np.flatnonzero(b == 0)[:15]] = 1.0
    gain = paired_difference(a, b, 1000, seed=0)
    assert gain.value == pytest.approx(0.03)
    assert 0 < gain.low < 0.03 < gain.high
    # the two means' own intervals overlap: pairing is what makes the gain visible
    drawn = bootstrap_means(np.stack([a, b], 1), 1000, 0)
    assert bounds(drawn)[0, 0] < bounds(drawn)[1, 1]
    assert bounds(drawn[:, 0] - drawn[:, 1]).tolist() == [gain.low, gain.high]
    assert bounds(ratio(drawn[:, 0], drawn[:, 1]))[0] > 1.0


def test_ratio_over_nothing_is_infinite_not_an_error() -> None:
    assert ratio(np.array([1.0, 0.0, 1.0]), np.array([0.0, 0.0, 2.0])).tolist() == [math.inf, 1.0, 0.5]
    assert bounds(np.array([1.0, math.inf, math.inf]))[1] == math.inf


def test_figures_of_places_are_those_of_the_lists() -> None:
    rng = np.random.default_rng(4)
    ranking = np.stack([rng.permutation(80)[:50] for _ in range(60)])
    ranking[::5, 30:] = -1
    target = rng.integers(0, 80, 60)
    place = places(ranking, target)
    assert place.tolist() == [r.tolist().index(t) + 1 if t in r else 0 for r, t in zip(ranking, target, strict=True)]
    whole, short = ranking_metrics(ranking, target), of_places(place)
    assert whole.keys() == short.keys()
    for name in whole:
        assert np.allclose(whole[name], short[name], rtol=1e-12)
    with pytest.raises(ValueError, match="row 1 names an item twice"):
        places(np.array([[1, 2], [3, 3]]), np.array([1, 3]))
