"""Distribute feature encoding over the parts of the catalogue: values are counted, the vocabulary follows, rows are encoded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from data import distribute
from data.distribute import Piece
from ugt.feature_blocks import count_block, encode_block, vocabulary_of
from ugt.features import FeatureConfig, Vocabulary, save_features


def run(etl_dir: Path, config: FeatureConfig, out_dir: Path) -> dict[str, Any]:
    """Write `features.npz` (float32 CSR [N, F], row = item_index) and `vocabulary.json`; figures of the columns.

    Raises UGTError if the catalogue is missing or empty.
    """
    parts = distribute.stored(etl_dir, ("items", "credits"))
    vocabulary = vocabulary_of(pl.concat(distribute.gather(distribute.each(parts, count_kernel), out_dir)["counts"]), config)
    found = distribute.gather(distribute.each(parts, encode_kernel, vocabulary=vocabulary.model_dump_json()), out_dir)
    # parts come as they are ready; each says where it begins
    blocks = sorted(zip((f["first"][0] for f in found["row"]), (f["csr"][0] for f in found["row"]), strict=True))
    x_NF = sparse.csr_array(sparse.vstack([sparse.load_npz(io.BytesIO(data)) for _, data in blocks], format="csr"))
    save_features(x_NF, out_dir)
    vocabulary.save(out_dir)
    share = np.asarray(x_NF.sum(0)) / x_NF.shape[0]
    unknown = {name: round(float(share[end - 1]), 4) for name, (_, end) in vocabulary.blocks().items() if name != "numbers"}
    return {
        "items": x_NF.shape[0],
        "width": vocabulary.width,
        "genres": len(vocabulary.genres),
        "countries": len(vocabulary.countries),
        "people": len(vocabulary.people),
        "unknown_share": unknown,
    }


def count_kernel(part: int, tables: dict[str, pl.DataFrame]) -> Iterator[Piece]:
    yield part, "counts", count_block(tables["items"], tables["credits"])


def encode_kernel(part: int, tables: dict[str, pl.DataFrame], vocabulary: str) -> Iterator[Piece]:
    items = tables["items"].sort("item_index")
    buffer = io.BytesIO()
    sparse.save_npz(buffer, encode_block(items, tables["credits"], Vocabulary.model_validate_json(vocabulary)), compressed=False)
    if items.height:
        yield part, "row", pl.DataFrame({"first": [items["item_index"][0]], "csr": [buffer.getvalue()]})
