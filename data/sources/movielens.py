"""MovieLens: "latest" CSVs (in a folder or the zip GroupLens gives), or the 1M `::` files in Latin-1; IMDb joined through links.csv.

The catalogue is movies.csv. Where IMDb's files cover a movie they give its title, type, year, runtime, rating, votes and people, and
the genres of both are united; elsewhere MovieLens' own title, year and genres stand. tags.csv is not read: a tag is written by a
user after the rating it would help to predict.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl

from data.quality import BAD, Column, Tally, checked, reject
from data.sources.imdb import ITEM, Part, identity, take
from data.sources.rows import SourceFile, whole
from ugt.schema import UGTError

MOVIES = (Column("movieId", required=True, pattern=r"^\d+$"), Column("title", required=True), Column("genres"))
LINKS = (Column("movieId", required=True, pattern=r"^\d+$"), Column("imdbId", pattern=r"^\d{1,10}$"), Column("tmdbId", pattern=r"^\d{1,10}$"))
RATINGS = (
    Column("userId", required=True),
    Column("movieId", required=True),
    Column("rating", "float", required=True, low=0, high=5),
    Column("timestamp", "int", required=True, low=0, high=2**40),
)
USERS = (Column("userId", required=True), Column("gender", pattern="^[FM]$"), Column("age", "int", low=0, high=120), Column("occupation", pattern=r"^\d+$"))
GENRE = {"Children": "Family", "Children's": "Family"}  # IMDb's name, so that the union of genres has one name for one thing
NO_GENRE = "(no genres listed)"
ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Der|Die|Das|El|Il|Lo|Los|Las|Det|Den|En"
OCCUPATIONS = [
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
]  # the README of MovieLens 1M


PLAIN = ("movies.csv", "links.csv", "ratings.csv", "movies.dat", "users.dat", "ratings.dat")


def files(folder: Path, links: Path | None = None) -> dict[str, SourceFile]:
    """movies, ratings and, where there are any, links and users; of the folder itself, else of the one MovieLens zip in it.

    links: a links.csv(.gz) of another version, for one that has none (1M; MovieLens ids are the same in all versions). One in the folder is found without it.
    Raises UGTError naming what is missing.
    """
    if not folder.is_dir():
        raise UGTError(f"there is no folder {folder}. Give the folder with MovieLens' ratings.csv and movies.csv, or with its zip (--data-dir).")
    if links is not None and not links.is_file():
        raise UGTError(f"there is no file {links} with the links of MovieLens ids to IMDb's. Give the path of a links.csv or links.csv.gz.")
    places: dict[str, tuple[Path, str | None]] = {}
    for path in sorted(folder.iterdir()):
        bare = path.name.removesuffix(".gz")
        bare = "ratings.dat" if bare.startswith("ratings") and bare.endswith(".dat") else bare
        if bare in PLAIN and path.is_file():
            places.setdefault(bare, (path, None))
    if not any({f"movies.{kind}", f"ratings.{kind}"} <= places.keys() for kind in ("csv", "dat")):
        places |= _zipped(folder)
    if links is not None:
        places["links.csv"] = (links, None)
    if {"movies.csv", "ratings.csv"} <= places.keys():
        return {name.removesuffix(".csv"): csv_file(name.removesuffix(".csv"), *place) for name, place in places.items() if name.endswith(".csv")}
    if {"movies.dat", "ratings.dat"} <= places.keys():
        found = {table: dat_file(table, *places[f"{table}.dat"]) for table in ("movies", "ratings", "users") if f"{table}.dat" in places}
        return found | ({"links": csv_file("links", *places["links.csv"])} if "links.csv" in places else {})
    missing = [f"{t}.csv" for t in ("movies", "ratings") if f"{t}.csv" not in places]
    raise UGTError(f"{folder} holds no {' and no '.join(missing)} (nor a MovieLens zip, nor ratings.dat with movies.dat). Check --data-dir.")


def _zipped(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """The files of MovieLens in the only zip that holds ratings."""
    found = {}
    for path in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                members: dict[str, tuple[Path, str | None]] = {Path(name).name: (path, name) for name in archive.namelist() if Path(name).name in PLAIN}
        except zipfile.BadZipFile as error:
            raise UGTError(f"{path} is not a whole zip file ({error}). Fetch it again.") from error
        if {"ratings.csv", "ratings.dat"} & members.keys():
            found[path.name] = members
    if len(found) > 1:
        raise UGTError(f"{folder} holds several MovieLens zips: {', '.join(found)}. Keep one, or give each a folder of its own (--data-dir).")
    return next(iter(found.values()), {})


def csv_file(table: str, path: Path, member: str | None = None) -> SourceFile:
    """A file of the CSV versions: movies, links or ratings."""
    columns = {"movies": MOVIES, "links": LINKS, "ratings": RATINGS}[table]
    return SourceFile(table, str(path), tuple(c.name for c in columns), "userId" if table == "ratings" else "movieId", "csv", member)


def dat_file(table: str, path: Path, member: str | None = None) -> SourceFile:
    """A file of 1M: movies, ratings or users, `::` and Latin-1."""
    columns = tuple(c.name for c in {"movies": MOVIES, "ratings": RATINGS, "users": USERS}[table]) + (("zip",) if table == "users" else ())
    return SourceFile(table, str(path), columns, columns[0], "colons", member, header=False, encoding="latin-1")


IDS = {"item_id": pl.String, "imdb_id": pl.String, "tmdb_id": pl.String}


def ids(links: SourceFile) -> pl.DataFrame:
    """(item_id, imdb_id, tmdb_id) of the readable rows of links.csv, the first of a repeated movie; an id that isn't there is null."""
    rows = _rows(links, LINKS, Tally(), [])
    tt = pl.lit("tt") + pl.col("imdbId").cast(pl.Int64).cast(pl.String).str.zfill(7)
    return rows.select(item_id="movieId", imdb_id=tt, tmdb_id=pl.col("tmdbId").cast(pl.Int64).cast(pl.String))


def catalogue(found: dict[str, SourceFile]) -> Part:
    """The movies, one row per id in order of the id: `item_id, imdb` (a number, null where no link says it), `own_title, own_year, own_genres`.

    Raises UGTError if a file can't be read.
    """
    tally, bad = Tally(), [pl.DataFrame(schema=BAD)]
    movies = _rows(found["movies"], MOVIES, tally, bad)
    tally.add("movies", out=movies.height)
    links = pl.DataFrame(schema={"movieId": pl.String, "imdb": pl.Int32})
    if "links" in found:
        rows = _rows(found["links"], LINKS, tally, bad)
        known = rows.join(movies, on="movieId", how="semi")
        tally.add("links", out=known.height, filtered=rows.height - known.height)
        links = known.select("movieId", imdb=pl.col("imdbId").cast(pl.Int32))
    year = pl.col("title").str.extract(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$", 1).cast(pl.Int32)
    bare = pl.col("title").str.replace(r"\s*\(\d{4}(?:[-–]\d{0,4})?\)\s*$", "").str.strip_chars()
    turned = bare.str.replace(rf"^(.*?), ({ARTICLES})( \(.*\))?$", "$2 $1$3").str.replace("^L' ", "L'")
    genres = pl.col("genres").fill_null("").str.split("|").list.eval(pl.element().filter((pl.element() != "") & (pl.element() != NO_GENRE)).replace(GENRE))
    base = movies.join(links, on="movieId", how="left").select(item_id="movieId", imdb="imdb", own_title=turned, own_year=year, own_genres=genres)
    return Part(base.sort("item_id"), pl.concat(bad), tally)


def _rows(source: SourceFile, columns: tuple[Column, ...], tally: Tally, bad: list[pl.DataFrame]) -> pl.DataFrame:
    """Sound rows of a list keyed by movieId, the first of each id."""
    good, unread = whole(source)
    good, worse = checked(good, source.table, columns)
    bad += [unread.select(table=pl.lit(source.table), row="row", reason="reason", raw="raw"), worse]
    kept = good.sort("row").unique("movieId", keep="first", maintain_order=True)
    quarantined = unread.height + worse.height
    tally.add(source.table, **{"in": good.height + quarantined, "quarantined": quarantined, "duplicate": good.height - kept.height})
    return kept


def items(base: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """ITEM rows of movies (`catalogue`, with a `slot`), by what IMDb knows of them (`imdb.join`) and else by what they say of themselves."""
    rows = base.with_columns(imdb_id=identity("tt", "imdb")).join(titles.drop("imdb"), on="slot", how="left", maintain_order="left")
    return rows.with_columns(
        item_type=pl.col("item_type").fill_null("movie"),
        title=pl.coalesce("title", pl.when(pl.col("own_title") == "").then(pl.lit("Untitled")).otherwise(pl.col("own_title"))),
        year=pl.coalesce("year", "own_year"),
        genres=pl.concat_list(pl.col("genres").fill_null([]), "own_genres").list.unique().list.sort(),
        countries=pl.col("countries").fill_null([]),
        description=pl.lit(None, pl.String),
    ).select(pl.col(name).cast(kind) for name, kind in ITEM.items())


def events(raw: pl.DataFrame, item_ids: pl.DataFrame, has_users: bool) -> tuple[Part, pl.DataFrame]:
    """(Part whose `items` are EVENTS rows without item_index, users): ratings of known movies, a repeated row once.

    item_ids: one column `item_id`, the catalogue.
    """
    tally, bad = Tally(), [pl.DataFrame(schema=BAD)]
    rows = take(raw, "ratings", RATINGS, ["userId", "movieId", "rating", "timestamp"], tally, bad)
    known = rows.join(item_ids, left_on="movieId", right_on="item_id", how="left", maintain_order="left").with_columns(lost=pl.col("item_index").is_null())
    kept, unknown = reject(known, "ratings", pl.col("lost"), pl.concat_str([pl.lit("unknown movie "), pl.col("movieId")]), RATINGS)
    bad.append(unknown)
    tally.add("ratings", out=kept.height, quarantined=unknown.height)
    found = kept.select(
        event_id=pl.lit("rating-") + pl.col("row").cast(pl.String),
        user_id="userId",
        item_id="movieId",
        item_index="item_index",
        action=pl.lit("rate"),
        value=pl.col("rating"),
        timestamp="timestamp",
        order="row",
    )
    users = pl.DataFrame(schema={"user_id": pl.String, "gender": pl.String, "age": pl.Int64, "occupation": pl.String})
    if has_users:
        profiles = take(raw, "users", USERS, ["userId"], tally, bad)
        active = profiles.join(kept, on="userId", how="semi")
        tally.add("users", out=active.height, filtered=profiles.height - active.height)
        names = {str(i): name for i, name in enumerate(OCCUPATIONS)}
        users = active.select(user_id="userId", gender="gender", age="age", occupation=pl.col("occupation").replace(names))
    return Part(found, pl.concat(bad), tally), users
