"""Word2Vec on several workers: each trains on its share of the corpus, and after every epoch the vectors are averaged.

Choices: all start from the same vectors (the vocabulary and its counts are those of the whole corpus), so only data and draws differ. A share
holds every n-th sentence of the corpus, so all shares are alike.
The average weighs a share by its words, and the learning rate is multiplied by the number of workers (up to MAX_SCALE), because an average of K
moves that were made side by side is one K-th of the K moves that one worker makes one after the other. Measured on 2,000 generated films, 10
epochs, two seeds, as same-director neighbours at 10: one worker .177 and .170; two at gensim's rate .127 and .118, at twice the rate .171 and
.169; four at four times the rate .173 and .167. After 4 epochs, where nothing has settled, two workers are still behind (.095 of .104). Averaging
row by row, weighted by how often the word occurs in the share, was no better than the plain mean; adding up the moves failed with four workers.

One thread a worker and averages in a fixed order: the same number of workers gives the same vectors again; another number gives others of the same quality.

Shapes: V words of the vocabulary, W width.
Source: iterative parameter mixing (McDonald, Hall and Mann, 2010); skip-gram as in `ugt.word2vec`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ugt.word2vec import Word2VecConfig, parameters

MATRICES = ("input", "output")  # gensim's vectors and syn1neg
ALPHA, MIN_ALPHA = 0.025, 0.0001  # gensim's defaults: the learning rate falls in a straight line
MAX_SCALE = 4  # more was not tried


class Share:
    """One worker's share of a corpus, and its model. Order of calls: `counts`, `start`, then `train`, `rows`, `replace` for each epoch."""

    def __init__(self, files: Sequence[str], number: int, shares: int, path: str, config: Word2VecConfig):
        """Takes the sentences whose place in the corpus is `number` modulo `shares`, into the file `path`."""
        self.path, self.config, self.number, self.scale = Path(path), config, number, min(shares, MAX_SCALE)
        self._counts: Counter[str] = Counter()
        place = self.sentences = 0
        with open(path, "wb") as out:
            for name in files:
                with open(name, "rb") as piece:
                    for line in piece:
                        if place % shares == number:
                            out.write(line)
                            self.sentences += 1
                            self._counts.update(line.decode().split())
                        place += 1
        self.words = sum(self._counts.values())
        self.model: Any = None

    def counts(self) -> dict[str, int]:
        """How often each word occurs in this share."""
        return dict(self._counts)

    def start(self, counts: dict[str, int]) -> int:
        """A model over the counts of the whole corpus; returns V. Equal on all workers."""
        from gensim.models import Word2Vec

        self.model = Word2Vec(**parameters(self.config))
        self.model.build_vocab_from_freq(counts)
        self.model.random = np.random.RandomState([self.config.seed, self.number])  # of negatives and windows
        return len(self.model.wv)

    def train(self, epoch: int, epochs: int) -> float:
        """One epoch over the share; returns the CPU seconds it took."""
        if not self.words:
            return 0.0
        before = time.process_time()
        start, end = (self.scale * (ALPHA - (ALPHA - MIN_ALPHA) * at / epochs) for at in (epoch, epoch + 1))
        # gensim's rate falls by sentences if it is told their number, else by words, which is worse: long histories come first (same director .087, not .102)
        self.model.train(corpus_file=str(self.path), total_examples=self.sentences, total_words=self.words, epochs=1, start_alpha=start, end_alpha=end)
        return time.process_time() - before

    def _matrix(self, name: str) -> np.ndarray:
        matrix: np.ndarray = self.model.wv.vectors if name == "input" else self.model.syn1neg
        return matrix

    def rows(self, name: str, first: int, end: int) -> np.ndarray:
        """Rows of a matrix, float32 [end - first, W]."""
        return self._matrix(name)[first:end].copy()

    def replace(self, name: str, first: int, rows: np.ndarray) -> None:
        self._matrix(name)[first : first + len(rows)] = rows

    def vectors(self) -> Any:
        """gensim's KeyedVectors of the averaged model."""
        return self.model.wv


def vocabulary(counts: dict[str, int]) -> dict[str, int]:
    """Words with their counts in one order, whoever counted: gensim's rows follow from it."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def averaged(parts: Sequence[np.ndarray], words: Sequence[int]) -> np.ndarray:
    """The mean of the rows of all shares, float32 [R, W], each share weighing by its words."""
    total = np.zeros(parts[0].shape, np.float64)
    for x_RW, weight in zip(parts, words, strict=True):
        total += (weight / sum(words)) * x_RW
    return total.astype(np.float32)
