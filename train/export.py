"""The served version of a checkpoint: the whole constrained decode as one ONNX graph, the tables it is given, and the card.

Choices: weights are constants of the graph; whatever describes the catalogue (item table, prefix means, trie, filters) is an input, so a new item needs no new
graph. Batch, history length, exclusions, filters, slots, items, group size and beam width are all free. Each export is checked against PyTorch on real
requests before the folder counts as written.

Shapes: as in `ugt/decoding.py`.
"""

from __future__ import annotations

import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from ugt import histories as history_files
from ugt import runtime
from ugt.artifacts import ITEMS, USERS, read_table, write_text
from ugt.decoding import Constraints, beam_search, constraints, exact_log_probs
from ugt.histories import HistoryConfig
from ugt.model.config import DecodingConfig
from ugt.model.embeddings import CatalogueTables
from ugt.model.inference import encode
from ugt.model.inputs import History, build_inputs
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.scoring import catalogue_hash, decode, load_checkpoint, read_card, tensors, user_codes

OPSET = 18
SCORE_TOLERANCE = 1e-4  # float32 sums in another order, over three log-softmaxes
EXACT_ITEMS, EXACT_BATCH = 50_000, 16
AGREEMENT = 0.999  # share of requests with the same top 10
CHECK_BATCH = 32


class DecodeGraph(nn.Module):
    """History and constraints in, items out: what `decode.onnx` computes. The arguments are the graph's inputs, in this order."""

    def __init__(self, model: UGT):
        super().__init__()
        self.model = model

    def forward(
        self,
        item_BL: Tensor,
        action_BL: Tensor,
        value_BL: Tensor,
        gap_BL: Tensor,
        length_B: Tensor,
        user_BU: Tensor,
        context_B: Tensor,
        exclude_BX: Tensor,
        filter_B: Tensor,
        prior_BK: Tensor,
        beam_W: Tensor,
        third_C: Tensor,
        slot_allowed_FS: Tensor,
        group_live_FG: Tensor,
        first_live_FK: Tensor,
        item_ID: Tensor,
        first_KD: Tensor,
        group_GD: Tensor,
        group_start_G: Tensor,
        group_count_G: Tensor,
        slot_item_S: Tensor,
        item_slot_N: Tensor,
        item_group_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tables = CatalogueTables(item_ID, first_KD, group_GD, group_start_G, group_count_G, slot_item_S, item_slot_N, item_group_N)
        limits = Constraints(exclude_BX, filter_B, slot_allowed_FS, group_live_FG, prior_BK, first_live_FK, item_BL)
        inputs = {"item_BL": item_BL, "action_BL": action_BL, "value_BL": value_BL, "gap_BL": gap_BL, "user_BU": user_BU}
        beams = beam_search(self.model, encode(self.model, inputs, tables), length_B, context_B, tables, limits, beam_W, third_C)
        return beams.item_BW, beams.log_prob_BW, beams.user_BD


def example_inputs(model: UGT) -> dict[str, Tensor]:
    """One small request of every graph input, with no dimension equal to 1, so that none is taken for a constant."""
    b, length, beams, filters, exclusions = 3, 5, 7, 2, 4
    items, rows = model.items, torch.arange(b)
    history = {name: torch.ones(b, length, dtype=torch.int64) for name in ("item_BL", "action_BL", "value_BL", "gap_BL")}
    with torch.no_grad():
        tables = {name: value.clone() for name, value in model.tables()._asdict().items()}
    return {
        **history,
        "length_B": rows + 2,
        "user_BU": torch.zeros(b, 3, dtype=torch.int64),
        "context_B": rows,
        "exclude_BX": torch.full((b, exclusions), -1, dtype=torch.int64),
        "filter_B": torch.zeros(b, dtype=torch.int64),
        "prior_BK": torch.zeros(b, items.k1),
        "beam_W": torch.arange(beams),
        "third_C": torch.arange(max(2, items.largest_group)),
        "slot_allowed_FS": (items.slot_item_S >= 0).repeat(filters, 1),
        "group_live_FG": items.group_count_G.repeat(filters, 1),
        "first_live_FK": items.group_count_G.view(items.k1, items.k2).sum(1).repeat(filters, 1),
        **tables,
    }


def write_graph(model: UGT, path: Path) -> None:
    """`decode.onnx`, with every dimension free that a request or a new item may change.

    By tracing (torch's older exporter): the newer one gives a graph of the same speed and the same numbers in twenty times the CPU time (17 s, 0.9 s).
    """
    inputs = example_inputs(model)
    free = {
        "B": "batch", "L": "events", "X": "exclusions", "W": "beams", "C": "group_size", "F": "filters", "I": "table_rows", "S": "slots", "N": "items",
    }  # fmt: skip
    axes = {name: {i: free[letter] for i, letter in enumerate(name.rsplit("_", 1)[1]) if letter in free} for name in inputs}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer names every Python branch; all of ours depend on the module's structure, none on data
        torch.onnx.export(
            DecodeGraph(model).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(runtime.OUTPUTS),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def run(
    checkpoint_dir: Path,
    semantic_ids_dir: Path,
    etl_dir: Path,
    histories_dir: Path,
    evaluate_dir: Path | None,
    decoding: DecodingConfig,
    out_dir: Path,
    check_users: int = 1000,
    history: HistoryConfig = HistoryConfig(),
) -> dict[str, Any]:
    """Write a version folder: `decode.onnx`, `tables.npz`, `item_vectors.npy` (dense head), `items.parquet` (canonical items with l1, l2, l3), `card.json`.

    The graph is then compared with PyTorch on the test requests of up to `check_users` users, seen items excluded. `evaluate_dir` holds `metrics.json` for
    the card. Returns the figures of that comparison. Raises UGTError for a strategy the graph hasn't, and if fewer than 99.9% have the same top 10 or a
    score differs by more than 1e-4.
    """
    started = time.monotonic()
    if decoding.strategy not in runtime.STRATEGIES:
        raise UGTError(f"decoding.strategy '{decoding.strategy}' is not in the exported graph. Set it to one of: {', '.join(runtime.STRATEGIES)}.")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    model, about = load_checkpoint(checkpoint_dir, semantic_ids_dir), read_card(checkpoint_dir)
    write_graph(model, out_dir / runtime.GRAPH)
    with torch.no_grad():
        tables = {name: value.numpy() for name, value in model.tables()._asdict().items()}
    np.savez(out_dir / runtime.TABLES, **tables)
    np.save(out_dir / runtime.VECTORS, tables["item_ID"][1:])
    _write_items(model, Path(etl_dir), out_dir / runtime.ITEM_TABLE)
    card = {
        "config": about["config"],
        "vocabulary": about["vocabulary"],
        "fusion": about["fusion"],
        "decoding": decoding.model_dump(mode="json"),
        "catalogue": catalogue_hash(model.semantic_ids),
        "items": len(model.semantic_ids),
        "codes": about["codes"],
        "parameters": about["parameters"],
        "training": {"stage": about["stage"], "seed": about["training"]["seed"], "figures": about["figures"]},
        "metrics": json.loads((Path(evaluate_dir) / "metrics.json").read_text()) if evaluate_dir is not None else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
    }
    write_text(out_dir / runtime.CARD, json.dumps(card, indent=1))
    users_dir = Path(etl_dir) / "users"
    figures = compare(model, out_dir, Path(histories_dir), users_dir, decoding.beam_width, check_users, history)
    figures |= beam_against_exact(model, Path(histories_dir), users_dir, decoding.beam_width, check_users // 2, history)
    write_text(out_dir / runtime.CARD, json.dumps(card | {"check": figures}, indent=1))
    size = sum(path.stat().st_size for path in out_dir.iterdir())
    return figures | {"megabytes": round(size / 1e6, 2), "seconds": round(time.monotonic() - started, 1)}


def compare(
    model: UGT, version_dir: Path, histories_dir: Path, users_dir: Path, beam_width: int, count: int, history: HistoryConfig = HistoryConfig()
) -> dict[str, Any]:
    """ONNX against PyTorch on real requests. Raises UGTError if they disagree; see `run`."""
    split = history.apply(history_files.load(histories_dir))
    rows = np.flatnonzero(split.evaluated)[:count]
    rows = rows if len(rows) else np.arange(min(count, len(split.histories)))
    users = [split.histories.user_ids[u] for u in rows]
    user_UA = user_codes(users_dir, users, model.vocabulary)
    people = {row["user_id"]: row for row in read_table(users_dir, USERS).to_pylist()}
    generator = runtime.Generator(version_dir)
    same, largest = 0, 0.0
    for start in range(0, len(rows), CHECK_BATCH):
        part = slice(start, start + CHECK_BATCH)
        cuts = [slice(split.histories.row(u).start, split.histories.row(u).stop - 1) for u in rows[part]]
        histories = [History(*(getattr(split.histories, name)[cut] for name in ("items", "actions", "values", "timestamps"))) for cut in cuts]
        now = [int(split.histories.timestamps[cut.stop]) for cut in cuts]
        beams = decode(model, histories, now, user_UA[part], [np.unique(h.items) for h in histories], beam_width)
        requests = [
            runtime.GenerationRequest(
                items=np.asarray(h.items).tolist(),
                actions=np.asarray(h.actions).tolist(),
                values=np.asarray(h.values).tolist(),
                timestamps=np.asarray(h.timestamps).tolist(),
                now=t,
                user=people.get(user, {}),
                exclude=np.asarray(h.items).tolist(),
                beam_width=beam_width,
            )
            for h, t, user in zip(histories, now, users[part], strict=True)
        ]
        for i, result in enumerate(generator.recommend(requests)):
            items = beams.item_BW[i].numpy()
            score = dict(zip(items.tolist(), beams.log_prob_BW[i].tolist(), strict=True))
            same += bool(np.array_equal(result.item_indices[:10], items[items >= 0][:10]))
            both = [(a, score[item]) for item, a in zip(result.item_indices.tolist(), result.log_probs.tolist(), strict=True) if item in score]
            largest = max([largest, *(abs(a - b) for a, b in both)])
    figures = {"requests": len(rows), "same_top10": round(same / max(1, len(rows)), 5), "max_difference": float(f"{largest:.3g}")}
    if figures["same_top10"] < AGREEMENT or largest > SCORE_TOLERANCE:
        raise UGTError(
            f"the exported graph in {version_dir} disagrees with PyTorch: same top 10 in {figures['same_top10']:.2%} of {len(rows)} requests (at least "
            f"{AGREEMENT:.1%} wanted), largest score difference {largest:.2g} (at most {SCORE_TOLERANCE:g}). "
            f"Check that torch and onnxruntime are the pinned versions."
        )
    return figures


def beam_against_exact(
    model: UGT, histories_dir: Path, users_dir: Path, beam_width: int, count: int, history: HistoryConfig = HistoryConfig()
) -> dict[str, Any]:
    """Share of `count` test requests (seen items excluded) in which the beam's top 10 is that of the exact scorer over the whole catalogue.

    Nothing for a catalogue of more than EXACT_ITEMS, which the exact scorer takes too long for.
    """
    if len(model.semantic_ids) > EXACT_ITEMS:
        return {}
    split = history.apply(history_files.load(histories_dir))
    rows = np.flatnonzero(split.evaluated)[:count]
    user_UA = user_codes(users_dir, [split.histories.user_ids[u] for u in rows], model.vocabulary)
    same = 0
    with torch.inference_mode():
        tables = model.tables()
        for start in range(0, len(rows), EXACT_BATCH):
            part = slice(start, start + EXACT_BATCH)
            examples = [split.example(int(u), "test") for u in rows[part]]
            histories = [History(e.items, e.actions, e.values, e.timestamps) for e in examples]
            inputs = tensors(build_inputs(histories, [e.target_timestamp for e in examples], user_UA[part], model.config.max_length))
            state_BTD = model.encode(inputs, tables)
            limits = constraints(model, [np.unique(e.items) for e in examples])
            request = (state_BTD, inputs["length_B"], inputs["context_B"], tables, limits)
            exact_BN = exact_log_probs(model, *request)
            top_BK = torch.sort(exact_BN, dim=1, descending=True, stable=True).indices[:, :10]
            beams = beam_search(model, *request, torch.arange(beam_width), torch.arange(model.items.largest_group))
            same += int((beams.item_BW[:, :10] == top_BK).all(1).sum())
    return {"exact_requests": len(rows), "exact_same_top10": round(same / max(1, len(rows)), 5)}


def _write_items(model: UGT, etl_dir: Path, path: Path) -> None:
    """The canonical items of the catalogue with their codes, in order of item_index."""
    items = read_table(etl_dir / "items", ITEMS).sort_by("item_index")
    if items["item_id"].to_pylist() != model.semantic_ids.item_ids:
        raise UGTError(f"the items in {etl_dir} are not those the model was trained on. Run the pipeline again from the same ETL step.")
    for name, codes in zip(("l1", "l2", "l3"), model.semantic_ids.codes_N3.T, strict=True):
        items = items.append_column(name, pa.array(codes))
    pq.write_table(items, path, compression="zstd")
