"""The main job: runs the steps of `ray_app.steps`, each once, in their order.

A step runs as a Ray task, so it is seen by name in the dashboard, and its result is an artifact (`ugt.artifacts`): finished steps are skipped and report
the figures they stored, killed ones are resumed or redone. Serving the result is `ray_app.demo`.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_app.quality import reference
from ray_app.report import Progress
from ray_app.steps import ON_REQUEST, STEPS, Context, Step
from ugt.artifacts import Artifact, ArtifactStore, usable_folder
from ugt.schema import UGTError
from ugt.settings import Settings


@ray.remote(num_cpus=0, max_retries=0, max_calls=1)  # one process a step: what it loaded is given back when it ends
def _call(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)(**arguments)


def check(settings: Settings) -> None:
    """What can be known before Ray is started: UGT_HOME can be written, the source's files are there with their columns. Raises UGTError naming what is not."""
    usable_folder(settings.home, "UGT_HOME")
    if settings.source != "sample":
        from data import etl

        etl.check(settings.source, settings.data_dir, settings.imdb_dir, settings.etl)


def run(settings: Settings, progress: Progress, until: str | Sequence[str] = "export") -> dict[str, Artifact]:
    """The step or steps named, and every step they need; returns the artifacts by step name.

    Ray must be connected. Raises UGTError for anything a user can mend; other errors are faults of ours and keep their trace.
    """
    wanted = _closure((until,) if isinstance(until, str) else until, settings)
    store = ArtifactStore(settings.home)
    artifacts: dict[str, Artifact] = {}
    seconds_gauge = Gauge("ugt_step_seconds", "Seconds a step of the main job took; 0 if it was skipped", tag_keys=("step",))
    for step in (*STEPS, *ON_REQUEST):
        if step.name in wanted and step.only(settings):
            start = time.monotonic()
            with progress.running(step.name, step.what):
                artifacts[step.name] = _run_step(step, settings, store, artifacts)
            elapsed = time.monotonic() - start
            figures = artifacts[step.name].manifest.figures
            shown = {k: figures[k] for k in step.shown if k in figures}
            if step.page:
                shown["report"] = _shown(artifacts[step.name].path / step.page)
            progress.done(step.name, elapsed, artifacts[step.name].skipped, shown)
            seconds_gauge.set(0 if artifacts[step.name].skipped else elapsed, tags={"step": step.name})
    return artifacts


def _shown(page: Path) -> str:
    """A path as short as it can be; the folder a job runs in may be gone."""
    with contextlib.suppress(OSError, ValueError):
        return str(page.relative_to(Path.cwd()))
    return str(page)


def _run_step(step: Step, settings: Settings, store: ArtifactStore, artifacts: Mapping[str, Artifact]) -> Artifact:
    paths = {name: artifacts[name].path for name in step.needs if name in artifacts}
    inputs = {name: artifacts[name].key for name in step.needs if name in artifacts}
    if step.name == "etl":
        inputs |= _source_checksums(settings, paths)
    if step.name == "quality":
        other = reference(settings, artifacts["etl"])
        if other is not None:
            paths["against"], inputs["against"] = other.path, other.key

    def make(out: Path, work: Path) -> dict[str, Any]:
        # pinned to this node: the artifact folder is here (on a cluster, UGT_HOME is a shared file system)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task = _call.options(name=f"step {step.name}", scheduling_strategy=here)
        try:
            return ray.get(task.remote(step.function, step.arguments(Context(settings, paths, out, work))))
        except RayTaskError as error:
            cause = user_error(error)
            if cause is not None:
                raise cause from None
            raise

    return store.run(step.name, make, version=step.version, inputs=inputs, settings=step.reads(settings))


def user_error(error: BaseException | None) -> UGTError | OSError | None:
    """The UGTError or full disk at the bottom of a Ray error, however deep, or None."""
    while error is not None:
        if isinstance(error, RayTaskError):
            error = error.cause
        elif isinstance(error, UGTError) or (isinstance(error, OSError) and error.errno in (28, 122)):
            return error
        else:
            error = error.__cause__
    return None


def _source_checksums(settings: Settings, paths: Mapping[str, Path]) -> dict[str, str]:
    if settings.source == "sample":
        return {}  # the generated files follow from the source step's key
    from data import etl

    found = etl.checksums(settings.source, settings.data_dir, settings.imdb_dir, settings.etl)
    # the one file name two sources share: without this, the tables made of it as Amazon's would be taken for plain sequences
    return found | {"kind": settings.source} if settings.source == "sequences" else found


def _closure(until: Iterable[str], settings: Settings) -> set[str]:
    """The steps named and what they need, and the guards of these; a step that these settings leave out needs nothing."""
    by_name = {step.name: step for step in (*STEPS, *ON_REQUEST)}
    for name in until:
        if name not in by_name:
            raise UGTError(f"there is no step '{name}'. The steps are: {', '.join(by_name)}.")
    wanted, todo = set(), list(until)
    while todo:
        name = todo.pop()
        if name not in wanted and by_name[name].only(settings):
            wanted.add(name)
            todo.extend(by_name[name].needs)
    return wanted | {step.name for step in STEPS if step.guards and set(step.needs) <= wanted}
