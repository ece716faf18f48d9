"""The table item <-> (L1, L2, L3), its trie as flat integer arrays, prefix look-up, insertion.

Choices: every triple names exactly one item, so the table is a bijection between items and the occupied slots of the trie;
the third code is dense inside its (L1, L2) group (0..count-1), so "is this triple an item" is one comparison; each group
keeps some spare slots, so a new item enters without moving anybody (no retrain, no new graph).

Shapes: N items, G = K1 * K2 groups, S slots (spare ones included), D width of an item vector.
Source: the flat-array trie follows the idea of constrained decoding by static sparse indices (STATIC, Su et al., 2026).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from ugt.artifacts import SEMANTIC_IDS
from ugt.schema import Config, UGTError

if TYPE_CHECKING:
    from ugt.quantizer import Codebooks

FILE = "semantic_ids.parquet"
CONTENT = "content_vectors.npy"  # beside it: the parts of an item's vector that say what it is, not who took it; [N, 0] where there are none
WIDE_SECOND = 128  # codes of L2: a beam reads all of them under each L1 it kept, of the first level only one row (benchmarks/results.md, a million items)
MOST_FIRST = 4096  # codes of L1: training makes logits of all of them at every position


class SemanticIdConfig(Config):
    """How item vectors are weighted, and how they become triples."""

    method: Literal["residual_kmeans", "rq_vae"] = "residual_kmeans"  # rq_vae takes longer; how it does downstream is not measured here yet
    l1: int | None = Field(default=None, ge=2)  # code sizes follow from the item count unless set (`code_sizes`)
    l2: int | None = Field(default=None, ge=2)
    l3: int | None = Field(default=None, ge=2)
    # variance of each block in an item's vector. Validation NDCG@10 of stage 1 on the sample: benchmarks/results.md, "item vectors"
    fused_weight: float = Field(default=1.0, ge=0)
    text_weight: float = Field(default=0.0, ge=0)  # the text vectors' principal components beside, or instead of, the fused vector
    text_width: int = Field(default=128, ge=2)
    word2vec_weight: float = Field(default=1.0, ge=0)
    cooccurrence_weight: float = Field(default=16.0, ge=0)
    balance: float = Field(default=2.0, gt=1)  # an L1 code holds at most this many times the mean
    third: Literal["popularity", "direction"] = "popularity"  # order inside a group: L3 = 0 is its most seen item of the train part
    spare: int = Field(default=4, ge=0)  # free slots a group keeps for new items
    iterations: int = Field(default=25, ge=1)  # Lloyd steps per level
    local_steps: int = Field(default=5, ge=0)  # balanced steps that adapt the second codebook to each L1 code; 0 = one codebook for all
    rq_vae_epochs: int = Field(default=60, ge=1)
    rq_vae_width: int = Field(default=32, ge=2)
    estimate: bool = False  # also write the vector each item would have as a new one, for model.cold_share; O(N^2)
    workers: int = Field(default=1, ge=1)  # that share the fit of the codebooks; 1: in the step's own process
    threads: int = Field(default=1, ge=1)  # of a worker
    seed: int = 0

    def blocks(self, text: bool) -> tuple[str, ...]:
        """Names of the vectors an item's vector is joined from, in order; without text vectors their weight counts for nothing."""
        weights = {"fused": self.fused_weight, "text": self.text_weight * text, "word2vec": self.word2vec_weight, "cooccurrence": self.cooccurrence_weight}
        return tuple(name for name, weight in weights.items() if weight > 0)


def content_vectors(folder: Path) -> np.ndarray:
    """What the items of a semantic IDs folder are like, float32 [N, C]; C may be 0. Raises UGTError if the file is not there."""
    path = Path(folder) / CONTENT
    if not path.is_file():
        raise UGTError(f"no {CONTENT} in {folder}. Run `ugt train semantic-ids` again.")
    return np.load(path)


def code_sizes(items: int, config: SemanticIdConfig) -> tuple[int, int, int]:
    """(K1, K2, K3) for a catalogue: powers of two that make the mean group about four items, K1 = K2 up to WIDE_SECOND, from there K1 grows alone up to
    MOST_FIRST, then K2 again; K3 is four times the mean group.

    4,000 items: 32 x 32 x 16; 12,101: 64 x 64 x 16; 1,000,000: 2048 x 128 x 16. Sizes set in the config are taken as they are, and where only one of K1 and
    K2 is set the other follows from it. Raises UGTError if the sizes can't hold the items.
    """
    groups = max(1.0, items / 4)
    k1, k2 = config.l1, config.l2
    if k1 is None and k2 is None:
        k1 = k2 = _power_of_two(math.sqrt(groups))
        if k2 > WIDE_SECOND:
            k1 = min(MOST_FIRST, _power_of_two(groups / WIDE_SECOND))
            k2 = _power_of_two(groups / k1)
    k1 = k1 or _power_of_two(groups / (k2 or 1))
    k2 = k2 or _power_of_two(groups / k1)
    k3 = config.l3 or max(8, 2 ** math.ceil(math.log2(4 * items / (k1 * k2))))
    if k1 * k2 * k3 < items:
        raise UGTError(f"semantic_ids: {k1} x {k2} x {k3} codes can't name {items:,} items. Raise semantic_ids.l1, l2 or l3, or leave them unset.")
    return k1, k2, k3


def _power_of_two(x: float) -> int:
    """The nearest one on a logarithmic scale, at least 4."""
    return int(max(4, 2 ** round(math.log2(max(1.0, x)))))


@dataclass(frozen=True)
class Trie:
    """All triples that are items, as flat arrays. group = l1 * k2 + l2; slot = group_start_G[group] + l3.

    A group owns the slots from its start up to the next group's start: first its live items in order of L3, then spare ones.
    The last slot of all is dead for ever: look-ups that leave the array are sent there.
    """

    k1: int
    k2: int
    k3: int
    group_start_G: np.ndarray  # int64, first slot of the group
    group_count_G: np.ndarray  # int64, live items of the group; 0 = impossible prefix
    slot_item_S: np.ndarray  # int64, item_index of the slot, -1 where nobody lives
    item_slot_N: np.ndarray  # int64, slot of each item

    @classmethod
    def build(cls, codes_N3: np.ndarray, k1: int, k2: int, k3: int, spare: int) -> Trie:
        """Arrays from codes, O(N log N); equal codes give equal arrays. Raises UGTError where codes collide, leave a hole or are out of range."""
        codes = np.asarray(codes_N3, np.int64).reshape(-1, 3)
        if len(codes) and (codes.min() < 0 or (codes >= (k1, k2, k3)).any()):
            raise UGTError(f"semantic IDs: a code is outside {k1} x {k2} x {k3}. Run `ugt train semantic-ids` again.")
        group_N = codes[:, 0] * k2 + codes[:, 1]
        count_G = np.bincount(group_N, minlength=k1 * k2).astype(np.int64)
        reserve_G = np.minimum(k3, count_G + spare)
        start_G = np.concatenate([[0], np.cumsum(reserve_G)[:-1]]).astype(np.int64)
        slot_N = start_G[group_N] + codes[:, 2]
        # dense and free of collisions at once: N distinct slots, all below their group's count
        if (codes[:, 2] >= count_G[group_N]).any() or len(np.unique(slot_N)) != len(slot_N):
            raise UGTError("semantic IDs: two items share a triple, or a group's third codes have a hole. Run `ugt train semantic-ids` again.")
        slot_item_S = np.full(int(reserve_G.sum()) + 1, -1, np.int64)
        slot_item_S[slot_N] = np.arange(len(codes))
        return cls(k1, k2, k3, start_G, count_G, slot_item_S, slot_N)

    @property
    def groups(self) -> int:
        return self.k1 * self.k2

    @property
    def slots(self) -> int:
        return len(self.slot_item_S)

    @cached_property
    def reserve_G(self) -> np.ndarray:
        """Slots a group owns, spare ones included, int64 [G]."""
        return np.diff(np.append(self.group_start_G, self.slots - 1))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a model's tables."""
        return {
            "group_start": self.group_start_G,
            "group_count": self.group_count_G,
            "slot_item": self.slot_item_S,
            "item_slot": self.item_slot_N,
            "sizes": np.array([self.k1, self.k2, self.k3], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Trie:
        """The inverse of `arrays`."""
        k1, k2, k3 = (int(k) for k in arrays["sizes"])
        return cls(k1, k2, k3, arrays["group_start"], arrays["group_count"], arrays["slot_item"], arrays["item_slot"])


@dataclass(frozen=True)
class SemanticIds:
    """The semantic IDs of a catalogue: row i belongs to item_index i."""

    codes_N3: np.ndarray  # int32
    item_ids: list[str]
    trie: Trie
    spare: int

    @classmethod
    def from_codes(cls, codes_N3: np.ndarray, item_ids: Sequence[str], k1: int, k2: int, k3: int, spare: int = 4) -> SemanticIds:
        """Raises UGTError if codes collide, are not dense in their group, or don't match the items in number."""
        codes = np.ascontiguousarray(codes_N3, np.int32)
        if codes.shape != (len(item_ids), 3):
            raise UGTError(f"semantic IDs: {len(item_ids):,} items but codes of shape {codes.shape}.")
        return cls(codes, list(item_ids), Trie.build(codes, k1, k2, k3, spare), spare)

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        """From `semantic_ids.parquet` of a folder; the trie is built again from the codes. Raises UGTError if it is not there."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise UGTError(f"no {FILE} in {folder}. Run `ugt train semantic-ids` first.")
        table = pq.read_table(path)
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        try:
            k1, k2, k3, spare = (int(meta[name]) for name in ("k1", "k2", "k3", "spare"))
        except KeyError as error:
            raise UGTError(f"{path} does not say its code sizes ({error} is missing). Run `ugt train semantic-ids` again.") from error
        table = table.sort_by("item_index")
        codes = np.stack([table.column(name).to_numpy() for name in ("l1", "l2", "l3")], axis=1)
        return cls.from_codes(codes, table.column("item_id").to_pylist(), k1, k2, k3, spare)

    def save(self, folder: Path) -> None:
        """Write `semantic_ids.parquet`; equal tables give equal bytes."""
        columns = [pa.array(np.arange(len(self), dtype=np.int32)), pa.array(self.item_ids, pa.string()), *(pa.array(c) for c in self.codes_N3.T)]
        meta = {"k1": self.trie.k1, "k2": self.trie.k2, "k3": self.trie.k3, "spare": self.spare}
        schema = SEMANTIC_IDS.with_metadata({k: str(v) for k, v in meta.items()})
        Path(folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), Path(folder) / FILE, compression="zstd")

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """item_id to item_index."""
        return {item_id: i for i, item_id in enumerate(self.item_ids)}

    def item_of(self, l1: int, l2: int, l3: int) -> int | None:
        """item_index of a triple, or None where no item lives. O(1)."""
        t = self.trie
        if not (0 <= l1 < t.k1 and 0 <= l2 < t.k2):
            return None
        group = l1 * t.k2 + l2
        return int(t.slot_item_S[t.group_start_G[group] + l3]) if 0 <= l3 < t.group_count_G[group] else None

    def code_of(self, item_index: int) -> tuple[int, int, int]:
        """The triple of an item."""
        l1, l2, l3 = self.codes_N3[item_index].tolist()
        return l1, l2, l3

    def with_prefix(self, l1: int, l2: int | None = None) -> np.ndarray:
        """item_index of every item under (l1) or (l1, l2), in order of their triples, int64. Empty for a prefix out of range."""
        t = self.trie
        if not 0 <= l1 < t.k1 or (l2 is not None and not 0 <= l2 < t.k2):
            return np.empty(0, np.int64)
        first, last = (l1 * t.k2, (l1 + 1) * t.k2) if l2 is None else (l1 * t.k2 + l2, l1 * t.k2 + l2 + 1)
        end = t.group_start_G[last] if last < t.groups else t.slots - 1
        slots = t.slot_item_S[t.group_start_G[first] : end]
        return slots[slots >= 0]

    def insert(self, item_ids: Sequence[str], vectors_MD: np.ndarray, codebooks: Codebooks) -> SemanticIds:
        """A table that also holds M new items, in the order given, each with item_index len(self) + i.

        `self` is not changed. Raises UGTError for an id that is already there and when no slot is left. O(N) once, plus what `Insertion.assign` takes an item.
        """
        insertion = Insertion(self, codebooks)
        for item_id, vector_D in zip(item_ids, np.asarray(vectors_MD, np.float32).reshape(len(item_ids), -1), strict=True):
            insertion.assign(item_id, vector_D)
        return insertion.grown()

    def health(self) -> dict[str, Any]:
        """How well the codes are used. Perplexity is exp(entropy) of a level's codes: the number of equally used codes that would be as spread."""
        t = self.trie
        report: dict[str, Any] = {"items": len(self)}
        for level, k in enumerate((t.k1, t.k2, t.k3)):
            count_K = np.bincount(self.codes_N3[:, level], minlength=k)
            share = count_K[count_K > 0] / max(1, count_K.sum())
            used, perplexity = int((count_K > 0).sum()), float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0
            report |= {f"l{level + 1}": k, f"l{level + 1}_used": used, f"l{level + 1}_dead": k - used, f"l{level + 1}_perplexity": round(perplexity, 2)}
        live = t.group_count_G[t.group_count_G > 0]
        triples = len(np.unique(self.codes_N3, axis=0)) if len(self) else 0
        return report | {
            "groups": t.groups,
            "groups_used": len(live),
            "group_mean": round(float(live.mean()), 2) if len(live) else 0.0,
            "group_max": int(live.max()) if len(live) else 0,
            "groups_full": int((t.group_count_G == t.reserve_G).sum()),  # take no new item
            "slots": t.slots,
            "collisions": len(self) - triples,
        }


class Insertion:
    """New items into a table one at a time: each has its triple at once, in a time that does not depend on N; the table that holds them is made when asked for.

    The codebooks stay frozen and nobody moves: an item goes to the nearest (L1, L2) group that has items and a free slot, and takes the next free L3. A live
    group is wanted because the decoder never learnt to write an empty one. Near full, any group with a free slot will do.
    """

    def __init__(self, ids: SemanticIds, codebooks: Codebooks):
        self._ids, self._codebooks = ids, codebooks
        self._count_G, self._reserve_G = ids.trie.group_count_G.copy(), ids.trie.reserve_G
        self._norm_K = (codebooks.l1_KD**2).sum(1)
        self._new: dict[str, tuple[int, int, int]] = {}

    def assign(self, item_id: str, vector_D: np.ndarray) -> tuple[int, int, int]:
        """The triple of a new item; its item_index is the number of items before it. O(K1 D + K2 D).

        Raises UGTError for an id that is already there, and when no slot is left.
        """
        if item_id in self._new or item_id in self._ids.index:
            raise UGTError(f"semantic IDs: the item to insert, {item_id!r}, is already there or given twice.")
        z_D = self._codebooks.encode(np.asarray(vector_D, np.float32)[None])[0]
        group = self._nearest_group(z_D)
        l3 = int(self._count_G[group])
        self._count_G[group] += 1
        self._new[item_id] = (group // self._ids.trie.k2, group % self._ids.trie.k2, l3)
        return self._new[item_id]

    def grown(self) -> SemanticIds:
        """The table with the items assigned so far, in their order. O(N)."""
        old = self._ids.trie
        codes_M3 = np.array(list(self._new.values()), np.int32).reshape(-1, 3)
        slot_M = old.group_start_G[codes_M3[:, 0].astype(np.int64) * old.k2 + codes_M3[:, 1]] + codes_M3[:, 2]
        slot_item_S = old.slot_item_S.copy()
        slot_item_S[slot_M] = len(self._ids) + np.arange(len(slot_M))
        trie = Trie(old.k1, old.k2, old.k3, old.group_start_G, self._count_G.copy(), slot_item_S, np.append(old.item_slot_N, slot_M))
        return SemanticIds(np.concatenate([self._ids.codes_N3, codes_M3]), [*self._ids.item_ids, *self._new], trie, self._ids.spare)

    def _nearest_group(self, z_D: np.ndarray, width: int = 8) -> int:
        """The nearest group with a free slot: live ones first, among the `width` nearest L1 codes before those farther away."""
        k2, books = self._ids.trie.k2, self._codebooks
        order_K1 = np.argsort(self._norm_K - 2 * (books.l1_KD @ z_D), kind="stable")
        for need in (0, -1):  # first groups that have items, then any
            for start in range(0, len(order_K1), width):
                l1_C = order_K1[start : start + width]
                group_CK = l1_C[:, None] * k2 + np.arange(k2)
                free_CK = (self._count_G[group_CK] > need) & (self._count_G[group_CK] < self._reserve_G[group_CK])
                if free_CK.any():
                    distance_CK = ((z_D - books.l1_KD[l1_C])[:, None, :] - books.l2_KKD[l1_C]) ** 2
                    return int(group_CK.ravel()[np.argmin(np.where(free_CK, distance_CK.sum(-1), np.inf))])
        raise UGTError("semantic IDs: no free slot for a new item. Run `ugt train semantic-ids` again, with a larger semantic_ids.spare.")
