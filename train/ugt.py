"""UGT's three stages on Ray Train: each starts from the checkpoint of the one before and ends in the best validated weights.

What a stage minimises is in `train/stages.py`, how epochs run in `train/loop.py`; this file reads the artifacts, starts the workers and writes the checkpoint.
A killed run, started again with the same work folder, resumes after its last finished epoch.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train import engines, trainer, warm_start
from train.loop import Plan, Progress, Step, fit
from train.stages import StageObjective
from train.windows import TrainingWindows, Window
from ugt import histories as history_files
from ugt.artifacts import USERS, read_table, write_text
from ugt.histories import HistoryConfig
from ugt.memory import FILE as MEMORY
from ugt.memory import Memory
from ugt.model.config import DecodingConfig, ModelConfig, StageConfig, TrainingConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.ranking import Candidates, choose, ndcg
from ugt.schema import UGTError
from ugt.scoring import Ranking, candidates, load_checkpoint, new_model, save_checkpoint, tensors, user_codes
from ugt.semantic_ids import content_vectors

FAILURE, RESULT = "failure.txt", "result"
AFTER_TRAINING = 4.0  # the last validation, and the choice of the mix with the beam that is served (50 against 20)


def run(
    stage: int,
    histories_dir: Path,
    users_dir: Path,
    semantic_ids_dir: Path,
    model_config: ModelConfig,
    training: TrainingConfig,
    init_dir: Path | None,
    out_dir: Path,
    work_dir: Path,
    history: HistoryConfig = HistoryConfig(),
) -> dict[str, Any]:
    """Train stage 1, 2 or 3 on `training.workers` Ray workers; write `model.safetensors`, `model.json`, `curve.jsonl` and, if
    validation gave it a weight, `memory.npz` into `out_dir`.

    `init_dir` is the checkpoint the stage starts from: required by stages 2 and 3, a warm start for stage 1. `history` says what is held out. Returns
    the stage's figures. Raises UGTError for a checkpoint of another catalogue and for a loss that isn't finite.
    """
    if init_dir is None and stage != 1:
        raise UGTError(f"stage {stage} starts from the checkpoint of stage {stage - 1}, but none was given. Run stage {stage - 1} first.")
    work_dir, out_dir = Path(work_dir).absolute(), Path(out_dir)
    (work_dir / FAILURE).unlink(missing_ok=True)
    task = {
        "stage": stage,
        "histories_dir": str(Path(histories_dir).absolute()),
        "users_dir": str(Path(users_dir).absolute()),
        "semantic_ids_dir": str(Path(semantic_ids_dir).absolute()),
        "init_dir": str(Path(init_dir).absolute()) if init_dir is not None else None,
        "model": model_config.model_dump(),
        "training": training.model_dump(),
        "work_dir": str(work_dir),
        "history": history.model_dump(),
        "started": time.time(),  # a stage's budget counts from here: starting the workers and loading are part of it
    }
    engines.check(training.strategy)
    trainer.run(worker, task, f"ugt-stage{stage}", work_dir, workers=training.workers, min_workers=training.min_workers)
    if (work_dir / FAILURE).is_file():
        raise UGTError((work_dir / FAILURE).read_text())
    figures: dict[str, Any] = json.loads((work_dir / RESULT / "figures.json").read_text())
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.json", "curve.jsonl", warm_start.VECTORS):
        shutil.copyfile(work_dir / RESULT / name, out_dir / name)
    if (work_dir / RESULT / MEMORY).is_file():
        shutil.copyfile(work_dir / RESULT / MEMORY, out_dir / MEMORY)
    for name in (warm_start.TABLE, warm_start.CODEBOOKS):  # what a later warm start has to know of the catalogue
        if (Path(semantic_ids_dir) / name).is_file():
            shutil.copyfile(Path(semantic_ids_dir) / name, out_dir / name)
    return figures


def worker(task: dict[str, Any]) -> None:
    """One Ray Train worker. A user's error is written to the work folder: Ray would take it for a crash and try again, and then this returns at once."""
    import ray.train
    import ray.train.torch

    failure = Path(task["work_dir"]) / FAILURE
    if failure.is_file():
        return
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    try:
        train_stage(task, rank, workers, lambda row: ray.train.report(_numbers(row)), ray.train.torch.get_device())
    except UGTError as error:
        write_text(failure, str(error))
        if workers > 1:
            raise  # the others may be waiting for this one


def train_stage(
    task: dict[str, Any],
    rank: int = 0,
    workers: int = 1,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    device: torch.device = torch.device("cpu"),
) -> None:
    """The work of one worker of `workers`; rank 0 leaves the checkpoint in `<work_dir>/result`. Needs no Ray."""
    begun = time.monotonic()
    training, work_dir, number = TrainingConfig(**task["training"]), Path(task["work_dir"]), int(task["stage"])
    stage: StageConfig = getattr(training, f"stage{number}")
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    split = HistoryConfig(**task["history"]).apply(history_files.load(Path(task["histories_dir"])))
    model, carried = _start(task, ModelConfig(**task["model"]))
    user_UA = user_codes(Path(task["users_dir"]), split.histories.user_ids, model.vocabulary)
    windows = TrainingWindows(split, user_UA, model.config.max_length, training.window_overlap, training.batch_size, training.seed + number)
    counts_N = torch.from_numpy(windows.item_counts(len(model.semantic_ids)))
    if task["init_dir"] is None or (carried and not carried["codes_carried"]):
        group_G = torch.zeros(model.items.k1 * model.items.k2, dtype=torch.int64).index_add(0, model.items.group_N, counts_N)
        model.level_heads.start_from_counts(group_G)
    model.to(device)
    memory = fitted_memory(split, Path(task["semantic_ids_dir"])) if rank == 0 else None  # before the plan: its time is part of the budget
    plan = Plan(
        name=f"stage{number}",
        epochs=stage.epochs,
        learning_rate=stage.learning_rate,
        warmup=stage.warmup,
        weight_decay=training.weight_decay,
        gradient_clip=training.gradient_clip,
        validate_every=training.validate_every,
        seed=training.seed,
        ema_decay=training.ema_decay,
        schedule=training.schedule,
        accumulation=training.accumulation,
        patience=training.patience,
        precision=training.precision,
        strategy=training.strategy,
        zero_stage=training.zero_stage,
        after=AFTER_TRAINING,
        seconds=max(1.0, task["started"] + stage.seconds - time.time()) if stage.seconds else 0.0,
    )
    objective = StageObjective(model, stage, training, counts_N).to(device)
    users = _validation_users(split, training)
    judge = partial(candidates, split=split, users=users, part="validation", filtered=True, user_UA=user_UA[users], count=50)
    targets = split.targets(users, "validation")
    validate = partial(_validation, judge=judge, targets=targets, beam_width=training.validation_beam) if len(users) else None
    progress = fit(objective, model, plan, partial(_steps, windows, rank, workers, training.accumulation), validate, work_dir, report)
    if rank == 0:
        model.cpu()
        model.settle_unread(windows.codes_read())
        chosen = choose(judge(model, decoding=DecodingConfig(), memory=memory), targets) if len(users) else None  # with the beam that is served
        how = Ranking(chosen.fusion, chosen.without_memory, memory if chosen.fusion.remembers else None) if chosen else Ranking()
        _write(model, progress, number, how, chosen.ndcg if chosen else None, len(users), training, work_dir / RESULT, time.monotonic() - begun, carried)


def _start(task: dict[str, Any], config: ModelConfig) -> tuple[UGT, dict[str, Any]]:
    """The model a stage starts from, and what a warm start carried over."""
    semantic_ids_dir = Path(task["semantic_ids_dir"])
    if task["init_dir"] is None:
        people = read_table(Path(task["users_dir"]), USERS)
        vocabulary = UserVocabulary.fit({name: people[name].to_pylist() for name in people.column_names}, config.user_attributes)
        return new_model(config, semantic_ids_dir, vocabulary), {}
    if task["stage"] == 1:
        return warm_start.start(Path(task["init_dir"]), config, semantic_ids_dir)
    model = load_checkpoint(Path(task["init_dir"]), semantic_ids_dir)
    if model.config != config:
        changed = sorted(name for name in ModelConfig.model_fields if getattr(model.config, name) != getattr(config, name))
        raise UGTError(
            f"the checkpoint in {task['init_dir']} was trained with other settings of model: {', '.join(changed)}. Train from stage 1, or set them back."
        )
    return model, {}


def fitted_memory(split: history_files.Split, semantic_ids_dir: Path) -> Memory:
    """What the training part of the histories says, and the content vectors of the items."""
    return Memory.fit(*split.train_events(), content_vectors(semantic_ids_dir))


def _steps(windows: TrainingWindows, rank: int, workers: int, accumulation: int, epoch: int) -> Sequence[Callable[[], Step]]:
    """This worker's parts of each step: one step after the other, `accumulation` parts each."""
    return [partial(_step, windows, step, k * workers + rank, workers * accumulation) for step in windows.epoch(epoch) for k in range(accumulation)]


def _step(windows: TrainingWindows, part: list[Window], rank: int, parts: int) -> Step:
    batch = windows.batch(part, rank, parts)
    names = [windows.split.histories.user_ids[u] for u in batch.users[:5]]
    return Step(tensors(batch.inputs), batch.targets, f"users {', '.join(names)}{' and others' if len(batch.users) > 5 else ''}")


def _validation_users(split: history_files.Split, training: TrainingConfig) -> np.ndarray:
    """A fixed random set of the users that have a validation target."""
    users = split.users("validation")
    return np.sort(np.random.default_rng(training.seed).permutation(users)[: training.validation_users])


def _validation(model: torch.nn.Module, judge: Callable[..., list[Candidates]], targets: np.ndarray, beam_width: int) -> dict[str, float]:
    """Filtered NDCG@10 on validation targets by head; `score`, of the best mix of the heads, decides which epoch is kept. Memory has no say in that: it is as
    good before the training, and would hide what the model learns. On the CPU, where everything that ranks runs."""
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    found = judge(model, decoding=DecodingConfig(beam_width=beam_width))
    fusion, fused, _ = choose(found, targets)
    generative = np.mean([ndcg(c.items[:10], t) for c, t in zip(found, targets, strict=True)])
    dense = np.mean([ndcg(c.dense_items[:10], t) for c, t in zip(found, targets, strict=True)])
    return {
        "score": round(fused, 6),
        "generative_ndcg@10": round(float(generative), 6),
        "dense_ndcg@10": round(float(dense), 6),
        "fusion_weight": fusion.weight,
    }


def _write(
    model: UGT,
    progress: Progress,
    stage: int,
    how: Ranking,
    fused_ndcg: float | None,
    validation_users: int,
    training: TrainingConfig,
    folder: Path,
    seconds: float,
    carried: dict[str, Any],
) -> None:
    """Checkpoint, curve and figures of a finished stage."""
    validated = [row["validation"]["score"] for row in progress.curve if "validation" in row]
    (folder / MEMORY).unlink(missing_ok=True)  # of an earlier run
    figures = {
        "stage": stage,
        "parameters": sum(p.numel() for p in model.parameters()),
        "targets_per_epoch": progress.curve[-1].get("targets", 0),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "loss": progress.curve[-1].get("loss"),
        "validation_users": validation_users,
        "validation_ndcg@10": max(validated, default=None),
        "validation_ndcg@10_at_start": validated[0] if validated else None,
        "fused_validation_ndcg@10": None if fused_ndcg is None else round(fused_ndcg, 6),
        "fusion": vars(how.fusion),
    } | ({"warm_start": carried} if carried else {})
    save_checkpoint(model, folder, how, stage=stage, figures=figures, training=training.model_dump(mode="json"))
    with torch.inference_mode():
        np.save(folder / warm_start.VECTORS, model.tables().item_ID[1:].numpy())
    write_text(folder / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in progress.curve))
    write_text(folder / "figures.json", json.dumps(figures | {"seconds": round(seconds, 1)}))  # the checkpoint says nothing of time: equal runs are equal files


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """A row of the curve as Ray Train's flat metrics."""
    flat = {k: v for k, v in row.items() if isinstance(v, int | float)}
    return flat | {f"validation_{k}": v for k, v in row.get("validation", {}).items()}
