"""Dropout, and the noise of the router: PyTorch's meaning, drawn four numbers to a draw.

On a CPU the Bernoulli draws of PyTorch's dropout took a tenth of a training step. One 64-bit draw of the same generator holds four numbers of 16 bits,
so a probability is met to 1/131072 and the masks follow from the seed as before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_bits(like: Tensor) -> Tensor:
    """Numbers drawn evenly from the whole range of int16, in the shape of `like`, from PyTorch's generator. On the CPU."""
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[: like.numel()].view(like.shape)


def dropout(x: Tensor, p: float) -> Tensor:
    """Each element 0 with probability p, else divided by 1 - p. Source: Srivastava et al. 2014."""
    dropped = round(p * 65536)
    if x.device.type != "cpu" or dropped == 65536:
        return F.dropout(x, p)
    if dropped == 0:
        return x
    keep = (random_bits(x) >= dropped - 32768).to(x.dtype)
    return x * keep.mul_(65536 / (65536 - dropped))


def jittered(x: Tensor, jitter: float) -> Tensor:
    """Each element times a number drawn evenly from 1 - jitter to 1 + jitter."""
    if x.device.type != "cpu":
        return x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)
    return x * random_bits(x).to(x.dtype).mul_(jitter / 32768).add_(1)


class Dropout(nn.Module):
    """`dropout` in training, nothing otherwise."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
