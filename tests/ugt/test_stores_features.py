"""Online features in a real Redis: one event is one step, everything a request reads sees it at once, and a load is never seen half done."""

import asyncio
import time

import pyarrow as pa
import pytest

from ugt.artifacts import EVENTS
from ugt.feature_definitions import Facts
from ugt.histories import from_events
from ugt.schema import Event, UGTError, User
from ugt.stores import embedded
from ugt.stores.feature_load import FeatureLoad
from ugt.stores.features import ALL, HISTORY_LIMIT, OnlineFeatures, PastEvent, segment_of


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


async def loaded(f, popular, users=(), key="k", facts=()):
    """A whole load; the number of events replayed."""
    load = await FeatureLoad.begin(f)
    await load.users(users)
    await load.facts(facts)
    await load.popularity(ALL, popular)
    return await load.switch(key)


def event(item_id, user_id="u", action="like", value=None, timestamp=100):
    return Event(event_id=f"{user_id}-{item_id}-{timestamp}", user_id=user_id, item_id=item_id, action=action, value=value, timestamp=timestamp)


def test_an_appended_event_is_in_history_seen_counters_popularity_and_stream(url):
    async def use(f):
        await loaded(f, {"a": 3, "b": 3, "c": 0})
        await f.append(event("b", value=4.5), {"request_id": "r1"})
        state = await f.user_state("u", time.time(), 10)
        return state, await f.popular(ALL, 0, 10), [e async for e in f.events()], await f.user_features("u", 200)

    state, popular, stream, features = run(url, use)
    assert state.history == [PastEvent("b", "like", 4.5, 100)]
    assert state.seen == {"b"}
    assert state.profile == User(user_id="u")
    assert popular == [("b", 4.0), ("a", 3.0), ("c", 0.0)]
    assert stream == [event("b", value=4.5)]
    assert (features["count_like"], features["count_view"], features["mean_rating"], features["last_active"]) == (1, 0, 4.5, 100)


def test_history_is_the_newest_events_oldest_first_and_seen_forgets_nothing(url):
    async def use(f):
        await loaded(f, {}, [(User(user_id="u", age=31, gender="F"), [PastEvent(f"i{n}", "view", None, n) for n in range(1500)])])
        return await f.user_state("u", time.time(), 3)

    state = run(url, use)
    assert [e.item_id for e in state.history] == ["i1497", "i1498", "i1499"]
    assert len(state.seen) == 1500
    assert state.profile == User(user_id="u", age=31, gender="F")


def test_a_late_event_stands_where_it_happened_as_it_does_in_the_tables(url):
    """Training orders a user's events by (time, place in the source); so does a request (fault 4)."""
    came = [("a", 100), ("b", 300), ("c", 200), ("d", 300), ("e", 0), ("f", 300)]

    async def use(f):
        await loaded(f, {}, [(User(user_id="u"), [PastEvent("z", "view", None, 250)])])
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
        await loaded(f, {"a": 1, "b": 0, "gone": 0})
        await f.append(event("b"), {})
        await f.append(event("gone"), {})
        await f.record_exposure("u", ["a"], time.time())
        replayed = await loaded(f, {"a": 1, "b": 0}, [(User(user_id="u"), [PastEvent("a", "view", None, 1)])], "k2")
        return replayed, await f.user_state("u", time.time(), 10), await f.materialized(), await f.popular(ALL, 0, 5)

    replayed, state, marker, popular = run(url, use)
    assert replayed == 1  # the item of the other event is gone
    assert [e.item_id for e in state.history] == ["a", "b"]
    assert state.exposed == {"a"}
    assert marker == "k2"
    assert popular == [("b", 1.0), ("a", 1.0)]


def test_an_event_that_the_tables_hold_is_not_applied_twice(url):
    async def use(f):
        await f.append(event("a"), {})
        await f.append(event("b"), {})
        load = await FeatureLoad.begin(f)
        await load.users([(User(user_id="u"), [PastEvent("a", "like", None, 100)])])
        await load.popularity(ALL, {"a": 1, "b": 0})
        return await load.switch("k", held={event("a").event_id}), await f.user_state("u", time.time(), 10)

    replayed, state = run(url, use)
    assert (replayed, [e.item_id for e in state.history]) == (1, ["a", "b"])


def test_readers_never_see_an_empty_history_while_data_are_loaded_and_no_event_falls_between(url):
    """Three loads beside a reader and a writer; the last load's data replace the first's, whatever happened meanwhile stays."""
    users = [User(user_id=f"u{n}") for n in range(100)]

    def histories(item_id):
        return [(user, [PastEvent(item_id, "view", None, 1)]) for user in users]

    async def use(f):
        await loaded(f, {"old": 0, "new": 0, "x": 0}, histories("old"))
        done, lengths, sent = asyncio.Event(), [], 0

        async def read():
            while not done.is_set():
                state = await f.user_state("u7", time.time(), HISTORY_LIMIT)
                lengths.append((len(state.history), state.history[0].item_id, len(await f.popular(ALL, 0, 10))))

        async def write():
            nonlocal sent
            while not done.is_set() and sent < HISTORY_LIMIT - 1:  # more would push the loaded event out
                await f.append(event("x", "u7", timestamp=1000 + sent), {})
                sent += 1

        tasks = [asyncio.create_task(read()), asyncio.create_task(write())]
        for n in range(3):
            await loaded(f, {"old": 0, "new": 0, "x": 0}, [*histories("new"), (User(user_id=f"only in {n}"), [])])
        done.set()
        await asyncio.gather(*tasks)
        state, stale = await f.user_state("u7", time.time(), HISTORY_LIMIT), await f.user_state("only in 1", time.time(), 1)
        return lengths, sent, state, stale.profile, await f.popular(ALL, 0, 1), [k async for k in f.redis.scan_iter(match="ugt:*")]

    lengths, sent, state, stale, popular, keys = run(url, use)
    assert len(lengths) > 10
    assert {item for _, item, _ in lengths} == {"old", "new"}  # it did read on both sides of a switch
    counts = [n for n, _, _ in lengths]
    assert counts[0] >= 1
    assert counts == sorted(counts)  # a history only ever grew
    assert {n for _, _, n in lengths} == {3}
    assert [e.item_id for e in state.history] == ["new"] + ["x"] * sent
    assert popular == [("x", float(sent))]
    assert stale is None  # who is not in the new data is gone
    assert len({k.split(":")[1] for k in keys if k.split(":")[1].isdigit()}) == 1  # and so is everything else of the old generations


def test_a_load_that_is_overtaken_says_so_and_one_that_died_leaves_nothing(url):
    async def use(f):
        died = await FeatureLoad.begin(f)
        await died.users([(User(user_id="u"), [PastEvent("a", "view", None, 1)])])
        await loaded(f, {"b": 0}, key="later")
        with pytest.raises(UGTError, match="newer one"):
            await died.switch("k")
        await loaded(f, {"b": 0}, key="last")
        return await f.materialized(), (await f.user_state("u", time.time(), 1)).profile, [k async for k in f.redis.scan_iter(match=f"ugt:{died.generation}:*")]

    assert run(url, use) == ("last", None, [])


def test_a_users_features_end_after_their_time_and_an_event_renews_them(url):
    async def use(f):
        await loaded(f, {"a": 0}, [(User(user_id="u"), [PastEvent("a", "view", None, 1)])])
        f.ttl_seconds = 1000
        await f.append(event("a"), {})
        keys = [k async for k in f.redis.scan_iter(match="ugt:1:*:u")] + ["ugt:1:totals:user:u"]
        renewed = [await f.redis.ttl(k) for k in keys]
        f.ttl_seconds = 1
        await f.append(event("a"), {})
        await asyncio.sleep(1.5)
        return set(keys), renewed, await f.user_state("u", time.time(), 9), await f.popular(ALL, 0, 1)

    keys, renewed, state, popular = run(url, use, ttl_days=1)
    assert keys == {f"ugt:1:{kind}:u" for kind in ("history", "seen", "user", "totals:user")}
    assert all(990 < ttl <= 1000 for ttl in renewed)
    assert (state.profile, state.history) == (None, [])
    assert popular == [("a", 2.0)]  # what belongs to no user stays


def test_an_event_adds_the_facts_of_its_item_to_the_users_totals(url):
    async def use(f):
        await loaded(f, {"a": 0, "b": 0}, facts=[("a", Facts(("Drama", "War: \u00e9"), ("nm1",)))])
        await f.append(event("a", timestamp=90_000), {})
        await f.append(event("b", action="dislike", value=2.0, timestamp=7200), {})  # late, and without facts
        return await f.user_features("u", 100_000), await f.item_features("a", 100_000), await f.item_features("a", 90_000 + 31 * 86400)

    features, item, later = run(url, use)
    assert features["preferred_genres"] == [{"key": "Drama", "share": 0.5}, {"key": "War: \u00e9", "share": 0.5}]
    assert features["preferred_people"] == [{"key": "nm1", "share": 1.0}]
    assert features["active_hours"] == [{"key": "01", "share": 0.5}, {"key": "02", "share": 0.5}]
    assert (features["distinct_items"], features["days_active"], features["last_active"], features["mean_rating"]) == (2, 2, 90_000, 2.0)
    assert (item["count_like"], item["popularity_30d"], later["popularity_30d"]) == (1, 1, 0)


def test_state_and_features_are_read_together(url):
    async def use(f):
        await f.append(event("a"), {})
        return await f.user_state_and_features("u", 200.0, 10), await f.user_state("u", 200.0, 10), await f.user_features("u", 200)

    both, state, features = run(url, use)
    assert both == (state, features)


def test_item_ids_and_users_may_hold_the_separators(url):
    async def use(f):
        await loaded(f, {"a|b": 0})
        await f.append(event("a|b", user_id="x:history"), {})
        return await f.user_state("x:history", time.time(), 10), await f.user_state("x", time.time(), 10)

    state, other = run(url, use)
    assert state.history[0].item_id == "a|b"
    assert other.history == []


def test_segments():
    assert segment_of(None) == segment_of(User(user_id="u")) == ALL
    assert segment_of(User(user_id="u", gender="F", age=25)) == segment_of(User(user_id="u", gender="F", age=29)) == "F/20s"
    assert segment_of(User(user_id="u", age=8)) == "?/0s"
