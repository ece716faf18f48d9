"""Histories: order, ties, leave-one-out, the split by time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.artifacts import EVENTS, write_table
from ugt.histories import Histories, HistoryConfig, from_events, load
from ugt.schema import ACTION_IDS, UGTError


def events(rows: list[tuple[str, int, int, int]]) -> pa.Table:
    """(user, item index, timestamp, order) rows."""
    return pa.table(
        {
            "event_id": [f"e{i}" for i in range(len(rows))],
            "user_id": [r[0] for r in rows],
            "item_id": [str(r[1]) for r in rows],
            "item_index": [r[1] for r in rows],
            "action": ["rate"] * len(rows),
            "value": [float(r[1]) for r in rows],
            "timestamp": [r[2] for r in rows],
            "order": [r[3] for r in rows],
        },
        schema=EVENTS,
    )


def loaded(table: pa.Table, folder: Path) -> Histories:
    write_table(from_events(table), folder / "histories")
    return load(folder)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "ü", "10", "9"]), st.integers(0, 50), st.integers(0, 5)), max_size=60))
def test_histories_equal_a_plain_loop(rows: list[tuple[str, int, int]]) -> None:
    numbered = [(user, item, time, order) for order, (user, item, time) in enumerate(rows)]
    expected: dict[str, list[int]] = {}
    for user, item, _, _ in sorted(numbered, key=lambda r: (r[2], r[3])):
        expected.setdefault(user, []).append(item)
    table = from_events(events(numbered[::-1]))  # the order of the table is not the order of the file
    assert dict(zip(table["user_id"].to_pylist(), table["item_index"].to_pylist(), strict=True)) == expected
    assert table["user_id"].to_pylist() == sorted(expected)


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    histories = loaded(events([("u", 3, 7, 2), ("u", 1, 7, 1), ("u", 2, 6, 9)]), tmp_path)
    assert histories.items.tolist() == [2, 1, 3]
    assert histories.actions.tolist() == [ACTION_IDS["rate"]] * 3


def test_leave_one_out_takes_the_last_two_of_those_with_enough(tmp_path: Path) -> None:
    rows = [("long", i, i, i) for i in range(5)] + [("short", i, i, i) for i in range(2)]
    split = loaded(events(rows), tmp_path).split(min_events=3)
    assert split.evaluated.tolist() == [True, False]
    assert split.train_lengths.tolist() == [3, 2]
    test, validation = split.example(0, "test"), split.example(0, "validation")
    assert (test.items.tolist(), test.target, test.target_timestamp) == ([0, 1, 2, 3], 4, 4)
    assert (validation.items.tolist(), validation.target) == ([0, 1, 2], 3)
    with pytest.raises(ValueError, match="too few"):
        split.example(1, "test")


def test_an_unknown_action_is_zero_and_a_missing_value_nan(tmp_path: Path) -> None:
    table = events([("u", 0, 1, 1), ("u", 1, 2, 2)])
    table = table.set_column(4, "action", pa.array(["view", "teleport"])).set_column(5, "value", pa.array([None, 2.0], pa.float32()))
    histories = loaded(table, tmp_path)
    assert histories.actions.tolist() == [ACTION_IDS["view"], 0]
    assert np.isnan(histories.values[0])
    assert histories.values[1] == 2.0


def test_no_history_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="Check its events"):
        loaded(events([]), tmp_path)


def split_by_loops(lists: list[list[int]], cuts: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(train length, place of validation, place of test) of each user, by looking at one event after the other."""
    found = []
    for times in lists:
        at = []
        for low, high in (cuts, (cuts[1], 10**12)):
            first = next((place for place, time in enumerate(times) if time >= low), 0)
            at.append(first if first >= 1 and times[first] < high else -1)
        found.append((sum(time < cuts[0] for time in times), *at))
    return found


def test_a_time_split_trains_on_the_past_and_asks_for_the_next_event(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lists = [sorted(rng.integers(1, 60, int(rng.integers(1, 14))).tolist()) for _ in range(40)]
    rows = [(f"u{u:02d}", i % 7, time, i) for u, times in enumerate(lists) for i, time in enumerate(times)]
    histories = loaded(events(rows), tmp_path)
    split = HistoryConfig(split="time", validation_from=0.5, test_from=0.75).apply(histories)
    every = sorted(time for times in lists for time in times)
    cuts = every[int(0.5 * len(every))], every[int(0.75 * len(every))]
    assert list(zip(split.train_lengths.tolist(), split.validation_at.tolist(), split.test_at.tolist(), strict=True)) == split_by_loops(lists, cuts)
    assert len(split.users("test")) > 5
    assert len(split.users("validation")) > 5
    for part, low in (("validation", cuts[0]), ("test", cuts[1])):
        for u in split.users(part):
            example = split.example(int(u), part)
            assert example.timestamps.max() < low <= example.target_timestamp
    # nothing from the cut on is among the training events, and everything before it is
    user_E, item_E = split.train_events()
    assert len(item_E) == sum(time < cuts[0] for time in every)
    assert np.bincount(user_E, minlength=40).tolist() == split.train_lengths.tolist()


def test_a_time_split_without_times_is_refused(tmp_path: Path) -> None:
    config = HistoryConfig(split="time")
    with pytest.raises(UGTError, match=r"1 of 3 have no timestamp.*leave_one_out"):
        config.apply(loaded(events([("u", 0, 0, 0), ("u", 1, 5, 1), ("u", 2, 6, 2)]), tmp_path / "a"))
    with pytest.raises(UGTError, match="leaves nothing to train on"):
        config.apply(loaded(events([("u", i, 7, i) for i in range(4)]), tmp_path / "b"))
    with pytest.raises(ValueError, match=r"validation_from 0.9 is not below test_from 0.9"):
        HistoryConfig(validation_from=0.9)
