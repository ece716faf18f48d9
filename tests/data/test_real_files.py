"""Real public files, each read whole and counted against what its publisher says. Needs UGT_DATA_DIR; the files may not be passed on with the project.

What is a source of the product is read by its loader; the other files (folds without times, snapshots of IMDb in other forms) by the reader under
the loaders, `data.sources.rows`. The loaders' own work on them is in test_real_data.py.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.quality import Column, typed
from data.sources import amazon, imdb, movielens, plots
from data.sources.rows import FATAL, SourceFile, read

ROOT = Path(os.environ.get("UGT_DATA_DIR", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("UGT_DATA_DIR") or not ROOT.is_dir(),
    reason="UGT_DATA_DIR does not name a folder with real data sets (movielens/, imdb/, tmdb/, amazon-2014/)",
)
HEADS = "imdb/tsv-head-2025-08"
EPISODES = (Column("tconst", required=True), Column("parentTconst", required=True), Column("seasonNumber", "int"), Column("episodeNumber", "int"))
FOLDS = ("userId", "movieId", "rating")


def raw(source: SourceFile) -> pl.DataFrame:
    """All raw rows of a file, the unreadable ones too."""
    rows = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in read(source, 1)])
    assert rows.filter(pl.col("table") == FATAL).height == 0
    return rows


def cells(path: str, dialect: Any, *columns: str, header: bool = True) -> pl.DataFrame:
    """The cells of a file that is no source of the product, as text; every row must be readable."""
    rows = raw(SourceFile("t", str(ROOT / path), columns, columns[0], dialect, header=header))
    assert rows["reason"].null_count() == rows.height
    return rows.select(pl.col(f"c{i}").alias(c) for i, c in enumerate(columns))


@cache
def head(table: str) -> pl.DataFrame:
    """A head of IMDb's TSVs, typed; no row of it may be refused."""
    columns = EPISODES if table == "title.episode" else imdb.TABLES[table]
    source = SourceFile(table, str(ROOT / HEADS / f"{table}.tsv.gz"), tuple(c.name for c in columns), columns[0].name, "tsv")
    good, bad = typed(raw(source), table, columns)
    assert bad.height == 0
    return good


@cache
def movies(version: str) -> pl.DataFrame:
    """item_id, imdb_id, tmdb_id and the number of ratings of the movies of ml-1m (with the links of 25M) or ml-latest-small."""
    folder = ROOT / "movielens" / version
    found = movielens.files(folder, ROOT / "movielens/ml-25m/links.csv.gz" if version == "ml-1m" else None)
    base = movielens.catalogue(found).items.with_columns(slot=pl.int_range(pl.len(), dtype=pl.Int32))
    items = movielens.items(base, pl.DataFrame(schema=imdb.TITLE))
    tmdb = movielens.ids(found["links"]).select("item_id", "tmdb_id")
    rated = folds() if version == "ml-1m" else raw(found["ratings"]).select(movieId="c1")
    counts = rated.group_by(item_id="movieId").agg(ratings=pl.len())
    return items.join(tmdb, on="item_id", how="left").join(counts, on="item_id", how="left").with_columns(pl.col("ratings").fill_null(0))


@cache
def folds() -> pl.DataFrame:
    names = [f"movielens/ml-1m/ratings-no-timestamps/fold{i}.csv.gz" for i in range(1, 6)]
    return pl.concat([cells(name, "csv", *FOLDS, header=False) for name in names])


@cache
def texts() -> pl.DataFrame:
    return pl.concat([plots.load(ROOT / "tmdb").rows, plots.load(ROOT / "movielens/ml-1m").rows])


def day(seconds: Any) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


# --- MovieLens


def test_ml_1m_as_published() -> None:
    found = movielens.files(ROOT / "movielens/ml-1m")
    part = movielens.catalogue(found)
    assert part.tally.figures()["movies"]["rows_out"] == 3_883
    assert part.items["own_genres"].explode().n_unique() == 18
    assert part.items.filter(~pl.col("own_title").str.contains(r"^[\x00-\x7F]*$")).height == 50  # Latin-1
    users, bad = typed(raw(found["users"]), "users", movielens.USERS)
    assert (users.height, bad.height) == (6_040, 0)


def test_the_part_of_ml_1m_that_has_times() -> None:
    ratings, bad = typed(raw(movielens.files(ROOT / "movielens/ml-1m")["ratings"]), "ratings", movielens.RATINGS)
    assert (ratings.height, bad.height) == (487_650, 0)
    assert (ratings["userId"].n_unique(), ratings["movieId"].n_unique()) == (2_999, 3_615)
    assert (day(ratings["timestamp"].min()), day(ratings["timestamp"].max())) == ("2000-10-04", "2003-02-27")
    assert ratings.select("userId", "movieId").is_duplicated().sum() == 0
    agreeing = ratings.with_columns(pl.col("rating").cast(pl.Int64).cast(pl.String)).join(folds(), on=list(FOLDS), how="semi")
    assert agreeing.height == ratings.height


def test_the_folds_of_ml_1m_together_are_all_ratings() -> None:
    rows = folds()
    assert (rows.height, rows["userId"].n_unique(), rows["movieId"].n_unique()) == (1_000_209, 6_040, 3_706)
    assert rows.is_duplicated().sum() == 0
    assert rows["rating"].value_counts().sort("rating")["count"].to_list() == [56_174, 107_557, 261_197, 348_971, 226_310]


def test_the_sequences_and_last_interactions_of_ml_1m() -> None:
    rows = cells("movielens/ml-1m/sequences.tsv.gz", "tsv", "UserID", "MovieID", "Rating", "Position")
    lengths = rows.group_by("UserID").len()["len"]
    assert (rows.height, rows["UserID"].n_unique(), rows["MovieID"].n_unique()) == (999_611, 6_040, 3_416)
    assert (lengths.min(), lengths.max(), round(lengths.mean(), 1)) == (18, 2_277, 165.5)  # type: ignore[arg-type]
    last = cells("movielens/ml-1m/last-interactions.tsv.gz", "tsv", "UserID", "MovieID", "Rating", "Timestamp")
    times = last["Timestamp"].cast(pl.Int64)
    assert (last.height, day(times.min()), day(times.max())) == (6_040, "2000-04-26", "2003-02-28")
    assert last.join(folds(), left_on=["UserID", "MovieID", "Rating"], right_on=list(FOLDS), how="semi").height == 6_040


def test_latest_small_as_published() -> None:
    found = movielens.files(ROOT / "movielens/ml-latest-small")
    ratings, bad = typed(raw(found["ratings"]), "ratings", movielens.RATINGS)
    assert (ratings.height, ratings["userId"].n_unique(), ratings["movieId"].n_unique(), bad.height) == (100_836, 610, 9_724, 0)
    assert (day(ratings["timestamp"].min()), day(ratings["timestamp"].max())) == ("1996-03-29", "2018-09-24")
    links = movielens.ids(found["links"])
    assert (raw(found["movies"]).height, links.height, links["tmdb_id"].null_count()) == (9_742, 9_742, 8)
    tags = SourceFile("tags", found["ratings"].path, ("userId", "movieId", "tag", "timestamp"), "userId", "csv", "ml-latest-small/tags.csv")
    assert raw(tags).height == 3_683


def test_links_and_titles_of_25m() -> None:
    links = movielens.ids(movielens.csv_file("links", ROOT / "movielens/ml-25m/links.csv.gz"))
    assert (links.height, links["tmdb_id"].null_count(), links["imdb_id"].null_count()) == (62_423, 107, 0)
    assert links.filter(pl.col("imdb_id").str.len_chars() == 10).height == 131  # eight digits
    # the source of this copy took the quotes away: nine titles keep a comma, and their lines are no rows of three columns. They go to quarantine
    part = movielens.catalogue({"movies": movielens.csv_file("movies", ROOT / "movielens/ml-25m/movies.titles-altered.csv.gz")})
    assert part.tally.figures()["movies"] == {"rows_in": 62_423, "rows_out": 62_414, "rows_filtered": 0, "rows_duplicate": 0, "rows_quarantined": 9}
    assert part.bad["reason"].str.contains("columns instead of 3").all()
    ids = set(part.items["item_id"]) | set(part.bad["raw"].str.extract(r"^(\d+)", 1))
    assert ids == set(links["item_id"])


# --- IMDb


@pytest.mark.parametrize(
    ("table", "first", "last"),
    [
        ("title.basics", "tt0000001", "tt0050928"),
        ("title.crew", "tt0000001", "tt0050928"),
        ("title.ratings", "tt0000001", "tt0071050"),
        ("title.principals", "tt0000001", "tt0006684"),
        ("title.akas", "tt0000001", "tt0013823"),
        ("title.episode", "tt0031458", "tt0539062"),
        ("name.basics", "nm0000001", "nm0052414"),
    ],
)
def test_the_heads_of_imdb_are_read_to_the_last_line(table: str, first: str, last: str) -> None:
    rows = head(table).sort("row")
    key = rows.columns[1]
    assert (rows.height, rows[key][0], rows[key][-1]) == (50_001, first, last)


def test_what_the_heads_of_imdb_hold() -> None:
    basics = head("title.basics")
    types = dict(basics["titleType"].value_counts().rows())
    assert (types["movie"], types["short"], types["tvSeries"], len(basics) - types["movie"] - types["short"] - types["tvSeries"]) == (36_650, 12_417, 841, 93)
    assert [basics[c].null_count() for c in ("startYear", "runtimeMinutes", "genres")] == [1, 9_287, 3_123]
    assert set(head("title.crew")["tconst"]) == set(basics["tconst"])
    assert head("title.ratings").join(basics, on="tconst", how="semi").height == 32_238
    assert head("title.principals")["tconst"].n_unique() == 6_508
    assert head("title.akas")["titleId"].n_unique() == 13_607
    assert head("title.episode").join(basics, on="tconst", how="semi").height == 40
    names = head("name.basics")["nconst"].implode()
    directors = head("title.crew")["directors"].drop_nulls().str.split(",").explode()
    assert [round(people.is_in(names).mean(), 2) for people in (head("title.principals")["nconst"], directors)] == [0.11, 0.11]  # type: ignore[arg-type]


def test_all_ratings_of_2017() -> None:
    rows = imdb_2017()
    assert rows.height == 755_460
    assert (rows["averageRating"].min(), rows["averageRating"].max(), rows["numVotes"].min(), rows["numVotes"].max()) == (1.0, 10.0, 5, 1_842_621)


@cache
def imdb_2017() -> pl.DataFrame:
    path = ROOT / "imdb/full-2017-08/title.ratings.tsv.gz"
    good, bad = typed(raw(SourceFile("title.ratings", str(path), tuple(c.name for c in imdb.RATINGS), "tconst", "tsv")), "title.ratings", imdb.RATINGS)
    assert (bad.height, good["tconst"].n_unique()) == (0, good.height)
    return good


def test_genres_of_2021() -> None:
    rows = cells("imdb/movies-2021-12/title.genres.tsv.gz", "tsv", "tconst", "genre")
    assert (rows.height, rows["tconst"].n_unique(), rows["genre"].n_unique()) == (802_603, 524_864, 28)
    theirs = rows.group_by("tconst").agg(genres=pl.col("genre").sort().str.join(","))
    ours = head("title.basics").with_columns(genres=pl.col("genres").str.split(",").list.sort().list.join(","))
    common = ours.join(theirs, on="tconst")
    assert (common.height, common.filter(pl.col("genres") == pl.col("genres_right")).height) == (33_130, 26_739)


def test_movies_of_2010_to_2019() -> None:
    folder = "imdb/movies-2010-2019"
    basics = cells(f"{folder}/imdb.title.basics.csv.gz", "csv", "tconst", "primary_title", "original_title", "start_year", "runtime_minutes", "genres")
    assert (basics.height, basics["tconst"].n_unique()) == (146_144, 146_144)
    assert [basics[c].null_count() for c in ("original_title", "runtime_minutes", "genres")] == [21, 31_739, 5_408]
    assert basics["start_year"].cast(pl.Int64).max() == 2_115
    crew = cells(f"{folder}/imdb.title.crew.csv.gz", "csv", "tconst", "directors", "writers")
    assert set(crew["tconst"]) == set(basics["tconst"])
    assert crew.height == 146_144
    assert cells(f"{folder}/imdb.title.ratings.csv.gz", "csv", "tconst", "averagerating", "numvotes").height == 73_856
    tmdb = cells(f"{folder}/tmdb.movies.csv.gz", "csv", "id", "title", "vote_average")
    assert (tmdb.height, tmdb["id"].n_unique()) == (26_517, 25_497)


# --- plots, and what joins


def test_plot_texts_are_read_whole() -> None:
    tmdb, other = plots.load(ROOT / "tmdb"), plots.load(ROOT / "movielens/ml-1m")
    tables = tmdb.tally.figures() | other.tally.figures()
    assert {t: n["rows_in"] for t, n in tables.items()} == {
        "movies_metadata": 5_000,
        "tmdb_5000_movies": 4_803,
        "movies_extrainfos": 3_881,
        "dbpedia_abstracts": 3_301,
    }
    assert (tmdb.bad.height, other.bad.height, tables["movies_metadata"]["rows_duplicate"]) == (0, 0, 1)
    overviews = dict(texts().group_by("file").agg(pl.col("overview").count()).rows())
    # of the 4,979 and 4,800 cells that aren't empty: seven say "No overview found.", three are blank, one is of the film that is there twice
    assert overviews == {"movies_metadata": 4_969, "tmdb_5000_movies": 4_799, "movies_extrainfos": 3_845, "dbpedia_abstracts": 3_301}
    length = dict(texts().group_by("file").agg(pl.col("overview").str.len_chars().mean().round(0)).rows())
    assert (length["movies_metadata"], length["movies_extrainfos"], length["dbpedia_abstracts"]) == (316, 525, 736)


@pytest.mark.parametrize(("version", "count", "tmdb"), [("ml-1m", 3_883, 3_831), ("ml-latest-small", 9_742, 9_734)])
def test_movielens_joins_imdb_and_tmdb(version: str, count: int, tmdb: int) -> None:
    table = movies(version)
    assert (table.height, table["tmdb_id"].count()) == (count, tmdb)
    genres = cells("imdb/movies-2021-12/title.genres.tsv.gz", "tsv", "tconst", "genre").select("tconst")
    snapshot = cells("imdb/movies-2010-2019/imdb.title.basics.csv.gz", "csv", "tconst")
    joined = {
        "tt": share(table, pl.col("imdb_id").is_not_null()),
        "ratings of 2017": share(table, pl.col("imdb_id").is_in(imdb_2017()["tconst"].implode())),
        "genres of 2021": share(table, pl.col("imdb_id").is_in(genres["tconst"].unique().implode())),
        "head of title.basics": share(table, pl.col("imdb_id").is_in(head("title.basics")["tconst"].implode())),
        "2010-2019": share(table, pl.col("imdb_id").is_in(snapshot["tconst"].implode())),
    }
    assert (
        joined
        == {
            "ml-1m": {
                "tt": (3_849, 99.71),
                "ratings of 2017": (3_841, 99.70),
                "genres of 2021": (3_785, 99.16),
                "head of title.basics": (357, 6.10),
                "2010-2019": (0, 0.0),
            },
            "ml-latest-small": {
                "tt": (9_742, 100.0),
                "ratings of 2017": (9_634, 99.68),
                "genres of 2021": (9_070, 98.55),
                "head of title.basics": (584, 3.25),
                "2010-2019": (1_770, 9.12),
            },
        }[version]
    )


def share(table: pl.DataFrame, where: pl.Expr) -> tuple[int, float]:
    """Movies where it holds, and their share of the ratings in percent."""
    met = table.filter(where.fill_null(False))
    return met.height, round(100 * met["ratings"].sum() / table["ratings"].sum(), 2)


@pytest.mark.parametrize("version", ["ml-1m", "ml-latest-small"])
def test_movielens_joins_plot_texts(version: str) -> None:
    table = movies(version)
    told = {name: share(plots.describe(table, texts().filter(pl.col("file") == name)), pl.col("description").is_not_null()) for name in plots.KINDS}
    told["any"] = share(plots.describe(table, texts()), pl.col("description").is_not_null())
    assert told["tmdb_5000_movies"] == {"ml-1m": (1_122, 59.46), "ml-latest-small": (3_537, 69.61)}[version]
    # a film of latest-small ("Let It Snow") has a blank for a text, and nothing else: it is counted in the 5,899 of those who passed the files on
    assert told["any"] == {"ml-1m": (3_872, 100.0), "ml-latest-small": (5_899 - 1, 90.92)}[version]
    if version == "ml-1m":
        assert (told["movies_extrainfos"], told["dbpedia_abstracts"]) == ((3_845, 99.94), (3_301, 94.88))
    # counted with the cells that say "No overview found.", which are no text here
    metadata = plots._raw("m", ROOT / "tmdb/movies_metadata.first5000.csv.gz", plots.KINDS["movies_metadata"]).select(imdb_id="c1", overview="c2")
    known = table.join(metadata.filter(pl.col("overview").is_not_null()).unique("imdb_id"), on="imdb_id")
    empty = known.filter(pl.col("overview").str.strip_chars().str.contains(plots.NO_TEXT)).height
    assert known.height == {"ml-1m": 3_788, "ml-latest-small": 3_701}[version]
    assert told["movies_metadata"][0] == known.height - empty


# --- Amazon


@pytest.mark.parametrize(
    ("name", "users", "items", "events", "longest", "dated", "whole", "days"),
    [
        ("Beauty", 22_363, 12_101, 198_502, (5, 204, 8.88), 198_215, 22_201, ("2002-06-12", "2014-07-23")),
        ("Sports_and_Outdoors", 35_598, 18_357, 296_337, (5, 296, 8.32), 293_400, 34_073, ("2002-03-07", "2014-07-23")),
        ("Toys_and_Games", 19_412, 11_924, 167_597, (5, 550, 8.63), 165_247, 18_341, ("2000-07-28", "2014-07-23")),
    ],
)
def test_the_amazon_sets(
    name: str, users: int, items: int, events: int, longest: tuple[int, int, float], dated: int, whole: int, days: tuple[str, str]
) -> None:
    folder = ROOT / "amazon-2014" / name
    found = amazon.files(folder)
    lines, stamps = raw(found["sequences"]), raw(found["timestamps"])
    assert (lines["c0"].n_unique(), lines["c1"].n_unique(), lines.height, lines["reason"].count()) == (users, items, events, 0)
    lengths = lines.group_by("c0").len()["len"]
    assert (lengths.min(), lengths.max(), round(lengths.mean(), 2)) == longest  # type: ignore[arg-type]
    known = lines.select(item_id="c1").unique().sort("item_id").with_row_index("item_index")
    part = amazon.dated_events(pl.concat([lines, stamps]), known)
    assert part.items.height == events
    times, bad = typed(stamps, "timestamps", amazon.DATES)
    there = times.filter(pl.col("timestamp").is_not_null())
    assert (part.tally.figures()["timestamps"]["rows_out"], there.height, bad.height) == (dated, dated, 0)
    assert (day(there["timestamp"].min()), day(there["timestamp"].max())) == days
    assert times.group_by("user").agg(pl.col("timestamp").null_count()).filter(pl.col("timestamp") == 0).height == whole
    about = amazon.texts(folder)
    assert set(lines["c1"]) <= set(about["item_id"])
    assert about.filter(pl.col("title").str.starts_with("item ")).height == 0  # every item has at least words
