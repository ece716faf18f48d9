"""The loop: resume on the same curve, keep-best, a loss that isn't finite, the schedule, workers that add up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from train.loop import STATE, Plan, Progress, Step, _out_of_memory, fit, learning_rate
from ugt.schema import UGTError

PLAN = Plan("stage1", epochs=4, learning_rate=0.05, warmup=0.1, weight_decay=0.01, gradient_clip=1.0, validate_every=1, seed=7)


class Line(nn.Module):
    """y = w x with dropout, so that a curve that repeats proves the random state repeats."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        error = ((self.model(batch["x"])[:, 0] - batch["y"]) ** 2).sum()
        return {"squared": error, "loss": 1.0 * error}


def make(epoch: int, i: int, broken: tuple[int, int] | None = None) -> Step:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(100 * epoch + i))
    y = x.sum(1) if broken != (epoch, i) else x.sum(1) * math.nan
    return Step({"x": x, "y": y}, 16, f"users {i}")


def steps(epoch: int, broken: tuple[int, int] | None = None) -> Sequence[Callable[[], Step]]:
    return [partial(make, epoch, i, broken) for i in range(5)]


def score(model: nn.Module) -> dict[str, float]:
    model.eval()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return {"score": -float(((model(x)[:, 0] - x.sum(1)) ** 2).mean())}


def train(work_dir: Path, plan: Plan = PLAN, steps=steps, validate=score) -> tuple[nn.Module, Progress]:
    line = Line()
    return line.model, fit(line, line.model, plan, steps, validate, work_dir)


def without_times(progress: Progress) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in progress.curve]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("at", [(0, 3), (2, 0), (3, 4)])
def test_a_killed_training_ends_on_the_same_curve(tmp_path: Path, at: tuple[int, int], ema_decay: float) -> None:
    plan = replace(PLAN, ema_decay=ema_decay)

    def cut_off(epoch: int) -> Sequence[Callable[[], Step]]:
        def step(i: int) -> Step:
            if (epoch, i) == at:
                raise Killed
            return make(epoch, i)

        return [partial(step, i) for i in range(5)]

    whole, expected = train(tmp_path / "whole", plan)
    with pytest.raises(Killed):
        train(tmp_path / "cut", plan, steps=cut_off)
    model, progress = train(tmp_path / "cut", plan)
    assert without_times(progress) == without_times(expected)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))


@pytest.mark.parametrize("validate", [score, None], ids=["validated", "last epoch"])
def test_the_average_of_the_weights_is_what_is_validated_and_kept(tmp_path: Path, validate: Callable[[nn.Module], dict[str, float]] | None) -> None:
    """Against an average made one step at a time: one epoch per step, so that the raw weights of each are in its checkpoint."""
    decay, rises = 0.6, iter(range(100))
    plan = replace(PLAN, epochs=8, ema_decay=decay)
    expected = {name: value.clone() for name, value in Line().model.state_dict().items()}
    validated = []

    def rising(model: nn.Module) -> dict[str, float]:
        validated.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": float(next(rises))}

    def report(row: dict[str, Any]) -> None:
        k = row["epoch"] + 1
        raw = torch.load(tmp_path / STATE, weights_only=True)["model"]
        share = min(decay, k / (k + 9))
        for name in expected:
            expected[name] = share * expected[name] + (1 - share) * raw[name]

    line = Line()
    fit(line, line.model, plan, lambda epoch: steps(epoch)[:1], rising if validate else None, tmp_path, report)
    raw = torch.load(tmp_path / STATE, weights_only=True)["model"]
    for name, value in line.model.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6)
        assert not torch.allclose(value, raw[name], atol=1e-4)
        assert not validate or torch.equal(value, validated[-1][name])


def test_a_half_written_checkpoint_is_never_read(tmp_path: Path) -> None:
    (tmp_path / f"{STATE}.tmp").write_bytes(b"half")
    _, progress = train(tmp_path)
    assert progress.epoch == 4


def test_the_best_epoch_is_kept_and_a_stage_that_only_harms_returns_what_it_was_given(tmp_path: Path) -> None:
    values = iter([0.1, 0.3, 0.9, 0.2, 0.4])
    model, progress = train(tmp_path / "a", validate=lambda m: {"score": next(values)})
    assert (progress.best, progress.best_epoch) == (0.9, 1)
    two, _ = train(tmp_path / "b", plan=Plan(**{**vars(PLAN), "epochs": 4}), validate=lambda m: {"score": -1.0})
    assert all(torch.equal(a, b) for a, b in zip(two.state_dict().values(), Line().model.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), two.state_dict().values(), strict=True))


def test_a_loss_that_is_not_finite_names_its_batch_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match=r"stage1: the loss is not finite .* epoch 2, step 3, users 3"):
        train(tmp_path, steps=partial(steps, broken=(2, 3)))
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert state["progress"]["epoch"] == 2
    assert all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_warms_up_and_falls_as_the_schedule_says(schedule: Any) -> None:
    rates = [learning_rate(replace(PLAN, schedule=schedule), x / 20) for x in range(21)]
    assert rates[1] == pytest.approx(0.025)
    assert max(rates) == pytest.approx(rates[2]) == pytest.approx(0.05)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 if schedule == "constant" else 0.0)
    half = rates[11]  # the middle between warm-up and end
    assert half == pytest.approx(0.05 if schedule == "constant" else 0.025)
    assert rates[6] == pytest.approx({"cosine": 0.05 * 0.5 * (1 + math.cos(math.pi * 4 / 18)), "linear": 0.05 * 14 / 18, "constant": 0.05}[schedule])


def test_a_step_in_parts_has_the_curve_of_the_whole_step(tmp_path: Path) -> None:
    def line() -> Line:
        made = Line()
        made.model[1] = nn.Identity()  # dropout would draw other masks for other shapes
        return made

    def parts(epoch: int) -> Sequence[Callable[[], Step]]:
        def part(i: int, k: int) -> Step:
            step = make(epoch, i)
            return Step({name: value[k::4] for name, value in step.batch.items()}, step.targets, step.name)

        return [partial(part, i, k) for i in range(5) for k in range(4)]

    whole, cut = line(), line()
    expected = fit(whole, whole.model, PLAN, steps, score, tmp_path / "whole")
    found = fit(cut, cut.model, replace(PLAN, accumulation=4), parts, score, tmp_path / "cut")
    for a, b in zip(without_times(expected), without_times(found), strict=True):
        assert a.keys() == b.keys()
        assert a.get("loss") == pytest.approx(b.get("loss"), abs=1e-5)
        assert a.get("gradient_norm") == pytest.approx(b.get("gradient_norm"), abs=1e-3)
        assert a.get("targets") == b.get("targets")
        assert a["validation"]["score"] == pytest.approx(b["validation"]["score"], abs=1e-5)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_training_ends_when_validation_has_not_risen_for_its_patience_and_stays_ended(tmp_path: Path) -> None:
    values = [0.1, 0.3, 0.9, 0.2, 0.4, 0.5, 0.6, 0.7, 0.95]
    plan = replace(PLAN, epochs=8, patience=3)
    left = iter(values)
    _, progress = train(tmp_path, plan, validate=lambda m: {"score": next(left)})
    assert (progress.epoch, progress.best_epoch) == (5, 1)  # epochs 2, 3, 4 brought nothing
    _, again = train(tmp_path, plan, validate=lambda m: {"score": next(left)})  # killed after the last epoch, before the result was written
    assert (again.epoch, again.curve) == (progress.epoch, progress.curve)
    assert next(left) == 0.6
    left = iter(values)
    _, patient = train(tmp_path / "patient", replace(plan, patience=0), validate=lambda m: {"score": next(left)})
    assert (patient.epoch, patient.best) == (8, 0.95)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_products_run_in_the_precision_that_is_asked_for_and_weights_stay_in_fp32(tmp_path: Path, precision: Any) -> None:
    line = Line()
    seen = set()
    line.model[0].register_forward_hook(lambda module, given, made: seen.add(made.dtype))
    progress = fit(line, line.model, replace(PLAN, precision=precision), steps, None, tmp_path)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}  # auto, on a CPU, is fp32
    assert {p.dtype for p in line.parameters()} == {torch.float32}
    assert progress.curve[-1]["loss"] < progress.curve[1]["loss"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_memory_that_ends_names_the_settings_to_lower(tmp_path: Path, error: Exception) -> None:
    def full(epoch: int) -> Sequence[Callable[[], Step]]:
        def step(i: int) -> Step:
            if (epoch, i) == (1, 2):
                raise error
            return make(epoch, i)

        return [partial(step, i) for i in range(5)]

    with pytest.raises(
        UGTError, match=r"out of memory in epoch 1, step 2.*on cpu\. Lower training\.batch_size, or raise training\.accumulation.*max_length.*width"
    ):
        train(tmp_path, steps=full)
    assert torch.load(tmp_path / STATE, weights_only=True)["progress"]["epoch"] == 1


def test_the_allocator_s_own_error_is_taken_for_what_it_is() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert _out_of_memory(caught.value)
    assert not _out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))


def test_the_curve_has_each_term_per_target(tmp_path: Path) -> None:
    _, progress = train(tmp_path)
    assert progress.curve[0]["epoch"] == -1  # the start, before any step
    row = progress.curve[1]
    assert row["targets"] == 80
    assert row["squared"] == pytest.approx(row["loss"])
    assert row["loss"] > progress.curve[-1]["loss"]


def test_a_budget_of_seconds_ends_the_training_and_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last validation is inside the budget, and the last steps are small. The clock is the test's: a step takes 0.02 s, a validation 0.3 s."""
    now = [100.0]
    monkeypatch.setattr("train.loop.time.monotonic", lambda: now[0])

    def slow(epoch: int) -> Sequence[Callable[[], Step]]:
        def step(i: int) -> Step:
            now[0] += 0.02
            return make(epoch, i)

        return [partial(step, i) for i in range(5)]

    def validated(model: nn.Module) -> dict[str, float]:
        now[0] += 0.3
        return score(model)

    _, progress = train(tmp_path, replace(PLAN, epochs=1000, seconds=2.0, validate_every=100), slow, validated)
    assert now[0] == pytest.approx(102.0, abs=0.05)
    assert len(progress.curve) > 3
    assert [row["epoch"] for row in progress.curve if "validation" in row] == [-1, progress.curve[-1]["epoch"]]
    assert progress.curve[-1]["learning_rate"] < 0.05 * PLAN.learning_rate
    assert train(tmp_path / "short", replace(PLAN, seconds=1e6), slow, validated)[1].epoch == PLAN.epochs  # time left over is not spent
