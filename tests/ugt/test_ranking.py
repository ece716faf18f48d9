"""The fusion of the heads, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ugt.memory import Memory
from ugt.ranking import LEAST_TARGETS, WEIGHTS, Candidates, Fusion, choose, dense_candidates, fuse, ndcg, page, proposals, top


def ints(*x: int) -> np.ndarray:
    return np.array(x, np.int64)


def floats(*x: float) -> np.ndarray:
    return np.array(x, np.float32)


def test_equal_scores_go_to_the_lower_item() -> None:
    items, scores = top(floats(1, 2, 2, 3), ints(9, 8, 4, 1), 3)
    assert items.tolist() == [1, 4, 8]
    assert scores.tolist() == [3, 2, 2]


def test_dense_candidates_keep_every_tie_until_the_rule_has_spoken() -> None:
    vectors = np.array([[0.0], [1.0], [1.0], [1.0], [2.0]], np.float32)
    assert dense_candidates(floats(1.0), vectors, 3)[0].tolist() == [4, 1, 2]
    assert dense_candidates(floats(1.0), vectors, 3, forbidden=ints(1, 4))[0].tolist() == [2, 3, 0]
    assert dense_candidates(floats(1.0), vectors, 3, forbidden=np.ones(5, bool))[0].tolist() == []


def test_fusion_mixes_log_probability_and_logit_over_the_union() -> None:
    generated, log_probs, logits = ints(5, 2), floats(-1.0, -2.0), floats(0.0, 4.0)
    items, scores = fuse(Candidates(generated, log_probs, logits, ints(2, 7), floats(4.0, 3.0)), Fusion(weight=0.5), 3)
    assert items.tolist() == [2, 7, 5]  # 2: (-2 + 4) / 2, 7: (-2 + 3) / 2 with the last beam's log p, 5: (-1 + 0) / 2
    assert scores.tolist() == [1.0, 0.5, -0.5]


def test_the_ends_of_the_weight_are_the_heads_themselves() -> None:
    given = Candidates(ints(5, 2, 9), floats(-1.0, -2.0, -3.0), floats(0.0, 4.0, 1.0), ints(2, 7, 9), floats(4.0, 3.0, 1.0))
    assert fuse(given, Fusion(weight=1.0), 3)[0].tolist() == [5, 2, 7]  # 7 counts as probable as the last beam: ties with 9, lower index first
    assert fuse(given, Fusion(weight=0.0), 3)[0].tolist() == [2, 7, 9]


def test_reciprocal_rank_rewards_being_in_both() -> None:
    items, _ = fuse(Candidates(ints(5, 2), floats(-1, -2), floats(0, 0), ints(7, 2), floats(1, 0)), Fusion("reciprocal_rank"), 3)
    assert items.tolist() == [2, 5, 7]


def test_one_empty_list_leaves_the_other_in_charge() -> None:
    for fusion in (Fusion(weight=0.5), Fusion(weight=1.0), Fusion("reciprocal_rank")):
        assert fuse(Candidates(ints(), floats(), floats(), ints(3, 1), floats(2, 1)), fusion, 5)[0].tolist() == [3, 1]
        assert fuse(Candidates(ints(3, 1), floats(-1, -2), floats(1, 0), ints(), floats()), fusion, 5)[0].tolist() == [3, 1]


def test_the_page_of_a_diversity_strategy_holds_what_it_generated_first_in_the_order_of_the_fused_scores() -> None:
    # the beam's rule would bring item 9 back, which the dense head likes best
    given = Candidates(ints(4, 7, 2), floats(-3, -1, -2), floats(0.5, 0.1, 0.9), ints(9, 2, 4), floats(2.0, 0.9, 0.5)), Fusion(weight=0.5)
    assert page("beam", *given, 2)[0].tolist() == fuse(*given, 2)[0].tolist() == [7, 9]
    for strategy in ("diverse_beam", "nucleus"):
        items, scores = page(strategy, *given, 2)
        assert items.tolist() == [7, 4]  # of the first two generated; -.45 and -1.25
        assert np.allclose(scores, [-0.45, -1.25])
        assert page(strategy, *given, 4)[0].tolist() == [7, 9, 2, 4]  # fewer than asked: the best of the rest as well, ranked by score
        assert page(strategy, *given, 9)[0].tolist() == [7, 9, 2, 4]


def test_a_strategy_that_generated_nothing_leaves_the_page_to_the_dense_head() -> None:
    none = Candidates(ints(), floats(), floats(), ints(9, 2), floats(2.0, 0.9)), Fusion(weight=0.5)
    assert page("nucleus", *none, 1)[0].tolist() == page("beam", *none, 1)[0].tolist() == [9]


def memory(*pairs: tuple[int, int], items: int = 12) -> Memory:
    """In training 0 was followed by given items so many times each; no content."""
    events = [0 if i % 2 == 0 else item for item, times in pairs for i in range(2 * times)]
    return Memory.fit(np.repeat(np.arange(len(events) // 2), 2), np.array(events), np.empty((items, 0), np.float32))


def remembered(*pairs: tuple[int, int], dense: dict[int, float]) -> Candidates:
    """Two heads that agree on 5 before 2 before 9, and what followed 0."""
    heads = Candidates(ints(5, 2, 9), floats(-1.0, -2.0, -3.0), floats(3.0, 2.0, 1.0), ints(5, 2, 9), floats(3.0, 2.0, 1.0))
    recall = memory(*pairs).recall([0])
    proposed = proposals(recall)
    return heads._replace(recall=recall, proposed=proposed, dense_of_proposed=np.array([dense[i] for i in proposed.tolist()], np.float32))


def test_memory_adds_the_logarithm_of_its_counts_and_candidates_of_its_own() -> None:
    given = remembered((2, 2), (4, 1), dense={2: 2.0, 4: 0.5})
    items, scores = fuse(given, Fusion(weight=0.5, followed=1.0), 4)
    # item 4, which no head proposed, counts as probable as the last of the beam
    wanted = {2: 0.0 + np.log(2.05), 5: 1.0 + np.log(0.05), 9: -1.0 + np.log(0.05), 4: (-3.0 + 0.5) / 2 + np.log(1.05)}
    assert items.tolist() == sorted(wanted, key=lambda i: -wanted[i])
    assert np.allclose(scores, [wanted[i] for i in items.tolist()])


def test_without_a_weight_memory_changes_nothing() -> None:
    given = remembered((2, 9), (4, 9), dense={2: 2.0, 4: 50.0})
    for fusion in (Fusion(weight=0.5), Fusion("reciprocal_rank")):
        assert fuse(given, fusion, 9)[0].tolist() == [5, 2, 9]
        assert page("nucleus", given, fusion, 9)[0].tolist() == [5, 2, 9]


def test_what_memory_proposes_is_no_page_of_a_diversity_strategy() -> None:
    given = remembered((4, 9), dense={4: 50.0})
    fusion = Fusion(weight=0.5, followed=1.0)
    assert fuse(given, fusion, 1)[0].tolist() == [4]
    assert page("nucleus", given, fusion, 2)[0].tolist() == [5, 2]
    assert set(page("nucleus", given, fusion, 4)[0].tolist()) == {5, 2, 9, 4}  # fewer than asked were generated


def test_the_head_that_is_right_gets_the_weight() -> None:
    given = Candidates(ints(1, 2, 3), -np.arange(3, dtype=np.float32), floats(-2, -1, 0), ints(3, 2, 1), -np.arange(3, dtype=np.float32))
    assert choose([given] * 4, ints(3, 3, 3, 3)) == (Fusion("log_probability", 0.0), 1.0, Fusion("log_probability", 0.0))
    fusion, score, _ = choose([given] * 4, ints(1, 1, 1, 1))
    assert fusion.weight >= 0.5  # at .5 all tie, and the lower index is the right one
    assert score == 1.0


def test_memory_gets_a_weight_where_it_is_right_and_none_where_it_is_not() -> None:
    given = remembered((4, 3), (9, 1), dense={4: 0.9, 9: 1.0})
    fusion, score, alone = choose([given] * LEAST_TARGETS, np.full(LEAST_TARGETS, 4))
    assert fusion.followed > 0
    assert not alone.remembers
    assert score == 1.0
    assert not choose([given] * LEAST_TARGETS, np.full(LEAST_TARGETS, 5))[0].remembers
    assert not choose([given] * (LEAST_TARGETS - 1), np.full(LEAST_TARGETS - 1, 4))[0].remembers  # too few to say


def test_the_figure_of_the_chosen_mix_is_that_of_its_lists() -> None:
    """Choosing computes all mixes at once; the list of each is the slow way."""
    rng = np.random.default_rng(0)
    chosen = set()
    for empty in (False, True):
        for trial in range(6):
            found, targets = [], []
            remembers = memory(*((int(i), int(rng.integers(1, 5))) for i in rng.choice(np.arange(1, 60), 20, replace=False)), items=60)
            for _ in range(60):
                beam, dense = rng.choice(60, 0 if empty else 12, replace=False), rng.choice(60, 12, replace=False)
                recall = remembers.recall([0] if trial % 2 else [])
                proposed = proposals(recall, 8)
                scores = [np.round(rng.normal(size=n), 1).astype(np.float32) for n in (len(beam), len(beam), 12, len(proposed))]  # rounded: ties occur
                found.append(Candidates(beam, -np.sort(np.abs(scores[0])), scores[1], dense, -np.sort(-scores[2]), recall, proposed, scores[3]))
                targets.append(int(rng.choice(proposed)) if len(proposed) and trial > 2 else int(rng.integers(60)))
            fusion, best, alone = choose(found, np.array(targets))
            of_heads = [Fusion(weight=w) for w in WEIGHTS] + [Fusion("reciprocal_rank")]
            figures = [np.mean([ndcg(fuse(c, o, 10)[0], t) for c, t in zip(found, targets, strict=True)]) for o in of_heads]
            assert figures[of_heads.index(alone)] == pytest.approx(max(figures))
            assert best == pytest.approx(np.mean([ndcg(fuse(c, fusion, 10)[0], t) for c, t in zip(found, targets, strict=True)]))
            assert max(figures) <= best + 1e-12
            chosen.add(fusion.remembers)
    assert chosen == {False, True}


def test_ndcg_of_one_target() -> None:
    assert ndcg(ints(4, 2, 7), 4) == 1.0
    assert ndcg(ints(4, 2, 7), 7) == pytest.approx(0.5)
    assert ndcg(ints(4, 2, 7), 9) == 0.0
