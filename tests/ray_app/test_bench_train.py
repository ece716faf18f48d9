"""`ugt bench train` on the smallest workload: its figures hang together."""

from __future__ import annotations

import numpy as np
import pytest

from ray_app.bench import train as bench
from ugt.model.config import ModelConfig, TrainingConfig


def test_the_report_says_how_fast_a_step_is_and_what_a_second_worker_brings() -> None:
    model, training = ModelConfig(width=16, max_length=8), TrainingConfig(batch_size=16, threads=1, dense_negatives=16)
    report = bench.run(model, training, items=300, mean_length=6, vector_width=12, steps=3, rounds=2)
    assert report["positions_per_second"] > 0
    assert report["flops_per_second"] == pytest.approx(report["flops_per_step"] / report["step_ms"] * 1e3, rel=0.02)
    assert 0 < report["share_of_arithmetic_limit"] < 1
    two = report["two_workers"]
    assert two["ratio"] == pytest.approx(float(np.median(two["ratios"])), abs=2e-3)
    assert report["workload"]["items"] == 300


def test_generated_histories_have_the_mean_length_and_items_of_their_own() -> None:
    ids, vectors, histories = bench.generated(2000, 9.0, 8, 4000)
    assert len(ids) == len(vectors) == 2000
    assert len({tuple(codes) for codes in ids.codes_N3.tolist()}) == 2000
    assert (histories.lengths - 2).mean() == pytest.approx(9.0, rel=0.05)  # what is trained on: two are held out
    assert histories.items.max() < 2000
