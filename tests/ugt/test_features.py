"""Item features: one definition for batch and online, and nulls that never look like values."""

import numpy as np
import polars as pl
import pytest

from ugt.artifacts import CREDITS, ITEMS, read_table
from ugt.feature_blocks import count_block, encode_block, fit_vocabulary, vocabulary_of
from ugt.features import FeatureConfig, Vocabulary, encode_features, rows_of
from ugt.schema import Item, UGTError


@pytest.fixture(scope="module")
def fitted(catalogue):
    items, credits = read_table(catalogue / "items", ITEMS), read_table(catalogue / "credits", CREDITS)
    vocabulary = fit_vocabulary(items, credits, FeatureConfig())
    rows = rows_of(items, credits).to_pylist()
    return vocabulary, rows, encode_features(rows, vocabulary)


def test_one_item_online_gets_the_row_it_has_in_the_batch(fitted):
    vocabulary, rows, x_NF = fitted
    for i in (1, 7, 42):
        online = Item.model_validate({k: v for k, v in rows[i].items() if k in Item.model_fields and v is not None}).model_dump() | {
            "people": rows[i]["people"]
        }
        assert (encode_features([online], vocabulary)[0] == x_NF[i]).all()


def test_columns_say_what_the_item_is(fitted):
    vocabulary, _, x_NF = fitted
    blocks = vocabulary.blocks()
    assert blocks["numbers"][1] == vocabulary.width == x_NF.shape[1]
    start, end = blocks["genres"]
    assert x_NF[5, start:end].tolist() == [0, 1, 0, 0, 0]  # Comedy, Drama, Horror, War, unknown
    assert vocabulary.eras[x_NF[5, slice(*blocks["eras"])].argmax()] == "1950s"
    assert vocabulary.ratings[x_NF[7, slice(*blocks["ratings"])].argmax()] == "7"
    people = [vocabulary.people[c] for c in np.flatnonzero(x_NF[7, slice(*blocks["people"])])]
    assert sorted(people) == ["nm003", "nm011"]


def test_a_null_is_unknown_and_not_zero(fitted):
    vocabulary, _, x_NF = fitted
    for name, (_, end) in vocabulary.blocks().items():
        if name not in ("numbers", "item_types"):
            assert x_NF[1, end - 1] == 1, name
    assert x_NF[1, slice(*vocabulary.blocks()["numbers"])].tolist() == [0, 1, 0, 1]
    assert x_NF[0, slice(*vocabulary.blocks()["numbers"])][1] == 0  # 0 votes is a value


def test_a_value_the_vocabulary_never_saw_is_unknown(fitted):
    vocabulary, _, _ = fitted
    row = encode_features([{"item_id": "x", "genres": ["Polka"], "year": 2199}], vocabulary)[0]
    for name in ("genres", "eras"):
        start, end = vocabulary.blocks()[name]
        assert row[start:end].tolist() == [0] * (end - start - 1) + [1]


def test_the_vocabulary_survives_saving(fitted, tmp_path):
    fitted[0].save(tmp_path)
    assert Vocabulary.load(tmp_path) == fitted[0]
    with pytest.raises(UGTError, match="vocabulary"):
        Vocabulary.load(tmp_path / "nowhere")


def test_an_empty_catalogue_is_refused():
    with pytest.raises(UGTError, match="no items"):
        fit_vocabulary(ITEMS.empty_table(), CREDITS.empty_table(), FeatureConfig())


def test_a_block_at_once_is_its_rows_one_by_one(catalogue, fitted):
    vocabulary, _, x_NF = fitted
    items, credits = (pl.DataFrame(pl.from_arrow(read_table(catalogue / name))) for name in ("items", "credits"))
    block = items.slice(30, 50)
    assert (encode_block(block, credits, vocabulary).toarray() == x_NF[30:80]).all()
    odd = pl.DataFrame({"item_index": [0, 1], "year": [1994, None], "rating": [float("nan"), 11.0], "votes": [None, 0], "runtime_minutes": [75, 300]})
    odd = odd.with_columns(genres=pl.Series([["Drama", "Polka"], None], dtype=pl.List(pl.String)), countries=pl.Series([[], None], dtype=pl.List(pl.String)))
    odd = odd.with_columns(item_type=pl.Series(["movie", "hologram"]))
    rows = [row | {"people": []} for row in odd.to_dicts()]
    assert (encode_block(odd, credits.clear(), vocabulary).toarray() == encode_features(rows, vocabulary)).all()


def test_counts_of_blocks_add_up_to_the_vocabulary_of_the_whole(catalogue, fitted):
    items, credits = (pl.DataFrame(pl.from_arrow(read_table(catalogue / name))) for name in ("items", "credits"))
    counts = [count_block(items.slice(a, 40), credits.filter(pl.col("item_index").is_between(a, a + 39))) for a in (0, 40, 80)]
    assert vocabulary_of(pl.concat(counts), FeatureConfig()) == fitted[0]
