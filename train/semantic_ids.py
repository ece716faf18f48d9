"""Semantic IDs of a catalogue: join the vectors, fit the codebooks, name every item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from ugt.artifacts import ITEMS, read_table, write_text
from ugt.fusion import VectorSpace
from ugt.quantizer import Codebooks, fit_residual_kmeans, localise, quantise
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIdConfig, SemanticIds, code_sizes


def run(etl_dir: Path, fusion_dir: Path, word2vec_dir: Path, config: SemanticIdConfig, out_dir: Path) -> dict[str, Any]:
    """Write `semantic_ids.parquet`, `codebooks.npz`, `vector_space.npz`, `health.json`, `item_vectors.npy` (float32 [N, D], what was quantised).

    Figures are the health report. Raises UGTError if the vectors are not those of this catalogue.
    """
    items = read_table(etl_dir / "items", ITEMS).sort_by("item_index")
    blocks = [np.load(path) for path in (fusion_dir / "fused.npy", word2vec_dir / "word2vec.npy", word2vec_dir / "cooccurrence.npy")]
    if any(len(block) != items.num_rows for block in blocks):
        sizes = ", ".join(f"{len(block):,}" for block in blocks)
        raise UGTError(f"semantic_ids: {items.num_rows:,} items, but {sizes} vectors (fused, word2vec, co-occurrence). Run the steps before again.")
    space = VectorSpace.fit(blocks, [config.fused_weight, config.word2vec_weight, config.cooccurrence_weight])
    k1, k2, k3 = code_sizes(items.num_rows, config)
    # sums of BLAS depend on how many threads share them
    with threadpool_limits(config.threads):
        x_ND = space.join(blocks)
        codebooks = localise(x_ND, _fit(x_ND, k1, k2, config), k3, config.balance, config.local_steps)
        key_N = None
        if config.third == "popularity":
            # votes decide where nothing was seen: a catalogue without events still has an order
            votes_N = pc.fill_null(items.column("votes"), 0).to_numpy().astype(np.float64)
            key_N = np.load(word2vec_dir / "train_counts.npy") + votes_N / (1 + votes_N.max())
        codes_N3, shares = quantise(x_ND, codebooks, k3, config.balance, key_N)
    ids = SemanticIds.from_codes(codes_N3, items.column("item_id").to_pylist(), k1, k2, k3, config.spare)
    ids.save(out_dir)
    codebooks.save(out_dir / "codebooks.npz")
    space.save(out_dir / "vector_space.npz")
    np.save(out_dir / "item_vectors.npy", x_ND)
    health = ids.health() | shares | {"method": config.method, "width": x_ND.shape[1]}
    write_text(out_dir / "health.json", json.dumps(health, indent=1))
    return health


def _fit(x_ND: np.ndarray, k1: int, k2: int, config: SemanticIdConfig) -> Codebooks:
    if config.method == "rq_vae":
        from ugt.rq_vae import fit_rq_vae

        return fit_rq_vae(x_ND, k1, k2, config.rq_vae_width, config.rq_vae_epochs, config.seed, config.threads)
    return fit_residual_kmeans(x_ND, k1, k2, config.iterations, config.seed)
