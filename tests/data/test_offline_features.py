"""Offline features: the point-in-time join against a plain loop, online against offline value by value, and the backfill by day."""

import asyncio
import json
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import event_log, feature_store, offline_features
from data.feature_store import materialize
from data.offline_features import backfill, join_kernel, point_in_time
from ugt.artifacts import CREDITS, EVENTS, ITEMS, USERS, write_table
from ugt.feature_definitions import FEATURES, schema
from ugt.feature_tables import facts_of
from ugt.histories import from_events
from ugt.runtime import ITEM_TABLE
from ugt.schema import ACTIONS, Event, UGTError
from ugt.settings import StoresConfig
from ugt.stores import embedded
from ugt.stores.features import OnlineFeatures

DAY = 86400
MARCH_1 = 1_709_251_200  # 2024-03-01 00:00 UTC
GENRES = {"i0": ["Drama", "War"], "i1": ["Drama"], "i2": [], "i3": ["Comedy", "Drama", "War"], "i4": None, "i5": ["Comedy"]}
PEOPLE = {"i0": ["p1", "p2"], "i1": ["p2"], "i3": ["p4", "p3", "p2", "p1"]}


def tables(root, events):
    """An ETL's folder: six items, their credits, three users and the given EVENTS rows."""
    blank = dict.fromkeys(ITEMS.names)
    items = [blank | {"item_index": n, "item_id": i, "item_type": "movie", "title": i, "genres": g} for n, (i, g) in enumerate(GENRES.items())]
    write_table(pa.Table.from_pylist(items, ITEMS), root / "items")
    credits = [{"item_index": int(i[1]), "item_id": i, "person_id": p, "role": "actor", "ordering": n} for i, who in PEOPLE.items() for n, p in enumerate(who)]
    credits.append({**credits[0], "role": "director", "ordering": 9})  # a person of two roles counts once
    write_table(pa.Table.from_pylist(credits, CREDITS), root / "credits")
    write_table(pa.Table.from_pylist([{"user_id": u, "gender": "F", "age": 30, "occupation": None} for u in ("u0", "u1", "quiet")], USERS), root / "users")
    write_table(events, root / "events")
    (root / "manifest.json").write_text(json.dumps({"figures": events.num_rows}))
    return root


def random_events(n, seed=0, users=5, span_days=50):
    """Every action, values and none, ties of time, times at the edge of a day, and none at all."""
    rng = np.random.default_rng(seed)
    times = MARCH_1 + rng.integers(0, span_days, n) * DAY + rng.choice([0, 1, 3600, 7200, DAY - 1], n)
    times[rng.random(n) < 0.05] = 0
    rows = [
        {
            "event_id": f"{seed}-{k}",
            "user_id": f"u{rng.integers(users)}",
            "item_id": (item := f"i{rng.integers(6)}"),
            "item_index": int(item[1]),
            "action": str(rng.choice(ACTIONS)),
            "value": None if rng.random() < 0.4 else float(rng.integers(1, 11) / 2) + 0.3,
            "timestamp": int(times[k]),
            "order": k,
        }
        for k in range(n)
    ]
    return pa.Table.from_pylist(rows, EVENTS)


def slowly(entity, events, name, moment):
    """The definitions once more, as a person would count them."""
    mine = [e for e in events if e[f"{entity}_id"] == name and e["timestamp"] < moment]
    row = {f"count_{a}": sum(e["action"] == a for e in mine) for a in ACTIONS}
    rated = [e["value"] for e in mine if e["value"] is not None and e["action"] in ("rate", "like", "dislike", "favorite")]
    row["mean_rating"] = pytest.approx(sum(rated) / len(rated), abs=5e-4) if rated else None  # ratings are added in thousandths
    dated = [e["timestamp"] for e in mine if e["timestamp"] > 0]
    row["last_active"] = max(dated, default=None)
    if entity == "item":
        today = moment // DAY
        row["popularity_30d"] = sum(today - 30 < e["timestamp"] // DAY <= today for e in mine if e["timestamp"] > 0 and e["action"] != "dislike")
        return row
    row["distinct_items"] = len({e["item_id"] for e in mine})
    row["days_active"] = len({t // DAY for t in dated})
    liked = [e["item_id"] for e in mine if e["action"] != "dislike"]
    row["active_hours"] = largest(datetime.fromtimestamp(t, UTC).strftime("%H") for t in dated)
    row["preferred_genres"] = largest(g for i in liked for g in GENRES[i] or [])
    row["preferred_people"] = largest(p for i in liked for p in PEOPLE.get(i, [])[:3])
    return row


def largest(keys):
    counts = Counter(keys)
    whole = sum(counts.values())
    return [{"key": k, "share": n / whole} for k, n in sorted(counts.items(), key=lambda kn: (-kn[1], kn[0]))[:3]]


def requests_for(entity, events, seed=1, n=60):
    rng = np.random.default_rng(seed)
    names = ["u0", "u1", "u2", "u3", "u4", "nobody"] if entity == "user" else [*GENRES, "i99"]
    moments = np.concatenate([np.asarray(events["timestamp"]), MARCH_1 + rng.integers(-DAY, 80 * DAY, n)])
    return pa.table({"entity": rng.choice(names, len(moments)), "timestamp": moments, "label": rng.random(len(moments))})


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    from data.feature_store import item_facts

    return item_facts(tables(tmp_path_factory.mktemp("etl"), random_events(3)))


def check(entity, requests, found, events):
    rows = events.to_pylist()
    assert found["label"].equals(requests["label"])
    for asked, row in zip(requests.to_pylist(), found.to_pylist(), strict=True):
        want = slowly(entity, rows, asked["entity"], asked["timestamp"])
        assert {f.name: row[f.name] for f in FEATURES[entity]} == want, asked


@pytest.mark.parametrize("entity", ["user", "item"])
@pytest.mark.parametrize("work", [10, 2_000_000])
def test_a_kernel_gives_what_a_loop_counts(facts, entity, work, monkeypatch):
    """`work`: with the entities cut into many groups and in one."""
    monkeypatch.setattr(offline_features, "WORK", work)
    events = random_events(300)
    requests = requests_for(entity, events)
    asked = requests.select(["entity", "timestamp"]).append_column("row", pa.array(range(len(requests)), pa.int64()))
    mixed = pa.concat_tables([offline_features._mixed(events, entity, 1), offline_features._mixed(asked, entity, 1)])
    found = pa.concat_tables(list(join_kernel(pl.DataFrame(pl.from_arrow(mixed)), entity, facts))).sort_by("row")
    assert found["row"].to_pylist() == list(range(len(requests)))
    check(entity, requests, found.append_column("label", requests["label"]), events)


def test_nothing_that_happens_at_the_moment_or_later_is_known(facts):
    """The leak a point-in-time join is there to prevent: an event of the same second does not count."""
    events = pa.Table.from_pylist([{**random_events(1).to_pylist()[0], "event_id": str(k), "user_id": "u", "timestamp": MARCH_1 + k} for k in range(3)], EVENTS)
    asked = pa.table({"entity": ["u"] * 4, "timestamp": [MARCH_1 + k for k in range(4)], "row": [0, 1, 2, 3]})
    mixed = pa.concat_tables([offline_features._mixed(events, "user", 1), offline_features._mixed(asked, "user", 1)])
    (found,) = join_kernel(pl.DataFrame(pl.from_arrow(mixed)), "user", facts)
    total = np.sum([found[f"count_{a}"].to_numpy() for a in ACTIONS], axis=0)
    assert total.tolist() == [0, 1, 2, 3]


@pytest.mark.ray
@pytest.mark.parametrize("entity", ["user", "item"])
def test_ray_data_joins_what_a_loop_counts(ray_session, facts, entity):
    events = random_events(400, seed=3)
    requests = requests_for(entity, events, n=100)
    found = point_in_time(entity, requests, events, facts, parts=4)
    assert found.schema.names == ["entity", "timestamp", "label", *(f.name for f in FEATURES[entity])]
    check(entity, requests, found, events)


def test_requests_without_a_moment_are_refused(facts):
    with pytest.raises(UGTError, match="timestamp"):
        point_in_time("user", pa.table({"entity": ["u"]}), random_events(1), facts)
    with pytest.raises(UGTError, match="mean_rating"):
        point_in_time("user", pa.table({"entity": ["u"], "timestamp": [1], "mean_rating": [1.0]}), random_events(1), facts)


def test_online_and_offline_give_the_same_values_for_the_same_moment(tmp_path, monkeypatch):
    """Half of the events come with the tables, half through the call that serving makes (late ones among them), then new tables are loaded with a part
    of the drained log in them. Each time every feature of everybody is the same from Redis as from the point-in-time join over tables and log."""
    loaded, sent = random_events(200, seed=5, span_days=60), random_events(120, seed=6, span_days=70)
    now = MARCH_1 + 71 * DAY
    home, etl = tmp_path / "home", tables(tmp_path / "etl", loaded)
    (tmp_path / "version").mkdir()
    np.save(tmp_path / "version/item_vectors.npy", np.eye(6, dtype=np.float32))
    ids = pl.read_parquet(etl / "items").sort("item_index")["item_id"].to_list()
    pl.DataFrame({"item_id": ids, "l1": [0] * len(ids), "l2": [0] * len(ids), "l3": range(len(ids))}).write_parquet(tmp_path / "version" / ITEM_TABLE)
    facts = facts_of(*(pl.read_parquet(etl / name) for name in ("items", "credits")))
    url = embedded.ensure_redis(home)

    def load(events, name):
        write_table(events, etl / "events")
        write_table(from_events(events), tmp_path / name / "histories")
        where = {"name": "ugt", "version": name, "version_dir": tmp_path / "version", "spaces": {}}
        return materialize(tmp_path / name, etl, StoresConfig(milvus_uri=embedded.ensure_milvus(home)), home, **where)

    async def online():
        features = OnlineFeatures(url)
        found = {("user", u): await features.user_features(u, now) for u in ("u0", "u1", "u2", "u3", "u4", "quiet", "nobody")}
        found |= {("item", i): await features.item_features(i, now) for i in GENRES}
        await features.close()
        return found

    async def send(rows):
        features = OnlineFeatures(url)
        for row in rows:
            await features.append(Event(**{k: row[k] for k in ("event_id", "user_id", "item_id", "action", "value", "timestamp")}), {"received_at": str(now)})
        await features.close()

    def compare():
        items = pl.read_parquet(etl / "items").select("item_id", "item_index").to_arrow(compat_level=pl.CompatLevel.oldest())
        logged, _ = event_log.events_of(home / "event_log", items)
        tabled = pq.read_table(etl / "events").cast(EVENTS)
        both = pl.DataFrame(pl.from_arrow(pa.concat_tables([tabled, logged]))).unique("event_id").to_arrow(compat_level=pl.CompatLevel.oldest()).cast(EVENTS)
        differing = 0
        for (entity, name), values in asyncio.run(online()).items():
            asked = pa.table({"entity": [name], "timestamp": [now], "row": [0]})
            mixed = pa.concat_tables([offline_features._mixed(both, entity, 1), offline_features._mixed(asked, entity, 1)])
            (row,) = pa.concat_tables(list(join_kernel(pl.DataFrame(pl.from_arrow(mixed)), entity, facts))).to_pylist()
            assert values == {f.name: row[f.name] for f in FEATURES[entity]}, name  # equal, not nearly: both add integers
            differing += row["last_active"] is not None
        assert differing >= 10

    # a load leaves out days that no window reaches any more
    monkeypatch.setattr(feature_store, "time", SimpleNamespace(time=lambda: float(now), monotonic=time.monotonic))
    try:
        load(loaded, "v1")
        compare()
        asyncio.run(send(sent.to_pylist()))
        event_log.drain(url, home / "event_log")
        compare()
        taken = pa.concat_tables([loaded, sent.slice(0, 50)])  # an ETL that read a part of the log
        assert load(taken, "v2")["replayed"] == 70
        compare()
    finally:
        embedded.stop(home)


@pytest.mark.ray
def test_a_backfill_writes_each_day_once_and_again_when_its_events_change(ray_session, tmp_path):
    events = random_events(150, seed=8, span_days=12)
    etl, log, out = tables(tmp_path / "etl", events), tmp_path / "log", tmp_path / "features"
    first, last = date(2024, 3, 4), date(2024, 3, 6)
    figures = backfill(etl, log, out, first, last, parts=2)
    assert (figures["user_days_written"], figures["item_days_written"]) == (3, 3)
    folders = sorted(p.name for p in (out / "user_features").iterdir())
    assert folders == ["date=2024-03-04", "date=2024-03-05", "date=2024-03-06"]
    rows = events.to_pylist()
    for entity in ("user", "item"):
        table = pq.read_table(out / f"{entity}_features/date=2024-03-05/part-00000.parquet", partitioning=None)
        assert table.schema.remove_metadata() == schema(entity)
        end = MARCH_1 + 5 * DAY
        assert table["entity"].to_pylist() == sorted({e[f"{entity}_id"] for e in rows if e["timestamp"] < end})
        for row in table.to_pylist():
            assert row == slowly(entity, rows, row["entity"], end) | {"entity": row["entity"], "timestamp": end}
    again = backfill(etl, log, out, first, last, parts=2)
    assert (again["user_days_written"], again["user_days_skipped"]) == (0, 3)
    late = [{"event_id": "late", "user_id": "u0", "item_id": "i0", "action": "share", "value": None, "timestamp": MARCH_1 + 4 * DAY, "received_at": 0,
             "request_id": None, "details": None, "order": 1}]  # fmt: skip
    event_log.write_part(pa.Table.from_pylist(late, event_log.EVENT_LOG), log / "date=2024-03-05")
    changed = backfill(etl, log, out, first, last, parts=2)
    assert changed["user_days_written"] == 3
    table = pq.read_table(out / "user_features/date=2024-03-06/part-00000.parquet", partitioning=None)
    assert table["count_share"][0].as_py() == slowly("user", rows, "u0", MARCH_1 + 6 * DAY)["count_share"] + 1
    assert not list((out / "user_features").glob(".*"))


def test_a_range_of_days_that_makes_no_sense_is_refused(tmp_path):
    etl = tables(tmp_path / "etl", random_events(3))
    with pytest.raises(UGTError, match="later than --to"):
        backfill(etl, tmp_path / "log", tmp_path / "out", date(2024, 3, 2), date(2024, 3, 1))
    with pytest.raises(UGTError, match="not ended yet"):
        backfill(etl, tmp_path / "log", tmp_path / "out", date(2024, 3, 2), datetime.now(UTC).date() + timedelta(days=1))
    with pytest.raises(UGTError, match="holds an event"):
        backfill(etl, tmp_path / "log", tmp_path / "out", date(1960, 1, 1), date(1960, 1, 2))
