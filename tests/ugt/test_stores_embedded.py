"""The embedded servers: reused while they live, replaced when they die, nothing acknowledged is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import redis

from ugt.settings import StoresConfig
from ugt.stores import embedded
from ugt.stores.vectors import VectorStore


@pytest.fixture
def home(tmp_path):
    yield tmp_path
    embedded.stop(tmp_path)


def _alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _kill(pid):
    os.kill(pid, signal.SIGKILL)
    while _alive(pid):
        time.sleep(0.01)


def test_a_second_start_reuses_the_server_and_a_stop_keeps_its_data(home):
    url = embedded.ensure_redis(home)
    redis.Redis.from_url(url).set("a", "1")
    pid = embedded.running(home)["redis"]
    assert embedded.ensure_redis(home) == url
    assert embedded.running(home) == {"redis": pid}
    embedded.stop(home)
    assert embedded.running(home) == {}
    assert not _alive(pid)
    assert redis.Redis.from_url(embedded.ensure_redis(home)).get("a") == b"1"


def test_what_redis_acknowledged_survives_kill_9_at_the_same_address(home):
    url = embedded.ensure_redis(home)
    client = redis.Redis.from_url(url)
    for i in range(50):
        client.rpush("events", i)
    _kill(embedded.running(home)["redis"])
    assert embedded.ensure_redis(home) == url
    assert redis.Redis.from_url(url).llen("events") == 50


def test_milvus_survives_kill_9(home):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    store = VectorStore(embedded.ensure_milvus(home))
    store.replace("fused", ["a", "b", "c"], x)
    _kill(embedded.running(home)["milvus"])
    item_ids, read = VectorStore(embedded.ensure_milvus(home)).read("fused")
    assert item_ids == ["a", "b", "c"]
    assert (read == x).all()


def test_a_reused_pid_or_a_lost_record_does_not_confuse_the_next_start(home):
    embedded.ensure_redis(home)
    first = embedded.running(home)["redis"]
    record = home / "state" / "redis.json"
    record.unlink()  # killed between start and write: a stray server still holds the data folder
    embedded.ensure_redis(home)
    assert embedded.running(home)["redis"] != first
    assert not _alive(first)
    embedded.stop(home)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": os.getpid(), "created": 1.0}))  # its pid is somebody else's now
    assert redis.Redis.from_url(embedded.ensure_redis(home)).ping()
    assert _alive(os.getpid())


def test_many_processes_that_start_at_once_share_one_server(home):
    code = "import sys; from pathlib import Path; from ugt.stores import embedded; print(embedded.ensure_redis(Path(sys.argv[1])))"
    started = [subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    urls = {p.communicate(timeout=60)[0].strip() for p in started}
    assert len(urls) == 1
    assert redis.Redis.from_url(urls.pop()).ping()


def test_only_loopback_and_only_with_the_password(home):
    url = embedded.ensure_redis(home)
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
    listening = {c.laddr.ip for c in psutil.Process(embedded.running(home)["redis"]).net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert (home / "state" / "redis.json").stat().st_mode & 0o077 == 0


def test_a_url_in_the_settings_is_used_as_it_is(home):
    stores = StoresConfig(redis_url="redis://elsewhere:6379/0", milvus_uri="http://elsewhere:19530")
    resolved = embedded.resolve(stores, home)
    assert (resolved.redis_url, resolved.milvus_uri) == (stores.redis_url, stores.milvus_uri)
    assert resolved.sql_url.startswith("sqlite:///")
    assert embedded.running(home) == {}
