"""Feature definitions and vocabularies of items: one definition for batch and online.

Choices: everything is a column of one float32 row. Categories are multi-hot with an explicit column for "unknown" (nothing given, or
nothing the vocabulary knows), numbers come as a log value with a flag that says they are missing: a null never looks like a value.
The vocabulary is fitted once, is part of the artifact, and is all that encoding needs. A catalogue is kept sparse: of 800 columns some 15 are not 0.
`encode_features` says what a row is, item by item; `ugt.feature_blocks` does the same for a block of the catalogue at once.

Shapes: N items, F columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from ugt.artifacts import write_text
from ugt.schema import Config, Record, UGTError

UNKNOWN = "unknown"
VOCABULARY = "vocabulary.json"
FEATURES = "features.npz"
RUNTIME_EDGES = (40, 75, 100, 130, 180)  # minutes: short, hour, feature, long, epic, beyond
RUNTIME_BUCKETS = ("<40", "<75", "<100", "<130", "<180", "180+")


class FeatureConfig(Config):
    """What gets a column of its own."""

    max_people: int = 512  # most frequent people get a column of their own
    min_person_items: int = 2
    min_country_items: int = 2


class Vocabulary(Record):
    """The columns of a feature row, block by block. Within a block the last column is "unknown"."""

    genres: list[str]
    countries: list[str]
    item_types: list[str]
    eras: list[str]  # decades, "1990s"
    ratings: list[str]  # buckets one wide, "7"
    runtimes: list[str]
    people: list[str]  # person_id

    def blocks(self) -> dict[str, tuple[int, int]]:
        """Name to (first, end) column, in order. `numbers` is (log10 votes / 7, votes missing, log runtime / 6, runtime missing)."""
        widths = {name: len(values) + 1 for name, values in self.categories().items()} | {"numbers": 4}
        ends = np.cumsum(list(widths.values())).tolist()
        return {name: (end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}

    @property
    def width(self) -> int:
        return self.blocks()["numbers"][1]

    def categories(self) -> dict[str, list[str]]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    def save(self, folder: Path) -> None:
        write_text(Path(folder) / VOCABULARY, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Raises UGTError if the folder has none."""
        path = Path(folder) / VOCABULARY
        if not path.is_file():
            raise UGTError(f"no {VOCABULARY} in {folder}. Run `ugt data features` first.")
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def save_features(x_NF: sparse.csr_array, folder: Path) -> None:
    sparse.save_npz(Path(folder) / FEATURES, x_NF, compressed=False)


def load_features(folder: Path) -> sparse.csr_array:
    """float32 CSR [N, F], row = item_index. Raises UGTError if the folder has none."""
    path = Path(folder) / FEATURES
    if not path.is_file():
        raise UGTError(f"no {FEATURES} in {folder}. Run `ugt data features` first.")
    return sparse.csr_array(sparse.load_npz(path))


def encode_features(rows: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> np.ndarray:
    """Feature rows, float32 [N, F], of items given as mappings with the fields of `ugt.schema.Item` and `people` (person ids).

    A field that is absent counts as null. The same function encodes a catalogue and one item of a request.
    """
    blocks = vocabulary.blocks()
    x_NF = np.zeros((len(rows), vocabulary.width), np.float32)
    columns = {name: {value: blocks[name][0] + i for i, value in enumerate(values)} for name, values in vocabulary.categories().items()}
    for x_F, row in zip(x_NF, rows, strict=True):
        for name, values in _values(row).items():
            hot = [columns[name][value] for value in values if value in columns[name]]
            x_F[hot or [blocks[name][1] - 1]] = 1.0
        x_F[slice(*blocks["numbers"])] = (*_log(row.get("votes"), 10, 7), *_log(row.get("runtime_minutes"), math.e, 6))
    return x_NF


def rows_of(items: pa.Table, credits: pa.Table) -> pa.Table:
    """The items with a column `people`: person ids in credit order, no one twice; empty where nobody is credited."""
    people = people_of(credits, items.num_rows)
    return items.append_column("people", pa.array([[person for person, _ in credit] for credit in people], pa.list_(pa.string())))


def people_of(credits: pa.Table, items: int) -> list[list[tuple[str, str]]]:
    """(person_id, role) of each item_index in order of (ordering, person_id); a person's first role counts."""
    order = credits.sort_by([("item_index", "ascending"), ("ordering", "ascending"), ("person_id", "ascending")])
    people: list[dict[str, str]] = [{} for _ in range(items)]
    for i, person, role in zip(*(order.column(name).to_pylist() for name in ("item_index", "person_id", "role")), strict=True):
        people[i].setdefault(person, role)
    return [list(one.items()) for one in people]


def decade(year: int | None) -> str:
    """1994 -> "1990s"; null -> "unknown"."""
    return f"{year // 10 * 10}s" if year is not None else UNKNOWN


def rating_bucket(rating: float | None) -> str:
    """7.9 -> "7", out of ten; null -> "unknown"."""
    return str(int(min(10, max(0, rating)))) if rating is not None and math.isfinite(rating) else UNKNOWN


def _values(row: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    runtime = row.get("runtime_minutes")
    return {
        "genres": row.get("genres") or (),
        "countries": row.get("countries") or (),
        "item_types": (row.get("item_type") or UNKNOWN,),
        "eras": (decade(row.get("year")),),
        "ratings": (rating_bucket(row.get("rating")),),
        "runtimes": (RUNTIME_BUCKETS[int(np.searchsorted(RUNTIME_EDGES, runtime, side="right"))] if runtime is not None else UNKNOWN,),
        "people": row.get("people") or (),
    }


def _log(value: float | None, base: float, top: float) -> tuple[float, float]:
    """(log value scaled to about 0..1, missing flag)."""
    return (math.log(1 + max(0, value), base) / top, 0.0) if value is not None else (0.0, 1.0)
