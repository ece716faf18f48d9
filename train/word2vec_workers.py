"""Word2Vec over Ray workers: an actor per share of the corpus, averaged by the driver after every epoch (`ugt.averaging`)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray

from ugt.averaging import MATRICES, Share, averaged, vocabulary
from ugt.schema import UGTError
from ugt.sequences import Corpus
from ugt.word2vec import Word2VecConfig, epochs

BLOCK_FLOATS = 8 << 20  # values averaged at a time: 32 MB a worker, whatever the vocabulary


class Timing(NamedTuple):
    """Of a training without its start-up: wall time, how much of it was averaging, CPU time of all workers."""

    seconds: float
    averaging: float
    cpu_seconds: float


def fit(corpus: Corpus, config: Word2VecConfig, work_dir: Path, timed: Callable[[Timing], None] = lambda timing: None) -> Any:
    """gensim's KeyedVectors of every token of the corpus, trained by `config.workers` actors of one CPU each.

    `timed` is told the times at the end. `work_dir` is seen by all nodes. Raises UGTError if the cluster has fewer CPUs than workers.
    """
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < config.workers:
        raise UGTError(f"word2vec.workers is {config.workers}, but the cluster has {cpus} CPUs. Lower it, or add nodes.")
    files = [str(path.absolute()) for path in corpus.files()]
    shares = [Path(work_dir).absolute() / f"share-{k}.txt" for k in range(config.workers)]
    remote = ray.remote(num_cpus=1, max_restarts=0)(Share)
    actors = [remote.remote(files, k, config.workers, str(path), config) for k, path in enumerate(shares)]
    try:
        counts: Counter[str] = Counter()
        words = []
        for found in ray.get([actor.counts.remote() for actor in actors]):
            counts.update(found)
            words.append(sum(found.values()))
        size = ray.get([actor.start.remote(ray.put(vocabulary(counts))) for actor in actors])[0]
        start, averaging, cpu, rounds = time.monotonic(), 0.0, 0.0, epochs(corpus.words, config)
        for epoch in range(rounds):
            cpu += sum(ray.get([actor.train.remote(epoch, rounds) for actor in actors]))
            before = time.monotonic()
            _average(actors, words, size, config.width)
            averaging += time.monotonic() - before
        timed(Timing(time.monotonic() - start, averaging, cpu))
        return ray.get(actors[0].vectors.remote())
    finally:
        for actor in actors:
            ray.kill(actor)
        for path in shares:
            path.unlink(missing_ok=True)


def _average(actors: list[Any], words: list[int], size: int, width: int) -> None:
    """Give every actor the average of all, a block of rows at a time. One actor alone has nothing to average."""
    if len(actors) == 1:
        return
    step = max(1, BLOCK_FLOATS // width)
    for name in MATRICES:
        for first in range(0, size, step):
            parts = ray.get([actor.rows.remote(name, first, min(size, first + step)) for actor in actors])
            rows = ray.put(averaged(parts, words))
            ray.get([actor.replace.remote(name, first, rows) for actor in actors])
