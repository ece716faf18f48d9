"""The judge of the load tool finds every kind of illegal item, and only those."""

import random

import pytest

from ray_app.bench.serve import World, exercise
from ugt.schema import UGTError


@pytest.fixture
def world():
    genres = {"a": ["drama"], "b": ["comedy"], "c": ["drama", "comedy"], "d": []}
    return World(
        types={"a": "movie", "b": "movie", "c": "series", "d": "movie"},
        genres={i: frozenset(g) for i, g in genres.items()},
        titles={i: i.upper() for i in genres},
        users=["u", "v"],
        seen={"u": {"d"}},
    )


def answer(*item_ids, user_id="u", item_types=None):
    item_types = item_types or {"c": "series"}
    items = [{"item_id": i, "item_type": item_types.get(i, "movie"), "title": i.upper(), "position": n, "source": "ugt"} for n, i in enumerate(item_ids, 1)]
    return {"user_id": user_id, "items": items}


@pytest.mark.parametrize(
    ("body", "item_ids", "fault"),
    [
        ({"size": 2}, ["a", "x"], "x: does not exist"),
        ({"size": 1, "exclude": ["a"]}, ["a"], "a: excluded"),
        ({"size": 1, "categories": ["Comedy"]}, ["a"], "a: filtered"),
        ({"size": 1, "item_types": ["series"]}, ["a"], "a: filtered"),
        ({"size": 2}, ["a", "a"], "a: duplicate"),
        ({"size": 1}, ["d"], "d: already seen"),
        ({"size": 3}, ["a"], "page of 1 although 2 more items are legal"),
        ({"size": 1}, ["a", "b"], "another user or too many items"),
    ],
)
def test_each_kind_of_fault_is_found(world, body, item_ids, fault):
    assert fault in world.faults({"user_id": "u", **body}, answer(*item_ids))


def test_what_was_shown_may_not_come_again_to_the_same_user_only(world):
    assert world.faults({"user_id": "u", "size": 1}, answer("a")) == []
    assert world.faults({"user_id": "v", "size": 1}, answer("a", user_id="v")) == []
    assert world.faults({"user_id": "u", "size": 1}, answer("a")) == ["a: just shown"]


def test_a_short_page_is_right_when_nothing_more_is_legal(world):
    assert world.faults({"user_id": "u", "size": 20, "categories": ["comedy"], "item_types": ["movie"]}, answer("b")) == []


def test_requests_vary_and_repeat_with_the_seed(world):
    first, second = (world.requests(random.Random(3), world.users) for _ in range(2))
    bodies = [next(first) for _ in range(200)]
    assert bodies == [next(second) for _ in range(200)]
    assert any("categories" in b for b in bodies)
    assert any("exclude" in b for b in bodies)
    assert any("item_types" in b for b in bodies)


def test_a_server_that_is_not_there_is_one_sentence(tmp_path):
    from ugt.artifacts import HISTORIES, ITEMS, write_table

    items = [dict.fromkeys(ITEMS.names) | {"item_index": 0, "item_id": "a", "title": "A", "genres": []}]
    write_table(_table(items, ITEMS), tmp_path / "etl" / "items")
    rows = [{"user_id": "u", "item_index": [0], "action": [1], "value": [1.0], "timestamp": [1]}]
    write_table(_table(rows, HISTORIES), tmp_path / "histories" / "histories")
    with pytest.raises(UGTError, match="ugt serve run"):
        exercise("http://127.0.0.1:9", tmp_path / "etl", tmp_path / "histories")


def _table(rows, schema):
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema)
