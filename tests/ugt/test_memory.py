"""What the training saw: counts and likeness over a history, against the slow way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ugt.memory import LAG_DECAY, LAST, RARE, RECENCY, RECENCY_NEAREST, SIGNALS, Memory
from ugt.schema import UGTError

N = 30
FOLLOWED, LIKENESS = (SIGNALS.index(name) for name in ("followed", "likeness"))


def histories(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, N, rng.integers(1, 40)).tolist() for _ in range(25)]


def memory(lists: list[list[int]], row: int = N, width: int = 4) -> Memory:
    user_E = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    content = np.random.default_rng(9).normal(size=(N, width)).astype(np.float32) + 3
    return Memory.fit(user_E, np.concatenate([np.array(items) for items in lists]), content, row)


def slow_counts(lists: list[list[int]]) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for items in lists:
        for i, a in enumerate(items):
            for lag in (1, 2, 3):
                if i + lag < len(items):
                    counts[a, items[i + lag]] += LAG_DECAY ** (lag - 1)  # type: ignore[assignment]
    return counts


def test_counts_add_up_over_the_last_events_but_for_the_history_itself() -> None:
    lists = histories(0)
    counts, fitted = slow_counts(lists), memory(lists)
    for history in [*histories(1), [], [3], [3, 3]]:
        wanted: Counter[int] = Counter()
        for age, a in enumerate(reversed(history[-LAST:])):
            for b in set(range(N)) - set(history):
                wanted[b] += RECENCY**age * counts[a, b]  # type: ignore[assignment]
        recall = fitted.recall(np.array(history, np.int64))
        assert recall.items_F.tolist() == sorted(b for b, count in wanted.items() if count > 0)
        assert np.allclose(recall.count_F, [wanted[b] for b in recall.items_F.tolist()], rtol=1e-5)
        assert np.allclose(recall.signals(np.arange(N))[:, FOLLOWED], [np.log(wanted[b] + RARE) for b in range(N)], rtol=1e-4)


def test_likeness_is_to_the_nearest_event_and_fades_with_its_age() -> None:
    fitted = memory(histories(0))
    unit = np.random.default_rng(9).normal(size=(N, 4)) + 3
    unit -= unit.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    history = [4, 9, 17, 9]
    for item, found in enumerate(fitted.recall(history).signals(np.arange(N))[:, LIKENESS].tolist()):
        wanted = max(RECENCY_NEAREST**age * float(unit[item] @ unit[h]) for age, h in enumerate(reversed(history)))
        assert found == pytest.approx(0.0 if item in history else wanted, abs=2e-3)  # half precision


def test_without_a_history_or_content_there_is_no_likeness() -> None:
    assert not memory(histories(0)).recall([]).signals(np.arange(N))[:, LIKENESS].any()
    assert not memory(histories(0), width=0).recall([1, 2]).signals(np.arange(N))[:, LIKENESS].any()


def test_a_row_keeps_its_largest_counts() -> None:
    lists = histories(2)
    whole, cut = memory(lists), memory(lists, row=4)
    for item in range(N):
        every, kept = whole.recall([item]), cut.recall([item])
        order = np.lexsort((every.items_F, -every.count_F))[:4]
        # the item itself may hold one of the four places
        assert set(kept.items_F.tolist()) <= set(every.items_F[order].tolist())
        assert len(kept.items_F) >= min(3, len(every.items_F))
        assert np.array_equal(every.signals(kept.items_F), kept.signals(kept.items_F))


def test_an_item_that_came_after_the_training_is_passed_over() -> None:
    fitted = memory(histories(3))
    with_new, without = fitted.recall([4, N + 5]), fitted.recall([4])
    assert np.array_equal(with_new.items_F, without.items_F)
    asked = np.array([4, 7, N + 5, N + 6])
    assert np.array_equal(with_new.signals(asked), without.signals(asked))
    assert with_new.signals(asked)[2:].tolist() == [[pytest.approx(np.log(RARE)), 0.0]] * 2
    assert len(fitted.recall([N]).items_F) == 0


def test_forbidden_items_are_not_followed() -> None:
    recall = memory(histories(4)).recall([1, 2])
    less = recall.without(recall.items_F[::2])
    assert less.items_F.tolist() == recall.items_F[1::2].tolist()
    assert less.count_F.tolist() == recall.count_F[1::2].tolist()


def test_a_memory_comes_back_as_it_was_written(tmp_path: Path) -> None:
    fitted = memory(histories(5))
    fitted.save(tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(vars(fitted).values(), vars(Memory.load(tmp_path)).values(), strict=True))
    nothing = Memory.empty(N).recall([1, 2])
    assert len(nothing.items_F) == 0
    assert nothing.signals(np.array([3])).tolist() == [[pytest.approx(np.log(RARE)), 0.0]]
    with pytest.raises(UGTError, match="ugt train ugt"):
        Memory.load(tmp_path / "nowhere")
