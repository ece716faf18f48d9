"""The step `quality`: it runs with every run of the ETL, no step's key depends on it, and it finds the run to compare with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_app import quality
from ray_app.pipeline import _closure
from ray_app.steps import ON_REQUEST, STEPS
from ugt.artifacts import Artifact, ArtifactStore
from ugt.schema import UGTError
from ugt.settings import load_settings


def etl(home: Path, name: str, made: int, source: str = "movielens", file: str = "ratings:ratings.csv") -> Artifact:
    """An ETL run made at a given second."""
    run = ArtifactStore(home).run("etl", lambda out, work: {"source": source}, version=1, inputs={file: name})
    os.utime(run.path / "manifest.json", (made, made))
    return run


def test_whatever_runs_the_etl_runs_the_quality_step_right_after_it() -> None:
    names = [step.name for step in STEPS]
    assert names.index("quality") == names.index("etl") + 1
    settings = load_settings(None)
    for until in ("etl", "histories", "export"):
        assert "quality" in _closure((until,), settings)
    assert "quality" not in _closure(("source",), settings)


def test_no_result_depends_on_the_quality_step() -> None:
    assert not [step.name for step in (*STEPS, *ON_REQUEST) if "quality" in step.needs]
    allowed = load_settings(None, {"quality.allowed": {"items.year_plausible": 0.5}})
    assert [step.name for step in STEPS if step.reads(allowed) != step.reads(load_settings(None))] == ["quality"]


def test_a_run_is_compared_with_the_newest_earlier_one_of_the_same_files(tmp_path: Path) -> None:
    settings = load_settings(None, {"home": str(tmp_path)})
    first, second, third = (etl(tmp_path, name, made) for name, made in (("a", 100), ("b", 200), ("c", 300)))
    etl(tmp_path, "d", 250, file="sequences:sequences.txt")
    etl(tmp_path, "e", 260, source="sample")
    assert quality.reference(settings, first) is None
    assert quality.reference(settings, third).key == second.key  # type: ignore[union-attr]
    assert quality.reference(settings, second).key == first.key  # type: ignore[union-attr]  # a later run changes nothing
    for named in (first.key, str(first.path)):
        chosen = load_settings(None, {"home": str(tmp_path), "quality.against": named})
        assert quality.reference(chosen, third).key == first.key  # type: ignore[union-attr]


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    kept = etl(tmp_path, "a", 100)
    settings = load_settings(None, {"home": str(tmp_path), "quality.against": "0123"})
    with pytest.raises(UGTError, match=f"0123 is neither a key of an ETL run .* The keys there are: {kept.key}"):
        quality.find(settings)
