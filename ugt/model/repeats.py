"""How much a model leans towards or away from items that the history already holds: one learned number for each place where it matters.

In some data nobody buys a thing twice, in other data the next item is often an old one. A dot product can say neither: what is near to a history is
nearest to its own items. A number added to the logits of what was read before tells them apart and is learned with the rest. L1 needs none:
one item hardly changes the weight of a first code.

Shapes: B histories, L events, Q paths of a history (positions in training, beams when serving), K2 second codes, C slots of a group, M paths in a row,
R items drawn, I rows of the item table.
Source: the repeat and explore modes of RepeatNet (Ren et al., 2019, section 3.3), reduced to a bias.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.embeddings import CatalogueTables

SCALE = 8.0  # of the learned numbers: at the learning rate of weights near zero, a bias of -5 would take longer than a training


class Read(NamedTuple):
    """Where the items of each history lie in the trie. An event without an item counts for nothing."""

    group_BL: Tensor
    l3_BL: Tensor
    count_BL: Tensor  # 1 where there is an item
    share_BL: Tensor  # of its group that one item is


def read_items(item_BL: Tensor, tables: CatalogueTables) -> Read:
    """`item_BL`: rows of the item table, 0 = none. An item that was read twice counts where it was read first."""
    earlier_LL = torch.ones(item_BL.shape[1], item_BL.shape[1], dtype=torch.bool, device=item_BL.device).tril(-1)
    again_BL = ((item_BL[:, :, None] == item_BL[:, None]) & earlier_LL).any(-1)
    index_BL = (item_BL - 1).clamp(min=0)
    group_BL = tables.item_group_N[index_BL].long()
    count_BL = ((item_BL > 0) & ~again_BL).to(tables.item_ID.dtype)
    l3_BL = tables.item_slot_N[index_BL].long() - tables.group_start_G[group_BL].long()
    return Read(group_BL, l3_BL, count_BL, count_BL / tables.group_count_G[group_BL].clamp(min=1))


def read_before(position_BQ: Tensor, events: int) -> Tensor:
    """1 where an event of the history stands before a position, [B, Q, L]."""
    return (torch.arange(events, device=position_BQ.device) < position_BQ[..., None]).float()


class RepeatBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.group = nn.Parameter(torch.zeros(()))  # per share of a group's items that were read
        self.item = nn.Parameter(torch.zeros(()))
        self.dense = nn.Parameter(torch.zeros(()))

    def second(self, read: Read, before_BQL: Tensor | None, l1_BQ: Tensor, k2: int) -> Tensor:
        """Added to the logits of L2 under each path's L1, [B, Q, K2]. `before_BQL`: which events a path has read, all if None."""
        here_BQL = (read.group_BL // k2)[:, None] == l1_BQ[..., None]
        share_BQK = self._sum(here_BQL, before_BQL, read.share_BL) @ F.one_hot(read.group_BL % k2, k2).to(read.share_BL.dtype)
        return self.of_group(share_BQK)

    def third(self, read: Read, before_BQL: Tensor | None, group_BQ: Tensor, third_C: Tensor) -> Tensor:
        """Added to the logits of the slots of each path's group, [B, Q, C]. `third_C` is arange(C)."""
        here_BQL = read.group_BL[:, None] == group_BQ[..., None]
        slot_BLC = (read.l3_BL[..., None] == third_C).to(read.count_BL.dtype)
        return self.of_item(self._sum(here_BQL, before_BQL, read.count_BL) @ slot_BLC)

    def of_group(self, share: Tensor) -> Tensor:
        """Added to the logits of groups of which a history holds such shares."""
        return self.group * SCALE * share.clamp(max=1)

    def of_item(self, count: Tensor) -> Tensor:
        """Added to the logits of items which a history holds so many times."""
        return self.item * SCALE * count.clamp(max=1)

    @property
    def of_dense(self) -> Tensor:
        """Added to the dense head's logit of an item that was read."""
        return self.dense * SCALE

    @staticmethod
    def _sum(here_BQL: Tensor, before_BQL: Tensor | None, weight_BL: Tensor) -> Tensor:
        weight_BQL = here_BQL.to(weight_BL.dtype) * weight_BL[:, None]
        return weight_BQL if before_BQL is None else weight_BQL * before_BQL


def read_among(item_ML: Tensor, drawn_R: Tensor, table_rows: int) -> Tensor:
    """1 where a drawn item is among those a path has read, [M, R]. O(M (L + R)). `item_ML` and `drawn_R` are rows of the item table, 0 = none."""
    place_I = torch.full((table_rows,), len(drawn_R), dtype=torch.int64, device=drawn_R.device)
    place_I[drawn_R] = torch.arange(len(drawn_R), device=drawn_R.device)
    place_I[0] = len(drawn_R)  # one column more than R takes what was not drawn
    hit_MR = torch.zeros(len(item_ML), len(drawn_R) + 1, device=drawn_R.device).scatter(1, place_I[item_ML], 1.0)
    return hit_MR[:, place_I[drawn_R]]  # an item drawn twice was marked at one of its places
