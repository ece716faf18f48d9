"""Word2Vec: reproducible vectors, and a vector for every item."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ugt import histories
from ugt.artifacts import CREDITS, ITEMS, read_table
from ugt.sequences import Corpus, catalogue_tokens
from ugt.word2vec import Neighbourhood, Word2VecConfig, item_vectors, train_counts, train_vectors

CONFIG = Word2VecConfig(width=16, epochs=10)


@pytest.fixture(scope="module")
def parts(catalogue):
    items, past = read_table(catalogue / "items", ITEMS), histories.load(catalogue / "histories")
    return items.column("item_id").to_pylist(), catalogue_tokens(items, read_table(catalogue / "credits", CREDITS)), past


@pytest.fixture(scope="module")
def corpus(catalogue, write_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    pieces = Corpus.load(write_corpus(catalogue, catalogue, CONFIG.families, folder))
    path = folder / "corpus.txt"
    path.write_text("".join(piece.read_text() for piece in pieces.files()))
    return path


def test_items_are_counted_as_often_as_training_may_see_them(catalogue, parts, write_corpus, tmp_path):
    item_ids, _, past = parts
    (path,) = Corpus.load(write_corpus(catalogue, catalogue, ("history",), tmp_path)).files()
    counts = np.zeros(len(item_ids), int)
    for word in path.read_text().split():
        counts[item_ids.index(word[4:])] += 1
    assert (train_counts(len(item_ids), past, past.split(3).train_lengths) == counts).all()


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
