"""A killed run, started again, keeps what was finished and ends on the same figures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_second_run_skips_every_step_and_reports_the_same_figures(tiny_run, run_demo) -> None:
    again = run_demo(tiny_run.home, port=8101)
    skipped = {name: step["skipped"] for name, step in again.report["steps"].items() if name not in {"serve", "requests"}}
    assert all(skipped.values()), skipped
    assert again.report["metrics"] == tiny_run.report["metrics"]
    assert again.report["model_version"] == tiny_run.report["model_version"]


def test_a_killed_training_ends_on_the_same_metrics(tiny_run, run_demo, tmp_path: Path) -> None:
    """SIGKILL in stage 1, then a second run: the final metrics are those of the run that was never killed."""
    home = tmp_path / "home"
    for step in ("source", "etl", "histories", "features", "text", "fusion", "corpus", "word2vec", "semantic_ids"):
        shutil.copytree(tiny_run.home / "artifacts" / step, home / "artifacts" / step)
    env = os.environ | {"UGT_HOME": str(home), "UGT_SERVE__PORT": "8102", "UGT_RAY__DASHBOARD_PORT": "8465"}
    command = [sys.executable, "-m", "ray_app", "train", "ugt", "--config", str(ROOT / "configs" / "tiny.yaml")]
    victim = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any((home / "work" / "ugt_stage1").glob("*/**/*")) and time.monotonic() < deadline:
        assert victim.poll() is None, "the run ended before it could be killed"
        time.sleep(0.2)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not any((home / "artifacts").glob("ugt_stage3/*/manifest.json"))
    resumed = run_demo(home, port=8102)
    assert resumed.report["metrics"] == tiny_run.report["metrics"]
