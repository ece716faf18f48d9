"""The vector of an item nobody has seen: its content by the functions of the training, its collaborative parts from its content neighbours.

Choices: nothing is fitted. The arrays of the run the model was trained in are the whole estimate, so a new item lands in the space its codebooks were made
in. Neighbours are those by text where items have text vectors, else by the fused vector. Estimating the word2vec and co-occurrence parts by a ridge regression
of the text vector was worse on held-out items of Beauty (cosine to the true co-occurrence vector .29 against .39).

Shapes: N items of the training, M new ones, T text width, W fused width, V width of an item vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ugt.fusion import VectorSpace
from ugt.insertion import Near, Neighbours
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIdConfig

COLLABORATIVE = ("word2vec", "cooccurrence")


@dataclass(frozen=True)
class NewVectors:
    """From content to item vectors, as `train.semantic_ids` joins them."""

    blocks: tuple[str, ...]
    space: VectorSpace
    text_axes_TW: NDArray | None
    content_NC: NDArray  # text or fused vectors of the catalogue
    by_text: bool
    neighbours: Neighbours
    collaborative: dict[str, NDArray]  # of the catalogue, by block

    @classmethod
    def load(cls, config: SemanticIdConfig, semantic_ids_dir: Path, word2vec_dir: Path, text_dir: Path | None, fusion_dir: Path | None) -> NewVectors:
        """From the folders of a run. Raises UGTError where it has neither text nor fused vectors: then nothing says what a new item is like."""
        blocks = config.blocks(text_dir is not None)
        if text_dir is not None:
            content_NC = np.load(Path(text_dir) / "text.npy")
        elif fusion_dir is not None:
            content_NC = np.load(Path(fusion_dir) / "fused.npy")
        else:
            raise UGTError("new items need a content vector, and this run has none. Set text.enabled to true, or semantic_ids.fused_weight above 0.")
        axes = np.load(Path(semantic_ids_dir) / "text_axes.npy") if "text" in blocks else None
        neighbours = Neighbours.fit(content_NC, np.load(Path(word2vec_dir) / "train_counts.npy"))
        collaborative = {name: np.load(Path(word2vec_dir) / f"{name}.npy") for name in COLLABORATIVE if name in blocks}
        space = VectorSpace.load(Path(semantic_ids_dir) / "vector_space.npz")
        return cls(blocks, space, axes, content_NC, text_dir is not None, neighbours, collaborative)

    def of(self, text_MT: NDArray | None, fused_MW: NDArray | None, without: NDArray | None = None) -> tuple[NDArray[np.float32], Near]:
        """Item vectors [M, V] and the content neighbours. `fused_MW` is read only where fused vectors are a part of the item's, or stand in for text.

        `without` as in `Neighbours.of`. Raises UGTError if a content vector that is needed is missing.
        """
        content = {name: x for name, x in (("text", text_MT), ("fused", fused_MW)) if x is not None}
        missing = sorted(({"text" if self.by_text else "fused"} | (set(self.blocks) - set(COLLABORATIVE))) - set(content))
        if missing:
            raise UGTError(f"new items: their {' and '.join(missing)} vectors are missing, which this model was trained with.")
        near = self.neighbours.of(content["text" if self.by_text else "fused"], without)
        joined = []
        for name in self.blocks:
            if name in COLLABORATIVE:
                joined.append(near.mean(self.collaborative[name]))
            else:
                own = np.asarray(content[name], np.float32)
                joined.append(own @ self.text_axes_TW if name == "text" and self.text_axes_TW is not None else own)
        return self.space.join(joined), near

    def of_catalogue(self, fused_NW: NDArray | None = None) -> NDArray[np.float32]:
        """The vector each item of the catalogue would have if it were new, [N, V]: itself left out of its neighbours. O(N^2 C)."""
        text_NT = self.content_NC if self.by_text else None
        return self.of(text_NT, fused_NW if self.by_text else self.content_NC, np.arange(len(self.content_NC)))[0]
