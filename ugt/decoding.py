"""Constrained decoding: beam search over the trie, and the exact scorer over the whole catalogue that judges it.

Choices: what a request forbids (items excluded, a filter) and prefers (a prior on L1) acts inside the beam, so a request for k items gets k legal ones
whenever they exist; each level is normalised over the codes still legal for the request. A filter is given once with its live items per
group, and a request's exclusions are subtracted where they matter: O(X) of work per request, whatever the size of the catalogue. Equal scores are broken
by place in the trie. One function serves PyTorch and the exported graph.

Shapes: B requests, W beams, T positions, D width, K1/K2 codes, G groups, S slots, C slots of the largest group, F filters, X exclusions, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.model.decoder import KeysValues
from ugt.model.embeddings import CatalogueTables
from ugt.model.repeats import read_items
from ugt.model.ugt import IMPOSSIBLE, UGT, masked_log_softmax, take
from ugt.steps import Steps


class Constraints(NamedTuple):
    """What each request may get."""

    exclude_BX: Tensor  # int64 item_index, -1 = nothing; no item twice in a row
    filter_B: Tensor  # int64 row of the filter tables
    slot_allowed_FS: Tensor  # bool
    group_live_FG: Tensor  # integers, allowed items of each group
    prior_BK: Tensor  # float32, added to the logits of L1
    first_live_FK: Tensor  # integers, allowed items under each L1: the sums of `group_live_FG`
    read_BL: Tensor  # rows of the item table the history holds, 0 = none: what the learned repeat bias speaks of


class Beams(NamedTuple):
    """Best first. `item_BW` is -1 where there were fewer legal items than beams."""

    item_BW: Tensor
    log_prob_BW: Tensor
    user_BD: Tensor


def no_constraints(model: UGT, batch: int) -> Constraints:
    """Every live item is allowed, nothing is preferred."""
    return constraints(model, [[]] * batch)


def constraints(
    model: UGT,
    exclude: Sequence[Sequence[int] | np.ndarray],
    allowed_N: np.ndarray | None = None,
    prior_BK: Tensor | None = None,
    read_BL: Tensor | None = None,
) -> Constraints:
    """Constraints of B requests that share one filter (bool per item, or none). Exclusions are item indices, without repeats."""
    b = len(exclude)
    width = max((len(x) for x in exclude), default=0)
    exclude_BX = torch.full((b, max(1, width)), -1, dtype=torch.int64)
    for row, x in enumerate(exclude):
        exclude_BX[row, : len(x)] = torch.as_tensor(np.asarray(x, dtype=np.int64))
    slot_S = model.items.slot_item_S
    allowed_S, live_G = slot_S >= 0, model.items.group_count_G
    if allowed_N is not None:
        allowed_S = allowed_S & torch.as_tensor(allowed_N)[slot_S.clamp(min=0)]
        group_S = torch.where(slot_S >= 0, model.items.group_N[slot_S.clamp(min=0)], 0)
        live_G = torch.zeros_like(live_G).index_add(0, group_S, allowed_S.long())
    prior = torch.zeros(b, model.items.k1) if prior_BK is None else prior_BK
    first_live_K = live_G.view(model.items.k1, model.items.k2).sum(1)
    read = torch.zeros(b, 1, dtype=torch.int64) if read_BL is None else read_BL
    return Constraints(exclude_BX, torch.zeros(b, dtype=torch.int64), allowed_S[None], live_G[None], prior, first_live_K[None], read)


def beam_search(
    model: UGT, state_BTD: Tensor, length_B: Tensor, context_B: Tensor, tables: CatalogueTables, limits: Constraints, beam_W: Tensor, third_C: Tensor
) -> Beams:
    """The W most probable items found by keeping W prefixes at each of the three steps.

    `beam_W` is arange(W) and `third_C` arange(C): sizes given as shapes, so that one exported graph serves every beam width and group size.
    O(B W (K2 + C) D + B X) plus three decoder steps. Another strategy is another choice of what is kept between the steps (`ugt/steps.py`).
    """
    steps = Steps(model, state_BTD, length_B, context_B, tables, limits, beam_W, third_C)
    score_BK = steps.first()
    # fewer L1 codes than beams: the rest of the beams is dead from the start
    score_BW, place_BW = best(F.pad(score_BK, (0, steps.width), value=2 * IMPOSSIBLE), steps.width)
    l1_BW = place_BW.clamp(max=steps.k1 - 1)

    score_BWK = score_BW[..., None] + steps.second(l1_BW)
    score_BW, place_BW = best(score_BWK.flatten(1), steps.width)
    parent_BW = place_BW // steps.k2
    group_BW = l1_BW.gather(1, parent_BW) * steps.k2 + place_BW % steps.k2

    log_prob_BWC, item_BWC = steps.third(parent_BW, group_BW)
    score_BW, place_BW = best((score_BW[..., None] + log_prob_BWC).flatten(1), steps.width)
    item_BW = torch.where(score_BW > IMPOSSIBLE / 2, item_BWC.flatten(1).gather(1, place_BW) - 1, -1)
    return Beams(item_BW, score_BW, steps.user_vectors())


def blocked_slots(tables: CatalogueTables, limits: Constraints) -> tuple[Tensor, Tensor]:
    """(live items per group int64 [B, G], excluded slots bool [B, S]) of each request, written out in full: for the exact scorer."""
    dead = tables.slot_item_S.shape[0] - 1  # the last slot is nobody's: an exclusion of nothing lands there
    item_BX = limits.exclude_BX.clamp(min=0)
    slot_BX = torch.where(limits.exclude_BX >= 0, tables.item_slot_N[item_BX].long(), dead)
    excluded_BS = torch.zeros((slot_BX.shape[0], tables.slot_item_S.shape[0]), dtype=torch.bool, device=slot_BX.device)
    excluded_BS = excluded_BS.scatter(1, slot_BX, torch.ones_like(slot_BX, dtype=torch.bool))
    was_allowed_BX = limits.slot_allowed_FS[limits.filter_B[:, None], slot_BX] & (limits.exclude_BX >= 0)
    live_BG = limits.group_live_FG[limits.filter_B].long().scatter_add(1, tables.item_group_N[item_BX].long(), -was_allowed_BX.long())
    return live_BG, excluded_BS


def exact_log_probs(model: UGT, state_BTD: Tensor, length_B: Tensor, context_B: Tensor, tables: CatalogueTables, limits: Constraints) -> Tensor:
    """Log-probability of every item of the catalogue, [B, N]; IMPOSSIBLE for those a request may not get.

    The slow, obvious judge of the beam: it follows every prefix. O(B G (C + T) D).
    """
    batch, items = context_B.shape[0], model.items
    k1, k2, groups = items.k1, items.k2, items.k1 * items.k2
    live_BG, excluded_BS = blocked_slots(tables, limits)
    live_BKK = live_BG.view(batch, k1, k2) > 0
    memory, mask_BQT = model.decoder.memory(state_BTD), _prefix_mask(state_BTD, length_B)
    x_BD = model.decoder.start_token(take(state_BTD, length_B[:, None])[:, 0], model.context(context_B))
    h, cache, _ = model.decoder(x_BD[:, None, None], None, memory, mask_BQT)
    first_BK = masked_log_softmax(model.level_heads.first(h[:, 0, 0], tables.first_KD) + limits.prior_BK, live_BKK.any(-1))

    read = read_items(limits.read_BL, tables)
    l1_BK = torch.arange(k1, device=context_B.device).expand(batch, -1)
    cache = [KeysValues(kv.k.expand(-1, k1, -1, -1), kv.v.expand(-1, k1, -1, -1)) for kv in cache]
    h, cache, _ = model.decoder(model.decoder.prefix_token(1, tables.first_KD[l1_BK])[:, :, None], cache, memory, mask_BQT)
    logits_BKK = model.level_heads.second(h[:, :, 0], l1_BK, tables.group_GD) + model.repeats.second(read, None, l1_BK, k2)
    second_BKK = first_BK[..., None] + masked_log_softmax(logits_BKK, live_BKK)

    group_BG = torch.arange(groups, device=context_B.device).expand(batch, -1)
    cache = [KeysValues(_follow(kv.k, group_BG // k2), _follow(kv.v, group_BG // k2)) for kv in cache]
    h, _, _ = model.decoder(model.decoder.prefix_token(2, tables.group_GD[group_BG])[:, :, None], cache, memory, mask_BQT)
    third_C = torch.arange(items.largest_group, device=context_B.device)
    item_BGC, legal_BGC = _group_items(tables, group_BG, third_C, limits, excluded_BS)
    logits_BGC = model.level_heads.third(h[:, :, 0], F.embedding(item_BGC, tables.item_ID)) + model.repeats.third(read, None, group_BG, third_C)
    third_BGC = masked_log_softmax(logits_BGC, legal_BGC)
    score_BGC = second_BKK.flatten(1)[..., None] + third_BGC
    legal_BGC = legal_BGC & (live_BG > 0)[..., None]
    score_BI = torch.full((batch, tables.item_ID.shape[0]), IMPOSSIBLE, dtype=score_BGC.dtype, device=score_BGC.device)
    score_BI = score_BI.scatter(1, torch.where(legal_BGC, item_BGC, 0).flatten(1), score_BGC.flatten(1))
    return score_BI[:, 1:]


def best(score: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest of the last dimension and their places; of equals the earlier place, so that two machines agree."""
    if torch.jit.is_tracing():
        return torch.topk(score, width, dim=-1)  # ONNX fixes the order of ties to this rule; torch.topk itself does not
    size = score.shape[-1]
    # one integer that orders by score, then by place: selecting W of these is several times faster than a stable sort of them all
    bits = (score.float() + 0.0).view(torch.int32).long()  # + 0.0: one zero
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (rising << 32) | torch.arange(size - 1, -1, -1, device=score.device)
    places = size - 1 - (torch.topk(key, width, dim=-1).values & 0xFFFFFFFF)
    return score.gather(-1, places), places


def _prefix_mask(state_BTD: Tensor, length_B: Tensor) -> Tensor:
    return (torch.arange(state_BTD.shape[1], device=length_B.device) <= length_B[:, None])[:, None]


def _follow(x_BWPD: Tensor, parent_BW: Tensor) -> Tensor:
    """Rows of the parents of each beam."""
    return x_BWPD.gather(1, parent_BW[..., None, None].expand(-1, -1, x_BWPD.shape[2], x_BWPD.shape[3]))


def _group_items(tables: CatalogueTables, group_BW: Tensor, third_C: Tensor, limits: Constraints, excluded_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Table rows (index + 1) of the items of each group and which of them are legal, [B, W, C] each."""
    slot_BWC = (tables.group_start_G[group_BW].long()[..., None] + third_C).clamp(max=tables.slot_item_S.shape[0] - 1)
    excluded_BWC = excluded_BS.gather(1, slot_BWC.flatten(1)).unflatten(1, (group_BW.shape[1], -1))
    legal_BWC = (third_C < tables.group_count_G[group_BW][..., None]) & limits.slot_allowed_FS[limits.filter_B[:, None, None], slot_BWC] & ~excluded_BWC
    return torch.where(legal_BWC, tables.slot_item_S[slot_BWC] + 1, 0), legal_BWC
