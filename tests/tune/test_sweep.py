"""A real Ray Tune sweep over a cheap objective: it finds the best, stops the rest early, and goes on after a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune import sweep
from tune.spaces import Choice, Range
from ugt.schema import UGTError

pytestmark = pytest.mark.ray
SPACE = {"model.encoder_dropout": Range(low=0.0, high=0.6), "model.width": Choice(values=(64, 128))}
CONFIG = sweep.SweepConfig(trials=8, concurrent=2, max_reports=9, grace_reports=1, seed=3)


def test_a_sweep_stops_bad_trials_resumes_failed_ones_and_keeps_the_rest(ray_session: None, tmp_path: Path) -> None:
    mended, runs = tmp_path / "mended", tmp_path / "runs"
    runs.mkdir()

    def fit(values, report):
        name = f"{values['model.width']}-{values['model.encoder_dropout']:.6f}"
        with open(runs / name, "a") as f:
            f.write("x")
        if values["model.encoder_dropout"] > 0.4 and not mended.exists():
            raise RuntimeError("the machine went away")
        for epoch in range(1, 10):
            report({"validation_ndcg@10": epoch * (1.0 - abs(values["model.encoder_dropout"] - 0.3))})

    first = sweep.run(fit, SPACE, CONFIG, tmp_path / "sweeps")
    failed = [t for t in first.trials if t.error]
    assert 0 < len(failed) < 8
    assert "the machine went away" in (failed[0].error or "")
    done_before = {p.name: p.read_text() for p in runs.iterdir()}

    mended.touch()
    second = sweep.run(fit, SPACE, CONFIG, tmp_path / "sweeps")
    assert not [t for t in second.trials if t.error]
    assert len(second.trials) == 8
    repeated = {p.name for p in runs.iterdir() if p.read_text() != done_before.get(p.name)}
    assert repeated == {f"{t.values['model.width']}-{t.values['model.encoder_dropout']:.6f}" for t in failed}

    best = min(second.trials, key=lambda t: abs(t.values["model.encoder_dropout"] - 0.3))
    assert second.best == best.values
    assert second.metric == pytest.approx(9 * (1.0 - abs(best.values["model.encoder_dropout"] - 0.3)))
    assert min(t.reports for t in second.trials) < 9
    assert all(0.0 <= t.values["model.encoder_dropout"] <= 0.6 and t.values["model.width"] in (64, 128) for t in second.trials)


def test_a_sweep_in_which_everything_fails_says_why(ray_session: None, tmp_path: Path) -> None:
    def fit(values, report):
        raise ValueError("no such column")

    with pytest.raises(UGTError, match=r"all 2 trials .* failed: .*no such column"):
        sweep.run(fit, SPACE, CONFIG.model_copy(update={"trials": 2}), tmp_path)
