"""Items held out as new ones: a catalogue and its events as they were before these items came, and what comes with them.

Choices: the items leave the canonical tables themselves, so nothing later (vocabularies, vectors, codebooks, counts, histories, the model) can see
them: it would have to read another folder. Kept items are numbered anew, held-out ones behind them in ascending order of id, which is the number an
insertion gives them (`SemanticIds.insert`). With the events of both put together again, every history is what it was.

Shapes: N items, H held-out ones of them.
Source: new items as in TIGER (Rajput et al., 2023), section 4.3: a random 5% of the items unseen in training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ugt.schema import UGTError

FOLDER = "held_out"  # of the ETL step's result: `items`, `credits` and `events` of the items held out


class Parted(NamedTuple):
    """Tables of the catalogue: what is kept, and what is held out. Both number the items 0..N-1, the held-out ones last."""

    items: pa.Table
    credits: pa.Table
    events: pa.Table
    held_items: pa.Table
    held_credits: pa.Table
    held_events: pa.Table


def choose(items: int, share: float, seed: int) -> NDArray[np.int64]:
    """Indices of the items held out, ascending: a random `share` of them, at least one. Raises UGTError if nothing is left."""
    count = max(1, round(items * share))
    if count >= items:
        raise UGTError(f"a hold-out of {share:g} takes all {items:,} items. Lower etl.hold_out.")
    return np.sort(np.random.default_rng(seed).permutation(items)[:count]).astype(np.int64)


def part(items: pa.Table, credits: pa.Table, events: pa.Table, share: float, seed: int) -> Parted:
    """The tables (ITEMS, CREDITS, EVENTS) without and with the items held out. Raises UGTError if no event of a kept item is left."""
    held_H = choose(items.num_rows, share, seed)
    is_held_N = np.zeros(items.num_rows, bool)
    is_held_N[held_H] = True
    new_index_N = np.empty(items.num_rows, np.int32)
    new_index_N[~is_held_N] = np.arange(items.num_rows - len(held_H))
    new_index_N[held_H] = np.arange(items.num_rows - len(held_H), items.num_rows)
    halves: list[pa.Table] = []
    for table in (items.sort_by("item_index"), credits, events):
        old = table["item_index"].to_numpy().astype(np.int64)
        column = table.schema.get_field_index("item_index")
        table = table.set_column(column, table.schema.field(column), pa.array(new_index_N[old], pa.int32()))
        mask = pa.array(is_held_N[old])
        halves += [table.filter(pc.invert(mask)), table.filter(mask)]
    parted = Parted(halves[0], halves[2], halves[4], halves[1], halves[3], halves[5])
    if parted.events.num_rows == 0:
        raise UGTError(f"without the {len(held_H):,} items held out no event is left. Lower etl.hold_out.")
    return parted
