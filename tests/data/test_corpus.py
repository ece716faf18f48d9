"""The corpus by Ray Data: the same sentences as in one process, whole or in parts, and what it says of families that gave nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import corpus
from ugt.artifacts import CREDITS, EPISODES, ITEMS, parquet_files, read_table, write_table
from ugt.sequences import FAMILIES, ITEM_FAMILIES, Corpus, CorpusConfig, Lines

ALL = CorpusConfig(families=FAMILIES)
MADE = tuple(family for family in FAMILIES if family != "episodes")


def texts(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for piece in Corpus.load(folder).pieces:
        found[piece.family] = found.get(piece.family, "") + (folder / piece.file).read_text()
    return found


@pytest.mark.ray
def test_a_small_catalogue_gives_what_one_process_gives(ray_session: None, catalogue: Path, write_corpus: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    figures = corpus.run(catalogue, catalogue, ALL, tmp_path / "ray")
    expected = texts(write_corpus(catalogue, catalogue, MADE, tmp_path / "one"))
    assert texts(tmp_path / "ray") == expected
    assert figures["families"]["person"]["sentences"] == expected["person"].count("\n")
    assert figures["words"] == sum(len(text.split()) for text in expected.values())
    assert list(figures["empty"]) == ["episodes", "coactors"]  # one actor a film
    assert "etl.title_types" in figures["empty"]["episodes"]


@pytest.mark.ray
def test_parts_hold_the_same_sentences_and_the_same_files_come_again(
    ray_session: None, catalogue: Path, write_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shuffles: item ranges, then people."""
    for name, rows in (("PART_ITEMS", 50), ("PART_CREDITS", 100), ("PART_USERS", 30)):
        monkeypatch.setattr(corpus, name, rows)
    for name in "ab":
        (tmp_path / name).mkdir()
        corpus.run(catalogue, catalogue, ALL, tmp_path / name)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    found, expected = texts(tmp_path / "a"), texts(write_corpus(catalogue, catalogue, MADE, tmp_path / "one"))
    assert found.keys() == expected.keys()
    for family in ("history", "context"):
        assert found[family] == expected[family]
    for family in ("person", "director_genre", "actor_genre"):
        assert sorted(found[family].splitlines()) == sorted(expected[family].splitlines())
    for family in ("genre", "era", "rating"):  # cut at other places, but the same members
        assert sorted(word for word in found[family].split() if word.startswith("MOV")) == sorted(
            word for word in expected[family].split() if word.startswith("MOV")
        )
    assert len(Corpus.load(tmp_path / "a").files()) > len(found)


@pytest.mark.ray
def test_episodes_come_from_the_table_of_episodes(ray_session: None, catalogue: Path, tmp_path: Path) -> None:
    for name in ("items", "credits"):
        (tmp_path / name).symlink_to(catalogue / name)
    rows = [{"item_id": f"tt{i:04d}", "parent_id": "tt0000", "season": 1, "episode": i} for i in (3, 1, 2)]
    write_table(pa.Table.from_pylist(rows, EPISODES), tmp_path / "episodes")
    (tmp_path / "out").mkdir()
    assert not corpus.run(tmp_path, catalogue, CorpusConfig(families=("episodes",)), tmp_path / "out")["empty"]
    assert texts(tmp_path / "out")["episodes"] == "MOV_tt0001 MOV_tt0000 MOV_tt0002 MOV_tt0003\n"


def test_rows_of_both_tables_that_meet_in_a_part_give_its_lines(catalogue: Path, write_corpus: Callable[..., Path], tmp_path: Path) -> None:
    """The kernel alone: row groups in any order."""
    groups = pa.table({"path": [str(p) for n in ("credits", "items") for p in parquet_files(catalogue / n)], "group": [0, 0]})
    rows = pa.concat_tables(corpus.read_groups(groups))
    assert rows.num_rows == sum(read_table(catalogue / n, s).num_rows for n, s in (("items", ITEMS), ("credits", CREDITS)))
    mixed = rows.take(np.random.default_rng(0).permutation(rows.num_rows))
    made = corpus.item_part(mixed, list(ITEM_FAMILIES), with_people=True)
    expected = texts(write_corpus(catalogue, catalogue, ITEM_FAMILIES, tmp_path))
    assert {row["family"]: row["text"].decode() for row in corpus.only_text(made).to_pylist() if row["text"]} == expected
    pairs = pa.concat_tables(corpus.only_pairs(made, 3))
    assert pairs.num_rows == 2 * 118 - pairs_of_one_person(catalogue)
    assert set(pairs["part"].to_pylist()) <= {0, 1, 2}
    assert corpus.item_part(rows.slice(0, 0), list(ITEM_FAMILIES), with_people=True).num_rows == 0


def pairs_of_one_person(catalogue: Path) -> int:
    """Films whose director is their actor: the second role doesn't count."""
    people: dict[int, list[str]] = {}
    for row in read_table(catalogue / "credits", CREDITS).to_pylist():
        people.setdefault(row["item_index"], []).append(row["person_id"])
    return sum(len(both) - len(set(both)) for both in people.values())


def test_a_piece_without_sentences_is_no_file(tmp_path: Path) -> None:
    made = Corpus(tmp_path)
    made.add("genre", 0, Lines(b"", 0, 0))
    made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.json"]
