"""The constrained decode as ONNX: one graph per strategy, traced from the functions that PyTorch runs.

Choices: weights are constants of the graph; whatever describes the catalogue (item table, prefix means, trie, filters) is an input, so a new item needs no new
graph. Batch, history length, exclusions, filters, slots, items, group size and beam width are all free. Arrays of the trie are int32: half the memory of int64.

Shapes: as in `ugt/decoding.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from train.precision import convert
from ugt import runtime
from ugt.decoding import Constraints, beam_search
from ugt.gumbel import gumbel_noise
from ugt.model.config import Precision
from ugt.model.embeddings import CatalogueTables
from ugt.model.inference import encode
from ugt.model.ugt import UGT
from ugt.schema import DecodingStrategy
from ugt.strategies import Sampling, diverse_beam, nucleus

OPSET = 18


class DecodeGraph(nn.Module):
    """History and constraints in, items out: what the graph of a strategy computes. The arguments are the arrays of `example_inputs`, in its order."""

    def __init__(self, model: UGT, names: Sequence[str], strategy: DecodingStrategy = "beam"):
        super().__init__()
        self.model, self.names, self.strategy = model, list(names), strategy

    def forward(self, *arrays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = dict(zip(self.names, arrays, strict=True))
        tables = CatalogueTables(*(given[name] for name in CatalogueTables._fields))
        limits = Constraints(**{name: given[name] for name in Constraints._fields if name in given}, read_BL=given["item_BL"])
        state_BTD = encode(self.model, given, tables)
        request = (self.model, state_BTD, given["length_B"], given["context_B"], tables, limits, given["beam_W"], given["third_C"])
        if self.strategy == "nucleus":
            beams = nucleus(*request, Sampling(*(given[name] for name in Sampling._fields)))
        elif self.strategy == "diverse_beam":
            beams = diverse_beam(*request, given["penalty_B"])
        else:
            beams = beam_search(*request)
        return beams.item_BW, beams.log_prob_BW, beams.user_BD


def example_inputs(model: UGT, strategy: DecodingStrategy = "beam") -> dict[str, Tensor]:
    """One small request of every input of a strategy's graph, with no dimension equal to 1, so that none is taken for a constant."""
    b, length, beams, filters, exclusions = 3, 5, 7, 2, 4
    items, rows = model.items, torch.arange(b)
    history = {name: torch.ones(b, length, dtype=torch.int64) for name in model.history.inputs}
    tables = {name: torch.from_numpy(array) for name, array in table_arrays(model).items()}
    of_strategy: dict[str, Tensor] = {}
    if strategy == "diverse_beam":
        of_strategy = {"penalty_B": torch.ones(b)}
    if strategy == "nucleus":
        noise = gumbel_noise(range(b), items.k1, items.k2, max(2, items.largest_group), beams)
        of_strategy = {"temperature_B": torch.ones(b), "top_p_B": torch.full((b,), 0.9), **{n: torch.from_numpy(x) for n, x in noise._asdict().items()}}
    return {
        **history,
        "length_B": rows + 2,
        "user_BU": torch.zeros(b, len(model.vocabulary.sizes), dtype=torch.int64),
        "context_B": rows,
        "exclude_BX": torch.full((b, exclusions), -1, dtype=torch.int64),
        "filter_B": torch.zeros(b, dtype=torch.int64),
        "prior_BK": torch.zeros(b, items.k1),
        "beam_W": torch.arange(beams),
        "third_C": torch.arange(max(2, items.largest_group)),
        "slot_allowed_FS": (items.slot_item_S >= 0).repeat(filters, 1),
        "group_live_FG": items.group_count_G.repeat(filters, 1).int(),
        "first_live_FK": items.group_count_G.view(items.k1, items.k2).sum(1).repeat(filters, 1).int(),
        **tables,
        **of_strategy,
    }


def table_arrays(model: UGT) -> dict[str, np.ndarray]:
    """The tables of the catalogue as the graphs read them: float32 vectors, int32 arrays of the trie."""
    with torch.no_grad():
        tables = {name: value.cpu().numpy() for name, value in model.tables()._asdict().items()}
    return {name: array if array.dtype == np.float32 else array.astype(np.int32) for name, array in tables.items()}


def write_graph(model: UGT, path: Path, strategy: DecodingStrategy = "beam", precision: Precision = "fp32") -> None:
    """The graph of a strategy, with every dimension free that a request or a new item may change.

    By tracing (torch's older exporter): the newer one gives a graph of the same speed and the same numbers in twenty times the CPU time (17 s, 0.9 s).
    """
    inputs = example_inputs(model, strategy)
    free = {
        "B": "batch", "L": "events", "X": "exclusions", "W": "beams", "C": "group_size", "F": "filters", "I": "table_rows", "S": "slots", "N": "items",
    }  # fmt: skip
    axes = {name: {i: free[letter] for i, letter in enumerate(name.rsplit("_", 1)[1]) if letter in free} for name in inputs}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer names every Python branch; all of ours depend on the module's structure, none on data
        torch.onnx.export(
            DecodeGraph(model, list(inputs), strategy).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(runtime.OUTPUTS),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    convert(path, precision)


def write_graphs(model: UGT, folder: Path, precision: Precision = "fp32") -> None:
    """The graphs of all strategies, under the names in `ugt.runtime.GRAPHS`."""
    for strategy, name in runtime.GRAPHS.items():
        write_graph(model, folder / name, strategy, precision)
