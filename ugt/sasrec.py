"""SASRec, the strongest plain sequential recommender: causal self-attention over item embeddings, which also score the catalogue.

Choices: as in the paper, but trained by softmax over shared negatives (`ugt.losses.dense_softmax`, UGT's own dense loss) instead of one negative each, and with
a learned start token, so that it has the same targets as UGT: event 0 is predicted from nothing but that token. Blocks normalise before attention.

Shapes: B users, L events read, T = L + 1 states, Q targets of a window, M targets of a batch, D width, I rows of the item table (row 0 = no item), N items.
Source: Kang and McAuley (2018), "Self-attentive sequential recommendation".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ugt.artifacts import write_text
from ugt.baselines import Request
from ugt.evaluation import SasRecConfig
from ugt.losses import dense_softmax
from ugt.model.attention import Attention, FeedForward
from ugt.model.ugt import take
from ugt.schema import UGTError
from ugt.topk import top_items

WEIGHTS, CARD = "sasrec.safetensors", "sasrec.json"


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.forward_part, self.dropout = Attention(width, heads), FeedForward(width, width, dropout), nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        normed_BTD = self.before_attention(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed_BTD, self.attention.keys_values(normed_BTD), causal=True))
        return x_BTD + self.dropout(self.forward_part(self.before_forward(x_BTD)))


class SasRec(nn.Module):
    def __init__(self, config: SasRecConfig, n_items: int):
        super().__init__()
        if config.max_length is None:
            raise ValueError("max_length is not settled: use SasRecConfig.like")
        self.config, self.n_items = config, n_items
        self.item = nn.Embedding(n_items + 1, config.width, padding_idx=0)
        self.position = nn.Embedding(config.max_length + 1, config.width)
        self.start = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.blocks))
        self.last_norm, self.dropout = nn.LayerNorm(config.width), nn.Dropout(config.dropout)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=config.width**-0.5)
        with torch.no_grad():
            self.item.weight[0] = 0

    def forward(self, item_BL: Tensor) -> Tensor:
        """States [B, L + 1, D]: state t has read t events. Events are rows of the item table, oldest first, 0 padding on the right."""
        x_BLD = self.item(item_BL) * self.config.width**0.5
        x_BTD = torch.cat([self.start.expand(len(item_BL), 1, -1), x_BLD], dim=1) + self.position.weight[: item_BL.shape[1] + 1]
        x_BTD = self.dropout(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.last_norm(x_BTD)

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Logits of the catalogue for users with these items, oldest first: float32 [B, N]. In eval mode only."""
        kept = [np.asarray(h)[-self.config.max_length :] for h in histories]  # type: ignore[operator]
        item_BL = np.zeros((len(kept), max((len(h) for h in kept), default=1) or 1), np.int64)
        for row, items in enumerate(kept):
            item_BL[row, : len(items)] = items + 1
        with torch.inference_mode():
            state_BTD = self(torch.from_numpy(item_BL))
            user_BD = state_BTD[torch.arange(len(kept)), torch.tensor([len(h) for h in kept])]
            return (user_BD @ self.item.weight[1:].t()).numpy()

    def rank(self, request: Request, k: int) -> np.ndarray:
        return top_items(self.scores(request.histories), k)


class SasRecObjective(nn.Module):
    """The model with its loss; what `train.loop.fit` trains."""

    def __init__(self, model: SasRec, negatives: int):
        super().__init__()
        self.model, self.negatives = model, negatives

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss`, summed over the M targets of a batch of `train.windows`."""
        target_BQ = batch["target_BQ"]
        valid_BQ = target_BQ > 0
        user_MD = take(self.model(batch["item_BL"]), batch["position_BQ"])[valid_BQ]
        return {"loss": dense_softmax(user_MD, target_BQ[valid_BQ], self.model.item.weight, self.negatives).sum()}


def save(model: SasRec, folder: Path, **card: object) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    write_text(folder / CARD, json.dumps({"config": model.config.model_dump(), "items": model.n_items} | card, indent=1))


def load(folder: Path) -> SasRec:
    """Ready to answer (eval mode). Raises UGTError if there is none."""
    try:
        card = json.loads((Path(folder) / CARD).read_text())
    except FileNotFoundError as error:
        raise UGTError(f"no SASRec in {folder}. Run `ugt evaluate` with sasrec among evaluation.baselines, which trains it.") from error
    model = SasRec(SasRecConfig(**card["config"]), int(card["items"]))
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return model.eval()
