"""SASRec beside UGT, in the same loop, on the same windows and batches, with as many shared negatives; the best epoch on validation is kept.

A killed run, started again with the same work folder, resumes after its last finished epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train import trainer
from train.baselines import validation_ndcg
from train.loop import Plan, Step, fit
from train.windows import TrainingWindows, Window
from ugt import histories as history_files
from ugt import sasrec
from ugt.artifacts import ITEMS, read_table, write_text
from ugt.evaluation import SasRecConfig
from ugt.histories import HistoryConfig
from ugt.model.inputs import USER_ATTRIBUTES
from ugt.sasrec import SasRec, SasRecObjective
from ugt.schema import UGTError
from ugt.scoring import tensors

FAILURE, RESULT = "failure.txt", "result"
FILES = (sasrec.WEIGHTS, sasrec.CARD, "curve.jsonl")


def run(etl_dir: Path, histories_dir: Path, config: SasRecConfig, out_dir: Path, work_dir: Path, history: HistoryConfig = HistoryConfig()) -> dict[str, Any]:
    """Train on one Ray Train worker; write `sasrec.safetensors`, `sasrec.json`, `curve.jsonl`. `config` is settled (`SasRecConfig.like`).

    Returns its figures. Raises UGTError for a loss that isn't finite.
    """
    work_dir, out_dir = Path(work_dir).absolute(), Path(out_dir)
    (work_dir / FAILURE).unlink(missing_ok=True)
    task = {
        "items": read_table(Path(etl_dir) / "items", ITEMS).num_rows,
        "histories_dir": str(Path(histories_dir).absolute()),
        "config": config.model_dump(),
        "history": history.model_dump(),
        "work_dir": str(work_dir),
    }
    trainer.run(worker, task, "sasrec", work_dir)
    if (work_dir / FAILURE).is_file():
        raise UGTError((work_dir / FAILURE).read_text())
    figures: dict[str, Any] = json.loads((work_dir / RESULT / "figures.json").read_text())
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out_dir / name).write_bytes((work_dir / RESULT / name).read_bytes())
    return figures


def worker(task: dict[str, Any]) -> None:
    """The Ray Train worker. A user's error is written to the work folder and not raised: Ray would take it for a crash and try again."""
    import ray.train

    try:
        train(task, report=lambda row: ray.train.report({"epoch": row["epoch"], "loss": row["loss"]}))
    except UGTError as error:
        write_text(Path(task["work_dir"]) / FAILURE, str(error))


def train(task: dict[str, Any], report: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
    """The training itself, which needs no Ray; leaves the model in `<work_dir>/result`."""
    begun = time.monotonic()
    config, work_dir, n_items = SasRecConfig(**task["config"]), Path(task["work_dir"]), int(task["items"])
    settled = {name: getattr(config, name) for name in SasRecConfig.model_fields}
    if None in settled.values():
        raise ValueError("a setting of SASRec is None: use SasRecConfig.like")
    torch.set_num_threads(settled["threads"])
    torch.manual_seed(settled["seed"])
    split = HistoryConfig(**task["history"]).apply(history_files.load(Path(task["histories_dir"])))
    user_UA = np.zeros((len(split.histories), len(USER_ATTRIBUTES)), np.int64)  # SASRec knows nothing of users but their items
    # stage 1's own seed, so that the epochs are cut and batched alike
    windows = TrainingWindows(split, user_UA, settled["max_length"], settled["window_overlap"], settled["batch_size"], settled["seed"] + 1)
    model = SasRec(config, n_items)
    users = split.users("validation")
    users = np.sort(np.random.default_rng(settled["seed"]).permutation(users)[: settled["validation_users"]])
    plan = Plan(
        "sasrec",
        config.epochs,
        config.learning_rate,
        config.warmup,
        config.weight_decay,
        config.gradient_clip,
        settled["validate_every"],
        settled["seed"],
    )
    validate = partial(_validation, split=split, users=users) if len(users) else None
    progress = fit(SasRecObjective(model, settled["negatives"]), model, plan, partial(_steps, windows), validate, work_dir, report)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "loss": progress.curve[-1].get("loss"),
        "validation_users": len(users),
        "validation_ndcg@10": max((row["validation"]["score"] for row in progress.curve if "validation" in row), default=None),
    }
    sasrec.save(model, work_dir / RESULT, figures=figures)
    write_text(work_dir / RESULT / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in progress.curve))
    write_text(work_dir / RESULT / "figures.json", json.dumps(figures | {"seconds": round(time.monotonic() - begun, 1)}))


def _steps(windows: TrainingWindows, epoch: int) -> Sequence[Callable[[], Step]]:
    return [partial(_step, windows, part) for part in windows.epoch(epoch)]


def _step(windows: TrainingWindows, part: list[Window]) -> Step:
    batch = windows.batch(part)
    names = [windows.split.histories.user_ids[u] for u in batch.users]
    return Step(tensors(batch.inputs), batch.targets, f"users {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}")


def _validation(model: torch.nn.Module, split: history_files.Split, users: np.ndarray) -> dict[str, float]:
    """Filtered NDCG@10 on validation targets, as for UGT."""
    assert isinstance(model, SasRec)
    was_training = model.training
    model.eval()
    score = validation_ndcg(model.scores, split, users, model.n_items)
    model.train(was_training)
    return {"score": round(score, 6)}
