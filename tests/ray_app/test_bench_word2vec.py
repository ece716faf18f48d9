"""`ugt bench word2vec` on the smallest workload: its figures hang together."""

from __future__ import annotations

import statistics

import pytest

from ray_app.bench import word2vec as bench


@pytest.mark.ray
def test_the_report_says_how_fast_and_how_good_each_contender_is(ray_session: None) -> None:
    report = bench.run(bench.Word2VecBench(titles=400, users=80, events=2_000, epochs=30, rounds=2))
    assert report["ours_same_bytes_as_gensim"]  # the same parameters, the same seed, the same order of sentences
    first, second = report["rounds"]
    row = next(row for row in report["rows"] if row["name"].startswith("words per core, one Ray worker"))
    assert row["value"] == pytest.approx(
        statistics.median(r["ray_1"]["words_per_cpu_second"] / r["gensim"]["words_per_cpu_second"] for r in (first, second)), abs=1e-3
    )
    for name in bench.CONTENDERS:
        for kind in ("director", "genre"):
            assert report["quality"][kind][name]["rate"] > report["quality"][kind]["chance"]
    assert first["gensim"]["same_director@10"] != second["gensim"]["same_director@10"]  # another seed
    assert report["corpus"]["words"] == sum(of["words"] for of in report["corpus"]["families"].values())
    assert report["contenders"]["ray_2"]["averaging_seconds"] > 0
