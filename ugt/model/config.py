"""Configs of the model, its training stages and its decoding. No torch here, so that the command line starts fast."""

from __future__ import annotations

from ugt.schema import Config, DecodingStrategy


class ModelConfig(Config):
    width: int = 64
    encoder_layers: int = 2
    decoder_layers: int = 1
    heads: int = 2
    max_length: int = 50  # events of history the encoder reads
    experts: int = 4
    experts_per_token: int = 2


class StageConfig(Config):
    epochs: int = 10
    learning_rate: float = 1e-3
    contrastive_weight: float = 0.0
    dpo_weight: float = 0.0


class TrainingConfig(Config):
    batch_size: int = 128
    workers: int = 1  # Ray Train workers (DDP when more than one)
    threads: int = 2
    seed: int = 0
    stage1: StageConfig = StageConfig()
    stage2: StageConfig = StageConfig(epochs=2, learning_rate=3e-4, contrastive_weight=0.1)
    stage3: StageConfig = StageConfig(epochs=1, learning_rate=1e-4, dpo_weight=0.05)


class DecodingConfig(Config):
    strategy: DecodingStrategy = "beam"
    beam_width: int = 50
