"""Materialisation: the stores hold what the tables say, a second call skips, feedback survives a reload."""

import asyncio
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.feature_store import materialize
from ugt.artifacts import HISTORIES, ITEMS, USERS, write_table
from ugt.runtime import ITEM_TABLE
from ugt.schema import ACTION_IDS, Event, UGTError
from ugt.settings import StoresConfig
from ugt.stores import embedded
from ugt.stores.feature_load import FeatureLoad
from ugt.stores.features import ALL, OnlineFeatures
from ugt.stores.records import Records
from ugt.stores.vectors import VectorStore, dense_space


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three items, three users, one of them without events."""
    root = tmp_path_factory.mktemp("materialize")
    empty = dict.fromkeys(ITEMS.names)
    items = [
        empty | {"item_index": i, "item_id": x, "item_type": "movie", "title": x.upper(), "genres": ["Drama"], "countries": []} for i, x in enumerate("abc")
    ]
    write_table(pa.Table.from_pylist(items, ITEMS), root / "etl/items")
    users = [{"user_id": u, "gender": "F", "age": 25, "occupation": None} for u in ("u", "w")] + [
        {"user_id": "v", "gender": None, "age": None, "occupation": None}
    ]
    write_table(pa.Table.from_pylist(users, USERS), root / "etl/users")
    like, dislike = ACTION_IDS["like"], ACTION_IDS["dislike"]
    rows = [
        {"user_id": "u", "item_index": [1, 0], "action": [like, dislike], "value": [4.5, float("nan")], "timestamp": [10, 20]},
        {"user_id": "v", "item_index": [1], "action": [like], "value": [float("nan")], "timestamp": [30]},
    ]
    write_table(pa.Table.from_pylist(rows, HISTORIES), root / "histories/histories")
    (root / "version").mkdir()
    np.save(root / "version/item_vectors.npy", np.eye(3, 4, dtype=np.float32))
    codes = {"item_id": list("abc"), "l1": [1, 0, 1], "l2": [0, 0, 0], "l3": [1, 0, 0]}
    pq.write_table(pa.table(codes), root / "version" / ITEM_TABLE)
    np.save(root / "fused.npy", np.ones((3, 2), np.float32))
    yield root
    embedded.stop(root / "home")


def load(root, version="v0001-00000000", spaces=None):
    spaces = {"fused": root / "fused.npy"} if spaces is None else spaces
    where = {"name": "ugt", "version": version, "version_dir": root / "version", "spaces": spaces}
    return materialize(root / "histories", root / "etl", StoresConfig(), root / "home", **where)


def online(root, use):
    async def body():
        features = OnlineFeatures(embedded.ensure_redis(root / "home"))
        try:
            return await use(features)
        finally:
            await features.close()

    return asyncio.run(body())


def test_the_stores_hold_the_tables_and_a_second_call_skips(folders):
    figures = load(folders)
    assert (figures["items"], figures["users"], figures["events"], figures["skipped"]) == (3, 3, 3, 0)
    state = online(folders, lambda f: f.user_state("u", time.time(), 10))
    assert [(e.item_id, e.action, e.value, e.timestamp) for e in state.history] == [("b", "like", 4.5, 10), ("a", "dislike", None, 20)]
    assert state.profile.gender == "F"
    quiet = online(folders, lambda f: f.user_state("w", time.time(), 10))
    assert (quiet.profile.age, quiet.history) == (25, [])
    assert online(folders, lambda f: f.popular(ALL, 0, 10)) == [("b", 2.0), ("c", 0.0), ("a", 0.0)]
    assert online(folders, lambda f: f.popular("F/20s", 0, 10)) == [("b", 1.0)]
    resolved = embedded.resolve(StoresConfig(), folders / "home")
    assert Records(resolved.sql_url).catalogue()["c"] == ("movie", "C", ["Drama"])
    assert Records(resolved.sql_url).items_by_prefix(1) == [("c", (1, 0, 0)), ("a", (1, 0, 1))]
    assert {i for i, _ in VectorStore(resolved.milvus_uri).search("fused", "a", 3, (1, 0))} == {"a", "c"}
    ids, x = VectorStore(resolved.milvus_uri).read(dense_space("v0001-00000000"))
    assert ids == ["a", "b", "c"]
    assert (x == np.eye(3, 4)).all()
    assert load(folders)["skipped"] == 1


def test_feedback_survives_a_new_version_and_a_killed_load_is_done_again(folders):
    load(folders)

    async def feedback_then_a_load_that_dies(f):
        await f.append(Event(event_id="e", user_id="u", item_id="c", action="like", timestamp=40), {})
        await FeatureLoad.begin(f)

    online(folders, feedback_then_a_load_that_dies)
    figures = load(folders, "v0002-00000000")
    assert (figures["skipped"], figures["replayed"]) == (0, 1)
    state = online(folders, lambda f: f.user_state("u", time.time(), 10))
    assert [e.item_id for e in state.history] == ["b", "a", "c"]
    assert load(folders, "v0002-00000000")["skipped"] == 1


def test_missing_vectors_name_their_file(folders):
    with pytest.raises(UGTError, match=r"nowhere\.npy"):
        load(folders, spaces={"fused": folders / "nowhere.npy"})


def test_a_version_made_without_a_kind_of_vector_leaves_none_of_an_older_one(folders):
    """Vectors of another version would answer /similar as if they were this one's."""
    load(folders)
    load(folders, "v0002-00000000", spaces={})
    store = VectorStore(embedded.resolve(StoresConfig(), folders / "home").milvus_uri)
    assert set(store.spaces()) == {dense_space("v0001-00000000"), dense_space("v0002-00000000")}
