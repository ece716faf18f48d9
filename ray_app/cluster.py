"""The Ray cluster a command runs on: the one of the surrounding job, a named one, or a local one made and ended here."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from ugt.schema import UGTError
from ugt.settings import RayConfig

# Warm workers are kept up to this many: a groupby or join then starts in 0.3 s instead of 5 s. Each idle one holds what it once imported.
WORKERS_KEPT_WARM = 4


API_SERVER = "RAY_API_SERVER_ADDRESS"


def free_port(host: str, first: int) -> int:
    """The first free port from `first` on."""
    for port in range(first, first + 100):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free again as soon as nobody listens there
            s.bind((host, port))
            return port
    raise UGTError(f"no free port for the Ray dashboard on {host} from {first} to {first + 99}. Set ray.dashboard_port.")


def auth_headers() -> dict[str, str]:
    """The header that Ray's dashboard wants while token authentication is on (Ray's documentation, "Token authentication")."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def local_cpus(config: RayConfig) -> int:
    """Logical CPUs of a local cluster: at least 4, because actors and drivers hold fractions of them while they wait."""
    return config.num_cpus or max(4, os.cpu_count() or 1)


@contextmanager
def connected(config: RayConfig) -> Iterator[str]:
    """Connect to Ray for the length of the block; yields the dashboard's URL (empty if it has none).

    Inside a Ray job, or with `ray.address` set, the running cluster is used and left as it is. Otherwise a local cluster is
    started and ended with the block. Raises UGTError if the address does not answer or memory is short.
    """
    import ray

    if ray.is_initialized():
        yield _dashboard_url()
        return
    _quiet_ray()
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UGTError(f"no Ray cluster answers at {address}: {error}. Start one (ugt cluster up) or leave ray.address empty for a local one.") from error
    else:
        _check_memory(config)
        os.environ.setdefault("RAY_num_workers_soft_limit", str(WORKERS_KEPT_WARM))
        # Ray ends those beyond it after a second; one that Ray Data asks for again right away costs two seconds of a core
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "15000")
        # raylet takes twice the cores; four workers that start at once are what a step asks for, and many small actors that wait are no fault
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")
        # a task has one core; polars would take all of them in each. A driver's own polars work is small
        os.environ.setdefault("POLARS_MAX_THREADS", "1")
        port = free_port(config.dashboard_host, config.dashboard_port)
        # Ray's own state calls would look for a cluster of the machine, and could find another or a dead one
        os.environ[API_SERVER] = f"http://{config.dashboard_host}:{port}"
        ray.init(
            address="local",  # never a cluster that happens to run on this machine: it is not ours to use, or to end
            num_cpus=local_cpus(config),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=True,
            dashboard_host=config.dashboard_host,
            dashboard_port=port,
            **quiet,
        )
    try:
        yield _dashboard_url()
    finally:
        ray.shutdown()
        if not address:
            os.environ.pop(API_SERVER, None)


def _quiet_ray() -> None:
    """One line per step is our progress. What Ray tells a driver at length stays in its dashboard and logs; its errors are shown."""
    for name in ("ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def _dashboard_url() -> str:
    import ray

    url = ray._private.worker.get_dashboard_url() if hasattr(ray, "_private") else ""
    return f"http://{url}" if url else ""


def _check_memory(config: RayConfig) -> None:
    available = psutil.virtual_memory().available >> 20
    needed = config.object_store_mb + 1500
    if available < needed:
        raise UGTError(f"{available} MB of memory are free and a local Ray cluster needs {needed} MB. Close other programs or lower ray.object_store_mb.")
