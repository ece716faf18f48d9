"""Slices divide all users, and each has the figures of its own users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt.slices import dimensions, figures, table


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), users=st.integers(1, 60))
def test_every_user_is_in_one_slice_of_each_dimension(seed: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    length, count = rng.integers(0, 80, users), rng.integers(0, 700, users) * (rng.random(users) < 0.8)
    values = rng.random((users, 2))
    found = table(figures(values, dimensions(length, count), 20, 0), [("fused", True, "recall@10"), ("fused", False, "recall@10")])
    for rows in found.values():
        assert sum(row["users"] for row in rows) == users
        for rule, column in (("filtered", 0), ("unfiltered", 1)):
            total = sum(row["users"] * row[rule]["fused"]["recall@10"][0] for row in rows)
            assert total / users == pytest.approx(values[:, column].mean())
            for row in rows:
                value, low, high = row[rule]["fused"]["recall@10"]
                assert low - 1e-9 <= value <= high + 1e-9 or row["users"] < 5  # few users, few resamples: the mean may lie outside
    cold = {row["slice"]: row["users"] for row in found["cold_items"]}
    assert cold.get("never seen in training", 0) == int((count == 0).sum())
    labels = {row["slice"]: row["users"] for row in found["history_length"]}
    assert labels.get("1 to 3", 0) == int((length <= 3).sum())
    assert labels.get("51 and more", 0) == int((length >= 51).sum())
