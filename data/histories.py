"""Events to histories: one row per user, oldest first, ties of time broken by the place in the source file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray

from data import distribute
from data.distribute import LOOSE, Piece, frame, table
from ugt.artifacts import EVENTS, HISTORIES, read_table, write_table
from ugt.histories import HistoryConfig, from_events, load
from ugt.schema import UGTError

PARTS = 4  # a history table is small; more partitions only cost start-up


def history_kernel(rows: pl.DataFrame) -> Iterator[Piece]:
    yield LOOSE, "histories", frame(from_events(table(rows, EVENTS)))


def run(etl_dir: Path, config: HistoryConfig, out_dir: Path) -> dict[str, Any]:
    """`histories/` from `events/`, sorted by user id. Raises UGTError if there is no event, or if they can't be split as asked.

    Figures: users, evaluated users (those with a test and a validation event and something before), events, lengths.
    """
    events = read_table(Path(etl_dir) / "events", EVENTS)
    if events.num_rows == 0:
        raise UGTError(f"{etl_dir} holds no event. Check the source's events, then run `ugt data etl` again.")
    codes = pc.dictionary_encode(events["user_id"]).combine_chunks().indices
    parts = pa.array(np.asarray(codes) % PARTS, pa.int32())
    dataset = ray.data.from_arrow(events.append_column("part", parts))
    found = distribute.gather(distribute.per_partition(dataset, history_kernel, PARTS))
    histories = table(pl.concat(found["histories"]).sort("user_id"), HISTORIES)
    write_table(histories, Path(out_dir) / "histories")
    lengths = np.asarray(histories["item_index"].combine_chunks().value_lengths())
    evaluated = int(config.apply(load(Path(out_dir))).evaluated.sum())
    return {
        "users": histories.num_rows,
        "evaluated_users": evaluated,
        "events": int(lengths.sum()),
        "length": {"min": int(lengths.min()), "median": float(np.median(lengths)), "mean": round(float(lengths.mean()), 2), "max": int(lengths.max())},
    }
