"""Word2Vec: skip-gram vectors of the tokens of a corpus (`ugt.sequences`), and of items.

Choices: a film, its people and the films seen beside it are tokens of one vocabulary and share one space; one thread, because gensim is
reproducible to the bit only then (several workers of one thread: `ugt.averaging`). An item's vector is unit length and leans on the metadata
neighbours the more, the less the item was seen; one that was never seen is nothing but them. The same estimate gives a new item its vector
(`Neighbourhood`).

Shapes: N items, W width.
Source: skip-gram with negative sampling (Mikolov et al., 2013); item2vec (Barkan and Koenigstein, 2016) for histories as sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from ugt.schema import Config, UGTError
from ugt.sequences import FAMILIES, CorpusConfig, Family, stable_hash, token

if TYPE_CHECKING:
    from gensim.models import KeyedVectors

    from ugt.histories import Histories


class Word2VecConfig(Config):
    """Families, and the usual knobs of skip-gram."""

    families: tuple[Family, ...] = ("history", "person", "context")  # "all" names every one; these three feed the semantic IDs best (docs/data.md, "Word2Vec")
    width: int = Field(default=64, ge=2)
    window: int = Field(default=5, ge=1)
    negative: int = Field(default=10, ge=1)
    epochs: int = Field(default=10, ge=1)
    min_words: int = 1_000_000  # a small corpus is read more often, up to 100 times, until this many words were seen
    sample: float = 1e-4  # words above this share of the corpus are thinned out; half the time of gensim's 1e-3, items retrieved as well or better
    shrinkage: float = Field(default=3.0, ge=0)  # an item's own vector weighs (views) against this much of its neighbours'
    cooccurrence_width: int = Field(default=64, ge=2)  # of the factorised co-occurrence of histories (`ugt.cooccurrence`)
    cooccurrence_window: int = Field(default=5, ge=1)
    workers: int = Field(default=1, ge=1)  # Ray workers, one CPU each, whose vectors are averaged after every epoch
    seed: int = 0

    @field_validator("families", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return FAMILIES if value == "all" else value

    def corpus(self) -> CorpusConfig:
        """What of this decides the corpus."""
        return CorpusConfig(families=tuple(family for family in FAMILIES if family in self.families))


def train_counts(items: int, histories: Histories, train_lengths: np.ndarray) -> np.ndarray:
    """How often each item occurs in the train part of the histories, int64 [N]."""
    start = np.repeat(histories.offsets[:-1], np.diff(histories.offsets))
    in_train = np.arange(len(histories.items)) - start < np.repeat(train_lengths, np.diff(histories.offsets))
    return np.bincount(histories.items[in_train], minlength=items).astype(np.int64)


def epochs(words: int, config: Word2VecConfig) -> int:
    """How often a corpus of this many words is read."""
    return max(config.epochs, min(100, -(-config.min_words // max(1, words))))


def train_vectors(corpus: Path, words: int, config: Word2VecConfig) -> KeyedVectors:
    """Skip-gram vectors of every token of a corpus file (one sentence per line, `words` in all), by one thread.

    Raises UGTError for a corpus without a single pair of words.
    """
    from gensim.models import Word2Vec

    try:
        model = Word2Vec(corpus_file=str(corpus), epochs=epochs(words, config), **parameters(config))
    except RuntimeError as error:
        raise UGTError(f"word2vec: the corpus has no words ({error}): no metadata, no history. Look at the quarantine of `ugt data etl`.") from error
    return model.wv


def parameters(config: Word2VecConfig) -> dict[str, Any]:
    """gensim's arguments."""
    return {
        "vector_size": config.width,
        "window": config.window,
        "negative": config.negative,
        "sample": config.sample,
        "sg": 1,
        "min_count": 1,
        "workers": 1,
        "seed": config.seed + 1,  # gensim reads seed 0 as "none"
        "hashfxn": stable_hash,
    }


@dataclass(frozen=True)
class Neighbourhood:
    """The mean vector of the seen items that share a token; the vector of an unseen item follows from its tokens."""

    tokens: dict[str, int]
    centre_TW: np.ndarray  # unit vectors, float32
    weight_T: np.ndarray  # inverse frequency: a shared director says more than a shared decade
    mean_W: np.ndarray  # for an item none of whose tokens is known

    @classmethod
    def fit(cls, vectors_NW: np.ndarray, tokens: Sequence[Sequence[str]], count_N: np.ndarray) -> Neighbourhood:
        """From the unit vectors of items; those never seen (count 0) don't vote, unless nobody was seen."""
        seen = count_N > 0 if (count_N > 0).any() else np.ones(len(count_N), bool)
        names = sorted({word for known, is_seen in zip(tokens, seen, strict=True) if is_seen for word in known})
        index = {word: i for i, word in enumerate(names)}
        pairs = [(index[word], i) for i, known in enumerate(tokens) if seen[i] for word in known]
        total, members = np.zeros((len(names), vectors_NW.shape[1])), np.zeros(len(names))
        if pairs:
            rows, owners = np.array(pairs).T
            np.add.at(total, rows, vectors_NW[owners])
            np.add.at(members, rows, 1)
        weight = np.log(1 + seen.sum() / np.maximum(members, 1))
        return cls(index, unit(total).astype(np.float32), weight.astype(np.float32), unit(vectors_NW[seen].mean(0, keepdims=True))[0].astype(np.float32))

    def vector(self, tokens: Sequence[str]) -> np.ndarray:
        """Unit vector, float32 [W], of an item with these tokens."""
        known = [self.tokens[word] for word in tokens if word in self.tokens]
        if not known:
            return self.mean_W
        return unit((self.weight_T[known, None] * self.centre_TW[known]).sum(0, keepdims=True))[0].astype(np.float32)

    def save(self, path: Path) -> None:
        names = np.frombuffer(json.dumps(list(self.tokens)).encode(), np.uint8)
        np.savez(path, allow_pickle=False, tokens=names, centre=self.centre_TW, weight=self.weight_T, mean=self.mean_W)

    @classmethod
    def load(cls, path: Path) -> Neighbourhood:
        """Raises UGTError if the file is not there."""
        if not Path(path).is_file():
            raise UGTError(f"no neighbourhood of tokens at {path}. Run `ugt train word2vec` first.")
        with np.load(path) as f:
            names = json.loads(f["tokens"].tobytes())
            return cls({word: i for i, word in enumerate(names)}, f["centre"], f["weight"], f["mean"])


def item_vectors(
    vectors: KeyedVectors, item_ids: Sequence[str], tokens: Sequence[Sequence[str]], count_N: np.ndarray, shrinkage: float
) -> tuple[np.ndarray, Neighbourhood, dict[str, int]]:
    """Unit vectors of all items, float32 [N, W], none of them zero; the neighbourhood they lean on; and how many had which source."""
    own_NW = np.zeros((len(item_ids), vectors.vector_size), np.float32)
    has = np.array([token("MOV", item_id) in vectors.key_to_index for item_id in item_ids])
    raw = np.stack([vectors[token("MOV", item_id)] for item_id, known in zip(item_ids, has, strict=True) if known])
    # without the direction all skip-gram vectors share, which in a small corpus hides every difference (Mu and Viswanath, 2018)
    own_NW[has] = unit(raw - raw.mean(0))
    near = Neighbourhood.fit(own_NW, tokens, count_N * has)
    near_NW = np.stack([near.vector(known) for known in tokens])
    own_weight = np.where(has, count_N / (count_N + shrinkage) if shrinkage else (count_N > 0), 0.0)[:, None]
    mixed_NW = unit(own_weight * own_NW + (1 - own_weight) * near_NW).astype(np.float32)
    told = np.array([any(word in near.tokens for word in known) for known in tokens])
    figures = {
        "items_seen": int((count_N > 0).sum()),
        "items_from_metadata": int(((count_N == 0) & told).sum()),
        "items_from_mean": int(((count_N == 0) & ~told).sum()),
    }
    return mixed_NW, near, figures


def unit(x_NW: np.ndarray) -> np.ndarray:
    """Rows of length one; a zero row stays zero."""
    norm = np.linalg.norm(x_NW, axis=1, keepdims=True)
    return x_NW / np.where(norm > 0, norm, 1)
