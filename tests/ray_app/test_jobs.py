"""Jobs: the upload is small and whole, and a node with neither the checkout nor the package runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ray_app.cluster import auth_headers

ROOT = Path(__file__).resolve().parents[2]
GCS_PORT, DASHBOARD_PORT = 7480, 8565


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that sees every dependency but not our package: site-packages as a plain path, so its own .pth files
    (the editable install of ours among them) are not read."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python3.*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    assert subprocess.run([str(python), "-c", "import ray, torch"], cwd="/").returncode == 0
    assert subprocess.run([str(python), "-c", "import ugt"], cwd="/", capture_output=True).returncode != 0
    return python


@pytest.fixture(scope="module")
def two_nodes(foreign_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head without CPUs and a second node with four: every task that needs a CPU runs on the second node."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UGT_", "RAY_"))}
    # Ray's token has to be asked for by each `ray start`; without a mode the head has it on and a second node is refused
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"], capture_output=True, check=True)
    env |= {"PATH": f"{foreign_python.parent}:{os.environ['PATH']}", "RAY_num_workers_soft_limit": "8", "RAY_AUTH_MODE": "token"}
    ray = [str(foreign_python), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--object-store-memory=300000000"]
    head = [*ray, "--head", "--num-cpus=0", "--node-ip-address=127.0.0.1", f"--port={GCS_PORT}", f"--dashboard-port={DASHBOARD_PORT}"]
    second = [*ray, f"--address=127.0.0.1:{GCS_PORT}", "--num-cpus=4"]
    address = f"http://127.0.0.1:{DASHBOARD_PORT}"
    started = []
    try:
        started.append(subprocess.Popen(head, cwd=elsewhere, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _wait(lambda: httpx.get(f"{address}/api/version", headers=auth_headers(), timeout=2).status_code == 200)
        started.append(subprocess.Popen(second, cwd=elsewhere, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _wait(lambda: len(httpx.get(f"{address}/nodes?view=summary", headers=auth_headers(), timeout=5).json()["data"]["summary"]) == 2)
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=60)


def _wait(ready, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except (httpx.HTTPError, KeyError):
            pass
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.5)


def _submit(address: str, *entrypoint: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`ray job submit` exactly as the README has it."""
    runtime_env = json.dumps({"env_vars": env or {}})
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--working-dir", "."]
    command += ["--runtime-env-json", runtime_env, "--"]
    token = os.environ | {"RAY_AUTH_MODE": "token"}
    return subprocess.run([*command, *entrypoint], cwd=ROOT, env=token, capture_output=True, text=True, timeout=400)


def test_the_upload_holds_the_source_and_nothing_else(two_nodes: str) -> None:
    walk = "import os; print('FILES', [(os.path.join(d, f)[2:], os.path.getsize(os.path.join(d, f))) for d, _, fs in os.walk('.') for f in fs])"
    done = _submit(two_nodes, "python", "-c", walk)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FILES"))
    files: list[tuple[str, int]] = eval(line.removeprefix("FILES "))
    names = {name for name, _ in files}
    assert {"data/etl.py", "train/ugt.py", "serve/app.py", "tune/sweep.py", "ugt/schema.py", "ray_app/cli.py", "configs/tiny.yaml"} <= names
    assert not [n for n in names if n.startswith((".git/", ".venv/", ".ugt/", "tests/"))]
    assert sum(size for _, size in files) < 3_000_000, "the upload grew: an artifact in the working tree?"


def test_a_job_runs_on_a_node_that_has_neither_checkout_nor_package(two_nodes: str, tmp_path: Path) -> None:
    """From generated files to semantic IDs: Ray Data, its actor pool and Ray Train all work on the second node."""
    env = {"UGT_HOME": str(tmp_path / "home"), "UGT_TRAINING__THREADS": "1"}
    done = _submit(two_nodes, "python", "-m", "ray_app", "train", "semantic-ids", "--config", "configs/tiny.yaml", env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list((tmp_path / "home" / "artifacts" / "semantic_ids").glob("*/manifest.json"))


def test_the_dashboard_shows_the_job(two_nodes: str) -> None:
    jobs = httpx.get(f"{two_nodes}/api/jobs/", headers=auth_headers()).json()
    assert any("train semantic-ids" in job["entrypoint"] and job["status"] == "SUCCEEDED" for job in jobs)


def test_the_head_of_cluster_up_takes_jobs_and_goes_down(tmp_path: Path) -> None:
    """As the README has it: the head wants a token, and the job commands send it without being told."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UGT_", "RAY_"))}
    env |= {"HOME": str(tmp_path), "UGT_HOME": str(tmp_path / "home"), "UGT_RAY__DASHBOARD_PORT": "8665"}

    def ugt(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "ray_app", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        assert "http://127.0.0.1:8665" in ugt("cluster", "up")
        assert "no version of" in ugt("job", "submit", "--address", "http://127.0.0.1:8665", "--", "models", "list")
        assert "SUCCEEDED" in ugt("job", "list", "--address", "http://127.0.0.1:8665")
    finally:
        assert "processes ended" in ugt("cluster", "down")
    assert ugt("cluster", "status").strip().startswith("down")
