"""Shared fixtures: one local Ray for the session, one real run of the whole pipeline on `configs/tiny.yaml`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_num_workers_soft_limit", "8")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The local Ray cluster of this test session (4 logical CPUs). Made once; every test marked `ray` uses it."""
    from ray_app.cluster import connected
    from ugt.settings import RayConfig

    with connected(RayConfig(num_cpus=4, dashboard_port=8365)):
        yield


@dataclass(frozen=True)
class TinyRun:
    home: Path
    report: dict[str, Any]
    artifacts: dict[str, Path]
    output: str


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """`ugt demo --config configs/tiny.yaml` run once as a user runs it: everything real, 300 titles, 200 users."""
    home = tmp_path_factory.mktemp("tiny") / "home"
    return _run_demo(home)


@pytest.fixture(scope="session")
def run_demo() -> Callable[..., TinyRun]:
    """Run the demo again on a home of the test's own."""
    return _run_demo


def _run_demo(home: Path, *arguments: str, config: Path = ROOT / "configs" / "tiny.yaml", port: int = 8100) -> TinyRun:
    out = home.parent / f"{home.name}.json"
    env = os.environ | {"UGT_HOME": str(home), "UGT_SERVE__PORT": str(port), "UGT_RAY__DASHBOARD_PORT": "8465"}
    command = [sys.executable, "-m", "ray_app", "demo", "--config", str(config), "--json", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, f"ugt demo failed:\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    folders = {}
    for step in (home / "artifacts").iterdir():
        manifests = sorted(step.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
        if manifests:
            folders[step.name] = manifests[-1].parent
    return TinyRun(home=home, report=json.loads(out.read_text()), artifacts=folders, output=done.stdout)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real public data sets, named by UGT_DATA_DIR; a test that needs them says so when they are not there."""
    folder = os.environ.get("UGT_DATA_DIR")
    if not folder:
        pytest.skip("not run: needs real data; set UGT_DATA_DIR to the folder that holds movielens/, imdb/, amazon-2014/")
    return Path(folder)
