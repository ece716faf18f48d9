"""Plot texts from four sets: read whole, balanced, and given to the right items in the stated order."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources import plots
from data.sources.plots import describe, load, name_credits
from ugt.schema import UGTError

GENRES = "[{'id': 18, 'name': 'Drama'}, {'id': 878, 'name': 'Science Fiction'}, {'id': 1, 'name': \"Children's\"}, {'id': 2, 'name': 'TV Movie'}]"
METADATA = [
    {"id": "862", "imdb_id": "tt0114709", "overview": "Toys,\nthey live. ", "genres": GENRES, "release_date": "1995-10-30"},
    {"id": "11", "imdb_id": "", "overview": "Far away.", "genres": "[]", "release_date": ""},
    {"id": "12", "imdb_id": "tt0000012", "overview": "No overview found.", "genres": "[{'name': 'Music'}]", "release_date": "1990-01-01"},
    {"id": "862", "imdb_id": "tt0114709", "overview": "again", "genres": "[]", "release_date": ""},
    {"id": "13", "imdb_id": "tt0000013", "overview": " ", "genres": "[]", "release_date": "1990-01-01"},
    {"id": "1997-08-20", "imdb_id": "0", "overview": "shifted", "genres": "[]", "release_date": "1"},
    {"id": "14", "imdb_id": "tt0000014", "overview": "x", "genres": "[{'name': 'Drama'", "release_date": ""},
]
TMDB = [
    {"id": "862", "overview": "Second text.", "genres": '[{"id": 35, "name": "Comedy"}]', "release_date": "1995-11-22"},
    {"id": "12", "overview": "Twelve.", "genres": "[]", "release_date": "1991-01-01"},
]
OMDB = [
    [
        "1",
        "Toy Story",
        "1995",
        "G",
        "x",
        "Animation, Comedy",
        "John Lasseter",
        "A B (story by), A B (screenplay), C D",
        "Tom Hanks, Tim Allen",
        "OMDb text",
        "u",
    ],
    ["2", "Bare", "1980–1981", "N/A", "N/A", "N/A", "N/A", "N/A", "N/A", "N/A", "N/A"],
    ["3", "Old", "1970", "N/A", "N/A", "Film-Noir", "E F", "N/A", "G H", "Third: the plot.", "N/A"],
]
ABSTRACTS = {"1": "An abstract.", "3": "Old is a film.", "4": "Only here.", "5": ""}


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") if path.suffix == ".gz" else open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, ["adult", *rows[0]])
        writer.writeheader()
        writer.writerows({"adult": "False"} | row for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "movies_metadata.csv", METADATA)
    write_csv(tmp_path / "tmdb_5000_movies.csv.gz", TMDB)
    (tmp_path / "movies_extrainfos.dat").write_text("".join("::".join(row) + "\r\n" for row in OMDB), encoding="utf-8", newline="")
    (tmp_path / "dbpedia_abstracts.json.gz").write_bytes(gzip.compress(json.dumps(ABSTRACTS).encode()))
    return tmp_path


def items(*rows: dict[str, Any]) -> pl.DataFrame:
    schema = {"item_id": pl.String, "imdb_id": pl.String, "tmdb_id": pl.String, "description": pl.String, "genres": pl.List(pl.String), "year": pl.Int32}
    return pl.DataFrame([dict.fromkeys(schema) | {"genres": []} | row for row in rows], schema=schema)


def test_every_row_is_accounted_for(folder: Path) -> None:
    found = load(folder)
    counts = {t: (n["rows_in"], n["rows_out"], n["rows_filtered"], n["rows_duplicate"], n["rows_quarantined"]) for t, n in found.tally.figures().items()}
    assert counts == {
        "movies_metadata": (7, 3, 1, 1, 2),
        "tmdb_5000_movies": (2, 2, 0, 0, 0),
        "movies_extrainfos": (3, 2, 1, 0, 0),
        "dbpedia_abstracts": (4, 3, 1, 0, 0),
    }
    assert found.bad.select("table", "row", "reason").rows() == [
        ("movies_metadata", 6, "id is malformed: 1997-08-20"),
        ("movies_metadata", 7, "genres is no list of names"),
    ]
    assert "Drama" in found.bad["raw"][1]


def test_each_field_comes_from_the_first_file_that_has_it(folder: Path) -> None:
    table = items(
        {"item_id": "1", "imdb_id": "tt0114709", "tmdb_id": "862"},
        {"item_id": "9", "imdb_id": "tt0000012", "tmdb_id": "12"},
        {"item_id": "3", "year": 1971},
        {"item_id": "4", "description": "mine"},
        {"item_id": "10", "tmdb_id": "11", "genres": ["War"]},
        {"item_id": "none"},
    )
    told = describe(table, load(folder).rows)
    assert told.columns == table.columns
    assert told.drop("imdb_id", "tmdb_id").rows() == [
        ("1", "Toys, they live.", ["Children's", "Drama", "Sci-Fi"], 1995),
        ("9", "Twelve.", ["Music"], 1990),  # a text from one, the rest from another
        ("3", "Third: the plot.", ["Film-Noir"], 1971),  # what is known stays
        ("4", "mine", [], None),
        ("10", "Far away.", ["War"], None),
        ("none", None, [], None),
    ]


def test_imdbs_titles_are_met_by_their_tconst_and_need_no_tmdb_id(folder: Path) -> None:
    table = items({"item_id": "tt0114709", "imdb_id": "tt0114709"}, {"item_id": "tt9", "imdb_id": "tt9"}).drop("tmdb_id")
    assert describe(table, load(folder).rows)["description"].to_list() == ["Toys, they live.", None]


def test_people_are_given_by_name_where_there_are_no_credits(folder: Path) -> None:
    table = items({"item_id": "1"}, {"item_id": "2"}, {"item_id": "3"})
    credits, people = name_credits(table, load(folder).rows, pl.DataFrame({"item_id": ["3"]}))
    assert sorted(credits.rows()) == [
        ("1", "name:A B", "writer", 1),
        ("1", "name:C D", "writer", 2),
        ("1", "name:John Lasseter", "director", 1),
        ("1", "name:Tim Allen", "actor", 2),
        ("1", "name:Tom Hanks", "actor", 1),
    ]
    assert people.rows()[0] == ("name:A B", "A B", None, ["writer"])
    assert people.height == 5


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 10**9).map(str), st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30), max_size=12))
def test_whatever_text_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    folder = tmp_path_factory.mktemp("plots")
    write_csv(
        folder / "movies_metadata.csv",
        [{"id": k, "imdb_id": "", "overview": f'{v}\r\n,"{v}', "genres": repr([{"name": v}]), "release_date": ""} for k, v in texts.items()]
        or [{"id": "1", "imdb_id": "", "overview": "", "genres": "", "release_date": ""}],
    )
    found = load(folder)
    assert found.bad.height == 0
    flat = {k: (" ".join(f'{v}\n,"{v}'.split()), [v]) for k, v in texts.items()}
    got = {row["tmdb_id"]: (" ".join(row["overview"].split()), row["genres"]) for row in found.rows.to_dicts()}
    renamed = {k: (text, [plots.GENRE.get(g, g) for g in names if g not in plots.NO_GENRE]) for k, (text, names) in flat.items()}
    assert got == renamed


def test_a_quote_without_an_end_costs_one_row(tmp_path: Path) -> None:
    lines = ["id,imdb_id,overview,genres,release_date", *(f'{i},,"text {i}",[],' for i in range(1, 2000))]
    lines[5] = '5,,"no end,[],'
    lines[8] = "8,,a,b,c,[],"
    lines[9] = ""
    (tmp_path / "movies_metadata.csv").write_text("\n".join(lines) + "\n")
    found = load(tmp_path)
    assert found.tally.figures()["movies_metadata"] == {"rows_in": 1999, "rows_out": 1996, "rows_filtered": 0, "rows_duplicate": 0, "rows_quarantined": 3}
    assert found.bad["row"].to_list() == [5, 8, 9]
    assert found.bad["raw"].to_list()[0].startswith("5,,")


def test_bytes_that_are_no_text_cost_their_rows(tmp_path: Path) -> None:
    rows = ["::".join(OMDB[0]).encode(), b"2::\xff" + b"::x" * 9, b"3::a\x00b" + b"::x" * 9, b"4::" + b"x" * (1 << 21) + b"::x" * 9, b"5::too few", b""]
    (tmp_path / "movies_extrainfos.dat").write_bytes(b"\n".join(rows) + b"\n")
    (tmp_path / "dbpedia_abstracts.json").write_text('{"1": "half \\ud800", "2": ["no text"], "3": "a", "3": "b", "x": "c"}')
    found = load(tmp_path)
    assert [(t, r) for t, r, *_ in found.bad.rows()] == [
        *(("movies_extrainfos", r) for r in (2, 3, 4, 5, 6)),
        *(("dbpedia_abstracts", r) for r in (1, 2, 5)),
    ]
    assert found.tally.figures()["dbpedia_abstracts"]["rows_duplicate"] == 1
    assert found.bad["raw"].str.len_chars().max() <= 1000  # type: ignore[operator]
    assert found.rows.filter(pl.col("movie_id") == "3")["overview"].to_list() == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("movies_metadata.csv", b"id,title\n1,x\n", "has other columns: imdb_id, overview, genres, release_date missing"),
        ("movies_metadata.csv", b"", "found nothing .the file is empty."),
        ("tmdb_5000_movies.csv.gz", gzip.compress(b"id,overview,genres,release_date\n" + b"1,x,[],\n" * 9)[:-9], "ends in the middle of a record"),
        ("dbpedia_abstracts.json", b'{"1": "cut o', "is not valid JSON"),
        ("dbpedia_abstracts.json", b'["1"]', "must hold one JSON object"),
        ("other.csv", b"", "holds no plot texts"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UGTError, match=message):
        load(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="there is no folder"):
        load(tmp_path / "none")
