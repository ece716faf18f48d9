"""Fusion: item features and text through an autoencoder; its standardised bottleneck is the fused vector.

Choices: this module is what a served item needs, in numpy alone: standardise, two layers, standardise again. Training is
`ugt.autoencoder`. Columns are centred; a block of features shares one scale (so that a rare person is not blown up), text and numbers
have one per column. A constant column is dropped by scale 0.

Shapes: N items, F feature columns, T text width (0 without text), W width of the bottleneck.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy import sparse

from ugt.artifacts import write_text
from ugt.schema import Config, UGTError

BLOCK = 16_384  # rows standardised at once
PER_COLUMN = ("text", "numbers")


class AutoencoderConfig(Config):
    """Size and training of the autoencoder."""

    width: int = Field(default=96, ge=1)  # of the bottleneck = the fused vector
    hidden: int = Field(default=256, ge=1)
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    corruption: float = Field(default=0.15, ge=0, lt=1)  # a block of an input row is hidden with this chance: new items often lack some
    block_weights: dict[str, float] = {"genres": 2.0, "people": 1.0, "text": 2.0, "eras": 1.0}  # of the loss; a block not named has .5
    threads: int = Field(default=1, ge=1)
    seed: int = 0

    def weight(self, block: str) -> float:
        return self.block_weights.get(block, 0.5)


@dataclass(frozen=True)
class Inputs:
    """The rows of features and text that belong together; features may be sparse, text memory-mapped: only the asked rows are made or read."""

    features_NF: np.ndarray | sparse.csr_array
    text_NT: np.ndarray | None

    def __len__(self) -> int:
        return int(self.features_NF.shape[0])

    def rows(self, which: np.ndarray | slice) -> np.ndarray:
        features = self.features_NF[which]
        parts = [features if isinstance(features, np.ndarray) else features.toarray()] + ([self.text_NT[which]] if self.text_NT is not None else [])
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Scaler:
    """(x - mean) * scale, per column."""

    mean_F: np.ndarray
    scale_F: np.ndarray

    @classmethod
    def fit(cls, inputs: Inputs, blocks: dict[str, tuple[int, int]]) -> Scaler:
        """Means and scales that give each block a mean variance of one over the columns that vary. O(N F), in blocks of rows."""
        starts = range(0, len(inputs), BLOCK)
        mean = sum(inputs.rows(slice(i, i + BLOCK)).sum(0, dtype=np.float64) for i in starts) / len(inputs)
        variance = sum(((inputs.rows(slice(i, i + BLOCK)) - mean) ** 2).sum(0) for i in starts) / len(inputs)
        live = variance > 1e-10
        scale = np.zeros_like(mean)
        for name, (start, end) in blocks.items():
            columns = np.flatnonzero(live[start:end]) + start
            if len(columns):
                scale[columns] = 1 / np.sqrt(variance[columns] if name in PER_COLUMN else variance[columns].mean())
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def __call__(self, x_NF: np.ndarray) -> np.ndarray:
        return (x_NF - self.mean_F) * self.scale_F


@dataclass(frozen=True)
class Fusion:
    """Features and text of items to fused vectors. The same for a catalogue and one item of a request."""

    blocks: dict[str, tuple[int, int]]  # name to (first, end) column of [features | text]
    scaler: Scaler
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]  # (weight [in, out], bias [out]), SiLU between
    out: Scaler  # of the bottleneck

    @property
    def uses_text(self) -> bool:
        return "text" in self.blocks

    def encode(self, features_NF: np.ndarray | sparse.csr_array, text_NT: np.ndarray | None) -> np.ndarray:
        """Fused vectors, float32 [N, W], standardised over the catalogue they were trained on.

        Raises UGTError if the widths are not those of the training, or text is given or missing against it.
        """
        inputs = Inputs(features_NF, text_NT)
        if (text_NT is not None) != self.uses_text or inputs.rows(slice(0, 1)).shape[1] != len(self.scaler.mean_F):
            raise UGTError("fusion: features or text differ from those the autoencoder was trained on. Use the vocabulary and text settings of the same run.")
        starts = range(0, len(inputs), BLOCK)
        return np.concatenate([self.out(bottleneck(self.scaler(inputs.rows(slice(i, i + BLOCK))), self.layers)) for i in starts])

    def save(self, folder: Path) -> None:
        """Write `autoencoder.safetensors` and `autoencoder.json`."""
        from safetensors.numpy import save_file

        tensors = {"mean": self.scaler.mean_F, "scale": self.scaler.scale_F, "out_mean": self.out.mean_F, "out_scale": self.out.scale_F}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"weight_{i}": np.ascontiguousarray(weight), f"bias_{i}": bias}
        save_file(tensors, Path(folder) / "autoencoder.safetensors")
        write_text(Path(folder) / "autoencoder.json", json.dumps({"blocks": self.blocks, "layers": len(self.layers)}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Fusion:
        """Raises UGTError if the folder has no autoencoder."""
        from safetensors.numpy import load_file

        try:
            card = json.loads((Path(folder) / "autoencoder.json").read_text(encoding="utf-8"))
            t = load_file(Path(folder) / "autoencoder.safetensors")
        except FileNotFoundError as error:
            raise UGTError(f"no autoencoder in {folder}. Run `ugt train autoencoder` first.") from error
        layers = tuple((t[f"weight_{i}"], t[f"bias_{i}"]) for i in range(card["layers"]))
        blocks = {name: (first, end) for name, (first, end) in card["blocks"].items()}
        return cls(blocks, Scaler(t["mean"], t["scale"]), layers, Scaler(t["out_mean"], t["out_scale"]))


def bottleneck(x_NF: np.ndarray, layers: tuple[tuple[np.ndarray, np.ndarray], ...]) -> np.ndarray:
    """The encoder half over standardised rows, float32 [N, W]; equals `ugt.autoencoder.Autoencoder.encode` to rounding."""
    z = x_NF
    for i, (weight, bias) in enumerate(layers):
        z = z @ weight + bias
        if i < len(layers) - 1:
            z = silu(z)
    return z


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), by tanh: exp would overflow for large negative x."""
    return x * (0.5 * (1 + np.tanh(0.5 * x)))


@dataclass(frozen=True)
class VectorSpace:
    """Joins the vectors of an item into the one that is quantised and that the model projects.

    Each block is centred and scaled as a whole, so that its total variance is its weight and its own strong columns stay strong.
    """

    means: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, blocks: list[np.ndarray], weights: list[float]) -> VectorSpace:
        """Raises UGTError if no block has a weight above zero."""
        if sum(weights) <= 0:
            raise UGTError("semantic_ids: every weight of a block of vectors is 0, so there is nothing to quantise. Raise one of them.")
        means, scales = [], []
        for block_ND, weight in zip(blocks, weights, strict=True):
            variance = float(block_ND.var(0, dtype=np.float64).sum())
            scale = np.sqrt(weight / variance) if variance > 1e-12 else 0.0
            means.append(block_ND.mean(0, dtype=np.float64).astype(np.float32))
            scales.append(np.full(block_ND.shape[1], scale, np.float32))
        return cls(tuple(means), tuple(scales))

    def join(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Item vectors, float32 [N, D]; a block of weight 0 is left out."""
        parts = [(x - mean) * scale for x, mean, scale in zip(blocks, self.means, self.scales, strict=True) if scale.any()]
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)

    def part(self, x_ND: np.ndarray, wanted: list[bool]) -> np.ndarray:
        """The columns of some blocks of joined vectors; `wanted` says of each block whether it is one."""
        kept_D = np.concatenate([np.full(len(scale), want) for scale, want in zip(self.scales, wanted, strict=True) if scale.any()])
        return x_ND[:, kept_D]

    def save(self, path: Path) -> None:
        arrays = {f"mean_{i}": mean for i, mean in enumerate(self.means)} | {f"scale_{i}": scale for i, scale in enumerate(self.scales)}
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> VectorSpace:
        """Raises UGTError if the file is not there."""
        if not Path(path).is_file():
            raise UGTError(f"no vector space at {path}. Run `ugt train semantic-ids` first.")
        with np.load(path) as f:
            count = len(f.files) // 2
            return cls(tuple(f[f"mean_{i}"] for i in range(count)), tuple(f[f"scale_{i}"] for i in range(count)))


def principal_axes(x_NT: np.ndarray, width: int) -> np.ndarray:
    """Directions of largest variance, float32 [T, width]: x @ axes keeps the strong ones as strong as they are. O(N T^2).

    A direction's largest entry is positive, so that its sign is not left to the solver.
    """
    _, vectors_TT = np.linalg.eigh(np.cov(x_NT, rowvar=False, dtype=np.float64))
    axes_TW = vectors_TT[:, ::-1][:, :width]
    return (axes_TW * np.sign(axes_TW[np.abs(axes_TW).argmax(0), np.arange(axes_TW.shape[1])])).astype(np.float32)
