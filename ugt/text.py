"""Text of an item and its vector (MiniLM, 384 wide)."""

from __future__ import annotations

from ugt.schema import Config


class TextConfig(Config):
    enabled: bool = True
    max_tokens: int = 64
    batch_size: int = 64
