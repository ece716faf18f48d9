"""`ugt bench train`: positions trained per second in stage 1, their share of the arithmetic limit, and what a second worker brings.

Choices: generated histories, so it needs no data; the loop's own engine, optimizer and batches. Three processes take turns, round by round: one alone on
whole batches, then a large matrix product in it, then the two others as DDP on half of each batch; who waits sleeps. So other load on
the machine meets all alike; figures are medians over rounds. A position is one target. The arithmetic of a step is what PyTorch's
FLOP counter finds in its products (on a CPU it does not see inside attention, a few percent); the limit is the speed of the large product at the same threads.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from ray_app.report import host
from train.engines import TorchEngine
from train.stages import StageObjective
from train.windows import TrainingWindows
from ugt.histories import Histories
from ugt.model.config import ModelConfig, TrainingConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.scoring import tensors
from ugt.semantic_ids import SemanticIds

MATMUL = 2048  # side of the large product


def run(
    model: ModelConfig, training: TrainingConfig, items: int = 12_101, mean_length: float = 7.0, vector_width: int = 300, steps: int = 10, rounds: int = 5
) -> dict[str, Any]:
    """Measure; `steps` training steps per turn, `rounds` turns of each kind. Returns the report, as docs/training.md names its fields."""
    workload = {"items": items, "mean_length": mean_length, "vector_width": vector_width, "steps": steps, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.pt"
        turns = mp.get_context("spawn").Barrier(3)
        mp.spawn(_worker, (folder, out, turns, model.model_dump(), training.model_dump(), workload), nprocs=3)
        measured = torch.load(out)
    alone, both, limit = (np.array(measured[name]) for name in ("alone", "both", "matmul"))
    rate = measured["targets"] / alone
    figures = {
        "positions_per_second": round(float(np.median(rate)), 1),
        "step_ms": round(float(np.median(alone)) / steps * 1e3, 2),
        "flops_per_step": int(measured["flops"]),
        "flops_per_second": float(f"{measured['flops'] * steps / np.median(alone):.4g}"),
        "matmul_flops_per_second": float(f"{np.median(limit):.4g}"),
        "share_of_arithmetic_limit": round(float(np.median(measured["flops"] * steps / alone / limit)), 3),
        "two_workers": {
            "positions_per_second": round(float(np.median(measured["targets"] / both)), 1),
            "ratio": round(float(np.median(alone / both)), 3),
            "ratios": [round(float(x), 3) for x in alone / both],
        },
        "parameters": measured["parameters"],
    }
    return figures | {"workload": workload, "model": model.model_dump(), "training": training.model_dump(mode="json"), "host": host()}


def generated(items: int, mean_length: float, vector_width: int, users: int, seed: int = 0) -> tuple[SemanticIds, np.ndarray, Histories]:
    """A catalogue of square codebooks with random groups, and histories of geometric length over popular and rare items."""
    rng = np.random.default_rng(seed)
    codes = max(2, round(items**0.25 * 6))  # 63 for 12,101 items: three items a group
    group_N = rng.integers(0, codes * codes, items)
    place_N = np.zeros(items, np.int64)
    order = np.argsort(group_N, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(group_N[order])) + 1]
    place_N[order] = np.arange(items) - np.repeat(starts, np.diff(np.r_[starts, items]))
    codes_N3 = np.stack([group_N // codes, group_N % codes, place_N], axis=1)
    ids = SemanticIds.from_codes(codes_N3, [f"i{i:07d}" for i in range(items)], codes, codes, int(place_N.max()) + 1)
    lengths = 4 + rng.geometric(1 / max(1.0, mean_length - 2), users)  # two events of each are held out
    events = int(lengths.sum())
    items_E = (rng.random(events) ** 3 * items).astype(np.int32)
    same = np.ones(events, np.int32)
    times = 1_300_000_000 + np.arange(events, dtype=np.int64) * 86_400
    histories = Histories([f"u{i}" for i in range(users)], np.r_[0, np.cumsum(lengths)].astype(np.int64), items_E, same, same * np.float32(np.nan), times)
    return ids, rng.normal(size=(items, vector_width)).astype(np.float32), histories


def _worker(
    place: int, folder: str, out: Path, turns: Barrier, model_config: dict[str, Any], training_config: dict[str, Any], workload: dict[str, Any]
) -> None:
    """Process 0 trains alone and measures; 1 and 2 are the DDP workers of rank 0 and 1."""
    training, steps = TrainingConfig(**training_config), workload["steps"]
    torch.set_num_threads(training.threads)
    rank, workers = max(0, place - 1), 2 if place else 1
    if place:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    ids, vectors, histories = generated(workload["items"], workload["mean_length"], workload["vector_width"], training.batch_size * steps)
    windows = TrainingWindows(
        histories.split(3), np.zeros((len(histories), 3), np.int64), model_config["max_length"], training.window_overlap, training.batch_size, 0
    )
    batches = windows.epoch(0)[:steps]
    torch.manual_seed(0)
    model = UGT(ModelConfig(**model_config), ids, vectors, UserVocabulary([], []))
    objective = StageObjective(model, training.stage1, training, torch.from_numpy(windows.item_counts(len(ids)))).train()
    engine = TorchEngine(objective, model, training.stage1.learning_rate, training.weight_decay, training.gradient_clip, 1)
    engine.start(None, None, dict)

    def train() -> None:
        for batch in batches:
            made = windows.batch(batch, rank, workers)
            engine.backward(engine.module(tensors(made.inputs))["loss"], made.targets)
            engine.step()

    def both_workers() -> None:
        if place:
            train()
        turns.wait()

    square = torch.randn(MATMUL, MATMUL)
    measured: dict[str, Any] = {"alone": [], "both": [], "matmul": []}
    for turn in range(-1, workload["rounds"]):  # the first round warms up
        turns.wait()
        if place == 0:
            alone, product = _timed(train), _timed(lambda: [square @ square for _ in range(3)])
        turns.wait()
        both = _timed(both_workers)
        if place == 0 and turn >= 0:
            measured["alone"].append(alone)
            measured["matmul"].append(3 * 2 * MATMUL**3 / product)
            measured["both"].append(both)
    if place == 0:
        flops = []
        for batch in batches:
            with FlopCounterMode(display=False) as counter:
                objective(tensors(windows.batch(batch).inputs))["loss"].backward()
            flops.append(counter.get_total_flops())
        measured |= {"flops": statistics.mean(flops), "targets": sum(windows.batch(b).targets for b in batches)}
        torch.save(measured | {"parameters": sum(p.numel() for p in model.parameters())}, out)
    else:
        dist.destroy_process_group()


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
