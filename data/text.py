"""Distribute text encoding over a pool of actors, each with one copy of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from ugt.artifacts import CREDITS, ITEMS, PEOPLE, new_matrix, read_table
from ugt.text import WIDTH, Encoder, TextConfig, item_texts


class EncoderActor:
    """Holds the encoder of one worker."""

    def __init__(self, config: str):
        self.encoder = Encoder(TextConfig.model_validate_json(config))

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"row": block["row"], "vector": self.encoder.encode(block["text"].tolist())}


def run(etl_dir: Path, config: TextConfig, out_dir: Path) -> dict[str, Any]:
    """Write `text.npy` (float32 [N, 384], row = item_index, unit vectors); figures of the texts.

    Raises UGTError if the catalogue is missing.
    """
    items = read_table(etl_dir / "items", ITEMS).sort_by("item_index")
    texts = item_texts(items, read_table(etl_dir / "people", PEOPLE), read_table(etl_dir / "credits", CREDITS), config)
    lengths = np.array([len(text) for text in texts])
    # blocks of like length, so that little is padding; cut by rows alone, so that a second run gives the same bytes
    order = np.argsort(-lengths, kind="stable")
    table = pa.table({"row": order, "text": [texts[i] for i in order]})
    blocks = [table.slice(i, config.block_rows) for i in range(0, len(texts), config.block_rows)]
    vectors = ray.data.from_arrow(blocks).map_batches(
        EncoderActor,
        fn_constructor_args=(config.model_dump_json(),),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(config.workers, len(blocks))),
        num_cpus=config.threads,
    )
    x_NT = new_matrix(out_dir / "text.npy", len(texts), WIDTH)
    for batch in vectors.iter_batches(batch_size=None, batch_format="numpy"):
        x_NT[batch["row"]] = batch["vector"]
    x_NT.flush()
    return {"items": len(texts), "width": WIDTH, "mean_characters": round(float(lengths.mean()), 1), "workers": min(config.workers, len(blocks))}
