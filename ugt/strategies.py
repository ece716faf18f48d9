"""Diverse beam and nucleus over the trie: the three steps of beam search with another choice of what is kept.

Choices: a decode keeps W prefixes of one shared pool at each step, so no prefix is held twice and W items come out wherever W are legal. What is
kept and in which order is the strategy's; the score of an item is its log-probability, as with the beam, so that the heads are mixed alike.
`diverse_beam` makes every beam a group of its own (G = W: "maximum exploration" in the paper), because then the choice group after group is a sort:
a prefix that is the r-th best of its L1 pays r penalties, whatever the other L1 do. `nucleus` is stochastic beam search, an exact sample without
replacement, over probabilities that are cut per level; what lies outside the nucleus fills up behind it, the most probable first.

Shapes: as in `ugt/decoding.py`; P = W C candidates of the last step.
Sources: Vijayakumar et al. 2018, Diverse Beam Search, algorithm 1; Kool et al. 2019, Stochastic Beams, algorithm 1; Holtzman et al. 2020, nucleus sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.decoding import Beams, Constraints, beam_search, best
from ugt.gumbel import gumbel_noise
from ugt.model.config import DecodingConfig
from ugt.model.embeddings import CatalogueTables
from ugt.model.ugt import IMPOSSIBLE, UGT, masked_log_softmax
from ugt.steps import Steps


class Sampling(NamedTuple):
    """What nucleus decoding is told of each request. The noise is `ugt.gumbel.gumbel_noise`."""

    temperature_B: Tensor  # above 0; of the sampling only, not of the reported log-probability
    top_p_B: Tensor  # 0..1: the share of each level's probability that is sampled from
    noise_BK: Tensor
    noise_BWK: Tensor
    noise_BWC: Tensor


def search(
    model: UGT,
    state_BTD: Tensor,
    length_B: Tensor,
    context_B: Tensor,
    tables: CatalogueTables,
    limits: Constraints,
    decoding: DecodingConfig,
    seeds: Sequence[int],
) -> Beams:
    """The items of B requests by the strategy of a config. `seeds`, one per request, are read by nucleus alone."""
    batch, items, device = len(length_B), model.items, state_BTD.device
    beam_W, third_C = torch.arange(decoding.beam_width, device=device), torch.arange(items.largest_group, device=device)
    given = (model, state_BTD, length_B, context_B, tables, limits, beam_W, third_C)
    if decoding.strategy == "beam":
        return beam_search(*given)
    if decoding.strategy == "diverse_beam":
        return diverse_beam(*given, torch.full((batch,), decoding.diversity_penalty, device=device))
    noise = (torch.from_numpy(x).to(device) for x in gumbel_noise(seeds, items.k1, items.k2, items.largest_group, decoding.beam_width))
    sampling = Sampling(torch.full((batch,), decoding.temperature, device=device), torch.full((batch,), decoding.top_p, device=device), *noise)
    return nucleus(*given, sampling)


def diverse_beam(
    model: UGT,
    state_BTD: Tensor,
    length_B: Tensor,
    context_B: Tensor,
    tables: CatalogueTables,
    limits: Constraints,
    beam_W: Tensor,
    third_C: Tensor,
    penalty_B: Tensor,
) -> Beams:
    """W items; each pays `penalty_B` (nats, 0 or more) per item before it with the same L1, and once more per item with the same (L1, L2).

    In the order they were chosen, which is that of the score less the penalties. A penalty of 0 is beam search. Like the paper's, a penalty decides at its own
    step and is not carried into the next one. O(beam search) plus a sort of P.
    """
    steps = Steps(model, state_BTD, length_B, context_B, tables, limits, beam_W, third_C)
    score_BW, l1_BW = best(_padded(steps.first(), steps.width), steps.width)  # no l1 can be chosen twice: nothing to pay
    l1_BW = l1_BW.clamp(max=steps.k1 - 1)

    ordered_BWK, code_BWK = _by_rank(score_BW[..., None] + steps.second(l1_BW))
    score_BP = ordered_BWK.flatten(1)
    _, place_BW = best((ordered_BWK - penalty_B[:, None, None] * _ranks(ordered_BWK)).flatten(1), steps.width)
    score_BW, parent_BW = score_BP.gather(1, place_BW), place_BW // steps.k2
    l1_BW = l1_BW.gather(1, parent_BW)
    group_BW = l1_BW * steps.k2 + code_BWK.flatten(1).gather(1, place_BW)

    log_prob_BWC, item_BWC = steps.third(parent_BW, group_BW)
    ordered_BWC, third_BWC = _by_rank(score_BW[..., None] + log_prob_BWC)
    in_group_BP = (ordered_BWC - penalty_B[:, None, None] * _ranks(ordered_BWC)).flatten(1)
    key_BP, order_BP = best(in_group_BP, in_group_BP.shape[1])
    # place of a candidate among those of its L1, in this order: count along it, a column for each L1 at hand
    same_BWW = l1_BW[:, :, None] == l1_BW[:, None]
    first_BW = torch.where(same_BWW, beam_W, steps.width).amin(2)
    column_BP = first_BW.gather(1, order_BP // third_C.shape[0])
    member_BPW = (column_BP[..., None] == beam_W).to(key_BP.dtype)
    rank_BP = member_BPW.cumsum(1).gather(2, column_BP[..., None])[..., 0] - 1
    _, chosen_BW = best(key_BP - penalty_B[:, None] * rank_BP, steps.width)
    place_BW = order_BP.gather(1, chosen_BW)
    return _beams(steps, item_BWC.gather(2, third_BWC).flatten(1), ordered_BWC.flatten(1), place_BW)


def nucleus(
    model: UGT,
    state_BTD: Tensor,
    length_B: Tensor,
    context_B: Tensor,
    tables: CatalogueTables,
    limits: Constraints,
    beam_W: Tensor,
    third_C: Tensor,
    sampling: Sampling,
) -> Beams:
    """W different items, drawn one after the other without replacement in proportion to their probability under `sampling`.

    In the order they were drawn. At each level the smallest set of codes with `top_p_B` of the probability is sampled from; where it holds fewer than W items,
    the most probable others follow. `top_p_B` 1 and temperature 1 sample the model itself; `top_p_B` 0 begins with the greedy item.
    """
    steps = Steps(model, state_BTD, length_B, context_B, tables, limits, beam_W, third_C)
    log_prob_BK = _padded(steps.first(), steps.width)
    root_B1 = torch.zeros_like(log_prob_BK[:, :1])
    drawn = _Drawn(root_B1, root_B1, root_B1, root_B1 == 0)
    drawn, l1_BW = drawn.next(log_prob_BK[:, None], F.pad(sampling.noise_BK, (0, steps.width))[:, None], sampling, steps.width)
    l1_BW = l1_BW.clamp(max=steps.k1 - 1)

    drawn, place_BW = drawn.next(steps.second(l1_BW), sampling.noise_BWK, sampling, steps.width)
    parent_BW = place_BW // steps.k2
    group_BW = l1_BW.gather(1, parent_BW) * steps.k2 + place_BW % steps.k2

    log_prob_BWC, item_BWC = steps.third(parent_BW, group_BW)
    score_BP = (drawn.score_BW[..., None] + log_prob_BWC).flatten(1)
    _, place_BW = drawn.next(log_prob_BWC, sampling.noise_BWC, sampling, steps.width)
    return _beams(steps, item_BWC.flatten(1), score_BP, place_BW)


def _beams(steps: Steps, item_BP: Tensor, score_BP: Tensor, place_BW: Tensor) -> Beams:
    """The items at the places chosen last, in that order."""
    score_BW = score_BP.gather(1, place_BW)
    item_BW = torch.where(score_BW > IMPOSSIBLE / 2, item_BP.gather(1, place_BW) - 1, -1)
    return Beams(item_BW, score_BW, steps.user_vectors())


class _Drawn(NamedTuple):
    """The prefixes a nucleus decode keeps."""

    score_BW: Tensor  # log-probability under the model
    sampled_BW: Tensor  # log-probability under what is sampled from
    gumbel_BW: Tensor  # the latter perturbed: the largest perturbed one of all items below
    inside_BW: Tensor  # every code so far in its nucleus

    def next(self, log_prob_BWK: Tensor, noise_BWK: Tensor, sampling: Sampling, width: int) -> tuple[_Drawn, Tensor]:
        """The `width` children to keep, and their places among all."""
        legal_BWK = log_prob_BWK > IMPOSSIBLE / 2
        tempered_BWK = masked_log_softmax(log_prob_BWK / sampling.temperature_B[:, None, None], legal_BWK)
        inside_BWK = _nucleus(tempered_BWK, sampling.top_p_B[:, None, None]) & legal_BWK
        sampled_BWK = self.sampled_BW[..., None] + masked_log_softmax(tempered_BWK, inside_BWK)
        gumbel_BWK = _perturbed(sampled_BWK, noise_BWK, self.gumbel_BW[..., None])
        inside_BWK = inside_BWK & self.inside_BW[..., None]
        score_BWK = self.score_BW[..., None] + log_prob_BWK
        key_BP = torch.where(inside_BWK, _above_zero(gumbel_BWK), score_BWK).flatten(1)
        _, place_BW = best(key_BP, width)
        return _Drawn(*(x.flatten(1).gather(1, place_BW) for x in (score_BWK, sampled_BWK, gumbel_BWK, inside_BWK))), place_BW


def _nucleus(log_prob_BWK: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of the most probable entries of the last dimension that holds `top_p` of the probability; at least one, and all for 1."""
    ordered_BWK, place_BWK = best(log_prob_BWK, log_prob_BWK.shape[-1])
    probability_BWK = ordered_BWK.exp()
    before_BWK = probability_BWK.cumsum(-1) - probability_BWK
    inside_BWK = (before_BWK < top_p) | (top_p >= 1) | (_ranks(ordered_BWK) == 0)
    return torch.zeros_like(inside_BWK).scatter(2, place_BWK, inside_BWK)


def _perturbed(log_prob_BWK: Tensor, noise_BWK: Tensor, parent_BW1: Tensor) -> Tensor:
    """log_prob + noise of the children of a prefix, given that their maximum is the prefix's own. Kool et al. 2019, appendix B.3."""
    free_BWK = log_prob_BWK + noise_BWK
    largest_BW1 = free_BWK.amax(-1, keepdim=True)
    v = parent_BW1 - free_BWK + torch.log(1 - torch.exp(free_BWK - largest_BW1))
    return parent_BW1 - F.relu(v) - torch.log(1 + torch.exp(-v.abs()))


def _above_zero(x: Tensor) -> Tensor:
    """A rising function of x with values above 0. Log-probabilities are at most 0, so both fit into one key without losing digits to an offset."""
    return torch.where(x < 0, 1 / (1 - x.clamp(max=0)), 1 + x)


def _by_rank(score: Tensor) -> tuple[Tensor, Tensor]:
    """The last dimension from the largest on, and the places."""
    return best(score, score.shape[-1])


def _ranks(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], device=x.device)


def _padded(score_BP: Tensor, width: int) -> Tensor:
    """`width` dead entries behind: fewer children than beams leave the rest of the beams dead."""
    return F.pad(score_BP, (0, width), value=2 * IMPOSSIBLE)
