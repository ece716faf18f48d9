"""Graphs in other number formats: float16 for GPUs, int8 for CPUs. Made from the float32 graph by onnxruntime's own tools.

Choices: float16 keeps everything that is a score in float32, from the masked logits on: sums of log-probabilities near -10 would be told apart only in
steps of 0.008, and the constant of an impossible code does not fit into float16. Tables of the catalogue become float16 inputs, so half is read.
int8 is dynamic: constant weights are integers with a scale per column, activations get their scale at each run; a table of the catalogue is an input and
stays float32, and so does every product with one. Weights use 7 of the 8 bits: on processors without VNNI a product of 8-bit numbers saturates, and a quarter
of the top 10 changes instead of a fortieth.

Whether a format is faster is a question of the processor: benchmarks/results.md.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
from onnx import TensorProto

from ugt.model.config import Precision

SCORES = ("Where", "LogSoftmax", "Softmax", "TopK", "Pad", "CumSum", "ScatterElements")  # what makes or reads scores, attention's too: its logits are masked
FLOAT_INPUTS = ("prior_BK", "penalty_B", "temperature_B", "top_p_B", "noise_BK", "noise_BWK", "noise_BWC")
ROUTER = "router"  # part of the names of its nodes: rounding its logits would send tokens to other experts


def convert(path: Path, precision: Precision) -> None:
    """Rewrite a float32 graph in another precision, in place."""
    if precision == "fp16":
        _to_float16(path)
    elif precision == "int8":
        _to_int8(path)


def _to_float16(path: Path) -> None:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(str(path))
    kept = [name for name in (*FLOAT_INPUTS, "log_prob_BW", "user_BD") if name in {v.name for v in (*model.graph.input, *model.graph.output)}]
    converted = convert_float_to_float16(
        model,
        keep_io_types=kept,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SCORES],
        node_block_list=[*_scores(model), *(node.name for node in model.graph.node if ROUTER in node.name)],
        min_positive_val=1e-7,
        max_finite_val=1e4,
    )
    onnx.save(converted, str(path))


def _scores(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that compute with scores: what follows from a log-softmax or a float input of the request, as far as it is a float."""
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = {v.name for v in (*inferred.graph.value_info, *inferred.graph.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    reached, names = set(FLOAT_INPUTS) & {v.name for v in model.graph.input}, []
    for node in model.graph.node:  # in topological order
        if node.op_type == "LogSoftmax" or reached & set(node.input):
            names.append(node.name)
            reached |= floats & set(node.output)
    return names


def _to_int8(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(str(path)).graph.node
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the tool advises its own pre-processing at every call
    try:
        quantize_dynamic(
            str(path),
            str(path),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            nodes_to_exclude=[node.name for node in nodes if ROUTER in node.name],
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)
