"""A Triton model repository of an exported version: one model per decoding strategy, for Triton's ONNX Runtime backend.

    DIR/<name>/config.pbtxt        what Triton reads: every input and output of the graph with type and shape
    DIR/<name>/1/model.onnx
    DIR/<name>/tables.npz          the inputs that are the catalogue, not the request: see docs/decoding.md, "Triton"

Choices: `max_batch_size` is 0 and the batch is a dimension like any other, because Triton's own batching would batch the tables too. The tables stay
inputs, so a new item needs no new model; a client puts them into a shared memory region once, and requests name the region.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
from onnx import TensorProto

from ugt import runtime
from ugt.providers import PROVIDERS, ExecutionProvider
from ugt.schema import UGTError

CONFIG, MODEL, VERSION = "config.pbtxt", "model.onnx", "1"
TYPES = {
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.BOOL: "TYPE_BOOL",
}


def write_repository(version_dir: Path, out_dir: Path, name: str = "ugt", provider: ExecutionProvider = "cpu") -> dict[str, Path]:
    """The model folders of a version, by their names: `name` decodes by beam, `name`_diverse_beam and `name`_nucleus by theirs.

    Each is written aside and renamed. Raises UGTError if the folder is no version, or a model of that name is there already.
    """
    version_dir, out_dir = Path(version_dir), Path(out_dir)
    graphs = {name if strategy == "beam" else f"{name}_{strategy}": version_dir / graph for strategy, graph in runtime.GRAPHS.items()}
    missing = [path.name for path in (*graphs.values(), version_dir / runtime.TABLES) if not path.is_file()]
    if missing:
        raise UGTError(f"{version_dir} is not a model version: {', '.join(missing)} missing. Export it again: ugt export onnx.")
    if taken := [model for model in graphs if (out_dir / model).exists()]:
        raise UGTError(f"{out_dir} already has a model {', '.join(taken)}. Give another folder to --out, or another --name.")
    out_dir.mkdir(parents=True, exist_ok=True)
    for model, graph in graphs.items():
        aside = out_dir / f".{model}.{os.getpid()}.tmp"
        (aside / VERSION).mkdir(parents=True)
        try:
            shutil.copyfile(graph, aside / VERSION / MODEL)
            shutil.copyfile(version_dir / runtime.TABLES, aside / runtime.TABLES)
            (aside / CONFIG).write_text(model_config(graph, model, provider), encoding="utf-8")
            os.replace(aside, out_dir / model)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return {model: out_dir / model for model in graphs}


def model_config(graph: Path, name: str, provider: ExecutionProvider = "cpu") -> str:
    """Triton's description of a graph, as protobuf text. A dimension that is free is -1."""
    if provider not in PROVIDERS:
        raise UGTError(f"there is no execution provider '{provider}'. Use one of: {', '.join(PROVIDERS)}.")
    described = onnx.load(str(graph)).graph
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for field, values in (("input", described.input), ("output", described.output)):
        for value in values:
            dims = ", ".join(str(d.dim_value) if d.HasField("dim_value") else "-1" for d in value.type.tensor_type.shape.dim)
            lines.append(f'{field} {{ name: "{value.name}" data_type: {TYPES[value.type.tensor_type.elem_type]} dims: [ {dims} ] }}')
    lines.append(f"instance_group {{ count: 1 kind: {'KIND_CPU' if provider == 'cpu' else 'KIND_GPU'} }}")
    if provider == "tensorrt":
        lines.append('optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }')
    if provider == "cpu":  # one thread per decode, as in our own server: several requests at once use the other cores
        lines += [f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}' for key in ("intra_op_thread_count", "inter_op_thread_count")]
    return "\n".join(lines) + "\n"
