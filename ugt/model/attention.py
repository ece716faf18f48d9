"""Multi-head attention in three uses: causal over a history, causal over three codes, and across to the history.

No dropout on the attention weights: it cost a fifth of a training step and keeps the fused kernel away; what leaves a block has dropout.

Shapes: B batch, S queries, M of them that count, T keys, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.dropout import Dropout


class KeysValues(NamedTuple):
    """Projected keys and values, T x D each: what a cache holds."""

    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Scaled dot-product attention. Keys and values are projected apart from the queries, so that they can be kept."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x_TD: Tensor) -> KeysValues:
        return KeysValues(*self.key_value(x_TD).chunk(2, dim=-1))

    def forward(self, x_SD: Tensor, memory: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from x [B, S, D] to memory [B, T, D]. `mask` is True where a query may look and broadcasts to [B, H, S, T]."""
        return self.out(self._attend(self.query(x_SD), memory, mask, causal))

    def some(self, x_MD: Tensor, counts_BS: Tensor, memory: KeysValues, mask: Tensor) -> Tensor:
        """The same for the M queries that count out of [B, S]: the others are neither projected nor returned."""
        place_M = counts_BS.flatten().nonzero()[:, 0]
        q_MD = self.query(x_MD)
        q_BSD = q_MD.new_zeros(counts_BS.numel(), q_MD.shape[1]).index_copy(0, place_M, q_MD).view(*counts_BS.shape, -1)
        return self.out(self._attend(q_BSD, memory, mask).flatten(0, 1)[place_M])

    def _attend(self, q_SD: Tensor, memory: KeysValues, mask: Tensor | None, causal: bool = False) -> Tensor:
        q, k, v = (self._split(y) for y in (q_SD, memory.k, memory.v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(-3, -2).flatten(-2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x))))


def causal_mask(size: int, device: torch.device | None = None) -> Tensor:
    """[size, size], True where a query (row) may look at a key (column)."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()
