"""Mixture of experts: a feed-forward block whose tokens each pass through their top-k of E experts.

Choices: capacity and jitter act in training only; when serving, every expert is computed and the gates of the unchosen ones are zero, so an answer
never depends on who shares the batch and the ONNX graph has no data-dependent shape. Over capacity, tokens with the smallest gates go without.

Shapes: M tokens, D width, E experts, F hidden width of an expert, k experts per token.
Source: Shazeer et al. 2017 (top-k gating); Fedus et al. 2021, section 2.2 (capacity, load-balancing loss); jitter as there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.attention import FeedForward
from ugt.model.config import ModelConfig


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
        self.dropout = nn.Dropout(config.decoder_dropout)
        self.shared = FeedForward(d, f, config.decoder_dropout) if config.shared_expert else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] to (y [..., D], balance loss). The loss is 1 where the load is even and at most E."""
        x_MD = x.reshape(-1, x.shape[-1])
        routed_MD = x_MD
        if self.training and self.jitter:
            routed_MD = x_MD * torch.empty_like(x_MD).uniform_(1 - self.jitter, 1 + self.jitter)
        probability_ME = F.softmax(self.router(routed_MD), dim=-1)
        gate_Mk, expert_Mk = probability_ME.topk(self.chosen, dim=-1)
        gate_Mk = gate_Mk / gate_Mk.sum(-1, keepdim=True)
        y_MD = self._dispatch(x_MD, gate_Mk, expert_Mk) if self.training else self._all_experts(x_MD, gate_Mk, expert_Mk)
        if self.shared is not None:
            y_MD = y_MD + self.shared(x_MD)
        load_E = F.one_hot(expert_Mk, self.experts).to(x.dtype).mean((0, 1))
        balance = self.experts * (load_E * probability_ME.mean(0)).sum()
        return y_MD.reshape(x.shape), balance

    def _dispatch(self, x_MD: Tensor, gate_Mk: Tensor, expert_Mk: Tensor) -> Tensor:
        """Each expert gathers its tokens, at most `capacity` of them: O(M k D F)."""
        capacity = math.ceil(self.capacity_factor * expert_Mk.numel() / self.experts)
        y_MD = torch.zeros_like(x_MD)
        for e in range(self.experts):
            token, place = (expert_Mk == e).nonzero(as_tuple=True)
            gate = gate_Mk[token, place]
            if len(token) > capacity:
                keep = gate.topk(capacity).indices
                token, gate = token[keep], gate[keep]
            h = self.dropout(F.gelu(x_MD[token] @ self.up_EDF[e] + self.up_bias_EF[e]))
            y_MD = y_MD.index_add(0, token, gate[:, None] * (h @ self.down_EFD[e] + self.down_bias_ED[e]))
        return y_MD

    def _all_experts(self, x_MD: Tensor, gate_Mk: Tensor, expert_Mk: Tensor) -> Tensor:
        """Every expert on every token, weighted by its gate (0 if unchosen): O(M E D F), no data-dependent shape."""
        gate_ME = torch.zeros(x_MD.shape[0], self.experts, dtype=x_MD.dtype, device=x_MD.device).scatter(1, expert_Mk, gate_Mk)
        h_EMF = F.gelu(x_MD[None] @ self.up_EDF + self.up_bias_EF[:, None])
        y_EMD = h_EMF @ self.down_EFD + self.down_bias_ED[:, None]
        return (gate_ME.t()[..., None] * y_EMD).sum(0)
