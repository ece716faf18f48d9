"""Distribute feature encoding over the catalogue: vocabulary on the driver, rows in Ray Data blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ugt.artifacts import CREDITS, ITEMS, new_matrix, read_table
from ugt.features import FeatureConfig, Vocabulary, encode_features, fit_vocabulary, rows_of


def run(etl_dir: Path, config: FeatureConfig, out_dir: Path) -> dict[str, Any]:
    """Write `features.npy` (float32 [N, F], row = item_index) and `vocabulary.json`; figures of the columns.

    Raises UGTError if the catalogue is missing or empty.
    """
    items, credits = read_table(etl_dir / "items", ITEMS).sort_by("item_index"), read_table(etl_dir / "credits", CREDITS)
    vocabulary = fit_vocabulary(items, credits, config)
    rows = rows_of(items, credits)
    size = -(-rows.num_rows // config.blocks)
    blocks = ray.data.from_arrow([rows.slice(i, size) for i in range(0, rows.num_rows, size)])
    encoded = blocks.map_batches(_encode, batch_size=None, batch_format="pyarrow", fn_kwargs={"vocabulary": vocabulary.model_dump_json()})

    x_NF = new_matrix(out_dir / "features.npy", rows.num_rows, vocabulary.width)
    for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
        x_NF[batch["item_index"]] = batch["row"]
    x_NF.flush()
    vocabulary.save(out_dir)
    unknown = {name: round(float(x_NF[:, end - 1].mean()), 4) for name, (_, end) in vocabulary.blocks().items() if name != "numbers"}
    return {
        "items": rows.num_rows,
        "width": vocabulary.width,
        "genres": len(vocabulary.genres),
        "countries": len(vocabulary.countries),
        "people": len(vocabulary.people),
        "unknown_share": unknown,
    }


def _encode(block: pa.Table, vocabulary: str) -> dict[str, np.ndarray]:
    return {"item_index": block.column("item_index").to_numpy(), "row": encode_features(block.to_pylist(), Vocabulary.model_validate_json(vocabulary))}
