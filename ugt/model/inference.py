"""The forward passes of decoding, arranged for speed: the weights and the numbers of `Encoder`, `Decoder` and `MixtureOfExperts`, in fewer and larger products.

Choices: tokens of all requests and beams are rows of one matrix, so a layer is one product over all of them; queries, keys and values are one product.
Attention over the codes written so far (three at most) multiplies by a 0/1 matrix that sums within heads: a product per beam and head would be thousands of
tiny ones. Keys and values of the first code are the same for all beams of a request and are kept once. `forward` of the modules, which trains and
feeds the exact scorer, is the slow, obvious version (tests/ugt/test_inference.py).

Shapes: B requests, W beams, M = B W tokens, T positions, D width, H heads, P codes so far, E experts, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt.model.attention import Attention
from ugt.model.decoder import Decoder, DecoderBlock
from ugt.model.embeddings import CatalogueTables
from ugt.model.encoder import Encoder
from ugt.model.moe import MixtureOfExperts
from ugt.model.ugt import UGT

HIDDEN = -1e9  # added to an attention logit that may not be looked at


class Memory(NamedTuple):
    """The history as the decoder's cross-attention reads it: one pair per layer, and which positions are hidden from a request."""

    keys_values: list[tuple[Tensor, Tensor]]  # [B, H, T, D / H] each
    hidden_B11T: Tensor  # 0 or HIDDEN


class Written(NamedTuple):
    """Keys and values of the codes written so far in one layer. After the first code they are [B, 1, D], the beams of a request being alike; then [M, P, D]."""

    k: Tensor
    v: Tensor


def encode(model: UGT, inputs: Mapping[str, Tensor], tables: CatalogueTables) -> Tensor:
    """State of every position, [B, T, D]; see `UGT.encode`."""
    tokens_BTD = model.history(inputs["item_BL"], inputs["action_BL"], inputs["value_BL"], inputs["gap_BL"], inputs["user_BU"], tables.item_ID)
    return encoded(model.encoder, tokens_BTD)


def encoded(encoder: Encoder, x_BTD: Tensor) -> Tensor:
    """`Encoder.forward` in evaluation mode."""
    batch, positions, width = x_BTD.shape
    place_T = torch.arange(positions, device=x_BTD.device)
    future_TT = (place_T > place_T[:, None]).to(x_BTD.dtype) * HIDDEN
    x = x_BTD.reshape(-1, width)
    for block in encoder.blocks:
        heads = block.attention.heads
        qkv = _query_key_value(block.attention, block.attention_norm(x))
        q, k, v = qkv.view(batch, -1, 3 * heads, width // heads).transpose(1, 2).split(heads, dim=1)
        x = x + block.attention.out(_attended(q, k, v, future_TT))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return encoder.norm(x).view(batch, -1, width)


def memory_of(decoder: Decoder, state_BTD: Tensor, length_B: Tensor) -> Memory:
    """What the decoder reads of each history, `length_B` events of which count: projected once for all steps and beams."""
    batch, positions, width = state_BTD.shape
    hidden_BT = (torch.arange(positions, device=state_BTD.device) > length_B[:, None]).to(state_BTD.dtype) * HIDDEN
    keys_values = []
    for block in decoder.blocks:
        heads = block.cross_attention.heads
        both = block.cross_attention.key_value(state_BTD.reshape(-1, width)).view(batch, -1, 2 * heads, width // heads)
        k, v = both.transpose(1, 2).split(heads, dim=1)
        keys_values.append((k, v))
    return Memory(keys_values, hidden_BT[:, None, None])


def decoder_step(decoder: Decoder, x_MD: Tensor, written: list[Written] | None, memory: Memory) -> tuple[Tensor, list[Written]]:
    """States of the next code of every beam, [M, D], and what is written with it: `Decoder.forward` in evaluation mode, one step."""
    now = []
    for i, block in enumerate(decoder.blocks):
        x_MD, own = _block_step(block, x_MD, written[i] if written is not None else None, memory.keys_values[i], memory.hidden_B11T)
        now.append(own)
    return decoder.norm(x_MD), now


def follow(written: list[Written], row_M: Tensor) -> list[Written]:
    """What the parents of the beams had written; `row_M` are rows of [M, P, D]."""
    return [Written(w.k[row_M], w.v[row_M]) for w in written]


def _block_step(block: DecoderBlock, x_MD: Tensor, written: Written | None, keys_values: tuple[Tensor, Tensor], hidden_B11T: Tensor) -> tuple[Tensor, Written]:
    heads, width = block.cross_attention.heads, x_MD.shape[1]
    q, k, v = _query_key_value(block.self_attention, block.self_norm(x_MD)).split(width, dim=1)
    if written is None:
        own, y_MD = Written(k[:, None], v[:, None]), v  # one code attends to itself alone
    else:
        own = Written(_with_own(written.k, k), _with_own(written.v, v))
        y_MD = _over_codes(q, own, heads)
    x_MD = x_MD + block.self_attention.out(y_MD)

    cross, scale = block.cross_attention, (width // heads) ** -0.5
    q = F.linear(block.cross_norm(x_MD), cross.query.weight * scale, cross.query.bias * scale)
    q = q.view(hidden_B11T.shape[0], -1, heads, width // heads).transpose(1, 2)
    x_MD = x_MD + cross.out(_attended(q, *keys_values, hidden_B11T))
    return x_MD + all_experts(block.experts, block.expert_norm(x_MD)), own


def _query_key_value(attention: Attention, x_MD: Tensor) -> Tensor:
    """The three projections in one product, [M, 3 D]; queries already scaled."""
    scale = (x_MD.shape[1] // attention.heads) ** -0.5
    weight = torch.cat([attention.query.weight * scale, attention.key_value.weight])
    bias = torch.cat([attention.query.bias * scale, attention.key_value.bias])
    return F.linear(x_MD, weight, bias)


def _attended(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attention of scaled queries by head [B, H, S, D / H], heads side by side again: [B S, D]."""
    y = F.softmax(q @ k.transpose(-1, -2) + hidden, dim=-1) @ v
    return y.transpose(1, 2).reshape(-1, v.shape[1] * v.shape[3])


def _with_own(past: Tensor, own_MD: Tensor) -> Tensor:
    """[M, P, D] with the code being written. What the first step left is shared by the beams of a request."""
    if past.shape[1] == 1:
        past = past.expand(-1, own_MD.shape[0] // past.shape[0], -1).reshape(-1, 1, own_MD.shape[1])
    return torch.cat([past, own_MD[:, None]], dim=1)


def _over_codes(q_MD: Tensor, written: Written, heads: int) -> Tensor:
    """Attention of each beam over its own codes, [M, D]."""
    head_DH = torch.eye(heads, device=q_MD.device, dtype=q_MD.dtype).repeat_interleave(q_MD.shape[1] // heads, dim=0)
    weight_MPH = F.softmax((q_MD[:, None] * written.k) @ head_DH, dim=1)
    return ((weight_MPH @ head_DH.t()) * written.v).sum(1)


def all_experts(experts: MixtureOfExperts, x_MD: Tensor) -> Tensor:
    """Every expert on every token as two products, weighted by its gate (0 if unchosen): no data-dependent shape. O(M E D F)."""
    chosen_Mk, expert_Mk = experts.router(x_MD).topk(experts.chosen, dim=-1)
    gate_ME = torch.zeros_like(x_MD[:, : experts.experts]).scatter(1, expert_Mk, F.softmax(chosen_Mk, dim=-1))
    e, d, f = experts.up_EDF.shape
    h_MH = F.gelu(F.linear(x_MD, experts.up_EDF.transpose(1, 2).reshape(e * f, d), experts.up_bias_EF.flatten()))
    weighted_MH = (h_MH.view(-1, e, f) * gate_ME[..., None]).view(-1, e * f)
    y_MD = F.linear(weighted_MH, experts.down_EFD.reshape(e * f, d).t()) + gate_ME @ experts.down_bias_ED
    return y_MD if experts.shared is None else y_MD + experts.shared(x_MD)
