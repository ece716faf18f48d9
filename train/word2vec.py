"""Co-occurrence vectors: Word2Vec over the corpus, and the factorised co-occurrence of histories, both of the train part only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from train import word2vec_workers
from ugt import histories
from ugt.artifacts import CREDITS, ITEMS, read_table
from ugt.cooccurrence import factorise, fill, ppmi
from ugt.histories import HistoryConfig
from ugt.schema import UGTError
from ugt.sequences import Corpus, catalogue_tokens
from ugt.word2vec import Word2VecConfig, epochs, item_vectors, train_counts, train_vectors


def fit(corpus: Corpus, config: Word2VecConfig, work_dir: Path) -> Any:
    """gensim's KeyedVectors of every token of the corpus: by this process, or by `config.workers` Ray workers if that is more than one.

    Raises UGTError for a corpus without a single pair of words.
    """
    if not corpus.words:
        raise UGTError("word2vec: the corpus has no words: no metadata, no history. Look at the quarantine of `ugt data etl`.")
    if config.workers > 1:
        return word2vec_workers.fit(corpus, config, work_dir)
    whole = Path(work_dir) / "corpus.txt"
    try:
        with open(whole, "wb") as out:
            for path in corpus.files():
                with open(path, "rb") as piece:
                    shutil.copyfileobj(piece, out)
        return train_vectors(whole, corpus.words, config)
    finally:
        whole.unlink(missing_ok=True)


def run(
    etl_dir: Path, histories_dir: Path, corpus_dir: Path, config: Word2VecConfig, out_dir: Path, history: HistoryConfig = HistoryConfig()
) -> dict[str, Any]:
    """Write `word2vec.npy` (float32 [N, W], unit rows), `keyed_vectors.kv`, `cooccurrence.npy` (float32 [N, C]), the neighbourhood of each
    (`neighbourhood.npz`, `cooccurrence_neighbourhood.npz`) and `train_counts.npy`; figures of the corpus.

    Only the training part of the split is read, as by the model.
    """
    items, credits = read_table(etl_dir / "items", ITEMS).sort_by("item_index"), read_table(etl_dir / "credits", CREDITS)
    item_ids, tokens = items.column("item_id").to_pylist(), catalogue_tokens(items, credits)
    past = histories.load(histories_dir)
    train_lengths = history.apply(past).train_lengths
    corpus = Corpus.load(corpus_dir)
    vectors = fit(corpus, config, out_dir)
    count_N = train_counts(len(item_ids), past, train_lengths)
    vector_NW, near, figures = item_vectors(vectors, item_ids, tokens, count_N, config.shrinkage)
    np.save(out_dir / "word2vec.npy", vector_NW)
    np.save(out_dir / "train_counts.npy", count_N)
    near.save(out_dir / "neighbourhood.npz")
    with threadpool_limits(1):  # sums of BLAS depend on how many threads share them
        matrix = ppmi(past, train_lengths, len(item_ids), config.cooccurrence_window)
        raw_NW = factorise(matrix, config.cooccurrence_width, config.seed)
    together_NW, beside = fill(raw_NW, tokens, count_N)
    np.save(out_dir / "cooccurrence.npy", together_NW)
    beside.save(out_dir / "cooccurrence_neighbourhood.npz")
    vectors.lifecycle_events = None  # holds the time of day: two equal runs would differ
    vectors.save(str(out_dir / "keyed_vectors.kv"))
    return {
        "items": len(item_ids),
        "width": config.width,
        "tokens": len(vectors),
        "sentences": corpus.sentences,
        "words": corpus.words,
        "epochs": epochs(corpus.words, config),
        "pairs": int(matrix.nnz),
        "workers": config.workers,
    } | figures
