"""Histories cut into training windows and batches: every event of the train part is a target exactly once per epoch.

Choices: a history longer than the encoder reads is cut into overlapping windows, so that targets keep context before them; where the cuts fall is
drawn anew each epoch. Windows of like length share a batch. All is a function of (seed, epoch), so a resumed epoch is the same epoch.

Shapes: B windows of a batch, Q targets of the widest one.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugt.histories import Split
from ugt.model.inputs import EVENT_ATTRIBUTES, Events, context_codes, event_inputs


class Window(NamedTuple):
    """Events [start, end) of a user: all but the last are read, those from `first` on are targets."""

    user: int
    start: int
    first: int
    end: int


class Batch(NamedTuple):
    inputs: dict[str, NDArray[np.int64]]  # as build_inputs makes them, and position_BQ, target_BQ (item + 1, 0 = none), context_BQ, seed (of the step)
    users: list[int]
    targets: int  # of the whole batch over all workers: what losses are divided by


def cut(lengths: NDArray[np.int64], max_length: int, overlap: float, rng: np.random.Generator) -> list[Window]:
    """Windows of all users with at least one event, in order of user. Event 0 is predicted from the user token alone."""
    stride = max(1, round(max_length * (1 - overlap)))
    windows = []
    for user, n in enumerate(lengths.tolist()):
        first, end = 0, min(n, max_length + 1)
        if n > max_length + 1:
            end -= int(rng.integers(0, stride))
        while first < n:
            windows.append(Window(user, max(0, end - 1 - max_length), first, end))
            first, end = end, min(n, end + stride)
    return windows


def _grid(start_B: NDArray[np.int64], length_B: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places start .. start + length - 1 of each row, [B, width], the last one repeated (the first where there is none), and which of them count."""
    step = np.arange(width)
    counts = step < length_B[:, None]
    return start_B[:, None] + np.minimum(step, np.maximum(length_B - 1, 0)[:, None]), counts


@dataclass(frozen=True)
class TrainingWindows:
    split: Split
    user_UA: NDArray[np.int64]  # attribute codes of all users of the split
    max_length: int
    overlap: float
    batch_size: int  # over all workers
    seed: int

    def epoch(self, epoch: int) -> list[list[Window]]:
        """The windows of each step, over all workers."""
        rng = np.random.default_rng([self.seed, epoch])
        windows = cut(self.split.train_lengths, self.max_length, self.overlap, rng)
        windows = [windows[i] for i in rng.permutation(len(windows))]
        chunk = self.batch_size * 16
        batches = []
        for at in range(0, len(windows), chunk):
            part = sorted(windows[at : at + chunk], key=lambda w: w.end - w.start)
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(self, windows: list[Window], rank: int = 0, workers: int = 1) -> Batch:
        """Arrays of this worker's share of a step's windows; a worker without a window gets one whose targets don't count."""
        h = self.split.histories
        mine = windows[rank::workers]
        counted = bool(mine)
        user_B, start_B, first_B, end_B = np.array(mine or windows[:1], np.int64).T
        base_B, length_B, width_B = h.offsets[user_B], end_B - 1 - start_B, end_B - first_B
        read_BL, event_BL = _grid(base_B + start_B, length_B, max(1, int(length_B.max())))
        predicted_BQ, target_BQ = _grid(base_B + first_B, width_B, int(width_B.max()))
        columns = (h.items[read_BL].astype(np.int64) + 1, h.actions[read_BL].astype(np.int64), h.values[read_BL], h.timestamps[read_BL])
        events = Events(*(np.where(event_BL, column_BL, 0) for column_BL in columns))  # the gap before the first event of a window is unknown
        inputs = event_inputs(events) | {
            "length_B": length_B,
            "user_BU": self.user_UA[user_B],
            "position_BQ": np.where(target_BQ, np.arange(target_BQ.shape[1]) + (first_B - start_B)[:, None], 0),
            "target_BQ": np.where(target_BQ, h.items[predicted_BQ].astype(np.int64) + 1, 0) * counted,
            "context_BQ": np.where(target_BQ, context_codes(h.timestamps[predicted_BQ]), 0),
            "seed": np.array(zlib.crc32(np.array(windows, np.int64).tobytes(), self.seed), np.int64),
        }
        return Batch(inputs, user_B.tolist(), sum(w.end - w.first for w in windows))

    def codes_read(self) -> dict[str, list[NDArray[np.int64]]]:
        """By input, the codes that one epoch reads in each of its tables: what of the model's small tables is trained at all."""
        read: dict[str, list[set[int]]] = {name: [set()] for name in (*EVENT_ATTRIBUTES, "context")}
        read["user"] = [set() for _ in range(self.user_UA.shape[1])]
        for part in self.epoch(0):
            inputs = self.batch(part).inputs
            event, target = inputs["item_BL"] > 0, inputs["target_BQ"] > 0
            for name in EVENT_ATTRIBUTES:
                read[name][0].update(np.unique(inputs[f"{name}_BL"][event]).tolist())
            read["context"][0].update(np.unique(inputs["context_BQ"][target]).tolist())
            for table, column in zip(read["user"], inputs["user_BU"].T, strict=True):
                table.update(np.unique(column).tolist())
        return {name: [np.array(sorted(table), np.int64) for table in tables] for name, tables in read.items()}

    def item_counts(self, items: int) -> NDArray[np.int64]:
        """How often each item is a target of training, [N]."""
        h = self.split.histories
        seen = [h.items[int(h.offsets[u]) : int(h.offsets[u]) + int(n)] for u, n in enumerate(self.split.train_lengths)]
        return np.bincount(np.concatenate(seen), minlength=items) if seen else np.zeros(items, np.int64)
