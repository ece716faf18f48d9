"""The terms of the training loss: next-token prediction, dense softmax, InfoNCE, DPO. (The experts' balance loss is in `ugt/model/moe.py`.)

Every function returns one value per example; the stage sums them, so that a batch split over workers weighs each target once.

Shapes: M examples, D width, I rows of the item table (row 0 = no item), R negatives.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.model.embeddings import ItemTable, rows
from ugt.model.repeats import read_among


def next_token(log_prob_M3: Tensor, level_weights: tuple[float, float, float]) -> Tensor:
    """Negative log-likelihood of the three codes, weighted by level, [M]."""
    return -(log_prob_M3 * log_prob_M3.new_tensor(level_weights)).sum(-1)


def dense_softmax(user_MD: Tensor, target_M: Tensor, item_ID: Tensor, negatives: int, repeats: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Softmax of the target against the catalogue, [M]; `target_M` are rows of the table. `repeats`: the rows each path has read, [M, L], and what
    that adds to their logits.

    With `negatives` > 0, that many items drawn uniformly stand for all others, shared by the batch, each counting for (N - 1) / negatives of
    them, which makes the loss an estimate of the full one at a fraction of its cost. Source: sampled softmax, Jean et al. 2015, section 3.
    """
    items = item_ID.shape[0] - 1
    every = negatives == 0 or negatives >= items
    device = user_MD.device
    among_R = torch.arange(1, items + 1, device=device) if every else torch.randint(1, items + 1, (negatives,), device=device)
    logits_MR = user_MD @ (item_ID[1:] if every else rows(item_ID, among_R)).t()
    if repeats is not None:
        logits_MR = logits_MR + repeats[1] * read_among(repeats[0], among_R, items + 1)
    if every:
        return F.cross_entropy(logits_MR, target_M - 1, reduction="none")
    logits_MR = logits_MR + math.log((items - 1) / negatives)
    logits_MR = logits_MR.masked_fill(among_R == target_M[:, None], -torch.inf)
    positive_M1 = (user_MD * rows(item_ID, target_M)).sum(-1, keepdim=True)
    if repeats is not None:
        positive_M1 = positive_M1 + repeats[1] * (repeats[0] == target_M[:, None]).any(1, keepdim=True)
    return torch.logsumexp(torch.cat([positive_M1, logits_MR], dim=1), dim=1) - positive_M1[:, 0]


def hierarchical_negatives(target_M: Tensor, items: ItemTable, count: int) -> Tensor:
    """Rows of the table [M, 2 count]: `count` items of the target's L1 and `count` of its (L1, L2), with the target itself where it is alone.

    Hard negatives of growing difficulty: neighbours in the tree of semantic IDs.
    """
    group_M, live_G = items.group_N[target_M - 1], items.group_count_G
    by_slot_N = items.slot_item_S[items.slot_item_S >= 0]  # items in order of their codes, so a prefix is a range
    end_G = live_G.cumsum(0)
    l1_M = group_M // items.k2
    live_K, end_K = live_G.view(items.k1, items.k2).sum(1), end_G[items.k2 - 1 :: items.k2]
    drawn = []
    for size_M, last_M in ((live_K[l1_M], end_K[l1_M]), (live_G[group_M], end_G[group_M])):
        offset_MR = (torch.rand(len(target_M), count, device=target_M.device) * size_M[:, None]).long()
        drawn.append(by_slot_N[(last_M - size_M)[:, None] + offset_MR] + 1)
    return torch.cat(drawn, dim=1)


def info_nce(user_MD: Tensor, target_M: Tensor, hard_MR: Tensor, item_ID: Tensor, log_frequency_I: Tensor, temperature: float) -> Tensor:
    """The target against the other targets of the batch and its hard negatives, [M].

    Targets of the batch come as often as they are popular, so their log frequency is taken off (logQ correction, Yi et al. 2019). A negative that is
    the target is masked. Source: van den Oord et al. 2018.
    """
    in_batch_MM = user_MD @ rows(item_ID, target_M).t() / temperature - log_frequency_I[target_M]
    same_MM = (target_M[:, None] == target_M) & ~torch.eye(len(target_M), dtype=torch.bool, device=target_M.device)
    in_batch_MM = in_batch_MM.masked_fill(same_MM, -torch.inf)
    hard_logits_MR = torch.einsum("md,mrd->mr", user_MD, rows(item_ID, hard_MR)) / temperature - log_frequency_I[hard_MR]
    hard_logits_MR = hard_logits_MR.masked_fill(hard_MR == target_M[:, None], -torch.inf)
    own_M = torch.arange(len(target_M), device=target_M.device)
    return F.cross_entropy(torch.cat([in_batch_MM, hard_logits_MR], dim=1), own_M, reduction="none")


def dpo(chosen_M: Tensor, rejected_M: Tensor, reference_chosen_M: Tensor, reference_rejected_M: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation over log-probabilities of whole items, [M]. Source: Rafailov et al. 2023, equation 7."""
    return -F.logsigmoid(beta * ((chosen_M - reference_chosen_M) - (rejected_M - reference_rejected_M)))
