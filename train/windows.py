"""Histories cut into training windows and batches: every event of the train part is a target exactly once per epoch.

Choices: a history longer than the encoder reads is cut into overlapping windows, so that targets keep context before them; where the cuts fall is
drawn anew each epoch. Windows of like length share a batch. All is a function of (seed, epoch), so a resumed epoch is the same epoch.

Shapes: B windows of a batch, Q targets of the widest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugt.histories import Split
from ugt.model.inputs import History, build_inputs, context_codes


class Window(NamedTuple):
    """Events [start, end) of a user: all but the last are read, those from `first` on are targets."""

    user: int
    start: int
    first: int
    end: int


class Batch(NamedTuple):
    inputs: dict[str, NDArray[np.int64]]  # of build_inputs, and position_BQ, target_BQ (item + 1, 0 = none), context_BQ
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
        mine = mine or windows[:1]
        width = max(w.end - w.first for w in mine)
        position, target, context = (np.zeros((len(mine), width), np.int64) for _ in range(3))
        rows = []
        for i, w in enumerate(mine):
            base, n = int(h.offsets[w.user]), w.end - w.first
            read, predicted = slice(base + w.start, base + w.end - 1), slice(base + w.first, base + w.end)
            rows.append(History(h.items[read], h.actions[read], h.values[read], h.timestamps[read]))
            position[i, :n] = np.arange(w.first, w.end) - w.start
            target[i, :n] = (h.items[predicted] + 1) * counted
            context[i, :n] = context_codes(h.timestamps[predicted])
        users = [w.user for w in mine]
        inputs = build_inputs(rows, np.zeros(len(mine), np.int64), self.user_UA[users], self.max_length)
        inputs |= {"position_BQ": position, "target_BQ": target, "context_BQ": context}
        return Batch(inputs, users, sum(w.end - w.first for w in windows))

    def codes_read(self) -> dict[str, list[NDArray[np.int64]]]:
        """By input, the codes that one epoch reads in each of its tables: what of the model's small tables is trained at all."""
        read: dict[str, list[set[int]]] = {name: [set()] for name in ("action", "value", "gap", "context")}
        read["user"] = [set() for _ in range(self.user_UA.shape[1])]
        for part in self.epoch(0):
            inputs = self.batch(part).inputs
            event, target = inputs["item_BL"] > 0, inputs["target_BQ"] > 0
            for name in ("action", "value", "gap"):
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
