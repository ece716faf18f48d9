"""The causal encoder over a history: position t knows the user token and events 0..t-1, and nothing later. Its blocks are those below, or `HstuBlock`.

Because padding is on the right and attention causal, no padding mask is needed: what stands behind an event can't reach it.

Shapes: B batch, T = 1 + L positions, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from ugt.model.attention import Attention, FeedForward
from ugt.model.config import ModelConfig
from ugt.model.dropout import Dropout
from ugt.model.hstu import HstuBlock, elapsed_codes


class EncoderBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.width
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, config.heads)
        self.feed_forward = FeedForward(d, d * config.feed_forward, config.encoder_dropout)
        self.dropout = Dropout(config.encoder_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(y_BTD, self.attention.keys_values(y_BTD), causal=True))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.relative = config.encoder_block == "hstu"
        self.blocks = nn.ModuleList(HstuBlock(config) if self.relative else EncoderBlock(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x_BTD: Tensor, gap_BL: Tensor | None = None) -> Tensor:
        """`gap_BL`: codes of the time before each event; needed by blocks that know relative time."""
        relation = (elapsed_codes(gap_BL),) if self.relative else ()
        for block in self.blocks:
            x_BTD = block(x_BTD, *relation)
        return self.norm(x_BTD)
