"""The one training loop: epochs of steps, cosine schedule, clipping, averaged weights, validation with keep-best, and resume on the same curve after a kill.

Choices: an epoch is the unit of resume. All randomness of an epoch follows from (seed, epoch, rank), so a redone epoch gives the same numbers; the
checkpoint (weights, optimizer, average, epoch, best so far, curve) is one file, written aside and renamed. The schedule is a function of the step (or,
where the plan has a budget of seconds, of the clock), not a state. A loss that isn't finite stops the training and leaves the last good checkpoint.

The loop knows modules and batches, not recommenders. It runs in each worker of a Ray Train group; alone, it is one worker.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
    seconds: float = 0.0  # wall time of the training, first and last validation included; it then ends by the clock and not after `epochs`


@dataclass(frozen=True)
class Step:
    """One batch of this worker: arrays, what its losses are divided by (over all workers), and how to name it in an error."""

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
    """The share of the training that is done: counted in steps, or in a budget of seconds, which is then rank 0's clock for all workers.

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
        share = torch.tensor(self.seconds / max(1e-9, self.plan.seconds - self.kept_back))
        if self.workers > 1:
            dist.broadcast(share, 0)
        return float(share)


class Average:
    """Exponential moving average of a model's weights. Source: Polyak and Juditsky 1992; the decay grows from 0.1 over the first steps, so that a short
    training does not end near the random start (as TensorFlow's ExponentialMovingAverage does it)."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self._weights = [p.detach() for p in model.parameters()]
        self._averages = [p.clone() for p in self._weights] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step into the average."""
        if self.decay:
            self.steps += 1
            torch._foreach_lerp_(self._averages, self._weights, 1 - min(self.decay, self.steps / (self.steps + 9)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model holds the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights if self.decay else (), self._averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def keep(self) -> None:
        """The model holds the average from now on."""
        if self.decay:
            torch._foreach_copy_(self._weights, self._averages)

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

    `steps(epoch)` gives this worker's steps, the same number on every worker; `objective(batch)` a dict of summed terms with `loss`; `validate(model)` runs on
    rank 0 and returns figures of which `score` decides; without it the last epoch is kept. `report` is called with each epoch's row of the curve, on
    every worker. Epoch -1 of the curve is the start: a stage that only makes things worse returns what it was given.
    Raises UGTError naming stage, epoch and batch if the loss is not finite.
    """
    _reuse_memory()
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.AdamW(_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)
    average = Average(model, plan.ema_decay)
    progress = _resume(model, optimizer, average, work_dir)
    wrapped = nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True) if workers > 1 else objective
    clock = Clock(plan, progress, workers)
    if not progress.curve:
        before = clock.seconds
        _close_epoch(progress, {"stage": plan.name, "epoch": -1}, model, validate, rank)
        clock.kept_back = clock.seconds - before
    for epoch in count(progress.epoch):
        if clock.share(epoch / plan.epochs if plan.epochs else 1.0) >= 1:
            break
        start = time.monotonic()
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{plan.seed} {plan.name} {epoch} {rank}".encode()).digest()[:4], "big"))
        row = {"stage": plan.name, "epoch": epoch} | _epoch(wrapped, model, optimizer, average, plan, epoch, steps(epoch), workers, clock)
        row["seconds"] = round(time.monotonic() - start, 2)
        due = (epoch + 1) % plan.validate_every == 0 or clock.share((epoch + 1) / max(1, plan.epochs)) >= 1
        with average.in_place():
            _close_epoch(progress, row, model, validate if due else None, rank)
        progress.epoch, progress.seconds = epoch + 1, clock.seconds
        if rank == 0:
            _save(model, optimizer, average, progress, work_dir)
        if workers > 1:
            dist.barrier()
        report(row)
    if progress.best_weights:
        model.load_state_dict(progress.best_weights)
    else:
        average.keep()
    return progress


def learning_rate(plan: Plan, done: float) -> float:
    """Rate after a share `done` of all steps: linear warm-up, then a cosine to zero."""
    if done < plan.warmup:
        return plan.learning_rate * done / plan.warmup
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - plan.warmup) / (1 - plan.warmup)))


def _epoch(
    wrapped: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    plan: Plan,
    epoch: int,
    steps: Sequence[Callable[[], Step]],
    workers: int,
    clock: Clock,
) -> dict[str, Any]:
    """One pass, or what of it the clock allows; the mean of each term per target, over all workers."""
    wrapped.train()
    sums: dict[str, Tensor] = {}
    targets, norms = 0, 0.0
    for i, make in enumerate(steps):
        done = clock.share((epoch + (i + 1) / len(steps)) / max(1, plan.epochs))
        if done > 1:
            break
        step = make()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, done)
        terms = wrapped(step.batch)
        optimizer.zero_grad(set_to_none=True)
        (terms["loss"] * (workers / max(1, step.targets))).backward()  # DDP averages over workers, the loss is a sum over them
        norm = nn.utils.clip_grad_norm_(model.parameters(), plan.gradient_clip)
        if not torch.isfinite(norm):  # the averaged gradient: every worker sees it, and stops, at the same step
            raise UGTError(
                f"training {plan.name}: the loss is not finite (NaN or infinite) in epoch {epoch}, step {i}, {step.name}. "
                f"The checkpoint of the last good epoch is kept. Lower the stage's learning_rate (now {plan.learning_rate:g}) or training.gradient_clip, "
                "and look for broken values in that batch."
            )
        optimizer.step()
        average.update()
        targets, norms = targets + step.targets, norms + float(norm)
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach()
    stacked = torch.stack(list(sums.values())) if sums else torch.zeros(0)
    if workers > 1:
        dist.all_reduce(stacked)
    row = {name: round(value / max(1, targets), 6) for name, value in zip(sums, stacked.tolist(), strict=True)}
    return row | {"gradient_norm": round(norms / max(1, len(steps)), 4), "learning_rate": optimizer.param_groups[0]["lr"], "targets": targets}


def _close_epoch(progress: Progress, row: dict[str, Any], model: nn.Module, validate: Callable[[nn.Module], dict[str, float]] | None, rank: int) -> None:
    """Validate (on rank 0, where asked), keep the weights if they are the best so far, and add the row to the curve."""
    if validate is not None and rank == 0:
        row["validation"] = validate(model)
        if row["validation"]["score"] > progress.best:
            progress.best, progress.best_epoch = row["validation"]["score"], row["epoch"]
            progress.best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    progress.curve.append(row)


def _reuse_memory() -> None:
    """Let freed memory stay with the process. Each step frees and asks for the same hundreds of MB; given back to the system in between, every page costs
    a fault: 5% of a step. glibc only; elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices of weights; none for biases, norms and embeddings."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, progress: Progress, work_dir: Path) -> None:
    work_dir.mkdir(parents=True, exist_ok=True)
    aside = work_dir / f"{STATE}.tmp"
    with open(aside, "wb") as f:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state_dict(), "progress": vars(progress)}, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(aside, work_dir / STATE)


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, average: Average, work_dir: Path) -> Progress:
    """Load the checkpoint of an interrupted training, if there is one, into model, optimizer and average."""
    path = work_dir / STATE
    if not path.is_file():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.load_state_dict(state["average"])
    return Progress(**state["progress"])
