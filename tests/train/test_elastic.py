"""A training on (1, 2) workers whose second node dies goes on with what is left, to the end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from train import ugt
from train.loop import STATE
from ugt.model.config import ModelConfig, StageConfig, TrainingConfig

N, USERS_COUNT, EPOCHS = 64, 96, 60


@pytest.fixture
def two_nodes() -> Iterator[object]:
    """A cluster of two nodes with one CPU each: the head, and one that can be lost."""
    import ray
    from ray.cluster_utils import Cluster

    assert not ray.is_initialized()
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S")}
    os.environ.pop("RAY_AUTH_MODE", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
        ray.init(address=cluster.address, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}}, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value


def test_a_worker_killed_mid_epoch_with_its_node_leaves_a_training_that_ends(two_nodes: object, write_world: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, N, rng.integers(4, 14)).tolist() for _ in range(USERS_COUNT)]
    root, work = write_world(tmp_path, lists, rng.normal(size=(N, 6))), tmp_path / "work"
    work.mkdir()
    training = TrainingConfig(batch_size=8, threads=1, workers=2, min_workers=1, validate_every=100, validation_users=8, stage1=StageConfig(epochs=EPOCHS))
    seen: dict[str, object] = {}

    def kill() -> None:
        while not (work / STATE).is_file():
            time.sleep(0.05)
        seen["epoch"] = torch.load(work / STATE, weights_only=True)["progress"]["epoch"]
        node = next(iter(two_nodes.worker_nodes))  # type: ignore[attr-defined]
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        seen["killed"] = [p.pid for p in raylet.children(recursive=True) if "TrainWorker" in " ".join(p.cmdline())]
        for pid in seen["killed"]:
            os.kill(pid, signal.SIGKILL)
        two_nodes.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]

    thread = threading.Thread(target=kill)
    thread.start()
    inputs = (root / "histories", root / "etl/users", root / "semantic_ids")
    figures = ugt.run(1, *inputs, ModelConfig(width=16, max_length=10), training, None, root / "out", work)
    thread.join()
    assert len(seen["killed"]) == 1
    assert 0 < int(str(seen["epoch"])) < EPOCHS
    assert figures["epochs"] == EPOCHS
    rows = [json.loads(line) for line in (root / "out/curve.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(-1, EPOCHS))  # each epoch once, the interrupted one too
    assert len({row["targets"] for row in rows[1:]}) == 1
    assert rows[-1]["loss"] < rows[1]["loss"]
