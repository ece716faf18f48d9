"""Filters as arrays over the trie, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ray_app.bench import generated
from ugt import filters
from ugt.filters import Filters
from ugt.semantic_ids import SemanticIds


@pytest.fixture(scope="module")
def ids() -> SemanticIds:
    return generated.semantic_ids(300, 1)


def made(ids: SemanticIds) -> Filters:
    groups = ids.codes_N3[:, 0] * ids.trie.k2 + ids.codes_N3[:, 1]
    return Filters({"slot_item_S": ids.trie.slot_item_S, "item_group_N": groups, "group_count_G": ids.trie.group_count_G}, ids.trie.k1)


def test_counts_and_slots_are_those_of_the_items_that_pass(ids: SemanticIds) -> None:
    odd = np.arange(300) % 2 == 1
    found = made(ids).arrays([None, odd, odd.copy(), np.zeros(300, bool)])
    assert found["filter_B"].tolist() == [0, 1, 1, 2]  # equal masks share a row
    for row, passes in enumerate((np.ones(300, bool), odd, np.zeros(300, bool))):
        items = ids.trie.slot_item_S[found["slot_allowed_FS"][row]]
        assert sorted(items.tolist()) == np.flatnonzero(passes).tolist()
        for group in range(ids.trie.groups):
            inside = [i for i in ids.with_prefix(group // ids.trie.k2, group % ids.trie.k2).tolist() if passes[i]]
            assert found["group_live_FG"][row, group] == len(inside)
        assert found["first_live_FK"][row].tolist() == found["group_live_FG"][row].reshape(ids.trie.k1, -1).sum(1).tolist()


def test_a_filter_is_computed_once_and_forgotten_when_many_others_came(ids: SemanticIds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "KEPT", 2)
    kept = made(ids)
    masks = [np.arange(300) == i for i in range(3)]
    first = kept.arrays([masks[0]])["slot_allowed_FS"]
    assert kept.arrays([masks[0].copy()])["slot_allowed_FS"] is first
    for mask in masks[1:]:
        kept.arrays([mask])
    again = kept.arrays([masks[0]])["slot_allowed_FS"]
    assert again is not first
    assert np.array_equal(again, first)
