"""The decoder: three steps, each sees the steps before it and the history up to its position, and ends in experts.

Choices: a step attends to the same encoder states whichever position of the history it decodes for, so positions fold into the query dimension and
nothing is copied per position; keys and values of the history are projected once per layer and kept for all steps and beams.

Shapes: B batch, Q paths decoded side by side (positions of a history in training, beams when serving), S steps given at once (3 in training, 1 when
serving), M paths that count, P steps before, T encoder positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ugt.model.attention import Attention, KeysValues
from ugt.model.config import ModelConfig
from ugt.model.dropout import Dropout
from ugt.model.moe import MixtureOfExperts

LEVELS = 3


class DecoderBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        d, p = config.width, config.decoder_dropout
        self.self_norm, self.cross_norm, self.expert_norm = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.self_attention, self.cross_attention = Attention(d, config.heads), Attention(d, config.heads)
        self.experts = MixtureOfExperts(config)
        self.dropout = Dropout(p)

    def forward(self, x_BQSD: Tensor, past: KeysValues | None, memory: KeysValues, mask_BQT: Tensor) -> tuple[Tensor, KeysValues, Tensor]:
        """One layer. `past` holds keys and values [B, Q, P, D] of the earlier steps; `mask_BQT` is True where a path may look (Q may be 1).

        Returns (x, keys and values of all steps so far, balance loss of the experts).
        """
        steps = x_BQSD.shape[2]
        y = self.self_norm(x_BQSD)
        own = self.self_attention.keys_values(y)
        if past is not None:
            own = KeysValues(torch.cat([past.k, own.k], dim=2), torch.cat([past.v, own.v], dim=2))
        flat = KeysValues(own.k.flatten(0, 1), own.v.flatten(0, 1))
        written = self.self_attention(y.flatten(0, 1), flat, causal=past is None and bool(steps > 1))
        x_BQSD = x_BQSD + self.dropout(written).unflatten(0, y.shape[:2])

        y_BRD = self.cross_norm(x_BQSD).flatten(1, 2)
        mask_BR = mask_BQT if mask_BQT.shape[1] == 1 else mask_BQT.repeat_interleave(steps, dim=1)
        x_BQSD = x_BQSD + self.dropout(self.cross_attention(y_BRD, memory, mask=mask_BR[:, None])).unflatten(1, (-1, steps))

        y, balance = self.experts(self.expert_norm(x_BQSD))
        return x_BQSD + self.dropout(y), own, balance

    def paths(self, x_MSD: Tensor, counts_BR: Tensor, memory: KeysValues, mask_BRT: Tensor) -> tuple[Tensor, Tensor]:
        """One layer over the three steps of the M paths that count; R = Q S queries of the history, as `counts_BR` and `mask_BRT` lay them out."""
        y = self.self_norm(x_MSD)
        x_MSD = x_MSD + self.dropout(self.self_attention(y, self.self_attention.keys_values(y), causal=True))
        y = self.cross_norm(x_MSD).flatten(0, 1)
        x_MSD = x_MSD + self.dropout(self.cross_attention.some(y, counts_BR, memory, mask_BRT[:, None])).view_as(x_MSD)
        y, balance = self.experts(self.expert_norm(x_MSD))
        return x_MSD + self.dropout(y), balance


class Decoder(nn.Module):
    """A stack of blocks, and what the first step starts from."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.width
        self.start = nn.Linear(d, d)
        self.prefix = nn.ModuleList(nn.Linear(d, d) for _ in range(LEVELS - 1))
        self.step = nn.Embedding(LEVELS, d)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(d)
        nn.init.normal_(self.step.weight, std=0.1)
        self.scale = d**0.5

    def memory(self, state_BTD: Tensor) -> list[KeysValues]:
        """Keys and values of the history, once per layer."""
        return [block.cross_attention.keys_values(state_BTD) for block in self.blocks]

    def start_token(self, state_D: Tensor, context_D: Tensor) -> Tensor:
        """Token of step 0 from the encoder state of the position and the context of the request."""
        return self.start(state_D) + context_D + self.step.weight[0]

    def prefix_token(self, level: int, node_D: Tensor) -> Tensor:
        """Token of step `level` (1 or 2) from the vector of the prefix written so far."""
        return self.prefix[level - 1](node_D * self.scale) + self.step.weight[level]

    def forward(self, x_BQSD: Tensor, past: list[KeysValues] | None, memory: list[KeysValues], mask_BQT: Tensor) -> tuple[Tensor, list[KeysValues], Tensor]:
        """States of the steps given, [B, Q, S, D], the cache with them in it, and the mean balance loss of the layers."""
        cache, balance = [], x_BQSD.new_zeros(())
        for i, block in enumerate(self.blocks):
            x_BQSD, own, loss = block(x_BQSD, past[i] if past is not None else None, memory[i], mask_BQT)
            cache.append(own)
            balance = balance + loss / len(self.blocks)
        return self.norm(x_BQSD), cache, balance

    def paths(self, x_MSD: Tensor, valid_BQ: Tensor, memory: list[KeysValues], mask_BQT: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` for training: the three steps of the M valid paths [M, 3, D] alone, so that padding costs nothing and no expert is chosen for it.

        Returns their states and the mean balance loss of the layers.
        """
        counts_BR, mask_BRT = (x.repeat_interleave(x_MSD.shape[1], dim=1) for x in (valid_BQ, mask_BQT))
        balance = x_MSD.new_zeros(())
        for block, pair in zip(self.blocks, memory, strict=True):
            x_MSD, loss = block.paths(x_MSD, counts_BR, pair, mask_BRT)
            balance = balance + loss / len(self.blocks)
        return self.norm(x_MSD), balance
