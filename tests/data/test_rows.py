"""The reader of delimited files: what was written comes back, and every line that can't be read is a row with a reason."""

from __future__ import annotations

import contextlib
import gzip
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources import rows as reader
from data.sources.rows import FATAL, SourceFile, file_columns, read
from ugt.schema import UGTError
from ugt.synthetic import write_csv, write_tsv

# what a title may hold: anything but the control characters that the quality rule refuses and lone surrogates that aren't text
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(lambda s: s != "\\N")
HEADER = ("key", "title", "note")


def source(path: Path, dialect: Any = "tsv", **options: Any) -> SourceFile:
    return SourceFile("t", str(path), options.pop("columns", HEADER), "key", dialect, **options)


def cells(file: SourceFile) -> list[list[str | None]]:
    return [[row[f"c{i}"] for i in range(len(file.columns))] for table in read(file, 4) for row in table.to_pylist() if row["reason"] is None]


def bad(file: SourceFile) -> list[tuple[int, str]]:
    return [(row["row"], row["reason"]) for table in read(file, 4) for row in table.to_pylist() if row["reason"] is not None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), max_size=20))
def test_what_the_imdb_writer_writes_the_reader_reads(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str, str | None]]) -> None:
    path = tmp_path_factory.mktemp("tsv") / "t.tsv.gz"
    write_tsv(path, HEADER, table)
    assert cells(source(path)) == [list(row) for row in table]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=20))
def test_what_the_movielens_writer_writes_the_reader_reads(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write_csv(path, HEADER, table)
    assert cells(source(path, "csv")) == [list(row) for row in table]


LINES = [b"a\tx\ty", b"b\tx", b"c\tx\ty\tz", b"\tx\ty", b"\\N\tx\ty", b"d\tx\x00\ty", b'e\t"x\ty', b"f\tx\t\\N", "g\tü\t日".encode()]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_fast_way_and_the_slow_way_agree(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(end.join([b"key\ttitle\tnote", *LINES]) + end)
    file = source(path)
    chunk = path.read_bytes().split(b"\n", 1)[1]
    fast = reader._parse_tsv(file, list(HEADER), chunk)
    slow = reader._apart(file, reader._parse_slow(file, list(HEADER), chunk))
    for at_once, by_hand in zip(fast, slow, strict=True):
        assert at_once.sort("row").select(sorted(at_once.columns)).equals(by_hand.sort("row").select(sorted(by_hand.columns)))
    assert sorted(bad(file)) == [
        (2, "2 columns instead of 3"),
        (3, "4 columns instead of 3"),
        (4, "key is missing"),
        (5, "key is missing"),
        (6, "control characters"),
    ]


def test_broken_utf8_and_a_stray_quote_cost_one_row_each(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'key,title,note\na,x,y\nb,\xff,y\nc,"open,y\nd,"q ""x"", z",y\n')
    file = source(path, "csv")
    assert cells(file) == [["a", "x", "y"], ["d", 'q "x", z', "y"]]
    assert [row for row, _ in bad(file)] == [2, 3]


def test_an_empty_line_is_a_bad_row_and_moves_no_number(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(b"key\ttitle\tnote\na\tx\ty\n\nb\tx\ty\n\n")
    file = source(tmp_path / "t.tsv")
    assert bad(file) == [(2, "empty line"), (4, "empty line")]
    assert [row["row"] for table in read(file, 4) for row in table.to_pylist() if row["reason"] is None] == [1, 3]


def test_chunks_keep_the_numbers_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.tsv"
    lines = [f"k{i}\tx\ty" if i % 7 else "broken" for i in range(1, 60_000)]
    path.write_text("\n".join(["key\ttitle\tnote", *lines]), encoding="utf-8")
    monkeypatch.setattr(reader, "CHUNK", 100_000)
    got = {row["row"]: row["c0"] for table in read(source(path), 4) for row in table.to_pylist()}
    assert len(got) == len(lines)
    assert all(got[i] == (f"k{i}" if i % 7 else None) for i in (1, 7, 14_000, 30_001, 59_999))


def test_rows_of_one_key_fall_into_one_part_whatever_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("key\ttitle\tnote\n" + "".join(f"tt{i}\tx\ty\n" for i in range(50)))
    (tmp_path / "b.tsv").write_text("key\ttitle\tnote\n" + "".join(f"tt{i}\tx\ty\n" for i in reversed(range(50))))
    first = {r["c0"]: r["part"] for t in read(source(tmp_path / "a.tsv"), 8) for r in t.to_pylist()}
    second = {r["c0"]: r["part"] for t in read(source(tmp_path / "b.tsv"), 8) for r in t.to_pylist()}
    assert [first[f"tt{i}"] for i in range(50)] == [second[f"tt{i}"] for i in range(50)]
    assert len(set(first.values())) > 1


def test_a_cut_off_gzip_is_one_fatal_row_with_the_last_good_row(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    write_tsv(path, HEADER, [(f"k{i}", f"{hash((i, 7)):x}", "y") for i in range(20_000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    tables = list(read(source(path), 4))
    last = tables[-1].to_pylist()[0]
    assert last["table"] == FATAL
    assert "t.tsv.gz ends in the middle of a record after row" in last["reason"]
    lines = 0
    with gzip.open(path) as f, contextlib.suppress(EOFError):  # the slow way
        while f.readline().endswith(b"\n"):
            lines += 1
    assert 0 < last["row"] == lines - 1 < 20_000


def test_a_member_of_a_zip_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/t.csv", "key,title,note\r\n1,a,b\r\n")
    file = source(tmp_path / "set.zip", "csv", member="set/t.csv")
    assert cells(file) == [["1", "a", "b"]]
    assert file.name == "set.zip/set/t.csv"


def test_latin1_colons_are_read(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes("1::Les Misérables (1995)::Drama\n2::two\n".encode("latin-1"))
    file = source(tmp_path / "movies.dat", "colons", header=False, encoding="latin-1")
    assert cells(file) == [["1", "Les Misérables (1995)", "Drama"]]
    assert bad(file) == [(2, "2 columns instead of 3")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\n1\t2\n", "t.tsv has other columns: key, title, note missing, found a, b"),
        (b"", "nothing \\(the file is empty\\)"),
        (b"\x1f\x8b\x08", "can't be unpacked"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UGTError, match=message):
        file_columns(source(tmp_path / "t.tsv"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="does not exist"):
        file_columns(source(tmp_path / "t.tsv"))


def test_columns_may_stand_in_another_order_and_have_company(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.tsv.gz", "wt", encoding="utf-8") as f:
        f.write("note\textra\tkey\ttitle\nn\te\tk\tt\n")
    assert cells(source(tmp_path / "t.tsv.gz")) == [["k", "t", "n"]]
