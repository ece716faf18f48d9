"""Training of the autoencoder in plain torch: a state per epoch, the same curve after a kill.

Choices: denoising (blocks of a row are hidden at random), so that an item without people or text still lands near its like; the loss is the unexplained
share of each block's variance, weighted by block; what is random in an epoch comes from (seed, epoch) alone, so a resumed run needs no generator state.

Shapes: B items of a batch, F columns of [features | text], W width of the bottleneck.
Source: Vincent et al. (2008), denoising autoencoders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ugt.features import Vocabulary, load_features
from ugt.fusion import BLOCK, AutoencoderConfig, Fusion, Inputs, Scaler, bottleneck


class Autoencoder(nn.Module):
    """Two layers in, two layers out; `encode` gives the bottleneck."""

    def __init__(self, columns: int, config: AutoencoderConfig):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(columns, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.width))
        self.decoder = nn.Sequential(nn.Linear(config.width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, columns))

    def encode(self, x_BF: Tensor) -> Tensor:
        return self.encoder(x_BF)

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.decoder(self.encode(x_BF))

    def layers(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """The encoder's weights for `ugt.fusion`, [in, out] each."""
        linear = [m for m in self.encoder if isinstance(m, nn.Linear)]
        return tuple((np.ascontiguousarray(m.weight.detach().numpy().T), m.bias.detach().numpy()) for m in linear)


def open_inputs(features_dir: Path, text_dir: Path | None) -> tuple[Inputs, dict[str, tuple[int, int]]]:
    """The matrices, text memory-mapped, and the column ranges of their blocks."""
    features = load_features(features_dir)
    text = np.load(text_dir / "text.npy", mmap_mode="r") if text_dir is not None else None
    blocks = Vocabulary.load(features_dir).blocks()
    if text is not None:
        blocks |= {"text": (features.shape[1], features.shape[1] + text.shape[1])}
    return Inputs(features, text), blocks


def fit(inputs: Inputs, blocks: dict[str, tuple[int, int]], config: AutoencoderConfig, state_path: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Train to `config.epochs`, from `state_path` on if it is there; the state is replaced whole after each epoch.

    `report` gets the figures of each epoch: `epoch`, `loss` (weighted unexplained share of variance, 1 = nothing learnt).
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    scaler = Scaler.fit(inputs, blocks)
    live_F = torch.from_numpy(scaler.scale_F > 0)
    model = Autoencoder(len(scaler.mean_F), config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    curve: list[dict[str, Any]] = []
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        curve = state["curve"]
    while len(curve) < config.epochs:
        epoch = len(curve)
        rng = np.random.default_rng((config.seed, epoch))
        order, total = rng.permutation(len(inputs)), 0.0
        for i in range(0, len(order), config.batch_size):
            x_BF = torch.from_numpy(scaler(inputs.rows(np.sort(order[i : i + config.batch_size]))))
            loss = weighted_loss(model(_hide(x_BF, blocks, config.corruption, rng)), x_BF, live_F, blocks, config)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(x_BF)
        curve.append({"epoch": epoch + 1, "loss": total / len(order)})
        aside = state_path.with_suffix(".tmp")
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve}, aside)
        os.replace(aside, state_path)
        report(curve[-1])


def weighted_loss(y_BF: Tensor, x_BF: Tensor, live_F: Tensor, blocks: dict[str, tuple[int, int]], config: AutoencoderConfig) -> Tensor:
    """Mean over blocks, by weight, of the squared error per varying column; blocks that don't vary are left out."""
    error_F = ((y_BF - x_BF) ** 2).mean(0)
    parts = [(config.weight(name), error_F[a:b][live_F[a:b]].mean()) for name, (a, b) in blocks.items() if live_F[a:b].any()]
    return torch.stack([weight * part for weight, part in parts]).sum() / sum(weight for weight, _ in parts) if parts else error_F.sum()


def finish(inputs: Inputs, blocks: dict[str, tuple[int, int]], config: AutoencoderConfig, state_path: Path) -> tuple[Fusion, np.ndarray, dict[str, Any]]:
    """The trained encoder, the fused vectors of all items (float32 [N, W]), and figures (loss, explained variance per block)."""
    torch.set_num_threads(config.threads)
    state = torch.load(state_path, weights_only=True)
    scaler = Scaler.fit(inputs, blocks)
    model = Autoencoder(len(scaler.mean_F), config)
    model.load_state_dict(state["model"])
    z, error_F, total_F = [], np.zeros(len(scaler.mean_F)), np.zeros(len(scaler.mean_F))
    with torch.no_grad():
        for i in range(0, len(inputs), BLOCK):
            x_BF = scaler(inputs.rows(slice(i, i + BLOCK)))
            z.append(bottleneck(x_BF, model.layers()))
            error_F += ((model.decoder(torch.from_numpy(z[-1])).numpy() - x_BF) ** 2).sum(0)
            total_F += (x_BF**2).sum(0)
    raw_NW = np.concatenate(z)
    out = Scaler.fit(Inputs(raw_NW, None), {"text": (0, raw_NW.shape[1])})  # one scale per column, as for text
    explained = {name: round(1 - float(error_F[a:b].sum() / total_F[a:b].sum()), 4) for name, (a, b) in blocks.items() if total_F[a:b].sum() > 0}
    figures = {"epochs": len(state["curve"]), "loss": round(state["curve"][-1]["loss"], 6), "explained": explained, "curve": state["curve"]}
    return Fusion(blocks, scaler, model.layers(), out), out(raw_NW), figures


def _hide(x_BF: Tensor, blocks: dict[str, tuple[int, int]], chance: float, rng: np.random.Generator) -> Tensor:
    """Rows with whole blocks set to their mean (0), each with this chance."""
    keep = torch.from_numpy(rng.random((len(x_BF), len(blocks))) >= chance)
    widths = torch.tensor([end - start for start, end in blocks.values()])
    return x_BF * torch.repeat_interleave(keep, widths, dim=1)
