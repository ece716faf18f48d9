"""What followed what: counts and their sums over a history, against the slow way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ugt.schema import UGTError
from ugt.transitions import BACKWARD, LAG_DECAY, LAST, NOTHING, RECENCY, TransitionTable

N = 30


def histories(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, N, rng.integers(1, 40)).tolist() for _ in range(25)]


def table(lists: list[list[int]], row: int = N) -> TransitionTable:
    user_E = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return TransitionTable.fit(user_E, np.concatenate([np.array(items) for items in lists]), N, row)


def slow_counts(lists: list[list[int]]) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for items in lists:
        for i, a in enumerate(items):
            for lag in (1, 2, 3):
                if i + lag < len(items):
                    counts[a, items[i + lag]] += LAG_DECAY ** (lag - 1)  # type: ignore[assignment]
                    counts[items[i + lag], a] += BACKWARD * LAG_DECAY ** (lag - 1)  # type: ignore[assignment]
    return counts


def test_counts_add_up_over_the_last_events_but_the_history_itself() -> None:
    lists = histories(0)
    counts, fitted = slow_counts(lists), table(lists)
    for history in [*histories(1), [], [3], [3, 3]]:
        wanted: Counter[int] = Counter()
        for age, a in enumerate(reversed(history[-LAST:])):
            for b in set(range(N)) - set(history):
                wanted[b] += RECENCY**age * counts[a, b]  # type: ignore[assignment]
        found = fitted.after(np.array(history, np.int64))
        assert found.items.tolist() == sorted(b for b, count in wanted.items() if count > 0)
        assert np.allclose(found.counts, [wanted[b] for b in found.items.tolist()], rtol=1e-5)
        everything = found.of(np.arange(N))
        assert np.allclose(everything, [wanted[b] for b in range(N)], rtol=1e-5)


def test_a_row_keeps_its_largest_counts() -> None:
    lists = histories(2)
    whole, cut = table(lists), table(lists, row=4)
    for item in range(N):
        every, kept = whole.after([item]), cut.after([item])
        order = np.lexsort((every.items, -every.counts))[:4]
        # the item itself may hold one of the four places
        assert set(kept.items.tolist()) <= set(every.items[order].tolist())
        assert len(kept.items) >= min(3, len(every.items))
        assert np.array_equal(every.of(kept.items), kept.counts)


def test_an_item_that_came_after_the_training_is_passed_over() -> None:
    fitted = table(histories(3))
    assert np.array_equal(fitted.after([4, N + 5]).items, fitted.after([4]).items)
    assert len(fitted.after([N]).items) == 0


def test_forbidden_items_are_taken_out() -> None:
    found = table(histories(4)).after([1, 2])
    less = found.without(found.items[::2])
    assert less.items.tolist() == found.items[1::2].tolist()
    assert less.counts.tolist() == found.counts[1::2].tolist()
    assert NOTHING.of(np.arange(5)).tolist() == [0] * 5


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    fitted = table(histories(5))
    fitted.save(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(vars(fitted).values(), vars(TransitionTable.load(tmp_path)).values(), strict=True))
    assert len(TransitionTable.empty(N).after([1, 2]).items) == 0
    with pytest.raises(UGTError, match="ugt train ugt"):
        TransitionTable.load(tmp_path / "nowhere")
