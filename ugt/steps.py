"""The three steps of a constrained decode, as every strategy takes them: log-probabilities of the children of the prefixes it kept.

Choices: what a request forbids costs work in proportion to its exclusions X and to what the step looks at, never to the catalogue: an exclusion takes
one from the count of its L1 at the first step, of its group at the second, if its L1 was kept, and its slot away at the third, if its group was kept.
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
        self.read = read_items(limits.read_BL, tables)
        self.request_B1 = torch.arange(self.batch, device=beam_W.device)[:, None]
        self.beam_BW = beam_W + 0 * self.request_B1
        self.memory = inference.memory_of(model.decoder, state_BTD, length_B)
        last_B = length_B + self.request_B1[:, 0] * state_BTD.shape[1]
        self.state_BD, self.context_BD = state_BTD.reshape(-1, model.config.width)[last_B], model.context(context_B)
        # where the exclusions lie in the trie; those of nothing and of items the filter forbids anyway count for 0
        item_BX = limits.exclude_BX.clamp(min=0)
        slot_BX, group_BX = tables.item_slot_N[item_BX].long(), tables.item_group_N[item_BX].long()
        self.excluded_l1_BX, self.excluded_l2_BX = group_BX // self.k2, group_BX % self.k2
        self.excluded_l3_BX = slot_BX - tables.group_start_G[group_BX].long()
        self.counts_BX = ((limits.exclude_BX >= 0) & self._allowed(slot_BX, limits.filter_B[:, None])).long()

    def first(self) -> Tensor:
        """log p(l1), [B, K1]."""
        live_BK = self.limits.first_live_FK[self.limits.filter_B].scatter_add(1, self.excluded_l1_BX, -self.counts_BX.to(self.limits.first_live_FK.dtype))
        x_BD = self.model.decoder.start(self.state_BD) + self.context_BD + self.model.decoder.step.weight[0]
        h_BD, self.written = inference.decoder_step(self.model.decoder, x_BD, None, None, self.memory, 1)
        return masked_log_softmax(self.model.level_heads.first(h_BD, self.tables.first_KD) + self.limits.prior_BK, live_BK > 0)

    def second(self, l1_BW: Tensor) -> Tensor:
        """log p(l2 | l1) under each kept l1, [B, W, K2]."""
        l1_M, first_KD = l1_BW.reshape(-1), self.tables.first_KD
        if self.k1 <= FEW_CODES:  # the token of every L1, then each beam's
            token_RD, row_M = inference.prefix_tokens(self.model.decoder, 1, first_KD), l1_M
        else:
            token_RD, row_M = inference.prefix_tokens(self.model.decoder, 1, first_KD[l1_M]), None
        written = inference.follow(self.written, (self.request_B1 + 0 * self.beam_BW).reshape(-1))  # the first code is the same for all beams
        h_MD, self.written = inference.decoder_step(self.model.decoder, token_RD, row_M, written, self.memory, self.width)
        # one of the beams that hold an L1 keeps the count of its groups for all of them
        keeper_BK = torch.full((self.batch, self.k1), -1, dtype=torch.int64, device=l1_BW.device).scatter(1, l1_BW, self.beam_BW)
        self.keeper_BW, keeper_BX = keeper_BK.gather(1, l1_BW), keeper_BK.gather(1, self.excluded_l1_BX)
        self.counts_BX = self.counts_BX * (keeper_BX >= 0)
        self.cell_BX = keeper_BX.clamp(min=0) * self.k2 + self.excluded_l2_BX
        live_MK = self.limits.group_live_FG.view(-1, self.k2)[(self.limits.filter_B[:, None] * self.k1 + l1_BW).reshape(-1)]
        live_BP = live_MK.view(self.batch, self.width * self.k2).scatter_add(1, self.cell_BX, -self.counts_BX.to(live_MK.dtype))
        legal_BWK = (live_BP > 0).view(-1, self.k2)[self._row(self.keeper_BW)].view(-1, self.width, self.k2)
        logits_BWK = self.model.level_heads.second_kept(h_MD, l1_BW, self.tables.group_GD) + self.model.repeats.second(self.read, None, l1_BW, self.k2)
        return masked_log_softmax(logits_BWK, legal_BWK)

    def third(self, parent_BW: Tensor, group_BW: Tensor) -> tuple[Tensor, Tensor]:
        """(log p(l3 | l1, l2), rows of the item table) for each kept group, whose l1 was beam `parent_BW` of the step before; [B, W, C] each."""
        token_MD = inference.prefix_tokens(self.model.decoder, 2, self.tables.group_GD[group_BW.reshape(-1)])
        written = inference.follow(self.written, self._row(parent_BW))
        h_MD, _ = inference.decoder_step(self.model.decoder, token_MD, None, written, self.memory, self.width)
        item_BWC, legal_BWC = self._items(parent_BW, group_BW)
        logits_BWC = self.model.level_heads.third(h_MD.view(-1, self.width, self.model.config.width), F.embedding(item_BWC, self.tables.item_ID))
        logits_BWC = logits_BWC + self.model.repeats.third(self.read, None, group_BW, self.third_C)
        return masked_log_softmax(logits_BWC, legal_BWC), item_BWC

    def user_vectors(self) -> Tensor:
        """[B, D], of the dense head."""
        return self.model.dense_head(self.state_BD, self.context_BD)

    def _items(self, parent_BW: Tensor, group_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Table rows (index + 1) of the items of each group, 0 where the request may not get one, and where it may, [B, W, C] each."""
        tables, limits = self.tables, self.limits
        # as in `second`: the exclusions find the beam that keeps their group by its place among the children of the step before
        place_BW = self.keeper_BW.gather(1, parent_BW) * self.k2 + group_BW % self.k2
        keeper_BP = torch.full((self.batch, self.width * self.k2), -1, dtype=torch.int64, device=group_BW.device).scatter(1, place_BW, self.beam_BW)
        keeper_BX = keeper_BP.gather(1, self.cell_BX)
        counts_BX = self.counts_BX * ((keeper_BX >= 0) & (self.excluded_l3_BX < self.group_size))
        cell_BX = torch.where(counts_BX > 0, keeper_BX * self.group_size + self.excluded_l3_BX, 0)
        gone_BP = torch.zeros((self.batch, self.width * self.group_size), dtype=torch.int64, device=group_BW.device).scatter_add(1, cell_BX, counts_BX)
        free_MC = (gone_BP == 0).view(-1, self.group_size)[self._row(keeper_BP.gather(1, place_BW))]

        slot_BWC = (tables.group_start_G[group_BW].long()[..., None] + self.third_C).clamp(max=tables.slot_item_S.shape[0] - 1)
        legal_BWC = (self.third_C < tables.group_count_G[group_BW].long()[..., None]) & free_MC.view(-1, self.width, self.group_size)
        legal_BWC = legal_BWC & self._allowed(slot_BWC, limits.filter_B[:, None, None])
        return torch.where(legal_BWC, tables.slot_item_S[slot_BWC].long() + 1, 0), legal_BWC

    def _row(self, beam_BW: Tensor) -> Tensor:
        """Rows of [M, ...] of given beams of each request, [M]."""
        return (beam_BW + self.request_B1 * self.width).reshape(-1)

    def _allowed(self, slot: Tensor, filter: Tensor) -> Tensor:
        """Whether the filter of a request lets the item of a slot through."""
        allowed_FS = self.limits.slot_allowed_FS
        return allowed_FS.reshape(-1)[slot + filter * allowed_FS.shape[1]]
