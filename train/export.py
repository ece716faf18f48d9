"""The served version of a checkpoint: the decode as an ONNX graph per strategy (`train/graph.py`), the tables they are given, and the card.

Choices: each export is checked against PyTorch on real requests (`train/agreement.py`) before the folder counts as written.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train import warm_start
from train.agreement import beam_against_exact, compare
from train.graph import table_arrays, write_graphs
from ugt import insertion, memory, runtime
from ugt.artifacts import ITEMS, read_table, write_text
from ugt.histories import HistoryConfig
from ugt.insertion import Embedder
from ugt.model.config import DecodingConfig, ExportConfig, Precision
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.scoring import CARD, WEIGHTS, catalogue_hash, load_checkpoint, read_card


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
    config: ExportConfig = ExportConfig(),
) -> dict[str, Any]:
    """Write a version folder: a graph per decoding strategy, `tables.npz`, `item_vectors.npy` (dense head), `items.parquet` (canonical items with l1, l2,
    l3), `insertion.npz` (what rows of new items are made of), `card.json`.

    The graphs are then compared with PyTorch on the test requests of up to `check_users` users, seen items excluded. `evaluate_dir` holds `metrics.json` for
    the card. Returns the figures of that comparison. Raises UGTError if they differ by more than `train.agreement.tolerance`.
    """
    started = time.monotonic()
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    model, about = load_checkpoint(checkpoint_dir, semantic_ids_dir), read_card(checkpoint_dir)
    write_model(model, out_dir, config.precision)
    _write_items(model, Path(etl_dir), out_dir / runtime.ITEM_TABLE)
    if (Path(checkpoint_dir) / memory.FILE).is_file():
        shutil.copyfile(Path(checkpoint_dir) / memory.FILE, out_dir / memory.FILE)
    (out_dir / warm_start.FOLDER).mkdir(exist_ok=True)  # the weights, for a later `ugt train ugt --from`; their item vectors are above
    for name in (WEIGHTS, CARD, warm_start.TABLE, warm_start.CODEBOOKS):
        if (Path(checkpoint_dir) / name).is_file():
            shutil.copyfile(Path(checkpoint_dir) / name, out_dir / warm_start.FOLDER / name)
    card = {
        "config": about["config"],
        "vocabulary": about["vocabulary"],
        "fusion": about["fusion"],
        "decoding": decoding.model_dump(mode="json"),
        "precision": config.precision,
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
    figures = compare(model, out_dir, Path(histories_dir), users_dir, decoding, check_users, history, config.precision)
    figures |= beam_against_exact(model, Path(histories_dir), users_dir, decoding.beam_width, check_users // 2, history)
    write_text(out_dir / runtime.CARD, json.dumps(card | {"check": figures}, indent=1))
    size = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
    return figures | {"megabytes": round(size / 1e6, 2), "seconds": round(time.monotonic() - started, 1)}


def write_model(model: UGT, folder: Path, precision: Precision = "fp32") -> None:
    """What a version holds of the model itself: the graphs, `tables.npz`, `item_vectors.npy` and `insertion.npz`."""
    write_graphs(model, folder, precision)
    tables = table_arrays(model)
    np.savez(folder / runtime.TABLES, **tables)  # type: ignore[arg-type]
    np.save(folder / runtime.VECTORS, tables["item_ID"][1:])
    Embedder.of(model.items).save(folder / insertion.FILE)


def _write_items(model: UGT, etl_dir: Path, path: Path) -> None:
    """The canonical items of the catalogue with their codes, in order of item_index."""
    items = read_table(etl_dir / "items", ITEMS).sort_by("item_index")
    if items["item_id"].to_pylist() != model.semantic_ids.item_ids:
        raise UGTError(f"the items in {etl_dir} are not those the model was trained on. Run the pipeline again from the same ETL step.")
    for name, codes in zip(("l1", "l2", "l3"), model.semantic_ids.codes_N3.T, strict=True):
        items = items.append_column(name, pa.array(codes))
    pq.write_table(items, path, compression="zstd")
