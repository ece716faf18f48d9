"""One exported model version in ONNX Runtime: histories and constraints in, items that exist out. No torch, so a replica starts fast.

Choices: model inputs are made by `ugt.model.inputs.build_inputs`, as in training; tables of the catalogue are bound once per version and thread, in the
number formats of the graph;
requests of a batch may differ in beam width, filter and strategy: each strategy is a graph of its own and runs once per batch (one graph that did all three
would make the beam a third dearer), the widest beam is decoded, a filter is computed once per batch and distinct mask.

Shapes: B requests, W beams, N items, S slots, G groups, C slots of the largest group, F filters, X exclusions, D width.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, local
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ugt.filters import Filters
from ugt.gumbel import gumbel_noise
from ugt.model.config import DecodingConfig
from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.providers import ExecutionProvider, session
from ugt.schema import DecodingStrategy, UGTError

GRAPH, TABLES, VECTORS, ITEM_TABLE, CARD = "decode.onnx", "tables.npz", "item_vectors.npy", "items.parquet", "card.json"
OUTPUTS = ("item_BW", "log_prob_BW", "user_BD")
STRATEGIES: tuple[DecodingStrategy, ...] = get_args(DecodingStrategy)
GRAPHS: dict[DecodingStrategy, str] = {"beam": GRAPH, "diverse_beam": "decode_diverse_beam.onnx", "nucleus": "decode_nucleus.onnx"}
DEFAULTS = DecodingConfig()
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
    beam_width: int = DEFAULTS.beam_width
    strategy: DecodingStrategy = DEFAULTS.strategy
    prior: NDArray[np.float32] | None = None  # added to the logits of L1, [K1]
    diversity_penalty: float = DEFAULTS.diversity_penalty  # of diverse_beam
    temperature: float = DEFAULTS.temperature  # of nucleus, like the next two
    top_p: float = DEFAULTS.top_p
    seed: int = 0  # equal seeds give equal samples


@dataclass(frozen=True)
class GenerationResult:
    """Best first (beam), or in the order they were chosen (diverse_beam) or drawn (nucleus); all that are legal where those are fewer than `beam_width`."""

    item_indices: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    codes: NDArray[np.int64]  # [., 3]
    user_vector: NDArray[np.float32]  # [D]; its inner product with a row of `Generator.item_vectors` is the dense logit
    reason: str | None = None  # why there are fewer items than `beam_width`


class Generator:
    """Not thread-safe for loading; `recommend` may be called from several threads."""

    def __init__(self, version_dir: Path, threads: int = 1, provider: ExecutionProvider = "cpu"):
        """Raises UGTError if the folder is not a whole version."""
        version_dir = Path(version_dir)
        missing = [name for name in (*GRAPHS.values(), TABLES, VECTORS, CARD) if not (version_dir / name).is_file()]
        if missing:
            raise UGTError(f"{version_dir} is not a model version: {', '.join(missing)} missing. Export it again: ugt export onnx.")
        self.card: dict[str, Any] = json.loads((version_dir / CARD).read_text())
        self.item_vectors: NDArray[np.float32] = np.load(version_dir / VECTORS)
        self.max_length = int(self.card["config"]["max_length"])
        self.vocabulary = UserVocabulary.from_json(self.card["vocabulary"])
        with np.load(version_dir / TABLES) as tables:
            self.tables = {name: np.ascontiguousarray(tables[name]) for name in tables.files}
        self._folder, self._threads, self._provider, self._loading = version_dir, threads, provider, Lock()
        self._sessions: dict[DecodingStrategy, Any] = {}
        self._bindings = local()
        self._filters = Filters(self.tables, self.k1)
        self._group_size = max(1, int(self.tables["group_count_G"].max()))

    @property
    def k1(self) -> int:
        return len(self.tables["first_KD"])

    @property
    def k2(self) -> int:
        return len(self.tables["group_count_G"]) // self.k1

    def with_catalogue(self, tables: Mapping[str, NDArray]) -> Generator:
        """This version with other tables (`ugt.insertion.extend`): new items without a new graph. Loaded graphs are shared; `self` answers as before, so a
        replica puts the new one in its place between two batches. Raises UGTError if the tables are not of this version's sizes."""
        if set(tables) != set(self.tables) or tables["item_ID"].shape[1] != self.item_vectors.shape[1] or len(tables["first_KD"]) != self.k1:
            raise UGTError("these tables are not of this model version: other names, width or codes. Extend the tables of the version that serves.")
        other = copy.copy(self)
        other.tables = {name: np.ascontiguousarray(array) for name, array in tables.items()}
        other.item_vectors = np.ascontiguousarray(tables["item_ID"][1:], np.float32)
        other._sessions, other._bindings, other._loading = {}, local(), Lock()
        other._filters = Filters(other.tables, other.k1)
        other._group_size = max(1, int(other.tables["group_count_G"].max()))
        for strategy, graph in self._sessions.items():
            other._sessions[strategy] = other._bound(graph.session)
        return other

    def recommend(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """Answers in the order of the requests. Raises UGTError for an item, a beam width or a strategy that does not exist."""
        for request in requests:
            self._check(request)
        results: dict[int, GenerationResult] = {}
        for strategy in STRATEGIES:
            rows = [row for row, request in enumerate(requests) if request.strategy == strategy]
            if rows:
                results |= zip(rows, self._decode(strategy, [requests[row] for row in rows]), strict=True)
        return [results[row] for row in range(len(requests))]

    def _decode(self, strategy: DecodingStrategy, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        binding, graph = self._binding(strategy)
        arrays = self.inputs(requests)  # alive until the run is over: what is bound is not copied
        for name in graph.inputs:
            binding.bind_cpu_input(name, arrays[name])
        binding.clear_binding_outputs()  # the last batch may have had another size
        for name in OUTPUTS:
            binding.bind_output(name, "cpu")
        graph.session.run_with_iobinding(binding)
        return self._results(requests, *(value.numpy() for value in binding.get_outputs()))

    def _binding(self, strategy: DecodingStrategy) -> tuple[Any, _Graph]:
        """This thread's binding of a strategy's graph, the tables in it."""
        graph = self._graph(strategy)
        bindings = self._bindings.__dict__
        if strategy not in bindings:
            binding = graph.session.io_binding()
            for name, value in graph.bound.items():
                binding.bind_ortvalue_input(name, value)
            bindings[strategy] = binding
        return bindings[strategy], graph

    def _graph(self, strategy: DecodingStrategy) -> _Graph:
        """The graph of a strategy, loaded with the first request that asks for it."""
        with self._loading:
            if strategy not in self._sessions:
                self._sessions[strategy] = self._bound(session(self._folder / GRAPHS[strategy], self._threads, self._provider))
            return self._sessions[strategy]

    def _bound(self, session: Any) -> _Graph:
        return _Graph(session, self.tables | {"third_C": np.arange(self._group_size)}, "cpu" if self._provider == "cpu" else "cuda")

    def inputs(self, requests: Sequence[GenerationRequest]) -> dict[str, NDArray]:
        """The arrays a batch of requests of one strategy is to its graph, tables apart."""
        histories = [History(r.items, r.actions, r.values, r.timestamps) for r in requests]
        users = [self.vocabulary.codes(r.user) for r in requests]
        arrays: dict[str, NDArray] = dict(build_inputs(histories, [r.now for r in requests], users, self.max_length))
        exclude = [np.unique(np.asarray(r.exclude, dtype=np.int64)) for r in requests]
        exclude_BX = np.full((len(requests), max(1, max(len(x) for x in exclude))), NO_ITEM, np.int64)
        for row, items in zip(exclude_BX, exclude, strict=True):
            row[: len(items)] = items
        no_prior = np.zeros(self.k1, np.float32)
        width = max(r.beam_width for r in requests)
        return arrays | {
            "exclude_BX": exclude_BX,
            **self._filters.arrays([r.allowed for r in requests]),
            "prior_BK": np.stack([no_prior if r.prior is None else np.asarray(r.prior, np.float32) for r in requests]),
            "beam_W": np.arange(width, dtype=np.int64),
            **self._strategy_inputs(requests, width),
        }

    def _strategy_inputs(self, requests: Sequence[GenerationRequest], width: int) -> dict[str, NDArray]:
        if requests[0].strategy == "diverse_beam":
            return {"penalty_B": np.array([r.diversity_penalty for r in requests], np.float32)}
        if requests[0].strategy == "nucleus":
            noise = gumbel_noise([r.seed for r in requests], self.k1, self.k2, self._group_size, width)
            knobs = {f"{name}_B": np.array([getattr(r, name) for r in requests], np.float32) for name in ("temperature", "top_p")}
            return knobs | noise._asdict()
        return {}

    def _check(self, request: GenerationRequest) -> None:
        items = len(self.item_vectors)
        if request.strategy not in STRATEGIES:
            raise UGTError(f"there is no decoding strategy '{request.strategy}'. Use one of: {', '.join(STRATEGIES)}.")
        try:
            DecodingConfig(diversity_penalty=request.diversity_penalty, temperature=request.temperature, top_p=request.top_p)
        except ValidationError as error:
            raise UGTError("; ".join(f"{e['loc'][0]} {e['input']} is not possible: {e['msg']}" for e in error.errors()) + ".") from error
        if request.seed < 0:
            raise UGTError(f"seed {request.seed} is not possible. Use 0 or more.")
        if request.beam_width < 1:
            raise UGTError(f"beam_width {request.beam_width} is not possible. Use 1 or more.")
        if not len(request.items) == len(request.actions) == len(request.values) == len(request.timestamps):
            raise UGTError("items, actions, values and timestamps of a history differ in length. Give one of each per event.")
        for name, indices in (("history", request.items), ("exclude", request.exclude)):
            if len(indices) and not (min(indices) >= 0 and max(indices) < items):
                raise UGTError(f"{name} names an item outside 0..{items - 1}. Give item indices of this model version's catalogue.")
        if request.prior is not None and not (np.shape(request.prior) == (self.k1,) and np.isfinite(request.prior).all()):
            raise UGTError(f"the prior must be {self.k1} finite numbers, one for each first code of this model version.")
        if request.allowed is not None and len(request.allowed) != items:
            raise UGTError(f"the filter has {len(request.allowed):,} entries for {items:,} items. Make it for this model version's catalogue.")

    def _results(self, requests: Sequence[GenerationRequest], item_BW: NDArray, log_prob_BW: NDArray, user_BD: NDArray) -> list[GenerationResult]:
        if requests[0].strategy == "beam":  # ties: lower item index first; what is no item has the lowest score of all
            order_BW = np.lexsort((item_BW, -log_prob_BW))
            item_BW, log_prob_BW = np.take_along_axis(item_BW, order_BW, 1), np.take_along_axis(log_prob_BW, order_BW, 1)
        group_BW = self.tables["item_group_N"][item_BW]  # of item -1 too: cut off below
        third_BW = self.tables["item_slot_N"][item_BW] - self.tables["group_start_G"][group_BW]
        codes_BW3 = np.stack([group_BW // self.k2, group_BW % self.k2, third_BW], axis=2)
        results = []
        for b, (request, found) in enumerate(zip(requests, (item_BW != NO_ITEM).sum(1).tolist(), strict=True)):
            n = min(found, request.beam_width)
            reason = self._shortage(request, n) if n < request.beam_width else None
            results.append(GenerationResult(item_BW[b, :n], log_prob_BW[b, :n], codes_BW3[b, :n], user_BD[b], reason))
        return results

    def _shortage(self, request: GenerationRequest, found: int) -> str:
        catalogue, exclude = len(self.item_vectors), np.unique(np.asarray(request.exclude, dtype=np.int64))
        passing, excluded = (catalogue, len(exclude)) if request.allowed is None else (int(request.allowed.sum()), int(request.allowed[exclude].sum()))
        return f"{found} of {request.beam_width} items: {passing:,} of {catalogue:,} items pass the filter, {excluded:,} of them are excluded"


class _Graph:
    """A session and what is bound to it once: each table it reads, in the number format it reads it in."""

    def __init__(self, session: Any, tables: Mapping[str, NDArray], device: str):
        from onnxruntime import OrtValue

        self.session = session
        types = {i.name: _TYPES[i.type] for i in session.get_inputs()}
        self.bound = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value, types[name]), device) for name, value in tables.items() if name in types}
        self.inputs = [name for name in types if name not in self.bound]  # those that come with each batch


_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
