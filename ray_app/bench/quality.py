"""`ugt bench quality`: train within a budget of wall time from raw files, evaluate on the held-out events, report as one JSON.

Choices: the main job's own steps, in a home of their own that starts empty, so nothing of an earlier run is counted as free. The budget runs from parsed
events to the last checkpoint: features, vectors, semantic IDs and all stages; text encoding is timed apart. What is left of it when the semantic IDs
are made is the most that stage 1 may take, less what the recipe keeps for stages 2 and 3. A recipe is a preset in configs/, picked by budget and
length of histories and chosen on validation; test is looked at once, at the end.
"""

from __future__ import annotations

import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from ray_app import pipeline, steps
from ray_app.cluster import connected
from ray_app.jobs import root
from ray_app.report import Progress, Usage, host
from ugt.artifacts import Artifact
from ugt.schema import UGTError
from ugt.settings import Settings, load_settings

LONG_HISTORIES = 50.0  # mean events per user from which the recipe for long histories is taken (MovieLens-1M: 165, Amazon: 9)
SHORT_BUDGET = 8.0  # minutes below which the small model is taken
SECONDS_AFTER_STAGE = 4.0  # writing the checkpoint and ending the workers, beyond what a stage's own budget covers
LEAST_TRAINING = 20.0  # seconds of stage 1 without which a run says nothing


def recipe(budget_minutes: float, mean_length: float) -> Path:
    """The preset for a budget and a kind of data."""
    if mean_length >= LONG_HISTORIES:
        name = "quality-long-histories"
    else:
        name = "quality-short" if budget_minutes < SHORT_BUDGET else "quality"
    return root() / "configs" / f"{name}.yaml"


def run(flags: dict[str, Any], config: Path | None, budget_minutes: float, console: Console, predictions: Path | None = None) -> dict[str, Any]:
    """Train and evaluate; `flags` are settings by dotted name (source, data_dir, seed ...), `config` a preset that takes the recipe's place.

    Returns the report (docs/evaluation.md names its fields). Raises UGTError if the budget is spent before the model's training can begin.
    """
    first = load_settings(config, flags)
    home = first.home / "bench" / "quality"
    shutil.rmtree(home, ignore_errors=True)
    flags = flags | {"home": str(home)}
    pipeline.check(load_settings(config, flags))
    progress = Progress(console)
    with Usage() as usage, connected(first.ray):
        made = pipeline.run(load_settings(config, flags), progress, until="histories")
        histories = made["histories"].manifest
        chosen = config or recipe(budget_minutes, float(histories.figures["length"]["mean"]))
        console.print(f" recipe        {chosen.name}   budget {budget_minutes:g} minutes", highlight=False)
        settings = load_settings(chosen, flags)
        text = pipeline.run(settings, progress, until="text").get("text") if settings.text.enabled else None
        spent_before, cpu_before, begun = histories.seconds, usage.cpu_seconds, time.monotonic()
        pipeline.run(settings, progress, until="semantic_ids")
        settings = _within(settings, budget_minutes * 60 - spent_before - (time.monotonic() - begun))
        made = pipeline.run(settings, progress, until=steps.last_stage(settings))
        train_seconds = spent_before + time.monotonic() - begun
        cpu_seconds = usage.cpu_seconds - cpu_before
        evaluation = pipeline.run(settings, progress, until="evaluate")["evaluate"]
        new_items = pipeline.run(settings, progress, until="new_items")["new_items"] if settings.etl.hold_out else None
    if predictions is not None:
        shutil.copyfile(evaluation.path / "predictions.parquet", predictions)
    added = {"new_items": json.loads((new_items.path / "new_items.json").read_text())} if new_items is not None else {}
    return (
        _report(settings, chosen, budget_minutes, made, evaluation, text)
        | added
        | {
            "train_seconds": round(train_seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "text_seconds": round(text.manifest.seconds, 1) if text is not None else 0.0,
            "peak_rss_gb": round(usage.peak_gb, 2),
            "steps": progress.steps,
        }
    )


def _within(settings: Settings, seconds: float) -> Settings:
    """The settings with stage 1 given what is left of the budget after the later stages' own."""
    stages = steps.stages(settings)
    later = sum(getattr(settings.training, f"stage{n}").seconds for n in stages if n > 1)
    left = seconds - later - SECONDS_AFTER_STAGE * len(stages)
    if left < LEAST_TRAINING:
        raise UGTError(
            f"the budget leaves {left:.0f} s for training the model after its vectors and semantic IDs; at least {LEAST_TRAINING:.0f} s are needed. "
            "Raise --budget-minutes."
        )
    stage1 = settings.training.stage1.model_copy(update={"seconds": round(left, 1)})
    return settings.model_copy(update={"training": settings.training.model_copy(update={"stage1": stage1})})


def _report(settings: Settings, chosen: Path, minutes: float, made: dict[str, Artifact], evaluation: Artifact, text: Artifact | None) -> dict[str, Any]:
    measured = json.loads((evaluation.path / "metrics.json").read_text())
    trained = made[steps.last_stage(settings)].manifest.figures
    stages = {name: made[name].manifest.figures for name in made if name.startswith("ugt_stage")}
    return {
        "source": settings.source,
        "budget_minutes": minutes,
        "recipe": chosen.name,
        "params": trained["parameters"],
        **measured["heads"],
        "baselines": measured["baselines"],
        "intervals": measured["intervals"],
        "protocol": measured["protocol"] | {"text_vectors": text is not None},
        "stages": stages,
        "semantic_ids": made["semantic_ids"].manifest.figures,
        "data_hash": made["etl"].manifest.inputs,
        "seed": settings.seed,
        "host": host(),
        "versions": {name: version(name) for name in ("torch", "numpy", "ray")},
    }
