"""The repeat bias against loops over paths and events."""

from __future__ import annotations

import numpy as np
import torch

from ugt.model.config import ModelConfig
from ugt.model.embeddings import CatalogueTables, ItemTable
from ugt.model.repeats import SCALE, RepeatBias, read_among, read_before, read_items
from ugt.semantic_ids import SemanticIds

ITEMS, K1, K2, C = 60, 3, 4, 8


def catalogue() -> tuple[CatalogueTables, np.ndarray]:
    codes = np.array([(i % K1, i // K1 % K2, i // (K1 * K2)) for i in range(ITEMS)])
    ids = SemanticIds.from_codes(codes, [f"i{i:02d}" for i in range(ITEMS)], K1, K2, C)
    with torch.no_grad():
        return ItemTable(ModelConfig(width=8), ids, np.zeros((ITEMS, 2), np.float32))(), codes


def test_a_group_and_a_slot_are_moved_by_what_was_read_before_the_path() -> None:
    tables, codes = catalogue()
    generator = torch.Generator().manual_seed(0)
    item_BL = torch.randint(0, ITEMS + 1, (4, 9), generator=generator)  # 0: an event without an item; some items come twice
    item_BL[0, 1:4] = item_BL[0, 0] = 5
    position_BQ = torch.randint(0, 10, (4, 6), generator=generator)
    l1_BQ, l2_BQ = torch.randint(0, K1, (4, 6), generator=generator), torch.randint(0, K2, (4, 6), generator=generator)
    bias = RepeatBias()
    with torch.no_grad():
        bias.group.fill_(-0.5)
        bias.item.fill_(0.25)
        read, before = read_items(item_BL, tables), read_before(position_BQ, 9)
        second, third = bias.second(read, before, l1_BQ, K2), bias.third(read, before, l1_BQ * K2 + l2_BQ, torch.arange(C))
    group_size = {g: sum(1 for c in codes if tuple(c[:2]) == g) for g in {tuple(c[:2]) for c in codes}}
    for b in range(4):
        for q in range(6):
            known = {int(i) - 1 for i in item_BL[b, : position_BQ[b, q]] if i > 0}
            for l2 in range(K2):
                inside = [i for i in known if tuple(codes[i][:2]) == (int(l1_BQ[b, q]), l2)]
                assert np.isclose(second[b, q, l2], -0.5 * SCALE * len(inside) / group_size[int(l1_BQ[b, q]), l2], atol=1e-6)
            for l3 in range(C):
                there = any(tuple(codes[i]) == (int(l1_BQ[b, q]), int(l2_BQ[b, q]), l3) for i in known)
                assert np.isclose(third[b, q, l3], 0.25 * SCALE * there, atol=1e-6)


def test_drawn_items_that_were_read_are_marked_at_each_place_they_were_drawn_to() -> None:
    item_ML = torch.tensor([[3, 0, 9], [0, 0, 0], [4, 4, 1]])
    drawn_R = torch.tensor([9, 4, 3, 9, 2])
    expected = [[int(d) in set(row.tolist()) - {0} for d in drawn_R] for row in item_ML]
    assert read_among(item_ML, drawn_R, 12).bool().tolist() == expected
