"""A small world to train in: histories, users, items and semantic IDs as the steps before leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ugt.artifacts import HISTORIES, ITEMS, USERS, write_table
from ugt.semantic_ids import CONTENT, SemanticIds


def _write(root: Path, lists: Sequence[list[int]], vector_NV: np.ndarray, genders: Sequence[str | None] | None = None) -> Path:
    """`lists`: the items of each user, oldest first. Codes are 4 x 4 x n / 16, in order of the item index."""
    n, users = len(vector_NV), [f"u{i:02d}" for i in range(len(lists))]
    columns = [users, lists, [[10] * len(x) for x in lists], [[4.0] * len(x) for x in lists], [list(range(10**9, 10**9 + len(x))) for x in lists]]
    write_table(pa.Table.from_arrays([pa.array(c, t) for c, t in zip(columns, HISTORIES.types, strict=True)], schema=HISTORIES), root / "histories/histories")
    about = {"user_id": users, "gender": genders or [None] * len(users), "age": [30] * len(users), "occupation": [None] * len(users)}
    write_table(pa.table(about, schema=USERS), root / "etl/users")
    item_ids = [f"tt{i:04d}" for i in range(n)]
    items = {f.name: pa.nulls(n, f.type) for f in ITEMS} | {"item_index": pa.array(range(n), pa.int32()), "item_id": pa.array(item_ids)}
    write_table(pa.table(items, schema=ITEMS), root / "etl/items")
    SemanticIds.from_codes(np.array([(i // 16, i // 4 % 4, i % 4) for i in range(n)]), item_ids, 4, 4, 8).save(root / "semantic_ids")
    np.save(root / "semantic_ids/item_vectors.npy", vector_NV.astype(np.float32))
    np.save(root / "semantic_ids" / CONTENT, vector_NV.astype(np.float32))
    return root


@pytest.fixture(scope="session")
def write_world() -> Callable[..., Path]:
    return _write
