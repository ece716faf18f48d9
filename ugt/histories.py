"""Histories of all users as flat arrays, and the split over them: leave-one-out, or by time.

The order of a user's events is (timestamp, place in the source file), everywhere. Leave-one-out: the last event of an evaluated user is the test
target, the one before it the validation target. Time: two moments cut all histories; what is before the first trains, a user's first event between
them is the validation target, the first one after the second the test target. The history of a target is all that precedes it, never more; a
test history includes the validation item.

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
from pydantic import Field, model_validator

from ugt.artifacts import HISTORIES, read_table
from ugt.schema import ACTION_IDS, ACTIONS, Config, UGTError

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
        train_lengths = np.where(evaluated, lengths - 2, lengths).astype(np.int64)
        return Split(self, train_lengths, np.where(evaluated, lengths - 2, -1), np.where(evaluated, lengths - 1, -1))

    def split_by_time(self, validation_from: float, test_from: float, min_events: int = 3) -> Split:
        """Split at two quantiles of all timestamps. An event at the very moment of a cut is after it.

        A target needs at least max(1, `min_events` - 2) events before it, as many as a validation target of leave-one-out. Raises UGTError where
        an event has no timestamp, or where nothing lies before the first cut.
        """
        unknown = int((self.timestamps <= 0).sum())
        if unknown:
            raise UGTError(
                f"a time split needs the time of every event, and {unknown:,} of {len(self.timestamps):,} have no timestamp. "
                "Set histories.split to leave_one_out, or give a source with timestamps."
            )
        ordered = np.sort(self.timestamps)
        cuts = [int(ordered[int(q * len(ordered))]) for q in (validation_from, test_from)]
        user_E = np.repeat(np.arange(len(self)), self.lengths)
        before_2U = [np.bincount(user_E[self.timestamps < cut], minlength=len(self)) for cut in cuts]
        if not before_2U[0].any():
            raise UGTError(
                f"a time split at {validation_from:g} leaves nothing to train on: no event is earlier than {cuts[0]} (Unix seconds). "
                "Raise histories.validation_from, or set histories.split to leave_one_out."
            )
        enough = max(1, min_events - 2)
        ends_2U = [before_2U[1], self.lengths]  # where the events a target may be taken from end
        at = [np.where((first >= enough) & (first < end), first, -1) for first, end in zip(before_2U, ends_2U, strict=True)]
        return Split(self, before_2U[0].astype(np.int64), *at)


@dataclass(frozen=True)
class Split:
    """`train_lengths` [U]: how many first events of each user training may see. `validation_at`, `test_at` [U]: the place of the user's target among
    the events, -1 for a user without one."""

    histories: Histories
    train_lengths: NDArray[np.int64]
    validation_at: NDArray[np.int64]
    test_at: NDArray[np.int64]

    @property
    def evaluated(self) -> NDArray[np.bool_]:
        """[U]: who has a test target."""
        return self.test_at >= 0

    def at(self, part: Part) -> NDArray[np.int64]:
        return self.test_at if part == "test" else self.validation_at

    def users(self, part: Part) -> NDArray[np.int64]:
        """Rows of the users with a target in this part, ascending."""
        return np.flatnonzero(self.at(part) >= 0)

    def targets(self, users: NDArray[np.int64], part: Part) -> NDArray[np.int64]:
        """The target items of these users, each of whom must have one."""
        return self.histories.items[self.histories.offsets[users] + self.at(part)[users]].astype(np.int64)

    def train_events(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(user row, item index) of each event that training may see, oldest first within a user."""
        h = self.histories
        user_E = np.repeat(np.arange(len(h)), h.lengths)
        seen_E = np.arange(len(h.items)) - h.offsets[:-1][user_E] < self.train_lengths[user_E]
        return user_E[seen_E], h.items[seen_E].astype(np.int64)

    def example(self, u: int, part: Part) -> Example:
        """The events before the target of user `u`, and the target. Raises ValueError for a user without a target in this part."""
        place = int(self.at(part)[u])
        if place < 0:
            raise ValueError(f"user {self.histories.user_ids[u]} has too few events to be evaluated, or none in this part")
        h = self.histories
        start = int(h.offsets[u])
        end = start + place
        cut = slice(start, end)
        return Example(h.items[cut], h.actions[cut], h.values[cut], h.timestamps[cut], int(h.items[end]), int(h.timestamps[end]))


class HistoryConfig(Config):
    """What is held out, and of whom."""

    min_events: int = 3  # users with fewer train but are not evaluated
    split: Literal["leave_one_out", "time"] = "leave_one_out"  # the field's usual one, and the one that lets no model see the future
    validation_from: float = Field(0.8, gt=0, lt=1)  # time split: quantiles of all timestamps; before the first is training,
    test_from: float = Field(0.9, gt=0, lt=1)  # between the two validation, from the second on test

    @model_validator(mode="after")
    def _in_order(self) -> HistoryConfig:
        if self.validation_from >= self.test_from:
            raise ValueError(f"validation_from {self.validation_from:g} is not below test_from {self.test_from:g}")
        return self

    def apply(self, histories: Histories) -> Split:
        """The split of these histories. Raises UGTError for a time split of events without timestamps."""
        if self.split == "time":
            return histories.split_by_time(self.validation_from, self.test_from, self.min_events)
        return histories.split(self.min_events)


def load(folder: Path) -> Histories:
    """Histories from the artifact of `data.histories` (the step's folder, or the dataset in it). Raises UGTError if there is none."""
    folder = Path(folder)
    table = read_table(folder / "histories" if (folder / "histories").is_dir() else folder, HISTORIES)
    if table.num_rows == 0:
        raise UGTError(f"{folder} holds no history: the source has no events of known items. Check its events, then run `ugt data histories` again.")
    return of_table(table)


def of_table(table: pa.Table) -> Histories:
    """Histories of HISTORIES rows."""
    table = table.combine_chunks()

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
