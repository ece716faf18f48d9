"""The fusion of the heads, by hand."""

from __future__ import annotations

import numpy as np

from ugt.ranking import dense_candidates, fuse, page, top


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
    items, scores = fuse(generated, log_probs, logits, ints(2, 7), floats(4.0, 3.0), weight=0.5, k=3)
    assert items.tolist() == [2, 7, 5]  # 2: (-2 + 4) / 2, 7: (-2 + 3) / 2 with the last beam's log p, 5: (-1 + 0) / 2
    assert scores.tolist() == [1.0, 0.5, -0.5]


def test_the_ends_of_the_weight_are_the_heads_themselves() -> None:
    given = (ints(5, 2, 9), floats(-1.0, -2.0, -3.0), floats(0.0, 4.0, 1.0), ints(2, 7, 9), floats(4.0, 3.0, 1.0))
    assert fuse(*given, weight=1.0, k=3)[0].tolist() == [5, 2, 7]  # 7 counts as probable as the last beam: ties with 9, lower index first
    assert fuse(*given, weight=0.0, k=3)[0].tolist() == [2, 7, 9]


def test_reciprocal_rank_rewards_being_in_both() -> None:
    items, _ = fuse(ints(5, 2), floats(-1, -2), floats(0, 0), ints(7, 2), floats(1, 0), 0.5, 3, "reciprocal_rank")
    assert items.tolist() == [2, 5, 7]


def test_one_empty_list_leaves_the_other_in_charge() -> None:
    none = np.empty(0, np.int64), np.empty(0, np.float32)
    assert fuse(none[0], none[1], none[1], ints(3, 1), floats(2, 1), 0.5, 5)[0].tolist() == [3, 1]
    assert fuse(ints(3, 1), floats(-1, -2), floats(1, 0), *none, 0.5, 5)[0].tolist() == [3, 1]


def test_the_page_of_a_diversity_strategy_holds_what_it_generated_first_in_the_order_of_the_fused_scores() -> None:
    # the beam's rule would bring item 9 back, which the dense head likes best
    given = (ints(4, 7, 2), floats(-3, -1, -2), floats(0.5, 0.1, 0.9), ints(9, 2, 4), floats(2.0, 0.9, 0.5), 0.5)
    assert page("beam", *given, 2)[0].tolist() == fuse(*given, 2)[0].tolist() == [7, 9]
    for strategy in ("diverse_beam", "nucleus"):
        items, scores = page(strategy, *given, 2)
        assert items.tolist() == [7, 4]  # of the first two generated; -.45 and -1.25
        assert np.allclose(scores, [-0.45, -1.25])
        assert page(strategy, *given, 4)[0].tolist() == [7, 9, 2, 4]  # fewer than asked: the best of the rest as well, ranked by score
        assert page(strategy, *given, 9)[0].tolist() == [7, 9, 2, 4]


def test_a_strategy_that_generated_nothing_leaves_the_page_to_the_dense_head() -> None:
    none = (ints(), floats(), floats(), ints(9, 2), floats(2.0, 0.9), 0.5)
    assert page("nucleus", *none, 1)[0].tolist() == page("beam", *none, 1)[0].tolist() == [9]
