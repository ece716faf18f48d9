"""Word2Vec: sequence families over catalogue and events, skip-gram vectors of items."""

from __future__ import annotations

from ugt.schema import Config


class Word2VecConfig(Config):
    width: int = 64
    window: int = 5
    negative: int = 10
    epochs: int = 10
    workers: int = 1  # one worker is reproducible to the bit; more are not (gensim)
    seed: int = 0
