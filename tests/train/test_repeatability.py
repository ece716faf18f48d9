"""Two equal runs end in equal weights, on several threads too: what a killed run that is started again is measured by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from train.stages import StageObjective
from train.windows import TrainingWindows
from ugt.histories import Histories
from ugt.model.config import ModelConfig, StageConfig, TrainingConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.scoring import tensors
from ugt.semantic_ids import SemanticIds

ITEMS, USERS, EVENTS = 256, 16, 52


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_gradient_is_the_same_to_the_bit_each_time() -> None:
    """Large enough that PyTorch shares the work: below 32,768 numbers it takes one thread and nothing could differ."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ids = SemanticIds.from_codes(np.array([(i // 16, i // 2 % 8, i % 2) for i in range(ITEMS)]), [f"i{i}" for i in range(ITEMS)], 16, 8, 8)
    model = UGT(ModelConfig(), ids, rng.normal(size=(ITEMS, 8)).astype(np.float32), UserVocabulary([], []))
    items = (rng.random(USERS * EVENTS) ** 3 * ITEMS).astype(np.int32)  # skewed: popular items collect many gradients
    same = np.ones_like(items)
    histories = Histories([f"u{i}" for i in range(USERS)], np.arange(0, len(items) + 1, EVENTS), items, same, same * np.float32(4), same.astype(np.int64))
    windows = TrainingWindows(histories.split(3), np.zeros((USERS, 3), np.int64), 50, 0.5, USERS, 0)
    batch = tensors(windows.batch(windows.epoch(0)[0]).inputs)
    assert batch["item_BL"].numel() * model.config.width >= 32_768
    objective = StageObjective(model, StageConfig(contrastive_weight=0.1, dpo_weight=0.1), TrainingConfig(), torch.ones(ITEMS)).train()

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        objective(batch)["loss"].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    first = gradients()
    for _ in range(3):
        again = gradients()
        assert [name for name in first if not torch.equal(first[name], again[name])] == []
