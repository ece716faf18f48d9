"""`ugt bench train`: positions trained per second in stage 1, their share of the arithmetic limit, and what a second worker brings.

Choices: generated histories, so it needs no data; the loop's own engine, optimizer and batches. Two processes with one gloo group take turns, round by round:
rank 0 alone on whole batches while the other sleeps, then both as DDP on half of each, then a large matrix product, so that other load
on the machine meets all three alike; figures are medians over rounds. A position is one target. The arithmetic of a step is what PyTorch's
FLOP counter finds in its products (on a CPU it does not see inside attention, a few percent); the limit is the speed of the large product at the same threads.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
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
    """Measure; `steps` training steps per turn, `rounds` turns of each kind. Returns the report, as docs/evaluation.md names its fields."""
    workload = {"items": items, "mean_length": mean_length, "vector_width": vector_width, "steps": steps, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.pt"
        mp.spawn(_worker, (2, folder, out, model.model_dump(), training.model_dump(), workload), nprocs=2)
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


def _worker(rank: int, workers: int, folder: str, out: Path, model_config: dict[str, Any], training_config: dict[str, Any], workload: dict[str, Any]) -> None:
    training, steps = TrainingConfig(**training_config), workload["steps"]
    os.environ["OMP_NUM_THREADS"] = str(training.threads)
    torch.set_num_threads(training.threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    ids, vectors, histories = generated(workload["items"], workload["mean_length"], workload["vector_width"], training.batch_size * steps)
    windows = TrainingWindows(
        histories.split(3), np.zeros((len(histories), 3), np.int64), model_config["max_length"], training.window_overlap, training.batch_size, 0
    )
    batches = windows.epoch(0)[:steps]
    counts_N = torch.from_numpy(windows.item_counts(len(ids)))

    def trainer(spread: bool) -> tuple[Callable[[], None], StageObjective]:
        torch.manual_seed(0)
        model = UGT(ModelConfig(**model_config), ids, vectors, UserVocabulary([], []))
        objective = StageObjective(model, training.stage1, training, counts_N).train()
        engine = TorchEngine(objective, model, training.stage1.learning_rate, training.weight_decay, training.gradient_clip, 1)
        engine.workers = workers if spread else 1
        engine.start(None, None, dict)

        def epoch() -> None:
            for batch in batches:
                made = windows.batch(batch, rank if spread else 0, workers if spread else 1)
                engine.backward(engine.module(tensors(made.inputs))["loss"], made.targets)
                engine.step()

        return epoch, objective

    both, _ = trainer(spread=True)
    alone, objective = trainer(spread=False)
    square = torch.randn(MATMUL, MATMUL)
    measured: dict[str, Any] = {"alone": [], "both": [], "matmul": []}
    for turn in range(-1, workload["rounds"]):  # the first round warms up
        dist.barrier()
        if rank == 0:
            seconds = _timed(alone)
            product = _timed(lambda: [square @ square for _ in range(3)])
        dist.barrier()
        together = _timed(both)
        if rank == 0 and turn >= 0:
            measured["alone"].append(seconds)
            measured["matmul"].append(3 * 2 * MATMUL**3 / product)
            measured["both"].append(together)
    if rank == 0:
        flops = []
        for batch in batches:
            with FlopCounterMode(display=False) as counter:
                objective(tensors(windows.batch(batch).inputs))["loss"].backward()
            flops.append(counter.get_total_flops())
        measured |= {"flops": statistics.mean(flops), "targets": sum(windows.batch(b).targets for b in batches)}
        torch.save(measured | {"parameters": sum(p.numel() for p in objective.parameters())}, out)
    dist.barrier()
    dist.destroy_process_group()


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
