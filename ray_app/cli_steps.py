"""Commands that run the main job up to a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from ray_app.cli_options import ConfigPath, DataDir, ImdbDir, JsonPath, Seed, Source, console, settings_of, writable, write_json
from ugt.artifacts import Artifact
from ugt.settings import Settings


def run_until(step: str, settings: Settings, json_path: Path | None = None, also: tuple[str, ...] = ()) -> dict[str, Artifact]:
    """Run the main job up to a step (and `also` up to others), and say where the result lies."""
    from ray_app import pipeline
    from ray_app.cluster import connected
    from ray_app.report import Progress

    writable(json_path, "--json")
    pipeline.check(settings)
    progress = Progress(console)
    with connected(settings.ray):
        artifacts = pipeline.run(settings, progress, until=(step, *also))
    last = artifacts[step]
    console.print(f" written       {last.path}", highlight=False, soft_wrap=True)
    write_json(json_path, {"step": step, "path": str(last.path), "steps": progress.steps, "figures": dict(last.manifest.figures)})
    return artifacts


def step_command(group: typer.Typer, name: str, step: str, text: str, lines: Callable[[Mapping[str, Any]], list[str]] = lambda figures: []) -> None:
    """One command per step of the main job; what it needs is run first, or kept if it is there. `lines` says more of the step's figures at the end."""

    @group.command(name, help=text)
    def command(
        config: ConfigPath = None, source: Source = None, data_dir: DataDir = None, imdb_dir: ImdbDir = None, seed: Seed = None, json_path: JsonPath = None
    ) -> None:
        made = run_until(step, settings_of(config, source, data_dir, imdb_dir, seed), json_path)
        for line in lines(made[step].manifest.figures):
            console.print(f" {line}", highlight=False, soft_wrap=True)
