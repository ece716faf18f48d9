"""Every event of the train part is a target exactly once per epoch, with its context, on however many workers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from train.windows import TrainingWindows, cut
from ugt.histories import Histories
from ugt.model.inputs import History, build_inputs, context_codes

LENGTHS = [1, 2, 9, 10, 11, 40, 0, 73]


def windows(batch_size: int = 4) -> TrainingWindows:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    events = int(offsets[-1])
    items = np.arange(events, dtype=np.int32)  # every event its own item, so that it can be traced
    histories = Histories([f"u{i}" for i in range(len(LENGTHS))], offsets, items, items % 5 + 1, np.ones(events, np.float32), np.arange(events) * 3600 + 10**9)
    split = histories.split(5)
    return TrainingWindows(split, np.zeros((len(LENGTHS), 3), np.int64), max_length=8, overlap=0.5, batch_size=batch_size, seed=3)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_windows_cover_each_target_once_and_read_no_more_than_the_encoder_can(overlap: float) -> None:
    lengths = np.array(LENGTHS)
    seen = Counter((w.user, t) for w in cut(lengths, 8, overlap, np.random.default_rng(0)) for t in range(w.first, w.end))
    assert seen == Counter((u, t) for u, n in enumerate(LENGTHS) for t in range(n))
    for w in cut(lengths, 8, overlap, np.random.default_rng(0)):
        assert 0 <= w.start <= w.first < w.end
        assert w.end - 1 - w.start <= 8
        assert w.start == 0 or w.first - w.start >= 8 - round(8 * (1 - overlap))  # a target inside keeps context before it


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_batch_pairs_each_target_with_the_events_before_it_and_never_with_held_out_ones(workers: int) -> None:
    data = windows()
    h, split = data.split.histories, data.split
    found: Counter[int] = Counter()
    for step in data.epoch(0):
        parts = [data.batch(step, rank, workers) for rank in range(workers)]
        assert len({p.targets for p in parts}) == 1
        assert sum(int((p.inputs["target_BQ"] > 0).sum()) for p in parts) == parts[0].targets
        for p in parts:
            for row, (positions, targets) in enumerate(zip(p.inputs["position_BQ"], p.inputs["target_BQ"], strict=True)):
                for position, target in zip(positions, targets, strict=True):
                    if target == 0:
                        continue
                    found[int(target) - 1] += 1
                    read = p.inputs["item_BL"][row, :position] - 1
                    assert read.tolist() == list(range(int(target) - 1 - int(position), int(target) - 1))
    train = [int(h.offsets[u]) + t for u in range(len(LENGTHS)) for t in range(int(split.train_lengths[u]))]
    assert found == Counter(train)
    assert data.item_counts(len(h.items)).sum() == len(train)


def test_an_epoch_is_the_same_every_time_and_differs_from_the_next() -> None:
    assert windows().epoch(1) == windows().epoch(1)
    assert windows().epoch(1) != windows().epoch(2)


def test_the_codes_an_epoch_reads_are_those_of_the_train_part() -> None:
    made = windows()
    read = made.codes_read()
    # the last event of a train part is a target and never read
    h, expected = made.split.histories, set()
    for user, n in enumerate(made.split.train_lengths.tolist()):
        start = int(h.offsets[user])
        expected |= set(h.actions[start : start + max(0, n - 1)].tolist())
    assert set(read["action"][0].tolist()) == expected
    assert [table.tolist() for table in read["user"]] == [[0], [0], [0]]
    assert 0 not in read["context"][0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_reads_what_a_request_with_the_same_events_would_read(workers: int) -> None:
    """The arrays are cut from all histories at once; `build_inputs`, which serves, is the judge."""
    data, h = windows(), windows().split.histories
    rng = np.random.default_rng(0)
    h.values[rng.random(len(h.values)) < 0.3] = np.nan
    h.timestamps[rng.random(len(h.timestamps)) < 0.1] = 0
    object.__setattr__(data.split, "histories", h)
    for step in data.epoch(0):
        for rank in range(workers):
            made, mine = data.batch(step, rank, workers), step[rank::workers] or step[:1]
            cuts = [slice(int(h.offsets[w.user]) + w.start, int(h.offsets[w.user]) + w.end - 1) for w in mine]
            expected = build_inputs(
                [History(h.items[c], h.actions[c], h.values[c], h.timestamps[c]) for c in cuts], [0] * len(mine), data.user_UA[[w.user for w in mine]], 8
            )
            del expected["context_B"]  # training has one for each target
            for name, array in expected.items():
                assert made.inputs[name].dtype == array.dtype
                np.testing.assert_array_equal(made.inputs[name], array, err_msg=name)
            for row, w in enumerate(mine):
                targets = slice(int(h.offsets[w.user]) + w.first, int(h.offsets[w.user]) + w.end)
                np.testing.assert_array_equal(made.inputs["context_BQ"][row, : w.end - w.first], context_codes(h.timestamps[targets]))
