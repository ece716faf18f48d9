"""Histories by Ray Data equal the plain function on the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import histories
from ugt.artifacts import EVENTS, HISTORIES, read_table, write_table
from ugt.histories import from_events
from ugt.schema import UGTError
from ugt.settings import HistoryConfig


@pytest.mark.ray
def test_distributed_histories_equal_the_plain_ones(ray_session: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 2_000
    events = pa.table(
        {
            "event_id": [f"e{i}" for i in range(n)],
            "user_id": [f"u{i}" for i in rng.integers(0, 50, n)],
            "item_id": [str(i) for i in range(n)],
            "item_index": rng.integers(0, 99, n),
            "action": ["rate"] * n,
            "value": rng.random(n),
            "timestamp": rng.integers(0, 20, n),  # many ties
            "order": rng.permutation(n),
        },
        schema=EVENTS,
    )
    write_table(events, tmp_path / "events")
    figures = histories.run(tmp_path, HistoryConfig(), tmp_path / "out")
    assert read_table(tmp_path / "out" / "histories", HISTORIES).equals(from_events(events))
    assert figures["events"] == n
    assert figures["users"] == figures["evaluated_users"] == 50


def test_no_events_say_so(tmp_path: Path) -> None:
    write_table(EVENTS.empty_table(), tmp_path / "events")
    with pytest.raises(UGTError, match="holds no event"):
        histories.run(tmp_path, HistoryConfig(), tmp_path / "out")
