"""Histories of all users as flat arrays, and the leave-one-out split over them.

The order of a user's events is (timestamp, place in the source file), everywhere. The last event of an evaluated user is the test
target, the one before it the validation target; the test history includes the validation item.

Shapes: U users, E events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ugt.artifacts import HISTORIES, read_table
from ugt.schema import ACTION_IDS, ACTIONS, UGTError

Part = Literal["validation", "test"]


class Example(NamedTuple):
    """What is known before a target, oldest first, and the target (item index)."""

    items: NDArray[np.int32]
    actions: NDArray[np.int32]
    values: NDArray[np.float32]
    timestamps: NDArray[np.int64]
    target: int
    target_timestamp: int


@dataclass(frozen=True)
class Histories:
    """One row per user in CSR form: user u owns offsets[u]:offsets[u + 1], oldest first. `items` are item indices (0..N-1)."""

    user_ids: list[str]
    offsets: NDArray[np.int64]  # [U + 1]
    items: NDArray[np.int32]  # [E]
    actions: NDArray[np.int32]  # [E], ids of ACTION_IDS; 0 unknown
    values: NDArray[np.float32]  # [E], NaN where the event has no value
    timestamps: NDArray[np.int64]  # [E], Unix seconds, 0 where the source has none

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def row(self, u: int) -> slice:
        return slice(int(self.offsets[u]), int(self.offsets[u + 1]))

    def split(self, min_events: int = 3) -> Split:
        """Leave-one-out over users with at least `min_events` events (never fewer than 3: history, validation, test)."""
        lengths = self.lengths
        evaluated = lengths >= max(3, min_events)
        return Split(histories=self, evaluated=evaluated, train_lengths=np.where(evaluated, lengths - 2, lengths).astype(np.int64))


@dataclass(frozen=True)
class Split:
    """`evaluated` [U]: who has a validation and a test target. `train_lengths` [U]: how many first events training may see."""

    histories: Histories
    evaluated: NDArray[np.bool_]
    train_lengths: NDArray[np.int64]

    def example(self, u: int, part: Part) -> Example:
        """The events before the target of user `u`, and the target. Raises ValueError for a user who isn't evaluated."""
        if not self.evaluated[u]:
            raise ValueError(f"user {self.histories.user_ids[u]} has too few events to be evaluated")
        h = self.histories
        start, end = int(h.offsets[u]), int(h.offsets[u + 1]) - (1 if part == "test" else 2)
        cut = slice(start, end)
        return Example(h.items[cut], h.actions[cut], h.values[cut], h.timestamps[cut], int(h.items[end]), int(h.timestamps[end]))


def load(folder: Path) -> Histories:
    """Histories from the artifact of `data.histories` (the step's folder, or the dataset in it). Raises UGTError if there is none."""
    folder = Path(folder)
    table = read_table(folder / "histories" if (folder / "histories").is_dir() else folder, HISTORIES).combine_chunks()
    if table.num_rows == 0:
        raise UGTError(f"{folder} holds no history: the source has no events of known items. Check its events, then run `ugt data histories` again.")

    def flat(name: str) -> pa.Array:
        return table[name].combine_chunks().flatten()

    lengths = np.asarray(table["item_index"].combine_chunks().value_lengths())
    return Histories(
        user_ids=table["user_id"].to_pylist(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.asarray(flat("item_index"), dtype=np.int32),
        actions=np.asarray(flat("action"), dtype=np.int32),
        values=flat("value").to_numpy(zero_copy_only=False).astype(np.float32),
        timestamps=np.asarray(flat("timestamp"), dtype=np.int64),
    )


def from_events(events: pa.Table) -> pa.Table:
    """HISTORIES rows of a table of EVENTS rows, users in ascending order. Ties of time are broken by `order`, ties of that by event id."""
    if events.num_rows == 0:
        return HISTORIES.empty_table()
    events = events.sort_by([("user_id", "ascending"), ("timestamp", "ascending"), ("order", "ascending"), ("event_id", "ascending")]).combine_chunks()
    users = events["user_id"].combine_chunks()
    runs = pc.run_end_encode(users)
    offsets = pa.array(np.concatenate([[0], np.asarray(runs.run_ends)]), pa.int32())
    actions = pa.array([ACTION_IDS[a] for a in ACTIONS], pa.int32())
    codes = actions.take(pc.index_in(events["action"], value_set=pa.array(ACTIONS))).fill_null(0)

    def rows(values: pa.ChunkedArray | pa.Array) -> pa.ListArray:
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        return pa.ListArray.from_arrays(offsets, values)

    columns = [runs.values, rows(events["item_index"]), rows(codes), rows(events["value"]), rows(events["timestamp"])]
    return pa.Table.from_arrays(columns, names=HISTORIES.names).cast(HISTORIES)
