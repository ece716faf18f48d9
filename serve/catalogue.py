"""The items of one model version as a replica needs them: index, title, type, genres, codes, and the mask of a filter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ugt.runtime import ITEM_TABLE
from ugt.schema import UGTError
from ugt.stores.records import Records


class Catalogue:
    """Row i is item_index i of the model version."""

    def __init__(self, item_ids: Sequence[str], rows: dict[str, tuple[str, str, list[str]]], codes_N3: np.ndarray):
        missing = [i for i in item_ids if i not in rows]
        if missing:
            raise UGTError(f"{len(missing):,} items of the model version are not in the SQL records (first: {missing[0]}). Load them: ugt data materialize")
        self.item_ids = list(item_ids)
        self.index = {item_id: i for i, item_id in enumerate(self.item_ids)}
        self.types = [rows[i][0] for i in self.item_ids]
        self.titles = [rows[i][1] for i in self.item_ids]
        self.genres = [tuple(rows[i][2]) for i in self.item_ids]
        self.codes_N3 = codes_N3
        self.allowed = lru_cache(maxsize=64)(self._allowed)

    @classmethod
    def load(cls, folder: Path, sql_url: str) -> Catalogue:
        """Item ids and codes from a version's folder; titles, types and genres from the records. Raises UGTError if an item has none."""
        table = pq.read_table(folder / ITEM_TABLE, columns=["item_id", "l1", "l2", "l3"])
        codes_N3 = np.stack([table[name].to_numpy() for name in ("l1", "l2", "l3")], axis=1)
        records = Records(sql_url)
        try:
            return cls(table["item_id"].to_pylist(), records.catalogue(), codes_N3)
        finally:
            records.close()

    def __len__(self) -> int:
        return len(self.item_ids)

    def indices(self, item_ids: Iterable[str]) -> list[int]:
        """item_index of those that this version knows."""
        return [i for item_id in item_ids if (i := self.index.get(item_id)) is not None]

    def filter_key(self, item_types: Iterable[str], categories: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Equal filters give equal keys, whatever their order and case."""
        return tuple(sorted(set(item_types))), tuple(sorted({c.casefold() for c in categories}))

    def _allowed(self, key: tuple[tuple[str, ...], tuple[str, ...]]) -> np.ndarray | None:
        """bool [N]: one of the types and one of the genres; None if nothing is asked for. Kept for the filters used last."""
        types, categories = set(key[0]), set(key[1])
        if not types and not categories:
            return None
        return np.fromiter((self.fits(i, types, categories) for i in range(len(self))), bool, len(self))

    def fits(self, index: int, types: set[str], categories: set[str]) -> bool:
        """Whether one item passes a filter (`categories` casefolded)."""
        return (not types or self.types[index] in types) and (not categories or any(g.casefold() in categories for g in self.genres[index]))

    def card(self, index: int) -> dict[str, Any]:
        """What an answer says of an item, whatever recommended it."""
        return {
            "item_id": self.item_ids[index],
            "item_type": self.types[index],
            "title": self.titles[index],
            "semantic_id": self.codes_N3[index].tolist(),
        }
