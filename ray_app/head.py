"""A local Ray head that stays up, so that jobs have something to be submitted to: `ugt cluster up | status | down`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from ray_app.cluster import API_SERVER, WORKERS_KEPT_WARM, auth_headers, free_port, local_cpus
from ugt.artifacts import usable_folder, write_text
from ugt.schema import UGTError
from ugt.settings import Settings

PORT = 7379  # not Redis' own 6379
START_SECONDS = 60


def _record(settings: Settings) -> Path:
    return settings.home.absolute() / "state" / "cluster.json"


def _keeper(pid: int) -> psutil.Process | None:
    """The `ray start --block` process that holds this head together, if it still lives (a pid may have been given to another program)."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if "--head" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def up(settings: Settings) -> dict[str, Any]:
    """Start the head (loopback only) unless it is already up. Raises UGTError with Ray's own words if it does not start."""
    status = state(settings)
    if status["up"]:
        return status
    for host, port, way_out in (
        ("127.0.0.1", PORT, "End the head that another UGT_HOME started (UGT_HOME=... ugt cluster down)."),
        (settings.ray.dashboard_host, settings.ray.dashboard_port, f"Take another: UGT_RAY__DASHBOARD_PORT={settings.ray.dashboard_port + 1}"),
    ):
        if free_port(host, port) != port:
            raise UGTError(f"port {port} of {host} can't be used: another program listens there. {way_out}")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={PORT}"]
    command += [f"--dashboard-host={settings.ray.dashboard_host}", f"--dashboard-port={settings.ray.dashboard_port}", "--disable-usage-stats"]
    command += [f"--num-cpus={local_cpus(settings.ray)}", f"--object-store-memory={settings.ray.object_store_mb << 20}"]
    # a job's entrypoint is `python -m ray_app ...`: the head's python must be this one
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    generated = subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"], capture_output=True, text=True)
    if generated.returncode:
        raise UGTError(f"no token for the cluster could be made: {generated.stderr.strip()[-300:]}")
    env = os.environ | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_num_workers_soft_limit": str(WORKERS_KEPT_WARM)}
    env[API_SERVER] = f"http://{settings.ray.dashboard_host}:{settings.ray.dashboard_port}"
    record = _record(settings)
    usable_folder(record.parent, "UGT_HOME")
    log = record.with_suffix(".log")
    dashboard = f"http://{settings.ray.dashboard_host}:{settings.ray.dashboard_port}"
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    deadline = time.monotonic() + START_SECONDS
    while not _answers(dashboard):
        if process.poll() is not None or time.monotonic() > deadline:
            _end(process.pid)
            raise UGTError(f"the Ray head did not start; the end of {log}: {log.read_text().strip()[-600:]}")
        time.sleep(0.3)
    write_text(record, json.dumps({"address": f"127.0.0.1:{PORT}", "dashboard": dashboard, "pid": process.pid}))
    return state(settings)


def state(settings: Settings) -> dict[str, Any]:
    """`{"up", "address", "dashboard", "pid"}` of the head that `up` started."""
    try:
        record = json.loads(_record(settings).read_text())
    except (FileNotFoundError, ValueError):
        return {"up": False, "address": "", "dashboard": "", "pid": 0}
    return {"up": _keeper(record["pid"]) is not None, **record}


def down(settings: Settings) -> int:
    """End the head's processes, and only those (`ray stop` would end every cluster of the machine); returns how many there were."""
    record = state(settings)
    ended = _end(record["pid"]) if record["up"] else 0
    _record(settings).unlink(missing_ok=True)
    return ended


def _end(pid: int) -> int:
    process = _keeper(pid)
    if process is None:
        return 0
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    return len(family)


def _answers(dashboard: str) -> bool:
    try:
        return httpx.get(f"{dashboard}/api/version", headers=auth_headers(), timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
