"""A step's key covers all it reads: whatever changes its arguments changes its key, and it opens no folder that it doesn't name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ray_app.pipeline import _source_checksums
from ray_app.steps import ON_REQUEST, STEPS, Context, Step
from ugt.model.config import PLACEMENT
from ugt.settings import Settings, load_settings


class Folders(Mapping[str, Path]):
    """The folders of all steps; remembers which were asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Path:
        self.asked.add(name)
        return Path("/artifacts") / name

    def __iter__(self) -> Iterator[str]:
        return iter(step.name for step in STEPS)

    def __len__(self) -> int:
        return len(STEPS)


def described(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def arguments(step: Step, settings: Settings) -> dict[str, Any]:
    return {name: described(value) for name, value in step.arguments(Context(settings, Folders(), Path("/out"), Path("/work"))).items()}


def changed(settings: Settings) -> Iterator[tuple[str, Settings]]:
    """Settings that differ in one field of one section, for every field that has a value to differ from."""
    for section in Settings.model_fields:
        config = getattr(settings, section)
        if not isinstance(config, BaseModel):
            continue
        for field, value in config:
            other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x" if isinstance(value, str) else None
            if other is not None:
                yield f"{section}.{field}", settings.model_copy(update={section: config.model_copy(update={field: other})})


@pytest.mark.parametrize("source", ["sample", "movielens", "imdb"])
@pytest.mark.parametrize("step", [*STEPS, *ON_REQUEST], ids=lambda s: s.name)
def test_a_setting_that_changes_a_steps_arguments_changes_its_key(step: Step, source: str) -> None:
    settings = load_settings(None, {"source": source, "data_dir": "/data"})
    before, read = arguments(step, settings), [described(s) for s in step.reads(settings)]
    for name, other in changed(settings):
        if name.startswith("training.") and name.removeprefix("training.") in PLACEMENT:
            continue  # where a stage is trained, not what comes out
        if arguments(step, other) != before and not (
            step.name == "etl" and name.startswith("sample.") and source != "imdb"
        ):  # sample.* makes imdb's events only
            assert [described(s) for s in step.reads(other)] != read, f"{step.name} is given {name}, which is not in its key"


def key_of(name: str, **flags: Any) -> list[Any]:
    step = next(step for step in STEPS if step.name == name)
    return [described(s) for s in step.reads(load_settings(None, flags))]


@pytest.mark.parametrize(
    ("flag", "value", "trained_again"),
    [
        ("training.stage3.learning_rate", 1e-3, {"ugt_stage3"}),
        ("training.stage2.contrastive_weight", 0.2, {"ugt_stage2"}),
        ("training.dpo_beta", 0.2, {"ugt_stage3"}),
        ("training.contrastive_temperature", 0.2, {"ugt_stage2"}),
        ("training.stage1.epochs", 3, {"ugt_stage1"}),
        ("training.ema_decay", 0.9, {"ugt_stage1", "ugt_stage2", "ugt_stage3"}),
        ("training.workers", 2, set()),
        ("training.threads", 1, set()),
        ("training.strategy", "deepspeed", set()),
    ],
)
def test_a_setting_trains_again_only_the_stages_that_read_it(flag: str, value: Any, trained_again: set[str]) -> None:
    """The stages after it follow through the keys of their inputs."""
    stages = ("ugt_stage1", "ugt_stage2", "ugt_stage3")
    assert {name for name in stages if key_of(name, **{flag: value}) != key_of(name)} == trained_again


def test_a_stage_is_given_every_setting_that_it_reads() -> None:
    settings = load_settings(None, {"training.stage2.dpo_weight": 0.1, "training.dpo_beta": 0.7, "training.stage2.epochs": 9, "training.workers": 3})
    given = settings.training.of_stage(2)
    assert (given.dpo_beta, given.stage2, given.workers) == (0.7, settings.training.stage2, 3)


@pytest.mark.parametrize("step", [*STEPS, *ON_REQUEST], ids=lambda s: s.name)
def test_a_step_opens_only_folders_it_needs(step: Step) -> None:
    folders = Folders()
    step.arguments(Context(load_settings(None), folders, Path("/out"), Path("/work")))
    assert folders.asked & set(folders) <= set(step.needs)


def test_one_file_read_by_two_sources_gives_two_keys(tmp_path: Path) -> None:
    """`user item item ...` is Amazon's form and the plain one; the tables made of it differ (purchase or view, product titles)."""
    (tmp_path / "sequences.txt").write_text("1 1 2 3\n")
    keys = {json.dumps(_source_checksums(load_settings(None, {"source": s, "data_dir": str(tmp_path)}), {}), sort_keys=True) for s in ("amazon", "sequences")}
    assert len(keys) == 2
