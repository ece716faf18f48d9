"""Item vectors in Milvus: one collection per vector space, rows keyed by item_index. The store of record of what retrieval searches.

The hot path does not ask Milvus: a replica reads a whole collection once and searches its own copy (a query costs Milvus Lite 100-200 ms
whatever the index, 5 ms for a scan of 100k x 128 in memory). A real Milvus takes over by URI.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from ugt.schema import UGTError

SPACES = ("fused", "word2vec")  # spaces of the catalogue; the dense head's vectors belong to a model version
LEVELS = ("l1", "l2", "l3")
BATCH = 2000


def dense_space(version: str) -> str:
    """Name of the space of a model version's dense head."""
    return "dense_" + re.sub(r"\W", "_", version)


class VectorStore:
    """The Milvus client of the system."""

    def __init__(self, uri: str, timeout_s: float = 10.0):
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        try:
            self._client: Any = MilvusClient(uri, timeout=timeout_s)
        except MilvusException as error:
            raise UGTError(f"Milvus at {uri} does not answer: {error.message}. Start it or correct stores.milvus_uri.") from error

    def close(self) -> None:
        self._client.close()

    def ping(self) -> None:
        """Raises pymilvus.exceptions.MilvusException if the server does not answer."""
        self._client.list_collections()

    def count(self, space: str) -> int:
        """Rows of a space; 0 if it does not exist."""
        name = _collection(space)
        if not self._client.has_collection(name):
            return 0
        return int(self._client.get_collection_stats(name)["row_count"])

    def replace(self, space: str, item_ids: list[str], x_ND: np.ndarray, codes_N3: np.ndarray | None = None) -> None:
        """The space becomes exactly these vectors; with codes each beside its item's semantic ID, for `search` by prefix. Row i is item_index i.

        Raises UGTError on shapes that do not fit or values that are not finite.
        """
        from pymilvus import DataType

        levels = LEVELS if codes_N3 is not None else ()
        codes_N3 = np.zeros((len(item_ids), 0)) if codes_N3 is None else codes_N3
        if x_ND.ndim != 2 or len(item_ids) != len(x_ND) or codes_N3.shape != (len(item_ids), len(levels)):
            raise UGTError(
                f"vector space {space}: {len(item_ids)} items, vectors of shape {x_ND.shape}, codes of shape {codes_N3.shape}. Make the vectors again."
            )
        if not np.isfinite(x_ND).all():
            raise UGTError(f"vector space {space} holds values that are not finite. Make the vectors again.")
        name = _collection(space)
        if self._client.has_collection(name):
            self._client.drop_collection(name)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("item_index", DataType.INT64, is_primary=True)
        schema.add_field("item_id", DataType.VARCHAR, max_length=512)
        for level in levels:
            schema.add_field(level, DataType.INT32)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=x_ND.shape[1])
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        for level in levels[:2]:
            index.add_index(level, index_type="INVERTED")
        self._client.create_collection(name, schema=schema, index_params=index)
        x_ND = np.ascontiguousarray(x_ND, dtype=np.float32)
        for start in range(0, len(item_ids), BATCH):
            stop = min(start + BATCH, len(item_ids))
            coded = [dict(zip(levels, codes, strict=True)) for codes in codes_N3[start:stop].tolist()]
            self._client.insert(name, [{"item_index": i, "item_id": item_ids[i], "vector": x_ND[i]} | coded[i - start] for i in range(start, stop)])
        self._client.flush(name)

    def search(self, space: str, like: str | np.ndarray, count: int, prefix: tuple[int, ...] = ()) -> list[tuple[str, float]]:
        """(item_id, inner product) of the `count` items of a space that are most like a vector [D] or an item of it, best first.

        With a `prefix` of (l1) or (l1, l2), among the items under it only. Raises UGTError if the space, or the item in it, is missing.
        """
        name = _collection(space)
        if not self._client.has_collection(name):
            raise UGTError(f"Milvus has no vectors of the space {space}. Load them: ugt data materialize")
        self._client.load_collection(name)
        if isinstance(like, str):
            found = self._client.query(name, filter=f"item_id == {json.dumps(like, ensure_ascii=False)}", output_fields=["vector"])
            if not found:
                raise UGTError(f"there is no item {like!r} in the vector space {space}.")
            like = np.asarray(found[0]["vector"], np.float32)
        under = " and ".join(f"{level} == {int(code)}" for level, code in zip(LEVELS, prefix, strict=False))
        hits = self._client.search(name, data=[np.asarray(like, np.float32)], filter=under, limit=count, output_fields=["item_id"])[0]
        return [(hit["entity"]["item_id"], float(hit["distance"])) for hit in hits]

    def drop(self, space: str) -> None:
        if self._client.has_collection(_collection(space)):
            self._client.drop_collection(_collection(space))

    def fields(self, space: str) -> list[str]:
        """Names of what a row of a space holds."""
        return [str(field["name"]) for field in self._client.describe_collection(_collection(space))["fields"]]

    def spaces(self) -> list[str]:
        return sorted(c.removeprefix("ugt_") for c in self._client.list_collections() if c.startswith("ugt_"))

    def read(self, space: str) -> tuple[list[str], np.ndarray]:
        """Snapshot of a space: (item_ids, x_ND float32) in order of item_index. Raises UGTError if it is missing or has holes."""
        name = _collection(space)
        if not self._client.has_collection(name):
            raise UGTError(f"Milvus has no vectors of the space {space}. Load them: ugt data materialize")
        self._client.load_collection(name)
        rows: list[dict[str, Any]] = []
        iterator = self._client.query_iterator(name, batch_size=BATCH, output_fields=["item_index", "item_id", "vector"])
        while batch := iterator.next():
            rows += batch
        iterator.close()
        rows.sort(key=lambda r: r["item_index"])
        if not rows or [r["item_index"] for r in rows] != list(range(len(rows))):
            raise UGTError(f"the vector space {space} in Milvus is incomplete ({len(rows)} rows). Load it again: ugt data materialize")
        return [r["item_id"] for r in rows], np.asarray([r["vector"] for r in rows], dtype=np.float32)


def _collection(space: str) -> str:
    return "ugt_" + space
