"""Word2Vec on Ray workers: the same vectors again, of the quality of one worker, and no wait for CPUs that aren't there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train import word2vec
from ugt.schema import UGTError
from ugt.sequences import Corpus
from ugt.word2vec import Word2VecConfig, unit

CONFIG = Word2VecConfig(width=16, min_words=100_000)


def likeness(vectors) -> tuple[float, float]:
    """Mean cosine of items of one genre (index modulo 4) and of two; nobody sees items 0 and 1."""
    raw = np.stack([vectors[f"MOV_tt{i:04d}"] for i in range(4, 120)])
    cosine, genre = unit(raw - raw.mean(0)) @ unit(raw - raw.mean(0)).T, np.arange(4, 120) % 4
    same = genre[:, None] == genre
    return float(cosine[same].mean()), float(cosine[~same].mean())


@pytest.mark.ray
def test_two_workers_give_the_same_vectors_again_and_know_what_one_knows(
    ray_session: None, catalogue: Path, write_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    corpus = Corpus.load(write_corpus(catalogue, catalogue, CONFIG.families, tmp_path / "corpus"))
    two = CONFIG.model_copy(update={"workers": 2})
    first, again = (word2vec.fit(corpus, two, tmp_path) for _ in range(2))
    assert (first.vectors == again.vectors).all()
    assert first.index_to_key == again.index_to_key
    alone = word2vec.fit(corpus, CONFIG, tmp_path)
    assert set(alone.index_to_key) == set(first.index_to_key)
    (same, other), (same_alone, other_alone) = likeness(first), likeness(alone)
    assert same_alone - other_alone > 0.03  # knows the genres: six standard errors of a mean over 3,300 pairs
    assert same - other > 0.8 * (same_alone - other_alone)
    assert not list(tmp_path.glob("share-*")) + list(tmp_path.glob("corpus.txt"))


@pytest.mark.ray
def test_more_workers_than_cpus_are_refused(ray_session: None, catalogue: Path, write_corpus: Callable[..., Path], tmp_path: Path) -> None:
    corpus = Corpus.load(write_corpus(catalogue, catalogue, CONFIG.families, tmp_path / "corpus"))
    with pytest.raises(UGTError, match="the cluster has 4 CPUs"):
        word2vec.fit(corpus, CONFIG.model_copy(update={"workers": 99}), tmp_path)


def test_a_corpus_without_words_is_refused(tmp_path: Path) -> None:
    empty = Corpus(tmp_path)
    empty.close()
    with pytest.raises(UGTError, match="no words"):
        word2vec.fit(empty, CONFIG, tmp_path)
