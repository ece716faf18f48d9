"""Graphs in other number formats: near PyTorch, smaller, legal, and refused where they are not near enough."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest

from ray_app.bench import generated
from train import agreement
from ugt import runtime
from ugt.model.config import DecodingConfig, ModelConfig, Precision
from ugt.model.ugt import UGT
from ugt.runtime import Generator
from ugt.schema import UGTError

ITEMS = 500
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def model() -> UGT:
    return generated.model(ModelConfig(width=32, heads=2, max_length=10), generated.semantic_ids(ITEMS, 0), 0)


@pytest.fixture(scope="module")
def versions(model: UGT, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    return {p: generated.write_version(model, tmp_path_factory.mktemp("precision") / p, p) for p in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_format_is_as_near_to_pytorch_as_it_can_be(model: UGT, versions: dict[Precision, Path], precision: Precision) -> None:
    figures = agreement.agreement(model, Generator(versions[precision]), generated.requests(ITEMS, 40, 8, 20, 3), DecodingConfig(beam_width=20), precision)
    assert figures["requests"] == 40
    if precision == "fp32":
        assert figures["same_top10"] == 1.0
        assert figures["max_difference"] <= 1e-4
    else:
        assert figures["max_difference"] > 1e-4  # it is another format indeed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_illegal_in_any_format(model: UGT, versions: dict[Precision, Path], precision: Precision) -> None:
    generator = Generator(versions[precision])
    requests = list(islice(generated.judged_requests(ITEMS, model.items.k1, 10, 20, 5), 60))
    for request, result in zip(requests, generator.recommend(requests), strict=True):
        assert generated.illegal(request, result, model.semantic_ids.codes_N3) == 0
        assert len(result.item_indices) or result.reason


def test_a_smaller_format_holds_smaller_numbers(versions: dict[Precision, Path]) -> None:
    size = {p: (versions[p] / runtime.GRAPH).stat().st_size for p in PRECISIONS}
    assert size["fp16"] < size["fp32"]
    assert size["int8"] < size["fp32"]

    def types(precision: Precision) -> dict[str, int]:
        return {v.name: v.type.tensor_type.elem_type for v in onnx.load(str(versions[precision] / runtime.GRAPH)).graph.input}

    tables = ("item_ID", "first_KD", "group_GD")
    assert {types("fp16")[name] for name in tables} == {onnx.TensorProto.FLOAT16}  # half is read of what is largest
    assert {types("int8")[name] for name in tables} == {onnx.TensorProto.FLOAT}
    assert types("fp16")["prior_BK"] == onnx.TensorProto.FLOAT


def test_a_graph_of_other_weights_is_refused(versions: dict[Precision, Path]) -> None:
    other = generated.model(ModelConfig(width=32, heads=2, max_length=10), generated.semantic_ids(ITEMS, 0), 7)
    for precision in PRECISIONS:
        with pytest.raises(UGTError, match=f"the {precision} graph of beam disagrees with PyTorch"):
            agreement.agreement(other, Generator(versions[precision]), generated.requests(ITEMS, 10, 8, 20, 3), DecodingConfig(beam_width=20), precision)


def test_arrays_of_the_trie_are_half_as_large_as_indices_would_be(versions: dict[Precision, Path]) -> None:
    with np.load(versions["fp32"] / runtime.TABLES) as tables:
        assert {tables[name].dtype for name in tables.files} == {np.dtype(np.float32), np.dtype(np.int32)}
