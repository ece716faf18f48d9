"""Files that are not what they should be, for each source: a named error, or a row in quarantine with its reason; and every line is accounted for."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from data.quality import Column, checked
from data.sources import imdb, movielens, sequences
from data.sources import rows as reader
from data.sources.rows import SourceFile, file_columns, whole
from ugt.schema import UGTError

BASICS = b"tconst\ttitleType\tprimaryTitle\toriginalTitle\tisAdult\tstartYear\tendYear\truntimeMinutes\tgenres\n"
GOOD = b'tt0000001\tmovie\tA "quoted" title\tA\t0\t1999\t\\N\t90\tDrama\n'


def basics(folder: Path, content: bytes, packed: bool = False) -> SourceFile:
    path = folder / ("title.basics.tsv.gz" if packed else "title.basics.tsv")
    path.write_bytes(gzip.compress(content) if packed else content)
    return SourceFile("title.basics", str(path), tuple(c.name for c in imdb.BASICS), "tconst", "tsv")


def ratings(folder: Path, content: bytes) -> SourceFile:
    (folder / "ratings.csv").write_bytes(content)
    return movielens.csv_file("ratings", folder / "ratings.csv")


def dat(folder: Path, content: bytes) -> SourceFile:
    (folder / "movies.dat").write_bytes(content)
    return movielens.dat_file("movies", folder / "movies.dat")


def lines(folder: Path, content: bytes) -> SourceFile:
    (folder / "sequences.txt").write_bytes(content)
    return sequences.sequence_file(folder / "sequences.txt")


def judged(source: SourceFile, columns: tuple[Column, ...]) -> tuple[pl.DataFrame, list[str]]:
    """(sound rows, reasons of the others)."""
    good, unread = whole(source)
    sound, worse = checked(good, source.table, columns)
    return sound, [*unread.sort("row")["reason"], *worse.sort("row")["reason"]]


LONG = "primaryTitle is longer than 10,000 bytes"
R = b"userId,movieId,rating,timestamp\n"
CASES: list[tuple[Callable[..., SourceFile], tuple[Column, ...], bytes, bytes, str]] = [
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002,movie,B,B,0,1999,,90,Drama\n", "1 columns instead of 9"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\tB\t0\t1999\t\\N\t90\n", "8 columns instead of 9"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\tB\t0\t1999\t\\N\t90\tDrama\tmore\n", "10 columns instead of 9"),
    (basics, imdb.BASICS, BASICS + GOOD, "tt0000002\tmovie\tÜber\tB\t0\t1999\t\\N\t90\tDrama\n".encode("latin-1"), "not utf-8"),
    (basics, imdb.BASICS, BASICS + GOOD, b"\\N\tmovie\tB\tB\t0\t1999\t\\N\t90\tDrama\n", "tconst is missing"),
    (basics, imdb.BASICS, BASICS + GOOD, b"\tmovie\tB\tB\t0\t1999\t\\N\t90\tDrama\n", "tconst is missing"),
    (basics, imdb.BASICS, BASICS + GOOD, b"nm0000002\tmovie\tB\tB\t0\t1999\t\\N\t90\tDrama\n", "tconst is malformed: nm0000002"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\tB\t0\t19x9\t\\N\t90\tDrama\n", "startYear is not a number: 19x9"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\tB\t0\t1999\t\\N\t-90\tDrama\n", "runtimeMinutes is below 0: -90"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\x00C\tB\t0\t1999\t\\N\t90\tDrama\n", "control characters"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\x1bC\tB\t0\t1999\t\\N\t90\tDrama\n", "control characters"),
    (basics, imdb.BASICS, BASICS + GOOD, b"tt0000002\tmovie\tB\rC\tB\t0\t1999\t\\N\t90\tDrama\n", "control characters"),
    (basics, imdb.BASICS, BASICS + GOOD, b"\n", "empty line"),
    (
        basics,
        imdb.BASICS,
        BASICS + GOOD,
        b"tt0000002\tmovie\t" + b"x" * 10_000_000 + b"\tB\t0\t1999\t\\N\t90\tDrama\n",
        LONG,
    ),
    (ratings, movielens.RATINGS, R + b"1,2,3.0,4\n", b"1::2::3.0::4\n", "1 columns instead of 4"),
    (ratings, movielens.RATINGS, R + b"1,2,3.0,4\n", b"1,2,3.0\n", "3 columns instead of 4"),
    (ratings, movielens.RATINGS, R + b"1,2,3.0,4\n", b"1,2,nan,4\n", "rating is not a number: nan"),
    (ratings, movielens.RATINGS, R + b"1,2,3.0,4\n", b"1,2,9,4\n", "rating is above 5: 9"),
    (ratings, movielens.RATINGS, R + b"1,2,3.0,4\n", b",2,3.0,4\n", "userId is missing"),
    (ratings, movielens.RATINGS, R + b"1,2,3.0,4\n", b"\xff,2,3.0,4\n", "not utf-8"),
    (dat, movielens.MOVIES, "1::Les Misérables (1995)::Drama\n".encode("latin-1"), b"2,Jumanji,Adventure\n", "1 columns instead of 3"),
    (dat, movielens.MOVIES, b"1::A::Drama\n", b"2::B\x01::Drama\n", "control characters"),
    (lines, sequences.INTERACTIONS, b"u a b\n", b"lonely\n", "a line must be a user and at least one item"),
    (lines, sequences.INTERACTIONS, b"u a b\n", b"u\x00 a\n", "control characters"),
]


@pytest.mark.parametrize(("make", "columns", "good", "bad", "reason"), CASES, ids=[f"{c[0].__name__}-{c[4][:40]}" for c in CASES])
def test_a_bad_line_is_one_row_of_quarantine_and_costs_no_other(
    tmp_path: Path, make: Callable[..., SourceFile], columns: tuple[Column, ...], good: bytes, bad: bytes, reason: str
) -> None:
    (tmp_path / "clean").mkdir()
    clean, none = judged(make(tmp_path / "clean", good), columns)
    sound, reasons = judged(make(tmp_path, good + bad), columns)
    assert none == []
    assert reasons == [reason]
    assert sound.equals(clean)


def test_a_year_like_2115_is_a_year(tmp_path: Path) -> None:
    sound, reasons = judged(basics(tmp_path, BASICS + GOOD.replace(b"1999", b"2115")), imdb.BASICS)
    assert (sound["startYear"].to_list(), reasons) == ([2115], [])


@pytest.mark.parametrize("make", [basics, ratings])
def test_columns_that_are_missing_stop_the_run_and_more_than_asked_for_do_not(tmp_path: Path, make: Callable[..., SourceFile]) -> None:
    header = BASICS if make is basics else R
    tab = b"\t" if make is basics else b","
    with pytest.raises(UGTError, match=r"has other columns: .* missing"):
        file_columns(make(tmp_path, header.replace(b"startYear", b"year").replace(b"rating", b"stars")))
    assert len(file_columns(make(tmp_path, header.rstrip() + tab + b"extra\n"))) == len(header.split(tab)) + 1


@pytest.mark.parametrize("make", [basics, ratings])
def test_an_empty_file_is_named(tmp_path: Path, make: Callable[..., SourceFile]) -> None:
    with pytest.raises(UGTError, match=r"(title\.basics\.tsv|ratings\.csv) has other columns: .* found nothing \(the file is empty\)"):
        file_columns(make(tmp_path, b""))


def test_a_gzip_that_is_damaged_in_the_middle_is_named_with_its_last_good_row(tmp_path: Path) -> None:
    source = basics(
        tmp_path, BASICS + b"".join(GOOD.replace(b"tt0000001", b"tt%07d" % i).replace(b"1999", b"%d" % (1900 + i * i % 97)) for i in range(1, 60_000)), True
    )
    path = Path(source.path)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
    path.write_bytes(bytes(packed))
    with pytest.raises(UGTError, match=r"title\.basics\.tsv\.gz ends in the middle of a record after row [1-9][0-9,]* .*Fetch it again"):
        whole(source)


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CHUNK", 1000)
    source = basics(tmp_path, BASICS + GOOD * 40_000)
    chunks = reader.chunks(source)
    next(chunks)
    with open(source.path, "ab") as f:
        f.write(GOOD)
    os.utime(source.path, ns=(1, 1))
    with pytest.raises(UGTError, match=r"was changed while it was read, up to row .* Wait until it is whole"):
        list(chunks)
