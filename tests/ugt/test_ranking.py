"""The fusion of the heads, by hand."""

from __future__ import annotations

import numpy as np

from ugt.ranking import dense_candidates, fuse, top


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
