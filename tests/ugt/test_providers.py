"""A graph runs on the processor that was asked for, or not at all."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from ugt.providers import ExecutionProvider, session
from ugt.schema import UGTError


@pytest.mark.parametrize(("provider", "name"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")])
def test_a_provider_that_is_not_there_is_an_error_and_not_the_cpu(tmp_path: Path, provider: ExecutionProvider, name: str) -> None:
    if name in onnxruntime.get_available_providers():
        pytest.skip(f"not run: this onnxruntime has {name}")
    with pytest.raises(UGTError, match=f"'{provider}' is asked for, but this onnxruntime has only .*serve.execution_provider to cpu"):
        session(tmp_path / "decode.onnx", provider=provider)


def test_an_unknown_provider_and_a_graph_that_is_none_are_said(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match=r"no execution provider 'gpu'. Use one of: cpu, cuda, tensorrt"):
        session(tmp_path / "decode.onnx", provider="gpu")  # type: ignore[arg-type]
    (tmp_path / "decode.onnx").write_bytes(b"no graph")
    with pytest.raises(UGTError, match=r"decode.onnx cannot be loaded .*Export it again"):
        session(tmp_path / "decode.onnx")
