"""UGT: a causal encoder over events, a decoder that writes three codes, a dense head beside it, one item table under all.

    history -> HistoryEmbedding -> Encoder -> state of every position --+-> Decoder + LevelHeads -> log p(l1), log p(l2 | l1), log p(l3 | l1, l2)
                                                                        +-> DenseHead -> user vector . item table

In training every position of every history predicts its next event in one pass (`path_log_probs`); serving decodes the last position
with the same parts (`ugt/decoding.py`). A code that leads to no item has probability zero in both.

Shapes: B batch, L events, T = 1 + L positions, Q paths per row, M paths that have a target, D width, C slots of the largest group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt.model.config import ModelConfig
from ugt.model.decoder import Decoder
from ugt.model.embeddings import CatalogueTables, ContextEmbedding, HistoryEmbedding, ItemTable, rows
from ugt.model.encoder import Encoder
from ugt.model.heads import DenseHead, LevelHeads
from ugt.model.inputs import UserVocabulary
from ugt.model.repeats import RepeatBias, read_before, read_items
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIds

IMPOSSIBLE = -1e9  # a log-probability no possible code can have; finite, so that a row of impossible codes has no NaN


class UGT(nn.Module):
    def __init__(
        self, config: ModelConfig, semantic_ids: SemanticIds, vector_NV: np.ndarray, vocabulary: UserVocabulary, estimated_NV: np.ndarray | None = None
    ):
        """`vector_NV` are the vectors the semantic IDs were made of, `estimated_NV` those of the same items as if they were new (`ItemTable`).

        Raises UGTError if their number is not that of the items.
        """
        super().__init__()
        if len(vector_NV) != len(semantic_ids):
            raise UGTError(
                f"item vectors: {len(vector_NV):,} rows for {len(semantic_ids):,} items. Both must come from the same semantic IDs step: run it again."
            )
        self.config, self.semantic_ids, self.vocabulary = config, semantic_ids, vocabulary
        self.items = ItemTable(config, semantic_ids, vector_NV, estimated_NV)
        self.history = HistoryEmbedding(config, vocabulary.sizes)
        self.context = ContextEmbedding(config.width)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.level_heads = LevelHeads(config.width, self.items.k1, self.items.k2)
        self.dense_head = DenseHead(config.width, config.temperature)
        self.repeats = RepeatBias()

    def tables(self) -> CatalogueTables:
        return self.items()

    @torch.no_grad()
    def settle_unread(self, read: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Give the rows of the small input tables that training never read the mean of those it read.

        `read`: by input (each event attribute, `context`, `user`) the codes read in each of its tables. Without this a kind of event that first occurs
        online, a "like" after training on ratings alone, would add a random vector to the history.
        """
        tables: dict[str, Sequence[nn.Embedding]] = {name: [getattr(self.history, name)] for name in self.history.attributes}
        tables |= {"context": [self.context.moment], "user": list(self.history.user)}
        for name in tables.keys() & read.keys():
            for table, trained in zip(tables[name], read[name], strict=True):
                unread = torch.ones(table.num_embeddings, dtype=torch.bool)
                unread[torch.from_numpy(trained)] = False
                if unread.any() and not unread.all():
                    table.weight[unread] = table.weight[~unread].mean(0)

    def encode(self, inputs: Mapping[str, Tensor], tables: CatalogueTables) -> Tensor:
        """State of every position, [B, 1 + L, D], from the arrays of `ugt.model.inputs.build_inputs`. State t has read events 0..t-1."""
        return self.encoder(self.history(inputs, tables.item_ID), inputs.get("gap_BL"))

    def user_vectors(self, state_D: Tensor, context: Tensor) -> Tensor:
        """[..., D]; its inner product with a row of `tables.item_ID` is the dense head's logit."""
        return self.dense_head(state_D, self.context(context))

    def path_log_probs(
        self, state_BTD: Tensor, position_BQ: Tensor, context_BQ: Tensor, item_BQ: Tensor, tables: CatalogueTables, item_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the three codes of given items, each normalised over the codes that lead to an item.

        `item_BQ` is an item of the table (index + 1), 0 where a path has no target; `item_BL` the items of the histories.

        Returns ([M, 3] for the M paths with a target, in order; balance loss).
        """
        valid_BQ = item_BQ > 0
        item_M = item_BQ[valid_BQ] - 1
        group_BQ = self.items.group_N[(item_BQ - 1).clamp(min=0)]
        group_M = group_BQ[valid_BQ]
        l1_M = group_M // self.items.k2
        start_MD = self.decoder.start_token(take(state_BTD, position_BQ)[valid_BQ], self.context(context_BQ[valid_BQ]))
        prefix_MD = (self.decoder.prefix_token(1, rows(tables.first_KD, l1_M)), self.decoder.prefix_token(2, rows(tables.group_GD, group_M)))
        mask_BQT = torch.arange(state_BTD.shape[1], device=state_BTD.device) <= position_BQ[..., None]
        h_MSD, balance = self.decoder.paths(torch.stack([start_MD, *prefix_MD], dim=1), valid_BQ, self.decoder.memory(state_BTD), mask_BQT)

        codes_M3 = self.items.codes_N3[item_M]
        read, before_BQL = read_items(item_BL, tables), read_before(position_BQ, item_BL.shape[1])
        place_C = torch.arange(self.items.largest_group, device=item_BL.device)
        repeated_MK = self.repeats.second(read, before_BQL, group_BQ // self.items.k2, self.items.k2)[valid_BQ]
        repeated_MC = self.repeats.third(read, before_BQL, group_BQ, place_C)[valid_BQ]
        live_KK = tables.group_count_G.view(self.items.k1, self.items.k2) > 0
        logits = (
            (self.level_heads.first(h_MSD[:, 0], tables.first_KD), live_KK.any(1).expand(len(item_M), -1)),
            (self.level_heads.second_sorted(h_MSD[:, 1], l1_M, tables.group_GD) + repeated_MK, live_KK[l1_M]),
            self._third(h_MSD[:, 2], group_M, tables, repeated_MC),
        )
        levels = [masked_log_softmax(x, legal).gather(1, codes_M3[:, i : i + 1]) for i, (x, legal) in enumerate(logits)]
        return torch.cat(levels, dim=1), balance

    def _third(self, h_MD: Tensor, group_M: Tensor, tables: CatalogueTables, repeated_MC: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over the slots of each path's group and which of them hold an item, [M, C] each."""
        place_C = torch.arange(self.items.largest_group, device=h_MD.device)
        legal_MC = place_C < tables.group_count_G[group_M][:, None]
        slot_MC = (tables.group_start_G[group_M][:, None] + place_C).clamp(max=len(tables.slot_item_S) - 1)
        item_MC = torch.where(legal_MC, tables.slot_item_S[slot_MC] + 1, 0)
        return self.level_heads.third_of_legal(h_MD, item_MC, legal_MC, tables.item_ID) + repeated_MC, legal_MC


def take(state_BTD: Tensor, position_BQ: Tensor) -> Tensor:
    """State of given positions, [B, Q, D]."""
    return state_BTD.gather(1, position_BQ[..., None].expand(-1, -1, state_BTD.shape[-1]))


def masked_log_softmax(logits: Tensor, legal: Tensor) -> Tensor:
    """Log-probabilities over the legal entries of the last dimension; IMPOSSIBLE elsewhere, and everywhere if none is legal."""
    return F.log_softmax(logits.masked_fill(~legal, IMPOSSIBLE), dim=-1).masked_fill(~legal, IMPOSSIBLE)
