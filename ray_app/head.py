"""A local Ray head that stays up, so that jobs have something to be submitted to: `ugt cluster up | status | down`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ray_app.cluster import WORKERS_KEPT_WARM, local_cpus
from ugt.artifacts import write_text
from ugt.schema import UGTError
from ugt.settings import Settings

PORT = 6379 + 1000  # not Redis' own


def _record(settings: Settings) -> Path:
    return settings.home.absolute() / "state" / "cluster.json"


def _processes(gcs: str) -> list[psutil.Process]:
    """Ray processes of this head: each names the head's address on its command line. `ray stop` would end every cluster of the machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        port = gcs.rsplit(":", 1)[1]
        if f"--gcs-address={gcs}" in line or f"--gcs_address={gcs}" in line or ("gcs_server" in line and f"--gcs_server_port={port}" in line):
            found.append(process)
    return found


def up(settings: Settings) -> dict[str, Any]:
    """Start the head (loopback only) unless it is already up. Raises UGTError with Ray's own words if it does not start."""
    status = state(settings)
    if status["up"]:
        return status
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={PORT}"]
    command += [f"--dashboard-host={settings.ray.dashboard_host}", f"--dashboard-port={settings.ray.dashboard_port}", "--disable-usage-stats"]
    command += [f"--num-cpus={local_cpus(settings.ray)}", f"--object-store-memory={settings.ray.object_store_mb << 20}"]
    env = os.environ | {"RAY_num_workers_soft_limit": str(WORKERS_KEPT_WARM)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    if done.returncode:
        raise UGTError(f"the Ray head did not start: {(done.stderr or done.stdout).strip()[-600:]}")
    _record(settings).parent.mkdir(parents=True, exist_ok=True)
    dashboard = f"http://{settings.ray.dashboard_host}:{settings.ray.dashboard_port}"
    write_text(_record(settings), json.dumps({"address": f"127.0.0.1:{PORT}", "dashboard": dashboard}))
    return state(settings)


def state(settings: Settings) -> dict[str, Any]:
    """`{"up", "address", "dashboard", "processes"}` of the head that `up` started."""
    try:
        record = json.loads(_record(settings).read_text())
    except (FileNotFoundError, ValueError):
        return {"up": False, "address": "", "dashboard": "", "processes": 0}
    processes = _processes(record["address"])
    return {"up": bool(processes), **record, "processes": len(processes)}


def down(settings: Settings) -> int:
    """End the head's processes, and only those; returns how many there were."""
    record = state(settings)
    if not record["up"]:
        return 0
    processes = _processes(record["address"])
    children = [child for p in processes for child in p.children(recursive=True)]
    everything = {p.pid: p for p in [*processes, *children]}
    for process in everything.values():
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(list(everything.values()), timeout=10)
    for process in alive:
        _quietly(process.kill)
    _record(settings).unlink(missing_ok=True)
    time.sleep(0.2)
    return len(everything)


def _quietly(action: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.Error):
        action()
