"""The table item <-> (L1, L2, L3), its trie as flat integer arrays, prefix look-up, insertion."""

from __future__ import annotations

from ugt.schema import Config


class SemanticIdConfig(Config):
    method: str = "residual_kmeans"  # or rq_vae
    l1: int | None = None  # code sizes follow from the item count unless set
    l2: int | None = None
    l3: int | None = None
    seed: int = 0
