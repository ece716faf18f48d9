"""What vectors know: rates against a slow version, chance against draws, analogies that hold by construction; names and the projector's files."""

import numpy as np
import pyarrow as pa
import pytest
from gensim.models import KeyedVectors

from ugt.artifacts import CREDITS, ITEMS, PEOPLE, read_table
from ugt.projector import Labels, write
from ugt.schema import UGTError
from ugt.vector_report import ItemVectors, analogies, analogy, groups, nearest, neighbour_rates, report, series_name, similar


def keyed(words, x):
    vectors = KeyedVectors(x.shape[1])
    vectors.add_vectors(list(words), x.astype(np.float32))
    return vectors


@pytest.fixture(scope="module")
def world():
    """60 films of 12 directors: a film lies near its director, a director anywhere."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(12, 16))
    of = np.repeat(np.arange(12), 5)
    film = centre[of] + 0.3 * rng.normal(size=(60, 16))
    words = [f"MOV_t{i}" for i in range(60)] + [f"DIR_d{k}" for k in range(12)]
    return keyed(words, np.concatenate([film, centre])), [f"t{i}" for i in range(60)], of


def test_rates_and_chance_are_those_of_a_loop(world):
    vectors, ids, of = world
    lists = [[f"d{k}"] + (["d0"] if i % 7 == 0 else []) for i, k in enumerate(of)]
    found = neighbour_rates(ItemVectors(vectors, ids), {"director": lists, "alone": [[i] for i in ids]})
    x = np.stack([vectors[f"MOV_{i}"] for i in ids])
    x = (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1, keepdims=True)
    rates, chances = [], []
    for i in range(60):
        alike = [j for j in range(60) if j != i and set(lists[i]) & set(lists[j])]
        near = sorted((j for j in range(60) if j != i), key=lambda j: -float(x[i] @ x[j]))[:10]
        rates.append(len(set(near) & set(alike)) / min(10, len(alike)))
        chances.append(10 * len(alike) / 59 / min(10, len(alike)))
    assert found["director"]["rate"] == pytest.approx(np.mean(rates), abs=1e-4)
    assert found["director"]["chance"] == pytest.approx(np.mean(chances), abs=1e-4)
    assert "alone" not in found  # nobody shares anything


def test_vectors_that_know_nothing_are_at_chance():
    rng = np.random.default_rng(1)
    ids = [f"t{i}" for i in range(1_000)]
    vectors = keyed([f"MOV_{i}" for i in ids], rng.normal(size=(1_000, 8)))
    found = neighbour_rates(ItemVectors(vectors, ids), {"genre": [[f"g{i % 20}"] for i in range(1_000)]}, queries=1_000)
    assert found["genre"]["lift"] == pytest.approx(1, abs=0.15)  # 1,000 x 10 draws at .05: a standard error of .045


def test_analogies_hold_where_films_lie_by_their_director_and_not_where_they_do_not(world):
    vectors, ids, of = world
    members = [[f"d{k}"] for k in of]
    items = ItemVectors(vectors, ids)
    good = analogies(vectors, items, members, "DIR")
    assert good["hit@10"] > 0.9
    assert good["people"] == 12
    wrong = analogies(vectors, items, members[::-1][7:] + members[::-1][:7], "DIR")
    assert abs(wrong["chance"] - good["chance"]) < 0.02  # as many films each
    assert wrong["hit@10"] < good["hit@10"] - 0.2
    assert good["chance"] == pytest.approx(1 - np.prod([(59 - 5 - j) / (59 - j) for j in range(10)]), abs=0.02)
    assert analogies(vectors, items, members, "ACT") == {}


def test_nearest_rows_come_best_first_and_ties_by_row():
    x = np.array([[1, 0], [0.5, 0], [1, 0], [0, 1]], np.float32)
    assert nearest(x, np.array([[1, 0]], np.float32), 3).tolist() == [[0, 2, 1]]
    assert nearest(x, np.array([[1, 0]], np.float32), 9, np.array([[2]])).tolist() == [[0, 1, 3]]


@pytest.mark.parametrize(
    ("a", "b"),
    [("Alien", "Alien 3"), ("Alien", "Alien: Covenant"), ("Rocky", "Rocky IV"), ("Night Train", "Night Train, Part 2"), ("Heat", "Heat No. 3")],
)
def test_parts_of_a_series_have_one_name(a, b):
    assert series_name(a) == series_name(b)


def test_other_titles_keep_theirs():
    assert len({series_name(title) for title in ("Se7en", "1917", "2012", "Malcolm X", "X", "12 Monkeys", "Apollo 13 Days")}) == 7


def test_films_of_one_name_are_a_series_only_with_a_person_in_common():
    items = {f.name: pa.nulls(3, f.type) for f in ITEMS} | {"item_index": [0, 1, 2], "item_id": ["a", "b", "c"], "title": ["Dune", "Dune 2", "Dune"]}
    credits = [("a", 0, "p"), ("b", 1, "p"), ("c", 2, "q")]
    rows = [{"item_index": i, "item_id": item, "person_id": person, "role": "director", "ordering": 0} for item, i, person in credits]
    found = groups(pa.table(items, schema=ITEMS), pa.Table.from_pylist(rows, CREDITS))["series"]
    assert set(found[0]) & set(found[1])
    assert not set(found[0]) & set(found[2])


def test_queries_answer_with_their_kind(world):
    vectors, *_ = world
    assert [word[:4] for word, _ in similar(vectors, "MOV_t0", 4)] == ["MOV_"] * 4
    assert similar(vectors, "MOV_t0", 1, "DIR")[0][0] == "DIR_d0"
    found = [word for word, _ in analogy(vectors, "DIR_d0", "MOV_t0", "DIR_d1", 3)]
    assert set(found) <= {f"MOV_t{i}" for i in range(5, 10)}
    with pytest.raises(UGTError, match="MOV_nothing"):
        similar(vectors, "MOV_nothing")
    with pytest.raises(UGTError, match=r"word2vec\.families"):
        similar(vectors, "MOV_t0", kind="GEN")


def test_a_token_is_found_by_name_and_the_projector_gets_a_row_for_each(catalogue, tmp_path):
    items, people = read_table(catalogue / "items", ITEMS), read_table(catalogue / "people", PEOPLE)
    words = ["GEN_War", "MOV_tt0007", "MOV_tt0001", "DIR_nm003", "ACT_nm003"]
    vectors, labels = keyed(words, np.eye(5)), Labels(items, people)
    assert labels.token_of("film 7", vectors) == "MOV_tt0007"
    with pytest.raises(UGTError, match=r"DIR_nm003.*ACT_nm003"):
        labels.token_of("Person nm003", vectors)
    with pytest.raises(UGTError, match="Film 8"):
        labels.token_of("Film 8", vectors)  # an item, but without a vector
    assert write(vectors, labels, tmp_path, 4) == 4
    rows = [line.split("\t") for line in (tmp_path / "metadata.tsv").read_text().splitlines()]
    assert rows[0] == ["token", "kind", "name", "genres", "year"]
    assert rows[2] == ["MOV_tt0007", "movie", "Film 7", "War", "1957"]
    assert rows[3] == ["MOV_tt0001", "movie", "Film 1", "", ""]
    assert rows[4] == ["DIR_nm003", "director", "Person nm003", "", ""]
    assert np.loadtxt(tmp_path / "vectors.tsv").tolist() == np.eye(5)[:4].tolist()


def test_the_report_covers_a_catalogue(catalogue):
    items, credits = read_table(catalogue / "items", ITEMS), read_table(catalogue / "credits", CREDITS)
    genre = np.eye(4)[np.arange(120) % 4] + 0.01 * np.random.default_rng(0).normal(size=(120, 4))
    found = report(keyed([f"MOV_{i}" for i in items["item_id"].to_pylist()], genre), items, credits)
    assert found["neighbours"]["genre"]["rate"] == pytest.approx(1, abs=0.02)
    assert found["neighbours"]["genre"]["chance"] == pytest.approx(0.25, abs=0.02)
    assert found["items_without_vector"] == 0
    assert found["analogies"] == {"director": {}, "actor": {}}  # no tokens of people
