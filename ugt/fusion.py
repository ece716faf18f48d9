"""Fusion: an autoencoder over all item features; its standardised bottleneck is the fused vector."""

from __future__ import annotations

from ugt.schema import Config


class AutoencoderConfig(Config):
    width: int = 96  # of the bottleneck = the fused vector
    hidden: int = 256
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 0
