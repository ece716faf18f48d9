"""A sweep: ASHA over a training function that is handed in, resumed where it stopped.

The function is called as `fit(values, report)` once per trial: `values` are the drawn settings, `report({metric: ...})` is called after each
epoch and ends the trial early when ASHA gives up on it. Choose on validation: a sweep never sees the test part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from tune.spaces import Choice, Range, Space, Value
from ugt.artifacts import content_hash
from ugt.schema import Config, Record, UGTError

Report = Callable[[Mapping[str, float]], None]
Fit = Callable[[dict[str, Value], Report], None]


class SweepConfig(Config):
    """How many trials, how long, and what they are ranked by (higher is better)."""

    metric: str = "validation_ndcg@10"
    trials: int = Field(16, ge=1)
    concurrent: int = Field(2, ge=1)
    max_reports: int = Field(20, ge=1)  # reports (epochs) of a trial that is never stopped
    grace_reports: int = Field(2, ge=1)  # before that no trial is stopped
    reduction: float = Field(3.0, gt=1)  # one of this many survives each rung
    # of the process that drives a trial: small, because whole CPUs are for the workers it starts, and a cluster filled with drivers hangs
    driver_cpus: float = Field(0.1, gt=0)
    seed: int = 0


class Trial(Record):
    values: dict[str, Any]
    metric: float | None  # the best it reported; None if it failed before the first report
    reports: int
    error: str | None


class SweepResult(Record):
    """`best` are the values of the best trial, `metric` what it reached; `trials` best first."""

    best: dict[str, Any]
    metric: float
    trials: list[Trial]


def run(fit: Fit, space: Space, config: SweepConfig, storage: Path, name: str = "ugt") -> SweepResult:
    """The best of `config.trials` draws from `space`. Needs a running Ray.

    State lies in `<storage>/<name>-<hash of space and config>`: the same call after a kill goes on there, repeats only trials that did not
    finish, and after the end returns the stored result. `storage` is a folder every node sees. Raises UGTError if no trial reported the metric.
    """
    key = content_hash([{k: d.model_dump() for k, d in space.items()}, config], length=8)
    folder = Path(storage).absolute() / f"{name}-{key}"
    metric = config.metric

    def trial(values: dict[str, Value]) -> None:
        fit(dict(values), lambda figures: tune.report(dict(figures)))

    trainable = tune.with_resources(trial, {"cpu": config.driver_cpus})
    param_space = {k: _domain(d) for k, d in space.items()}
    if tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, restart_errored=True, param_space=param_space)
    else:
        scheduler = ASHAScheduler(max_t=config.max_reports, grace_period=min(config.grace_reports, config.max_reports), reduction_factor=config.reduction)
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(
                metric=metric,
                mode="max",
                scheduler=scheduler,
                search_alg=BasicVariantGenerator(random_state=config.seed),
                num_samples=config.trials,
                max_concurrent_trials=config.concurrent,
            ),
            run_config=tune.RunConfig(name=folder.name, storage_path=str(folder.parent), verbose=0),
        )
    results = tuner.fit()
    trials = [_trial(results[i], metric) for i in range(len(results))]
    trials.sort(key=lambda t: -math.inf if t.metric is None else t.metric, reverse=True)
    if not trials or trials[0].metric is None:
        why = next((t.error for t in trials if t.error), f"none of them reported '{metric}'")
        raise UGTError(f"all {len(trials)} trials of the sweep in {folder} failed: {why}. Correct that and run it again; failed trials are repeated.")
    return SweepResult(best=trials[0].values, metric=trials[0].metric, trials=trials)


def _trial(result: Any, metric: str) -> Trial:
    reported = [] if result.metrics_dataframe is None or metric not in result.metrics_dataframe else result.metrics_dataframe[metric].dropna().tolist()
    # a trial that diverged reports NaN, which is no result; the best report counts, because training keeps its best epoch
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    return Trial(values=dict(result.config), metric=max(reported, default=None), reports=len(reported), error=error)


def _domain(dimension: Choice | Range) -> Any:
    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.values))
    if dimension.integer:
        draw = tune.lograndint if dimension.log else tune.randint
        return draw(int(dimension.low), int(dimension.high) + 1)
    return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)
