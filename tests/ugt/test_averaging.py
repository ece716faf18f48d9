"""Word2Vec on several workers: shares hold the corpus once, all start alike, and the average is one."""

from pathlib import Path

import numpy as np
import pytest

from ugt.averaging import MATRICES, Share, averaged, vocabulary
from ugt.sequences import Corpus
from ugt.word2vec import Word2VecConfig

CONFIG = Word2VecConfig(width=8)


@pytest.fixture
def shares(catalogue, write_corpus, tmp_path):
    files = [str(path) for path in Corpus.load(write_corpus(catalogue, catalogue, CONFIG.families, tmp_path)).files()]
    return files, [Share(files, k, 3, str(tmp_path / f"share-{k}.txt"), CONFIG) for k in range(3)]


def counted(shares):
    total = {}
    for share in shares:
        for word, n in share.counts().items():
            total[word] = total.get(word, 0) + n
    return total


def test_every_sentence_is_in_one_share_and_shares_are_alike(shares):
    files, made = shares
    lines = [line for path in files for line in Path(path).read_text().splitlines()]
    assert sorted(line for share in made for line in share.path.read_text().splitlines()) == sorted(lines)
    assert max(share.words for share in made) < 1.1 * min(share.words for share in made)
    words = " ".join(lines).split()
    assert counted(made) == {word: words.count(word) for word in set(words)}


def test_workers_start_alike_and_are_alike_again_after_averaging(shares):
    _, made = shares
    counts = vocabulary(counted(made))
    (size,) = {share.start(counts) for share in made}
    assert all(share.model.wv.index_to_key == made[0].model.wv.index_to_key for share in made)
    assert set(made[0].model.wv.index_to_key) == set(counts)
    assert all((share.rows("input", 0, size) == made[0].rows("input", 0, size)).all() for share in made)
    for share in made:
        share.train(0, 2)
    assert not (made[0].rows("input", 0, size) == made[1].rows("input", 0, size)).all()
    words = [share.words for share in made]
    for name in MATRICES:
        before = [share.rows(name, 0, size).astype(np.float64) for share in made]
        mean = sum(n * x for n, x in zip(words, before, strict=True)) / sum(words)
        for first in (0, 20):  # in blocks
            rows = averaged([share.rows(name, first, 20 if first == 0 else size) for share in made], words)
            for share in made:
                share.replace(name, first, rows)
        for share in made:
            assert np.allclose(share.rows(name, 0, size), mean, atol=1e-6)


def test_one_share_alone_learns_at_gensims_rate_and_three_at_three_times_of_it(shares, tmp_path):
    files, made = shares
    alone = Share(files, 0, 1, str(tmp_path / "alone.txt"), CONFIG)
    assert (alone.scale, made[0].scale) == (1, 3)
    rates = []
    for share in (alone, made[0]):
        share.start(vocabulary(counted(made)))
        share.train(0, 2)
        rates.append((share.model.alpha, share.model.min_alpha))
    assert rates[0] == pytest.approx((0.025, 0.01255))
    assert rates[1] == pytest.approx((0.075, 0.03765))
