"""IMDb's non-commercial TSVs: which files, their column rules, and one partition of titles joined into items and credits.

Null is `\\N`, nothing is quoted, files may be `.tsv` or `.tsv.gz`. Only title.basics is needed; partial files (heads) are fine: what
they don't cover stays null. Source: developer.imdb.com/non-commercial-datasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data.quality import BAD, Column, Tally, typed
from data.sources.rows import SourceFile
from ugt.schema import UGTError

BASICS = (
    Column("tconst", required=True, pattern=r"^tt\d+$"),
    Column("titleType", required=True),
    Column("primaryTitle", required=True),
    Column("originalTitle"),
    Column("startYear", "int", low=1800, high=2200),
    Column("runtimeMinutes", "int", low=0),
    Column("genres"),
)
RATINGS = (Column("tconst", required=True), Column("averageRating", "float", required=True, low=1, high=10), Column("numVotes", "int", required=True, low=0))
CREW = (Column("tconst", required=True), Column("directors"), Column("writers"))
PRINCIPALS = (
    Column("tconst", required=True),
    Column("ordering", "int", required=True),
    Column("nconst", required=True, pattern=r"^nm\d+$"),
    Column("category", required=True),
)
AKAS = (Column("titleId", required=True), Column("ordering", "int", required=True), Column("title", required=True), Column("region"))
NAMES = (
    Column("nconst", required=True, pattern=r"^nm\d+$"),
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
    credits: pl.DataFrame
    bad: pl.DataFrame
    tally: Tally


def take(raw: pl.DataFrame, table: str, columns: tuple[Column, ...], unique: list[str], tally: Tally, bad: list[pl.DataFrame]) -> pl.DataFrame:
    """Typed rows of a table without repeats of `unique` (the first one stays); bad rows and counts go where the caller collects them."""
    good, worse = typed(raw, table, columns)
    bad.append(worse)
    kept = good.sort("row").unique(unique, keep="first", maintain_order=True)
    tally.add(table, **{"in": good.height + worse.height, "quarantined": worse.height, "duplicate": good.height - kept.height})
    return kept


def titles(raw: pl.DataFrame, tables: list[str], title_types: tuple[str, ...]) -> Part:
    """A catalogue of IMDb's own titles: those of `title_types`, item id = tconst."""
    tally, bad = Tally(), [pl.DataFrame(schema=BAD)]
    basics = take(raw, "title.basics", BASICS, ["tconst"], tally, bad)
    kept = basics.filter(pl.col("titleType").is_in(title_types))
    tally.add("title.basics", out=kept.height, filtered=basics.height - kept.height)
    base = kept.select(item_id="tconst", imdb_id="tconst")
    items, credits = enrich(raw, base, kept, tables, tally, bad)
    return Part(items, credits, pl.concat(bad), tally)


def enrich(
    raw: pl.DataFrame, base: pl.DataFrame, basics: pl.DataFrame, tables: list[str], tally: Tally, bad: list[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and credits of `base` (item_id, imdb_id): basics, ratings, crew, principals and akas joined on the tconst.

    Countries are the regions that list the title under its original name; IMDb has no country of production.
    """

    def ours(table: str, columns: tuple[Column, ...], unique: list[str]) -> pl.DataFrame:
        if table not in tables:
            return pl.DataFrame(schema={c.name: {"text": pl.String, "int": pl.Int64, "float": pl.Float64}[c.kind] for c in columns})
        rows = take(raw, table, columns, unique, tally, bad)
        kept = rows.join(base, left_on=columns[0].name, right_on="imdb_id", how="semi")
        tally.add(table, out=kept.height, filtered=rows.height - kept.height)
        return kept

    ratings = ours("title.ratings", RATINGS, ["tconst"]).select(imdb_id="tconst", rating="averageRating", votes="numVotes")
    crew = ours("title.crew", CREW, ["tconst"])
    principals = ours("title.principals", PRINCIPALS, ["tconst", "ordering"])
    akas = ours("title.akas", AKAS, ["titleId", "ordering"])
    facts = basics.select(
        imdb_id="tconst",
        item_type=pl.col("titleType").replace_strict(ITEM_TYPE, default="video"),
        title="primaryTitle",
        original_title="originalTitle",
        year="startYear",
        runtime_minutes="runtimeMinutes",
        genres=pl.col("genres").str.split(","),
    )
    countries = (
        akas.join(facts, left_on="titleId", right_on="imdb_id", suffix="_fact")
        .filter(pl.col("region").str.contains("^[A-WYZ][A-Z]$") & (pl.col("title").str.to_lowercase() == pl.col("original_title").str.to_lowercase()))
        .group_by(imdb_id="titleId")
        .agg(countries=pl.col("region").unique().sort())
    )
    items = base.join(facts, on="imdb_id", how="left").join(ratings, on="imdb_id", how="left").join(countries, on="imdb_id", how="left")
    items = items.with_columns(description=pl.lit(None, pl.String), genres=pl.col("genres").fill_null([]), countries=pl.col("countries").fill_null([]))
    lists = []
    for column, role in (("directors", "director"), ("writers", "writer")):
        rows = crew.select("tconst", person_id=pl.col(column).str.split(",")).explode("person_id", empty_as_null=True).filter(pl.col("person_id").is_not_null())
        lists.append(rows.with_columns(role=pl.lit(role), ordering=pl.int_range(1, pl.len() + 1).over("tconst")))
    cast = principals.select("tconst", person_id="nconst", role=pl.col("category").replace_strict(ROLE, default=None), ordering="ordering")
    lists.append(cast.filter(pl.col("role").is_not_null()))
    credits = pl.concat([rows.cast({"ordering": pl.Int64}) for rows in lists]).unique(["tconst", "person_id", "role"], keep="first", maintain_order=True)
    credits = credits.join(base, left_on="tconst", right_on="imdb_id").select(pl.col(name).cast(kind) for name, kind in CREDIT.items())
    return items.select(pl.col(name).cast(kind) for name, kind in ITEM.items()), credits


def people(raw: pl.DataFrame, needed: pl.Series) -> Part:
    """The names of the people that have credits."""
    tally, bad = Tally(), [pl.DataFrame(schema=BAD)]
    good, worse = typed(raw, "name.basics", NAMES)
    kept = good.filter(pl.col("nconst").is_in(needed.implode()))
    bad.append(worse)
    tally.add("name.basics", **{"in": good.height + worse.height, "out": kept.height, "filtered": good.height - kept.height, "quarantined": worse.height})
    rows = kept.select(
        person_id=pl.col("nconst"),
        name=pl.col("primaryName"),
        birth_year=pl.col("birthYear").cast(pl.Int32),
        professions=pl.col("primaryProfession").str.split(",").fill_null([]),
    )
    return Part(rows, pl.DataFrame(schema=CREDIT), pl.concat(bad), tally)
