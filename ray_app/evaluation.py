"""`ugt evaluate --against`, `--curves` and `--report`: finds the other run, compares it on the same users, shows the curves, and writes the report page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ray_app.report import curves_table
from ray_app.steps import curve_dirs
from ugt import comparison, report_page
from ugt.artifacts import Artifact, ArtifactStore, write_text
from ugt.registry import Registry
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIds
from ugt.settings import Settings


def find(settings: Settings, against: str) -> tuple[str, Path]:
    """Name and folder or file of another run: a predictions file, an evaluation's folder, or the evaluation of a version in the registry.

    Raises UGTError if it is none of them, or if the version's evaluation is gone.
    """
    path = Path(against)
    if path.exists():
        return path.name, path
    if "/" in against or path.suffix:
        raise UGTError(f"--against: there is no file or folder {against}. Give a predictions file, an evaluation's folder, or a version (ugt models list).")
    manifest = Registry(settings.registry_location).manifest(settings.serve.model_name, against)
    key = manifest.card.get("inputs", {}).get("evaluate")
    found = ArtifactStore(settings.home).find("evaluate", key) if key else None
    if found is None:
        raise UGTError(f"--against: the evaluation of version {manifest.version} is not in {settings.home}/artifacts. Give its predictions file instead.")
    return manifest.version, found.path


def compared(artifacts: Mapping[str, Artifact], other: tuple[str, Path], protocol: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The comparison of this run with the one that `find` found. Raises UGTError for other targets or another catalogue."""
    this = comparison.load_run(artifacts["evaluate"].path, "this run")
    name, path = other
    if path.is_dir():
        run = comparison.load_run(path, name)
    else:
        run = comparison.load_predictions(path, this, SemanticIds.load(artifacts["semantic_ids"].path).item_ids)
    return comparison.compare(this, run, settings.evaluation.bootstrap_samples, int(protocol["seed"]))


def curves(artifacts: Mapping[str, Artifact], console: Console) -> dict[str, Any]:
    """The accuracy-diversity curves of `ugt evaluate --curves`, shown as a table."""
    path = artifacts["curves"].path / "curves.json"
    found: dict[str, Any] = json.loads(path.read_text())
    console.print(" Decoding strategies on validation users: what the generative head lists, and what is served of it:", highlight=False)
    console.print(curves_table(found))
    console.print(f" curves        {path}", highlight=False, soft_wrap=True)
    return found


def write_page(path: Path, report: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> None:
    """The report page with what this call added to it. Raises UGTError if it can't be written."""
    page = report_page.build(report, report_page.read_curves(curve_dirs({name: artifact.path for name, artifact in artifacts.items()})))
    try:
        write_text(path, page)
    except OSError as error:
        raise UGTError(f"cannot write {path}: {error.strerror}. Give --report a path that can be written.") from error
