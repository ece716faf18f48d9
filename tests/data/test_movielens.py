"""Which files of MovieLens are found, in a folder or a zip, and whose links an older version takes."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest

from data.sources.imdb import TITLE
from data.sources.movielens import catalogue, files, ids, items
from data.sources.rows import read
from ugt.schema import UGTError

DAT = {
    "movies.dat": "1::Misérables, Les (1995)::Drama|Musical\n2::Jumanji (1995)::Adventure|Children's\n".encode("latin-1"),
    "ratings.dat": b"1::1::5::978300760\n1::2::3::978300761\n",
    "users.dat": b"1::F::1::10::48067\n",
}
LINKS = b"movieId,imdbId,tmdbId\r\n1,0113828,4415\r\n2,12345678,\r\n2,0000001,1\r\nx,1,1\r\n"


def write(folder: Path, content: dict[str, bytes], zipped: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if zipped:
        with zipfile.ZipFile(folder / zipped, "w") as z:
            for name, text in content.items():
                z.writestr(f"{zipped.removesuffix('.zip')}/{name}", text)
    else:
        for name, text in content.items():
            (folder / name).write_bytes(text)
    return folder


@pytest.mark.parametrize("zipped", [None, "ml-1m.zip"])
def test_1m_is_read_from_a_folder_and_from_its_zip(tmp_path: Path, zipped: str | None) -> None:
    found = files(write(tmp_path / "ml", DAT, zipped))
    assert sorted(found) == ["movies", "ratings", "users"]
    rows = {t: [[row[f"c{i}"] for i in range(len(f.columns))] for table in read(f, 1) for row in table.to_pylist()] for t, f in found.items()}
    assert rows["movies"][0] == ["1", "Misérables, Les (1995)", "Drama|Musical"]
    assert rows["ratings"] == [["1", "1", "5", "978300760"], ["1", "2", "3", "978300761"]]
    assert rows["users"] == [["1", "F", "1", "10", "48067"]]


@pytest.mark.parametrize("zipped", [None, "ml-1m.zip"])
@pytest.mark.parametrize("named", [True, False])
def test_1m_takes_the_links_of_another_version(tmp_path: Path, zipped: str | None, named: bool) -> None:
    folder = write(tmp_path / "ml", DAT, zipped)
    beside = tmp_path / "ml-25m" / "links.csv.gz" if named else folder / "links.csv.gz"
    beside.parent.mkdir(exist_ok=True)
    beside.write_bytes(gzip.compress(LINKS))
    found = files(folder, beside if named else None)
    part = catalogue(found)
    base = part.items.with_columns(slot=pl.int_range(pl.len(), dtype=pl.Int32))
    assert items(base, pl.DataFrame(schema=TITLE)).select("item_id", "title", "imdb_id", "genres").rows() == [
        ("1", "Les Misérables", "tt0113828", ["Drama", "Musical"]),
        ("2", "Jumanji", "tt12345678", ["Adventure", "Family"]),
    ]
    assert part.tally.figures()["links"] == {"rows_in": 4, "rows_out": 2, "rows_filtered": 0, "rows_duplicate": 1, "rows_quarantined": 1}
    assert ids(found["links"]).rows() == [("1", "tt0113828", "4415"), ("2", "tt12345678", None)]


def test_a_plain_file_goes_before_its_packed_copy(tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", DAT)
    (folder / "movies.dat.gz").write_bytes(gzip.compress(b"9::Other (1990)::Drama\n"))
    assert files(folder)["movies"].path.endswith("movies.dat")


def test_what_is_missing_or_ambiguous_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", {"movies.dat": b""})
    with pytest.raises(UGTError, match=r"holds no movies\.csv and no ratings\.csv \(nor a MovieLens zip"):
        files(folder)
    with pytest.raises(UGTError, match=r"there is no file .*links\.csv"):
        files(folder, tmp_path / "links.csv")
    write(folder, DAT, "ml-1m.zip")
    write(folder, DAT, "other.zip")
    with pytest.raises(UGTError, match=r"several MovieLens zips: ml-1m\.zip, other\.zip"):
        files(folder)
