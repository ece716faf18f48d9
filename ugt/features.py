"""Feature definitions and vocabularies of items: one definition for batch and online.

Choices: everything is a column of one float32 row. Categories are multi-hot with an explicit column for "unknown" (nothing given, or
nothing the vocabulary knows), numbers come as a log value with a flag that says they are missing: a null never looks like a value.
The vocabulary is fitted once, is part of the artifact, and is all that encoding needs. A catalogue is kept sparse: of 800 columns some 15 are not 0.
`encode_features` says what a row is, item by item; `encode_block` does the same for a block of the catalogue at once.

Shapes: N items, F columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from scipy import sparse

from ugt.artifacts import write_text
from ugt.schema import ITEM_TYPES, Config, Record, UGTError

UNKNOWN = "unknown"
VOCABULARY = "vocabulary.json"
FEATURES = "features.npz"
RUNTIME_EDGES = (40, 75, 100, 130, 180)  # minutes: short, hour, feature, long, epic, beyond
RUNTIME_BUCKETS = ("<40", "<75", "<100", "<130", "<180", "180+")


class FeatureConfig(Config):
    """What gets a column of its own."""

    max_people: int = 512  # most frequent people get a column of their own
    min_person_items: int = 2
    min_country_items: int = 2


class Vocabulary(Record):
    """The columns of a feature row, block by block. Within a block the last column is "unknown"."""

    genres: list[str]
    countries: list[str]
    item_types: list[str]
    eras: list[str]  # decades, "1990s"
    ratings: list[str]  # buckets one wide, "7"
    runtimes: list[str]
    people: list[str]  # person_id

    def blocks(self) -> dict[str, tuple[int, int]]:
        """Name to (first, end) column, in order. `numbers` is (log10 votes / 7, votes missing, log runtime / 6, runtime missing)."""
        widths = {name: len(values) + 1 for name, values in self._categories().items()} | {"numbers": 4}
        ends = np.cumsum(list(widths.values())).tolist()
        return {name: (end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}

    @property
    def width(self) -> int:
        return self.blocks()["numbers"][1]

    def _categories(self) -> dict[str, list[str]]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    def save(self, folder: Path) -> None:
        write_text(Path(folder) / VOCABULARY, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Raises UGTError if the folder has none."""
        path = Path(folder) / VOCABULARY
        if not path.is_file():
            raise UGTError(f"no {VOCABULARY} in {folder}. Run `ugt data features` first.")
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


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
    for name, values in vocabulary._categories().items():
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


def save_features(x_NF: sparse.csr_array, folder: Path) -> None:
    sparse.save_npz(Path(folder) / FEATURES, x_NF, compressed=False)


def load_features(folder: Path) -> sparse.csr_array:
    """float32 CSR [N, F], row = item_index. Raises UGTError if the folder has none."""
    path = Path(folder) / FEATURES
    if not path.is_file():
        raise UGTError(f"no {FEATURES} in {folder}. Run `ugt data features` first.")
    return sparse.csr_array(sparse.load_npz(path))


def encode_features(rows: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> np.ndarray:
    """Feature rows, float32 [N, F], of items given as mappings with the fields of `ugt.schema.Item` and `people` (person ids).

    A field that is absent counts as null. The same function encodes a catalogue and one item of a request.
    """
    blocks = vocabulary.blocks()
    x_NF = np.zeros((len(rows), vocabulary.width), np.float32)
    columns = {name: {value: blocks[name][0] + i for i, value in enumerate(values)} for name, values in vocabulary._categories().items()}
    for x_F, row in zip(x_NF, rows, strict=True):
        for name, values in _values(row).items():
            hot = [columns[name][value] for value in values if value in columns[name]]
            x_F[hot or [blocks[name][1] - 1]] = 1.0
        x_F[slice(*blocks["numbers"])] = (*_log(row.get("votes"), 10, 7), *_log(row.get("runtime_minutes"), math.e, 6))
    return x_NF


def rows_of(items: pa.Table, credits: pa.Table) -> pa.Table:
    """The items with a column `people`: person ids in credit order, no one twice; empty where nobody is credited."""
    people = people_of(credits, items.num_rows)
    return items.append_column("people", pa.array([[person for person, _ in credit] for credit in people], pa.list_(pa.string())))


def people_of(credits: pa.Table, items: int) -> list[list[tuple[str, str]]]:
    """(person_id, role) of each item_index in order of (ordering, person_id); a person's first role counts."""
    order = credits.sort_by([("item_index", "ascending"), ("ordering", "ascending"), ("person_id", "ascending")])
    people: list[dict[str, str]] = [{} for _ in range(items)]
    for i, person, role in zip(*(order.column(name).to_pylist() for name in ("item_index", "person_id", "role")), strict=True):
        people[i].setdefault(person, role)
    return [list(one.items()) for one in people]


def decade(year: int | None) -> str:
    """1994 -> "1990s"; null -> "unknown"."""
    return f"{year // 10 * 10}s" if year is not None else UNKNOWN


def rating_bucket(rating: float | None) -> str:
    """7.9 -> "7", out of ten; null -> "unknown"."""
    return str(int(min(10, max(0, rating)))) if rating is not None and math.isfinite(rating) else UNKNOWN


def _values(row: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    runtime = row.get("runtime_minutes")
    return {
        "genres": row.get("genres") or (),
        "countries": row.get("countries") or (),
        "item_types": (row.get("item_type") or UNKNOWN,),
        "eras": (decade(row.get("year")),),
        "ratings": (rating_bucket(row.get("rating")),),
        "runtimes": (RUNTIME_BUCKETS[int(np.searchsorted(RUNTIME_EDGES, runtime, side="right"))] if runtime is not None else UNKNOWN,),
        "people": row.get("people") or (),
    }


def _era(year: pl.Expr) -> pl.Expr:
    """`decade` of a column; null stays null."""
    return (year.floordiv(10) * 10).cast(pl.String) + "s"


def _frame(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(table))


def _log(value: float | None, base: float, top: float) -> tuple[float, float]:
    """(log value scaled to about 0..1, missing flag)."""
    return (math.log(1 + max(0, value), base) / top, 0.0) if value is not None else (0.0, 1.0)
