"""What the stores hold of one user, on a real Redis: kinds of keys that are known, kinds that are not, and item counters that stay."""

from __future__ import annotations

import pytest
import redis

from ugt.stores import embedded
from ugt.stores.erasure import RedisTraces, is_distinctive, word_of


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    client = redis.Redis.from_url(embedded.ensure_redis(home), decode_responses=True)
    yield client
    client.close()
    embedded.stop(home)


@pytest.fixture(autouse=True)
def empty(client):
    client.flushdb()


def test_a_kind_of_key_nobody_thought_of_gives_a_distinctive_id_away(client):
    client.set("ugt:session:abc", '{"user_id": "mia17", "x": 1}')
    client.set("ugt:session:abd", '{"user_id": "mia170"}')
    client.hset("ugt:profile", mapping={"mia17": "old", "zoe20": "young"})
    client.zadd("ugt:active", {"mia17": 1, "zoe20": 2})
    client.sadd("ugt:cohort:mia17:a", "1")
    client.rpush("ugt:queue", "mia17", "zoe20", "mia17")
    client.xadd("ugt:clicks", {"user_id": "mia17"})
    client.xadd("ugt:clicks", {"user_id": "zoe20"})
    client.set("other:mia17", "not ours")
    traces = RedisTraces(client, "mia17")
    assert traces.count() == {"session": 1, "profile": 1, "active": 1, "cohort": 1, "queue": 1, "clicks": 1}
    traces.erase()
    assert RedisTraces(client, "mia17").count() == {}
    assert client.get("ugt:session:abd") is not None
    assert client.hgetall("ugt:profile") == {"zoe20": "young"}
    assert client.zrange("ugt:active", 0, -1) == ["zoe20"]
    assert client.lrange("ugt:queue", 0, -1) == ["zoe20"]
    assert client.xlen("ugt:clicks") == 1
    assert client.get("other:mia17") == "not ours"


def test_a_number_takes_only_what_is_named_by_it_and_item_counters_stay(client):
    client.rpush("ugt:3:history:1", "10|like||1")
    client.rpush("ugt:3:history:11", "10|like||1")
    client.hset("ugt:3:totals:item:1", "like", 2)
    client.hset("ugt:3:totals:user:1", "like", 2)
    client.zadd("ugt:3:popular:all", {"1": 2})
    client.set("ugt:codes:1", "an index of codes")
    traces = RedisTraces(client, "1")
    assert traces.count() == {"history": 1, "totals:user": 1}
    traces.erase()
    assert sorted(client.keys("ugt:*")) == ["ugt:3:history:11", "ugt:3:popular:all", "ugt:3:totals:item:1", "ugt:codes:1"]


def test_every_entry_of_a_long_stream_is_found(client):
    pipe = client.pipeline()
    for i in range(2500):
        pipe.xadd("ugt:events", {"user_id": "1" if i % 5 == 0 else f"9{i}", "item_id": "1"})
    pipe.execute()
    traces = RedisTraces(client, "1")
    assert traces.count() == {"events (stream)": 500}
    assert traces.erase() == 500
    assert client.xlen("ugt:events") == 2000


@pytest.mark.parametrize(
    ("user_id", "expected"), [("1", False), ("123456789012345", False), ("ab1", False), ("drama", False), ("u001", True), ("A2SUAM1J3GNN3B", True)]
)
def test_which_ids_may_be_searched_in_any_text(user_id, expected):
    assert is_distinctive(user_id) is expected


def test_an_id_is_a_word_of_its_own():
    word = word_of("u001")
    assert all(word.search(text) for text in (b"u001", b'"u001"', b"/u001|", b"::u001::", b"of u001."))
    assert not any(word.search(text) for text in (b"u0011", b"xu001", b"a-u001", b"u001-b", b"u001@example.org", b"u001_a"))
