"""Sequence families: each against the slow obvious version, and the corpus they are kept in."""

import numpy as np
import pyarrow as pa
import pytest

from ugt import histories
from ugt.artifacts import CREDITS, EPISODES, ITEMS, read_table
from ugt.schema import UGTError
from ugt.sequences import (
    FAMILIES,
    GROUP_PREFIX,
    Corpus,
    as_lines,
    catalogue_tokens,
    episode_sentences,
    history_sentences,
    item_sentences,
    pairs,
    person_sentences,
    token,
)
from ugt.word2vec import Word2VecConfig


@pytest.fixture(scope="module")
def tables(catalogue):
    return read_table(catalogue / "items", ITEMS).to_pylist(), read_table(catalogue / "credits", CREDITS).to_pylist()


@pytest.fixture(scope="module")
def parts(catalogue):
    items = read_table(catalogue / "items", ITEMS)
    return [token("MOV", i) for i in items["item_id"].to_pylist()], catalogue_tokens(items, read_table(catalogue / "credits", CREDITS))


def movies_of(credits, role, person):
    """Movies in which this is the first role of the person."""
    first = {}
    for row in sorted(credits, key=lambda row: (row["item_index"], row["ordering"])):
        first.setdefault((row["item_id"], row["person_id"]), row["role"])
    return [f"MOV_{movie}" for (movie, who), of in first.items() if (who, of) == (person, role)]


def test_tokens_carry_their_kind_and_no_white_space(parts):
    assert parts[1][7] == ["DIR_nm003", "ACT_nm011", "GEN_War", "ERA_1950s", "RAT_7", "TYP_movie", "REG_us"]
    assert token("GEN", "Film Noir") == "GEN_Film_Noir"


def test_a_person_is_followed_by_their_movies(tables, parts):
    found = {line[0]: line[1:] for line in person_sentences("person", pairs(*parts))}
    expected = {}
    for prefix, role in (("DIR", "director"), ("ACT", "actor")):
        for person in {row["person_id"] for row in tables[1] if row["role"] == role}:
            movies = movies_of(tables[1], role, person)
            if len(movies) > 1:
                expected[f"{prefix}_{person}"] = movies
    assert found == expected
    assert list(found) == sorted(found)


def test_a_movie_stands_among_what_is_known_of_it(parts):
    lines = list(item_sentences("context", *parts))
    for word, known in zip(*parts, strict=True):
        if known:
            assert [w for w in lines[0] if w != word] == known
            assert abs(lines[0].index(word) - len(known) / 2) < 1
            lines.pop(0)
    assert not lines


def test_actors_of_one_film_stand_together():
    words, tokens = ["MOV_a", "MOV_b"], [["DIR_1", "ACT_2", "ACT_3", "GEN_x"], ["ACT_2", "GEN_x"]]
    assert list(item_sentences("coactors", words, tokens)) == [["ACT_2", "ACT_3"]]


@pytest.mark.parametrize(("family", "column"), [("genre", "genres"), ("era", "year"), ("rating", "rating")])
def test_a_group_holds_each_member_once_and_every_stretch_reaches_the_key(tables, parts, family, column):
    prefix = GROUP_PREFIX[family]
    expected = {}
    for row in tables[0]:
        value = row[column]
        keys = value if column == "genres" else [] if value is None else [f"{value // 10 * 10}s" if column == "year" else str(int(value))]
        for key in keys:
            expected.setdefault(f"{prefix}_{key}", []).append(f"MOV_{row['item_id']}")
    found = {}
    for line in item_sentences(family, *parts):
        (key,) = [word for word in line if word.startswith(prefix)]
        assert max(line.index(key), len(line) - 1 - line.index(key)) <= 5
        found.setdefault(key, []).extend(word for word in line if word != key)
    assert {key: sorted(members) for key, members in found.items()} == {key: sorted(m) for key, m in expected.items() if len(m) > 1}
    assert any(members != sorted(members) for members in found.values())  # mixed: not in order of id


@pytest.mark.parametrize(("family", "prefix", "role"), [("director_genre", "DIR", "director"), ("actor_genre", "ACT", "actor")])
def test_a_person_stands_among_the_genres_of_their_movies(tables, parts, family, prefix, role):
    genres = {f"MOV_{row['item_id']}": row["genres"] for row in tables[0]}
    found = {}
    for line in person_sentences(family, pairs(*parts)):
        (key,) = [word for word in line if word.startswith(prefix)]
        found.setdefault(key, []).extend(word for word in line if word != key)
    people = {row["person_id"] for row in tables[1] if row["role"] == role}
    assert found == {
        f"{prefix}_{p}": [f"GEN_{g}" for movie in movies_of(tables[1], role, p) for g in genres[movie]] for p in people if movies_of(tables[1], role, p)
    }


def test_parts_of_a_catalogue_give_what_the_whole_gives(parts):
    words, tokens = parts
    halves = [(words[:60], tokens[:60], 0), (words[60:], tokens[60:], 60)]
    for family in ("context", "coactors"):
        assert [line for w, t, _ in halves for line in item_sentences(family, w, t)] == list(item_sentences(family, words, tokens))
    worked = [pair for half in reversed(halves) for pair in pairs(*half)]  # a shuffle keeps no order
    for family in ("person", "director_genre", "actor_genre"):
        assert list(person_sentences(family, worked)) == list(person_sentences(family, pairs(words, tokens)))


def test_a_series_stands_among_its_episodes_in_their_order():
    rows = [{"item_id": f"e{n}", "parent_id": "s", "season": 1 + n // 8, "episode": n % 8 if n != 3 else None} for n in reversed(range(16))]
    lines = list(episode_sentences(pa.Table.from_pylist(rows, EPISODES)))
    assert [word for line in lines for word in line if word != "MOV_s"] == [f"MOV_e{n}" for n in (0, 1, 2, 4, 5, 6, 7, 3, *range(8, 16))]
    assert all(line.count("MOV_s") == 1 for line in lines)


def test_the_last_two_events_of_an_evaluated_user_never_enter_the_corpus(catalogue, write_corpus, tmp_path):
    past = histories.load(catalogue / "histories")
    (path,) = Corpus.load(write_corpus(catalogue, catalogue, ("history",), tmp_path)).files()
    lines = path.read_text().splitlines()
    for u, line in enumerate(lines):
        assert line.split() == [f"MOV_tt{i:04d}" for i in past.items[past.row(u)][:-2]]


def test_repeats_in_a_row_stand_once_and_a_long_history_is_cut():
    lines = list(history_sentences([f"MOV_{i}" for i in range(3)], [[1, 1, 2, 1], [], np.tile([0, 1], 3_000)]))
    assert lines[0] == ["MOV_1", "MOV_2", "MOV_1"]
    assert [len(line) for line in lines[1:]] == [5_000, 1_000]


def test_a_corpus_that_was_not_closed_is_refused_and_one_that_was_counts_its_words(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.add("context", 1, as_lines([["MOV_b", "GEN_x"]]))
    corpus.add("context", 0, as_lines([["MOV_a", "GEN_x", "GEN_y"], []]))
    corpus.add("history", 0, as_lines([["MOV_a", "MOV_b"]]))
    corpus.add("genre", 0, as_lines([]))
    with pytest.raises(UGTError, match="ugt data corpus"):
        Corpus.load(tmp_path)
    corpus.close()
    found = Corpus.load(tmp_path)
    assert [path.name for path in found.files()] == ["history-00000.txt", "context-00000.txt", "context-00001.txt"]
    assert (found.sentences, found.words) == (3, 7)
    assert found.figures()["context"] == {"sentences": 2, "words": 5}
    assert "".join(path.read_text() for path in found.files()) == "MOV_a MOV_b\nMOV_a GEN_x GEN_y\nMOV_b GEN_x\n"


def test_all_families_have_a_name_for_all_of_them():
    assert Word2VecConfig(families="all").families == FAMILIES
    assert Word2VecConfig(families=("context", "history")).corpus() == Word2VecConfig(families=("history", "context"), width=5).corpus()
