"""Run the autoencoder's training under Ray Train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ray import train

from train import trainer
from ugt.autoencoder import finish, fit, open_inputs
from ugt.fusion import AutoencoderConfig

STATE = "autoencoder.pt"


def run(features_dir: Path, text_dir: Path | None, config: AutoencoderConfig, out_dir: Path, work_dir: Path) -> dict[str, Any]:
    """Write `autoencoder.safetensors`, `autoencoder.json`, `fused.npy` (float32 [N, W]); figures of the training.

    The state of each epoch lies in `work_dir`: a killed run goes on from there and ends on the same curve.
    """
    paths = {"features_dir": str(features_dir), "text_dir": str(text_dir) if text_dir is not None else None, "work_dir": str(work_dir)}
    trainer.run(_train, paths | {"config": config.model_dump_json()}, "autoencoder", work_dir, cpus=config.threads)
    inputs, blocks = open_inputs(features_dir, text_dir)
    fusion, fused_NW, figures = finish(inputs, blocks, config, work_dir / STATE)
    fusion.save(out_dir)
    np.save(out_dir / "fused.npy", fused_NW)
    return {"items": len(fused_NW), "columns": len(fusion.scaler.mean_F), "width": fused_NW.shape[1]} | figures


def _train(loop: dict[str, Any]) -> None:
    inputs, blocks = open_inputs(Path(loop["features_dir"]), Path(loop["text_dir"]) if loop["text_dir"] else None)
    fit(inputs, blocks, AutoencoderConfig.model_validate_json(loop["config"]), Path(loop["work_dir"]) / STATE, train.report)
