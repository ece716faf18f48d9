"""One way to start a Ray Train run: a group of workers, on GPUs where the cluster has one for each, whose progress shows in the dashboard.

What resumes a run is the worker's own state under `work_dir` (one file, written aside and renamed), not Ray's run folder, which is
therefore made anew each time. Ray restarts a crashed worker group; an elastic one with as many workers as the cluster then has room for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESTARTS, ELASTIC_RESTARTS = 2, 20  # an elastic training is meant for nodes that come and go


def run(
    worker: Callable[[dict[str, Any]], None],
    task: dict[str, Any],
    name: str,
    work_dir: Path,
    workers: int = 1,
    cpus: float = 1.0,
    min_workers: int = 0,
) -> None:
    """Run `worker(task)` on `workers` Ray Train workers of `cpus` CPUs each and wait for the end. Needs a running Ray.

    With `min_workers`, on as many as there is room for, from that up to `workers`.

    Raises what the worker raised, wrapped by Ray.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # the dashboard's Train page
    # the controller takes one report a poll, and a worker waits until its last one was taken: at Ray's 2 s, 30 short epochs take a minute
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    if workers == 1:
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # one process more, for nodes that a cloud takes away
    storage = Path(work_dir).absolute() / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    gpus = ray.cluster_resources().get("GPU", 0) >= workers
    TorchTrainer(
        worker,
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(min_workers, workers) if min_workers else workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpus else {}),
            elastic_resize_monitor_interval_s=600,  # a larger group redoes the epoch it interrupts
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=ELASTIC_RESTARTS if min_workers else RESTARTS),
        ),
    ).fit()
