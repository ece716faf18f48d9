"""`ugt tune`: a sweep over model and training settings, chosen on validation; the best trial becomes a preset."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ray_app import pipeline
from ray_app.report import Progress
from tune import spaces, sweep
from ugt.artifacts import content_hash, write_text
from ugt.schema import UGTError
from ugt.settings import Settings


def run(settings: Settings, space_path: Path | None, config: sweep.SweepConfig, out: Path, console: Console) -> dict[str, Any]:
    """Search stage 1 over a space (YAML; the recommended one if None); write the best values to `out`. Ray must be connected.

    A killed sweep goes on where it stopped. Raises UGTError for a space that names no setting.
    """
    space = spaces.RECOMMENDED if space_path is None else spaces.parse(_read(space_path))
    spaces.check(space, settings.model, settings.training)
    artifacts = pipeline.run(settings, Progress(console), until="semantic_ids")
    folders = {
        "histories_dir": str(artifacts["histories"].path),
        "users_dir": str(artifacts["etl"].path / "users"),
        "semantic_ids_dir": str(artifacts["semantic_ids"].path),
        "history": settings.histories.model_dump(),
    }
    key = content_hash([settings.model, settings.training, settings.histories, artifacts["histories"].key, artifacts["semantic_ids"].key])
    storage = settings.home / "work" / "tune" / key
    result = sweep.run(partial(fit_stage1, folders, settings), space, config, storage)
    preset: dict[str, Any] = {}
    for name, value in result.best.items():
        *parents, field = name.split(".")
        place = preset
        for parent in parents:
            place = place.setdefault(parent, {})
        place[field] = value
    write_text(out, f"# best of {len(result.trials)} trials: {config.metric} {result.metric:.4f}, source {settings.source}\n" + yaml.safe_dump(preset))
    return result.model_dump()


def fit_stage1(folders: dict[str, Any], settings: Settings, values: dict[str, spaces.Value], report: sweep.Report) -> None:
    """One trial: stage 1 with these values, one report per validated epoch."""
    from train.ugt import train_stage

    model, training = spaces.apply(values, settings.model, settings.training)
    with tempfile.TemporaryDirectory(prefix="ugt-trial-") as work:
        task = {**folders, "stage": 1, "init_dir": None, "model": model.model_dump(), "training": training.model_dump(), "work_dir": work}
        train_stage(task, report=lambda row: report({"validation_ndcg@10": row["validation"]["score"]}) if row.get("validation") else None)


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UGTError(f"the search space {path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise UGTError(f"the search space {path} must be a mapping of setting names to dimensions.")
    return loaded
