"""Online features in a real Redis: one event is one transaction, and everything a request reads sees it at once."""

import asyncio
import time

import pyarrow as pa
import pytest

from ugt.artifacts import EVENTS
from ugt.histories import from_events
from ugt.schema import Event, User
from ugt.stores import embedded
from ugt.stores.features import ALL, OnlineFeatures, PastEvent, segment_of


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    home = tmp_path_factory.mktemp("redis")
    yield embedded.ensure_redis(home)
    embedded.stop(home)


def run(url, use, **options):
    """`use(features)` on a fresh client and an empty server."""

    async def body():
        features = OnlineFeatures(url, **options)
        await features.redis.flushall()
        try:
            return await use(features)
        finally:
            await features.close()

    return asyncio.run(body())


def event(item_id, user_id="u", action="like", value=None, timestamp=100):
    return Event(event_id=f"{user_id}-{item_id}-{timestamp}", user_id=user_id, item_id=item_id, action=action, value=value, timestamp=timestamp)


def test_an_appended_event_is_in_history_seen_counters_popularity_and_stream(url):
    async def use(f):
        await f.load_popularity(ALL, {"a": 3, "b": 3, "c": 0})
        await f.append(event("b", value=4.5), {"request_id": "r1"})
        state = await f.user_state("u", time.time(), 10)
        return state, await f.popular(ALL, 0, 10), [e async for e in f.events()], await f.redis.hgetall("ugt:user:u")

    state, popular, stream, counters = run(url, use)
    assert state.history == [PastEvent("b", "like", 4.5, 100)]
    assert state.seen == {"b"}
    assert state.profile == User(user_id="u")
    assert popular == [("b", 4.0), ("a", 3.0), ("c", 0.0)]
    assert stream == [event("b", value=4.5)]
    assert counters["count:like"] == "1"


def test_history_is_the_newest_events_oldest_first_and_seen_forgets_nothing(url):
    async def use(f):
        await f.load_users([(User(user_id="u", age=31, gender="F"), [PastEvent(f"i{n}", "view", None, n) for n in range(1500)])])
        return await f.user_state("u", time.time(), 3)

    state = run(url, use)
    assert [e.item_id for e in state.history] == ["i1497", "i1498", "i1499"]
    assert len(state.seen) == 1500
    assert state.profile == User(user_id="u", age=31, gender="F")


def test_a_late_event_stands_where_it_happened_as_it_does_in_the_tables(url):
    """Training orders a user's events by (time, place in the source); so does a request (fault 4)."""
    came = [("a", 100), ("b", 300), ("c", 200), ("d", 300), ("e", 0), ("f", 300)]

    async def use(f):
        await f.load_users([(User(user_id="u"), [PastEvent("z", "view", None, 250)])])
        for item_id, timestamp in came:
            await f.append(event(item_id, timestamp=timestamp), {})
        return await f.user_state("u", time.time(), 10)

    rows = [{"event_id": str(n), "user_id": "u", "item_id": i, "item_index": ord(i), "action": "like", "value": None, "timestamp": t, "order": n}
            for n, (i, t) in enumerate([("z", 250), *came])]  # fmt: skip
    offline = from_events(pa.Table.from_pylist(rows, schema=EVENTS))["item_index"][0].as_py()
    assert [ord(e.item_id) for e in run(url, use).history] == offline


def test_exposure_is_forgotten_after_its_window(url):
    async def use(f):
        now = time.time()
        await f.record_exposure("u", ["old"], now - 3601)
        await f.record_exposure("u", ["new"], now)
        return await f.user_state("u", now, 10)

    assert run(url, use, exposure_hours=1.0).exposed == {"new"}


def test_an_unknown_user_is_unknown(url):
    state = run(url, lambda f: f.user_state("nobody", time.time(), 10))
    assert (state.profile, state.history, state.seen, state.exposed) == (None, [], set(), set())


def test_a_load_keeps_the_stream_and_applies_it_again(url):
    """Fault 1: feedback must survive a new model or new tables being loaded."""

    async def use(f):
        await f.load_popularity(ALL, {"a": 1, "b": 0, "gone": 0})
        await f.append(event("b"), {})
        await f.append(event("gone"), {})
        await f.record_exposure("u", ["a"], time.time())
        await f.begin_load()
        assert await f.materialized() is None
        await f.load_users([(User(user_id="u"), [PastEvent("a", "view", None, 1)])])
        await f.load_popularity(ALL, {"a": 1, "b": 0})
        replayed = await f.replay()
        await f.finish_load("k")
        return replayed, await f.user_state("u", time.time(), 10), await f.materialized()

    replayed, state, marker = run(url, use)
    assert replayed == 1  # the item of the other event is gone
    assert [e.item_id for e in state.history] == ["a", "b"]
    assert state.exposed == {"a"}
    assert marker == "k"


def test_item_ids_and_users_may_hold_the_separators(url):
    async def use(f):
        await f.load_popularity(ALL, {"a|b": 0})
        await f.append(event("a|b", user_id="x:history"), {})
        return await f.user_state("x:history", time.time(), 10), await f.user_state("x", time.time(), 10)

    state, other = run(url, use)
    assert state.history[0].item_id == "a|b"
    assert other.history == []


def test_segments():
    assert segment_of(None) == segment_of(User(user_id="u")) == ALL
    assert segment_of(User(user_id="u", gender="F", age=25)) == segment_of(User(user_id="u", gender="F", age=29)) == "F/20s"
    assert segment_of(User(user_id="u", age=8)) == "?/0s"
