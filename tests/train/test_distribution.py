"""One training on any number of workers: DDP and DeepSpeed ZeRO 0-3 give the curve of one worker, and a checkpoint goes on under any other spread.

Workers are processes with a gloo group, as Ray Train starts them; the same on Ray is in `tests/train/test_ugt.py`. Where curves are compared, dropout and
jitter are off (each worker draws its own) and the experts' capacity is never reached (it is a share of a worker's tokens).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.engines import check
from train.loop import STATE
from ugt import histories as history_files
from ugt.histories import HistoryConfig
from ugt.model.config import ModelConfig, StageConfig, TrainingConfig
from ugt.schema import UGTError
from ugt.scoring import load_checkpoint, rank_users, user_codes

ROOT = Path(__file__).resolve().parents[2]
N, USERS_COUNT, STEPS = 64, 96, 8
MODEL = ModelConfig(width=16, max_length=10, encoder_dropout=0.0, decoder_dropout=0.0, router_jitter=0.0, capacity_factor=2.0)  # 4 experts, 2 a token
TRAINING = TrainingConfig(
    batch_size=12, threads=1, validate_every=100, dense_negatives=16, validation_users=16, stage1=StageConfig(epochs=25, learning_rate=3e-3)
)
WORKER = """
import json, sys
import torch.distributed as dist
from train.ugt import train_stage

task, rank, workers, store, last = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)

def report(row):
    if row["epoch"] == last:
        sys.exit(0)

train_stage(task, rank, workers, report)
"""


@pytest.fixture(scope="module")
def world(write_world: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    lists = [((rng.integers(N) + np.arange(rng.integers(4, 14)) * rng.integers(1, 4)) % N).tolist() for _ in range(USERS_COUNT)]
    return write_world(tmp_path_factory.mktemp("world"), lists, rng.normal(size=(N, 6)))


def train(world: Path, work: str, workers: int, last: int = -2, model: ModelConfig = MODEL, **changes: Any) -> Path:
    """Train stage 1 on `workers` processes; they end as if killed after epoch `last`."""
    (world / work).mkdir(exist_ok=True)
    folders = {"histories_dir": "histories", "users_dir": "etl/users", "semantic_ids_dir": "semantic_ids", "work_dir": work}
    training = TrainingConfig(**(TRAINING.model_dump() | changes))
    task = {name: str(world / path) for name, path in folders.items()} | {
        "stage": 1,
        "init_dir": None,
        "model": model.model_dump(),
        "training": training.model_dump(),
        "history": HistoryConfig().model_dump(),
    }
    store = world / work / f"store-{workers}-{last}"
    # to files, not pipes: DeepSpeed says enough to fill the pipe of a rank that nobody reads yet, which would then wait for ever
    logs = [world / work / f"rank-{rank}.log" for rank in range(workers)]
    running = []
    for rank in range(workers):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
        environment = os.environ | place | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, json.dumps(task), str(rank), str(workers), str(store), str(last)]
        with open(logs[rank], "w") as log:
            running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in running:
            process.wait(timeout=500)
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * workers, "\n".join(log.read_text()[-4000:] for log in logs)
    return world / work


def losses(work: Path) -> list[float]:
    rows = [json.loads(line) for line in (work / "result/curve.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows[1:]]


@pytest.fixture(scope="module")
def alone(world: Path) -> Path:
    work = train(world, "alone", 1)
    assert len(losses(work)) * STEPS == 200
    assert losses(work)[-1] < 0.7 * losses(work)[0]
    return work


def top10(world: Path, checkpoint: Path) -> np.ndarray:
    model = load_checkpoint(checkpoint, world / "semantic_ids")
    split = HistoryConfig().apply(history_files.load(world / "histories"))
    users = np.flatnonzero(split.evaluated)
    codes = user_codes(world / "etl/users", [split.histories.user_ids[u] for u in users], model.vocabulary)
    return rank_users(model, split, users, "test", False, codes, top_k=10)["fused"]


SPREADS = {"ddp": {}} | {f"zero {stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in range(4)}


@pytest.mark.parametrize("spread", SPREADS)
def test_two_workers_have_the_curve_the_moments_and_the_answers_of_one(world: Path, alone: Path, spread: str) -> None:
    """200 steps of the same global batch. Fault 17: the file that rank 0 writes holds what every rank knows, weights and moments, of the whole model."""
    work = train(world, spread, 2, **SPREADS[spread])
    assert losses(work) == pytest.approx(losses(alone), abs=1e-3)
    np.testing.assert_array_equal(top10(world, work / "result"), top10(world, alone / "result"))
    one, two = (torch.load(x / STATE, weights_only=True) for x in (alone, work))
    assert set(one["moments"]) <= set(two["moments"])
    for name, state in one["moments"].items():
        assert float(state["step"]) == float(two["moments"][name]["step"]) == 200
        for key in ("exp_avg", "exp_avg_sq"):
            scale = max(float(state[key].abs().max()), 1e-6)
            assert float((state[key] - two["moments"][name][key]).abs().max()) < 0.05 * scale, name


@pytest.mark.parametrize(
    ("before", "workers_before", "after", "workers_after"),
    [("ddp", 1, "ddp", 2), ("zero 2", 2, "ddp", 1), ("ddp", 1, "zero 3", 2), ("zero 1", 2, "zero 1", 1)],
)
def test_a_killed_training_goes_on_under_another_number_of_workers(
    world: Path, alone: Path, before: str, workers_before: int, after: str, workers_after: int
) -> None:
    work = f"{before}-{after}-{workers_after}"
    train(world, work, workers_before, last=11, **SPREADS[before])
    assert torch.load(world / work / STATE, weights_only=True)["progress"]["epoch"] == 12
    train(world, work, workers_after, **SPREADS[after])
    assert losses(world / work) == pytest.approx(losses(alone), abs=1e-3)
    np.testing.assert_array_equal(top10(world, world / work / "result"), top10(world, alone / "result"))


def test_a_step_in_parts_has_the_curve_of_the_whole_step(world: Path, alone: Path) -> None:
    """To 1e-2: the balance loss of the experts, the one term that is not a sum over targets, is that of each part."""
    parts = losses(train(world, "parts", 1, accumulation=3))
    assert parts == pytest.approx(losses(alone), abs=1e-2)
    assert losses(train(world, "parts-of-two", 2, accumulation=3)) == pytest.approx(parts, abs=1e-2)  # gradients are exchanged in the last part alone


def test_without_deepspeed_the_strategy_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check("ddp")
    with pytest.raises(UGTError, match=r"deepspeed is not installed\. Run `pip install deepspeed"):
        check("deepspeed")
