"""Histories: order, ties, leave-one-out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.artifacts import EVENTS, write_table
from ugt.histories import Histories, from_events, load
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
