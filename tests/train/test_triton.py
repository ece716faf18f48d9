"""The Triton repository: its config says of every input and output what the graph says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from google.protobuf import text_format

from ray_app.bench import generated
from train.triton import TYPES, write_repository
from ugt import runtime
from ugt.model.config import ModelConfig
from ugt.schema import UGTError


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = generated.model(ModelConfig(width=8, heads=1, encoder_layers=1, max_length=5), generated.semantic_ids(120, 0), 0)
    return generated.write_version(model, tmp_path_factory.mktemp("triton") / "v1")


@pytest.fixture(scope="module")
def proto() -> ModuleType:
    """Triton's own schema of the file. By path: the package around it wants a JSON library for its client, which nothing here needs."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_the_config_says_what_the_graph_says(version: Path, proto: ModuleType, tmp_path: Path, provider: runtime.ExecutionProvider) -> None:
    for name, folder in write_repository(version, tmp_path, "films", provider).items():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), proto.ModelConfig())
        graph = onnx.load(str(folder / "1" / "model.onnx")).graph
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 0)
        for described, real in ((config.input, graph.input), (config.output, graph.output)):
            found = {v.name: (proto.DataType.Name(v.data_type), list(v.dims)) for v in described}
            wanted = {
                v.name: (TYPES[v.type.tensor_type.elem_type], [d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim])
                for v in real
            }
            assert found == wanted
        assert config.instance_group[0].kind == (proto.ModelInstanceGroup.KIND_CPU if provider == "cpu" else proto.ModelInstanceGroup.KIND_GPU)
        accelerators = [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator]
        assert accelerators == (["tensorrt"] if provider == "tensorrt" else [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films", "films_diverse_beam", "films_nucleus"]  # and nothing left aside


def test_the_tables_beside_a_model_are_its_inputs_that_come_with_no_request(version: Path, tmp_path: Path) -> None:
    import numpy as np

    folder = write_repository(version, tmp_path)["ugt"]
    with np.load(folder / "tables.npz") as tables:
        types = {v.name: TYPES[v.type.tensor_type.elem_type] for v in onnx.load(str(folder / "1" / "model.onnx")).graph.input}
        assert {name: types[name] for name in tables.files} == {
            name: "TYPE_FP32" if tables[name].dtype == np.float32 else "TYPE_INT32" for name in tables.files
        }


def test_a_model_that_is_there_already_is_not_overwritten(version: Path, tmp_path: Path) -> None:
    write_repository(version, tmp_path)
    with pytest.raises(UGTError, match="already has a model ugt, ugt_diverse_beam, ugt_nucleus"):
        write_repository(version, tmp_path)
    with pytest.raises(UGTError, match="is not a model version"):
        write_repository(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
