"""The quality bench from raw files: within its budget, with every figure it promises, and honest about a budget that is too small."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
import yaml
from rich.console import Console

from ray_app import steps
from ray_app.bench import quality
from ugt.schema import UGTError
from ugt.settings import load_settings

SMALL = {
    "text": {"enabled": False},
    "word2vec": {"width": 16, "epochs": 1, "min_words": 0},
    "semantic_ids": {"fused_weight": 0, "cooccurrence_weight": 4},
    "model": {"width": 16, "encoder_layers": 1},
    "training": {"validation_users": 100, "stage2": {"epochs": 0}, "stage3": {"epochs": 0}},
    "evaluation": {"bootstrap_samples": 100},
    "ray": {"num_cpus": 4},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 users who walk along a ring of 60 items, nobody twice to the same one."""
    rng, data = random.Random(0), tmp_path / "data"
    data.mkdir()
    lines = []
    for user in range(200):
        at = rng.randrange(60)
        lines.append(f"{user} " + " ".join(str((at + i * rng.choice((1, 1, 1, 2))) % 60) for i in range(rng.randint(5, 12))))
    (data / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


def flags(folder: Path) -> dict[str, str]:
    return {"source": "sequences", "data_dir": str(folder / "data"), "home": str(folder / "home")}


@pytest.mark.ray
def test_the_bench_trains_within_its_budget_and_reports_what_it_promises(ray_session: None, folder: Path) -> None:
    report = quality.run(flags(folder), folder / "small.yaml", 1.0, Console(quiet=True), folder / "top.parquet")
    assert 0 < report["train_seconds"] <= 60
    assert report["cpu_seconds"] > 0
    assert report["text_seconds"] == 0
    assert report["source"] == "sequences"
    for head in (report["fused"], report["generative"], report["dense"], report["baselines"]["popularity"], report["baselines"]["item_knn"]):
        for rule in ("unfiltered", "filtered"):
            assert {f"{m}@{k}" for m in ("recall", "ndcg", "hit", "mrr", "map") for k in (5, 10, 20, 50)} <= set(head[rule])
    assert report["fused"]["filtered"]["recall@10"] > 2 * report["baselines"]["popularity"]["filtered"]["recall@10"]
    lists = pl.read_parquet(folder / "top.parquet")
    assert lists.filter((pl.col("head") == "fused") & pl.col("filtered")).height == report["protocol"]["users_evaluated"] == 200
    assert not list((folder / "home/bench/quality/artifacts").glob("ugt_stage[23]/*"))  # stages without epochs are left out, not run empty


@pytest.mark.ray
def test_a_budget_that_leaves_no_time_for_training_is_refused(ray_session: None, folder: Path) -> None:
    with pytest.raises(UGTError, match="Raise --budget-minutes"):
        quality.run(flags(folder), folder / "small.yaml", 0.2, Console(quiet=True))


@pytest.mark.parametrize(("minutes", "length", "name"), [(3, 9, "quality-short"), (20, 9, "quality"), (60, 165, "quality-long-histories")])
def test_a_recipe_is_a_preset_for_a_budget_and_a_kind_of_history(minutes: float, length: float, name: str) -> None:
    path = quality.recipe(minutes, length)
    assert path.name == f"{name}.yaml"
    assert steps.stages(load_settings(path)) == [1]


def test_the_last_stage_that_is_trained_is_the_one_evaluated() -> None:
    settings = load_settings(None, {"training.stage3.epochs": 0})
    assert steps.last_stage(settings) == "ugt_stage2"
    assert steps.last_stage(load_settings(None)) == "ugt_stage3"
