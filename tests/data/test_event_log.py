"""The event log: what the stream holds reaches Parquet at least once and counts once, in the day it happened, whoever is killed when."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from data import event_log
from ugt.artifacts import EVENT_LOG, EVENTS
from ugt.histories import from_events
from ugt.schema import Event, UGTError
from ugt.stores import embedded
from ugt.stores.features import STREAM, OnlineFeatures

DAY = 86400
MARCH_1 = 1_709_251_200  # 2024-03-01 00:00 UTC


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("redis")
    yield embedded.ensure_redis(home)
    embedded.stop(home)


@pytest.fixture
def url(server):
    with redis.Redis.from_url(server) as client:
        client.flushall()
    return server


def send(url, events, details=None):
    """Through the very call that serving makes."""

    async def body():
        features = OnlineFeatures(url)
        for event in events:
            await features.append(event, details or {"received_at": "1709300000", "trace_id": "t"})
        await features.close()

    asyncio.run(body())


def event(n, user_id="u", item_id="a", timestamp=MARCH_1, action="like", value=None):
    return Event(event_id=f"e{n}", user_id=user_id, item_id=item_id, action=action, value=value, timestamp=timestamp)


def ids(log):
    return [i for day in event_log.days(log) for i in event_log.read_day(log, day)["event_id"].to_pylist()]


def test_every_event_is_written_once_with_what_came_with_it(url, tmp_path):
    send(url, [event(1, value=4.5)], {"request_id": "r", "received_at": "1709300000", "position": "3", "device_type": "tv"})
    assert event_log.drain(url, tmp_path) == {"read": 1, "written": 1, "quarantined": 0, "removed": 0, "files": 1}
    assert event_log.drain(url, tmp_path)["read"] == 0
    (row,) = event_log.read_day(tmp_path, "2024-03-01").to_pylist()
    assert json.loads(row.pop("details")) == {"position": "3", "device_type": "tv"}
    assert row.pop("order") > 0
    assert row == event(1, value=4.5).model_dump() | {"received_at": 1709300000, "request_id": "r"}
    send(url, [event(2)])
    assert event_log.drain(url, tmp_path)["written"] == 1
    assert sorted(ids(tmp_path)) == ["e1", "e2"]


def test_a_late_event_goes_to_the_day_it_happened_and_stands_where_it_happened(url, tmp_path):
    send(url, [event(1, timestamp=MARCH_1 + DAY + 5), event(2, timestamp=MARCH_1 + 9), event(3, timestamp=MARCH_1 + 3), event(4, timestamp=MARCH_1 + DAY - 1)])
    event_log.drain(url, tmp_path)
    send(url, [event(5, timestamp=MARCH_1 + 3), event(6, timestamp=0)])  # days later, of the first day; and without a time
    event_log.drain(url, tmp_path)
    assert event_log.days(tmp_path) == ["1970-01-01", "2024-03-01", "2024-03-02"]
    assert event_log.read_day(tmp_path, "2024-03-01")["event_id"].to_pylist() == ["e3", "e5", "e2", "e4"]
    assert sorted(p.parent.name for p in tmp_path.glob("*/part-*")) == ["date=1970-01-01", "date=2024-03-01", "date=2024-03-01", "date=2024-03-02"]


def test_what_is_no_event_is_put_aside_with_its_reason(url, tmp_path):
    with redis.Redis.from_url(url) as client:
        good = {"event_id": "e", "user_id": "u", "item_id": "a", "action": "like", "timestamp": "1709251200"}
        for broken in ({"item_id": None}, {"action": "stare"}, {"timestamp": "1709251200000"}, {"timestamp": "soon"}, {"value": "much"}, {"user_id": ""}, {}):
            client.xadd(STREAM, {k: v for k, v in {**good, **broken}.items() if v is not None})
    figures = event_log.drain(url, tmp_path)
    assert (figures["read"], figures["written"], figures["quarantined"]) == (7, 1, 6)
    bad = pq.read_table(tmp_path / "quarantine", partitioning=None).to_pylist()
    assert bad[0]["reason"] == "item_id is missing"
    assert "stare" in bad[1]["reason"] or "action" in bad[1]["reason"]
    assert "not in Unix seconds" in bad[2]["reason"]
    assert json.loads(bad[4]["raw"])["value"] == "much"
    assert event_log.drain(url, tmp_path)["read"] == 0


@pytest.mark.parametrize("where", ["client.xack", "os.replace", "pq.write_table"])
def test_a_drain_killed_at_any_step_loses_nothing_and_counts_each_once(url, tmp_path, where):
    """SIGKILL before the rows are written, before the file has its name, and between the file and the acknowledgement."""
    sent = [event(n, user_id=f"u{n % 3}", timestamp=MARCH_1 + n * 30_000) for n in range(40)]
    send(url, sent)
    code = f"""
import os, signal, sys
import pyarrow.parquet as pq
import redis
from data import event_log
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
if {where!r} == "client.xack": redis.Redis.xack = die
else: setattr({{"os.replace": os, "pq.write_table": pq}}[{where!r}], {where.split(".")[1]!r}, die)
event_log.drain(sys.argv[1], sys.argv[2])
"""
    done = subprocess.run([sys.executable, "-c", code, url, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    written = sum(pq.read_metadata(f).num_rows for f in tmp_path.glob("date=*/part-*.parquet"))
    assert written == (40 if where == "client.xack" else 0)
    assert event_log.drain(url, tmp_path)["written"] == 40  # pending entries first
    assert sum(pq.read_metadata(f).num_rows for f in tmp_path.glob("date=*/part-*.parquet")) == written + 40
    assert sorted(ids(tmp_path)) == sorted(e.event_id for e in sent)
    items = pa.table({"item_id": ["a"], "item_index": pa.array([0], pa.int32())})
    events, balance = event_log.events_of(tmp_path, items)
    assert (events.num_rows, balance["duplicate"]) == (40, written)
    assert event_log.compact(tmp_path)["duplicates"] == written
    assert sum(pq.read_metadata(f).num_rows for f in tmp_path.glob("date=*/part-*.parquet")) == 40


def test_an_entry_deleted_after_it_was_handed_out_is_counted_and_does_not_stop_the_drain(url, tmp_path):
    send(url, [event(1), event(2)])
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.xgroup_create(STREAM, event_log.GROUP, id="0")
        client.xreadgroup(event_log.GROUP, event_log.CONSUMER, {STREAM: ">"})  # a drain that died before it wrote
        client.xdel(STREAM, client.xrange(STREAM)[0][0])
    figures = event_log.drain(url, tmp_path)
    assert (figures["read"], figures["written"], figures["removed"]) == (2, 1, 1)
    assert ids(tmp_path) == ["e2"]


def test_compaction_leaves_one_sorted_file_a_day_and_a_second_run_changes_nothing(url, tmp_path):
    for n in range(4):
        send(
            url,
            [event(10 * n + k, user_id=f"u{(n * k) % 3}", timestamp=MARCH_1 + 1000 * ((7 * n + k) % 5)) for k in range(5)]
            + [event(100 + n, timestamp=MARCH_1 + DAY)],
        )
        event_log.drain(url, tmp_path)
    before = {day: event_log.read_day(tmp_path, day) for day in event_log.days(tmp_path)}
    figures = event_log.compact(tmp_path)
    assert (figures["files_before"], figures["files_after"], figures["rewritten"], figures["rows"]) == (8, 2, 2, 24)
    for day, rows in before.items():
        (part,) = (tmp_path / f"date={day}").iterdir()
        assert pq.read_table(part, partitioning=None).equals(rows)
        keys = list(zip(rows["user_id"].to_pylist(), rows["timestamp"].to_pylist(), strict=True))
        assert keys == sorted(keys)
    names = sorted(str(p) for p in tmp_path.glob("*/*"))
    assert event_log.compact(tmp_path)["rewritten"] == 0
    assert sorted(str(p) for p in tmp_path.glob("*/*")) == names
    send(url, [event(200)])
    event_log.drain(url, tmp_path)
    assert event_log.compact(tmp_path, until=date(2024, 2, 29))["days"] == 0
    assert event_log.compact(tmp_path)["rewritten"] == 1


def test_compaction_is_safe_beside_a_drain_and_a_reader(url, tmp_path):
    """Everything at once: no reader misses an event that was there when it began, none counts one twice."""
    stop, faults, seen = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                seen.append(len(ids(tmp_path)))
            except Exception as error:
                faults.append(error)

    def tidy():
        while not stop.is_set():
            try:
                event_log.compact(tmp_path)
            except Exception as error:
                faults.append(error)

    event_log.drain(url, tmp_path)
    threads = [threading.Thread(target=read), threading.Thread(target=tidy)]
    for thread in threads:
        thread.start()
    for n in range(15):
        send(url, [event(f"{n}-{k}") for k in range(4)])
        event_log.drain(url, tmp_path)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert seen == sorted(seen)
    assert len(ids(tmp_path)) == len(set(ids(tmp_path))) == 60
    event_log.compact(tmp_path)
    assert sum(pq.read_metadata(f).num_rows for f in tmp_path.glob("date=*/part-*")) == 60


def test_two_drains_at_once_are_refused_and_following_goes_on_until_interrupted(url, tmp_path):
    send(url, [event(1)])
    code = "import sys; from data import event_log; print(event_log.drain(sys.argv[1], sys.argv[2], follow=True, every=.05), flush=True)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    following = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait(lambda: ids(tmp_path) == ["e1"])
        with pytest.raises(UGTError, match="One at a time"):
            event_log.drain(url, tmp_path)
        send(url, [event(2)])
        wait(lambda: sorted(ids(tmp_path)) == ["e1", "e2"])
    finally:
        following.send_signal(signal.SIGINT)
        out, _ = following.communicate(timeout=30)
    assert "'written': 2" in out


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_log_gives_canonical_events_and_the_balance_adds_up(url, tmp_path):
    send(url, [event(1, "v", "b", MARCH_1 + 5, value=3.5), event(2, "u", "gone"), event(3, "u", "a", MARCH_1 + DAY), event(4, "u", "b", MARCH_1 + 5)])
    with redis.Redis.from_url(url) as client:
        client.xadd(STREAM, {"event_id": "no event"})
    event_log.drain(url, tmp_path)
    twice = event_log.read_day(tmp_path, "2024-03-01").slice(0, 1)
    event_log.write_part(twice, tmp_path / "date=2024-03-01")
    wrong = pa.Table.from_pylist([{**twice.to_pylist()[0], "event_id": "x", "action": "stare"}], EVENT_LOG)
    event_log.write_part(wrong, tmp_path / "date=2024-03-01")
    items = pa.table({"item_id": ["a", "b"], "item_index": pa.array([0, 1], pa.int32())})
    rows, balance = event_log.events_of(tmp_path, items)
    assert rows.schema == EVENTS
    assert [(r["event_id"], r["item_index"], r["value"]) for r in rows.to_pylist()] == [("e4", 1, None), ("e3", 0, None), ("e1", 1, 3.5)]
    assert balance == {"in": 7, "out": 3, "filtered": 1, "duplicate": 1, "quarantined": 2}
    assert balance["in"] == sum(n for name, n in balance.items() if name != "in")
    assert from_events(rows)["user_id"].to_pylist() == ["u", "v"]
    assert event_log.events_of(tmp_path / "nothing", items)[0].num_rows == 0


def test_a_server_that_does_not_answer_and_a_log_that_is_not_there_are_named(tmp_path):
    with pytest.raises(UGTError, match="Redis does not answer"):
        event_log.drain("redis://127.0.0.1:9/0", tmp_path)
    with pytest.raises(UGTError, match="ugt data ingest --from events"):
        event_log.compact(tmp_path / "nowhere")
