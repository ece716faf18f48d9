"""The HSTU block: pointwise aggregated attention with relative position and time, gated, in place of softmax attention and feed-forward.

Choices: as published, the block has no feed-forward part: one projection makes gate, values, queries and keys, and the gate does its work. A sum over events
is not normalised by what it attends to, so how much of a thing a history holds is not lost, as it is in a softmax. It is divided by the longest history the
encoder reads, a constant: neither padding nor batch changes a state. Times are what the gap codes tell: the minutes in the middle of each code, added up,
so serving and training know the same. Buckets are found in integers, because a logarithm may fall on either side of a border.

Shapes: B batch, L events, T = 1 + L positions (the user token first), D width, H heads.
Source: Zhai et al. 2024, "Actions Speak Louder than Words", section 3 (equations 1 to 3); norms, and one bias for all heads, as in its public code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.config import ModelConfig
from ugt.model.dropout import Dropout
from ugt.model.inputs import GAP_CODES

UNKNOWN = 2**40  # minutes, more than any history lasts: from before to after a gap that is not known
BLOCK = 1024


def middle_minutes() -> Tensor:
    """Minutes in the middle of each gap code, int64 [GAP_CODES]: code c stands for 2^(c-1) - 1 up to 2^c - 2."""
    return torch.tensor([UNKNOWN, 0, *(3 * 2 ** (code - 2) - 1 for code in range(2, GAP_CODES))])


def elapsed_codes(gap_BL: Tensor) -> Tensor:
    """Code of the time from each position (last dimension) to each later one, [B, T, T], in the codes of gaps; 0 where it is not known.

    From one event to the next it is the gap code itself. Not known is the time across an unknown gap, and that since the user token. What lies in the
    future has the code of no time at all.
    """
    length = torch.tensor([0, *(n.bit_length() for n in range(1, BLOCK + 1))], device=gap_BL.device)  # of a number in binary
    since_BT = F.pad(middle_minutes().to(gap_BL.device)[gap_BL], (1, 0)).cumsum(1)
    elapsed_BTT = (since_BT[:, :, None] - since_BT[:, None]).clamp(min=0) + 1
    short_BTT = length[elapsed_BTT.clamp(max=BLOCK)]
    long_BTT = length[torch.div(elapsed_BTT, BLOCK, rounding_mode="floor").clamp(max=BLOCK)] + length[BLOCK] - 1
    code_BTT = torch.where(elapsed_BTT < BLOCK, short_BTT, long_BTT).clamp(max=GAP_CODES - 1)
    return torch.where(elapsed_BTT < UNKNOWN, code_BTT, 0)


class HstuBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.width
        self.heads, self.width, self.longest = config.heads, d, config.max_length + 1
        self.norm, self.sum_norm = nn.LayerNorm(d), nn.LayerNorm(d, eps=1e-6)  # of short histories the sums are small
        self.project = nn.Linear(d, 4 * d)  # gate, values, queries, keys
        self.position = nn.Embedding(self.longest, 1)  # bias by how many positions lie between
        self.time = nn.Embedding(GAP_CODES, 1)
        self.out = nn.Linear(d, d)
        self.dropout = Dropout(config.encoder_dropout)
        for table in (self.position, self.time):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x_BTD: Tensor, elapsed_BTT: Tensor) -> Tensor:
        """`elapsed_BTT` from `elapsed_codes`."""
        positions = x_BTD.shape[1]
        gate, v, q, k = F.silu(self.project(self.norm(x_BTD))).split(self.width, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        place_T = torch.arange(positions, device=x_BTD.device)
        apart_TT = place_T[:, None] - place_T
        bias_BTT = (self.position(apart_TT.clamp(min=0)) + self.time(elapsed_BTT)).squeeze(-1)
        seen_TT = (apart_TT >= 0).to(q.dtype) / self.longest
        weight_BHTT = F.silu(q @ k.transpose(-1, -2) + bias_BTT[:, None]) * seen_TT
        y_BTD = (weight_BHTT @ v).transpose(1, 2).flatten(-2)
        return x_BTD + self.dropout(self.out(self.sum_norm(y_BTD) * gate))
