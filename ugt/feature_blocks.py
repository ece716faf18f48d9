"""The features of a catalogue by the block, in polars: values are counted, the vocabulary follows, rows are encoded at once.

Apart from `ugt.features`, which says what a row is, because a serving replica encodes item by item and needs no data frames.

Shapes: N items, F columns.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pyarrow as pa
from scipy import sparse

from ugt.features import RUNTIME_BUCKETS, RUNTIME_EDGES, FeatureConfig, Vocabulary
from ugt.schema import ITEM_TYPES, UGTError


def fit_vocabulary(items: pa.Table, credits: pa.Table, config: FeatureConfig) -> Vocabulary:
    """Columns from the catalogue, each list sorted by name; people by number of titles, then id.

    Raises UGTError for an empty catalogue.
    """
    return vocabulary_of(count_block(_frame(items), _frame(credits)), config)


def count_block(items: pl.DataFrame, credits: pl.DataFrame) -> pl.DataFrame:
    """In how many items of a block each value occurs: `kind` (genres, countries, eras, people), `value`, `items`."""
    lists = {kind: items.select("item_index", value=pl.col(kind)).explode("value", empty_as_null=True).unique() for kind in ("genres", "countries")}
    eras = items.select("item_index", value=_era(pl.col("year")))
    people = credits.select("item_index", value="person_id").unique()
    counts = [
        rows.filter(pl.col("value").is_not_null()).group_by("value").agg(items=pl.len().cast(pl.Int64)).select(pl.lit(kind).alias("kind"), "value", "items")
        for kind, rows in (lists | {"eras": eras, "people": people}).items()
    ]
    return pl.concat(counts)


def vocabulary_of(counts: pl.DataFrame, config: FeatureConfig) -> Vocabulary:
    """The vocabulary from the counts (`count_block`) of all blocks of a catalogue. Raises UGTError if there is nothing to count."""
    if not counts.height:
        raise UGTError("the catalogue has no items, so there is nothing to make features of. Look at the quarantine of `ugt data etl`.")
    counts = counts.group_by("kind", "value").agg(pl.col("items").sum())

    def values(kind: str, at_least: int = 1) -> pl.DataFrame:
        return counts.filter((pl.col("kind") == kind) & (pl.col("items") >= at_least)).sort("value")

    frequent = values("people", config.min_person_items).sort("items", "value", descending=[True, False])
    return Vocabulary(
        genres=values("genres")["value"].to_list(),
        countries=values("countries", config.min_country_items)["value"].to_list(),
        item_types=list(ITEM_TYPES),
        eras=values("eras")["value"].to_list(),
        ratings=[str(i) for i in range(11)],
        runtimes=list(RUNTIME_BUCKETS),
        people=frequent["value"].head(config.max_people).to_list(),
    )


def encode_block(items: pl.DataFrame, credits: pl.DataFrame, vocabulary: Vocabulary) -> sparse.csr_array:
    """Feature rows of a block of the catalogue, float32 CSR [N, F], in the order of `items`; equal to `encode_features` of each.

    items, credits: rows of the tables ITEMS and CREDITS, the credits of these items at least.
    """
    blocks, n = vocabulary.blocks(), items.height
    place = items.select("item_index").with_row_index("at")
    items = items.with_row_index("at")
    runtime = pl.lit(list(RUNTIME_BUCKETS), pl.List(pl.String)).list.get(pl.sum_horizontal(pl.col("runtime_minutes") >= edge for edge in RUNTIME_EDGES))
    rating = pl.col("rating").clip(0, 10).cast(pl.Int32).cast(pl.String)
    known: dict[str, pl.DataFrame] = {
        "genres": items.select("at", value="genres").explode("value", empty_as_null=True),
        "countries": items.select("at", value="countries").explode("value", empty_as_null=True),
        "item_types": items.select("at", value="item_type"),
        "eras": items.select("at", value=_era(pl.col("year"))),
        "ratings": items.select("at", value=pl.when(pl.col("rating").is_finite()).then(rating)),
        "runtimes": items.select("at", value=pl.when(pl.col("runtime_minutes").is_not_null()).then(runtime)),
        "people": credits.select("item_index", value="person_id").join(place, on="item_index").select("at", "value"),
    }
    rows, columns, data = [], [], []
    for name, values in vocabulary.categories().items():
        first, end = blocks[name]
        mapping = pl.DataFrame({"value": values, "column": np.arange(first, end - 1, dtype=np.int32)}, schema={"value": pl.String, "column": pl.Int32})
        hot = known[name].join(mapping, on="value").select("at", "column").unique()
        none = np.setdiff1d(np.arange(n), hot["at"].to_numpy())
        rows += [hot["at"].to_numpy(), none]
        columns += [hot["column"].to_numpy(), np.full(len(none), end - 1, np.int32)]
    ones = sum(len(r) for r in rows)
    first, _ = blocks["numbers"]
    for offset, column, base, top in ((0, "votes", 10, 7), (2, "runtime_minutes", math.e, 6)):
        given = items.filter(pl.col(column).is_not_null())
        rows += [given["at"].to_numpy(), np.setdiff1d(np.arange(n), given["at"].to_numpy())]
        columns += [np.full(given.height, first + offset), np.full(n - given.height, first + offset + 1)]
        data += [np.log(1 + np.maximum(given[column].to_numpy(), 0)) / math.log(base) / top, np.ones(n - given.height)]
    values_ = np.concatenate([np.ones(ones), *data]).astype(np.float32)
    x_NF = sparse.csr_array((values_, (np.concatenate(rows), np.concatenate(columns))), shape=(n, vocabulary.width))
    x_NF.eliminate_zeros()
    return x_NF


def _era(year: pl.Expr) -> pl.Expr:
    """`decade` of a column; null stays null."""
    return (year.floordiv(10) * 10).cast(pl.String) + "s"


def _frame(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(table))
