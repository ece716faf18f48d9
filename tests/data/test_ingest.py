"""`ugt data ingest`: what a folder holds is recognised, copied whole, resumed, recorded, and only copied again where it changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zipfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from data import ingest as module
from data.fetched import RECORD
from data.ingest import gather, ingest, recognise
from data.sources.movielens import files
from ugt.schema import UGTError

RATINGS = "userId,movieId,rating,timestamp\n" + "".join(f"{u},{m},4.0,{1000 + m}\n" for u in range(40) for m in range(1, 40))
MOVIES = "movieId,title,genres\n" + "".join(f"{m},Film {m} (1999),Drama\n" for m in range(1, 40))


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A MovieLens folder with files that belong to no source beside it."""
    folder = tmp_path / "from" / "ml-25m"
    folder.mkdir(parents=True)
    (folder / "ratings.csv").write_text(RATINGS)
    with gzip.open(folder / "movies.csv.gz", "wt") as f:
        f.write(MOVIES)
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    (folder / "README.txt").write_text("about")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(origin: str | Path, home: Path, name: str | None = None) -> list[str]:
    said: list[str] = []
    ingest(str(origin), home, said.append, name)
    return said


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_source_is_copied_named_and_the_next_command_told(origin: Path, home: Path, scheme: str) -> None:
    said = run(f"{scheme}{origin}", home)
    folder = home / "sources" / "movielens-25m"
    assert {p.name for p in folder.iterdir()} == {"movies.csv.gz", "ratings.csv", RECORD}
    assert (folder / "ratings.csv").read_text() == RATINGS
    entry = json.loads((folder / RECORD).read_text())["ratings.csv"]
    assert entry["sha256"] == hashlib.sha256(RATINGS.encode()).hexdigest()
    assert said[0] == f" movielens-25m: 2 files in {folder}, 2 copied, 0 there already"
    assert "README.txt, tags.csv" in said[1]
    assert said[2] == f" next: ugt data etl --source movielens --data-dir {folder}"


def test_any_file_system_of_arrow_will_do(origin: Path, home: Path) -> None:
    fs = pafs.SubTreeFileSystem(str(origin.parent), pafs.LocalFileSystem())
    done = gather(fs, "ml-25m", "bucket://ml-25m", home, print)
    assert (done[0].kind, done[0].files, done[0].lacks) == ("movielens-25m", ["movies.csv.gz", "ratings.csv"], None)
    assert (home / "sources/movielens-25m/ratings.csv").read_text() == RATINGS


def test_a_second_run_copies_only_what_changed(origin: Path, home: Path) -> None:
    run(origin, home)
    assert "0 copied, 2 there already" in run(origin, home)[0]
    (origin / "ratings.csv").write_text(RATINGS + "99,1,5.0,1\n")
    assert "1 copied, 1 there already" in run(origin, home)[0]
    assert (home / "sources/movielens-25m/ratings.csv").read_text().endswith("99,1,5.0,1\n")


def test_a_copy_that_broke_goes_on_where_it_stopped(origin: Path, home: Path) -> None:
    folder = home / "sources" / "movielens-25m"
    folder.mkdir(parents=True)
    stat = (origin / "ratings.csv").stat()
    begun = RATINGS[:1000].replace("4.0", "3.0")  # so that what was there already can be told from what is copied now
    (folder / "ratings.csv.partial").write_text(begun)
    (folder / "ratings.csv.partial.version").write_text(f"{stat.st_size} {stat.st_mtime_ns}")
    run(origin, home)
    assert (folder / "ratings.csv").read_text() == begun + RATINGS[1000:]
    assert not list(folder.glob("*.partial*"))


def test_a_part_of_another_version_is_not_continued(origin: Path, home: Path) -> None:
    folder = home / "sources" / "movielens-25m"
    folder.mkdir(parents=True)
    (folder / "ratings.csv.partial").write_text("old")
    (folder / "ratings.csv.partial.version").write_text("3 1")
    run(origin, home)
    assert (folder / "ratings.csv").read_text() == RATINGS


def test_a_file_that_changes_while_it_is_copied_is_refused(origin: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pour = module._pour

    def and_then_changed(*arguments: object) -> None:
        pour(*arguments)  # type: ignore[arg-type]
        os.utime(origin / "movies.csv.gz", (1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(module, "_pour", and_then_changed)
        with pytest.raises(UGTError, match=r"movies\.csv\.gz changed while it was copied"):
            run(origin, home)
    assert not (home / "sources/movielens-25m/movies.csv.gz").exists()
    run(origin, home)


def test_a_copy_that_was_changed_since_is_named(origin: Path, home: Path) -> None:
    run(origin, home)
    (home / "sources/movielens-25m/ratings.csv").write_text("changed")
    with pytest.raises(UGTError, match="is not the file that was fetched"):
        run(origin, home)


def test_two_origins_do_not_mix_unnoticed(origin: Path, home: Path, tmp_path: Path) -> None:
    run(origin, home)
    other = tmp_path / "other" / "ml-25m"
    other.mkdir(parents=True)
    (other / "ratings.csv").write_text(RATINGS)
    with pytest.raises(UGTError, match=r"came from .*ml-25m/ratings\.csv.* --name"):
        run(other, home)
    said = run(other, home, "second")
    assert "holds no movies.csv" in said[-1]  # copied, and told what etl would miss
    stranger = home / "sources" / "third"
    stranger.mkdir()
    (stranger / "ratings.csv").write_text("mine")
    with pytest.raises(UGTError, match="was not copied by this command"):
        run(other, home, "third")
    assert (stranger / "ratings.csv").read_text() == "mine"


def test_a_file_that_is_not_what_its_name_says_is_named(origin: Path, home: Path) -> None:
    (origin / "ratings.csv").write_text("user;movie\n1;2\n")
    with pytest.raises(UGTError, match=r"ratings\.csv has other columns"):
        run(origin, home)


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("/nonexistent/folder", "there is no such folder"),
        ("file:///nonexistent/folder", "there is no such folder"),
        ("nope://bucket/folder", "can't be opened .* file://, s3:// or gs://"),
    ],
)
def test_an_origin_that_is_not_there_is_named(home: Path, origin: str, message: str) -> None:
    with pytest.raises(UGTError, match=message):
        run(origin, home)


def test_what_no_source_reads_is_refused(home: Path, tmp_path: Path, origin: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UGTError, match="holds no source: found no file"):
        run(tmp_path / "none", home)
    (tmp_path / "none" / "a.pdf").write_text("")
    with pytest.raises(UGTError, match=r"holds no source: found a\.pdf"):
        run(tmp_path / "none", home)
    with pytest.raises(UGTError, match=r"is a file\. Give the folder"):
        run(origin / "README.txt", home)
    with pytest.raises(UGTError, match="can't be the name of a folder"):
        run(origin, home, "../out")
    assert not (tmp_path / "out").exists()


def test_a_zip_is_known_by_what_is_in_it(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zips"
    folder.mkdir()
    with zipfile.ZipFile(folder / "ml-32m.zip", "w") as z:
        z.writestr("ml-32m/ratings.csv", RATINGS)
        z.writestr("ml-32m/movies.csv", MOVIES)
    with zipfile.ZipFile(folder / "photos.zip", "w") as z:
        z.writestr("a.jpg", "")
    said = run(folder, home)
    assert said[0].startswith(" movielens-32m: 1 files")
    assert "photos.zip" in said[1]
    assert said[2].startswith(" next: ugt data etl --source movielens")
    (folder / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UGTError, match=r"photos\.zip .* is not a whole zip"):
        run(folder, home)


@pytest.mark.parametrize(
    ("names", "folder", "found"),
    [
        (["title.basics.tsv.gz", "name.basics.tsv", "notes.tsv"], "x", {"imdb": ["title.basics.tsv.gz", "name.basics.tsv"]}),
        (["movies.dat", "ratings.dat", "users.dat", "README"], "x", {"movielens-1m": ["movies.dat", "ratings.dat", "users.dat"]}),
        (
            ["links.csv", "movies.dat", "movies_extrainfos.dat.gz", "ratings.users-1-2999.dat.gz", "sequences.tsv.gz"],
            "ml-1m",
            {"movielens-1m": ["links.csv", "movies.dat", "ratings.users-1-2999.dat.gz"], "plots": ["movies_extrainfos.dat.gz"]},
        ),
        (["movies.csv", "ratings.csv"], "ml-latest-small", {"movielens-latest-small": ["movies.csv", "ratings.csv"]}),
        (["movies.csv", "ratings.csv"], "x", {"movielens": ["movies.csv", "ratings.csv"]}),
        (
            ["Beauty.txt.gz", "Beauty_item2attributes.json.gz", "datamaps.json.gz", "timestamps.tsv.gz"],
            "x",
            {"amazon-Beauty": ["Beauty.txt.gz", "datamaps.json.gz", "timestamps.tsv.gz"]},
        ),
        (["Toys.txt.gz", "idgenrec.item_text_ids.txt.gz", "p5.sequential.txt.gz"], "x", None),
        (["items.tsv", "sequences.txt.gz"], "x", {"sequences": ["items.tsv", "sequences.txt.gz"]}),
        (["clicks.txt", "items.txt.gz"], "x", {"sequences": ["clicks.txt", "items.txt.gz"]}),
        (["README.txt", "clicks.tsv"], "x", {"sequences": ["clicks.tsv"]}),
        (["movies_metadata.csv", "tmdb_5000_movies.csv.gz", "credits.csv"], "x", {"plots": ["movies_metadata.csv", "tmdb_5000_movies.csv.gz"]}),
        (["a.txt", "b.txt"], "x", {}),
    ],
)
def test_sources_are_known_by_their_names(names: list[str], folder: str, found: dict[str, list[str]] | None) -> None:
    expected = {"amazon-Toys": sorted(names)} if found is None else found
    assert recognise(sorted(names), folder, lambda _: []) == {kind: sorted(files) for kind, files in expected.items()}


def test_links_of_another_version_can_be_put_beside_1m(home: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "ml-1m", tmp_path / "ml-25m"
    old.mkdir()
    new.mkdir()
    (old / "movies.dat").write_text("1::Toy Story (1995)::Comedy\n")
    (old / "ratings.dat").write_text("1::1::5::978300760\n")
    (new / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0114709,862\n")
    run(old, home)
    assert run(new, home, "movielens-1m")[-1] == f" next: ugt data etl --source movielens --data-dir {home}/sources/movielens-1m"
    assert sorted(files(home / "sources/movielens-1m")) == ["links", "movies", "ratings"]


def test_a_run_that_died_before_the_last_rename_is_finished_by_the_next(origin: Path, home: Path) -> None:
    run(origin, home)
    folder = home / "sources/movielens-25m"
    stat = (origin / "ratings.csv").stat()
    (folder / "ratings.csv").rename(folder / "ratings.csv.partial")
    (folder / "ratings.csv.partial.version").write_text(f"{stat.st_size} {stat.st_mtime_ns}")
    run(origin, home)
    assert (folder / "ratings.csv").read_text() == RATINGS
    assert not list(folder.glob("*.partial*"))
