"""What the Ray dashboard showed of the demo while it ran, read from the dashboard's own HTTP API."""

from __future__ import annotations

from ray_app.steps import STEP_NAMES


def test_the_job_was_shown(tiny_run) -> None:
    assert "DRIVER RUNNING" in tiny_run.dashboard["jobs"]


def test_every_step_was_shown_as_a_task(tiny_run) -> None:
    assert {f"step {name}" for name in STEP_NAMES} <= tiny_run.dashboard["tasks"]


def test_data_and_train_runs_were_shown(tiny_run) -> None:
    assert tiny_run.dashboard["datasets"]
    assert tiny_run.dashboard["train_runs"]


def test_the_app_was_shown_running(tiny_run) -> None:
    assert "ugt RUNNING" in tiny_run.dashboard["apps"], tiny_run.dashboard["apps"]


def test_our_metrics_were_exported_to_the_dashboards_prometheus_endpoint(tiny_run) -> None:
    assert "ray_ugt_step_seconds" in tiny_run.dashboard["series"]
    assert any(name.startswith("ray_ugt_requests") for name in tiny_run.dashboard["series"]), tiny_run.dashboard["series"]
