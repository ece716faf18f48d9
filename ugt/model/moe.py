"""Mixture of experts: a feed-forward block whose tokens each pass through their top-k of E experts.

Choices: capacity and jitter act in training only; when serving, every expert is computed and the gates of the unchosen ones are zero, so an answer
never depends on who shares the batch and the ONNX graph has no data-dependent shape. Over capacity, tokens with the smallest gates go without.

Shapes: M tokens, D width, E experts, F hidden width of an expert, k experts per token, R choices (of M k) that are carried out.
Source: Shazeer et al. 2017 (top-k gating); Fedus et al. 2021, section 2.2 (capacity, load-balancing loss); jitter as there.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.attention import FeedForward
from ugt.model.config import ModelConfig
from ugt.model.dropout import Dropout, jittered


class MixtureOfExperts(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        e, d, f = config.experts, config.width, config.width * config.expert_width
        self.experts, self.chosen = e, config.experts_per_token
        self.capacity_factor, self.jitter = config.capacity_factor, config.router_jitter
        self.router = nn.Linear(d, e, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(e, d, f).uniform_(-1, 1) / math.sqrt(d))
        self.up_bias_EF = nn.Parameter(torch.zeros(e, f))
        self.down_EFD = nn.Parameter(torch.empty(e, f, d).uniform_(-1, 1) / math.sqrt(f))
        self.down_bias_ED = nn.Parameter(torch.zeros(e, d))
        self.dropout = Dropout(config.decoder_dropout)
        self.shared = FeedForward(d, f, config.decoder_dropout) if config.shared_expert else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] to (y [..., D], balance loss). The loss is 1 where the load is even and at most E."""
        x_MD = x.reshape(-1, x.shape[-1])
        routed_MD = x_MD
        if self.training and self.jitter:
            routed_MD = jittered(x_MD, self.jitter)
        probability_ME = F.softmax(self.router(routed_MD), dim=-1)
        gate_Mk, expert_Mk = probability_ME.topk(self.chosen, dim=-1)
        gate_Mk = gate_Mk / gate_Mk.sum(-1, keepdim=True)
        y_MD = self._dispatch(x_MD, gate_Mk, expert_Mk) if self.training else self._all_experts(x_MD, gate_Mk, expert_Mk)
        if self.shared is not None:
            y_MD = y_MD + self.shared(x_MD)
        balance = self.experts * (self._load(expert_Mk) * probability_ME.sum(0)).sum() / max(1, len(x_MD))
        return y_MD.reshape(x.shape), balance

    def _load(self, expert_Mk: Tensor) -> Tensor:
        """Share of the choices that fell on each expert, [E]; in training over all workers, so that their mean balance loss is that of the whole batch."""
        count_E = F.one_hot(expert_Mk, self.experts).sum((0, 1)).float()
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(count_E)
        return count_E / count_E.sum().clamp(min=1)

    def _dispatch(self, x_MD: Tensor, gate_Mk: Tensor, expert_Mk: Tensor) -> Tensor:
        """Tokens sorted by expert, at most `capacity` for each, every expert on its own range of them: O(M k D F)."""
        expert_S = expert_Mk.flatten()  # S = M k: token by token, choice by choice
        order_R = expert_S.argsort(stable=True)
        loads = torch.bincount(expert_S, minlength=self.experts).tolist()
        capacity = math.ceil(self.capacity_factor * len(expert_S) / self.experts)
        if max(loads) > capacity:
            kept = [s if len(s) <= capacity else s[gate_Mk.flatten()[s].topk(capacity).indices] for s in order_R.split(loads)]
            order_R, loads = torch.cat(kept), [len(s) for s in kept]
        x_RD = F.embedding(order_R // self.chosen, x_MD)
        up = [torch.addmm(self.up_bias_EF[e], x_eD, self.up_EDF[e]) for e, x_eD in enumerate(x_RD.split(loads))]
        h_RF = self.dropout(F.gelu(torch.cat(up)))
        down = [torch.addmm(self.down_bias_ED[e], h_eF, self.down_EFD[e]) for e, h_eF in enumerate(h_RF.split(loads))]
        # where each choice of each token went; the last row, of zeros, is for those over capacity
        place_S = torch.full_like(expert_S, len(order_R)).scatter(0, order_R, torch.arange(len(order_R), device=order_R.device))
        y_RD = torch.cat([*down, x_MD.new_zeros(1, x_MD.shape[1])])
        return (F.embedding(place_S.view_as(expert_Mk), y_RD) * gate_Mk[..., None]).sum(1)

    def _all_experts(self, x_MD: Tensor, gate_Mk: Tensor, expert_Mk: Tensor) -> Tensor:
        """Every expert on every token, weighted by its gate (0 if unchosen): O(M E D F), no data-dependent shape."""
        gate_ME = torch.zeros(x_MD.shape[0], self.experts, dtype=x_MD.dtype, device=x_MD.device).scatter(1, expert_Mk, gate_Mk)
        h_EMF = F.gelu(x_MD[None] @ self.up_EDF + self.up_bias_EF[:, None])
        y_EMD = h_EMF @ self.down_EFD + self.down_bias_ED[:, None]
        return (gate_ME.t()[..., None] * y_EMD).sum(0)
