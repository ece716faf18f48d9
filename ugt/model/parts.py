"""A matrix in consecutive parts whose sizes are data: one node of an exported graph, where torch's exporter writes a dozen.

Shapes: P rows, D width, E parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def in_parts(x_PD: Tensor, size_E: Tensor, parts: int) -> tuple[Tensor, ...]:
    """`parts` consecutive ranges of rows of x [P, ...], of the sizes [E] given, which must add up to P. No gradient; not in a CUDA graph: sizes are read."""
    return _Parts.apply(x_PD, size_E, parts)


def even_parts(rows: int, parts: int, device: torch.device) -> Tensor:
    """Sizes [E] of `parts` parts of so many rows, as equal as can be."""
    edge = torch.arange(parts + 1, device=device) * rows // parts
    return edge[1:] - edge[:-1]


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, size_E: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x_PD.split(size_E.tolist())

    @staticmethod
    def symbolic(g: Any, x_PD: Any, size_E: Any, parts: int) -> Any:
        return g.op("Split", x_PD, size_E, axis_i=0, outputs=parts)
