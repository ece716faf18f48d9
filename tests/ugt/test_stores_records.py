"""Records in SQL: catalogue replaced in one transaction, versions remembered, a bad address named without its secret."""

import pytest

from ugt.schema import Item, UGTError, User
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
