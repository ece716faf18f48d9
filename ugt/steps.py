"""The three steps of a constrained decode, as every strategy takes them: log-probabilities of the children of the prefixes it kept.

Choices: what a request forbids costs work in proportion to its exclusions X and to what the step looks at, never to the catalogue: an exclusion takes
one from the count of its L1 at the first step, of its group at the second, if its L1 was kept, and its slot away at the third, if its group was kept. What
the history holds finds its places in the same way.
A step is computed for prefixes, so beams that hold the same prefix get the same children. Codes are scored by `LevelHeads`.

Shapes: as in `ugt/decoding.py`; M = B W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.model import inference
from ugt.model.embeddings import CatalogueTables
from ugt.model.heads import FEW_CODES
from ugt.model.repeats import read_items
from ugt.model.ugt import UGT, masked_log_softmax

if TYPE_CHECKING:
    from ugt.decoding import Constraints


class Steps:
    """One decode of B requests, W prefixes each. Call `first`, `second` and `third` in this order, once."""

    def __init__(
        self, model: UGT, state_BTD: Tensor, length_B: Tensor, context_B: Tensor, tables: CatalogueTables, limits: Constraints, beam_W: Tensor, third_C: Tensor
    ):
        """`beam_W` is arange(W) and `third_C` arange(C): sizes given as shapes, so that one exported graph serves every beam width and group size."""
        self.model, self.tables, self.limits, self.third_C = model, tables, limits, third_C
        self.batch, self.width, self.group_size = context_B.shape[0], beam_W.shape[0], third_C.shape[0]
        self.k1, self.k2 = model.items.k1, model.items.k2
        self.request_B1 = torch.arange(self.batch, device=beam_W.device)[:, None]
        self.beam_BW = beam_W + 0 * self.request_B1
        self.memory = inference.memory_of(model.decoder, state_BTD, length_B)
        last_B = length_B + self.request_B1[:, 0] * state_BTD.shape[1]
        self.state_BD, self.context_BD = state_BTD.reshape(-1, model.config.width)[last_B], model.context(context_B)
        item_BX = limits.exclude_BX.clamp(min=0)
        slot_BX, group_BX = tables.item_slot_N[item_BX].long(), tables.item_group_N[item_BX].long()
        self.excluded = _Marks(group_BX, slot_BX - tables.group_start_G[group_BX].long(), self.k2)
        # an exclusion of nothing counts for 0, and so does one of an item that the filter forbids anyway
        self.counts_BX = ((limits.exclude_BX >= 0) & self._allowed(slot_BX, limits.filter_B[:, None])).to(limits.first_live_FK.dtype)
        self.read = read_items(limits.read_BL, tables)
        self.marks_of_read = _Marks(self.read.group_BL, self.read.l3_BL, self.k2)

    def first(self) -> Tensor:
        """log p(l1), [B, K1]."""
        live_BK = self.limits.first_live_FK[self.limits.filter_B].scatter_add(1, self.excluded.l1_BE, -self.counts_BX)
        x_BD = self.model.decoder.start(self.state_BD) + self.context_BD + self.model.decoder.step.weight[0]
        h_BD, self.first_code = inference.decoder_step(self.model.decoder, x_BD, None, [], self.memory, 1)
        return masked_log_softmax(self.model.level_heads.first(h_BD, self.tables.first_KD) + self.limits.prior_BK, live_BK > 0)

    def second(self, l1_BW: Tensor) -> Tensor:
        """log p(l2 | l1) under each kept l1, [B, W, K2]."""
        l1_M, first_KD = l1_BW.reshape(-1), self.tables.first_KD
        if self.k1 <= FEW_CODES:  # the token of every L1, then each beam's
            token_RD, row_M = inference.prefix_tokens(self.model.decoder, 1, first_KD), l1_M
        else:
            token_RD, row_M = inference.prefix_tokens(self.model.decoder, 1, first_KD[l1_M]), None
        self.first_code = inference.follow(self.first_code, (self.request_B1 + 0 * self.beam_BW).reshape(-1))  # the same for all beams of a request
        h_MD, self.second_code = inference.decoder_step(self.model.decoder, token_RD, row_M, [self.first_code], self.memory, self.width)
        # one of the beams that hold an L1 keeps the count of its groups for all of them
        keeper_BK = torch.full((self.batch, self.k1), -1, dtype=torch.int64, device=l1_BW.device).scatter(1, l1_BW, self.beam_BW)
        self.keeper_BW = keeper_BK.gather(1, l1_BW)
        self.excluded.follow_l1(keeper_BK)
        self.marks_of_read.follow_l1(keeper_BK)
        live_MK = self.limits.group_live_FG.view(-1, self.k2)[(self.limits.filter_B[:, None] * self.k1 + l1_BW).reshape(-1)]
        live_BP = self.excluded.added(live_MK.view(self.batch, self.width * self.k2), -self.counts_BX)
        read_BP = self.marks_of_read.added(h_MD.new_zeros(self.batch, self.width * self.k2), self.read.share_BL)
        legal_BWK, read_BWK = (self._of_keepers(x, self.keeper_BW, self.k2) for x in (live_BP > 0, read_BP))
        logits_BWK = self.model.level_heads.second_kept(h_MD, l1_BW, self.tables.group_GD) + self.model.repeats.of_group(read_BWK)
        return masked_log_softmax(logits_BWK, legal_BWK)

    def third(self, parent_BW: Tensor, group_BW: Tensor) -> tuple[Tensor, Tensor]:
        """(log p(l3 | l1, l2), rows of the item table) for each kept group, whose l1 was beam `parent_BW` of the step before; [B, W, C] each."""
        token_MD = inference.prefix_tokens(self.model.decoder, 2, self.tables.group_GD[group_BW.reshape(-1)])
        written = [self.first_code, inference.follow(self.second_code, self._row(parent_BW))]
        h_MD, _ = inference.decoder_step(self.model.decoder, token_MD, None, written, self.memory, self.width)
        item_BWC, legal_BWC, read_BWC = self._items(parent_BW, group_BW)
        heads, item_ID = self.model.level_heads, self.tables.item_ID
        if h_MD.is_cuda:  # how many are legal is no size inside a CUDA graph
            logits_BWC = heads.third(h_MD.view(-1, self.width, self.model.config.width), F.embedding(item_BWC, item_ID))
        else:
            item_MC, legal_MC = item_BWC.view(-1, self.group_size), legal_BWC.view(-1, self.group_size)
            logits_BWC = heads.third_of_legal(h_MD, item_MC, legal_MC, item_ID).view(-1, self.width, self.group_size)
        return masked_log_softmax(logits_BWC + self.model.repeats.of_item(read_BWC), legal_BWC), item_BWC

    def user_vectors(self) -> Tensor:
        """[B, D], of the dense head."""
        return self.model.dense_head(self.state_BD, self.context_BD)

    def _items(self, parent_BW: Tensor, group_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Table rows (index + 1) of the items of each group, 0 where the request may not get one, where it may, and what was read, [B, W, C] each."""
        tables, size = self.tables, self.group_size
        # as in `second`: what is marked finds the beam that keeps its group by its place among the children of the step before
        place_BW = self.keeper_BW.gather(1, parent_BW) * self.k2 + group_BW % self.k2
        keeper_BP = torch.full((self.batch, self.width * self.k2), -1, dtype=torch.int64, device=group_BW.device).scatter(1, place_BW, self.beam_BW)
        self.excluded.follow_groups(keeper_BP, size)
        self.marks_of_read.follow_groups(keeper_BP, size)
        gone_BP = self.excluded.added(torch.zeros((self.batch, self.width * size), dtype=self.counts_BX.dtype, device=group_BW.device), self.counts_BX)
        read_BP = self.marks_of_read.added(tables.item_ID.new_zeros(self.batch, self.width * size), self.read.count_BL)
        free_BWC, read_BWC = (self._of_keepers(x, keeper_BP.gather(1, place_BW), size) for x in (gone_BP == 0, read_BP))

        slot_BWC = (tables.group_start_G[group_BW].long()[..., None] + self.third_C).clamp(max=tables.slot_item_S.shape[0] - 1)
        legal_BWC = (self.third_C < tables.group_count_G[group_BW].long()[..., None]) & free_BWC & self._allowed(slot_BWC, self.limits.filter_B[:, None, None])
        return torch.where(legal_BWC, tables.slot_item_S[slot_BWC].long() + 1, 0), legal_BWC, read_BWC

    def _of_keepers(self, x_BP: Tensor, keeper_BW: Tensor, size: int) -> Tensor:
        """What the keeper of each beam holds of its `size` children, [B, W, size]."""
        return x_BP.view(-1, size)[self._row(keeper_BW)].view(-1, self.width, size)

    def _row(self, beam_BW: Tensor) -> Tensor:
        """Rows of [M, ...] of given beams of each request, [M]."""
        return (beam_BW + self.request_B1 * self.width).reshape(-1)

    def _allowed(self, slot: Tensor, filter: Tensor) -> Tensor:
        """Whether the filter of a request lets the item of a slot through."""
        allowed_FS = self.limits.slot_allowed_FS
        return allowed_FS.reshape(-1)[slot + filter * allowed_FS.shape[1]]


class _Marks:
    """Items of which a request says something, followed through the steps to the children of the prefixes that were kept. O(E) per step.

    Shapes: E marks; `keeper` is the beam that keeps a prefix for all that hold it, -1 where none does.
    """

    def __init__(self, group_BE: Tensor, l3_BE: Tensor, k2: int):
        self.k2 = k2
        self.l1_BE, self.l2_BE, self.l3_BE = group_BE // k2, group_BE % k2, l3_BE

    def follow_l1(self, keeper_BK: Tensor) -> None:
        keeper_BE = keeper_BK.gather(1, self.l1_BE)
        self.kept_BE, self.cell_BE = keeper_BE >= 0, keeper_BE.clamp(min=0) * self.k2 + self.l2_BE

    def follow_groups(self, keeper_BP: Tensor, size: int) -> None:
        keeper_BE = keeper_BP.gather(1, self.cell_BE)
        self.kept_BE = self.kept_BE & (keeper_BE >= 0) & (self.l3_BE < size)
        self.cell_BE = torch.where(self.kept_BE, keeper_BE * size + self.l3_BE, 0)

    def added(self, x_BP: Tensor, weight_BE: Tensor) -> Tensor:
        """x with the weight of each mark added where it lies among the children, beam by beam."""
        return x_BP.scatter_add(1, self.cell_BE, weight_BE * self.kept_BE)
