"""Records in SQL: catalogue replaced in one transaction, versions remembered, a bad address named without its secret."""

import sqlite3

import numpy as np
import pytest

from ugt.schema import Item, UGTError, User
from ugt.semantic_ids import SemanticIds
from ugt.stores.records import Records


@pytest.fixture
def records(tmp_path):
    records = Records(f"sqlite:///{tmp_path / 'r.sqlite'}")
    yield records
    records.close()


def test_the_catalogue_is_replaced_not_added_to(records):
    records.replace_catalogue(
        [Item(item_id="a", title="A", genres=["Drama", "Film-Noir"]), Item(item_id="b", title="B", item_type="series")], [User(user_id="u", age=3)]
    )
    assert records.catalogue() == {"a": ("movie", "A", ["Drama", "Film-Noir"]), "b": ("series", "B", [])}
    records.replace_catalogue([Item(item_id="c", title="C")], [])
    assert set(records.catalogue()) == {"c"}


def test_a_failed_replacement_changes_nothing(records):
    records.replace_catalogue([Item(item_id="a", title="A")], [])
    with pytest.raises(Exception, match="UNIQUE"):
        records.replace_catalogue([Item(item_id="b", title="B"), Item(item_id="b", title="B")], [])
    assert set(records.catalogue()) == {"a"}


def test_versions_are_remembered_and_replaced(records):
    assert records.version("ugt", "v1") is None
    records.put_version("ugt", "v1", "k1", {"items": 3})
    records.put_version("ugt", "v1", "k2", {"items": 4})
    found = records.version("ugt", "v1")
    assert (found.data_key, found.figures) == ("k2", {"items": 4})


def test_bad_addresses_are_named_without_their_secret(tmp_path):
    with pytest.raises(UGTError, match=r"stores\.sql_url"):
        Records("not an address")
    with pytest.raises(UGTError, match=r"stores\.sql_url") as caught:
        Records(f"sqlite:///{tmp_path}/no/such/folder/r.sqlite")
    assert "no/such/folder" in str(caught.value)


def test_items_under_a_prefix_are_those_of_the_trie_in_its_order(records):
    ids = SemanticIds.from_codes(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 1]]), list("abcd"), 2, 2, 2)
    codes = dict(zip(ids.item_ids, ids.codes_N3.tolist(), strict=True))
    records.replace_catalogue([Item(item_id=i, title=i) for i in "abcde"], [], codes)  # e has no semantic ID
    for prefix in ((0,), (1,), (1, 0), (1, 1), (0, 0), (7,)):
        found = records.items_by_prefix(*prefix)
        assert [item for item, _ in found] == [ids.item_ids[i] for i in ids.with_prefix(*prefix)]
        assert all(list(triple) == codes[item] for item, triple in found)
    assert len(records.items_by_prefix(1, limit=2)) == 2
    with records.engine.connect() as c:
        plan = str(c.exec_driver_sql("EXPLAIN QUERY PLAN SELECT item_id FROM items WHERE l1 = 1 AND l2 = 1 ORDER BY l1, l2, l3").all())
    assert "items_semantic_id" in plan
    assert "SCAN" not in plan


def test_a_database_of_an_older_release_gets_the_columns_and_keeps_its_rows(tmp_path):
    with sqlite3.connect(tmp_path / "r.sqlite") as old:
        columns = "item_type TEXT NOT NULL, title TEXT NOT NULL, year INTEGER, runtime_minutes INTEGER, genres TEXT NOT NULL, countries TEXT NOT NULL"
        old.execute(f"CREATE TABLE items (item_id TEXT PRIMARY KEY, {columns}, rating FLOAT, votes BIGINT, description TEXT, imdb_id TEXT)")
        old.execute("INSERT INTO items (item_id, item_type, title, genres, countries) VALUES ('a', 'movie', 'A', '[]', '[]')")
    for _ in range(2):  # the second time there is nothing to add
        records = Records(f"sqlite:///{tmp_path / 'r.sqlite'}")
        assert records.catalogue() == {"a": ("movie", "A", [])}
        assert records.items_by_prefix(0) == []
        records.close()
    records = Records(f"sqlite:///{tmp_path / 'r.sqlite'}")
    records.replace_catalogue([Item(item_id="b", title="B")], [], {"b": (3, 1, 0)})
    assert records.items_by_prefix(3, 1) == [("b", (3, 1, 0))]
    records.close()
