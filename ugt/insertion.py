"""A new item's way into a trained model: its vector from its content, its semantic ID, its row in every table. No retraining, no new graph.

Choices: whatever training gives an item and a new one lacks is estimated from its content neighbours (`Neighbours`): the collaborative parts of its vector,
and the free embedding. `Embedder` holds the trained parts a row is a sum of; `extend` adds rows to the tables of a model (numpy arrays by the names of
`CatalogueTables`: what an exported version is given, and with `torch.from_numpy` what PyTorch is). Nobody moves: rows and codes of old items stay as they are,
only the mean vectors of the prefixes a new item joins change.

Shapes: N items, M new items, C width of a content vector, B neighbours, V width of an item vector, D width of the model, I = N + 1 rows, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIds

if TYPE_CHECKING:
    from torch import Tensor

    from ugt.model.embeddings import ItemTable
    from ugt.model.ugt import UGT

ESTIMATED = "estimated_vectors.npy"  # of the semantic IDs step: the vector of each item as if it were new
FILE = "insertion.npz"  # of an exported version: its `Embedder`
NEIGHBOURS = 50  # cosine between the estimated and the true co-occurrence vector, items left out one at a time, Beauty: 5 .37, 20 .39, 50 .39
SHARPNESS = 10.0  # of the softmax over cosines; 10 and 50 neighbours: .25 of the variance explained, 33 and 50: .03
BLOCK = 1024  # rows whose similarities to the catalogue are held at once


class Near(NamedTuple):
    """The content neighbours of M items, nearest first; each row of weights sums to one."""

    item_MB: NDArray[np.int64]
    weight_MB: NDArray[np.float32]

    def mean(self, x_NX: NDArray) -> NDArray[np.float32]:
        """Weighted mean of the neighbours' rows, [M, X]."""
        return np.einsum("mb,mbx->mx", self.weight_MB, x_NX[self.item_MB]).astype(np.float32)


@dataclass(frozen=True)
class Neighbours:
    """Items near to a content vector: cosine after the catalogue's mean is taken off, softmax over the nearest, items seen a few times weigh less."""

    mean_C: NDArray[np.float32]
    content_NC: NDArray[np.float32]  # unit rows
    trust_N: NDArray[np.float32]  # views / (views + shrinkage): what an unseen item knows of its company is itself a guess

    @classmethod
    def fit(cls, content_NC: NDArray, views_N: NDArray, shrinkage: float = 3.0) -> Neighbours:
        """`content_NC`: text vectors, or fused ones where there are none. Raises UGTError if the numbers of rows differ."""
        if len(content_NC) != len(views_N):
            raise UGTError(f"insertion: content vectors of {len(content_NC):,} items, views of {len(views_N):,}. Both must be of the same catalogue.")
        mean_C = np.asarray(content_NC, np.float32).mean(0)
        views = np.asarray(views_N, np.float32)
        # where nobody saw anything all count alike
        trust_N = views / (views + shrinkage) if views.any() else np.ones(len(views), np.float32)
        return cls(mean_C, unit_rows(np.asarray(content_NC, np.float32) - mean_C), trust_N)

    def of(self, content_MC: NDArray, without: NDArray | None = None, count: int = NEIGHBOURS) -> Near:
        """Neighbours of given content vectors; `without` [M] names an item of the catalogue that must not be its own neighbour. O(M N C)."""
        x_MC = unit_rows(np.asarray(content_MC, np.float32) - self.mean_C)
        count = min(count, len(self.content_NC) - (without is not None))
        found = [self._block(x_MC[i : i + BLOCK], None if without is None else without[i : i + BLOCK], count) for i in range(0, len(x_MC), BLOCK)]
        if not found:
            return Near(np.empty((0, count), np.int64), np.empty((0, count), np.float32))
        items, weights = zip(*found, strict=True)
        return Near(np.concatenate(items), np.concatenate(weights))

    def _block(self, x_MC: NDArray, without: NDArray | None, count: int) -> tuple[NDArray, NDArray]:
        cosine_MN = x_MC @ self.content_NC.T
        if without is not None:
            cosine_MN[np.arange(len(x_MC)), without] = -np.inf
        item_MB = np.argpartition(-cosine_MN, count - 1, axis=1)[:, :count]
        cosine_MB = np.take_along_axis(cosine_MN, item_MB, 1)
        order_MB = np.lexsort((item_MB, -cosine_MB), axis=1)
        item_MB, cosine_MB = np.take_along_axis(item_MB, order_MB, 1), np.take_along_axis(cosine_MB, order_MB, 1)
        weight_MB = np.exp(SHARPNESS * (cosine_MB - cosine_MB[:, :1])) * np.maximum(self.trust_N[item_MB], 1e-6)
        return item_MB.astype(np.int64), (weight_MB / weight_MB.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Embedder:
    """What a row of the item table is a sum of, taken from a trained model: for one that was never in the training the same sum is made anew."""

    codes: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]  # code embeddings of the levels, [K, D] each
    project_VD: NDArray[np.float32]
    free_ND: NDArray[np.float32]  # of the items of the training

    @classmethod
    def of(cls, items: ItemTable) -> Embedder:
        """The parts of a model's item table."""
        l1, l2, l3 = (_numpy(table.weight) for table in items.codes)
        return cls((l1, l2, l3), np.ascontiguousarray(_numpy(items.project.weight).T), _numpy(items.free.weight))

    def rows(self, codes_M3: NDArray, vector_MV: NDArray, near: Near, free_share: float = 1.0) -> NDArray[np.float32]:
        """Rows of new items, [M, D]: their code embeddings, their projected vectors, and `free_share` times their neighbours' mean free embedding.

        Raises UGTError for vectors of another width than the model's.
        """
        if vector_MV.shape[1] != len(self.project_VD):
            raise UGTError(f"insertion: vectors of {vector_MV.shape[1]} columns, the model reads {len(self.project_VD)}. Use the vector space of its own run.")
        row_MD = vector_MV.astype(np.float32) @ self.project_VD + np.float32(free_share) * near.mean(self.free_ND)
        for level, table_KD in enumerate(self.codes):
            row_MD = row_MD + table_KD[codes_M3[:, level]]
        return row_MD.astype(np.float32)

    def save(self, path: Path) -> None:
        """Write one `.npz` file."""
        named = {f"l{level + 1}": table for level, table in enumerate(self.codes)}
        np.savez(path, allow_pickle=False, project=self.project_VD, free=self.free_ND, **named)

    @classmethod
    def load(cls, path: Path) -> Embedder:
        """Raises UGTError if the file is not there."""
        if not Path(path).is_file():
            raise UGTError(f"no {Path(path).name} in {Path(path).parent}: this version can't take new items. Export it again: ugt export onnx.")
        with np.load(path) as f:
            return cls((f["l1"], f["l2"], f["l3"]), f["project"], f["free"])


def extend(tables: Mapping[str, NDArray], grown: SemanticIds, row_MD: NDArray[np.float32]) -> dict[str, NDArray]:
    """The tables of a model, grown by the M last items of `grown` (`SemanticIds.insert`), whose rows are `row_MD` (`Embedder.rows`).

    Names and number formats stay those of `tables` (`CatalogueTables` as arrays), so an exported graph reads them as it did the old ones. Tables that were
    extended may be extended again. The arrays given are not changed. Raises UGTError if `grown` does not add as many items as there are rows. O(I D + S).
    """
    before = len(tables["item_ID"]) - 1
    if len(grown) - before != len(row_MD):
        raise UGTError(f"insertion: the semantic IDs hold {len(grown) - before:,} items more than the tables, but {len(row_MD):,} rows were given.")
    trie = grown.trie
    group_M = grown.codes_N3[before:, 0].astype(np.int64) * trie.k2 + grown.codes_N3[before:, 1]
    trie_arrays = {
        "group_start_G": trie.group_start_G,
        "group_count_G": trie.group_count_G,
        "slot_item_S": trie.slot_item_S,
        "item_slot_N": trie.item_slot_N,
        "item_group_N": np.concatenate([tables["item_group_N"].astype(np.int64), group_M]),
    }
    first_old_K = np.asarray(tables["group_count_G"]).reshape(trie.k1, trie.k2).sum(1)
    first_new_K = trie.group_count_G.reshape(trie.k1, trie.k2).sum(1)
    return {
        "item_ID": np.concatenate([tables["item_ID"], row_MD.astype(tables["item_ID"].dtype)]),
        "first_KD": _mean_with(tables["first_KD"], first_old_K, first_new_K, group_M // trie.k2, row_MD),
        "group_GD": _mean_with(tables["group_GD"], tables["group_count_G"], trie.group_count_G, group_M, row_MD),
        **{name: np.ascontiguousarray(array, tables[name].dtype) for name, array in trie_arrays.items()},
    }


def _mean_with(mean_XD: NDArray, old_X: NDArray, new_X: NDArray, place_M: NDArray, row_MD: NDArray) -> NDArray:
    """Means of `old_X` rows each, with rows `row_MD` added at `place_M`: the mean of `new_X`."""
    touched = np.unique(place_M)
    sum_XD = np.zeros((len(mean_XD), mean_XD.shape[1]), np.float64)
    np.add.at(sum_XD, place_M, row_MD)
    grown_XD = np.array(mean_XD)
    old_T1, new_T1 = old_X[touched, None], new_X[touched, None]
    grown_XD[touched] = ((mean_XD[touched].astype(np.float64) * old_T1 + sum_XD[touched]) / new_T1).astype(mean_XD.dtype)
    return grown_XD


def grow(model: UGT, grown: SemanticIds, vector_MV: NDArray[np.float32], near: Near, free_share: float = 1.0) -> UGT:
    """A model that also holds the M last items of `grown`, in eval mode; its weights are those of `model`, which is not changed.

    The PyTorch side of `extend`: the item table is made anew from its parts, as in training.
    """
    import torch

    from ugt.model.ugt import UGT

    embedder = Embedder.of(model.items)
    vector_NV = np.concatenate([_numpy(model.items.vector_NV), vector_MV])
    made = UGT(model.config, grown, vector_NV, model.vocabulary)
    free_ND = np.concatenate([embedder.free_ND, np.float32(free_share) * near.mean(embedder.free_ND)])
    made.load_state_dict(model.state_dict() | {"items.free.weight": torch.from_numpy(free_ND)})
    return made.eval()


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy()


def unit_rows(x_NC: NDArray) -> NDArray[np.float32]:
    """Each row by its length; a row of zeros stays one."""
    norm_N1 = np.linalg.norm(x_NC, axis=1, keepdims=True)
    return (x_NC / np.where(norm_N1 > 0, norm_N1, 1)).astype(np.float32)
