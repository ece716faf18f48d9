"""Plot texts, genres and people of films, from four sets that publish them, for the items of MovieLens and IMDb.

| file (each may be .gz) | keyed by | gives |
| `movies_metadata*.csv`, Kaggle "The Movies Dataset" (TMDB; columns of Python literals) | IMDb id, else TMDB id | overview, genres, year |
| `tmdb_5000_movies.csv`, Kaggle "TMDB 5000" (columns of JSON) | TMDB id | overview, genres, year |
| `movies_extrainfos.dat`, MeLU (OMDb; `::`, missing = N/A) | MovieLens id | plot, genres, year, directors, writers, actors |
| `dbpedia_abstracts.json`, DBpedia | MovieLens id | abstract |

That order is the order of preference: an item takes each field from the first file that has it. TMDB stands first because its texts are of one kind
(a paragraph of plot); a DBpedia abstract tells of the making of a film as much as of its plot. MovieLens ids are the same in all versions.

The CSVs quote line ends inside fields, which `data.sources.rows` (one row a line) doesn't read; these files are small (45,000 rows the largest), so
they are read here, on the driver, and become raw rows of the same form, under the same rules and the same balance of rows.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from data.quality import BAD, Column, Tally, reject, typed
from data.sources.imdb import CREDIT, PERSON
from data.sources.rows import BROKEN, CONTROL, RAW_LIMIT
from ugt.schema import UGTError

PLOTS: dict[str, Any] = {
    "file": pl.String,
    "row": pl.Int64,
    "imdb_id": pl.String,
    "tmdb_id": pl.String,
    "movie_id": pl.String,  # of MovieLens
    "overview": pl.String,
    "genres": pl.List(pl.String),
    "directors": pl.List(pl.String),
    "writers": pl.List(pl.String),
    "actors": pl.List(pl.String),
    "year": pl.Int32,
}
ID, DATE = r"^\d{1,10}$", r"^\d{4}-\d\d-\d\d$"
METADATA = (
    Column("id", required=True, pattern=ID),
    Column("imdb_id", pattern=r"^tt\d+$"),
    Column("overview"),
    Column("genres"),
    Column("release_date", pattern=DATE),
)
TMDB_5000 = (Column("id", required=True, pattern=ID), Column("overview"), Column("genres"), Column("release_date", pattern=DATE))
EXTRA_INFOS = (
    Column("movie_id", required=True, pattern=ID),
    Column("title"),
    Column("year", pattern=r"^\d{4}"),
    Column("rated"),
    Column("released"),
    Column("genre"),
    Column("director"),
    Column("writer"),
    Column("actors"),
    Column("plot"),
    Column("poster"),
)
ABSTRACTS = (Column("movie_id", required=True, pattern=ID), Column("abstract"))
GENRE = {"Science Fiction": "Sci-Fi"}  # IMDb's name, so that one thing has one name
NO_GENRE = ("TV Movie", "Foreign")  # a format and an origin
NO_TEXT = r"(?i)^(no overview( found)?\.?|n/a)?$"
LONE = "[\ud800-\udfff]"  # what is left of bytes that are no UTF-8, and half characters of JSON
CELL_LIMIT = 1 << 20  # characters; the longest genuine one has a few thousand


@dataclass(frozen=True)
class Kind:
    """A file: its name, its columns, how it is cut into cells, and what its typed rows become."""

    name: str  # a pattern
    columns: tuple[Column, ...]
    cells: Callable[[Path, tuple[Column, ...]], Iterator[tuple[list[str | None], str | None]]]  # (cells, what is wrong)
    shape: Callable[[pl.DataFrame], pl.DataFrame]


@dataclass
class Found:
    """What the files hold: `rows` of PLOTS, the rows that could not be read, and the balance of each file."""

    rows: pl.DataFrame
    bad: pl.DataFrame
    tally: Tally


def files(folder: Path) -> dict[str, Path]:
    """The files that are there, by table, in the order of preference; none is needed. Raises UGTError if the folder isn't there."""
    if not folder.is_dir():
        raise UGTError(f"there is no folder {folder} with plot texts. Give one that holds any of: {', '.join(names())}.")
    present = sorted(p for p in folder.iterdir() if p.is_file())
    found = {table: next((p for p in present if re.fullmatch(kind.name, p.name)), None) for table, kind in KINDS.items()}
    return {table: path for table, path in found.items() if path is not None}


def is_plots(name: str) -> bool:
    """Whether a file of this name is one of these sets."""
    return any(re.fullmatch(kind.name, name) for kind in KINDS.values())


def names() -> list[str]:
    return ["movies_metadata.csv", "tmdb_5000_movies.csv", "movies_extrainfos.dat", "dbpedia_abstracts.json"]


def load(folder: Path) -> Found:
    """Every file of the folder. Raises UGTError naming the folder or file that is missing, cut off, or something else than its name says."""
    found = files(folder)
    if not found:
        raise UGTError(f"{folder} holds no plot texts: none of {', '.join(names())} (each may be .gz). Check etl.plots_dir.")
    tally, bad, rows = Tally(), [pl.DataFrame(schema=BAD)], [pl.DataFrame(schema=PLOTS)]
    for table, path in found.items():
        kind = KINDS[table]
        good, worse = typed(_raw(table, path, kind), table, kind.columns)
        wrong = pl.DataFrame(schema=BAD)
        if "genres" in good.columns:  # a JSON or Python list
            good = good.with_columns(names=pl.Series([_names(text) for text in good["genres"]], dtype=pl.List(pl.String)))
            good, wrong = reject(good, table, pl.col("names").is_null(), pl.lit("genres is no list of names"), kind.columns)
        kept = good.sort("row").unique(kind.columns[0].name, keep="first", maintain_order=True)
        shaped = _shaped(kept, table, kind)
        some = shaped.filter(pl.col("overview").is_not_null() | pl.any_horizontal(pl.col("genres", "directors", "writers", "actors").list.len() > 0))
        bad += [worse, wrong]
        quarantined = worse.height + wrong.height
        tally.add(table, **{"in": good.height + quarantined, "quarantined": quarantined, "duplicate": good.height - kept.height})
        tally.add(table, out=some.height, filtered=shaped.height - some.height)
        rows.append(some)
    return Found(pl.concat(rows), pl.concat(bad), tally)


def describe(items: pl.DataFrame, plots: pl.DataFrame) -> pl.DataFrame:
    """The items with what they lack of description, genres and year, each from the first file that has it. Rows, order and columns stay.

    items: item_id, imdb_id, description, genres, year, and tmdb_id where known; of MovieLens (item_id is the MovieLens id) or IMDb. plots: `Found.rows`.
    """
    met = _meet(items, plots)
    best = met.group_by("item_id", maintain_order=True).agg(
        pl.col("overview").drop_nulls().first(), pl.col("genres").filter(pl.col("genres").list.len() > 0).first(), pl.col("year").drop_nulls().first()
    )
    joined = items.join(best, on="item_id", how="left", suffix="_plot", maintain_order="left")
    return joined.with_columns(
        description=pl.coalesce("description", "overview"),
        genres=pl.when(pl.col("genres").list.len() > 0).then(pl.col("genres")).otherwise(pl.col("genres_plot").fill_null([])),
        year=pl.coalesce("year", pl.col("year_plot")).cast(items.schema["year"]),
    ).select(items.columns)


def name_credits(items: pl.DataFrame, plots: pl.DataFrame, credited: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(credits, people) by name alone, for the items that have no credit in `credited` (item_id): these files know no person ids.

    A person's id is `name:<name>`, so namesakes are one person. Orders count from 1 in the order of the file.
    """
    left = items.join(credited.select("item_id"), on="item_id", how="anti")
    met = _meet(left, plots)
    lists = []
    for column, role in (("directors", "director"), ("writers", "writer"), ("actors", "actor")):
        best = met.filter(pl.col(column).list.len() > 0).unique("item_id", keep="first", maintain_order=True)
        ranked = best.select("item_id", name=pl.col(column)).with_columns(ordering=pl.int_ranges(1, pl.col("name").list.len() + 1))
        lists.append(ranked.explode("name", "ordering").with_columns(role=pl.lit(role)))
    rows = pl.concat(lists).with_columns(person_id=pl.lit("name:") + pl.col("name")).unique(["item_id", "person_id", "role"], keep="first", maintain_order=True)
    people = rows.group_by("person_id", maintain_order=True).agg(name=pl.col("name").first(), professions=pl.col("role").unique().sort())
    people = people.with_columns(birth_year=pl.lit(None)).sort("person_id")
    return rows.select(pl.col(n).cast(k) for n, k in CREDIT.items()), people.select(pl.col(n).cast(k) for n, k in PERSON.items())


def _meet(items: pl.DataFrame, plots: pl.DataFrame) -> pl.DataFrame:
    """item_id with every row of plots about it, in the order of preference. A row is joined by the first key it has: IMDb, TMDB, MovieLens."""
    keys = items.select("item_id", "imdb_id", tmdb_id="tmdb_id" if "tmdb_id" in items.columns else pl.lit(None, pl.String), movie_id="item_id")
    first = {
        "imdb_id": pl.col("imdb_id").is_not_null(),
        "tmdb_id": pl.col("imdb_id").is_null() & pl.col("tmdb_id").is_not_null(),
        "movie_id": pl.col("imdb_id").is_null() & pl.col("tmdb_id").is_null(),
    }
    said = [c for c in PLOTS if c not in first]
    met = [keys.select("item_id", key).join(plots.filter(where).select(key, *said), on=key).drop(key) for key, where in first.items()]
    place = pl.col("file").replace_strict({table: i for i, table in enumerate(KINDS)}, return_dtype=pl.Int32)
    return pl.concat(met).with_columns(place=place).sort("item_id", "place", "row").drop("place", "file", "row")


# --- reading


def _raw(table: str, path: Path, kind: Kind) -> pl.DataFrame:
    """Rows of text as `data.quality.typed` takes them: table, row (1 = the first), reason, raw, c0, c1, ..."""
    rows: dict[str, list[Any]] = {"row": [], "reason": [], "raw": []} | {f"c{i}": [] for i in range(len(kind.columns))}
    number = 0
    try:
        for number, (cells, wrong) in enumerate(kind.cells(path, kind.columns), start=1):
            text = "\t".join("\\N" if c is None else c for c in cells)
            if wrong is None and re.search(LONE, text):
                wrong = "not utf-8"
            elif wrong is None and re.search(CONTROL, text):
                wrong = "control characters"
            elif wrong is None and len(text) > CELL_LIMIT:
                wrong = f"longer than {CELL_LIMIT:,} characters"
            rows["row"].append(number)
            rows["reason"].append(wrong)
            rows["raw"].append(None if wrong is None else text[:RAW_LIMIT].encode("utf-8", "replace").decode("utf-8"))
            for i in range(len(kind.columns)):
                rows[f"c{i}"].append(cells[i] if wrong is None else None)
    except BROKEN as error:
        raise UGTError(f"{path} ends in the middle of a record after row {number:,} ({error}): a cut-off download? Fetch it again.") from error
    schema = {"row": pl.Int64} | dict.fromkeys(("reason", "raw", *(f"c{i}" for i in range(len(kind.columns)))), pl.String)
    return pl.DataFrame(rows, schema=schema).with_columns(table=pl.lit(table))


def _text(path: Path) -> io.TextIOWrapper:
    """The file as text; bytes that are not UTF-8 come as surrogates, so that only their row is lost."""
    with open(path, "rb") as f:
        packed = f.read(2) == b"\x1f\x8b"
    opened: Callable[..., Any] = gzip.open if packed else open
    return io.TextIOWrapper(opened(path, "rb"), encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Lines:
    """The lines of a file, for `csv.reader`: lines can be given back."""

    def __init__(self, lines: Iterator[str]):
        self.lines, self.back, self.taken = lines, deque[str](), list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.taken.append(self.back.popleft() if self.back else next(self.lines))
        return self.taken[-1]

    def give_back(self) -> None:
        """All that was taken for the last record but its first line: a quote without an end costs its own line, not the rows it swallowed."""
        self.back.extendleft(reversed(self.taken[1:]))


def _csv_cells(path: Path, columns: tuple[Column, ...]) -> Iterator[tuple[list[str | None], str | None]]:
    with _text(path) as f:
        lines = _Lines(f)
        records = csv.reader(lines, strict=True)
        header = next(records, [])
        missing = [c.name for c in columns if c.name not in header]
        if missing:
            found = ", ".join(header)[:200] or "nothing (the file is empty)"
            raise UGTError(f"{path} has other columns: {', '.join(missing)} missing, found {found}. Check that the file is what its name says.")
        at = [header.index(c.name) for c in columns]
        while True:
            lines.taken.clear()
            try:
                cells = next(records, None)
                wrong = f"{len(cells)} columns instead of {len(header)}" if cells and len(cells) != len(header) else None
            except csv.Error as error:
                cells, wrong = [], f"not CSV: {error}"
            if cells is None:
                return
            if wrong:
                lines.give_back()
                yield [lines.taken[0]], wrong
            elif not cells:
                yield [""], "empty line"
            else:
                yield [cells[a] or None for a in at], None


def _colon_cells(path: Path, columns: tuple[Column, ...]) -> Iterator[tuple[list[str | None], str | None]]:
    with _text(path) as f:
        for line in f:
            cells = line.rstrip("\r\n").split("::")
            if len(cells) != len(columns):
                yield [*cells], f"{len(cells)} columns instead of {len(columns)}" if cells != [""] else "empty line"
            else:
                yield [None if cell in ("", "N/A") else cell for cell in cells], None


def _json_cells(path: Path, columns: tuple[Column, ...]) -> Iterator[tuple[list[str | None], str | None]]:
    with _text(path) as f:
        try:
            pairs = json.load(f, object_pairs_hook=list)  # pairs, so that a repeated key is seen
        except (json.JSONDecodeError, RecursionError) as error:
            raise UGTError(f"{path} is not valid JSON ({error}): a cut-off download? Fetch it again.") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise UGTError(f"{path} must hold one JSON object of MovieLens ids and texts. Check that the file is what its name says.")
    for key, value in pairs:
        if value is None or isinstance(value, str):
            yield [key, value or None], None
        else:
            yield [key, str(value)], "the text is no string"


def _names(text: str | None) -> list[str] | None:
    """The names in a list of objects, written as JSON or as a Python literal; None if it is neither."""
    try:
        try:
            value = json.loads(text or "[]")
        except json.JSONDecodeError:
            value = ast.literal_eval(text or "[]")
        return [str(entry["name"]) for entry in value]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        return None


# --- typed rows to rows of PLOTS


def _shaped(rows: pl.DataFrame, table: str, kind: Kind) -> pl.DataFrame:
    shaped = kind.shape(rows).with_columns(file=pl.lit(table))
    missing = [c for c in PLOTS if c not in shaped.columns]
    shaped = shaped.with_columns(pl.lit([] if isinstance(PLOTS[c], pl.List) else None, PLOTS[c]).alias(c) for c in missing)
    text = pl.col("overview").str.replace_all(r"\s+", " ").str.strip_chars()
    genres = pl.col("genres").list.eval(pl.element().filter(~pl.element().is_in(NO_GENRE)).replace(GENRE)).list.unique().list.sort()
    shaped = shaped.with_columns(overview=pl.when(~text.str.contains(NO_TEXT)).then(text), genres=genres)
    return shaped.select(pl.col(n).cast(k) for n, k in PLOTS.items())


def _tmdb(rows: pl.DataFrame) -> pl.DataFrame:
    imdb_id = "imdb_id" if "imdb_id" in rows.columns else pl.lit(None, pl.String)
    tmdb_id = pl.col("id").cast(pl.Int64).cast(pl.String)
    return rows.select("row", "overview", imdb_id=imdb_id, tmdb_id=tmdb_id, genres="names", year=pl.col("release_date").str.slice(0, 4).cast(pl.Int32))


def _omdb(rows: pl.DataFrame) -> pl.DataFrame:
    def people(column: str) -> pl.Expr:
        # "John Lasseter (original story by), Pete Docter (screenplay)"
        text = pl.col(column).fill_null("").str.replace_all(r"\s*\([^)]*\)", "")
        return text.str.split(",").list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != "")).list.unique(maintain_order=True)

    genres = pl.col("genre").fill_null("").str.split(",").list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    lists = {"directors": people("director"), "writers": people("writer"), "actors": people("actors")}
    return rows.select("row", "movie_id", overview="plot", genres=genres, year=pl.col("year").str.slice(0, 4).cast(pl.Int32), **lists)


def _dbpedia(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("row", "movie_id", overview="abstract")


KINDS = {
    "movies_metadata": Kind(r"movies_metadata.*\.csv(\.gz)?", METADATA, _csv_cells, _tmdb),
    "tmdb_5000_movies": Kind(r"tmdb_5000_movies\.csv(\.gz)?", TMDB_5000, _csv_cells, _tmdb),
    "movies_extrainfos": Kind(r"movies_extrainfos\.dat(\.gz)?", EXTRA_INFOS, _colon_cells, _omdb),
    "dbpedia_abstracts": Kind(r"dbpedia_abstracts\.json(\.gz)?", ABSTRACTS, _json_cells, _dbpedia),
}
