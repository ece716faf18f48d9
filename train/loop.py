"""The one training loop: epochs of steps, schedules, accumulation, averaged weights, validation with keep-best, and resume on the same curve after a kill.

Choices: an epoch is the unit of resume. All randomness of an epoch follows from (seed, epoch, rank), so a redone epoch gives the same numbers; the
checkpoint (weights, optimizer, average, epoch, best so far, curve) is one file, written aside and renamed. The schedule is a function of the step (or,
where a budget of seconds ends first, of the clock), not a state. A loss that isn't finite stops the training and leaves the last good checkpoint.

The loop knows modules and batches, not recommenders; how a step is spread over workers is in `train/engines.py`. It runs in each worker of a Ray Train
group; alone, it is one worker. A checkpoint says nothing of the number of workers: a training goes on under any other.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.engines import DeepSpeedEngine, Engine, TorchEngine, autocast, placed
from ugt.schema import UGTError

STATE = "state.pt"


@dataclass(frozen=True)
class Plan:
    """How long and how fast."""

    name: str
    epochs: int
    learning_rate: float
    warmup: float  # share of all steps
    weight_decay: float
    gradient_clip: float
    validate_every: int
    seed: int
    ema_decay: float = 0.0  # of the averaged weights that are validated and kept; 0: the weights themselves
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    accumulation: int = 1  # parts of a step, one after the other
    patience: int = 0  # validations without a new best after which the training ends; 0: never
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    strategy: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: int = 1
    seconds: float = 0.0  # most wall time of the training, first and last validation included; 0: no limit. It ends by the clock or after `epochs`
    after: float = 1.0  # validations' worth of time that is kept back for the last one and for what the caller does after it


@dataclass(frozen=True)
class Step:
    """One batch of this worker, a step or a part of one: arrays, what its losses are divided by (the whole step over all workers), its name in an error."""

    batch: dict[str, Tensor]
    targets: int
    name: str


@dataclass
class Progress:
    """What a checkpoint holds besides weights and optimizer."""

    epoch: int = 0  # epochs done
    best: float = -math.inf
    best_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # spent so far


class Clock:
    """The share of the training that is done: of its steps, or of its budget of seconds by rank 0's clock, whichever is further.

    From the first validation's duration the clock knows what the last one will take, and keeps that time back.
    """

    def __init__(self, plan: Plan, progress: Progress, workers: int):
        self.plan, self.workers = plan, workers
        self.started = time.monotonic() - progress.seconds
        self.kept_back = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def share(self, by_steps: float) -> float:
        """0 at the start, 1 or more at the end. `by_steps`: the share of the epochs' steps."""
        if not self.plan.seconds:
            return by_steps
        share = torch.tensor(max(by_steps, self.seconds / max(1e-9, self.plan.seconds - self.kept_back)))
        if self.workers > 1:
            dist.broadcast(share, 0)
        return float(share)


class Average:
    """Exponential moving average of weights. Source: Polyak and Juditsky 1992; the decay grows from 0.1 over the first steps, so that a short
    training does not end near the random start (as TensorFlow's ExponentialMovingAverage does it)."""

    def __init__(self, engine: Engine, decay: float):
        self.engine, self.decay, self.steps = engine, decay, 0
        self._averages = [p.clone() for p in engine.weights()] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step into the average."""
        if self.decay:
            self.steps += 1
            torch._foreach_lerp_(self._averages, list(self.engine.weights()), 1 - min(self.decay, self.steps / (self.steps + 9)))

    def weights(self) -> Sequence[Tensor]:
        """What is validated and kept: the average, or the weights themselves. Call it on every rank."""
        return self._averages if self.decay else self.engine.weights()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for average, kept in zip(self._averages, state["averages"], strict=True):
            average.copy_(kept)


def fit(
    objective: nn.Module,
    model: nn.Module,
    plan: Plan,
    steps: Callable[[int], Sequence[Callable[[], Step]]],
    validate: Callable[[nn.Module], dict[str, float]] | None,
    work_dir: Path,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Progress:
    """Train `model` inside `objective`; afterwards it holds the weights of the best validated epoch, averaged if the plan has an `ema_decay`.

    `steps(epoch)` gives this worker's batches, the same number on every worker, `plan.accumulation` of them to a step; `objective(batch)` a dict of summed
    terms with `loss`; `validate(model)` runs on rank 0 and returns figures of which `score` decides; without it the last epoch is kept. `report` is called with
    each epoch's row of the curve, on every worker. Epoch -1 of the curve is the start: a stage that only makes things worse returns what it was given.
    Raises UGTError naming stage, epoch and batch if the loss is not finite or memory ends.
    """
    _reuse_memory()
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    common = (objective, model, plan.learning_rate, plan.weight_decay, plan.gradient_clip, plan.accumulation)
    engine: Engine = DeepSpeedEngine(*common, plan.zero_stage) if plan.strategy == "deepspeed" else TorchEngine(*common)
    saved = torch.load(work_dir / STATE, weights_only=True, map_location=device) if (work_dir / STATE).is_file() else None
    progress = Progress(**saved["progress"]) if saved else Progress()
    engine.start(saved and saved["model"], saved and saved["moments"], lambda: _on(device, steps(progress.epoch)[0]().batch))
    average = Average(engine, plan.ema_decay)
    if saved:
        average.load_state_dict(saved["average"])
    clock = Clock(plan, progress, workers)
    if not progress.curve:
        before = clock.seconds
        _close_epoch(progress, {"stage": plan.name, "epoch": -1}, engine, average, validate, rank)
        clock.kept_back = plan.after * (clock.seconds - before)
    for epoch in count(progress.epoch):
        if clock.share(epoch / plan.epochs if plan.epochs else 1.0) >= 1 or _out_of_patience(plan, progress, workers):
            break
        start = time.monotonic()
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{plan.seed} {plan.name} {epoch} {rank}".encode()).digest()[:4], "big"))
        row = {"stage": plan.name, "epoch": epoch} | _epoch(engine, average, plan, epoch, steps(epoch), workers, clock, device)
        row["seconds"] = round(time.monotonic() - start, 2)
        due = (epoch + 1) % plan.validate_every == 0 or clock.share((epoch + 1) / max(1, plan.epochs)) >= 1
        _close_epoch(progress, row, engine, average, validate if due else None, rank)
        progress.epoch, progress.seconds = epoch + 1, clock.seconds
        _save(engine, average, progress, work_dir, rank)
        if workers > 1:
            dist.barrier()
        report(row)
    last = average.weights()
    if progress.best_weights:
        model.load_state_dict(progress.best_weights)
    else:
        torch._foreach_copy_([p.detach() for p in model.parameters()], list(last))
    return progress


def learning_rate(plan: Plan, done: float) -> float:
    """Rate after a share `done` of all steps: linear warm-up, then a cosine or a line to zero, or constant."""
    if done < plan.warmup:
        return plan.learning_rate * done / plan.warmup
    left = (1 - done) / (1 - plan.warmup)
    shares = {"cosine": 0.5 * (1 - math.cos(math.pi * left)), "linear": left, "constant": 1.0}
    return plan.learning_rate * shares[plan.schedule]


def _epoch(
    engine: Engine,
    average: Average,
    plan: Plan,
    epoch: int,
    parts: Sequence[Callable[[], Step]],
    workers: int,
    clock: Clock,
    device: torch.device,
) -> dict[str, Any]:
    """One pass, or what of it the clock allows; the mean of each term per target, over all workers."""
    engine.module.train()
    sums: dict[str, Tensor] = {}
    targets, norms, rate = 0, 0.0, 0.0
    steps = len(parts) // plan.accumulation
    for i in range(steps):
        done = clock.share((epoch + (i + 1) / steps) / max(1, plan.epochs))
        if done > 1:
            break
        rate = learning_rate(plan, done)
        engine.set_rate(rate)
        name = ""
        try:
            for k in range(plan.accumulation):
                step = parts[i * plan.accumulation + k]()
                name = name or step.name
                with engine.part(last=k == plan.accumulation - 1):
                    with placed(device), autocast(plan.precision, device):
                        terms = engine.module(_on(device, step.batch))
                    engine.backward(terms["loss"], step.targets)
                for term, value in terms.items():
                    sums[term] = sums.get(term, torch.zeros((), device=device)) + value.detach()
            norm = engine.step()
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise UGTError(
                f"training {plan.name}: out of memory in epoch {epoch}, step {i}, {name}, on {device}. Lower training.batch_size, or raise "
                f"training.accumulation (now {plan.accumulation}: a step is cut into as many parts), or lower model.max_length, model.width, "
                "model.encoder_layers or training.dense_negatives. The checkpoint of the last epoch is kept."
            ) from error
        if not math.isfinite(norm):  # the averaged gradient: every worker sees it, and stops, at the same step
            raise UGTError(
                f"training {plan.name}: the loss is not finite (NaN or infinite) in epoch {epoch}, step {i}, {name}. "
                f"The checkpoint of the last good epoch is kept. Lower the stage's learning_rate (now {plan.learning_rate:g}) or training.gradient_clip, "
                "and look for broken values in that batch."
            )
        average.update()
        targets, norms = targets + step.targets, norms + norm
    stacked = torch.stack(list(sums.values())) if sums else torch.zeros(0, device=device)
    if workers > 1:
        dist.all_reduce(stacked)
    row = {name: round(value / max(1, targets), 6) for name, value in zip(sums, stacked.tolist(), strict=True)}
    return row | {"gradient_norm": round(norms / max(1, steps), 4), "learning_rate": rate, "targets": targets}


def _close_epoch(
    progress: Progress, row: dict[str, Any], engine: Engine, average: Average, validate: Callable[[nn.Module], dict[str, float]] | None, rank: int
) -> None:
    """Validate (on rank 0, where asked), keep the weights if they are the best so far, and add the row to the curve."""
    if validate is not None:
        weights = average.weights()  # of all ranks, before rank 0 goes on alone
        if rank == 0:
            with engine.showing(weights):
                row["validation"] = validate(engine.model)
                if row["validation"]["score"] > progress.best:
                    progress.best, progress.best_epoch = row["validation"]["score"], row["epoch"]
                    progress.best_weights = {name: value.detach().clone() for name, value in engine.model.state_dict().items()}
    progress.curve.append(row)


def _out_of_patience(plan: Plan, progress: Progress, workers: int) -> bool:
    """Whether the last `plan.patience` validations brought no new best; rank 0, which validates, tells the others."""
    if not plan.patience:
        return False
    worse = sum("validation" in row and row["epoch"] > progress.best_epoch for row in progress.curve)
    ended = torch.tensor(int(worse >= plan.patience))
    if workers > 1:
        dist.broadcast(ended, 0)
    return bool(ended)


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _out_of_memory(error: BaseException) -> bool:
    """The GPU's, the CPU allocator's (which PyTorch raises as a plain RuntimeError) or Python's own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error) or "can't allocate memory" in str(error)


def _reuse_memory() -> None:
    """Let freed memory stay with the process. Each step frees and asks for the same hundreds of MB; given back to the system in between, every page costs
    a fault: 5% of a step. glibc only; elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def _save(engine: Engine, average: Average, progress: Progress, work_dir: Path, rank: int) -> None:
    """Gather the state from every rank; rank 0 writes it, aside and renamed."""
    weights, moments = engine.weights(), engine.moments()
    if rank:
        return
    names = [name for name, _ in engine.model.named_parameters()]
    model = engine.model.state_dict() | dict(zip(names, weights, strict=True))
    work_dir.mkdir(parents=True, exist_ok=True)
    aside = work_dir / f"{STATE}.tmp"
    with open(aside, "wb") as f:
        torch.save({"model": model, "moments": moments, "average": average.state_dict(), "progress": vars(progress)}, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, work_dir / STATE)
