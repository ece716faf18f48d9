"""One exported model version in ONNX Runtime: histories and constraints in, items that exist out. No torch, so a replica starts fast.

Choices: model inputs are made by `ugt.model.inputs.build_inputs`, as in training; tables of the catalogue are bound to the session once per version;
requests of a batch may differ in beam width and filter: the widest beam is decoded, a filter is computed once per batch and distinct mask.

Shapes: B requests, W beams, N items, S slots, G groups, C slots of the largest group, F filters, X exclusions, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.schema import DecodingStrategy, UGTError

GRAPH, TABLES, VECTORS, ITEM_TABLE, CARD = "decode.onnx", "tables.npz", "item_vectors.npy", "items.parquet", "card.json"
OUTPUTS = ("item_BW", "log_prob_BW", "user_BD")
STRATEGIES: tuple[DecodingStrategy, ...] = ("beam",)  # what the exported graph can do
NO_ITEM = -1


@dataclass(frozen=True)
class GenerationRequest:
    """One user's history (item_index, oldest first), the moment of the request, and what may come out."""

    items: Sequence[int]
    actions: Sequence[int]
    values: Sequence[float]  # NaN where an event has none
    timestamps: Sequence[int]  # 0 where unknown
    now: int
    user: Mapping[str, Any] = field(default_factory=dict)  # gender, age, occupation; any missing
    exclude: Sequence[int] = ()  # item_index; repeats are harmless
    allowed: NDArray[np.bool_] | None = None  # filter, [N]; None allows everything
    beam_width: int = 50
    strategy: DecodingStrategy = "beam"
    prior: NDArray[np.float32] | None = None  # added to the logits of L1, [K1]


@dataclass(frozen=True)
class GenerationResult:
    """Best first; fewer than `beam_width` items, or none, where fewer are legal."""

    item_indices: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    codes: NDArray[np.int64]  # [., 3]
    user_vector: NDArray[np.float32]  # [D]; its inner product with a row of `Generator.item_vectors` is the dense logit


class Generator:
    """Not thread-safe for loading; `recommend` may be called from several threads."""

    def __init__(self, version_dir: Path, threads: int = 1):
        """Raises UGTError if the folder is not a whole version."""
        import onnxruntime

        version_dir = Path(version_dir)
        missing = [name for name in (GRAPH, TABLES, VECTORS, CARD) if not (version_dir / name).is_file()]
        if missing:
            raise UGTError(f"{version_dir} is not a model version: {', '.join(missing)} missing. Export it again: ugt export onnx.")
        self.card: dict[str, Any] = json.loads((version_dir / CARD).read_text())
        self.item_vectors: NDArray[np.float32] = np.load(version_dir / VECTORS)
        self.max_length = int(self.card["config"]["max_length"])
        self.vocabulary = UserVocabulary.from_json(self.card["vocabulary"])
        with np.load(version_dir / TABLES) as tables:
            self.tables = {name: np.ascontiguousarray(tables[name]) for name in tables.files}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # replicas share cores; a spinning pool would take them
        self._session = onnxruntime.InferenceSession(str(version_dir / GRAPH), options, providers=["CPUExecutionProvider"])
        self._ort_value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._bound = {name: self._ort_value(value) for name, value in self.tables.items() if name in self._inputs}
        self._third_C = self._ort_value(np.arange(max(1, int(self.tables["group_count_G"].max())), dtype=np.int64))
        slot_item_S = self.tables["slot_item_S"]
        self._slot_live_S = slot_item_S >= 0
        self._slot_group_S = np.where(self._slot_live_S, self.tables["item_group_N"][np.maximum(slot_item_S, 0)], 0)

    @property
    def k1(self) -> int:
        return len(self.tables["first_KD"])

    @property
    def k2(self) -> int:
        return len(self.tables["group_count_G"]) // self.k1

    def recommend(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Answers in the order of the requests. Raises UGTError for an item, a beam width or a strategy that does not exist."""
        if not requests:
            return []
        for request in requests:
            self._check(request)
        feed = {name: self._ort_value(value) for name, value in self.inputs(requests).items() if name in self._inputs}
        outputs = self._session.run_with_ort_values(OUTPUTS, feed | self._bound | {"third_C": self._third_C})
        item_BW, log_prob_BW, user_BD = (o.numpy() for o in outputs)
        return [self._result(request, *row) for request, *row in zip(requests, item_BW, log_prob_BW, user_BD, strict=True)]

    def inputs(self, requests: Sequence[GenerationRequest]) -> dict[str, NDArray]:
        """The arrays a batch of requests is to the graph, tables apart."""
        histories = [History(r.items, r.actions, r.values, r.timestamps) for r in requests]
        users = [self.vocabulary.codes(r.user) for r in requests]
        arrays: dict[str, NDArray] = dict(build_inputs(histories, [r.now for r in requests], users, self.max_length))
        exclude = [np.unique(np.asarray(r.exclude, dtype=np.int64)) for r in requests]
        exclude_BX = np.full((len(requests), max(1, max(len(x) for x in exclude))), NO_ITEM, np.int64)
        for row, items in zip(exclude_BX, exclude, strict=True):
            row[: len(items)] = items
        filter_B, slot_allowed_FS, group_live_FG = self._filters([r.allowed for r in requests])
        no_prior = np.zeros(self.k1, np.float32)
        return arrays | {
            "exclude_BX": exclude_BX,
            "filter_B": filter_B,
            "slot_allowed_FS": slot_allowed_FS,
            "group_live_FG": group_live_FG,
            "first_live_FK": group_live_FG.reshape(-1, self.k1, self.k2).sum(2),
            "prior_BK": np.stack([no_prior if r.prior is None else np.asarray(r.prior, np.float32) for r in requests]),
            "beam_W": np.arange(max(r.beam_width for r in requests), dtype=np.int64),
        }

    def _filters(self, allowed: Sequence[NDArray[np.bool_] | None]) -> tuple[NDArray, NDArray, NDArray]:
        """(row of each request int64 [B], slots bool [F, S], allowed items per group int64 [F, G]); equal masks share a row."""
        rows: dict[bytes | None, int] = {}
        masks, filter_B = [], np.zeros(len(allowed), np.int64)
        for b, mask_N in enumerate(allowed):
            key = None if mask_N is None else np.packbits(mask_N).tobytes()
            if key not in rows:
                rows[key] = len(rows)
                masks.append(self._slot_live_S if mask_N is None else self._slot_live_S & mask_N[np.maximum(self.tables["slot_item_S"], 0)])
            filter_B[b] = rows[key]
        count_G = self.tables["group_count_G"]
        live = [count_G if mask is self._slot_live_S else np.bincount(self._slot_group_S[mask], minlength=len(count_G)) for mask in masks]
        return filter_B, np.stack(masks), np.stack(live).astype(np.int64)

    def _check(self, request: GenerationRequest) -> None:
        items = len(self.item_vectors)
        if request.strategy not in STRATEGIES:
            raise UGTError(f"decoding strategy '{request.strategy}' is not supported by the exported graph. Use one of: {', '.join(STRATEGIES)}.")
        if request.beam_width < 1:
            raise UGTError(f"beam_width {request.beam_width} is not possible. Use 1 or more.")
        if not len(request.items) == len(request.actions) == len(request.values) == len(request.timestamps):
            raise UGTError("items, actions, values and timestamps of a history differ in length. Give one of each per event.")
        for name, indices in (("history", request.items), ("exclude", request.exclude)):
            if len(indices) and not (min(indices) >= 0 and max(indices) < items):
                raise UGTError(f"{name} names an item outside 0..{items - 1}. Give item indices of this model version's catalogue.")
        if request.allowed is not None and len(request.allowed) != items:
            raise UGTError(f"the filter has {len(request.allowed):,} entries for {items:,} items. Make it for this model version's catalogue.")

    def _result(self, request: GenerationRequest, item_W: NDArray, log_prob_W: NDArray, user_D: NDArray) -> GenerationResult:
        keep_W = np.flatnonzero(item_W != NO_ITEM)
        keep_W = keep_W[np.lexsort((item_W[keep_W], -log_prob_W[keep_W]))][: request.beam_width]  # ties: lower item index first
        items = item_W[keep_W]
        group = self.tables["item_group_N"][items]
        third = self.tables["item_slot_N"][items] - self.tables["group_start_G"][group]
        return GenerationResult(items, log_prob_W[keep_W], np.stack([group // self.k2, group % self.k2, third], axis=1), user_D)
