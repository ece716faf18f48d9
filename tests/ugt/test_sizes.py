"""The size presets hold the parameters that docs/architecture.md says; what doesn't fit is said with the way out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ugt.model.config import ModelConfig, TrainingConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.semantic_ids import SemanticIds
from ugt.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("tiny", "small", "base", "large")
IDS = SemanticIds.from_codes(np.array([[0, 0, 0], [1, 1, 0]]), ["a", "b"], 2, 2, 8)


def documented(size: str) -> tuple[float, float]:
    """Millions of parameters in the table of docs/architecture.md: all, and those that one token passes through."""
    row = re.search(rf"^\| `configs/size-{size}.yaml` \|.*\| ([\d,.]+) M \| ([\d,.]+) M \|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    assert row, f"docs/architecture.md has no row for {size}"
    return float(row[1].replace(",", "")), float(row[2].replace(",", ""))


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_parameters_that_are_documented(size: str) -> None:
    config = load_settings(ROOT / "configs" / f"size-{size}.yaml").model
    with torch.device("meta"):  # shapes without numbers
        model = UGT(config, IDS, np.zeros((2, 8), np.float32), UserVocabulary([], []))
    every = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.items.parameters())
    experts = sum(p.numel() for block in model.decoder.blocks for name, p in block.experts.named_parameters() if name.startswith(("up_", "down_")))
    idle = experts * (1 - config.experts_per_token / config.experts)
    assert (every / 1e6, (every - idle) / 1e6) == pytest.approx(documented(size), rel=0.02)  # two or three digits are written


def test_the_default_size_is_tiny() -> None:
    assert load_settings(ROOT / "configs" / "size-tiny.yaml").model == ModelConfig()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model.heads": 7}, "width 256 is not a multiple of heads 7: change one of them"),
        ({"model.experts_per_token": 9}, "experts_per_token 9 is more than experts 8: lower the first or raise the second"),
        ({"model.encoder_block": "mamba"}, "model.encoder_block: Input should be 'attention' or 'hstu'"),
        ({"training.min_workers": 3}, "min_workers 3 is more than workers 1: lower the first or raise the second"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_way_out(flags: dict[str, object], words: str) -> None:
    with pytest.raises(UGTError, match=re.escape(words)):
        load_settings(ROOT / "configs" / "size-small.yaml", flags)


def test_a_stage_of_which_one_field_is_set_keeps_its_other_fields() -> None:
    """Fault 6: another learning rate does not take the contrastive or the preference term out of the loss."""
    training = TrainingConfig.model_validate({"stage2": {"learning_rate": 1e-4}, "stage3": {"epochs": 3}})
    assert (training.stage2.contrastive_weight, training.stage2.epochs) == (TrainingConfig().stage2.contrastive_weight, 2) != (0.0, 2)
    assert (training.stage3.dpo_weight, training.stage3.learning_rate, training.stage3.epochs) == (0.05, 2e-4, 3)
    assert TrainingConfig.model_validate({"stage2": {"contrastive_weight": 0.0}}).stage2.contrastive_weight == 0  # said is done
