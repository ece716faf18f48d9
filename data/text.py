"""Distribute text encoding over a pool of actors, each with one copy of the model; a text that was encoded before is not encoded again.

Choices: the cache is Parquet (hash of the text, vector), one file for what a run added, written aside and renamed; its folder is named by encoder and cut,
so vectors of two encoders never meet. A vector depends in its last bits (1e-6) on the texts it was padded with: with a cache and without, runs agree to that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from ugt.artifacts import CREDITS, ITEMS, PEOPLE, content_hash, new_matrix, read_table
from ugt.text import WIDTH, Encoder, TextConfig, item_texts

ENCODER = "all-MiniLM-L6-v2"
CACHE = pa.schema([("text", pa.binary(16)), ("vector", pa.list_(pa.float32(), WIDTH))])


class EncoderActor:
    """Holds the encoder of one worker."""

    def __init__(self, config: str):
        self.encoder = Encoder(TextConfig.model_validate_json(config))

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"row": block["row"], "vector": self.encoder.encode(block["text"].tolist())}


class VectorCache:
    """Vectors by the hash of their text, in a folder."""

    def __init__(self, folder: Path, config: TextConfig):
        self.folder = Path(folder) / content_hash([ENCODER, config.max_tokens])

    def fill(self, keys: Sequence[bytes], x_NT: np.ndarray) -> np.ndarray:
        """Write the vectors that are known into their rows; returns which rows got one, bool [N]."""
        known_N = np.zeros(len(keys), bool)
        wanted = pa.array(keys, pa.binary(16))
        for file in sorted(self.folder.glob("part-*.parquet")):
            at = pc.index_in(wanted, pq.read_table(file, columns=["text"])["text"].combine_chunks())
            rows = np.flatnonzero(~known_N & np.asarray(at.is_valid()))
            if len(rows):
                vectors = pq.read_table(file, columns=["vector"])["vector"].combine_chunks()
                x_NT[rows] = vectors.take(at.take(pa.array(rows))).flatten().to_numpy().reshape(-1, WIDTH)
                known_N[rows] = True
        return known_N

    def add(self, keys: Sequence[bytes], x_NT: np.ndarray) -> None:
        """Keep the vectors of new texts."""
        first = list({key: i for i, key in enumerate(keys)}.values())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x_NT[first].reshape(-1), pa.float32()), WIDTH)
        table = pa.table([pa.array([keys[i] for i in first], pa.binary(16)), vectors], schema=CACHE)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{hashlib.blake2b(b''.join(sorted(keys)), digest_size=8).hexdigest()}.parquet"
        pq.write_table(table, path.with_suffix(f".{os.getpid()}.tmp"))
        os.replace(path.with_suffix(f".{os.getpid()}.tmp"), path)


def run(etl_dir: Path, config: TextConfig, out_dir: Path, cache_dir: Path | None = None) -> dict[str, Any]:
    """Write `text.npy` (float32 [N, 384], row = item_index, unit vectors); figures of the texts. `cache_dir`: where vectors of texts are kept between runs.

    Raises UGTError if the catalogue is missing.
    """
    items = read_table(etl_dir / "items", ITEMS).sort_by("item_index")
    texts = item_texts(items, read_table(etl_dir / "people", PEOPLE), read_table(etl_dir / "credits", CREDITS), config)
    lengths = np.array([len(text) for text in texts])
    keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    x_NT = new_matrix(out_dir / "text.npy", len(texts), WIDTH)
    cache = VectorCache(cache_dir, config) if cache_dir is not None else None
    known_N = cache.fill(keys, x_NT) if cache is not None else np.zeros(len(texts), bool)
    # blocks of like length, so that little is padding; cut by rows alone, so that a second run gives the same bytes
    order = np.argsort(-lengths, kind="stable")
    order = order[~known_N[order]]
    workers = 0
    if len(order):
        table = pa.table({"row": order, "text": [texts[i] for i in order]})
        blocks = [table.slice(i, config.block_rows) for i in range(0, len(order), config.block_rows)]
        workers = min(config.workers, len(blocks))
        vectors = ray.data.from_arrow(blocks).map_batches(
            EncoderActor,
            fn_constructor_args=(config.model_dump_json(),),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=config.threads,
        )
        for batch in vectors.iter_batches(batch_size=None, batch_format="numpy"):
            x_NT[batch["row"]] = batch["vector"]
        if cache is not None:
            cache.add([keys[i] for i in order], x_NT[order])
    x_NT.flush()
    return {
        "items": len(texts),
        "width": WIDTH,
        "mean_characters": round(float(lengths.mean()), 1),
        "workers": workers,
        "cached": int(known_N.sum()),
    }
