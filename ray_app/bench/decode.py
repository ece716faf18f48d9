"""`ugt bench decode`: how long a constrained decode takes, beside PyTorch, other number formats, a larger catalogue and a Hugging Face model; and its legality.

Choices: everything runs in one process on one thread, the contenders in short turns, so what else the machine does hits all of them alike. Times are
wall time of a whole call, from a history to items; `cpu_ms` beside them is the processor time of the same calls, which a busy machine does not stretch.
First calls are not counted. Needs no data.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from ray_app.bench import generated
from ray_app.bench.hf_generate import EncoderDecoder, parameters_beside_items
from ray_app.report import host
from train.agreement import agreement
from ugt.cuda_graphs import CapturedDecode
from ugt.decoding import Constraints, beam_search, constraints
from ugt.model.config import DecodingConfig, ModelConfig
from ugt.model.inputs import History, build_inputs
from ugt.model.ugt import UGT
from ugt.runtime import GenerationRequest, Generator
from ugt.schema import Config, UGTError
from ugt.scoring import tensors

BATCH = 32
WARM_UP, TURN = 3, 10
TRIE = ("group_start_G", "group_count_G", "slot_item_S", "item_slot_N", "item_group_N")
Say = Callable[[str], None]


class DecodeBench(Config):
    """What is measured, and how often."""

    model: ModelConfig = ModelConfig(width=128, heads=4)
    small_width: int = Field(64, ge=8)
    items: int = Field(12_101, ge=100)  # Amazon Beauty's
    large_items: int = Field(1_000_000, ge=0)  # 0 leaves the large catalogue out
    beam: int = Field(50, ge=1)
    events: int = Field(50, ge=1)
    rounds: int = Field(200, ge=1)  # single requests of each contender
    batch_rounds: int = Field(20, ge=1)
    sequences: int = Field(1_000_000, ge=1)  # decoded items that are judged
    compared: int = Field(200, ge=1)  # requests on which formats are compared with PyTorch
    seed: int = 0


def run(bench: DecodeBench, model: UGT | None = None, say: Say = print) -> dict[str, Any]:
    """The report. `model` takes the place of the generated one. Raises UGTError if a format disagrees with PyTorch by more than it may."""
    torch.set_num_threads(1)
    if model is None:
        model = generated.model(bench.model, generated.semantic_ids(bench.items, bench.seed), bench.seed)
    with tempfile.TemporaryDirectory(prefix="ugt-bench-") as folder:
        return _measured(bench, model, Path(folder), say)


def _measured(bench: DecodeBench, model: UGT, folder: Path, say: Say) -> dict[str, Any]:
    items = len(model.semantic_ids)
    requests = generated.requests(items, 2 * BATCH, bench.events, bench.beam, bench.seed)
    formats = {name: Generator(generated.write_version(model, folder / name, name)) for name in ("fp32", "int8", "fp16")}
    small = _small(bench, model)
    small_generator = Generator(generated.write_version(small, folder / "small"))
    torch_decode, rival = TorchDecode(model, bench.beam), EncoderDecoder(model, bench.seed)
    say(f"models written: {items:,} items, {_parameters(model):,} parameters; Hugging Face {rival.parameters:,} (wanted {rival.wanted:,})")

    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[list[GenerationRequest]], Any]] = {
        "onnx": formats["fp32"].recommend,
        "int8": formats["int8"].recommend,
        "fp16": formats["fp16"].recommend,
        "torch": torch_decode,
        "d64": small_generator.recommend,
        "hf_generate": lambda batch: rival.generate([r.items for r in batch], bench.beam),
    }
    if torch.cuda.is_available():
        calls["cuda_graph"] = CudaGraphDecode(model, bench.beam)
    large_requests: list[GenerationRequest] = []
    trie_mb = 0.0
    if bench.large_items:
        large = generated.model(model.config, generated.semantic_ids(bench.large_items, bench.seed), bench.seed)
        large_generator = Generator(generated.write_version(large, folder / "large"))
        trie_mb = sum(large_generator.tables[name].nbytes for name in TRIE) / 1e6
        large_requests = generated.requests(bench.large_items, 2 * BATCH, bench.events, bench.beam, bench.seed)
        del large
        calls["items_1m"] = large_generator.recommend
        say(f"{bench.large_items:,} items written, trie {trie_mb:.1f} MB")
    given = {name: large_requests if name == "items_1m" else requests for name in calls}

    times = _interleaved(calls, given, 1, bench.rounds)
    batches = _interleaved({name: call for name, call in calls.items() if name != "hf_generate"}, given, BATCH, bench.batch_rounds)
    for name, taken in times.items():
        rows[name] = {"p50_ms": _ms(taken[0], 50), "p99_ms": _ms(taken[0], 99), "cpu_ms": _ms(taken[1], 50)}
        if name in batches:
            rows[name] |= {"batch32_ms": _ms(batches[name][0], 50), "batch32_cpu_ms": _ms(batches[name][1], 50)}
        say(f"{name:<12} " + "  ".join(f"{key} {value}" for key, value in rows[name].items()))

    decoding = DecodingConfig(beam_width=bench.beam)
    compared = generated.requests(items, bench.compared, bench.events, bench.beam, bench.seed + 1)
    for name, row in (("fp32", "onnx"), ("int8", "int8"), ("fp16", "fp16")):
        rows[row]["agreement"] = agreement(model, formats[name], compared, decoding, name)  # type: ignore[arg-type]
    rows["hf_generate"] |= {"params": rival.parameters, "illegal": rival.illegal(rival.generate([r.items for r in requests[:4]], bench.beam), model)}
    rows["d64"]["width"] = bench.small_width
    judged = _judged(formats["fp32"], model, bench, say)
    report = {
        **{name: row for name, row in rows.items() if name != "items_1m"},
        "ratio_to_hf_generate": round(rows["hf_generate"]["p50_ms"] / rows["onnx"]["p50_ms"], 2),
        "ratio_to_hf_generate_cpu": round(rows["hf_generate"]["cpu_ms"] / rows["onnx"]["cpu_ms"], 2),
    }
    if "items_1m" in rows:
        ratios = {"ratio": rows["items_1m"]["p50_ms"] / rows["onnx"]["p50_ms"], "ratio_cpu": rows["items_1m"]["cpu_ms"] / rows["onnx"]["cpu_ms"]}
        sizes = {"items": bench.large_items, "trie_mb": round(trie_mb, 2)}
        report["items_1m"] = rows["items_1m"] | {name: round(value, 3) for name, value in ratios.items()} | sizes
    return report | judged | {
        "params": _parameters(model),
        "params_beside_items": parameters_beside_items(model),
        "width": model.config.width,
        "items": items,
        "beam": bench.beam,
        "seed": bench.seed,
        "host": host() | {"load": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "transformers", "numpy")},
        "config": bench.model_dump(mode="json") | {"model": model.config.model_dump(mode="json")},
    }  # fmt: skip


class TorchDecode:
    """The same requests in PyTorch, the tables of the catalogue made once."""

    def __init__(self, model: UGT, beam_width: int):
        self._model = model
        with torch.inference_mode():
            self._tables = model.tables()
        self._sizes = torch.arange(beam_width), torch.arange(model.items.largest_group)

    @torch.inference_mode()
    def __call__(self, requests: list[GenerationRequest]) -> Any:
        model = self._model
        inputs, limits = _arrays(model, requests)
        return beam_search(model, model.encode(inputs, self._tables), inputs["length_B"], inputs["context_B"], self._tables, limits, *self._sizes)


class CudaGraphDecode:
    """The same requests on a GPU, each size of batch recorded once (`ugt.cuda_graphs`)."""

    def __init__(self, model: UGT, beam_width: int):
        self._cpu = model
        self._decode = CapturedDecode(copy.deepcopy(model), beam_width)

    def __call__(self, requests: list[GenerationRequest]) -> Any:
        return self._decode(*_arrays(self._cpu, requests))


def _arrays(model: UGT, requests: list[GenerationRequest]) -> tuple[dict[str, torch.Tensor], Constraints]:
    """Model inputs and constraints of requests without a filter."""
    histories, users = [History(r.items, r.actions, r.values, r.timestamps) for r in requests], [model.vocabulary.codes(r.user) for r in requests]
    inputs = tensors(build_inputs(histories, [r.now for r in requests], users, model.config.max_length))
    return inputs, constraints(model, [np.unique(r.exclude) for r in requests], read_BL=inputs["item_BL"])


def _small(bench: DecodeBench, model: UGT) -> UGT:
    heads = max(h for h in range(1, model.config.heads + 1) if bench.small_width % h == 0 and h <= max(1, bench.small_width // 32))
    return generated.model(model.config.model_copy(update={"width": bench.small_width, "heads": heads}), model.semantic_ids, bench.seed)


def _interleaved(
    calls: dict[str, Callable[[list[GenerationRequest]], Any]], given: dict[str, list[GenerationRequest]], size: int, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """(wall, processor) seconds per request of each contender, in turns of TURN calls; the first call of a turn finds others' data in the caches and does not
    count."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for first in range(0, rounds, TURN):
        for name, call in calls.items():
            turn = min(TURN, rounds - first)
            for n in range(first - (WARM_UP if first == 0 else 1), first + turn):
                batch = [given[name][(n * size + i) % len(given[name])] for i in range(size)]
                wall, cpu = time.perf_counter(), time.process_time()
                call(batch)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if n >= first:
                    taken[name][0].append(wall / size)
                    taken[name][1].append(cpu / size)
    return taken


def _judged(generator: Generator, model: UGT, bench: DecodeBench, say: Say) -> dict[str, Any]:
    """Decode until `sequences` items came out, by all strategies, and judge each."""
    items, faults, judged, answers = len(model.semantic_ids), 0, 0, 0
    endless = generated.judged_requests(items, generator.k1, model.config.max_length, bench.beam, bench.seed)
    started = said = time.monotonic()
    while judged < bench.sequences:
        batch = [next(endless) for _ in range(3 * BATCH)]
        for request, result in zip(batch, generator.recommend(batch), strict=True):
            faults += generated.illegal(request, result, model.semantic_ids.codes_N3)
            judged, answers = judged + len(result.item_indices), answers + 1
            if not len(result.item_indices) and not result.reason:
                raise UGTError("an empty answer came without a reason: a fault of the decode.")
        if time.monotonic() - said > 30:
            said = time.monotonic()
            say(f"{judged:,} of {bench.sequences:,} sequences judged, {faults} illegal")
    return {"illegal": faults, "sequences": judged, "requests_judged": answers, "judge_seconds": round(time.monotonic() - started, 1)}


def _ms(seconds: list[float], q: float) -> float:
    return round(float(np.percentile(seconds, q)) * 1000, 3)


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
