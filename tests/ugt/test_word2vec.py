"""Word2Vec: what enters the corpus, reproducible vectors, and a vector for every item."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ugt import histories
from ugt.artifacts import CREDITS, ITEMS, read_table
from ugt.word2vec import Neighbourhood, Word2VecConfig, catalogue_tokens, item_vectors, sentences, token, train_counts, train_vectors

CONFIG = Word2VecConfig(width=16, epochs=10)


@pytest.fixture(scope="module")
def parts(catalogue):
    items, past = read_table(catalogue / "items", ITEMS), histories.load(catalogue / "histories")
    return items.column("item_id").to_pylist(), catalogue_tokens(items, read_table(catalogue / "credits", CREDITS)), past


def test_the_last_two_events_of_an_evaluated_user_never_enter_the_corpus(parts):
    item_ids, tokens, past = parts
    lengths = past.split(3).train_lengths
    lines = list(sentences(item_ids, tokens, past, lengths, CONFIG.model_copy(update={"families": ("history",)})))
    for u, line in enumerate(lines):
        assert line == [token("MOV", item_ids[i]) for i in past.items[past.row(u)][:-2]]
    counts = np.zeros(len(item_ids), int)
    for line in lines:
        for word in line:
            counts[item_ids.index(word[4:])] += 1
    assert (train_counts(len(item_ids), past, lengths) == counts).all()


def test_tokens_carry_their_kind_and_no_white_space(parts):
    _, tokens, _ = parts
    assert tokens[7] == ["DIR_nm003", "ACT_nm011", "GEN_War", "ERA_1950s", "RAT_7", "TYP_movie", "REG_us"]
    assert token("GEN", "Film Noir") == "GEN_Film_Noir"


@pytest.fixture(scope="module")
def corpus(parts, tmp_path_factory):
    item_ids, tokens, past = parts
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(" ".join(line) + "\n" for line in sentences(item_ids, tokens, past, past.split(3).train_lengths, CONFIG)))
    return path


def test_another_process_gives_the_same_vectors(corpus):
    code = f"""
import hashlib
from pathlib import Path
from ugt.word2vec import Word2VecConfig, train_vectors
wv = train_vectors(Path({str(corpus)!r}), 10**6, Word2VecConfig(width=16, epochs=3))
print(hashlib.sha256(wv.vectors.tobytes() + repr(wv.index_to_key).encode()).hexdigest())"""

    def digest(seed: str) -> str:
        return subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout

    assert digest("1") == digest("2")


def test_every_item_has_a_unit_vector_and_genres_hold_together(parts, corpus):
    item_ids, tokens, past = parts
    counts = train_counts(len(item_ids), past, past.split(3).train_lengths)
    x, near, figures = item_vectors(train_vectors(corpus, 2000, CONFIG), item_ids, tokens, counts, CONFIG.shrinkage)
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    assert figures["items_seen"] + figures["items_from_metadata"] + figures["items_from_mean"] == len(item_ids)
    assert figures["items_from_metadata"] >= 2  # 0 by its genre, 1 by its type alone
    genre = np.arange(120) % 4
    cosine = x @ x.T
    seen = counts > 0
    same = cosine[np.ix_(seen, seen)][genre[seen][:, None] == genre[seen]].mean()
    other = cosine[np.ix_(seen, seen)][genre[seen][:, None] != genre[seen]].mean()
    assert same > other + 0.2
    # item 0 was never seen: its metadata put it among the comedies
    assert cosine[0, seen & (genre == 0)].mean() > cosine[0, seen & (genre != 0)].mean() + 0.1
    assert (near.vector(tokens[0]) == x[0]).all()


def test_a_new_item_gets_a_vector_from_its_tokens_and_from_the_mean_without(tmp_path):
    near = Neighbourhood.fit(np.eye(3, dtype=np.float32), [["GEN_A"], ["GEN_A", "GEN_B"], ["GEN_C"]], np.array([1, 1, 0]))
    assert near.vector(["GEN_B"]).tolist() == [0, 1, 0]
    assert near.vector(["GEN_C"]).tolist() == near.mean_W.tolist()  # the only item with C was never seen
    near.save(tmp_path / "n.npz")
    assert (Neighbourhood.load(tmp_path / "n.npz").vector(["GEN_A", "GEN_B"]) == near.vector(["GEN_A", "GEN_B"])).all()
