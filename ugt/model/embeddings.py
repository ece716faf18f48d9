"""From codes to vectors: the item table, and the tokens a history is made of.

Choices: one item table serves the input, the dense head and the last level of the decoder, so that what one learns the others know. A row is the sum
of the item's three code embeddings, a free embedding and its projected content vector. Beside the last level nothing is scored per item: a prefix
(L1) or (L1, L2) is represented by the mean of the items under it.

Shapes: B batch, L events, T = 1 + L positions (the user token first), D width, N items, I = N + 1 rows (row 0 = no item), V width of a content
vector, K1 first codes, G = K1 * K2 groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.config import ModelConfig
from ugt.model.dropout import Dropout
from ugt.model.inputs import CONTEXT_CODES, EVENT_ATTRIBUTES
from ugt.semantic_ids import SemanticIds


def rows(table_RD: Tensor, which: Tensor) -> Tensor:
    """table[which], [..., D]. Not by indexing: on several threads its gradient adds up in the order the threads come, and two equal runs end differently."""
    return F.embedding(which, table_RD)


class CatalogueTables(NamedTuple):
    """All the decoder knows of the catalogue. Data, not weights: in the exported graph each of these is an input, so that items can be added."""

    item_ID: Tensor  # row 0 is zero: no item
    first_KD: Tensor  # mean item of each L1
    group_GD: Tensor  # mean item of each (L1, L2)
    group_start_G: Tensor
    group_count_G: Tensor
    slot_item_S: Tensor
    item_slot_N: Tensor
    item_group_N: Tensor


class ItemTable(nn.Module):
    """The embedding of every item, and the means that stand for prefixes."""

    def __init__(self, config: ModelConfig, semantic_ids: SemanticIds, vector_NV: np.ndarray, estimated_NV: np.ndarray | None = None):
        """`estimated_NV`: the vectors these items would have if they were new (`ugt.insertion`), read in training only and where `cold_share` is above 0."""
        super().__init__()
        trie, d = semantic_ids.trie, config.width
        self.k1, self.k2, self.k3 = trie.k1, trie.k2, trie.k3
        self.cold_share = config.cold_share if estimated_NV is not None else 0.0
        std = 0.5 / math.sqrt(d)  # a row, the sum of five parts, has a norm near 1
        # code 0 is a real code here; items without one (row 0) are left out before the look-up (fault 18)
        self.codes = nn.ModuleList(nn.Embedding(k, d) for k in (trie.k1, trie.k2, trie.k3))
        self.free = nn.Embedding(len(semantic_ids), d)
        self.project = nn.Linear(vector_NV.shape[1], d, bias=False)
        for table in (*self.codes, self.free):
            nn.init.normal_(table.weight, std=std)
        nn.init.normal_(self.project.weight, std=std / math.sqrt(vector_NV.shape[1]))
        codes_N3 = torch.from_numpy(semantic_ids.codes_N3.astype(np.int64))
        fixed = {
            "codes_N3": codes_N3,
            "group_N": codes_N3[:, 0] * trie.k2 + codes_N3[:, 1],
            "vector_NV": torch.from_numpy(np.ascontiguousarray(vector_NV, np.float32)),
            "group_start_G": torch.from_numpy(trie.group_start_G),
            "group_count_G": torch.from_numpy(trie.group_count_G),
            "slot_item_S": torch.from_numpy(trie.slot_item_S),
            "item_slot_N": torch.from_numpy(trie.item_slot_N),
        }
        if estimated_NV is not None:
            fixed["estimated_NV"] = torch.from_numpy(np.ascontiguousarray(estimated_NV, np.float32))
        for name, value in fixed.items():
            self.register_buffer(name, value.clone(), persistent=False)  # they belong to the semantic IDs, not to the checkpoint
        self.largest_group = int(trie.group_count_G.max())

    def forward(self) -> CatalogueTables:
        """O(N (V + 4) D): cheap beside one step's attention up to some 100,000 items."""
        free_ND, vector_NV = self.free.weight, self.vector_NV
        if self.training and self.cold_share > 0:
            # a user's interest must reach items that nobody has seen yet (DropoutNet: Volkovs et al., 2017)
            cold_N1 = torch.rand(len(free_ND), 1, device=free_ND.device) < self.cold_share
            free_ND, vector_NV = free_ND.masked_fill(cold_N1, 0.0), torch.where(cold_N1, self.estimated_NV, vector_NV)
        item_ND = free_ND + self.project(vector_NV)
        for level, table in enumerate(self.codes):
            item_ND = item_ND + table(self.codes_N3[:, level])
        group_sum_GD = torch.zeros(self.k1 * self.k2, item_ND.shape[1], dtype=item_ND.dtype, device=item_ND.device).index_add(0, self.group_N, item_ND)
        count_G = self.group_count_G.to(item_ND.dtype)[:, None]
        first_sum_KD, first_count_K = group_sum_GD.unflatten(0, (self.k1, self.k2)).sum(1), count_G.view(self.k1, self.k2, 1).sum(1)
        return CatalogueTables(
            torch.cat([torch.zeros_like(item_ND[:1]), item_ND]),
            first_sum_KD / first_count_K.clamp(min=1),
            group_sum_GD / count_G.clamp(min=1),
            self.group_start_G,
            self.group_count_G,
            self.slot_item_S,
            self.item_slot_N,
            self.group_N,
        )


class HistoryEmbedding(nn.Module):
    """Typed tokens: USER first, then one ITEM position per event that carries its item, its attributes (action, value, time gap, ...) and its place."""

    def __init__(self, config: ModelConfig, user_sizes: tuple[int, ...]):
        super().__init__()
        d = config.width
        self.scale = math.sqrt(d)
        self.attributes = [name for name in EVENT_ATTRIBUTES if name in config.event_attributes]
        for name in self.attributes:
            self.add_module(name, nn.Embedding(EVENT_ATTRIBUTES[name].size, d))
        self.position = nn.Embedding(config.max_length, d)
        self.user = nn.ModuleList(nn.Embedding(n, d) for n in user_sizes)
        self.token_type = nn.Embedding(2, d)
        self.dropout = Dropout(config.encoder_dropout)
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.1)

    @property
    def inputs(self) -> list[str]:
        """Names of the arrays [B, L] it reads."""
        return ["item_BL", *(f"{name}_BL" for name in self.attributes)]

    def forward(self, inputs: Mapping[str, Tensor], item_ID: Tensor) -> Tensor:
        """Tokens of each history, [B, 1 + L, D], from `inputs` and `user_BU` as `ugt.model.inputs.build_inputs` makes them."""
        item_BL, user_BU = inputs["item_BL"], inputs["user_BU"]
        event_BLD = rows(item_ID, item_BL) * self.scale
        for name in self.attributes:
            event_BLD = event_BLD + getattr(self, name)(inputs[f"{name}_BL"])
        event_BLD = event_BLD + self.position.weight[: item_BL.shape[1]] + self.token_type.weight[1]
        user_BD = self.token_type.weight[0] + sum(table(user_BU[:, i]) for i, table in enumerate(self.user))
        return self.dropout(torch.cat([user_BD[:, None], event_BLD], dim=1))


class ContextEmbedding(nn.Module):
    """CONTEXT: when the request is made. It enters at the decoder's start, so every position trains with the context of its own target."""

    def __init__(self, width: int):
        super().__init__()
        self.moment = nn.Embedding(CONTEXT_CODES, width)
        nn.init.normal_(self.moment.weight, std=0.1)

    def forward(self, context: Tensor) -> Tensor:
        return self.moment(context)
