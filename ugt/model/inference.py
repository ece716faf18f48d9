"""The forward passes of decoding, arranged for speed: the weights and the numbers of `Encoder`, `Decoder` and `MixtureOfExperts`, in fewer and larger products.

Choices: tokens of all requests and beams are rows of one matrix, so a layer is one product over all of them.
Attention over the codes written so far (three at most) multiplies by a 0/1 matrix that sums within heads: a product per beam and head would be thousands of
tiny ones. `forward` of the modules, which trains and
feeds the exact scorer, is the slow, obvious version (tests/ugt/test_inference.py).

Shapes: B requests, W beams, M = B W tokens, R distinct tokens, T positions, D width, H heads, P places, E experts, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.model.attention import Attention
from ugt.model.decoder import Decoder, DecoderBlock
from ugt.model.embeddings import CatalogueTables
from ugt.model.encoder import Encoder
from ugt.model.moe import MixtureOfExperts
from ugt.model.parts import in_parts
from ugt.model.ugt import UGT

HIDDEN = -1e9  # added to an attention logit that may not be looked at


class Memory(NamedTuple):
    """The history as the decoder's cross-attention reads it: one pair per layer, and which positions are hidden from a request."""

    keys_values: list[tuple[Tensor, Tensor]]  # [B, H, T, D / H] each
    hidden_B11T: Tensor  # 0 or HIDDEN


class Written(NamedTuple):
    """Keys and values of one code of every beam in one layer, [M, D] each."""

    k: Tensor
    v: Tensor


def encode(model: UGT, inputs: Mapping[str, Tensor], tables: CatalogueTables) -> Tensor:
    """State of every position, [B, T, D]; see `UGT.encode`."""
    return encoded(model.encoder, model.history(inputs, tables.item_ID), inputs.get("gap_BL"))


def encoded(encoder: Encoder, x_BTD: Tensor, gap_BL: Tensor | None) -> Tensor:
    """`Encoder.forward` in evaluation mode."""
    if encoder.relative:  # one large product per block as it is
        return encoder(x_BTD, gap_BL)
    (batch, positions), width = x_BTD.shape[:2], encoder.norm.normalized_shape[0]
    place_T = torch.arange(positions, device=x_BTD.device)
    future_TT = (place_T > place_T[:, None]).to(x_BTD.dtype) * HIDDEN
    x = x_BTD.reshape(-1, width)
    for block in encoder.blocks:
        heads = block.attention.heads
        q, k, v = (y.view(batch, -1, heads, width // heads).transpose(1, 2) for y in _query_key_value(block.attention, block.attention_norm(x)))
        x = x + block.attention.out(_attended(q, k, v, future_TT, width))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return encoder.norm(x).view(batch, -1, width)


def memory_of(decoder: Decoder, state_BTD: Tensor, length_B: Tensor) -> Memory:
    """What the decoder reads of each history, `length_B` events of which count: projected once for all steps and beams."""
    (batch, positions), width = state_BTD.shape[:2], decoder.start.in_features
    hidden_BT = (torch.arange(positions, device=state_BTD.device) > length_B[:, None]).to(state_BTD.dtype) * HIDDEN
    keys_values = []
    for block in decoder.blocks:
        heads = block.cross_attention.heads
        both = _key_value(block.cross_attention, state_BTD.reshape(-1, width))
        k, v = (y.view(batch, -1, heads, width // heads).transpose(1, 2) for y in both)
        keys_values.append((k, v))
    return Memory(keys_values, hidden_BT[:, None, None])


def prefix_tokens(decoder: Decoder, level: int, node_RD: Tensor) -> Tensor:
    """`Decoder.prefix_token` as one product."""
    prefix = decoder.prefix[level - 1]
    return F.linear(node_RD, prefix.weight * decoder.scale, prefix.bias + decoder.step.weight[level])


def decoder_step(
    decoder: Decoder, token_RD: Tensor, row_M: Tensor | None, written: Sequence[list[Written]], memory: Memory, beams: int
) -> tuple[Tensor, list[Written]]:
    """States of the next code of every beam, [M, D], and what is written with it in each layer: `Decoder.forward` in evaluation mode, one step.

    `written` are the codes before it. `row_M` says which token each beam has, where the distinct ones are fewer; without it there is one for each beam.
    """
    now: list[Written] = []
    x_MD = token_RD
    for i, block in enumerate(decoder.blocks):
        q, k, v = _query_key_value(block.self_attention, block.self_norm(x_MD))
        if row_M is not None and not i:
            x_MD, q, k, v = (y[row_M] for y in (x_MD, q, k, v))
        now.append(Written(k, v))
        if written:  # one code attends to itself alone
            v = _over_codes(q, [*(code[i] for code in written), now[i]], block.self_attention.heads, decoder.start.in_features)
        x_MD = _block_step(block, x_MD + block.self_attention.out(v), memory.keys_values[i], memory.hidden_B11T, beams)
    return decoder.norm(x_MD), now


def follow(written: list[Written], row_M: Tensor) -> list[Written]:
    """What the parents of the beams had written: rows `row_M` of it."""
    return [Written(w.k[row_M], w.v[row_M]) for w in written]


def _block_step(block: DecoderBlock, x_MD: Tensor, keys_values: tuple[Tensor, Tensor], hidden_B11T: Tensor, beams: int) -> Tensor:
    """What follows the self-attention in a layer: the history, then the experts."""
    cross, width = block.cross_attention, block.cross_attention.query.in_features  # not of x: a traced shape is no constant
    q = _scaled_query(cross, block.cross_norm(x_MD)).view(-1, beams, cross.heads, width // cross.heads).transpose(1, 2)
    x_MD = x_MD + cross.out(_attended(q, *keys_values, hidden_B11T, width))
    mixture = all_experts if beams == 1 or x_MD.is_cuda else chosen_experts
    return x_MD + mixture(block.experts, block.expert_norm(x_MD))


def _scaled_query(attention: Attention, x_MD: Tensor) -> Tensor:
    scale = (attention.query.in_features // attention.heads) ** -0.5
    return F.linear(x_MD, attention.query.weight * scale, attention.query.bias * scale)


def _key_value(attention: Attention, x_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, [M, D] each, by a product each: what one product gives would have to be taken apart, which is a copy."""
    width, both = attention.query.in_features, attention.key_value
    return F.linear(x_MD, both.weight[:width], both.bias[:width]), F.linear(x_MD, both.weight[width:], both.bias[width:])


def _query_key_value(attention: Attention, x_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _scaled_query(attention, x_MD), *_key_value(attention, x_MD)


def _attended(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, width: int) -> Tensor:
    """Attention of scaled queries by head [B, H, S, D / H], heads side by side again: [B S, D]."""
    y = F.softmax(q @ k.transpose(-1, -2) + hidden, dim=-1) @ v
    return y.transpose(1, 2).reshape(-1, width)


def _over_codes(q_MD: Tensor, codes: Sequence[Written], heads: int, width: int) -> Tensor:
    """Attention of each beam over its own codes, [M, D]."""
    head_DH = torch.eye(heads, device=q_MD.device, dtype=q_MD.dtype).repeat_interleave(width // heads, dim=0)
    logit_MPH = torch.cat([(q_MD * code.k) @ head_DH for code in codes], dim=1).view(-1, len(codes), heads)
    weights = F.softmax(logit_MPH, dim=1).view(-1, len(codes) * heads).split(heads, dim=1)
    parts = [(weight_MH @ head_DH.t()) * code.v for weight_MH, code in zip(weights, codes, strict=True)]
    return sum(parts[1:], parts[0])


def all_experts(experts: MixtureOfExperts, x_MD: Tensor) -> Tensor:
    """The mixture with every expert computed for every token, gates of the unchosen ones 0, as two products. O(M E D F): for few tokens, or where no shape
    inside may depend on the data (a CUDA graph)."""
    logits_ME = experts.router(x_MD)
    chosen_Mk, expert_Mk = logits_ME.topk(experts.chosen, dim=-1)
    gate_ME = torch.zeros_like(logits_ME).scatter(1, expert_Mk, F.softmax(chosen_Mk, dim=-1))
    e, d, f = experts.up_EDF.shape
    h_MH = F.gelu(F.linear(x_MD, experts.up_EDF.transpose(1, 2).reshape(e * f, d), experts.up_bias_EF.reshape(-1)))
    weighted_MH = (h_MH.view(-1, e, f) * gate_ME[..., None]).view(-1, e * f)
    y_MD = weighted_MH @ experts.down_EFD.reshape(e * f, d) + gate_ME @ experts.down_bias_ED
    return y_MD if experts.shared is None else y_MD + experts.shared(x_MD)


def chosen_experts(experts: MixtureOfExperts, x_MD: Tensor) -> Tensor:
    """The mixture with each token computed by its k experts alone: tokens sorted by expert, one pair of products per expert. O(M k D F)."""
    k = experts.chosen
    chosen_Mk, expert_Mk = experts.router(x_MD).topk(k, dim=-1)
    expert_P = expert_Mk.reshape(-1)
    mine_EP = expert_P == torch.arange(experts.experts, device=x_MD.device)[:, None]
    order_P = mine_EP.nonzero()[:, 1]  # the (token, choice) pairs by expert
    place_P = torch.zeros_like(order_P).scatter(0, order_P, torch.arange(expert_P.shape[0], device=x_MD.device))
    parts = []
    for e, mine in enumerate(in_parts(x_MD[order_P // k], mine_EP.long().sum(1), experts.experts)):
        h = F.gelu(F.linear(mine, experts.up_EDF[e].t(), experts.up_bias_EF[e]))
        parts.append(F.linear(h, experts.down_EFD[e].t(), experts.down_bias_ED[e]))
    y_PD, place_Mk, gate_Mk = torch.cat(parts), place_P.view(-1, k), F.softmax(chosen_Mk, dim=-1)
    y_MD = y_PD[place_Mk[:, 0]] * gate_Mk[:, :1]
    for i in range(1, k):
        y_MD = y_MD + y_PD[place_Mk[:, i]] * gate_Mk[:, i : i + 1]
    return y_MD if experts.shared is None else y_MD + experts.shared(x_MD)
