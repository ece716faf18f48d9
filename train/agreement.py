"""An exported version against PyTorch and the beam against the exact scorer, on real requests.

Shapes: as in `ugt/decoding.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ugt import histories as history_files
from ugt import runtime
from ugt.artifacts import USERS, read_table
from ugt.decoding import beam_search, constraints, exact_log_probs
from ugt.histories import HistoryConfig
from ugt.model.config import DecodingConfig, Precision
from ugt.model.inputs import History, build_inputs
from ugt.model.ugt import UGT
from ugt.schema import DecodingStrategy, UGTError
from ugt.scoring import decode, tensors, user_codes

EXACT_ITEMS, EXACT_BATCH = 50_000, 16
CHECK_BATCH = 32


class Tolerance(NamedTuple):
    same_top10: float  # at least this share of requests with the same ten items in the same order
    common_top10: float  # at least this mean share of ten items in common
    difference: float  # at most this between the scores of an item that both found


def tolerance(precision: Precision, strategy: DecodingStrategy) -> Tolerance:
    """What is asked of a graph before it counts as the model it was made from."""
    if precision == "fp32":
        # the same sums in another order, over three log-softmaxes; a code on the border of its nucleus, or two keys a rounding apart, move more than the
        # beam's near ties do
        return Tolerance(0.999 if strategy == "beam" else 0.99, 0.99, 1e-4)
    if precision == "fp16":
        return Tolerance(0.0, 0.98 if strategy == "beam" else 0.9, 0.5)  # 11 bits: neighbours in rank change places; a token between two experts may change its
    return Tolerance(0.0, 0.9 if strategy == "beam" else 0.7, 1.0)  # 7 bits, one scale for all activations of a product: another order of much the same items


def compare(
    model: UGT,
    version_dir: Path,
    histories_dir: Path,
    users_dir: Path,
    decoding: DecodingConfig,
    count: int,
    history: HistoryConfig = HistoryConfig(),
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """ONNX against PyTorch on real requests: the beam on all of them, each other strategy on a fifth. Raises UGTError if they differ more than `tolerance`."""
    split = history.apply(history_files.load(histories_dir))
    rows = np.flatnonzero(split.evaluated)[:count]
    rows = rows if len(rows) else np.arange(min(count, len(split.histories)))
    users = [split.histories.user_ids[u] for u in rows]
    people = {row["user_id"]: row for row in read_table(users_dir, USERS).to_pylist()}
    requests: list[runtime.GenerationRequest] = []
    for u, user in zip(rows, users, strict=True):
        cut = slice(split.histories.row(u).start, split.histories.row(u).stop - 1)
        items, actions, values, timestamps = (getattr(split.histories, name)[cut].tolist() for name in ("items", "actions", "values", "timestamps"))
        now = int(split.histories.timestamps[cut.stop])
        requests.append(runtime.GenerationRequest(items, actions, values, timestamps, now, people.get(user, {}), exclude=items, seed=len(requests)))
    return agreement(model, runtime.Generator(version_dir), requests, decoding, precision)


def agreement(
    model: UGT, generator: runtime.Generator, requests: Sequence[runtime.GenerationRequest], decoding: DecodingConfig, precision: Precision = "fp32"
) -> dict[str, Any]:
    """Figures of all strategies on given requests, which must have no filter: `same_top10`, `common_top10`, `max_difference`; see `compare`."""
    figures: dict[str, Any] = {"requests": len(requests)}
    for strategy in runtime.STRATEGIES:
        asked = decoding.model_copy(update={"strategy": strategy})
        compared = requests if strategy == "beam" else requests[: -(-len(requests) // 5)]
        same, common, largest = 0, 0.0, 0.0
        for start in range(0, len(compared), CHECK_BATCH):
            batch = [replace(request, **dict(asked)) for request in compared[start : start + CHECK_BATCH]]
            histories = [History(r.items, r.actions, r.values, r.timestamps) for r in batch]
            user_UA = np.array([model.vocabulary.codes(r.user) for r in batch])
            exclude = [np.unique(np.asarray(r.exclude, np.int64)) for r in batch]
            beams = decode(model, histories, [r.now for r in batch], user_UA, exclude, asked, [r.seed for r in batch])
            for i, result in enumerate(generator.recommend(batch)):
                items = beams.item_BW[i].numpy()
                score = dict(zip(items.tolist(), beams.log_prob_BW[i].tolist(), strict=True))
                ours, theirs = result.item_indices[:10], items[items >= 0][:10]
                same += bool(np.array_equal(ours, theirs))
                common += len(np.intersect1d(ours, theirs)) / max(1, len(theirs))
                both = [(a, score[item]) for item, a in zip(result.item_indices.tolist(), result.log_probs.tolist(), strict=True) if item in score]
                largest = max([largest, *(abs(a - b) for a, b in both)])
        n, suffix = max(1, len(compared)), "" if strategy == "beam" else f"_{strategy}"
        found = Tolerance(round(same / n, 5), round(common / n, 5), float(f"{largest:.3g}"))
        figures |= {f"same_top10{suffix}": found.same_top10, f"common_top10{suffix}": found.common_top10, f"max_difference{suffix}": found.difference}
        wanted = tolerance(precision, strategy)
        if compared and (found.same_top10 < wanted.same_top10 or found.common_top10 < wanted.common_top10 or largest > wanted.difference):
            raise UGTError(
                f"the {precision} graph of {strategy} disagrees with PyTorch over {len(compared)} requests: same top 10 in {found.same_top10:.2%} (at least "
                f"{wanted.same_top10:.1%} wanted), {found.common_top10:.1%} of the items in common (at least {wanted.common_top10:.1%}), largest score "
                f"difference {largest:.2g} (at most {wanted.difference:g}). "
                + ("Check that torch and onnxruntime are the pinned versions." if precision == "fp32" else "Set export.precision to fp32.")
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
            limits = constraints(model, [np.unique(e.items) for e in examples], read_BL=inputs["item_BL"])
            request = (state_BTD, inputs["length_B"], inputs["context_B"], tables, limits)
            exact_BN = exact_log_probs(model, *request)
            top_BK = torch.sort(exact_BN, dim=1, descending=True, stable=True).indices[:, :10]
            beams = beam_search(model, *request, torch.arange(beam_width), torch.arange(model.items.largest_group))
            same += int((beams.item_BW[:, :10] == top_BK).all(1).sum())
    return {"exact_requests": len(rows), "exact_same_top10": round(same / max(1, len(rows)), 5)}
