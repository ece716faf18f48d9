"""Items held out leave no trace in what training reads, and the histories can be put together again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from ugt import histories, holdout
from ugt.artifacts import CREDITS, EVENTS, ITEMS
from ugt.schema import UGTError

USERS, CATALOGUE = 60, 40


def tables(mark: str = "") -> tuple[pa.Table, pa.Table, pa.Table]:
    """Items, credits and events; `mark` stands in the text and the ratings of the items a hold-out of a quarter takes."""
    rng, held = np.random.default_rng(0), set(holdout.choose(CATALOGUE, 0.25, 0).tolist())
    own = [mark if i in held else "" for i in range(CATALOGUE)]
    ids = [f"i{i:02d}" for i in range(CATALOGUE)]
    index, titles = pa.array(range(CATALOGUE), pa.int32()), [f"t{i}{own[i]}" for i in range(CATALOGUE)]
    items = pa.table({f.name: pa.nulls(CATALOGUE, f.type) for f in ITEMS} | {"item_index": index, "item_id": ids, "title": titles}, schema=ITEMS)
    people = [f"p{i % 5}{own[i]}" for i in range(CATALOGUE)]
    credits = pa.table([index, ids, people, ["actor"] * CATALOGUE, pa.array([0] * CATALOGUE, pa.int32())], schema=CREDITS)
    rows = []
    for u in range(USERS):
        for k, i in enumerate(rng.permutation(CATALOGUE)[: rng.integers(3, 12)].tolist()):
            about = {"event_id": f"e{u}-{k}", "user_id": f"u{u:02d}", "item_id": f"i{i:02d}", "item_index": i, "action": "rate"}
            rows.append(about | {"value": 4.0 + len(own[i]), "timestamp": 100 + k, "order": k})
    return items, credits, pa.Table.from_pylist(rows, EVENTS)


def test_nothing_of_a_held_out_item_is_in_the_kept_tables() -> None:
    plain, marked = holdout.part(*tables(), 0.25, 0), holdout.part(*tables("secret"), 0.25, 0)
    for name in ("items", "credits", "events"):
        kept, other, held = getattr(plain, name), getattr(marked, name), getattr(marked, f"held_{name}")
        assert kept.equals(other)
        assert not set(kept["item_id"].to_pylist()) & set(held["item_id"].to_pylist())
        assert sorted(set(kept["item_index"].to_pylist())) == list(range(30))
    assert sorted(marked.held_items["item_index"].to_pylist()) == list(range(30, 40))
    assert any("secret" in title for title in marked.held_items["title"].to_pylist())


def test_kept_and_held_out_events_together_are_the_histories_as_they_were() -> None:
    items, credits, events = tables()
    parted = holdout.part(items, credits, events, 0.25, 0)
    before, after = histories.from_events(events), histories.from_events(pa.concat_tables([parted.events, parted.held_events]))
    names = [*parted.items["item_id"].to_pylist(), *parted.held_items["item_id"].to_pylist()]
    assert [[names[i] for i in row] for row in after["item_index"].to_pylist()] == [[f"i{i:02d}" for i in row] for row in before["item_index"].to_pylist()]
    assert after.drop_columns("item_index").equals(before.drop_columns("item_index"))


def test_the_seed_and_the_share_decide_what_is_held_out() -> None:
    assert len(holdout.choose(1000, 0.05, 1)) == 50
    assert (holdout.choose(1000, 0.05, 1) == holdout.choose(1000, 0.05, 1)).all()
    assert (holdout.choose(1000, 0.05, 1) != holdout.choose(1000, 0.05, 2)).any()
    with pytest.raises(UGTError, match=r"Lower etl\.hold_out"):
        holdout.choose(3, 0.9, 0)
