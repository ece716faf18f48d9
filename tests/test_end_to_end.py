"""One end-to-end run of `tiny`: everything real, from generated files to served recommendations."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from ray_app.steps import STEP_NAMES
from ugt.runtime import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent


def test_the_report_has_every_promised_field(tiny_run) -> None:
    report = tiny_run.report
    assert {"total_seconds", "peak_rss_gb", "steps", "data", "metrics", "intervals", "serving", "feedback_visible", "model_version", "host"} <= set(report)
    assert {"ugt", "popularity", "item_knn", "oracle"} <= set(report["metrics"])
    assert all("recall@10" in row and "ndcg@10" in row for row in report["metrics"].values())
    assert {"requests", "illegal_items", "p50_ms", "p99_ms"} <= set(report["serving"])
    assert set(STEP_NAMES) <= set(report["steps"])
    assert all({"seconds", "skipped"} == set(step) for step in report["steps"].values())


def test_every_request_was_answered_legally_and_feedback_was_seen(tiny_run) -> None:
    serving = tiny_run.report["serving"]
    assert serving["requests"] == 500
    assert serving["illegal_items"] == 0
    assert tiny_run.report["feedback_visible"] is True


def test_the_model_answered_not_a_fallback(tiny_run) -> None:
    sources = tiny_run.report["serving"]["sources"]
    assert sources.get("ugt", 0) > sources.get("popular", 0), sources


def test_the_screen_says_that_the_data_is_generated(tiny_run) -> None:
    assert "GENERATED" in tiny_run.output


def test_metrics_can_be_recomputed_from_the_predictions(tiny_run) -> None:
    """Anyone can check the headline: top-50 lists against each user's held-out last event, in plain polars."""
    ratings = pl.read_csv(tiny_run.artifacts["source"] / "movielens" / "ratings.csv", schema_overrides={"userId": pl.String, "movieId": pl.String})
    ratings = ratings.with_row_index("order").sort("userId", "timestamp", "order")
    last = ratings.group_by("userId", maintain_order=True).agg(pl.col("movieId").last().alias("target"), pl.len().alias("events")).filter(pl.col("events") >= 3)
    predictions = pl.read_parquet(tiny_run.artifacts["evaluate"] / "predictions.parquet")
    for head, name in (("fused", "ugt"), ("popularity", "popularity"), ("item_knn", "item_knn"), ("oracle", "oracle")):
        rows = predictions.filter((pl.col("head") == head) & pl.col("filtered")).join(last, left_on="user_id", right_on="userId")
        assert rows.height == last.height, head
        hits = rows.select(pl.col("item_ids").list.head(10).list.contains(pl.col("target")).mean()).item()
        assert abs(hits - tiny_run.report["metrics"][name]["recall@10"]) < 1e-9, head


def test_evaluate_with_curves_measures_every_strategy_and_draws_them(tiny_run, tmp_path: Path) -> None:
    env = os.environ | {"UGT_HOME": str(tiny_run.home), "UGT_RAY__DASHBOARD_PORT": "8465"}
    flags = ["--config", "configs/tiny.yaml", "--curves", "--json", str(tmp_path / "figures.json"), "--report", str(tmp_path / "page.html")]
    done = subprocess.run([sys.executable, "-m", "ray_app", "evaluate", *flags], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert {name.split(",")[0] for name in report["curves"]["curves"]} == set(STRATEGIES)
    assert report["metrics"] == tiny_run.report["metrics"]  # the evaluation itself was kept
    page = (tmp_path / "page.html").read_text()
    assert "Accuracy and diversity" in page
    assert all(name.replace("_", " ") in page for name in report["curves"]["curves"])


def _ugt(home: Path, *arguments: str) -> str:
    env = os.environ | {"UGT_HOME": str(home)}
    done = subprocess.run([sys.executable, "-m", "ray_app", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_served_version_leads_back_to_the_files_it_was_made_from(tiny_run, tmp_path: Path) -> None:
    shown = _ugt(tiny_run.home, "data", "lineage", "production", "--json", str(tmp_path / "lineage.json"))
    found = json.loads((tmp_path / "lineage.json").read_text())
    assert found["root"] == f"version {tiny_run.report['model_version']}"
    assert found["broken"] == []
    assert {node.split("/")[0] for node in found["nodes"]} == {found["root"], *tiny_run.artifacts} - {"curves"}
    source = found["nodes"][f"source/{tiny_run.artifacts['source'].name}"]
    digest = hashlib.sha256((tiny_run.artifacts["source"] / "movielens" / "ratings.csv").read_bytes()).hexdigest()
    assert source["hashes"]["movielens/ratings.csv"] == digest
    assert "generated from its settings" in shown
    _ugt(tiny_run.home, "data", "catalog", "--verify")


def test_a_user_can_be_erased_from_a_whole_run(tiny_run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny_run.home, home, ignore=shutil.ignore_patterns("state"))
    _ugt(home, "data", "erase", "7", "--json", str(tmp_path / "proof.json"))
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["proven"]
    removed = {place["place"].split("/")[0] for place in proof["places"] if place["removed"]}
    assert {"source", "etl", "histories", "baselines", "evaluate"} <= removed
    for path in home.rglob("*.parquet"):
        if "user_id" in pl.read_parquet_schema(path):
            assert pl.read_parquet(path).filter(pl.col("user_id") == "7").height == 0, path
    _ugt(home, "data", "catalog", "--verify")
