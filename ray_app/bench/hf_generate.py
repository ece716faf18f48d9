"""The same task in a Hugging Face encoder-decoder: what one gets from the library everybody knows, set up as well as it allows.

A T5 of random weights reads a history as three tokens per item and generates three tokens by beam search with its cache, under a logits processor that
masks what is no prefix of an item with look-ups for all beams at once. Exclusions and filters are left out, which is work it is spared.

Parameters: its width, heads and feed-forward are ours, its encoder has as many layers, and its decoder as many as come nearest to the parameters of the UGT
without the item table (free embeddings and content projection: 12,101 x 128 rows that no product runs over). Its own tokens are a few hundred rows.

Shapes: B requests, M = B x beams rows, V vocabulary, K1/K2 codes, C third codes, P tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugt.model.ugt import UGT

PAD, END = 0, 1
FIRST = 2  # token of the first code of level 1
STEPS = 3


class TrieLogits:
    """Only tokens that continue a prefix of an item keep their score."""

    def __init__(self, model: UGT, vocabulary: int):
        k1, k2, k3 = model.items.k1, model.items.k2, model.items.k3
        live_KK = model.items.group_count_G.view(k1, k2)
        self.k1, self.k2 = k1, k2
        self.first_V = torch.zeros(vocabulary, dtype=torch.bool)
        self.first_V[FIRST : FIRST + k1] = (live_KK > 0).any(1)
        self.second_KV = torch.zeros(k1, vocabulary, dtype=torch.bool)
        self.second_KV[:, FIRST + k1 : FIRST + k1 + k2] = live_KK > 0
        self.third_CV = torch.zeros(k3 + 1, vocabulary, dtype=torch.bool)  # by the number of items in the group
        self.third_CV[:, FIRST + k1 + k2 : FIRST + k1 + k2 + k3] = torch.arange(k3) < torch.arange(k3 + 1)[:, None]
        self.count_G = model.items.group_count_G

    def __call__(self, token_MP: Tensor, score_MV: Tensor) -> Tensor:
        written = token_MP.shape[1] - 1  # the start token is no code
        if written == 0:
            legal = self.first_V
        else:
            l1_M = (token_MP[:, 1] - FIRST).clamp(0, self.k1 - 1)
            if written == 1:
                legal = self.second_KV[l1_M]
            else:
                l2_M = (token_MP[:, 2] - FIRST - self.k1).clamp(0, self.k2 - 1)
                legal = self.third_CV[self.count_G[l1_M * self.k2 + l2_M]]
        return score_MV.masked_fill(~legal, -torch.inf)


class EncoderDecoder:
    """A T5 with about as many parameters as a UGT, and its constrained generation."""

    def __init__(self, model: UGT, seed: int):
        from transformers import LogitsProcessorList, T5Config, T5ForConditionalGeneration

        torch.manual_seed(seed)
        config, items = model.config, model.items
        self._codes_N3 = items.codes_N3.numpy() + np.array([FIRST, FIRST + items.k1, FIRST + items.k1 + items.k2])
        vocabulary = FIRST + items.k1 + items.k2 + items.k3

        def built(layers: int) -> Any:
            return T5ForConditionalGeneration(
                T5Config(
                    vocab_size=vocabulary,
                    d_model=config.width,
                    d_kv=config.width // config.heads,
                    num_heads=config.heads,
                    d_ff=config.width * config.feed_forward,
                    num_layers=layers,
                    num_decoder_layers=layers,
                    dropout_rate=0.0,
                    pad_token_id=PAD,
                    eos_token_id=END,
                )
            )

        self.wanted = parameters_beside_items(model)
        # as many layers on both sides: transformers makes its cache as deep as the encoder and misses a deeper decoder's layers
        self.model = min((built(n) for n in range(1, 9)), key=lambda m: abs(_parameters(m) - self.wanted)).eval()
        self.parameters = _parameters(self.model)
        self._processors = LogitsProcessorList([TrieLogits(model, vocabulary)])

    @torch.inference_mode()
    def generate(self, histories: Sequence[Sequence[int]], beam_width: int) -> Tensor:
        """Tokens of the best sequences of each request, [M, 1 + 3]."""
        tokens = [torch.from_numpy(self._codes_N3[list(items)].reshape(-1)) for items in histories]
        input_BT = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD)
        return self.model.generate(
            input_ids=input_BT,
            attention_mask=(input_BT != PAD).long(),
            num_beams=beam_width,
            num_return_sequences=beam_width,
            min_new_tokens=STEPS,
            max_new_tokens=STEPS,
            do_sample=False,
            use_cache=True,
            decoder_start_token_id=PAD,
            logits_processor=self._processors,
        )

    def illegal(self, token_M4: Tensor, model: UGT) -> int:
        """Sequences that name no item: whether the processor does what it should."""
        k1, k2 = model.items.k1, model.items.k2
        l1, l2, l3 = (token_M4[:, 1:] - torch.tensor([FIRST, FIRST + k1, FIRST + k1 + k2])).unbind(1)
        inside = (l1 >= 0) & (l1 < k1) & (l2 >= 0) & (l2 < k2)
        group = torch.where(inside, l1 * k2 + l2, 0)
        return int((~inside | (l3 < 0) | (l3 >= model.items.group_count_G[group])).sum())


def parameters_beside_items(model: UGT) -> int:
    """Parameters of a UGT without the rows of its items."""
    return _parameters(model) - _parameters(model.items.free) - _parameters(model.items.project)


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
