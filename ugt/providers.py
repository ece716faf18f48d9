"""ONNX Runtime sessions: on which processor a graph runs, and with which options.

Choices: what is asked for is what runs. A provider that is not there is an error, never a quiet change to the CPU. TensorRT and CUDA fall back to the next
provider for single nodes they lack, which is ONNX Runtime's own rule and changes no answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from ugt.schema import UGTError

ExecutionProvider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[ExecutionProvider, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


def session(graph: Path, threads: int = 1, provider: ExecutionProvider = "cpu") -> Any:
    """An `onnxruntime.InferenceSession`. Raises UGTError if the provider is not known or not there, or the graph cannot be loaded."""
    import onnxruntime

    if provider not in PROVIDERS:
        raise UGTError(f"there is no execution provider '{provider}'. Use one of: {', '.join(get_args(ExecutionProvider))}.")
    wanted, there = PROVIDERS[provider][0], onnxruntime.get_available_providers()
    if wanted not in there:
        raise UGTError(
            f"execution provider '{provider}' is asked for, but this onnxruntime has only {', '.join(there)}. "
            "Install onnxruntime-gpu (for TensorRT, its libraries too) on a machine with an NVIDIA GPU, or set serve.execution_provider to cpu."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # replicas share cores; a spinning pool would take them
    named: list[Any] = list(PROVIDERS[provider])
    if provider == "tensorrt":  # building an engine takes minutes: keep it beside the graph
        named[0] = (wanted, {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(graph.parent)})
    try:
        made = onnxruntime.InferenceSession(str(graph), options, providers=named)
    except Exception as error:  # onnxruntime's own classes; every cause has the same way out
        raise UGTError(f"{graph} cannot be loaded ({' '.join(str(error).split())[:300]}). Export it again: ugt export onnx.") from error
    if wanted not in made.get_providers():  # the libraries of a GPU provider did not load: onnxruntime only logs it
        raise UGTError(f"execution provider '{provider}' is installed, but could not start (drivers and libraries?). Set serve.execution_provider to cpu.")
    return made
