"""`ugt bench features` on a small load: its figures hang together."""

from __future__ import annotations

import pytest

from ray_app.bench import features as bench


def test_the_report_says_what_a_read_costs_beyond_a_bare_round_trip() -> None:
    report = bench.run(reads=60, users=5, others=20, events=100)
    assert report["p99_beyond_bare_ms"] == pytest.approx(report["state"]["p99_ms"] - report["bare"]["p99_ms"], abs=2e-4)
    assert 0 < report["bare"]["p50_ms"] < report["state_and_features"]["p50_ms"]
    assert (report["reads"], report["events_per_user"]) == (60, 100)
