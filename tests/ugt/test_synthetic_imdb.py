"""Files of IMDb's size: IMDb's form and shares, equal bytes for equal seeds, and every broken row counted by its kind."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ugt import synthetic_imdb
from ugt.schema import UGTError
from ugt.synthetic import IMDB_HEADERS, write_imdb_at_scale
from ugt.synthetic_imdb import FIGURES, KINDS, kinds_of
from ugt.synthetic_imdb_tables import NCONST, TCONST, World, scattered

KEY = {table: re.compile(rb"^nm\d{7,8}$" if table == "name.basics" else rb"^tt\d{7,8}$") for table in IMDB_HEADERS}
NUMBERS = {
    "title.basics": [4, 5, 6, 7],
    "title.ratings": [2],
    "title.crew": [],
    "title.principals": [1],
    "title.akas": [1, 7],
    "title.episode": [2, 3],
    "name.basics": [2, 3],
}
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f]")
UNIQUE = {"title.principals": 2, "title.akas": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("imdb")
    return folder, write_imdb_at_scale(0.001, 3, folder, processes=1)


def lines_of(folder: Path, table: str) -> list[bytes]:
    """The lines after the header, by the standard library alone."""
    text = gzip.decompress((folder / f"{table}.tsv.gz").read_bytes())
    assert text.endswith(b"\n")
    header, *lines = text[:-1].split(b"\n")
    assert header.decode().split("\t") == IMDB_HEADERS[table].split()
    return lines


def fault_of(table: str, line: bytes, seen: set[bytes]) -> str | None:
    """The kind of a broken row, found from the row alone; the slow judge of the generator's counts."""
    cells = line.split(b"\t")
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("empty_line", lambda: line == b""),
        ("missing_column", lambda: len(cells) < len(IMDB_HEADERS[table].split())),
        ("extra_tab", lambda: len(cells) > len(IMDB_HEADERS[table].split())),
        ("not_utf8", lambda: line.decode(errors="replace").encode() != line),
        ("nul", lambda: b"\x00" in line),
        ("control_character", lambda: CONTROL.search(line) is not None),
        ("key_empty", lambda: cells[0] == b""),
        ("key_null", lambda: cells[0] == b"\\N"),
        ("key_malformed", lambda: not KEY[table].match(cells[0])),
        ("negative_runtime", lambda: table == "title.basics" and cells[7].startswith(b"-")),
        ("not_a_number", lambda: any(cells[c] != b"\\N" and not cells[c].isdigit() for c in NUMBERS[table])),
        ("duplicate", lambda: b"\t".join(cells[: UNIQUE.get(table, 1)]) in seen),
    ]
    return next((kind for kind, found in checks if found()), None)


def judged(folder: Path, table: str) -> tuple[list[list[str]], Counter[str]]:
    """The good rows as cells, and how many rows are broken, by kind (a repeat is a `duplicate` wherever it stands)."""
    good, broken, seen = [], Counter[str](), set[bytes]()
    for line in lines_of(folder, table):
        kind = fault_of(table, line, seen)
        if kind is None:
            cells = line.split(b"\t")
            seen.add(b"\t".join(cells[: UNIQUE.get(table, 1)]))
            good.append([c.decode() for c in cells])
        else:
            broken[kind] += 1
    return good, broken


@pytest.fixture(scope="module")
def tables(made: tuple[Path, dict]) -> dict[str, tuple[list[list[str]], Counter[str]]]:
    return {table: judged(made[0], table) for table in IMDB_HEADERS}


def nulls(rows: list[list[str]], column: int) -> float:
    return float(np.mean([row[column] == "\\N" for row in rows]))


@pytest.mark.parametrize("table", list(IMDB_HEADERS))
def test_every_broken_row_is_counted_by_its_kind_and_all_others_are_good(made: tuple[Path, dict], tables: dict, table: str) -> None:
    figures = made[1]["files"][table]
    good, broken = tables[table]
    told = dict(figures["broken"])
    told["duplicate"] += told.pop("duplicate_far")
    assert dict(broken) == told
    assert len(good) == figures["good"] == figures["rows"] - sum(figures["broken"].values())
    assert set(figures["broken"]) == set(kinds_of(table)) <= set(KINDS)
    assert min(figures["broken"].values()) >= 1


def test_a_repeat_from_afar_stands_at_the_end_of_the_file(made: tuple[Path, dict]) -> None:
    lines = lines_of(made[0], "title.basics")
    far = made[1]["files"]["title.basics"]["broken"]["duplicate_far"]
    assert all(line in lines[:-far] for line in lines[-far:])


def test_the_sizes_are_imdbs_times_the_scale(made: tuple[Path, dict]) -> None:
    # thousands at scale .001; the tolerance is five standard deviations of what is drawn
    expected = {
        "title.basics": (12_000, 20),
        "title.crew": (12_000, 20),
        "name.basics": (14_600, 20),
        "title.ratings": (1_600, 190),
        "title.episode": (9_240, 250),
        "title.principals": (92_400, 2_600),
        "title.akas": (52_800, 1_800),
    }
    for table, (rows, tolerance) in expected.items():
        assert abs(made[1]["files"][table]["rows"] - rows) <= tolerance, table


def test_nulls_and_types_have_imdbs_shares(tables: dict) -> None:
    basics = tables["title.basics"][0]
    for column, share in ((5, 0.12), (7, 0.65), (8, 0.045)):
        assert nulls(basics, column) == pytest.approx(share, abs=0.025)
    assert nulls(tables["title.crew"][0], 1) == pytest.approx(0.43, abs=0.025)
    assert nulls(tables["title.crew"][0], 2) == pytest.approx(0.50, abs=0.025)
    kinds = Counter(row[1] for row in basics)
    assert kinds["tvEpisode"] / len(basics) == pytest.approx(0.77, abs=0.02)
    assert {"movie", "short", "tvSeries", "video", "tvMovie", "tvMiniSeries", "tvSpecial", "videoGame"} <= set(kinds)


def test_the_rows_are_in_the_order_of_the_ids_strings_and_ids_have_seven_and_eight_digits(tables: dict) -> None:
    for table, column in (("title.basics", 0), ("title.akas", 0), ("name.basics", 0)):
        ids = [row[column] for row in tables[table][0]]
        assert ids == sorted(ids)
        assert {len(i) for i in ids} == {9, 10}
        numbers = [int(i[2:]) for i in ids]
        assert any(a > b for a, b in pairwise(numbers))


@pytest.mark.parametrize(("ids", "total"), [(TCONST, 200_000), (NCONST, 150_000), (TCONST, 1_200)])
def test_ids_are_distinct_and_sorted_by_string(ids: object, total: int) -> None:
    text = ids.text(np.arange(total), total, 5).to_list()  # type: ignore[attr-defined]
    assert text == sorted(set(text))


def test_at_full_scale_the_ids_still_are_distinct() -> None:
    for ids, total in ((TCONST, World(1, 0).titles), (NCONST, World(1, 0).people)):
        for start in (0, total // 2, total - 50_000):
            text = ids.text(np.arange(start, start + 50_000), total, 0).to_list()
            assert text == sorted(set(text))


def test_titles_hold_quotes_commas_and_many_scripts(tables: dict) -> None:
    text = "".join(row[2] + row[3] for row in tables["title.basics"][0])
    assert {'"', "'", ",", "#"} <= set(text)
    for script in ("[а-я]", "[α-ω]", "[一-龥]", "[가-힣]", "[ا-ي]", "[א-ת]", "[ก-ฮ]", "[अ-ह]", "[éüñå]"):
        assert re.search(script, text), script


def test_what_one_table_says_of_a_title_another_knows(tables: dict) -> None:
    """Foreign keys hold but for rows that were spoilt, and the director of the crew is the director among the principals."""
    basics = {row[0]: row for row in tables["title.basics"][0]}
    people = {row[0] for row in tables["name.basics"][0]}
    for table in ("title.ratings", "title.crew", "title.principals", "title.akas", "title.episode"):
        missing = {row[0] for row in tables[table][0]} - set(basics)
        assert len(missing) <= len(basics) * 0.002
    episodes = tables["title.episode"][0]
    assert {basics[row[0]][1] for row in episodes if row[0] in basics} == {"tvEpisode"}
    assert {basics[row[1]][1] for row in episodes if row[1] in basics} == {"tvSeries", "tvMiniSeries"}
    principals = tables["title.principals"][0]
    assert np.mean([row[2] in people for row in principals]) > 0.995
    directors = {row[0]: row[1].split(",") for row in tables["title.crew"][0] if row[1] != "\\N"}
    first: dict[str, str] = {}
    for row in principals:
        if row[3] == "director":
            first.setdefault(row[0], row[2])
    both = set(directors) & set(first)
    assert len(both) > 1_000
    assert sum(directors[t][0] != first[t] for t in both) <= 20  # only where the first credit was spoilt
    original = {row[0]: row[2] for row in tables["title.akas"][0] if row[7] == "1"}
    assert all(original[t] == basics[t][3] for t in set(original) & set(basics))


def test_orderings_count_from_one_and_characters_are_json(tables: dict) -> None:
    rows = tables["title.principals"][0]
    last: dict[str, int] = {}
    gaps = 0
    for row in rows:
        gaps += int(row[1]) != last.get(row[0], 0) + 1
        last[row[0]] = int(row[1])
    assert gaps <= len(rows) * 0.002  # a spoilt row leaves a gap
    played = [json.loads(row[5]) for row in rows if row[5] != "\\N"]
    assert any('"' in name for names in played for name in names)
    assert {row[3] for row in rows if row[5] != "\\N"} <= {"actor", "actress", "self", "archive_footage", "archive_sound"}


def test_a_few_people_have_many_credits(tables: dict) -> None:
    counts = sorted(Counter(row[2] for row in tables["title.principals"][0]).values(), reverse=True)
    assert sum(counts[: len(counts) // 100]) > 0.08 * sum(counts)
    assert sorted(scattered(np.arange(9_999), 9_999).tolist()) == list(range(9_999))


def test_equal_seeds_give_equal_bytes_in_any_number_of_processes_and_pieces_differ(made: tuple[Path, dict], tmp_path: Path) -> None:
    again = write_imdb_at_scale(0.001, 3, tmp_path / "again", processes=2)
    other = write_imdb_at_scale(0.001, 4, tmp_path / "other", processes=1)
    assert again["files"] == made[1]["files"]
    for table in IMDB_HEADERS:
        name = f"{table}.tsv.gz"
        same = (made[0] / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == same
        assert (tmp_path / "other" / name).read_bytes() != same
    assert other["seed"] == 4


def test_pieces_make_the_table_they_would_make_at_any_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Several pieces: still sorted, every title once, and the broken rows of all pieces counted."""
    monkeypatch.setattr(synthetic_imdb, "PIECE", 2_500)
    figures = {table: synthetic_imdb.write_table(table, 0.001, 3, tmp_path) for table in ("title.basics", "title.akas")}
    for table, told in figures.items():
        good, broken = judged(tmp_path, table)
        assert len(good) == told["good"]
        assert broken.total() == sum(told["broken"].values())
        assert [row[0] for row in good] == sorted(row[0] for row in good)
    assert figures["title.basics"]["rows"] - sum(figures["title.basics"]["broken"][k] for k in synthetic_imdb.ADDED) == 12_000


def files_in(folder: Path) -> Iterator[str]:
    return (p.name for p in sorted(folder.iterdir()))


def test_a_finished_folder_is_kept_and_a_damaged_one_made_again(made: tuple[Path, dict], tmp_path: Path) -> None:
    first = write_imdb_at_scale(0.0002, 1, tmp_path, processes=1)
    stamp = (tmp_path / "title.crew.tsv.gz").stat().st_mtime_ns
    kept = write_imdb_at_scale(0.0002, 1, tmp_path, processes=1)
    assert kept == first | {"kept": True}
    assert (tmp_path / "title.crew.tsv.gz").stat().st_mtime_ns == stamp
    (tmp_path / "title.crew.tsv.gz").write_bytes(b"cut")
    (tmp_path / "title.akas.tsv.gz.99.tmp").write_bytes(b"of a run that was killed")
    again = write_imdb_at_scale(0.0002, 1, tmp_path, processes=1)
    assert not again["kept"]
    assert again["files"] == first["files"]
    assert list(files_in(tmp_path)) == sorted([FIGURES, *(f"{table}.tsv.gz" for table in IMDB_HEADERS)])


def test_a_run_that_dies_leaves_no_file_that_looks_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> list[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic_imdb, "spoilt", full)
    with pytest.raises(UGTError, match="is full"):
        write_imdb_at_scale(0.0002, 1, tmp_path, processes=1)
    assert list(files_in(tmp_path)) == []


def test_an_impossible_scale_is_refused(tmp_path: Path) -> None:
    for scale in (0, -1, 1.5, float("nan")):
        with pytest.raises(UGTError, match="--scale"):
            write_imdb_at_scale(scale, 0, tmp_path)
