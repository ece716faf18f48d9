"""One user gone from real files, Redis and SQL, and nobody else's rows touched; a killed erasure is ended by the next one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis
from typer.testing import CliRunner

from data import erasure, erasure_files, governance
from ray_app.cli import app
from ugt import histories
from ugt.artifacts import EVENTS, HISTORIES, PER_USER, PREDICTIONS, QUARANTINE, USERS, ArtifactStore, read_table, write_table
from ugt.erasure import FILE, Erased
from ugt.registry import Registry
from ugt.schema import Event, Item, UGTError, User
from ugt.settings import StoresConfig
from ugt.stores import embedded
from ugt.stores.feature_load import FeatureLoad
from ugt.stores.features import OnlineFeatures, PastEvent
from ugt.stores.records import Records
from ugt.stores.vectors import VectorStore

ROOT = Path(__file__).resolve().parents[2]
ITEM_IDS = ["1", "2", "3", "mia17x"]  # an item may be called like a user
SHA = {"ratings:ratings.csv": "a" * 64, "movies:movies.csv": "b" * 64}


def users_of(target):
    return sorted(["a9", target, target + "0", "zz8"])  # one begins with the target's id


def event_rows(users):
    return [
        {"event_id": f"e{u}{i}", "user_id": user, "item_id": ITEM_IDS[i], "item_index": i, "action": "rate", "value": 4.0, "timestamp": 10 + i, "order": i}
        for u, user in enumerate(users)
        for i in range(3)
    ]


def make_files(home, target):
    """Every place of a home that holds users, as the steps write them."""
    store, users = ArtifactStore(home), users_of(target)
    events = pa.Table.from_pylist(event_rows(users), EVENTS)

    def source(out, work):
        (out / "movielens").mkdir()
        lines = ["userId,movieId,rating,timestamp", *(f"{u},1,4.0,10" for u in users)]
        (out / "movielens/ratings.csv").write_bytes("\r\n".join(lines).encode() + b"\r\n")
        (out / "movielens/movies.csv").write_text("movieId,title\n1,A film\n")
        return {}

    def etl(out, work):
        write_table(pa.Table.from_pylist([{"user_id": u, "gender": "F", "age": 30, "occupation": None} for u in users], USERS), out / "users")
        write_table(events, out / "events")
        write_table(events.slice(0, 6), out / "held_out/events")
        bad = [("ratings", f"{target},1,nine,10", "rating is not a number: nine"), ("ratings", f"{target}0,1,nine,10", "rating is not a number: nine")]
        bad += [("movies", f"{target},", "title is missing"), ("ratings", "zz8,1,4.0", "3 columns instead of 4")]
        rows = [{"table": t, "file": f"{t}.csv", "row": i, "reason": why, "raw": raw} for i, (t, raw, why) in enumerate(bad)]
        write_table(pa.Table.from_pylist(rows, QUARANTINE), out / "quarantine")
        pq.write_table(
            pa.Table.from_pylist([{"user_id": u, "head": "oracle", "filtered": True, "item_ids": ["1"]} for u in users], PREDICTIONS), out / "truth.parquet"
        )
        return {"users": len(users)}

    def history(out, work):
        rows = [{"user_id": u, "item_index": [0, 1], "action": [9, 9], "value": [4.0, 4.0], "timestamp": [1, 2]} for u in users]
        write_table(pa.Table.from_pylist(rows, HISTORIES), out / "histories")
        return {}

    def baselines(out, work):
        np.save(out / "segment_of_user.npy", np.arange(len(users)))
        np.save(out / "popularity.npy", np.arange(4))
        return {}

    def evaluate(out, work):
        pq.write_table(
            pa.Table.from_pylist([{"user_id": u, "head": "fused", "filtered": True, "item_ids": ["1"]} for u in users], PREDICTIONS),
            out / "predictions.parquet",
        )
        places = [{"user_id": u, "target_id": "1", "history_length": 2, "target_count": 1, "head": "fused", "filtered": True, "place": 1} for u in users]
        pq.write_table(pa.Table.from_pylist(places, PER_USER), out / "per_user.parquet")
        return {}

    made = {"source": store.run("source", source, version=1, inputs={})}
    made["etl"] = store.run("etl", etl, version=1, inputs=SHA)
    made["histories"] = store.run("histories", history, version=1, inputs={"etl": made["etl"].key})
    keys = {"etl": made["etl"].key, "histories": made["histories"].key}
    made["baselines"] = store.run("baselines", baselines, version=1, inputs=keys)
    made["evaluate"] = store.run("evaluate", evaluate, version=1, inputs=keys)
    for folder in ("event_log/date=2026-01-01", "features/user_counts/date=2026-01-01"):
        (home / folder).mkdir(parents=True)
        pq.write_table(events, home / folder / "part-00000.parquet")
    version = home / "exported"
    version.mkdir()
    (version / "model.safetensors").write_bytes(b"weights")
    Registry(home / "registry").publish("ugt", version, {"inputs": {n: a.key for n, a in made.items()}})
    return made


def make_stores(home, target):
    """The same users in the real embedded Redis and in SQLite."""
    users = users_of(target)

    async def fill():
        online = OnlineFeatures(embedded.ensure_redis(home))
        try:
            load = await FeatureLoad.begin(online)
            await load.popularity("all", dict.fromkeys(ITEM_IDS, 1))
            await load.users([(User(user_id=u, gender="F", age=30), [PastEvent("1", "rate", 4.0, 10)]) for u in users])
            await load.switch("data")
            for i, u in enumerate(users * 2):
                await online.append(Event(event_id=f"s{i}", user_id=u, item_id="2", action="like", timestamp=20 + i), {"request_id": f"r{i}"})
                await online.record_exposure(u, ["3"], time.time())
        finally:
            await online.close()

    asyncio.run(fill())
    records = Records(f"sqlite:///{embedded.state_dir(home) / 'records.sqlite'}")
    records.replace_catalogue([Item(item_id=i, title="A film") for i in ITEM_IDS], [User(user_id=u) for u in users])
    records.close()


def tables(home):
    """Every row of every Parquet file of a home, by file."""
    return {str(p.relative_to(home)): pq.read_table(p).to_pylist() for p in sorted(home.rglob("*.parquet"))}


def keyspace(home):
    client = redis.Redis.from_url(embedded.ensure_redis(home), decode_responses=True)
    kinds = {
        "string": client.get,
        "hash": client.hgetall,
        "list": lambda k: client.lrange(k, 0, -1),
        "set": client.smembers,
        "zset": lambda k: client.zrange(k, 0, -1),
    }
    found = {k: client.xrange(k) if client.type(k) == "stream" else kinds[client.type(k)](k) for k in client.scan_iter("*")}
    client.close()
    return found


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    yield home
    if (home / "state").is_dir():
        embedded.stop(home)


def run(home, user, **more):
    return erasure.erase(user, home, StoresConfig(), home / "registry", **more)


@pytest.mark.parametrize("target", ["1", "mia17"])
def test_a_user_is_gone_from_every_place_and_nobody_else_is_touched(home, target):
    made = make_files(home, target)
    make_stores(home, target)
    before, online = tables(home), keyspace(home)
    report = run(home, target)

    assert report["found"]
    assert report["proven"]
    assert all(p["left"] == 0 for p in report["places"])
    removed = {p["place"]: p["removed"] for p in report["places"] if not p["place"].startswith("bytes")}
    etl, evaluated = f"etl/{made['etl'].key}", f"evaluate/{made['evaluate'].key}"
    assert removed == {
        f"source/{made['source'].key}/movielens/ratings.csv": 1,
        f"{etl}/users": 1,
        f"{etl}/events": 3,
        f"{etl}/held_out/events": 3,
        f"{etl}/quarantine": 1 if target == "1" else 2,  # a distinctive id is taken out wherever it stands, a number only where the user does
        f"{etl}/truth.parquet": 1,
        f"histories/{made['histories'].key}/histories": 1,
        f"baselines/{made['baselines'].key}/arrays of users": 1,
        f"{evaluated}/predictions.parquet": 1,
        f"{evaluated}/per_user.parquet": 1,
        "event_log/date=2026-01-01": 3,
        "features/user_counts/date=2026-01-01": 3,
        **{f"redis/{kind}": 1 for kind in ("user", "history", "seen", "totals:user", "exposed")},
        "redis/events (stream)": 2,
        "sql/users": 1,
    }
    assert all(p["found"] == p["removed"] for p in report["places"] if not p["place"].startswith("bytes"))

    def is_theirs(row):  # the slow obvious judge
        first = (row.get("raw") or "").split(",")[0] == target
        return row.get("user_id") == target or (first and (row["table"] == "ratings" or target != "1"))

    assert tables(home) == {file: [row for row in rows if not is_theirs(row)] for file, rows in before.items()}
    mine = {f"ugt:1:{kind}:{target}" for kind in ("user", "history", "seen", "totals:user")} | {f"ugt:exposed:{target}"}
    expected = {key: value for key, value in online.items() if key not in mine}
    expected["ugt:events"] = [entry for entry in online["ugt:events"] if entry[1]["user_id"] != target]
    assert keyspace(home) == expected
    lines = ["userId,movieId,rating,timestamp", *(f"{u},1,4.0,10" for u in users_of(target) if u != target)]
    assert (made["source"].path / "movielens/ratings.csv").read_bytes().decode().split("\r\n") == [*lines, ""]
    records = Records(f"sqlite:///{home / 'state/records.sqlite'}")
    with records.engine.connect() as c:
        assert sorted(c.exec_driver_sql("select user_id from users").scalars()) == [u for u in users_of(target) if u != target]
    records.close()


def test_artifacts_are_whole_and_say_how_many_were_erased_but_not_who(home):
    made = make_files(home, "mia17")
    run(home, "mia17")
    store = ArtifactStore(home)
    for step in ("source", "etl", "histories", "baselines", "evaluate"):
        found = store.find(step, made[step].key)
        assert found is not None, step
        assert found.manifest.erased.users == 1
        assert found.manifest.figures == made[step].manifest.figures
    assert store.find("etl", made["etl"].key).manifest.erased.rows == 10
    assert governance.verify(home)["bad"] == {}
    texts = [p for p in home.rglob("*") if p.suffix in (".json", ".csv")]
    assert len(texts) > 5
    assert not [p for p in texts if b"mia17" in p.read_bytes().replace(b"mia170", b"")]
    run(home, "zz8")
    assert store.find("etl", made["etl"].key).manifest.erased.users == 2


def test_arrays_of_users_stay_in_step_with_the_histories(home):
    made = make_files(home, "mia17")
    names = users_of("mia17")
    run(home, "mia17")
    ids = histories.load(made["histories"].path).user_ids
    segment = np.load(made["baselines"].path / "segment_of_user.npy")
    assert [names[s] for s in segment] == ids
    assert len(np.load(made["baselines"].path / "popularity.npy")) == 4


def test_servers_that_were_stopped_are_stopped_again_and_their_files_forget_too(home):
    make_files(home, "mia17")
    make_stores(home, "mia17")
    embedded.stop(home)
    state = home / "state"
    held = {state / "redis/appendonly.aof": b"mia17\r\n", state / "records.sqlite": b"mia17"}
    others = b"mia170"

    def holding():
        return [path for path, text in held.items() if text in path.read_bytes().replace(others, b"").replace(b"mia17x", b"")]

    assert holding() == list(held)
    assert run(home, "mia17")["proven"]
    assert embedded.running(home) == {}
    assert holding() == []
    assert {key for key in keyspace(home) if key.startswith("ugt:1:user:")} == {"ugt:1:user:a9", "ugt:1:user:mia170", "ugt:1:user:zz8"}


def test_a_running_redis_stays_up_and_milvus_is_looked_into(home):
    make_files(home, "mia17")
    make_stores(home, "mia17")
    vectors = VectorStore(embedded.ensure_milvus(home))
    vectors.replace("fused", ITEM_IDS, np.eye(4, dtype=np.float32))
    assert vectors.fields("fused") == ["item_index", "item_id", "vector"]
    vectors.close()
    running = embedded.running(home)
    assert run(home, "mia17")["proven"]
    assert embedded.running(home) == running


def test_a_user_who_is_nowhere_is_said_to_be(home, monkeypatch):
    make_files(home, "mia17")
    before = tables(home)
    monkeypatch.setenv("UGT_HOME", str(home))
    done = CliRunner().invoke(app, ["data", "erase", "nobody"])
    assert done.exit_code == 0, done.output
    assert "nowhere" in done.output
    assert tables(home) == before
    assert not (home / FILE).exists()


def test_a_home_that_is_none_is_an_error(tmp_path):
    with pytest.raises(UGTError, match="no data of UGT"):
        run(tmp_path / "nothing", "u")
    assert not (tmp_path / "nothing").exists()


def test_the_source_files_are_named_and_the_record_drops_the_user_when_they_are_read_again(home, tmp_path, monkeypatch):
    make_files(home, "mia17")
    monkeypatch.setenv("UGT_HOME", str(home))
    out = tmp_path / "proof.json"
    done = CliRunner().invoke(app, ["data", "erase", "mia17", "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["source_files"] == [{"name": "ratings:ratings.csv", "sha256": "a" * 64}]
    assert "mia17" not in out.read_text()
    erased = Erased.load(home)
    again = pa.Table.from_pylist(event_rows(users_of("mia17")), EVENTS)
    assert set(erased.drop(again)["user_id"].to_pylist()) == {"a9", "mia170", "zz8"}
    assert (home / FILE).stat().st_mode & 0o077 == 0
    assert b"mia17" not in (home / FILE).read_bytes()
    assert erased.unfinished() == set()


def test_what_comes_back_is_found_and_erased_again(home):
    made = make_files(home, "mia17")
    run(home, "mia17")
    late = home / "event_log/date=2026-01-02"
    late.mkdir()
    pq.write_table(pa.Table.from_pylist(event_rows(["mia17", "zz8"]), EVENTS), late / "part-00000.parquet")
    report = run(home, "mia17")
    assert report["erased_before"] is not None
    assert [(p["place"], p["found"], p["removed"], p["left"]) for p in report["places"]] == [("event_log/date=2026-01-02", 3, 3, 0)]
    assert ArtifactStore(home).find("etl", made["etl"].key).manifest.erased.users == 1


def test_a_place_that_is_never_rewritten_makes_the_proof_fail(home, tmp_path, monkeypatch):
    make_files(home, "mia17")
    folder = tmp_path / "leak"
    folder.mkdir()
    (folder / "card.json").write_text('{"example": "mia17"}')
    version = Registry(home / "registry").publish("other", folder)
    monkeypatch.setenv("UGT_HOME", str(home))
    done = CliRunner().invoke(app, ["data", "erase", "mia17"])
    assert isinstance(done.exception, UGTError)
    assert f"registry/other/{version}/card.json" in str(done.exception)
    assert len(Erased.load(home).unfinished()) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from data import erasure, erasure_files as files
from ugt.settings import StoresConfig
home, user, at, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
calls, real = [0], files._exchange
def dying(new, path):
    calls[0] += 1
    if calls[0] == at and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(new, path)
    if calls[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
files._exchange = dying
erasure.erase(user, home, StoresConfig(), None)
"""


@pytest.mark.parametrize(("at", "moment", "then"), [(1, "before", "mia17"), (1, "after", "zz8"), (3, "after", "mia17"), (5, "before", "a9")])
def test_a_killed_erasure_leaves_whole_artifacts_and_the_next_one_ends_it(home, at, moment, then):
    made = make_files(home, "mia17")
    names = users_of("mia17")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(home), "mia17", str(at), moment], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = ArtifactStore(home)
    assert all(store.find(step, artifact.key) is not None for step, artifact in made.items())
    assert len(Erased.load(home).unfinished()) == 1
    report = run(home, then)  # of the same user, or of another one
    assert report["proven"]
    gone = {"mia17", then}
    for rows in tables(home).values():
        assert not gone & {r.get("user_id") for r in rows}
    assert Erased.load(home).unfinished() == set()
    ids = histories.load(made["histories"].path).user_ids
    assert ids == [u for u in names if u not in gone]
    assert [names[s] for s in np.load(made["baselines"].path / "segment_of_user.npy")] == ids
    assert governance.verify(home)["bad"] == {}
    assert not [p for p in home.rglob("*") if p.name.endswith((".erasing", ".erased"))]


def test_two_renames_that_were_interrupted_are_put_right(home):
    """Where the kernel can't exchange two folders, there is a moment in which the artifact has another name."""
    made = make_files(home, "mia17")
    path = made["etl"].path
    shutil.copytree(path, path.with_name(path.name + erasure_files.ASIDE))
    path.rename(path.with_name(path.name + erasure_files.OLD))
    assert run(home, "mia17")["proven"]
    assert ArtifactStore(home).find("etl", made["etl"].key) is not None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_large_table_keeps_its_row_groups_and_types(home):
    make_files(home, "mia17")
    part = home / "event_log/date=2026-01-01/part-00000.parquet"
    rows = pa.Table.from_pylist(event_rows([f"u{i}" for i in range(500)] + ["mia17"] + [f"w{i}" for i in range(500)]), EVENTS)
    pq.write_table(rows, part, row_group_size=400, compression="zstd")
    assert run(home, "mia17")["proven"]
    assert pq.read_table(part).equals(rows.filter(pc.not_equal(rows["user_id"], "mia17")))
    assert pq.ParquetFile(part).num_row_groups == -(-rows.num_rows // 400)
    assert read_table(part, EVENTS).num_rows == 3000


def test_a_home_that_moved_to_servers_of_its_own_forgets_in_both(home, tmp_path):
    make_files(home, "mia17")
    make_stores(home, "mia17")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    try:
        make_stores(elsewhere, "mia17")
        own = StoresConfig(redis_url=embedded.ensure_redis(elsewhere), sql_url=f"sqlite:///{elsewhere / 'state/records.sqlite'}")
        report = erasure.erase("mia17", home, own, home / "registry")
        assert report["proven"]
        assert "ugt:1:user:mia17" not in keyspace(home).keys() | keyspace(elsewhere).keys()
        removed = {place["place"]: place["removed"] for place in report["places"]}
        assert removed["redis/user"] == removed["redis of stores.redis_url/user"] == removed["sql/users"] == removed["sql of stores.sql_url/users"] == 1
    finally:
        embedded.stop(elsewhere)
