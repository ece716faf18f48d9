"""What the states mean: logits of the three codes, and the user vector of the dense head.

Choices: a code is scored against the vector of the node it leads to (mean item of an L1, mean item of a group, the item itself), so all levels share the
item table; L3 in particular, which counts items inside a group, means nothing by itself across groups. Nodes carry a bias that starts at
the log frequency of training, because popularity is the first thing a short training would otherwise have to learn.

Shapes: ... any leading dimensions, D width, K1/K2 codes, C slots of a group, G groups, M positions, R items of their groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ugt.model.embeddings import rows
from ugt.model.parts import even_parts, in_parts

FEW_CODES = 128  # up to here a product for every L1 is cheaper than a copy of the kept ones' rows
CACHED_PARTS = 25  # at 128 second codes, width 128 and 50 beams: 130 kB each


class LevelHeads(nn.Module):
    def __init__(self, width: int, k1: int, k2: int):
        super().__init__()
        self.k1, self.k2 = k1, k2
        self.query = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.first_bias_K = nn.Parameter(torch.zeros(k1))
        self.group_bias_G = nn.Parameter(torch.zeros(k1 * k2))

    @torch.no_grad()
    def start_from_counts(self, count_G: Tensor) -> None:
        """Biases at the log frequency of each node in training; `count_G` events per group. One event is added everywhere."""
        count_KK = count_G.view(self.k1, self.k2).to(self.first_bias_K.dtype) + 1
        first_K = count_KK.sum(1)
        self.first_bias_K.copy_((first_K / first_K.sum()).log())
        self.group_bias_G.copy_((count_KK / first_K[:, None]).log().flatten())

    def first(self, h_D: Tensor, first_KD: Tensor) -> Tensor:
        """Logits of L1, [..., K1]."""
        return self.query[0](h_D) @ first_KD.t() + self.first_bias_K

    def second(self, h_D: Tensor, l1: Tensor, group_GD: Tensor) -> Tensor:
        """Logits of L2 under each path's own L1, [..., K2]. Gathers K2 rows per path: for few paths (beams)."""
        node_K2D = group_GD.view(self.k1, self.k2, -1)[l1]
        return (node_K2D @ self.query[1](h_D)[..., None]).squeeze(-1) + self.group_bias_G.view(self.k1, self.k2)[l1]

    def second_kept(self, h_MD: Tensor, l1_BW: Tensor, group_GD: Tensor) -> Tensor:
        """The same logits [B, W, K2] for the beams of B requests, whose states [B W, D] are the same wherever a request holds an L1 twice.

        Few L1 codes: a product for each of them, of all requests at once, so that no row of the table is copied. Many: as `second`, in parts small enough to
        stay in the cache between copy and product.
        """
        batch, width = l1_BW.shape
        nodes_KKD, query_MD = group_GD.view(self.k1, self.k2, -1), self.query[1](h_MD)
        if self.k1 > FEW_CODES and (torch.jit.is_tracing() or l1_BW.numel() < self.k1):
            l1_M = l1_BW.reshape(-1)
            query_MD1 = query_MD[..., None]
            if l1_M.is_cuda:  # in one part: reading sizes would end a CUDA graph
                logits_MK = (nodes_KKD[l1_M] @ query_MD1).squeeze(-1)
            else:
                size_E = even_parts(l1_M.shape[0], CACHED_PARTS, l1_M.device)
                parts = zip(in_parts(l1_M, size_E, CACHED_PARTS), in_parts(query_MD1, size_E, CACHED_PARTS), strict=True)
                logits_MK = torch.cat([nodes_KKD[l1] @ query for l1, query in parts]).squeeze(-1)
        else:
            request_B1 = torch.arange(batch, device=l1_BW.device)[:, None]
            row_BW = torch.arange(width, device=l1_BW.device) + request_B1 * width
            row_BK = torch.zeros((batch, self.k1), dtype=torch.int64, device=l1_BW.device).scatter(1, l1_BW, row_BW)  # of an L1 nobody holds: any row
            logits_KBK = query_MD[row_BK.t()] @ nodes_KKD.transpose(1, 2)
            logits_MK = logits_KBK.reshape(-1, self.k2)[(l1_BW * batch + request_B1).reshape(-1)]
        logits_MK = logits_MK + self.group_bias_G.view(self.k1, self.k2)[l1_BW.reshape(-1)]
        return logits_MK.view(-1, width, self.k2)

    def second_sorted(self, h_MD: Tensor, l1_M: Tensor, group_GD: Tensor) -> Tensor:
        """The same logits [M, K2] for many paths: sorted by L1, one product per L1, no gather of K2 rows per path."""
        order_M = torch.argsort(l1_M, stable=True)
        counts = torch.bincount(l1_M, minlength=self.k1).tolist()
        present = [l1 for l1, count in enumerate(counts) if count] or [0]  # a worker may have no target in a step
        parts = self.query[1](h_MD)[order_M].split([counts[l1] for l1 in present])
        node_KKD = group_GD.view(self.k1, self.k2, -1).unbind(0)
        sorted_MK = torch.cat([q @ node_KKD[l1].t() for q, l1 in zip(parts, present, strict=True)])
        logits_MK = torch.empty_like(sorted_MK).index_copy(0, order_M, sorted_MK)
        return logits_MK + rows(self.group_bias_G.view(self.k1, self.k2), l1_M)

    def third(self, h_D: Tensor, item_CD: Tensor) -> Tensor:
        """Logits of L3 over the items of a group, item_CD [..., C, D] to [..., C]."""
        return (item_CD @ self.query[2](h_D)[..., None]).squeeze(-1)

    def third_of_legal(self, h_MD: Tensor, item_MC: Tensor, legal_MC: Tensor, item_ID: Tensor) -> Tensor:
        """The same logits [M, C], 0 where no item is: most groups are far smaller than the largest, and only rows of items are copied."""
        place_R = legal_MC.reshape(-1).nonzero()[:, 0]
        query_RD = rows(self.query[2](h_MD), place_R // legal_MC.shape[1])
        logit_R = (query_RD * rows(item_ID, item_MC.reshape(-1)[place_R])).sum(-1)
        return logit_R.new_zeros(legal_MC.numel()).scatter(0, place_R, logit_R).view_as(legal_MC)


class DenseHead(nn.Module):
    """The user vector. Its inner product with a row of the item table is the logit of that item."""

    def __init__(self, width: int, temperature: float):
        super().__init__()
        self.out, self.temperature = nn.Linear(width, width), temperature

    def forward(self, state_D: Tensor, context_D: Tensor) -> Tensor:
        return self.out(state_D + context_D) / self.temperature
