"""IMDb's non-commercial TSVs: which files, their column rules, and one partition of titles joined into items and credits.

Null is `\\N`, nothing is quoted, files may be `.tsv` or `.tsv.gz`. Only title.basics is needed; partial files (heads) are fine: what
they don't cover stays null. Source: developer.imdb.com/non-commercial-datasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data.quality import Column, Tally, typed
from data.sources.rows import SourceFile
from ugt.schema import UGTError

TCONST, NCONST = r"^tt(\d{7}|[1-9]\d{7,8})$", r"^nm(\d{7}|[1-9]\d{7,8})$"
BASICS = (
    Column("tconst", required=True, pattern=TCONST),
    Column("titleType", required=True),
    Column("primaryTitle", required=True),
    Column("originalTitle"),
    Column("startYear", "int", low=1800, high=2200),
    Column("runtimeMinutes", "int", low=0),
    Column("genres"),
)
RATINGS = (
    Column("tconst", required=True, pattern=TCONST),
    Column("averageRating", "float", required=True, low=1, high=10),
    Column("numVotes", "int", required=True, low=0),
)
CREW = (Column("tconst", required=True, pattern=TCONST), Column("directors"), Column("writers"))
PRINCIPALS = (
    Column("tconst", required=True, pattern=TCONST),
    Column("ordering", "int", required=True),
    Column("nconst", required=True, pattern=NCONST),
    Column("category", required=True),
)
AKAS = (Column("titleId", required=True, pattern=TCONST), Column("ordering", "int", required=True), Column("title", required=True), Column("region"))
EPISODES = (
    Column("tconst", required=True, pattern=TCONST),
    Column("parentTconst", required=True, pattern=TCONST),
    Column("seasonNumber", "int", low=0),
    Column("episodeNumber", "int", low=0),
)
NAMES = (
    Column("nconst", required=True, pattern=NCONST),
    Column("primaryName", required=True),
    Column("birthYear", "int", low=0, high=2200),
    Column("primaryProfession"),
)
TABLES: dict[str, tuple[Column, ...]] = {
    "title.basics": BASICS,
    "title.ratings": RATINGS,
    "title.crew": CREW,
    "title.principals": PRINCIPALS,
    "title.akas": AKAS,
    "title.episode": EPISODES,
    "name.basics": NAMES,
}
ITEM_TYPE = {
    "movie": "movie",
    "tvMovie": "movie",
    "short": "movie",
    "tvShort": "movie",
    "tvSeries": "series",
    "tvMiniSeries": "series",
    "video": "video",
    "tvSpecial": "video",
    "tvEpisode": "episode",
}
# actress folds into actor; self, archive footage, producers, composers and the rest are no credit of ours
ROLE = {"actor": "actor", "actress": "actor", "director": "director", "writer": "writer"}
ROLES = ("actor", "director", "writer")
COUNTRY = "^[A-WYZ][A-Z]$"  # XWW, XEU and the like are no countries
ITEM: dict[str, Any] = {
    "item_id": pl.String,
    "item_type": pl.String,
    "title": pl.String,
    "original_title": pl.String,
    "year": pl.Int32,
    "runtime_minutes": pl.Int32,
    "genres": pl.List(pl.String),
    "countries": pl.List(pl.String),
    "rating": pl.Float32,
    "votes": pl.Int64,
    "description": pl.String,
    "imdb_id": pl.String,
}
CREDIT: dict[str, Any] = {"item_id": pl.String, "person_id": pl.String, "role": pl.String, "ordering": pl.Int32}
PERSON: dict[str, Any] = {"person_id": pl.String, "name": pl.String, "birth_year": pl.Int32, "professions": pl.List(pl.String)}


def files(folder: Path) -> dict[str, SourceFile]:
    """The IMDb files in `folder` by table. Raises UGTError if the folder or title.basics isn't there."""
    if not folder.is_dir():
        raise UGTError(f"there is no folder {folder}. Give the folder with title.basics.tsv.gz (--imdb-dir, or --data-dir with --source imdb).")
    found = {}
    for table, columns in TABLES.items():
        paths = [folder / f"{table}.tsv.gz", folder / f"{table}.tsv"]
        path = next((p for p in paths if p.is_file()), None)
        if path is not None:
            found[table] = SourceFile(table, str(path), tuple(c.name for c in columns), columns[0].name, "tsv")
    if "title.basics" not in found:
        raise UGTError(f"{folder} holds no title.basics.tsv.gz or title.basics.tsv. Put IMDb's TSV files there (datasets.imdbws.com).")
    return found


@dataclass
class Part:
    """What one partition of rows became."""

    items: pl.DataFrame
    bad: pl.DataFrame
    tally: Tally


def take(raw: pl.DataFrame, table: str, columns: tuple[Column, ...], unique: list[str], tally: Tally, bad: list[pl.DataFrame]) -> pl.DataFrame:
    """Typed rows of a table without repeats of `unique` (the first one stays); bad rows and counts go where the caller collects them."""
    good, worse = typed(raw, table, columns)
    bad.append(worse)
    kept = good.sort("row").unique(unique, keep="first", maintain_order=True)
    tally.add(table, **{"in": good.height + worse.height, "quarantined": worse.height, "duplicate": good.height - kept.height})
    return kept


@dataclass(frozen=True)
class Known:
    """The slots of the numbers (of titles or of people) that are wanted."""

    number_M: np.ndarray  # int32, ascending
    slot_M: np.ndarray  # int32

    @classmethod
    def of(cls, number_M: np.ndarray) -> Known:
        """Slots by the order of the ids as text: `tt10000000` stands before `tt2000000`."""
        number_M = np.unique(number_M)
        digits = np.maximum(7, np.floor(np.log10(np.maximum(number_M, 1))).astype(np.int64) + 1)
        order = np.lexsort((digits, number_M.astype(np.int64) * 10 ** (9 - digits)))
        slot_M = np.empty(len(number_M), np.int32)
        slot_M[order] = np.arange(len(number_M), dtype=np.int32)
        return cls(number_M.astype(np.int32), slot_M)

    def __len__(self) -> int:
        return len(self.number_M)

    def slots(self, numbers: pl.Series) -> np.ndarray:
        """int32, -1 for a number that is not wanted. IMDb's files are sorted by key, which keeps the search in the cache."""
        number_R = numbers.to_numpy()
        if not len(self):
            return np.full(len(number_R), -1, np.int32)
        at_R = np.minimum(np.searchsorted(self.number_M, number_R), len(self) - 1)
        return np.where(self.number_M[at_R] == number_R, self.slot_M[at_R], -1)


def number(column: str) -> pl.Expr:
    """`tt0012345` -> 12345."""
    return pl.col(column).str.slice(2).cast(pl.Int32)


def identity(prefix: str, column: str) -> pl.Expr:
    """12345 -> `tt0012345`."""
    return pl.lit(prefix) + pl.col(column).cast(pl.String).str.zfill(7)


def facts(rows: pl.DataFrame) -> pl.DataFrame:
    """What title.basics says of each title, its number first."""
    return rows.select(
        "row",
        imdb=number("tconst"),
        item_type=pl.col("titleType").replace_strict(ITEM_TYPE, default="video", return_dtype=pl.String),
        title="primaryTitle",
        original_title="originalTitle",
        year=pl.col("startYear").cast(pl.Int32),
        runtime_minutes=pl.col("runtimeMinutes").cast(pl.Int32),
        genres="genres",
    )


def narrow(table: str, rows: pl.DataFrame, known: Known) -> pl.DataFrame:
    """The sound rows of one table that go on: `slot`, `row`, and what is needed of them."""
    if table == "title.principals":
        rows = rows.filter(pl.col("category").is_in(list(ROLE)))
    elif table == "title.akas":
        rows = rows.filter(pl.col("region").str.contains(COUNTRY))
    elif table == "title.crew":
        rows = rows.filter(pl.col("directors").is_not_null() | pl.col("writers").is_not_null())
    numbers = rows.select(imdb=number(TABLES[table][0].name))["imdb"]
    rows = rows.with_columns(slot=pl.Series(known.slots(numbers)), imdb=numbers).filter(pl.col("slot") >= 0)
    if table == "title.basics":
        return facts(rows).with_columns(slot=rows["slot"])
    if table == "title.ratings":
        return rows.select("slot", "row", rating=pl.col("averageRating").cast(pl.Float32), votes="numVotes")
    if table == "title.crew":
        return rows.select("slot", "row", "directors", "writers")
    if table == "title.principals":
        role = pl.col("category").replace_strict({category: ROLES.index(role) for category, role in ROLE.items()}, return_dtype=pl.UInt8)
        return rows.select("slot", "row", pl.col("ordering").cast(pl.Int32), person=number("nconst"), role=role)
    if table == "title.akas":
        return rows.select("slot", "row", pl.col("ordering").cast(pl.Int32), "title", "region")
    return rows.select(
        "slot", "row", parent=number("parentTconst"), season=pl.col("seasonNumber").cast(pl.Int32), episode=pl.col("episodeNumber").cast(pl.Int32)
    )


KEYS = {"title.principals": ["slot", "ordering"], "title.akas": ["slot", "ordering"]}  # of the others: the slot


def first_of_each(table: str, rows: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """One row per key of a table, the first of the file, sorted by key; the others are counted."""
    keys = KEYS.get(table, ["slot"])
    rows = rows.sort(*keys, "row")
    kept = rows.filter(pl.any_horizontal([pl.col(k) != pl.col(k).shift() for k in keys]).fill_null(True))
    tally.add(table, out=kept.height, duplicate=rows.height - kept.height)
    return kept


EMPTY: dict[str, dict[str, Any]] = {
    "title.basics": {
        "slot": pl.Int32,
        "imdb": pl.Int32,
        "item_type": pl.String,
        "title": pl.String,
        "original_title": pl.String,
        "year": pl.Int32,
        "runtime_minutes": pl.Int32,
        "genres": pl.String,
    },
    "title.ratings": {"slot": pl.Int32, "rating": pl.Float32, "votes": pl.Int64},
    "title.crew": {"slot": pl.Int32, "directors": pl.String, "writers": pl.String},
    "title.principals": {"slot": pl.Int32, "ordering": pl.Int32, "person": pl.Int32, "role": pl.UInt8},
    "title.akas": {"slot": pl.Int32, "ordering": pl.Int32, "title": pl.String, "region": pl.String},
    "title.episode": {"slot": pl.Int32, "parent": pl.Int32, "season": pl.Int32, "episode": pl.Int32},
}


# what IMDb knows of a title
TITLE: dict[str, Any] = EMPTY["title.basics"] | EMPTY["title.ratings"] | {"genres": pl.List(pl.String), "countries": pl.List(pl.String)}


def join(tables: dict[str, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(titles, credits, episodes) of a partition from the rows of each table that is there, one per key.

    titles: TITLE, sorted by slot. credits: (slot, person, role as a number, ordering), each person
    and role of a title once, crew before cast. Countries are the regions that list the title under its original name; IMDb has no country of production.
    """
    basics, ratings, crew, principals, akas, episodes = (tables.get(name, pl.DataFrame(schema=schema)).select(list(schema)) for name, schema in EMPTY.items())
    same = pl.col("title").str.to_lowercase() == pl.col("original_title").str.to_lowercase()
    countries = akas.join(basics.select("slot", "original_title"), on="slot").filter(same).group_by("slot").agg(countries=pl.col("region").unique().sort())
    titles = basics.join(ratings, on="slot", how="full", coalesce=True).join(countries, on="slot", how="left").sort("slot")
    titles = titles.with_columns(genres=pl.col("genres").str.split(",").fill_null([]), countries=pl.col("countries").fill_null([]))
    people = [principals.select("slot", "person", "role", "ordering", source=pl.lit(2, pl.UInt8))]
    for source, (column, role) in enumerate((("directors", "director"), ("writers", "writer"))):
        rows = crew.filter(pl.col(column).is_not_null()).select("slot", person=pl.col(column).str.split(","))
        rows = rows.explode("person", empty_as_null=True).filter(pl.col("person").str.contains(NCONST)).select("slot", person=number("person"))
        place = pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("slot")
        people.append(rows.with_columns(role=pl.lit(ROLES.index(role), pl.UInt8), ordering=place, source=pl.lit(source, pl.UInt8)))
    credits = pl.concat(people).sort("slot", "role", "person", "source", "ordering")
    again = pl.all_horizontal([pl.col(k) == pl.col(k).shift() for k in ("slot", "role", "person")]).fill_null(False)
    credits = credits.filter(~again).select("slot", "person", "role", "ordering").sort("slot", "role", "ordering", "person")
    return titles, credits, episodes


def people(rows: pl.DataFrame) -> pl.DataFrame:
    """PERSON of sound rows of name.basics."""
    return rows.select(
        person_id="nconst",
        name="primaryName",
        birth_year=pl.col("birthYear").cast(pl.Int32),
        professions=pl.col("primaryProfession").str.split(",").fill_null([]),
    )
